"""Dropout and stochastic depth: shares, expectations, off-switches, shared draws, wrong input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import layers

BOTH = (layers.Dropout, layers.StochasticDepth)


def run(layer, x, seed=0, **options):
    return layer.apply({}, x, rngs={"dropout": jax.random.key(seed)}, **{"train": True, **options})


@pytest.mark.parametrize("layer", BOTH)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_expectation(layer, rate):
    x = jnp.full((20_000, 2), 3.0)
    y = np.asarray(run(layer(rate), x))
    rate = round(rate * 2**16) / 2**16  # to which it is rounded
    kept = y != 0
    np.testing.assert_allclose(y[kept], 3 / (1 - rate), rtol=1e-5)
    spread = 5 * np.sqrt(rate * (1 - rate) / 20_000)  # 5 standard errors
    assert abs(1 - kept.mean() - rate) < spread
    assert abs(y.mean() - 3) < 3 * spread / (1 - rate)


@pytest.mark.parametrize("layer", BOTH)
def test_it_is_the_identity_in_evaluation_and_at_rate_0(layer):
    x = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(layer(0.5).apply({}, x), x)  # and needs no key
    np.testing.assert_array_equal(layer(0.0).apply({}, x, train=True), x)
    traced = jax.jit(lambda rate: run(layer(rate), x))
    np.testing.assert_array_equal(traced(0.0), x)
    assert layer(0.5).init(jax.random.key(0), x) == {}


@pytest.mark.parametrize("layer", BOTH)
def test_keys_gradient_and_half_precision(layer):
    x = jnp.ones((64, 8))
    a, b = run(layer(0.5), x), run(layer(0.5), x, seed=1)
    np.testing.assert_array_equal(a, run(layer(0.5), x))
    assert (np.asarray(a) != np.asarray(b)).any()
    np.testing.assert_array_equal(jax.grad(lambda x: run(layer(0.5), x).sum())(x), a)
    low = run(layer(0.5), x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low.astype(jnp.float32), a)
    y = run(layer(0.5), jnp.full((64, 8), jnp.inf))  # what is dropped is 0, not 0 * inf
    assert not np.isnan(y).any()


def test_a_whole_example_goes_or_stays():
    y = np.asarray(run(layers.StochasticDepth(0.5), jnp.ones((64, 3, 5))))
    each = y.reshape(64, -1)
    assert (each == each[:, :1]).all()
    assert set(np.unique(each)) == {0.0, 2.0}


def test_one_draw_for_all_times():
    y = np.asarray(run(layers.Dropout(0.5, broadcast_dims=(1,)), jnp.ones((16, 7, 5))))
    assert (y == y[:, :1]).all()
    assert (y[:, 0] != y[:1, 0]).any()
    every = np.asarray(run(layers.Dropout(0.5, broadcast_dims=(-2,)), jnp.ones((16, 7, 5))))
    np.testing.assert_array_equal(every, y)


@pytest.mark.parametrize("layer", BOTH)
def test_wrong_input(layer):
    x, name = jnp.ones((2, 3)), layer.__name__
    with pytest.raises(ValueError, match=rf"{name}: rate is 50, expected a share in \[0, 1\)"):
        layer(50).apply({}, x)
    with pytest.raises(ValueError, match=rf"{name}: rate is 1.0, expected a share"):
        layer(1.0).apply({}, x)
    with pytest.raises(TypeError, match=rf"{name}: rate is 'half', expected a share"):
        layer("half").apply({}, x)
    with pytest.raises(TypeError, match=rf"{name}: x is int32, expected floats"):
        layer(0.5).apply({}, x.astype(jnp.int32))


def test_wrong_axes():
    with pytest.raises(
        ValueError, match=r"broadcast_dims is \(2,\), expected axes of x, which has"
    ):
        run(layers.Dropout(0.5, broadcast_dims=(2,)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"x is a scalar, expected \[b \.\.\.\]"):
        run(layers.StochasticDepth(0.5), jnp.ones(()))
