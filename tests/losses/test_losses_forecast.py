"""Quantile losses and the ranked probability score against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from nnkit import losses

LEVELS = (0.1, 0.5, 0.8)


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def inputs(shape, q, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(*shape, q)).astype(dtype), rng.normal(size=shape).astype(dtype)


def pinball(x, y, level):
    return level * (y - x) if y >= x else (1 - level) * (x - y)


def over(one):
    """[b] from a score of one forecast [q] and one number."""

    def slow(x, y):
        flat = [(p.reshape(-1, p.shape[-1]), np.ravel(t)) for p, t in zip(x, y)]
        return np.array([np.mean([one(a, b) for a, b in zip(p, t)]) for p, t in flat])

    return slow


def between(samples, y):
    return np.mean(np.abs(samples - y)) - np.mean(np.abs(samples[:, None] - samples)) / 2


def fair(samples, y):
    m = len(samples)
    pairs = sum(abs(a - b) for a in samples for b in samples) / (m * (m - 1))
    return np.mean(np.abs(samples - y)) - pairs / 2


def cells(x, y):
    widths = np.diff([0, 0.3, 0.65, 1])
    return sum(2 * w * pinball(a, y, level) for w, a, level in zip(widths, x, LEVELS))


def positive(x):
    return np.concatenate([x[..., :1], np.abs(x[..., 1:]) + np.asarray(0.2, x.dtype)], -1)


TABLE = {
    "quantile": (
        lambda x, y: losses.quantile(x, y, levels=LEVELS),
        lambda x, y: np.mean([pinball(a, y, level) for a, level in zip(x, LEVELS)]),
        3,
    ),
    "crps_quantiles": (lambda x, y: losses.crps_quantiles(x, y, levels=LEVELS), cells, 3),
    "crps_samples": (losses.crps_samples, between, 5),
    "crps_samples_fair": (lambda x, y: losses.crps_samples(x, y, fair=True), fair, 4),
    "crps_gaussian": (
        losses.crps_gaussian,
        lambda x, y: x[1] * (
            (z := (y - x[0]) / x[1]) * (2 * stats.norm.cdf(z) - 1)
            + 2 * stats.norm.pdf(z) - np.pi**-0.5
        ),
        2,
    ),
}  # fmt: skip
rows = pytest.mark.parametrize(("f", "one", "q"), TABLE.values(), ids=TABLE)


@rows
@pytest.mark.parametrize("shape", [(5,), (1, 2), (2, 3, 2)])
def test_definition_jit_and_vmap(f, one, q, shape):
    x, y = inputs(shape, q)
    x = positive(x) if q == 2 else x
    out = f(jnp.asarray(x), y)
    assert out.shape == shape[:1]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, over(one)(x.astype(float), y.astype(float)), rtol=2e-5)
    np.testing.assert_allclose(jax.jit(f)(x, y), out, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(x[None], y[None])[0], out, rtol=1e-5)
    half = f(jnp.asarray(x, jnp.bfloat16), y)
    assert half.dtype == jnp.float32
    assert np.isfinite(half).all()


@rows
def test_gradient_is_the_finite_difference(f, one, q):
    with double():
        x, y = inputs((3, 2), q, np.float64)
        x = positive(x) if q == 2 else x
        slope = jax.grad(lambda x: f(x, y).sum())(jnp.asarray(x))
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-6
            near = (float(f(x + step, y).sum()) - float(f(x - step, y).sum())) / 2e-6
            assert float(slope[at]) == pytest.approx(near, abs=1e-7)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_quantile_loss_is_smallest_at_the_quantile(level):
    y = np.random.default_rng(1).gamma(2.0, size=999).astype(np.float32)
    grid = np.linspace(0, 8, 801, dtype=np.float32)
    mean = [
        float(losses.quantile(jnp.full((999, 1), x), y, levels=level).mean()) for x in grid[::20]
    ]
    best = grid[::20][int(np.argmin(mean))]
    assert abs(best - np.quantile(y, level)) <= 0.2


def test_median_is_half_the_absolute_error_and_one_sample_the_whole():
    x, y = inputs((4, 3), 1)
    plain = losses.mae(jnp.asarray(x[..., 0]), y)
    np.testing.assert_allclose(losses.quantile(jnp.asarray(x), y, levels=0.5), plain / 2, 1e-6)
    np.testing.assert_allclose(losses.crps_samples(jnp.asarray(x), y), plain, 1e-6)


def test_quantiles_in_the_middle_of_their_cells_are_samples():
    x, y = inputs((6,), 8)
    levels = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(
        losses.crps_quantiles(jnp.sort(jnp.asarray(x)), y, levels=levels),
        losses.crps_samples(jnp.asarray(x), y),
        rtol=1e-5,
    )


@pytest.mark.parametrize(("mean", "deviation", "y"), [(0, 1, 0), (1.5, 0.3, 0.2), (-2, 4, 9)])
def test_gaussian_is_the_integral_of_the_squared_distance_of_distributions(mean, deviation, y):
    def gap(z):
        return (stats.norm.cdf(z, mean, deviation) - (z >= y)) ** 2

    low, high = min(mean, y) - 12 * deviation, max(mean, y) + 12 * deviation
    exact = integrate.quad(gap, low, y)[0] + integrate.quad(gap, y, high)[0]
    with double():
        ours = losses.crps_gaussian(jnp.array([[mean, deviation]], float), jnp.array([y], float))
    assert float(ours[0]) == pytest.approx(exact, rel=1e-6)


def test_many_samples_and_quantiles_of_a_gaussian_score_as_the_gaussian():
    levels = (np.arange(2000) + 0.5) / 2000
    x = jnp.asarray(stats.norm.ppf(levels)[None], jnp.float32)
    exact = float(losses.crps_gaussian(jnp.array([[0.0, 1.0]]), jnp.array([0.7]))[0])
    y = jnp.array([0.7])
    assert float(losses.crps_samples(x, y)[0]) == pytest.approx(exact, rel=1e-3)
    assert float(losses.crps_quantiles(x, y, levels=levels)[0]) == pytest.approx(exact, rel=1e-3)
    draws = np.random.default_rng(2).normal(size=(4000, 3)).astype(np.float32)  # 3 are few
    unbiased = losses.crps_samples(jnp.asarray(draws), jnp.full(4000, 0.7), fair=True).mean()
    biased = losses.crps_samples(jnp.asarray(draws), jnp.full(4000, 0.7)).mean()
    assert float(unbiased) == pytest.approx(exact, abs=0.03)
    assert float(biased) > exact + 0.1


def test_a_deviation_that_is_none_is_nan_under_jit_and_hidden_by_a_mask():
    x, y = jnp.array([[0.0, 1.0], [0.0, -1.0]]), jnp.zeros(2)
    out = jax.jit(losses.crps_gaussian)(x, y)
    assert np.isnan(out).tolist() == [False, True]
    slope = jax.jit(jax.grad(lambda x: losses.crps_gaussian(x, y)[0]))(x)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: losses.quantile(jnp.zeros((4, 2)), jnp.zeros(4), levels=(0.5, 1.0)), ValueError,
         r"levels is \[0.5, 1.0\], expected numbers between 0 and 1"),
        (lambda: losses.quantile(jnp.zeros((4, 2)), jnp.zeros(4), levels=0.5), ValueError,
         r"predictions has shape \(4, 2\), expected \(b ... 1\): one for each of the 1 levels"),
        (lambda: losses.quantile(jnp.zeros(4), jnp.zeros(4), levels=0.5), ValueError,
         r"predictions has shape \(4,\) and targets has.*write predictions\[..., None"),
        (lambda: losses.quantile(jnp.zeros((4, 1), int), jnp.zeros(4), levels=0.5), TypeError,
         "predictions is int32, expected floats"),
        (lambda: losses.crps_quantiles(jnp.zeros((4, 2)), jnp.zeros(4), levels=(0.9, 0.1)),
         ValueError, r"levels is \[0.9, 0.1\], expected increasing numbers"),
        (lambda: losses.crps_samples(jnp.zeros((4, 1)), jnp.zeros(4), fair=True), ValueError,
         "fair=True needs at least 2 samples"),
        (lambda: losses.crps_samples(jnp.zeros((4, 3)), jnp.zeros((4, 1))), ValueError,
         r"samples has shape \(4, 3\) and targets has shape \(4, 1\)"),
        (lambda: losses.crps_gaussian(jnp.zeros((4, 3)), jnp.zeros(4)), ValueError,
         r"expected \(b ... 2\): mean and deviation"),
        (lambda: losses.crps_gaussian(jnp.zeros((4, 2)), jnp.zeros(4)), ValueError,
         r"a deviation is 0.0, expected > 0; let the model give jax.nn.softplus"),
    ],
)  # fmt: skip
def test_messages(call, error, said):
    with pytest.raises(error, match=said):
        call()
