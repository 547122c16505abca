"""Metrics of forecasts, one value per example. (`losses.mse` and `losses.mae` serve as well.)"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, real, same
from nnkit.metrics.inputs import or_nan

__all__ = ["coverage", "mase", "naive_error", "smape"]


def naive_error(history, *, season: int = 1):
    """Mean absolute error of repeating the value of one season ago, on the training series.

    mean_t |x_t - x_(t - season)|, per feature: what `mase` divides by.

    Args:
      history: [t f] or [t] the training series, of more than `season` steps.
      season: steps of a season; 1 repeats the last value.

    Returns:
      [f], or [] for one series.

    Raises:
      ValueError: if the series is too short, or the season is not >= 1.
      TypeError: if the series is not of floats, or the season no integer.

    >>> naive_error(jnp.array([1.0, 2.0, 4.0]))
    Array(1.5, dtype=float32)

    Hyndman and Koehler 2006, doi:10.1016/j.ijforecast.2006.03.001, section 3.
    """
    if isinstance(season, bool) or not hasattr(type(season), "__index__"):
        raise TypeError(f"season is {season!r}, expected a number of steps, an integer >= 1")
    history = real("history", history)
    if season < 1 or history.ndim not in (1, 2) or len(history) <= season:
        raise ValueError(
            f"history has shape {history.shape} and season is {season}, expected (t f) or (t) with "
            "t > season >= 1; 24 is a day of hours"
        )
    return jnp.abs(history[season:] - history[:-season]).mean(0)


def mase(predictions, targets, *, scale):
    """Mean absolute scaled error: in units of the naive forecast's error on the training series.

    mean_sf |x_sf - y_sf| / scale_f. Below 1 is better than repeating was.

    Args:
      predictions: [b h f] floats, or [b h].
      targets: the same shape.
      scale: [f] (or []) above 0, from `naive_error` of the training series, never of the test.

    Returns:
      [b] one value per example.

    Raises:
      ValueError: if shapes differ, or a scale is not > 0: a constant series has none (when its
        value is known; otherwise the result is NaN).
      TypeError: if the predictions are not floats.

    >>> mase(jnp.array([[3.0, 5.0]]), jnp.array([[4.0, 4.0]]), scale=0.5)
    Array([2.], dtype=float32)

    Hyndman and Koehler 2006, doi:10.1016/j.ijforecast.2006.03.001, section 3.
    """
    predictions, targets = _pair(predictions, targets)
    shape, known = tuple(np.shape(scale)), concrete(scale)
    if shape and shape != predictions.shape[-1:]:
        raise ValueError(
            f"scale has shape {shape}, expected {predictions.shape[-1:]}, one number per feature "
            f"of the predictions, which have shape {predictions.shape}, or a single number"
        )
    if known is not None and not (known > 0).all():
        raise ValueError(
            f"scale is {known.tolist()}, expected numbers > 0; a constant series has no scaled "
            "error: leave it out, or use losses.mae"
        )
    scale = jnp.asarray(scale).astype(predictions.dtype)
    some = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    some = jnp.reshape(some, (1,) * (predictions.ndim - some.ndim) + some.shape)
    found = _each(jnp.abs(predictions - targets) / some)
    return or_nan(found, jnp.broadcast_to(~(scale > 0).all(), found.shape))


def smape(predictions, targets):
    """Symmetric mean absolute percentage error, 0 to 200.

    200 mean |x - y| / (|x| + |y|), and 0 where both are 0. Its value depends on where 0 lies: not
    for scaled or centred series.

    Args:
      predictions: [b ...] floats.
      targets: the same shape.

    Returns:
      [b] one value per example, in percent.

    Raises:
      ValueError: if shapes differ.
      TypeError: if the predictions are not floats.

    >>> smape(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0]]))
    Array([50.], dtype=float32)

    Makridakis et al., The M4 competition, 2020, doi:10.1016/j.ijforecast.2019.04.014.
    """
    predictions, targets = _pair(predictions, targets)
    size = jnp.abs(predictions) + jnp.abs(targets)
    some = jnp.where(size > 0, size, jnp.ones_like(size))
    return _each(200 * jnp.abs(predictions - targets) / some)


def coverage(predictions, targets):
    """Share of targets inside predicted intervals, bounds included.

    mean [low <= y <= high]. An interval of levels 0.05 and 0.95 is calibrated at 0.9.

    Args:
      predictions: [b ... 2] floats: the lower and the upper bound in the last axis.
      targets: [b ...] numbers.

    Returns:
      [b] one share per example; NaN targets or bounds give NaN.

    Raises:
      ValueError: if shapes do not fit, or a lower bound is above its upper one (when their values
        are known; such an interval holds nothing).
      TypeError: if the predictions are not floats.

    >>> coverage(jnp.array([[[0.0, 1.0], [0.0, 1.0]]]), jnp.array([[0.5, 2.0]]))
    Array([0.5], dtype=float32)

    Christoffersen, Evaluating interval forecasts, 1998, doi:10.2307/2527341.
    """
    predictions, have = real("predictions", predictions), tuple(np.shape(targets))
    if predictions.ndim < 2 or predictions.shape != (*have, 2):
        raise ValueError(
            f"predictions has shape {predictions.shape}, expected {(*have, 2)}: lower and upper "
            f"bound in the last axis, for targets of shape {have}"
        )
    low, high = predictions[..., 0], predictions[..., 1]
    known = concrete(low), concrete(high)
    if known[0] is not None and known[1] is not None and (known[0] > known[1]).any():
        at = np.argwhere(known[0] > known[1])[0]
        raise ValueError(
            f"the lower bound {known[0][tuple(at)]} is above the upper {known[1][tuple(at)]}, "
            "expected lower <= upper; jnp.sort(predictions, -1) brings crossed quantiles in order"
        )
    y = jnp.asarray(targets).astype(low.dtype)
    inside = ((low <= y) & (y <= high)).astype(low.dtype)
    return _each(or_nan(inside, jnp.isnan(low) | jnp.isnan(high) | jnp.isnan(y)))


def _pair(predictions, targets):
    """Both [b ...] in the predictions' precision, at least float32."""
    predictions = real("predictions", predictions)
    same(predictions=predictions, targets=targets)
    if predictions.ndim == 0:
        raise ValueError("predictions has shape (), expected (b ...): one row per example")
    return predictions, jnp.asarray(targets).astype(predictions.dtype)


def _each(values):
    """[b ...] to [b]: the mean over trailing axes."""
    return values.mean(tuple(range(1, values.ndim)))
