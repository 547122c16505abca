"""Metrics of forecasts against loops, and what they are for forecasts that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import metrics


def inputs(shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)


def test_mase_is_one_for_the_naive_forecast_on_its_own_series():
    series = np.cumsum(inputs((50, 3))[0], 0)
    for season in (1, 7):
        scale = metrics.naive_error(jnp.asarray(series), season=season)
        assert scale.shape == (3,)
        slow = [
            np.mean([abs(series[t, f] - series[t - season, f]) for t in range(season, 50)])
            for f in range(3)
        ]
        np.testing.assert_allclose(scale, slow, rtol=1e-5)
        naive, y = series[:-season][None], series[season:][None]
        np.testing.assert_allclose(metrics.mase(jnp.asarray(naive), y, scale=scale), 1, rtol=1e-5)
    one = metrics.naive_error(jnp.asarray(series[:, 0]))
    assert one.shape == ()
    np.testing.assert_allclose(one, metrics.naive_error(jnp.asarray(series))[0])


def test_mase_and_smape_are_their_loops():
    x, y = inputs((2, 4, 3))
    scale = np.array([0.5, 1.0, 2.0], np.float32)
    slow = np.array([
        np.mean([abs(x[b, s, f] - y[b, s, f]) / scale[f] for s in range(4) for f in range(3)])
        for b in range(2)
    ])  # fmt: skip
    np.testing.assert_allclose(metrics.mase(jnp.asarray(x), y, scale=scale), slow, rtol=1e-5)
    slow = [
        100 * np.mean([abs(p - t) / ((abs(p) + abs(t)) / 2) for p, t in zip(a.ravel(), b.ravel())])
        for a, b in zip(x, y)
    ]
    np.testing.assert_allclose(metrics.smape(jnp.asarray(x), y), slow, rtol=1e-5)
    for f in (metrics.smape, lambda x, y: metrics.mase(x, y, scale=scale)):
        np.testing.assert_allclose(jax.jit(f)(x, y), f(jnp.asarray(x), y), rtol=1e-6)
        np.testing.assert_allclose(
            jax.vmap(f)(x[None], y[None])[0], f(jnp.asarray(x), y), rtol=1e-6
        )


def test_smape_runs_from_0_to_200():
    y = jnp.array([[1.0, -2.0, 0.0]])
    assert float(metrics.smape(y, y)[0]) == 0
    assert float(metrics.smape(-y[:, :2], y[:, :2])[0]) == 200
    assert float(metrics.smape(jnp.array([[5.0]]), jnp.array([[0.0]]))[0]) == 200


def test_coverage_counts_bounds_and_is_that_of_a_calibrated_interval():
    bounds = jnp.array([[[0.0, 1.0]] * 4])
    assert float(metrics.coverage(bounds, jnp.array([[0.0, 1.0, 1.1, -0.1]]))[0]) == 0.5
    y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20000)).astype(np.float32))
    wide = jnp.broadcast_to(jnp.array([-1.6449, 1.6449]), (1, 20000, 2))
    assert float(metrics.coverage(wide, y)[0]) == pytest.approx(0.9, abs=0.01)
    assert np.isnan(metrics.coverage(bounds, jnp.full((1, 4), jnp.nan))[0])
    jitted = jax.jit(metrics.coverage)(bounds[..., ::-1], jnp.full((1, 4), 0.5))
    assert jitted.tolist() == [0.0]


def test_a_scale_that_is_none_is_nan_under_jit():
    f = jax.jit(lambda scale: metrics.mase(jnp.ones((2, 3)), jnp.zeros((2, 3)), scale=scale))
    assert f(2.0).tolist() == [0.5, 0.5]
    assert np.isnan(f(0.0)).all()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: metrics.naive_error(jnp.ones((3, 1)), season=3), ValueError,
         r"history has shape \(3, 1\) and season is 3, expected \(t f\).*t > season >= 1"),
        (lambda: metrics.naive_error(jnp.ones(3), season=1.0), TypeError, r"season is 1\.0"),
        (lambda: metrics.mase(jnp.ones((2, 3)), jnp.ones((2, 3)), scale=0.0), ValueError,
         r"scale is 0\.0, expected numbers > 0; a constant series"),
        (lambda: metrics.mase(jnp.ones((2, 3)), jnp.ones((2, 3)), scale=jnp.ones(2)), ValueError,
         r"scale has shape \(2,\), expected \(3,\), one number per feature"),
        (lambda: metrics.smape(jnp.ones((2, 3)), jnp.ones((2, 3, 1))), ValueError,
         r"predictions has shape \(2, 3\) and targets has shape \(2, 3, 1\)"),
        (lambda: metrics.smape(jnp.ones(2, int), jnp.ones(2)), TypeError, "expected floats"),
        (lambda: metrics.coverage(jnp.ones((2, 3)), jnp.ones((2, 3))), ValueError,
         r"expected \(2, 3, 2\): lower and upper bound"),
        (lambda: metrics.coverage(jnp.array([[1.0, 0.0]]), jnp.ones(1)), ValueError,
         r"the lower bound 1\.0 is above the upper 0\.0.*jnp\.sort"),
    ],
)  # fmt: skip
def test_messages(call, error, said):
    with pytest.raises(error, match=said):
        call()
