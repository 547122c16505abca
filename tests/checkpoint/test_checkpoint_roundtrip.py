"""What is restored is what was saved, bit by bit, or refused in words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nnkit.checkpoint import Checkpoints, Restored, checkpoints, leaves, verify
from nnkit.core import trees


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inner:
    weights: Any
    nothing: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    key: jax.Array
    step: jax.Array


class Pair(NamedTuple):
    left: Any
    right: Any


def example():
    weights = {
        "a.b": jnp.arange(3.0),
        "a": {"b": jnp.ones((2, 2), jnp.bfloat16)},
        "..": jnp.int32(4),
    }
    return Outer(
        Inner(weights, Pair((), [jnp.array(True), jnp.zeros((0, 3), jnp.uint8)])),
        jax.random.split(jax.random.key(1), 3),
        jnp.int32(7),
    )


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x, tree
    )


def test_a_state_of_every_kind_comes_back(tmp_path):
    state = example()
    with Checkpoints(tmp_path) as saver:
        saver.save(12, state, position={"epoch": 1, "index": 5}, meta=["x"], metrics={"loss": 0.5})
    for target in (state, abstract(state)):
        found = Checkpoints(tmp_path).restore(target)
        assert isinstance(found, Restored)
        assert trees.digest(found.state) == trees.digest(state)
        assert trees.difference(found.state, state) == ""
        assert (found.step, found.position) == (12, {"epoch": 1, "index": 5})
        assert (found.meta, found.metrics) == (["x"], {"loss": 0.5})
    assert str(jax.random.key_impl(found.state.key)) == str(jax.random.key_impl(state.key))
    assert verify(tmp_path) == []


def test_the_manifest_is_the_state_in_words(tmp_path):
    state = example()
    with Checkpoints(tmp_path) as saver:
        saver.save(3, state, metrics={"loss": float("nan"), "top": jnp.float32(1)})
        saver.wait()
        body = saver.info()
    assert body["digest"] == trees.digest(state)
    assert {"python", "nnkit", "jax", "orbax-checkpoint"} <= set(body["versions"])
    assert [row["path"] for row in body["leaves"]] == [path for path, _ in trees.paths(state)]
    rows = {row["path"]: row for row in body["leaves"]}
    assert rows["inner/weights/a/b"]["dtype"] == "bfloat16"
    assert rows["key"]["shape"] == [3]
    assert rows["key"]["key"] == "threefry2x32"
    for path, leaf in trees.paths(state):
        one = trees.leaf_digest(path, trees.to_host(leaf), str(leaf.dtype))
        assert rows[path]["sha256"] == one
    folder = tmp_path / "00000003"
    for name, said in body["files"].items():
        data = (folder / name).read_bytes()
        assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert np.isnan(body["metrics"]["loss"])
    json.loads((folder / "manifest.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    assert str(tmp_path) not in (folder / "manifest.json").read_text()


def test_names_are_injective_bounded_and_stay_inside():
    trees_ = [
        {"a.b": 1}, {"a": {"b": 1}}, {"a/b": 1}, {"a%2Fb": 1}, {"": 1}, {"": {"": 1}}, {"%e": 1},
        {"..": 1}, {"%r": 1}, {"x" * 300: 1}, {"x" * 301: 1}, 1,
    ]  # fmt: skip
    names = [next(iter(leaves.flat(tree))) for tree in trees_]
    assert len(set(names)) == len(trees_)
    for name in names:
        assert len(name) <= 220
        assert "." not in name
        assert not name.startswith("/")


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_give_the_same_numbers(tmp_path, impl):
    state = {
        "one": jax.random.key(3, impl=impl),
        "many": jax.random.split(jax.random.key(4), (2, 3)),
    }
    with Checkpoints(tmp_path) as saver:
        saver.save(1, state)
    found = Checkpoints(tmp_path).restore(abstract(state)).state
    want = jax.random.normal(state["one"], (4,))
    np.testing.assert_array_equal(jax.random.normal(found["one"], (4,)), want)
    assert found["many"].shape == (2, 3)


def training():
    tx = optax.adamw(1e-2)

    def init():
        params = {"w": jnp.ones((64, 64)), "half": jnp.ones(8, jnp.bfloat16)}
        return Outer(Inner(params, tx.init(params)), jax.random.key(0), jnp.int32(0))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        key, params = jax.random.fold_in(state.key, state.step), state.inner.weights
        keys = dict(zip(params, jax.random.split(key)))
        grads = {n: jax.random.normal(keys[n], p.shape, p.dtype) for n, p in params.items()}
        with jax.numpy_dtype_promotion("standard"):  # as optax is written
            updates, opt = tx.update(grads, state.inner.nothing, params)
        return Outer(Inner(optax.apply_updates(params, updates), opt), state.key, state.step + 1)

    return init, update


def test_a_save_survives_the_donation_of_its_state_and_resumes_bitwise(tmp_path):
    init, update = training()
    state = update(init())
    saver = Checkpoints(tmp_path, keep_last=20)
    digests = {}
    for step in range(50):
        if step % 10 == 0:
            digests[step] = trees.digest(state)
            saver.save(step, state, position=step)
        state = update(state)
    saver.close()
    target = jax.eval_shape(init)
    for step, digest in digests.items():
        assert trees.digest(saver.restore(target, step).state) == digest
    resumed = saver.restore(target).state
    for _ in range(10):
        resumed = update(resumed)
    assert trees.digest(resumed) == trees.digest(state)


@pytest.mark.parametrize("back", [False, True])
def test_another_sharding_has_the_same_bits(tmp_path, back):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    plain = {"w": jnp.arange(64.0).reshape(8, 8), "keys": jax.random.split(jax.random.key(0), 8)}
    spread = {
        "w": NamedSharding(mesh, PartitionSpec("data", "model")),
        "keys": NamedSharding(mesh, PartitionSpec("data")),
    }
    there = jax.tree.map(jax.device_put, plain, spread)
    saved, wanted = (there, plain) if back else (plain, there)
    with Checkpoints(tmp_path) as saver:
        saver.save(1, saved)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    for target in (wanted, shapes):
        found = Checkpoints(tmp_path).restore(target).state
        assert trees.digest(found) == trees.digest(plain)
        for leaf, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
            assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)


def test_uncommitted_leaves_stay_free_to_move(tmp_path):
    state = {"w": jnp.ones(8)}
    with Checkpoints(tmp_path) as saver:
        saver.save(1, state)
    assert not state["w"].committed
    assert not Checkpoints(tmp_path).restore(state).state["w"].committed


def adam(width=4):
    params = {"Dense_1": {"kernel": jnp.zeros((8, width)), "bias": jnp.zeros(width)}}
    return {"params": params, "opt": optax.adam(1e-3).init(params)}


def sgd():
    return {"params": adam()["params"], "opt": optax.sgd(1e-3).init(adam()["params"])}


def without_bias():
    state = adam()
    del state["params"]["Dense_1"]["bias"]
    return state


def renamed():
    state = adam()
    state["params"]["Dense_2"] = state["params"].pop("Dense_1")
    return state


def as_half():
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim == 2 else x, adam())


def key(impl):
    return {"key": jax.random.key(0, impl=impl)}


MU = "opt/0/mu/Dense_1"
BIAS = "params/Dense_1/bias"
MISMATCHES = {
    "shape": (
        adam(),
        adam(5),
        f"{MU}/bias was saved as float32[4], the model wants float32[5] (and",
    ),
    "dtype": (
        adam(),
        as_half(),
        f"{MU}/kernel was saved as float32[8,4], the model wants bfloat16[",
    ),
    "missing": (without_bias(), adam(), f"{BIAS} is not in it, the model wants float32[4]"),
    "extra": (adam(), without_bias(), f"{BIAS} was saved as float32[4], the model has none"),
    "renamed": (adam(), renamed(), f"(saved and not wanted: {BIAS} float32[4])"),
    "less": (adam(), sgd(), "opt/0/count was saved as int32[], the model has none (and 4 more)"),
    "more": (sgd(), adam(), "opt/0/count is not in it, the model wants int32[] (and 4 more)"),
    "no key": (key("rbg"), {"key": np.zeros(4, np.uint32)}, "the model wants uint32[4]"),
    "kind": (
        key("threefry2x32"),
        key("rbg"),
        "key was saved as key<fry>[], the model wants key<rbg>",
    ),
    "number": ({"n": 1}, {"n": 1.0}, "n was saved as int[], the model wants float[]"),
    "dots": ({"a.b": np.ones(2)}, {"a": {"b": np.ones(2)}}, "a/b is not in it, the model wants"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_model_is_refused_before_any_array_is_read(tmp_path, case, monkeypatch):
    saved, wanted, message = MISMATCHES[case]
    with Checkpoints(tmp_path) as saver:
        saver.save(10, saved)
    monkeypatch.setattr(checkpoints.disk, "load", pytest.fail)
    for step in (None, 10):
        with pytest.raises(ValueError, match="use the config that made it") as error:
            Checkpoints(tmp_path).restore(wanted, step)
        assert str(error.value).startswith(f"checkpoint {tmp_path}/00000010: ")
        assert message in str(error.value)


def test_what_cannot_be_saved_is_refused_at_once(tmp_path):
    saver = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match=r"leaf a/b is str\[\], expected an array of numbers or a"):
        saver.save(1, {"a": {"b": "text"}})
    with pytest.raises(TypeError, match="keep other things in `meta`"):
        saver.save(1, {"a": np.array([None])})
    with pytest.raises(TypeError, match="which fits no dtype"):
        saver.save(1, {"a": 2**70})
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda x: saver.save(1, {"a": x}))(jnp.ones(2))
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(ValueError, match="leaf a was deleted by donation; save the state that"):
        saver.save(1, {"a": gone})
    with pytest.raises(ValueError, match=r"step is -1, expected an int from 0"):
        saver.save(-1, {})
    with pytest.raises(TypeError, match=r"position is 'x', expected an int or a dict"):
        saver.save(1, {}, position="x")
    with pytest.raises(TypeError, match=r"meta is .*expected plain JSON"):
        saver.save(1, {}, meta={"x": object()})
    with pytest.raises(ValueError, match=r"meta has .* at most 1048576 fit; keep it in a file"):
        saver.save(1, {}, meta="x" * 2**20)
    deep: Any = 1
    for _ in range(25):
        deep = [deep]
    with pytest.raises(ValueError, match=r"meta is .* at most 24 levels.*; make it flatter, or"):
        saver.save(1, {}, meta=deep)
    with pytest.raises(ValueError, match=r"position is .*the name .1. comes twice; make it"):
        saver.save(1, {}, position={1: 2, "1": 3})
    with pytest.raises(TypeError, match=r"metric loss is .*expected one number; reduce it"):
        saver.save(1, {}, metrics={"loss": jnp.ones(3)})
    with pytest.raises(ValueError, match="no valid text; rename it"):
        saver.save(1, {"\ud800": jnp.ones(3)})
    assert saver.steps() == []
    saver.close()
    with pytest.raises(ValueError, match="is closed; open another Checkpoints"):
        saver.save(1, {})


def test_arrays_of_several_hosts_are_refused(tmp_path, monkeypatch):
    array = jnp.ones(3)
    monkeypatch.setattr(type(array), "is_fully_addressable", property(lambda self: False))
    with pytest.raises(NotImplementedError, match=r"leaf a lives on several hosts .*allgather"):
        Checkpoints(tmp_path).save(1, {"a": array})


def test_a_relative_folder_and_a_change_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("runs/a") as saver:
        monkeypatch.chdir("/")
        saver.save(1, {"w": jnp.arange(3.0)})
    monkeypatch.chdir(tmp_path)
    assert verify("runs/a") == []
    restored = Checkpoints("runs/a").restore({"w": jnp.zeros(3)})
    assert restored.state["w"].tolist() == [0, 1, 2]
