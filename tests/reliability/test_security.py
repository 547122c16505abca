"""Nothing is run that came in a file; nothing private goes out in one; nothing foreign is lost."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.checkpoint import Checkpoints, disk
from nnkit.cli.restored import NotRestored, restored
from nnkit.core.privacy import private
from nnkit.interop import digests, files, folders, huggingface, serving
from nnkit.models import GPT
from reliability.children import child

ROOT = Path(nk.__file__).parents[1]
SOURCES = sorted([*(ROOT / "nnkit").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

IMPORTS = (
    "pickle cPickle _pickle dill cloudpickle joblib marshal shelve yaml torch code codeop runpy "
    "ftplib telnetlib requests httpx aiohttp urllib.request http.client"
).split()
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv",
    "tempfile.mktemp", "yaml.load", "torch.load", "pickle.loads", "pickle.load", "np.loads",
    "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
ATTRIBUTES = {"extractall", "unpack_archive", "exec_module", "spec_from_file_location"}
# What is run by name, and from which fixed table or for whose file.
KNOWN = {
    ("nnkit/__init__.py", "importlib.import_module(_HOME[name])"),
    ("nnkit/__init__.py", "importlib.import_module(f'nnkit.{name}')"),
    ("nnkit/__init__.py", "importlib.import_module(f'nnkit.core.{name}')"),
    ("nnkit/cli/main.py", "importlib.import_module(f'nnkit.cli.{place}')"),
    # an experiment is a program of the user: a name of the table, or a file that the user gives
    ("nnkit/cli/train.py", "importlib.util.spec_from_file_location(title, path.resolve())"),
    ("nnkit/cli/train.py", "spec.loader.exec_module(module)"),
}


def dangerous(source: str):
    """What a program has that could run what is in a file, or fetch something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in IMPORTS)
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            yield from (name for name in names if name in IMPORTS)
        if not isinstance(node, ast.Call):
            continue
        name, text = ast.unparse(node.func), ast.unparse(node)
        if name in CALLS or name.rpartition(".")[2] in ATTRIBUTES:
            yield text
        if name.endswith("import_module") and not isinstance(node.args[0], ast.Constant):
            yield text
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", "unknown")
            if keyword.arg in ("allow_pickle", "shell") and value is not False:
                yield text


def test_no_source_runs_what_is_in_a_file():
    found = {
        (path.relative_to(ROOT).as_posix(), text)
        for path in SOURCES
        for text in dangerous(path.read_text())
    }
    assert len(SOURCES) > 150
    assert found - KNOWN == set()
    assert KNOWN - found == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import dill as d", "eval('1')", "exec(x)",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)", "yaml.load(f)",
        "subprocess.run(x, shell=True)", "archive.extractall(x)", "os.system(x)", "__import__(x)",
        "from urllib.request import urlopen", "import urllib.request", "torch.load(f)",
        "importlib.import_module(x)",
    ],
)  # fmt: skip
def test_the_scan_sees(line):
    assert list(dangerous(line)), line


