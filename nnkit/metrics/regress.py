"""Metrics of numbers. (Squared and absolute errors are losses, and serve as metrics too.)"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, real, same
from nnkit.metrics.inputs import or_nan, weights

__all__ = ["r2"]


def r2(predictions, targets, *, mask=None):
    """Share of the targets' variance that the predictions explain.

    1 - sum_i (y_i - x_i)^2 / sum_i (y_i - mean y)^2, averaged over the outputs.

    Args:
      predictions: [n] or [n d] floats.
      targets: [n] or [n d] numbers of the same shape.
      mask: [n] weights, 0 for padding; None counts all.

    Returns:
      [] at most 1; 0 is as good as the mean of the targets.

    Raises:
      ValueError: if shapes differ, or the targets of an output are all equal (when their values
        are known; otherwise the result is NaN).
      TypeError: if the predictions are not floats.

    >>> r2(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0]))
    Array(0.5, dtype=float32)

    Wright, Correlation and causation, 1921 (the coefficient of determination).
    """
    predictions = real("predictions", predictions)
    same(predictions=predictions, targets=targets)
    if predictions.ndim not in (1, 2):
        raise ValueError(
            f"predictions has shape {predictions.shape}, expected (n) or (n d); reshape to (n, -1)"
        )
    n = predictions.shape[0]
    weight = weights(mask, n).astype(predictions.dtype)[:, None]
    _varied(targets, mask)
    x = predictions.reshape(n, -1)
    y = jnp.asarray(targets).astype(x.dtype).reshape(n, -1)
    x, y = jnp.where(weight == 0, 0, x), jnp.where(weight == 0, 0, y)
    mean = (weight * y).sum(0, keepdims=True) / weight.sum()
    missed = (weight * (y - x) ** 2).sum(0)
    spread = (weight * (y - mean) ** 2).sum(0)
    inf = jnp.full((), jnp.inf, y.dtype)
    low = jnp.where(weight == 0, inf, y).min(0, initial=jnp.inf)
    high = jnp.where(weight == 0, -inf, y).max(0, initial=-jnp.inf)
    return or_nan((1 - missed / spread).mean(), (low >= high).any())


def _varied(targets, mask):
    """The targets [n] or [n d] must not be constant, where that can be known."""
    known, kept = concrete(targets), None if mask is None else concrete(mask)
    if known is None or (mask is not None and kept is None):
        return
    known = known.reshape(known.shape[0], -1)
    known = known if kept is None else known[kept != 0]
    for i in range(known.shape[1]):
        if known.shape[0] == 0 or (known[:, i] == known[:1, i]).all():
            value = f"all {known[0, i]}" if known.shape[0] else "none"
            raise ValueError(
                f"targets of output {i} are {value} ({np.shape(known)[0]} examples), expected at "
                "least two different values; compute r2 over the whole set, not per batch"
            )
