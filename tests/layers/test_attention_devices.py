"""Attention whose queries are split over devices along time: what each sees does not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.layers import attention

B, T, H, G, D = 2, 16, 4, 2, 8
rng = np.random.default_rng(0)
Q, K, V = (rng.normal(size=(B, T, n, D)).astype(np.float32) for n in (H, G, G))
MASK = np.arange(T)[None] < np.array([16, 11])[:, None]
SEGMENTS = np.repeat(np.arange(4), 4)[None].repeat(B, 0).astype(np.int32)
BIAS = rng.normal(size=(1, H, T, T)).astype(np.float32)
PAIR = rng.random((B, T, T)) < 0.7
CASES = {
    "causal": {"causal": True},
    "masked": {"mask": MASK, "softcap": 5.0},
    "window of segments": {"causal": True, "window": 3, "segments": SEGMENTS},
    "bias and pairs": {"bias": BIAS, "mask": PAIR},
    "blockwise": {"causal": True, "implementation": "blockwise", "mask": MASK},
    "bias by key": {"bias": BIAS[:, :1, :1], "window": 4},
}


def seen(mesh, f):
    """f under jit, traced where the mesh is visible, as `nk.shard` does."""

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args)

    run = jax.jit(traced)
    return lambda *args: run(*jax.device_put(args, jax.NamedSharding(mesh, jax.P())))


@pytest.mark.parametrize("name", CASES)
def test_over_devices_it_is_the_same_attention(name):
    """Values and gradients, with rows over data and heads over tensor as well."""
    loss = lambda q, k, v: jnp.square(attention(q, k, v, **CASES[name]) - 0.3).sum()
    f = jax.value_and_grad(loss, (0, 1, 2))
    mesh = nk.mesh(data=2, sequence=2, tensor=2)
    want, got = jax.jit(f)(Q, K, V), seen(mesh, f)(Q, K, V)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_what_does_not_divide_stays_whole():
    f = lambda q, k, v: attention(q, k, v, causal=True)
    odd = [x[:, :15] for x in (Q, K, V)]
    got = seen(nk.mesh(sequence=8), f)(*odd)
    np.testing.assert_allclose(got, f(*odd), rtol=1e-5, atol=1e-6)


def test_no_device_has_the_whole_table_of_scores():
    """[t s] of 512: the program of one of 8 devices has queries of 64."""
    x = jax.ShapeDtypeStruct((1, 512, 1, 8), jnp.float32)
    mesh = nk.mesh(sequence=8)

    def f(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attention(q, k, v)

    split = jax.NamedSharding(mesh, jax.P(None, "sequence"))
    text = jax.jit(f, in_shardings=split).lower(x, x, x).compile().as_text()
    assert "64,512]" in text
    assert "512,512]" not in text
