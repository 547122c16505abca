"""The laws of layers and their pure functions, over every row of `table_layers.py`."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_layers import LAYERS

rows = pytest.mark.parametrize("name", list(LAYERS))


@functools.cache
def start(name):
    """(row, {"params": ..., ...} or {}, inputs, run(variables, inputs), the same under jit)."""
    row = LAYERS[name]
    inputs = tuple(jnp.asarray(x) for x in row.inputs)
    if not isinstance(row.call, nn.Module):
        run = lambda variables, inputs: row.call(*inputs, **row.options)
        return row, {}, inputs, run, jax.jit(run)
    init = jax.jit(lambda key: row.call.init({"params": key}, *inputs, **row.options))
    run = lambda variables, inputs: row.call.apply(variables, *inputs, **row.options)
    return row, dict(init(jax.random.key(0))), inputs, run, jax.jit(run)


def cast(tree, dtype):
    def one(x):
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def near(a, b, tolerance=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance
        )


@rows
def test_jit_and_vmap_change_nothing(name):
    _, variables, inputs, run, fast = start(name)
    y = run(variables, inputs)
    near(fast(variables, inputs), y)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0)))(variables, two)
    near(jax.tree.map(lambda v: v[1], mapped), y)


@rows
def test_examples_do_not_see_each_other(name):
    row, variables, inputs, _, fast = start(name)
    if not row.batched:
        pytest.skip("the first axis is not one of examples")
    another = tuple(jnp.concatenate([x[1:2], x[1:]]) for x in inputs)  # in place of the first
    others = lambda y: jax.tree.map(lambda v: v[1:], y)
    near(others(fast(variables, another)), others(fast(variables, inputs)))


@rows
def test_gradients_are_finite_differences_in_float64(name):
    """Directional derivative in all parameters and float inputs at once; forward mode agrees."""
    row, variables, _, run, _ = start(name)
    if not row.smooth:
        pytest.skip("not differentiable at these inputs")
    params = variables.get("params", {})
    rest = {k: v for k, v in variables.items() if k != "params"}
    host = jax.device_get((params, rest, row.inputs))
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with switch(True):
        params, rest, inputs = cast(host, jnp.float64)
        moving = {"params": params, "inputs": {i: x for i, x in enumerate(inputs) if floats(x)}}
        if not floats(moving):
            pytest.skip("nothing to differentiate")

        def f(moving):
            now = tuple(moving["inputs"].get(i, x) for i, x in enumerate(inputs))
            out = run({**rest, "params": moving["params"]} if variables else {}, now)
            parts = [
                jnp.sum(jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape) * jnp.sin(v))
                for v in floats(out)
            ]
            assert all(v.dtype == jnp.float64 for v in floats(out))
            return sum(parts[1:], parts[0])

        way = jax.tree.map(
            lambda x: jnp.sin(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), moving
        )
        slope = jax.jit(jax.grad(f))(moving)
        exact = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way)))
        g = jax.jit(f)
        at = lambda t: g(jax.tree.map(lambda x, d: x + t * d, moving, way))
        np.testing.assert_allclose(exact, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=2e-6, atol=1e-9)


@rows
def test_bfloat16_in_is_bfloat16_out_and_close(name):
    row, variables, inputs, _, fast = start(name)
    if not row.narrow:
        pytest.skip("it says that it computes wider")
    y = fast(variables, inputs)
    params = cast(variables.get("params", {}), jnp.bfloat16)
    low = fast({**variables, "params": params} if variables else {}, cast(inputs, jnp.bfloat16))
    for a, b in zip(floats(low), floats(y)):
        assert a.dtype == jnp.bfloat16
        scale = max(float(np.abs(np.asarray(b)).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.06 * scale, rtol=0)


@rows
def test_train_and_evaluation_have_one_form(name):
    row, variables, inputs, _, fast = start(name)
    if not row.trains:
        pytest.skip("it does not take train=")
    y = fast(variables, inputs)
    options = {**row.options, "train": True}
    mutable = [k for k in variables if k != "params"]
    train = lambda variables, inputs, key: row.call.apply(
        variables, *inputs, **options, rngs={"dropout": key}, mutable=mutable
    )
    out, new = jax.jit(train)(variables, inputs, jax.random.key(1))
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, y)
    old = {k: v for k, v in variables.items() if k != "params"}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), old
    )
