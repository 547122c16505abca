"""The laws of models over every row of `table_models.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import counted
from jax.sharding import PartitionSpec as P
from table_models import MODELS

import nnkit as nk

KEY = 3


def close(a, b, rtol=1e-5, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


rows = pytest.mark.parametrize("name", list(MODELS))


def batch(row, b):
    inputs = row.inputs(b)
    fields = {f"x{i}": jnp.asarray(x) for i, x in enumerate(inputs)}
    return fields | {"y": jnp.zeros(b, jnp.int32)}, tuple(fields)


def squares(outputs, y):
    """[b] mean square of all outputs: a loss for every model."""
    flat = [jnp.reshape(x, (x.shape[0], -1)) for x in jax.tree.leaves(outputs)]
    return jnp.square(jnp.concatenate(flat, 1) - 0.5).mean(1)


def task(row):
    return nk.supervised(row.module, squares, x=batch(row, 1)[1])


@functools.cache
def started(name):
    """(params, carry, inputs [4 ...], (params, carry, inputs) -> outputs) of a row, compiled."""
    row = MODELS[name]
    inputs = tuple(jnp.asarray(x) for x in row.inputs(4))
    init, apply = nk.pair(row.module)
    params, carry = jax.jit(init)(jax.random.key(KEY), inputs)
    return params, carry, inputs, jax.jit(lambda p, c, x: apply(p, c, x, None))


@rows
def test_rows_of_a_batch_are_apart_and_intermediates_are_a_plain_dict(name):
    row = MODELS[name]
    params, carry, inputs, run = started(name)
    y, same = run(params, carry, inputs)
    assert nk.digest(same) == nk.digest(carry)  # evaluation leaves the carry alone
    assert all(np.isfinite(np.asarray(v)).all() for v in jax.tree.leaves(y))
    if row.apart:
        another = jax.tree.map(lambda x: jnp.concatenate([x[1:2], x[1:]]), inputs)
        others = lambda y: jax.tree.map(lambda v: v[1:], y)
        close(others(run(params, carry, another)[0]), others(y))
    out, inside = jax.jit(
        lambda p, c, x: row.module.apply({"params": p, **c}, *x, intermediates=True)
    )(params, carry, inputs)
    close(out, y)
    assert type(inside) is dict
    assert all(isinstance(k, str) for k in inside)
    assert all(np.shape(v)[:1] == (4,) for k, v in inside.items() if np.ndim(v))


# One of each kind on every commit; the others by `pytest -m nightly`.
OFTEN = ("MLP", "ResNet", "RecurrentLM", "GPT", "EncDec", "PatchTST")


def seldom(names, often=OFTEN):
    """Rows of these names, nightly but for one of each kind."""
    marks = lambda name: [] if name in often else [pytest.mark.nightly]
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in names])


@seldom(MODELS)
def test_it_trains_in_bfloat16(name):
    row = MODELS[name]
    (one, _), low = batch(row, 4), nk.half(task(row))
    params, carry, inputs, run = started(name)
    g, (new, _) = jax.jit(nk.gradient(low).grad)(params, carry, one, jax.random.key(1))
    assert all(np.isfinite(np.asarray(v)).all() for v in jax.tree.leaves(g))
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, carry)
    loss = jax.jit(lambda p, c: low.loss(p, c, one, None)[0].value)(params, carry)
    wide = squares(run(params, carry, inputs)[0], None).mean()
    np.testing.assert_allclose(loss, wide, rtol=0.06, atol=0.01)


@seldom([name for name, row in MODELS.items() if row.many], set(OFTEN) - {"EncDec"})
def test_an_ensemble_of_sweeps_over_devices_is_each_run_by_itself(name):
    """One program: 2 keys x 2 rates x 2 devices; each member is its recipe; none compiles again."""
    row = MODELS[name]
    one, _ = batch(row, 4)
    rates, grad = jnp.asarray([1e-3, 1e-2]), nk.gradient(task(row))
    if not jax.tree.leaves(jax.eval_shape(lambda k: task(row).init(k, one)[0], jax.random.key(0))):
        pytest.skip("it has no parameters to train")
    recipe = lambda h: nk.step(grad, optax.sgd(h["rate"]))
    each = nk.in_turn if row.grouped else jax.vmap
    many = nk.ensemble(nk.sweep(recipe, {"rate": rates}, each=each), 2, each=each)
    many = nk.shard(many, nk.mesh(data=2), batch=P("data"))
    state = nk.init(many, jax.random.key(KEY), one)
    update = jax.jit(many.update)
    for _ in range(2):
        state, log = update(state, one)
    with counted() as compiled:
        update(state, one)
    assert compiled.count == 0

    @jax.jit
    def alone(rate, key):
        step = recipe({"rate": rate})
        mine = step.init(key, one)
        for _ in range(2):
            mine, log = step.update(mine, one)
        return log["loss"].value

    for i, key in enumerate(jax.random.split(jax.random.key(KEY), 2)):
        for j, rate in enumerate(rates):
            loss = alone(rate, jax.random.clone(key))
            np.testing.assert_allclose(log["loss"].value[i, j], loss, rtol=2e-4, atol=1e-5)
