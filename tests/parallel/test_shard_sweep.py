"""Sixteen runs over eight devices are sixteen runs."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import losses
from nnkit.parallel import rules

RUNS, STEPS = 16, 10


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dropout(0.2, deterministic=not train)(nn.tanh(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


TASK = nk.supervised(Small(), losses.cross_entropy)
GRID = nk.product(learning_rate=list(np.geomspace(1e-4, 1e-1, 4)), seed=[0, 1, 2, 3])


def recipe(h):
    return nk.seeded(nk.step(nk.gradient(TASK), optax.adamw(h["learning_rate"])), h["seed"])


def batch(i):
    rng = np.random.default_rng(i)
    x = rng.normal(size=(12, 5)).astype(np.float32)
    return {"x": x, "y": (x[:, :3].argmax(1)).astype(np.int32)}


def run(step):
    """Losses [steps ...] of a Step."""
    state = jax.jit(step.init)(jax.random.key(3), batch(0))
    update, found = jax.jit(step.update), []
    for i in range(STEPS):
        state, log = update(state, batch(i))
        found.append(np.asarray(log["loss"].value))
    return np.stack(found), state


@functools.cache
def alone():
    """Losses [steps 16] of every run by itself, by one program that is given its numbers."""
    init = jax.jit(lambda h: recipe(h).init(jax.random.key(3), batch(0)))
    update = jax.jit(lambda h, state, one: recipe(h).update(state, one))
    found = np.zeros((STEPS, RUNS), np.float32)
    for j in range(RUNS):
        h = jax.tree.map(lambda x, j=j: x[j], GRID)
        state = init(h)
        for i in range(STEPS):
            state, log = update(h, state, batch(i))
            found[i, j] = log["loss"].value
    return found


WAYS = {
    "spread": lambda: nk.sweep(recipe, GRID, each=nk.spread(nk.mesh(run=8))),
    "shard": lambda: nk.shard(
        nk.sweep(recipe, GRID, each=jax.vmap), nk.mesh(run=8), state=rules.leading("run")
    ),
    "shard data too": lambda: nk.shard(
        nk.sweep(recipe, GRID, each=jax.vmap),
        nk.mesh(run=4, data=2),
        batch=jax.P("data"),
        state=rules.leading("run"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_sixteen_over_eight_devices_are_sixteen_runs(way):
    found, state = run(WAYS[way]())
    kernel = jax.tree.leaves(state.inner.params)[0]
    assert len(kernel.sharding.device_set) == 8
    held = kernel.sharding.shard_shape(kernel.shape)[0]
    assert held == RUNS // (4 if "data" in way else 8)
    np.testing.assert_allclose(found, alone(), rtol=1e-6, atol=1e-7)
    if way == "spread":
        np.testing.assert_array_equal(found, alone())
    assert len({float(x) for x in found[-1]}) == RUNS


def test_the_members_of_a_sweep_talk_to_nobody(optimised):
    step = WAYS["shard"]()
    state = jax.jit(step.init)(jax.random.key(3), batch(0))
    text = jax.jit(step.update).lower(state, batch(0)).compile().as_text()
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert f" {word}(" not in text
    assert jnp.shape(jax.tree.leaves(state.grid)[0]) == (RUNS,)
