"""Damaged checkpoints, other models and foreign things: told, and never taken in silence."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.checkpoint import Checkpoints, checkpoints, verify
from reliability import damage, sequences


def test_damaged_checkpoints_are_found():
    found = damage.checkpoints(count=100, seed=0)
    assert not found["failures"], found
    assert found["silent"] == 0
    assert found["found"] + found["harmless"] == found["count"] == 100


def model(sizes=(8, 4, 2)):
    draw = np.random.default_rng(0).normal
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(draw(size=(m, n)), jnp.float32),
            "bias": jnp.zeros(n),
        }
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }


def whole(transform=None, **changes):
    transform = optax.adam(1e-3) if transform is None else transform
    tree = {"params": model(), "opt": transform.init(model()), "key": jax.random.key(3)}
    tree |= {"ema": jnp.ones(4, jnp.bfloat16), "n": 7, "count": jnp.int32(5)}
    return tree | {"flag": jnp.array(True), "seen": np.int64(9)} | changes


def kernel(x):
    """The state with another kernel in the first layer."""
    tree = whole()
    tree["params"]["Dense_0"]["kernel"] = x
    return tree


def layers(change):
    """The state with other layers."""
    return whole(params=change(model()))


def without(tree, *names):
    return {name: x for name, x in tree.items() if name not in names}


def inner(tree, name, change):
    return {**tree, name: change(tree[name])}


K, ADAM, F32 = "params/Dense_0/kernel", "opt/0/mu", "was saved as float32[8,4], the model wants "
OTHERS = {  # what differs: (the model that is there now, what is said)
    "width": (lambda: kernel(jnp.zeros((8, 5))), f"{K} {F32}float32[8,5]"),
    "rank": (lambda: kernel(jnp.zeros((8, 4, 1))), f"{K} {F32}float32[8,4,1]"),
    "transposed": (lambda: kernel(jnp.zeros((4, 8))), f"{K} {F32}float32[4,8]"),
    "one number": (lambda: kernel(jnp.float32(0)), f"{K} {F32}float32[]"),
    "empty": (lambda: kernel(jnp.zeros((0, 4))), f"{K} {F32}float32[0,4]"),
    "half": (lambda: kernel(jnp.zeros((8, 4), jnp.bfloat16)), f"{K} {F32}bfloat16[8,4]"),
    "float16": (lambda: kernel(jnp.zeros((8, 4), jnp.float16)), f"{K} {F32}float16[8,4]"),
    "double": (lambda: kernel(np.zeros((8, 4))), f"{K} {F32}float64[8,4]"),
    "integers": (lambda: kernel(jnp.zeros((8, 4), jnp.int32)), f"{K} {F32}int32[8,4]"),
    "complex": (lambda: kernel(np.zeros((8, 4), np.complex64)), f"{K} {F32}complex64[8,4]"),
    "wider": (lambda: whole(ema=jnp.ones(4)), "ema was saved as bfloat16[4], the model wants floa"),
    "narrow count": (
        lambda: whole(count=np.int8(0)),
        "count was saved as int32[], the model wants",
    ),
    "float count": (lambda: whole(count=jnp.float32(0)), "int32[], the model wants float32[]"),
    "unsigned": (lambda: whole(count=jnp.uint32(0)), "int32[], the model wants uint32[]"),
    "bool": (lambda: whole(flag=jnp.int8(0)), "flag was saved as bool[], the model wants int8[]"),
    "long": (lambda: whole(seen=np.int32(0)), "seen was saved as int64[], the model wants int32[]"),
    "number": (lambda: whole(n=7.0), "n was saved as int[], the model wants float[]"),
    "array": (lambda: whole(n=jnp.int32(7)), "n was saved as int[], the model wants int32[]"),
    "key kind": (
        lambda: whole(key=jax.random.key(0, impl="rbg")),
        "key was saved as key<fry>[], the model wants key<rbg>[]",
    ),
    "raw key": (lambda: whole(key=np.zeros(2, np.uint32)), "key<fry>[], the model wants uint32[2]"),
    "keys": (
        lambda: whole(key=jax.random.split(jax.random.key(0), 3)),
        "key<fry>[], the model wants key<fry>[3]",
    ),
    "a key for a count": (
        lambda: whole(count=jax.random.key(0)),
        "count was saved as int32[], the model wants key<fry>[]",
    ),
    "another layer": (
        lambda: layers(lambda p: p | {"Dense_2": p["Dense_1"]}),
        "params/Dense_2/bias is not in it, the model wants float32[2]",
    ),
    "a layer less": (
        lambda: layers(lambda p: without(p, "Dense_1")),
        "params/Dense_1/bias was saved as float32[2], the model has none",
    ),
    "no bias": (
        lambda: layers(lambda p: inner(p, "Dense_0", lambda d: without(d, "bias"))),
        "params/Dense_0/bias was saved as float32[4], the model has none",
    ),
    "no optimizer": (lambda: without(whole(), "opt"), "opt/0/count was saved as int32[], the mode"),
    "no key": (lambda: whole(key=None), "key was saved as key<fry>[], the model has none"),
    "a layer renamed": (
        lambda: layers(lambda p: {"Conv_0": p["Dense_0"], "Dense_1": p["Dense_1"]}),
        "(saved and not wanted: params/Dense_0/bias float32[4])",
    ),
    "a leaf renamed": (
        lambda: layers(lambda p: p | {"Dense_1": {"w": p["Dense_1"]["kernel"], "b": jnp.zeros(2)}}),
        "params/Dense_1/b is not in it, the model wants float32[2]",
    ),
    "deeper": (
        lambda: layers(lambda p: {"body": p}),
        "params/body/Dense_0/bias is not in it, the model wants float32[4]",
    ),
    "a list": (lambda: layers(lambda p: list(p.values())), "params/0/bias is not in it, the model"),
    "sgd": (lambda: whole(optax.sgd(1e-3)), "opt/0/count was saved as int32[], the model has none"),
    "momentum": (
        lambda: whole(optax.sgd(1e-3, momentum=0.9)),
        "opt/0/trace/Dense_0/bias is not in it, the model wants float32[4]",
    ),
    "clipped adam": (
        lambda: whole(optax.chain(optax.clip(1.0), optax.adam(1e-3))),
        "opt/1/0/count is not in it, the model wants int32[]",
    ),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with Checkpoints(folder) as saver:
        saver.save(10, whole())
    return folder


def told(error, folder) -> str:
    text = str(error.value)
    assert text.startswith(f"checkpoint {folder}/00000010: ")
    assert "use the config that made it (config.json), or another folder" in text
    return text


def test_another_model_is_refused_with_both_sides_and_a_remedy(kept, monkeypatch):
    assert len(OTHERS) >= 30
    monkeypatch.setattr(checkpoints.disk, "load", pytest.fail)  # no array is read
    for allow_cast in (False, True):
        cast = {"half", "float16", "double", "wider"} if allow_cast else set()
        for case in [*OTHERS.keys() - cast]:
            make, words = OTHERS[case]
            with pytest.raises(ValueError, match="the model ") as error:
                Checkpoints(kept).restore(make(), allow_cast=allow_cast)
            assert words in told(error, kept), (case, str(error.value))


def test_ten_differences_are_told_and_all_are_counted(kept):
    with pytest.raises(ValueError, match="the model ") as error:
        Checkpoints(kept).restore(whole(optax.sgd(1e-3), params={}))
    text = told(error, kept)
    differ = 4 + 9  # four of the parameters; a count, and two moments of each
    assert f"(and {differ - 1} more)" in text
    assert len(re.findall(r"(was saved as|is not in it)", text)) == 10
    assert f"... {differ - 10} more" in text


def test_floats_change_their_width_only_if_that_is_allowed(kept):
    tree = kernel(jnp.zeros((8, 4), jnp.bfloat16)) | {"ema": np.zeros(4, np.float32)}
    with pytest.warns(UserWarning, match=r"allow_cast: 2 leaves cast, first ema from bfloat16 to"):
        found = Checkpoints(kept).restore(tree, allow_cast=True).state
    assert found["ema"].dtype == np.float32
    assert found["ema"].tolist() == [1.0] * 4
    new, old = found["params"]["Dense_0"]["kernel"], whole()["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(new, old.astype(jnp.bfloat16))
    assert nk.digest(found["opt"]) == nk.digest(whole()["opt"])
    part = {"kernel": jnp.zeros((8, 4), jnp.float16), "bias": jnp.zeros(4)}
    with pytest.warns(UserWarning, match="1 leaves cast, first kernel from float32 to float16"):
        found = Checkpoints(kept).restore(part, under="params/Dense_0", allow_cast=True).state
    assert found["kernel"].dtype == jnp.float16


def empty(run: Path, path: Path) -> None:
    path.mkdir()


def text(run: Path, path: Path) -> None:
    path.write_text("mine")


def filled(run: Path, path: Path) -> None:
    path.mkdir()
    (path / "data").write_text("mine")


def link(run: Path, path: Path) -> None:
    path.symlink_to(run / "00000001")


def nowhere(run: Path, path: Path) -> None:
    path.symlink_to(run / "no-such-folder")


def copied(run: Path, path: Path) -> None:
    shutil.copytree(run / "00000001", path)


def unmarked(run: Path, path: Path) -> None:
    copied(run, path)
    (path / "manifest.json").unlink()


def of_another(run: Path, path: Path) -> None:
    other = Path(tempfile.mkdtemp(dir=run.parent))
    with Checkpoints(other) as saver:
        saver.save(int(path.name), {"w": np.full(3, 5.0)})
    shutil.copytree(other / path.name, path)


FOREIGN = [
    ("7", empty, "7 (no name of a checkpoint)"),
    ("00000007", empty, "00000007 (a folder without a manifest)"),
    ("00000009", text, "00000009 (no folder)"),
    (".DS_Store", text, ""),
    ("._00000002", text, ""),
    ("9.orbax-checkpoint-tmp", filled, "9.orbax-checkpoint-tmp (no name of a checkpoint)"),
    ("notes", filled, ""),
    ("00000060", link, "00000060 (a link)"),
    ("00000061", nowhere, "00000061 (a link)"),
    ("00000050", unmarked, "00000050: manifest.json cannot be read"),
    ("00000070", copied, "00000070: manifest.json is that of step 1"),
    ("00000051", of_another, "00000051 (of another run)"),
    (".tmp-8-1", filled, ""),  # of a process that lives: 1 always does
    (".trash-4", link, ""),
    ("00000001_copy", copied, "00000001_copy (no name of a checkpoint)"),
    ("000000001", copied, "000000001 (no name of a checkpoint)"),
]


def contents(path: Path):
    if path.is_symlink():
        return os.readlink(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(p.name, p.read_bytes()) for p in files]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    with Checkpoints(run) as saver:
        for step in (1, 2):
            saver.save(step, {"w": np.full(3, float(step))}, position=step)
    return run


@pytest.mark.filterwarnings("ignore:restored step")
@pytest.mark.parametrize(("name", "make", "note"), FOREIGN, ids=[name for name, *_ in FOREIGN])
def test_foreign_things_are_noted_never_chosen_and_never_deleted(name, make, note, two, tmp_path):
    assert len(FOREIGN) >= 12
    run = tmp_path / "run"
    shutil.copytree(two, run)
    make(run, run / name)
    before = contents(run / name)
    target = {"w": np.zeros(3)}
    with Checkpoints(run, keep_last=2) as saver:
        assert saver.steps() == [1, 2]
        if note:
            with pytest.warns(UserWarning, match="restored step 2") as caught:
                found = saver.restore(target)
            assert note in str(caught[0].message)
        else:
            found = saver.restore(target)
        assert (found.step, found.state["w"].tolist()) == (2, [2.0] * 3)
    with Checkpoints(run, keep_last=1) as saver:
        saver.save(3, {"w": np.full(3, 3.0)}, position=3)
        saver.wait()
        assert saver.steps() == [3]
        assert saver.restore(target).step == 3
    assert contents(run / name) == before
    assert verify(run / "00000003") == []


def test_any_order_of_operations_leaves_a_valid_step():
    found = sequences.random_orders(count=1, seed=0)
    assert not found["failures"], found
    assert found["operations"] == 30
