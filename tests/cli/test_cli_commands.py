"""The verbs of `nnkit` on a run that takes a second."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import nnkit as nk
from nnkit.cli import inspect
from nnkit.cli.main import VERBS, main
from nnkit.cli.train import default_folder, load

ROOT = Path(nk.__file__).parents[1]
WORDS = "--steps 4 --seeds 1 --learning-rates 1e-3".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNKIT_RUNS", str(root))
        assert main(["train", "digits", *WORDS]) == 0
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def runs(finished, tmp_path, monkeypatch):
    """A copy of it to change, alone in NNKIT_RUNS."""
    folder = tmp_path / "runs" / finished.name
    shutil.copytree(finished, folder)
    monkeypatch.setenv("NNKIT_RUNS", str(folder.parent))
    return folder


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def in_child(words):
    """Output of a command, which heavy modules it imported, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(
        "import sys\nfrom nnkit.cli.main import main\n"
        f"code = main({words!r})\n"
        "heavy = [m for m in ('jax', 'flax', 'numpy', 'orbax', 'tensorflow') if m in sys.modules]\n"
        "print('HEAVY', *heavy)\nraise SystemExit(code)"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert done.returncode == 0, done.stderr
    text, _, heavy = done.stdout.rpartition("HEAVY")
    return text, heavy.split(), seconds


def test_help_is_quick():
    found = [in_child(["--help"]) for _ in range(3)]
    assert min(seconds for _, _, seconds in found) < 0.5
    assert found[0][0].startswith("nnkit: deep learning as pure functions")
    assert all(f"\n  {verb} " in found[0][0] for verb in VERBS)
    assert found[0][1] == []


def test_help_of_an_experiment_needs_no_jax():
    done = python(
        "import sys\nfrom nnkit.cli.main import main\n"
        "try:\n    code = main(['train', 'digits', '--help'])\n"
        "finally:\n    print('JAX', 'jax' in sys.modules)\nraise SystemExit(code)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("JAX False\n")
    text = " ".join(done.stdout.replace("│", " ").split())
    for part in (
        "digits --help Which learning rate",
        "--learning-rates",
        "each > 0",
        "--folder RUN the run folder (default: digits-HASH of the configuration",
        "--fresh train anew",
    ):
        assert part in text.replace("digits [-h] [OPTIONS]", "digits --help"), part
    for part in ("Args:", "--no-fresh", "Takes", "{None}"):
        assert part not in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"nnkit {verb}" in said(capsys).replace("nnkit train digits", f"nnkit {verb}")


def test_no_words_and_version(capsys):
    assert main([]) == 2
    assert "usage: nnkit VERB" in said(capsys)
    assert main(["--version"]) == 0
    assert said(capsys) == nk.__version__


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian digits", "'train'"),
        ("evla runs/a", "'eval'"),
        ("train digist", "'digits'"),
        ("train no-such.py", "there is no file no-such.py"),
        ("ls no-such-folder", "no-such-folder does not exist"),
        ("ls pyproject.toml", "pyproject.toml is a file"),
        ("ls a b", "usage: nnkit ls [FOLDER]"),
        ("ls --all", "usage: nnkit ls [FOLDER]"),
        ("eval a --lastest", "usage: nnkit eval RUN [--latest]"),
        ("verify a b", "usage: nnkit verify PATH"),
        ("eval no-such-run", "nnkit ls"),
        ("verify no-such-run", "does not exist"),
        ("doctor now", "usage: nnkit doctor"),
        ("eval", "usage: nnkit eval RUN"),
        ("verify", "usage: nnkit verify PATH"),
    ],
)
def test_wrong_words(words, hint, capsys):
    assert main(words.split()) == 2
    assert hint in said(capsys)


def test_the_folder_holds_what_the_documentation_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints",
        "results.json",
        "STATUS",
    }
    record = json.loads((finished / "config.json").read_text())
    assert record["experiment"] == "digits"
    assert record["config"]["steps"] == 4
    assert record["config"]["learning_rates"] == [1e-3]
    (row,) = json.loads((finished / "results.json").read_text())
    assert row["learning rate"] == "0.001"
    assert row["test accuracy"].endswith(" %")