TINY = GPT(vocabulary=11, length=8, width=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def tiny():
    shapes = jax.eval_shape(lambda: TINY.init(jax.random.key(0), jnp.ones((1, 1), jnp.int32)))
    rng = np.random.RandomState(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
    return jax.tree.map(draw, shapes["params"])


def test_loading_and_saving_never_unpickle_or_evaluate(tmp_path, tiny, monkeypatch):
    state = {"params": tiny, "key": jax.random.key(1), "n": 3}

    def everything(place):
        with Checkpoints(place / "c") as saver:
            saver.save(1, state, position={"epoch": 1}, meta={"a": [1]}, metrics={"loss": 1.0})
        found = Checkpoints(place / "c").restore(state)
        huggingface.save(place / "h", TINY, tiny)
        loaded = huggingface.load(place / "h", quiet=True)
        nk.data.Characters("abc").save(place)
        words = nk.data.tokenizer(place / "tokenizer.json")
        problems = nk.checkpoint.verify(place / "c") + digests.verify(place / "h")
        with nk.Run(place / "r", {"a": 1}) as run:
            run.log({"step": 1, "loss": 0.5})
        return nk.digest(found.state), nk.digest(loaded.params), words.encode("ab"), problems

    everything(tmp_path / "once")  # what is imported and compiled is not looked at
    calls = []

    def trap(name):
        def called(*arguments, **_):
            calls.append(name)
            raise AssertionError(f"{name} was called")

        return called

    for module, names in ((pickle, "load loads Unpickler dump dumps Pickler"), (builtins, "eval")):
        for name in names.split():
            monkeypatch.setattr(module, name, trap(name))
    monkeypatch.setattr(builtins, "exec", trap("exec"))
    with pytest.raises(AssertionError, match="loads was called"):
        pickle.loads(b"")  # the trap works
    calls.clear()
    first, second, ids, problems = everything(tmp_path / "twice")
    monkeypatch.undo()
    assert calls == []
    assert (first, second) == (nk.digest(state), nk.digest(tiny))
    assert (ids.tolist(), problems) == ([0, 1], [])


def outside(tmp_path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious").write_text("precious")
    return place


def kept(folder, *steps, keep_last=9):
    with Checkpoints(folder, keep_last=keep_last) as saver:
        for step in steps:
            saver.save(step, {"w": np.full(3, float(step))})


def a_link_named_as_trash(run, away):
    (run / ".trash-1").symlink_to(away)
    Checkpoints(run)


def a_link_named_as_temporary(run, away):
    (run / ".tmp-1-999999999").symlink_to(away)
    Checkpoints(run)


def a_link_in_trash(run, away):
    (run / ".trash-1-999999999").mkdir()
    (run / ".trash-1-999999999" / "link").symlink_to(away)
    Checkpoints(run)
    assert not (run / ".trash-1-999999999").exists()


def a_file_named_as_trash(run, away):
    (run / ".trash-9").write_text("mine")
    Checkpoints(run)
    assert (run / ".trash-9").read_text() == "mine"


def a_link_in_an_old_step(run, away):
    (run / "00000001" / "link").symlink_to(away)
    kept(run, 5, keep_last=1)
    assert not (run / "00000001").exists()


def a_link_named_as_a_step(run, away):
    (run / "00000003").symlink_to(away)
    kept(run, 5, keep_last=1)
    assert (run / "00000003").is_symlink()


def a_step_of_another_run(run, away):
    kept(away / "other", 3)
    shutil.copytree(away / "other" / "00000003", run / "00000003")
    kept(run, 5, keep_last=1)
    assert (run / "00000003" / "manifest.json").exists()


def a_step_without_its_marker(run, away):
    (run / "00000001" / "manifest.json").unlink()
    kept(run, 5, keep_last=1)
    assert (run / "00000001" / "arrays").is_dir()


def a_damaged_step_that_is_saved_again(run, away):
    (run / "00000002" / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="moved to"):
        kept(run, 2)
    assert (run / "damaged-00000002-1" / "arrays").is_dir()


def a_name_with_more_in_it(run, away):
    for name in (".trash-1..", ".tmp-1-x", ".trash-1-2-3", ".tmpx-1"):
        (run / name).mkdir()
    Checkpoints(run)
    assert len(list(run.glob(".t*"))) == 4


def a_folder_that_is_a_link(run, away):
    (run / "out").symlink_to(away)
    with folders.atomic(run / "out", overwrite=True) as place:
        (place / "new").write_text("new")
    assert not (run / "out").is_symlink()
    assert (run / "out" / "new").exists()


def a_link_in_a_folder_that_is_replaced(run, away):
    (run / "out").mkdir()
    (run / "out" / "link").symlink_to(away)
    with folders.atomic(run / "out", overwrite=True) as place:
        (place / "new").write_text("new")
    assert not (run / "out" / "link").exists()


def a_link_in_a_folder_that_fails(run, away):
    def write():
        with folders.atomic(run / "out") as place:
            (place / "link").symlink_to(away)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write()
    assert not list(run.glob("*out*"))


def a_step_deleted_by_hand(run, away):
    """`retire` itself, on a step that leads elsewhere."""
    (run / "00000004").symlink_to(away)
    disk.retire(run / "00000004")


DELETIONS = [
    a_link_named_as_trash, a_link_named_as_temporary, a_link_in_trash, a_file_named_as_trash,
    a_link_in_an_old_step, a_link_named_as_a_step, a_step_of_another_run, a_step_without_its_marker,
    a_damaged_step_that_is_saved_again, a_name_with_more_in_it, a_folder_that_is_a_link,
    a_link_in_a_folder_that_is_replaced, a_link_in_a_folder_that_fails, a_step_deleted_by_hand,
]  # fmt: skip


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "run"
    kept(folder, 1, 2)
    return folder


@pytest.mark.parametrize("case", DELETIONS, ids=lambda case: case.__name__)
def test_deletion_follows_no_link_and_leaves_what_is_not_ours(case, steps, tmp_path):
    assert len(DELETIONS) >= 12
    run, away = tmp_path / "run", outside(tmp_path)
    shutil.copytree(steps, run)
    case(run, away)
    assert (away / "precious").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "outside"}


@dataclasses.dataclass(frozen=True)
class Config:
    """A setting."""

    seed: int = 0


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("[]", "is no run folder"),
        ('{"experiment": "RUN/evil.py", "config": {}}', "a folder that came from elsewhere could"),
        ('{"experiment": "evil.py", "config": {}}', "a folder that came from elsewhere could run"),
        ('{"experiment": "../evil.py", "config": {}}', "expected a name of an experiment or a who"),
        ('{"experiment": "os.system", "config": {}}', "there is no experiment 'os.system'"),
        ('{"experiment": ["digits"], "config": {}}', "there is no experiment \"['digits']\""),
        (
            '{"experiment": "digits", "config": {"no_field": 1}}',
            "does not fit the Config of digits",
        ),
        ('{"experiment": "digits", "config": [1]}', "does not fit the Config of digits"),
        ('{"experiment": "digits"}', "does not fit the Config of digits: 'config'"),
    ],
)
def test_a_run_folder_is_data(record, said, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "checkpoints" / "00000001").mkdir(parents=True)
    for place in (run, tmp_path):
        (place / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(run)
    (run / "config.json").write_text(record.replace("RUN", str(run)))
    with pytest.raises(NotRestored) as error:
        restored(run)
    assert said in str(error.value)


CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAbbbbCCCC",
    "AWS_SECRET_ACCESS_KEY": "canary/DDDDeeee+FFFF",
    "MY_PASSWORD": "canary-gggg-HHHH",
    "WANDB_API_KEY": "canary0000111122223333",
    "UNRELATED": "canary-not-in-any-command",
}
PRIVATE = """
import json, os, subprocess, sys
from pathlib import Path
import jax, numpy as np, optax
import nnkit as nk
from nnkit import models
from nnkit.cli.export import _card
from nnkit.interop import huggingface, serving
from types import SimpleNamespace as Of

home, out = Path.home(), Path(sys.argv[1])
for command in ("init -q", "add -A", "-c user.name=a -c user.email=b commit -qm c"):
    subprocess.run(["git", *command.split()], cwd=home, check=True)
(home / "notes.py").write_text(f"path = {str(home)!r}; token = {os.environ['HF_TOKEN']!r}")
os.chdir(home)
model = models.GPT(vocabulary=11, length=8, width=8, depth=1, heads=2)
tokens = np.ones((2, 8), np.int32)
step = nk.step(nk.gradient(nk.causal_lm(model)), optax.sgd(0.1))
batch = {"tokens": tokens, "labels": tokens}
state = nk.init(step, jax.random.key(0), batch)
with nk.Run(out / "run", {"steps": 2}, experiment=str(home / "mine.py")) as run:
    nk.fit(step, state, [batch] * 2, steps=2, run=run, progress=False)
    run.conclude([{"split": "train", "loss": 1.0}])
try:
    with nk.Run(out / "failed", {"steps": 2}):
        raise ValueError(f"cannot read {home}/data with {os.environ['MY_PASSWORD']}")
except ValueError:
    pass
params, _ = step.weights(nk.Checkpoints(out / "run" / "checkpoints").restore(state).state)
card = _card(out / "run", Of(module=Of(__doc__="a"), said=f"{out / 'run'} at step 2"), None)
huggingface.save(out / "hf", model, params, card=card)
f = lambda params, x: x @ params["w"]
serving.export(f, {"w": np.ones((3, 2), np.float32)}, {"x": (("b", 3), "float32")}, out / "served")
"""


