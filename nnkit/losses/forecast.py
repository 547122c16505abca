"""Losses for probabilistic forecasts: quantiles, and the continuous ranked probability score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, real
from nnkit.losses.inputs import spoil

__all__ = ["crps_gaussian", "crps_quantiles", "crps_samples", "quantile"]


def quantile(predictions, targets, *, levels):
    """The pinball loss: smallest in the mean where a share `level` of the targets lies below.

    max(l e, (l - 1) e) with e = y - x, averaged over the levels l and the trailing axes. Level 0.5
    is half the absolute error.

    Args:
      predictions: [b ... q] floats, one for each level in the last axis.
      targets: [b ...] numbers.
      levels: q numbers between 0 and 1, such as (0.1, 0.5, 0.9).

    Returns:
      [b] one loss per example.

    Raises:
      ValueError: if shapes do not fit, or a level is not between 0 and 1.
      TypeError: if the predictions are not floats.

    >>> quantile(jnp.array([[0.0, 0.0]]), jnp.array([10.0]), levels=(0.1, 0.9))
    Array([5.], dtype=float32)

    Koenker and Bassett, Regression quantiles, 1978, eq. 3.2.
    """
    predictions, targets, levels = _levelled(predictions, targets, levels)
    return _pinball(predictions, targets, levels).mean(tuple(range(1, predictions.ndim)))


def crps_quantiles(predictions, targets, *, levels):
    """The continuous ranked probability score of a forecast given by quantiles.

    sum_i w_i 2 pinball_i(x_i, y), averaged over the trailing axes, with w_i the part of 0..1 that
    is nearer to level i than to another. For levels (i - 1/2) / q it is `crps_samples` of the q
    quantiles, exactly.

    Args:
      predictions: [b ... q] floats, the quantiles in the last axis.
      targets: [b ...] numbers.
      levels: q numbers between 0 and 1, increasing.

    Returns:
      [b] one score per example, in the unit of the targets; smaller is better.

    Raises:
      ValueError: if shapes do not fit, or the levels do not increase between 0 and 1.
      TypeError: if the predictions are not floats.

    >>> crps_quantiles(jnp.array([[0.0, 2.0]]), jnp.array([1.0]), levels=(0.25, 0.75))
    Array([0.5], dtype=float32)

    Gneiting and Raftery, Strictly proper scoring rules, 2007, doi:10.1198/016214506000001437,
    section 4.2; Bracher et al., arXiv:2005.12881, eq. 3.
    """
    predictions, targets, levels = _levelled(predictions, targets, levels)
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"levels is {levels.tolist()}, expected increasing numbers: sort them")
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    weights = jnp.asarray(2 * np.diff(edges), predictions.dtype)
    scores = (_pinball(predictions, targets, levels) * _last(weights, predictions)).sum(-1)
    return scores.mean(tuple(range(1, scores.ndim)))


def crps_samples(samples, targets, *, fair: bool = False):
    """The continuous ranked probability score of samples: an ensemble, or draws of a model.

    mean_i |x_i - y| - 1/2 mean_ij |x_i - x_j|, averaged over the trailing axes. One sample gives
    the absolute error. fair=True takes the second mean over i != j, so that few samples of a
    distribution score in expectation what the distribution scores.

    Args:
      samples: [b ... m] floats, the samples in the last axis.
      targets: [b ...] numbers.
      fair: unbiased in the number of samples; needs two.

    Returns:
      [b] one score per example, in the unit of the targets; smaller is better.

    Raises:
      ValueError: if shapes do not fit, or fair is asked of one sample.
      TypeError: if the samples are not floats.

    >>> crps_samples(jnp.array([[0.0, 2.0]]), jnp.array([1.0]))
    Array([0.5], dtype=float32)

    Gneiting and Raftery 2007, doi:10.1198/016214506000001437, eq. 21; fair: Ferro 2014,
    doi:10.1002/qj.2270, eq. 3.
    """
    samples, targets = _beside("samples", samples, targets)
    m = samples.shape[-1]
    if fair and m < 2:
        raise ValueError("fair=True needs at least 2 samples in the last axis, got 1")
    error = samples - targets[..., None]
    near = (error * jnp.sign(error)).mean(-1)
    place = jnp.asarray((2 * np.arange(1, m + 1) - m - 1) / (m * (m - 1 if fair else m)))
    # sum_ij |x_i - x_j| / 2 = sum_i (2 i - m - 1) x_(i): m log m instead of m^2
    apart = (jnp.sort(samples) * _last(place.astype(samples.dtype), samples)).sum(-1)
    scores = near - apart
    return scores.mean(tuple(range(1, scores.ndim)))


def crps_gaussian(predictions, targets):
    """The continuous ranked probability score of a normal distribution, in closed form.

    s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt pi), z = (y - m) / s, averaged over the trailing axes,
    with m the mean and s the deviation.

    Args:
      predictions: [b ... 2] floats: mean and deviation > 0 in the last axis (jax.nn.softplus makes
        a positive one).
      targets: [b ...] numbers.

    Returns:
      [b] one score per example, in the unit of the targets; smaller is better.

    Raises:
      ValueError: if shapes do not fit, or a deviation is not > 0 (when its value is known;
        otherwise the score is NaN).
      TypeError: if the predictions are not floats.

    >>> f"{crps_gaussian(jnp.array([[0.0, 1.0]]), jnp.array([0.0]))[0]:.4f}"
    '0.2337'

    Gneiting et al. 2005, doi:10.1175/MWR2904.1, eq. 5.
    """
    predictions, targets = _beside("predictions", predictions, targets)
    if predictions.shape[-1] != 2:
        raise ValueError(
            f"predictions has shape {predictions.shape}, expected (b ... 2): mean and deviation in "
            "the last axis; jnp.stack([mean, deviation], -1)"
        )
    mean, deviation = predictions[..., 0], predictions[..., 1]
    known = concrete(deviation)
    if known is not None and known.size and not (known > 0).all():
        raise ValueError(
            f"a deviation is {known[~(known > 0)].ravel()[0]}, expected > 0; let the model give "
            "jax.nn.softplus(...) of its second output"
        )
    bad = ~(deviation > 0)
    deviation = jnp.where(bad, jnp.ones_like(deviation), deviation)
    z = (targets - mean) / deviation
    inside = z * jax.lax.erf(z / np.sqrt(2).astype(z.dtype))  # 2 Phi(z) - 1 = erf(z / sqrt 2)
    density = jnp.exp(-(z**2) / 2) * np.sqrt(2 / np.pi).astype(z.dtype)  # 2 phi(z)
    scores = spoil(deviation * (inside + density - (1 / np.sqrt(np.pi)).astype(z.dtype)), bad)
    return scores.mean(tuple(range(1, scores.ndim)))


def _pinball(predictions, targets, levels):
    """[b ... q] the loss of each level."""
    error = targets[..., None] - predictions
    level = _last(jnp.asarray(levels, predictions.dtype), predictions)
    return error * (level - jnp.where(error < 0, 1, 0).astype(error.dtype))


def _levelled(predictions, targets, levels):
    """Predictions [b ... q] and targets [b ...] as floats, levels [q] float64 in (0, 1)."""
    levels = np.atleast_1d(np.asarray(levels, np.float64))
    if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(
            f"levels is {levels.tolist()}, expected numbers between 0 and 1 such as (0.1, 0.5, 0.9)"
        )
    predictions, targets = _beside("predictions", predictions, targets)
    if predictions.shape[-1] != levels.size:
        raise ValueError(
            f"predictions has shape {predictions.shape}, expected (b ... {levels.size}): one for "
            f"each of the {levels.size} levels in the last axis"
        )
    return predictions, targets, levels


def _beside(name, predictions, targets):
    """Predictions [b ... q] in float32 or wider, and targets [b ...] in their precision."""
    predictions, have = real(name, predictions), tuple(np.shape(targets))
    if predictions.ndim < 2 or predictions.shape[:-1] != have:
        one = f"; for one value each write {name}[..., None]" if predictions.shape == have else ""
        raise ValueError(
            f"{name} has shape {predictions.shape} and targets has shape {have}, expected "
            f"(b ... q) and (b ...): the last axis of {name} is extra{one}"
        )
    return predictions, jnp.asarray(targets).astype(predictions.dtype)


def _last(row, x):
    """A row [q] with leading axes of 1, of the rank of x [... q]."""
    return jnp.reshape(row, (1,) * (x.ndim - 1) + (-1,))