def test_ls(runs, capsys):
    assert main(["ls"]) == 0
    text = said(capsys)
    for part in ("digits", "done", "4", "test", "loss", "accuracy"):
        assert part in text
    with open(runs / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "sp')  # killed while writing
    (runs / "STATUS").write_text("failed: KeyboardInterrupt: \n")
    assert main(["ls", str(runs.parent)]) == 0
    assert "interrupted" in said(capsys)
    (runs / "config.json").write_text("{")
    assert main(["ls"]) == 0


def test_ls_breaks_no_name_and_shortens_long_reasons_at_a_word(runs, capsys):
    long = runs.parent / "/".join(["a-folder-of-many-runs"] * 4) / runs.name
    shutil.copytree(runs, long)
    (long / "STATUS").write_text("failed: FloatingPointError: " + "the loss is nan at step 7 " * 9)
    capsys.readouterr()
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    assert f"{long} " in out
    assert f"{runs} " in out
    for part in ("failed:", "FloatingPointError:", " ...", "minutes ago"):
        assert part in out
    assert "…" not in out


def test_ls_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NNKIT_RUNS", str(tmp_path / "none"))
    assert main(["ls"]) == 0
    assert said(capsys).endswith("none; `nnkit demo` makes one")


def test_eval_gives_the_logged_numbers(finished, capsys):
    assert main(["eval", str(finished)]) == 0
    text = said(capsys)
    (row,) = json.loads((finished / "results.json").read_text())
    assert "at step 4" in text
    assert row["validation accuracy"] in text
    assert row["test accuracy"] in text


def test_eval_takes_the_best_checkpoint_where_one_is_kept(runs, capsys, monkeypatch):
    module = load("digits")
    config = module.Config(learning_rates=(1e-3,), seeds=1, steps=6)
    step, train, _ = module.build(config)
    best = ("validation/accuracy", "max")
    folder = runs.parent / "best"
    with nk.Run(folder, config, experiment="digits", save_every=2, keep_best=best) as run:
        accuracies = [0.2, 0.9, 0.1]

        def hook(params, carry):
            return {"split": "validation", "accuracy": accuracies.pop(0)}

        state = nk.init(step, jax.random.key(0), next(iter(train)))
        nk.fit(step, state, train, steps=6, every={2: hook}, run=run, progress=False)
    assert main(["eval", str(folder)]) == 0
    assert "at step 4, the best by validation/accuracy checkpoint" in said(capsys)
    assert main(["eval", str(folder), "--latest"]) == 0
    assert "at step 6, the newest checkpoint" in said(capsys)


def test_eval_without_a_sound_checkpoint(runs, capsys):
    (arrays,) = (runs / "checkpoints").glob("0*")
    (arrays / "manifest.json").write_text("{")
    assert main(["eval", str(runs)]) == 1
    assert "no valid checkpoint" in said(capsys)
    shutil.rmtree(runs / "checkpoints")
    assert main(["eval", str(runs)]) == 2
    text = said(capsys)
    assert text.startswith(f"{runs} has no checkpoint yet: train it further")
    record = json.loads((runs / "config.json").read_text())
    (runs / "checkpoints" / "00000004").mkdir(parents=True)
    (runs / "config.json").write_text(json.dumps(record | {"experiment": "digist"}))
    assert main(["eval", str(runs)]) == 2
    assert "perhaps you meant 'digits'" in said(capsys)


def test_eval_of_a_run_without_an_experiment(tmp_path, capsys):
    nk.Run(tmp_path / "a", {"x": 1})
    assert main(["eval", str(tmp_path / "a")]) == 2
    assert "was not made by an experiment" in said(capsys)


def test_verify(runs, capsys):
    assert main(["verify", str(runs)]) == 0
    assert "ok" in said(capsys)
    arrays = runs / "checkpoints" / "00000004"
    largest = max(
        (p for p in arrays.rglob("*") if p.is_file() and p.name != "manifest.json"),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert main(["verify", str(runs)]) == 1
    text = said(capsys)
    assert "damaged" in text
    assert largest.name in text
    assert "sha256" in text
    assert main(["verify", str(runs / "checkpoints")]) == 1


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("NNKIT_DATA_DIR", raising=False)
    assert main(["doctor"]) == 0
    text = said(capsys)
    for part in (f"nnkit {nk.__version__}", "stack", "8 x cpu", "nnx imports data"):
        assert part in text
    assert text.endswith("nothing wrong")
    monkeypatch.setenv("NNKIT_DATA_DIR", str(tmp_path / "nope"))
    assert main(["doctor"]) == 1
    text = said(capsys)
    assert text.endswith(f"wrong NNKIT_DATA_DIR is {tmp_path / 'nope'}, which does not exist")
    assert "nothing wrong" not in text
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("NNKIT_DATA_DIR", str(tmp_path))
    have = inspect._version
    monkeypatch.setattr(inspect, "_version", lambda n: None if n == "tyro" else have(n))
    assert main(["doctor"]) == 1
    text = said(capsys)
    assert "has 1 data set wrong" in text
    assert "wrong tyro is not installed" in text


@pytest.mark.parametrize(("jax_version", "flax_version", "name"), [
    ("0.7.2", "0.11.2", "known to work: jax 0.7.2 with flax 0.11.2"),
    ("0.10.2", "0.12.8", "(Python 3.11)"),
    ("0.9.0", "0.12.0", "not one of the tested combinations"),
])  # fmt: skip
def test_stack(jax_version, flax_version, name):
    assert name in inspect.stack(jax_version, flax_version)


def test_fresh_makes_a_second_folder_with_the_same_numbers(runs, capsys):
    assert main(["train", "digits", *WORDS, "--fresh"]) == 0
    other = runs.with_name(runs.name + "-2")
    assert sorted(runs.parent.iterdir()) == [runs, other]
    assert digests(runs) == digests(other)
    assert (other / "results.json").read_text() == (runs / "results.json").read_text()


def digests(folder):
    manifest = json.loads((folder / "checkpoints" / "00000004" / "manifest.json").read_text())
    return manifest["digest"]


def test_config_json_runs_again_identically(runs, tmp_path):
    record = json.loads((runs / "config.json").read_text())
    module = load(record["experiment"])
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    config = module.Config(**fields)
    assert default_folder("digits", config).name == runs.name
    module.main(config, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(runs)


def test_an_experiment_from_a_file(tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(
        '"""Does it run?"""\n'
        "import dataclasses\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n"
        '    """Settings.\n\n    Args:\n      size: how large.\n    """\n\n'
        "    size: int = 3\n\n\n"
        "def main(config, folder=None):\n"
        "    print(f'size {config.size} in {folder.name}')\n"
    )
    assert main(["train", str(file), "--size", "5", "--folder", str(tmp_path / "here")]) == 0
    assert "size 5 in here" in said(capsys)
    file.write_text("x = 1\n")
    with pytest.raises(AttributeError, match="has no Config; an experiment has Config and main"):
        load(str(file))


def test_a_diverged_run_is_one_line(tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(
        "import dataclasses\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n    size: int = 3\n\n\n"
        "def main(config, folder=None):\n"
        "    raise FloatingPointError('the loss is nan at step 7')\n"
    )
    assert main(["train", str(file), "--folder", str(tmp_path / "here")]) == 1
    assert capsys.readouterr().out.endswith("the loss is nan at step 7\n")


IDEA = """
import dataclasses

import nnkit as nk


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 3


def main(config, folder=None):
"""


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_an_interrupted_run_is_one_line_and_130(options, tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(IDEA + "    raise KeyboardInterrupt\n")
    assert main(["train", str(file), "--folder", str(tmp_path / "here"), *options]) == 130
    same = f"--folder {tmp_path / 'here'} instead of --fresh" if options else "the same command"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"interrupted; {same} starts anew: nothing is saved yet"
    if not options:
        (tmp_path / "here" / "checkpoints" / "10").mkdir(parents=True)
        main(["train", str(file), "--folder", str(tmp_path / "here")])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == "interrupted; the same command resumes from the last checkpoint"


def test_ctrl_c_while_training(tmp_path):
    code = (
        "import sys\nfrom nnkit.cli.main import main\n"
        "sys.exit(main('train digits --steps 1000000 --seeds 1'.split()))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "NNKIT_RUNS": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        logged = []
        for _ in range(600):
            logged = list(tmp_path.glob("*/metrics.jsonl"))
            if (logged and logged[0].stat().st_size) or child.poll() is not None:
                break
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        out, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    saved = any(tmp_path.glob("*/checkpoints/[0-9]*"))
    then = "resumes from the last checkpoint" if saved else "starts anew: nothing is saved yet"
    assert out.endswith(f"interrupted; the same command {then}\n")
    assert "Traceback" not in out + error


def test_a_run_that_is_finished_says_so(runs, capsys):
    capsys.readouterr()
    assert main(["train", "digits", *WORDS]) == 0
    out = capsys.readouterr().out
    assert "learning rate" in out
    assert out.endswith("already finished; --fresh trains anew\n")
    (runs / "STATUS").write_text("running\n")
    assert main(["train", "digits", *WORDS]) == 0
    assert "already finished" not in capsys.readouterr().out
