"""Groups of tokens that compete apart, and the form that experts on many devices take."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import MoE

X = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
MASK = np.arange(6)[None] < np.array([6, 4, 2, 5])[:, None]


PARAMS = {
    name: np.random.default_rng(len(name)).normal(size=shape).astype(np.float32) / 2
    for name, shape in {"up": (4, 5, 7), "gate": (4, 5, 7), "down": (4, 7, 5)}.items()
}
PARAMS |= {"router": {"kernel": np.random.default_rng(9).normal(size=(5, 4)).astype(np.float32)}}


@functools.cache
def built(groups, capacity):
    layer = MoE(4, 2, 7, capacity=capacity, groups=groups, gated=True)
    return jax.jit(lambda params, *xs: layer.apply({"params": params}, *xs))


@pytest.mark.parametrize("masked", [False, True])
def test_dropless_groups_change_nothing(masked):
    mask = MASK if masked else None
    (a, losses_a), (b, losses_b) = (built(g, None)(PARAMS, X, mask) for g in (1, 4))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in losses_a:
        np.testing.assert_allclose(losses_a[name], losses_b[name], rtol=1e-6)
    assert float(losses_b["dropped"]) == 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_group_is_the_layer_on_its_tokens_alone(masked):
    """With a capacity, groups=4 is four calls of the layer without groups; some tokens drop."""
    mask = MASK if masked else np.ones_like(MASK)
    y, losses = built(4, 0.5)(PARAMS, X, mask)
    each = [built(1, 0.5)(PARAMS, X[i : i + 1], mask[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(y, jnp.concatenate([y for y, _ in each]), rtol=1e-5, atol=1e-6)
    real = mask.sum(1)
    dropped = sum(n * float(found["dropped"]) for n, (_, found) in zip(real, each)) / real.sum()
    np.testing.assert_allclose(losses["dropped"], dropped, rtol=1e-5)
    assert dropped > 0.05


def test_gradients_of_groups_are_those_of_the_layer():
    total = lambda run: lambda p: jnp.square(run(p, X)[0]).sum()
    a, b = (jax.grad(total(built(g, None)))(PARAMS) for g in (1, 2))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_say_so():
    with pytest.raises(
        ValueError, match=r"groups=5 do not divide the 24 tokens of x; .* such as 4"
    ):
        built(5, None)(PARAMS, X)
    with pytest.raises(ValueError, match="groups"):
        built(0, None)(PARAMS, X)
