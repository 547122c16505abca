"""Meshes and rules: what they split, and what they say when it does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import models
from nnkit.core import trees
from nnkit.parallel import rules

ONE = {"tokens": np.zeros((8, 8), np.int32), "labels": np.zeros((8, 8), np.int32)}
SMALL = {"vocabulary": 11, "length": 8, "width": 16, "depth": 1, "heads": 4, "hidden": 64}


def gpt(**fields):
    task = nk.causal_lm(models.GPT(**SMALL | fields))
    return nk.step(nk.gradient(task), optax.adamw(1e-3))


def shapes(step):
    """The state as shapes: nothing is compiled."""
    return jax.eval_shape(step.init, jax.random.key(0), ONE)


def specs(rule, tree, mesh):
    """{path: spec} of what is split."""
    rules.check(rule, [path for path, _ in trees.paths(tree)])
    found = {path: rule(path, x, mesh) for path, x in trees.paths(tree)}
    return {path: tuple(spec) for path, spec in found.items() if any(tuple(spec))}


def kernels(axis):
    return rules.by_path({"kernel$": P(axis)})


def test_every_mesh_has_auto_axes_and_the_devices_given():
    devices = jax.devices()[::-1]
    mesh = nk.mesh(data=2, tensor=4, devices=devices)
    assert mesh.axis_types == (AxisType.Auto,) * 2
    assert mesh.axis_names == ("data", "tensor")
    assert [d.id for d in mesh.devices.ravel()] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert nk.mesh(data=2, fsdp=2, tensor=2).axis_types == (AxisType.Auto,) * 3


def test_too_few_devices_are_counted_over_all_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="needs 16 devices, the program of 2 processes has 8"):
        nk.mesh(data=16)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: nk.mesh(), ["expected named sizes >= 1", "mesh(data=8)"]),
        (lambda: nk.mesh(data=0), ["{'data': 0}"]),
        (lambda: nk.mesh(data=True), ["{'data': True}"]),
        (lambda: nk.mesh(data=4, tensor=4), ["mesh(data=4, tensor=4) needs 16 devices", "has 8"]),
        (lambda: nk.mesh(data=2, devices=jax.devices()[:3]), ["needs 2", "devices has 3"]),
    ],
)
def test_a_mesh_that_does_not_multiply_out_says_so(make, parts):
    with pytest.raises(ValueError) as error:
        make()
    assert all(part in str(error.value) for part in parts), error.value


def test_tensor_splits_columns_then_rows_moments_included():
    found = specs(rules.tensor, shapes(gpt()), nk.mesh(tensor=4))
    inside = {}
    for path, spec in found.items():
        where, name = path.split("block_0/")
        assert where in ("params/", "opt/0/mu/", "opt/0/nu/")
        inside.setdefault(name, set()).add(spec)
    columns, rows = {(None, "tensor")}, {("tensor", None)}
    assert inside == {
        **{f"attention/{name}/kernel": columns for name in ("query", "key", "value")},
        **{f"attention/{name}/bias": {("tensor",)} for name in ("query", "key", "value")},
        "attention/out/kernel": rows,
        "mlp/up/kernel": columns,
        "mlp/up/bias": {("tensor",)},
        "mlp/down/kernel": rows,
    }


@pytest.mark.parametrize(
    ("model", "inputs", "split"),
    [
        (models.BERT(vocabulary=1024, width=16, depth=2, heads=4), (ONE["tokens"],), 2 * 10 + 1),
        (
            models.ViT(classes=3, width=16, depth=1, heads=2, patch=4, image=8),
            (np.zeros((1, 8, 8, 3), np.float32),),
            10,
        ),
        (
            models.EncDec(vocabulary=11, width=16, depth=1, heads=2, head_dim=8, hidden=32),
            (ONE["tokens"], ONE["tokens"]),
            6 + 10 + 2,  # no biases; the decoder has cross-attention too; two relative ones
        ),
        (
            models.GPT(**SMALL | {"vocabulary": 1024}, experts=4, gated=True, tied=False),
            (ONE["tokens"],),
            7 + 3 + 2,  # attention with biases; up, gate, down; the table and the head
        ),
    ],
    ids=["BERT", "ViT", "EncDec", "GPT-MoE"],
)
def test_tensor_knows_the_names_of_every_transformer(model, inputs, split):
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    found = specs(rules.tensor, params, nk.mesh(tensor=2))
    assert len(found) == split, sorted(found)
    for spec in found.values():
        assert spec.count("tensor") == 1


def test_a_vocabulary_is_split_if_it_is_large_and_divides():
    mesh, table = nk.mesh(tensor=4), "params/embed/embedding"
    assert tuple(rules.tensor(table, np.zeros((2048, 8)), mesh)) == ("tensor", None)
    assert tuple(rules.tensor("params/head/kernel", np.zeros((8, 2048)), mesh)) == (None, "tensor")
    for shape in ((50257, 8), (1000, 8)):
        assert rules.tensor(table, np.zeros(shape, np.int8), mesh) == P()


def test_fsdp_splits_the_widest_axis_that_divides_of_leaves_worth_it():
    mesh = nk.mesh(fsdp=4)
    assert tuple(rules.fsdp("w", np.zeros((64, 128)), mesh)) == (None, "fsdp")
    assert tuple(rules.fsdp("w", np.zeros((64, 129)), mesh)) == ("fsdp",)
    assert rules.fsdp("w", np.zeros((63, 129)), mesh) == P()
    assert rules.fsdp("w", np.zeros(512), mesh) == P()
    with pytest.raises(ValueError, match=r"mesh axis 'data', the mesh has the axes \('run',\)"):
        rules.fsdp("w", np.zeros((64, 128)), nk.mesh(run=2))


def test_what_an_optimizer_keeps_in_place_of_moments_stays_whole():
    """Adafactor has arrays of one number, and rows or columns, under the paths of matrices."""
    task = nk.causal_lm(models.GPT(**SMALL))
    step = nk.step(nk.gradient(task), optax.adafactor(1e-3, min_dim_size_to_factor=8))
    for rule in (rules.tensor, rules.by_path({"mlp/up": P("tensor")}), rules.fsdp):
        assert shapes(nk.shard(step, nk.mesh(data=2, tensor=4), state=rule))


def test_both_split_what_the_first_left():
    mesh = nk.mesh(fsdp=2, tensor=2, expert=2)
    rule = rules.both(rules.both(rules.expert, rules.tensor), rules.fsdp)
    assert tuple(rule("mlp/up/kernel", np.zeros((64, 128)), mesh)) == ("fsdp", "tensor")
    assert tuple(rule("mlp/down/kernel", np.zeros((128, 64)), mesh)) == ("tensor", "fsdp")
    assert tuple(rule("embed/embedding", np.zeros((11, 256)), mesh)) == (None, "fsdp")
    assert rule("norm/scale", np.zeros(64), mesh) == P()
    moe = rules.both(rules.expert, rules.fsdp)
    assert tuple(moe("mlp/up", np.zeros((4, 64, 128)), mesh)) == ("expert", None, "fsdp")
    runs = rules.both(rules.leading("run"), rules.tensor)
    mesh = nk.mesh(run=4, tensor=2)
    assert tuple(runs("mlp/up/kernel", np.zeros((4, 64, 128)), mesh)) == ("run", None, "tensor")


@pytest.mark.parametrize("axes", [{"tensor": 8}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}])
def test_a_device_holds_its_share_and_no_more(axes):
    rule = {1: rules.tensor if "tensor" in axes else rules.fsdp}.get(
        len(axes), rules.both(rules.tensor, rules.fsdp)
    )
    mesh = nk.mesh(**axes)
    kernel = np.zeros((64, 256), np.float32)
    spec = rule("params/block_0/mlp/up/kernel", kernel, mesh)
    held = jax.sharding.NamedSharding(mesh, spec).shard_shape(kernel.shape)
    assert 8 * np.prod(held) == kernel.size


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (
            lambda: rules.by_path({"atention/query/kernel": P(None, "tensor")}),
            ValueError,
            ["'atention/query/kernel' decides about no leaf", "block_0/attention/query/kernel'"],
        ),
        (
            lambda: rules.by_path({"kernel$": P("tensor"), "mlp/up/kernel": P(None, "tensor")}),
            ValueError,
            ["'mlp/up/kernel' decides about no leaf", "first found decides"],
        ),
        (lambda: rules.expert, ValueError, ["rules.expert knows none of the", "rules.by_path"]),
        (
            lambda: rules.both(rules.tensor, rules.by_path({"nothing": P("data")})),
            ValueError,
            ["'nothing' decides about no leaf"],
        ),
        (
            lambda: rules.both(rules.tensor, rules.tensor),
            ValueError,
            ["the two rules want", "both use the mesh axis 'tensor'"],
        ),
        (
            lambda: rules.both(kernels("data"), kernels("tensor")),
            ValueError,
            ["both use axis 0 of the leaf"],
        ),
        (
            lambda: rules.by_path({"mlp/up/bias": P(None, "tensor")}),
            ValueError,
            ["has shape (64,)", "more entries than it has axes"],
        ),
        (
            lambda: rules.by_path({"mlp/up/bias": P("fsdp")}),
            ValueError,
            ["names 'fsdp'", "('data', 'tensor')"],
        ),
        (
            lambda: rules.by_path({"embed/embedding": P("tensor")}),
            ValueError,
            ["'params/embed/embedding'", "(11, 16)", "do not divide 11", "8 or 12"],
        ),
        (lambda: rules.by_path({}), ValueError, ["no pattern", "rules.replicated"]),
        (lambda: rules.by_path({"(": P()}), ValueError, ["'(' is no regular expression"]),
        (lambda: rules.by_path({"w": "tensor"}), TypeError, ["'tensor'", "a PartitionSpec"]),
        (
            lambda: lambda path, leaf, mesh: rules.leading("run")(path, leaf, mesh),
            ValueError,
            ["leading('run')", "('data', 'tensor')"],
        ),
    ],
)
def test_a_rule_that_does_not_fit_says_so_before_anything_is_compiled(make, error, parts):
    with pytest.raises(error) as raised:
        shapes(nk.shard(gpt(), nk.mesh(data=2, tensor=4), state=make()))
    assert all(part in str(raised.value) for part in parts), raised.value


@pytest.mark.parametrize(("name", "axis"), [("tensor", "tensor"), ("expert", "expert")])
def test_a_rule_whose_axis_the_mesh_lacks_says_how_to_make_it(name, axis):
    with pytest.raises(ValueError, match=rf"rules.{name} .*'data',.*nk.mesh\({axis}=...\)"):
        shapes(nk.shard(gpt(experts=4), nk.mesh(data=8), state=getattr(rules, name)))


@pytest.mark.parametrize(
    ("fields", "axes", "rule", "parts"),
    [
        ({"hidden": 62}, {"tensor": 4}, "tensor", ["mlp/down/", "do not divide 62", "60 or 64"]),
        ({"experts": 6}, {"expert": 4}, "expert", ["axis 0 over 4", "divide 6", "4 or 8"]),
    ],
)
def test_devices_that_do_not_divide_a_matrix_say_so(fields, axes, rule, parts):
    with pytest.raises(ValueError) as raised:
        shapes(nk.shard(gpt(**fields), nk.mesh(**axes), state=getattr(rules, rule)))
    assert all(part in str(raised.value) for part in parts), raised.value


def test_a_batch_that_does_not_divide_along_time_says_so():
    step = nk.shard(gpt(), nk.mesh(data=2, sequence=4), batch=P("data", "sequence"))
    odd = jax.tree.map(lambda x: x[:, :6], ONE)
    with pytest.raises(ValueError, match=r"shape \(8, 6\): 6 along axis 1, 'sequence', over 4 dev"):
        jax.eval_shape(step.init, jax.random.key(0), odd)


def test_a_batch_may_be_split_by_a_rule_and_short_leaves_are_left_alone():
    task = nk.objective(
        lambda key, b: jnp.zeros(4), lambda w, b, key: (b["x"] @ w - b["y"]) ** 2 * b["scale"]
    )
    plain = nk.step(nk.gradient(task), optax.sgd(0.1))
    one = {"x": jnp.ones((8, 4)), "y": jnp.arange(8.0), "scale": jnp.float32(0.5)}
    rule = lambda path, x, mesh: P("data") if path == "y" else P()
    want = jax.jit(plain.update)(plain.init(jax.random.key(0), one), one)
    for batch in (P("data", "tensor"), rule):
        step = nk.shard(plain, nk.mesh(data=2, tensor=4), batch=batch)
        got = jax.jit(step.update)(jax.jit(step.init)(jax.random.key(0), one), one)
        np.testing.assert_allclose(got[0].params, want[0].params, rtol=1e-6)
    with pytest.raises(ValueError, match="names 'time'"):
        jax.eval_shape(
            nk.shard(plain, nk.mesh(data=2), batch=lambda *_: P("time")).init,
            jax.random.key(0),
            one,
        )