def test_nothing_private_is_written(tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export needs it; the extra `export`")
    home, out = tmp_path / "home-canary", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    (home / "notes.py").write_text("path = None\n")
    (home / "mine.py").write_text(PRIVATE)
    words = ["--token", "canary-on-the-command-line", f"--data={home}/data", "--api-key=canaryXY"]
    here = {"HOME": str(home), "GIT_CONFIG_GLOBAL": os.devnull}
    ended = child(home / "mine.py", out, *words, env=CANARIES | here, cwd=home).wait(120)
    assert ended.code == 0, ended.err
    written = [path for path in out.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"env.json", "STATUS", "manifest.json", "README.md", "model.stablehlo"} <= names
    for path in written:
        data = path.read_bytes()
        leaks = [text for text in ("canary", str(home), "nnkit/interop") if text.encode() in data]
        assert not leaks, (path, leaks)
    (session,) = json.loads((out / "run" / "env.json").read_text())
    assert session["command"][2:] == [
        "--token",
        "(left out)",
        "--data=~/data",
        "--api-key=(left out)",
    ]
    assert "path = '~'; token = '(left out)'" in session["diff"]
    assert json.loads((out / "run" / "config.json").read_text())["experiment"] == "~/mine.py"
    status = (out / "failed" / "STATUS").read_text()
    assert status == "failed: ValueError: cannot read ~/data with (left out)\n"


def test_private_leaves_the_rest(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SOME_TOKEN", "short")
    same = ["/home/anna/x", "/mnt/home/ann/x", "/home/ann.old", "short", 3, None, {"a": [True]}]
    assert private(same) == same
    assert private({"at": "/home/ann/x:/home/ann"}) == {"at": "~/x:~"}
    assert private(["--tokens-per-batch", "4096"]) == ["--tokens-per-batch", "4096"]
    assert private(["--hf-token", "abc"]) == ["--hf-token", "(left out)"]


def test_weights_carry_a_digest_that_finds_every_flipped_bit(tmp_path, tiny):
    pytest.importorskip("flatbuffers", reason="jax.export needs it; the extra `export`")
    whole = huggingface.save(tmp_path / "whole", TINY, tiny)
    shards = huggingface.save(tmp_path / "shards", TINY, tiny, max_shard_size="2KB")
    f = lambda params, x: x @ params["w"]
    served = {"w": jnp.ones((3, 2))}
    specs = {"x": (("b", 3), "float32")}
    program = serving.export(f, served, specs, tmp_path / "served", platforms=("cpu",))
    for folder in (whole, shards, program):
        assert digests.verify(folder) == []
        assert not [p for p in folder.rglob("*") if p.suffix in (".npz", ".npy", ".pkl", ".bin")]
        weights = sorted(folder.glob("*.safetensors"))
        assert weights
        for path in [*weights, *folder.glob("*.stablehlo")]:
            assert path.suffix != ".safetensors" or digests.digested(path)
            good, rng = path.read_bytes(), random.Random(path.name)
            for _ in range(25):
                bad = bytearray(good)
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
                path.write_bytes(bad)
                found = digests.verify(folder)
                sound = path.suffix == ".safetensors" and not found and same(path, good, tmp_path)
                assert sound or len(found) == 1, (path, found)
            path.write_bytes(good)
    data = bytearray((whole / files.SINGLE).read_bytes())
    data[-1] ^= 1
    (whole / files.SINGLE).write_bytes(data)
    with pytest.raises(
        ValueError, match=r"has sha256 .*, the file itself says .*; download or copy"
    ):
        huggingface.load(whole)
    (program / "model.stablehlo").unlink()
    assert (
        "is missing, expected the program that signature.json names" in digests.verify(program)[0]
    )


def same(path, good, tmp_path) -> bool:
    """Whether a file has the tensors of the good one: the word "sha256" itself may be hit."""
    (tmp_path / "good.safetensors").write_bytes(good)
    one, two = files.headers(path), files.headers(tmp_path / "good.safetensors")
    return {n: files.read(x).tobytes() for n, x in one.items()} == {
        n: files.read(x).tobytes() for n, x in two.items()
    }


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(tmp_path):
    import hashlib

    ones = files.Wanted("w", np.dtype("float32"), (3,), lambda: np.ones(3, np.float32))
    files.write(tmp_path, [ones])
    data = (tmp_path / files.SINGLE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    said = json.loads(data[8 : 8 + size])["__metadata__"]
    assert said["format"] == "pt"
    zeroed = data.replace(said["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == said["sha256"]
    assert (8 + size) % 8 == 0
    plain = tmp_path / "plain.safetensors"  # of others
    head = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    plain.write_bytes(len(head).to_bytes(8, "little") + head + b"\7")
    assert digests.verify(plain) == []
    assert not digests.digested(plain)


def test_nothing_is_downloaded_but_by_their_own_libraries():
    """Sets by tensorflow_datasets, models by huggingface_hub: https and checksums are theirs."""
    asked = {}
    for path in SOURCES:
        text = path.read_text()
        for word in ("snapshot_download(", "hf_hub_download(", "download_and_prepare(", "urlopen("):
            if word in text:
                asked.setdefault(word, []).append(path.relative_to(ROOT).as_posix())
    assert asked.pop("snapshot_download(") == ["nnkit/interop/huggingface/loading.py"]
    assert asked.pop("download_and_prepare(") == ["nnkit/data/prepared.py"]
    assert asked == {}
