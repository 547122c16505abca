"""Calibration against the definition over the whole set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import metrics
from nnkit.core.means import Mean


def inputs(n=300, c=4):
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(n, c)).astype(np.float32), rng.integers(0, c, n)


def slow_ece(z, y, bins):
    """Guo et al., eq. 3, with the sets B_m written out."""
    p = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(-1, keepdims=True)
    confidence, right, total = p.max(-1), p.argmax(-1) == y, 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(y) * gap
    return total


@pytest.mark.parametrize("bins", [1, 10])
def test_ece_is_the_definition_at_any_scale(bins):
    z, y = inputs()
    table = jax.jit(metrics.calibration, static_argnames="bins")(z, y, bins=bins)
    ece = jax.jit(metrics.ece)
    assert table.shape == (300, bins, 3)
    want = slow_ece(z, y, bins)
    np.testing.assert_allclose(ece(table.sum(0)), want, rtol=1e-5)
    np.testing.assert_allclose(ece(Mean.of(table, keep=True).value), want, rtol=1e-5)
    halves = Mean.of(table[:37], keep=True) + Mean.of(table[37:], keep=True)
    np.testing.assert_allclose(ece(halves.value), want, rtol=1e-5)
    many = jax.jit(metrics.ece)(jnp.stack([table.sum(0), table[0]]))
    np.testing.assert_allclose(many[0], want, rtol=1e-5)


def test_edges_belong_to_the_lower_bin_and_certainty_to_the_last():
    z = jnp.array([[0.0, 0.0], [200.0, 0.0]])  # confidence 1/2 and 1
    count = metrics.calibration(z, jnp.array([0, 0]), bins=2)[..., 0]
    np.testing.assert_array_equal(count, [[1, 0], [0, 1]])


def test_a_model_that_is_sure_and_right_is_calibrated():
    z = jnp.eye(3) * 100
    assert metrics.ece(metrics.calibration(z, jnp.arange(3)).sum(0)) == 0
    assert metrics.ece(metrics.calibration(z, (jnp.arange(3) + 1) % 3).sum(0)) == 1
    assert jnp.isnan(metrics.ece(jnp.zeros((15, 3))))


def test_brier_from_0_to_2_and_sklearn():
    z = jnp.array([[200.0, 0.0], [0.0, 200.0]])
    np.testing.assert_array_equal(metrics.brier(z, jnp.array([0, 0])), [0, 2])
    sk = pytest.importorskip("sklearn.metrics")
    z, y = inputs()
    p = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(-1, keepdims=True)
    want = sk.log_loss(y, p, labels=range(4))
    np.testing.assert_allclose(metrics.nll(z, y).mean(), want, rtol=1e-5)
    p = np.asarray(jax.nn.softmax(z[:, :2]))[:, 1]
    want = 2 * sk.brier_score_loss(y % 2, p)  # sklearn counts one of the two classes
    np.testing.assert_allclose(metrics.brier(z[:, :2], y % 2).mean(), want, rtol=1e-5)


def test_errors():
    z, y = inputs()
    with pytest.raises(ValueError, match="bins is 0, expected at least 1; 15 is usual"):
        metrics.calibration(z, y, bins=0)
    with pytest.raises(
        ValueError, match=r"table has shape \(300, 15\), expected \(... bins 3\).*mean of"
    ):
        metrics.ece(metrics.calibration(z, y)[..., 0])
    with pytest.raises(TypeError, match="table is int32, expected floats"):
        metrics.ece(np.zeros((15, 3), np.int32))
