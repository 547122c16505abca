"""Dense: the fast product is the plain one, in every mode of differentiation; wrong input."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import layers

double = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return draw(2, 3, 4), draw(4, 5), draw(2, 3, 4), draw(4, 5)


def plain(x, w):
    return x @ w


def modes(product):
    """What each mode of differentiation gives, for one nonlinear function of the product."""

    def f(x, w):
        return jnp.sin(product(jnp.tanh(x), w)).sum()

    x, w, dx, dw = problem()
    gradient = jax.grad(f, (0, 1))
    return {
        "value": product(x, w),
        "jvp": jax.jvp(f, (x, w), (dx, dw)),
        "vjp": gradient(x, w),
        "forward over reverse": jax.jvp(gradient, (x, w), (dx, dw)),
        "reverse over reverse": jax.grad(
            lambda x, w: sum(jnp.vdot(a, b) for a, b in zip(gradient(x, w), (dx, dw))), (0, 1)
        )(x, w),
        "hessian": jax.hessian(f, 1)(x, w),
        "vmap over w": jax.vmap(gradient, (None, 0))(x, jnp.stack([w, dw])),
        "vmap of a second order": jax.vmap(jax.hessian(f, 1), (0, None))(x, w),
        "remat": jax.grad(jax.checkpoint(f), (0, 1))(x, w),
        "transpose": jax.linear_transpose(lambda w: product(x, w), w)(product(x, w)),
    }


def test_every_derivative_is_that_of_the_plain_product():
    with double(True):
        mine, theirs = jax.jit(lambda: modes(layers.linear))(), jax.jit(lambda: modes(plain))()
        for name in mine:
            for a, b in zip(jax.tree.leaves(mine[name]), jax.tree.leaves(theirs[name])):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_weight_gradient_is_one_matrix_product():
    """What makes it fast: a contraction over one axis only."""
    x, w, *_ = problem(np.float32)
    text = jax.jit(jax.grad(lambda x, w: layers.linear(x, w).sum(), 1)).lower(x, w).as_text()
    assert "contracting_dims = [0, 1]" not in text
    text = jax.jit(jax.grad(lambda x, w: (x @ w).sum(), 1)).lower(x, w).as_text()
    assert "contracting_dims = [0, 1]" in text  # the search looks for what it should


def test_bfloat16_stays():
    x, w, *_ = problem(np.float32)
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    assert layers.linear(x, w).dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in jax.grad(lambda *a: layers.linear(*a).sum())(x, w))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (0, 4), (2, 1, 3, 4)])
def test_any_number_of_leading_axes(shape):
    w = jnp.ones((4, 5))
    np.testing.assert_allclose(layers.linear(jnp.ones(shape), w), jnp.ones(shape) @ w)


@pytest.mark.parametrize("fields", [{}, {"use_bias": False}, {"bias_init": nn.initializers.ones}])
def test_dense_is_flax_s(fields):
    x, key = problem(np.float32)[0], jax.random.key(0)
    ours, theirs = layers.Dense(5, **fields), nn.Dense(5, **fields)
    variables = ours.init(key, x)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, theirs.init(key, x)))
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-6)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), expected \[\.\.\. 4\]: w has sh"):
        layers.linear(jnp.ones((2, 3)), jnp.ones((4, 5)))
    with pytest.raises(ValueError, match=r"w has shape \(4,\), expected a matrix \[i o\]"):
        layers.linear(jnp.ones((2, 4)), jnp.ones(4))
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"Dense: features is 2.5, expected an integer >= 1"):
        layers.Dense(2.5).init(key, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"Dense: features is True"):
        layers.Dense(True).init(key, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"Dense: features is 0, expected an integer >= 1"):
        layers.Dense(0).init(key, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"Dense: x is uint8, expected floats; pictures"):
        layers.Dense(2).init(key, jnp.ones((2, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"x is a scalar, expected \[\.\.\. i\]"):
        layers.Dense(2).init(key, jnp.ones(()))
    made = layers.Dense(2).init(key, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), expected 3 features on the last"):
        layers.Dense(2).apply(made, jnp.ones((2, 4)))
