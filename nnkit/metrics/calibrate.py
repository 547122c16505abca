"""Metrics of probabilities: how good and how honest they are."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp

from nnkit.core.checks import dims, real
from nnkit.metrics.inputs import classes, distribution, or_nan

__all__ = ["brier", "calibration", "ece", "nll"]


def nll(logits, labels):
    """Minus the log-probability of the true class, in nats: the score of honest forecasts.

    -sum_k y_k log softmax(logits)_k, with y one-hot or soft.

    Args:
      logits: [... c] unnormalised scores.
      labels: [...] integer classes, or [... c] soft labels.

    Returns:
      [...] one value per example.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> nll(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([0.1269], dtype=float32)

    Good, Rational decisions, 1952, section 8.
    """
    logits = real("logits", logits)
    y, bad = distribution(logits, labels)
    log_p = jax.nn.log_softmax(logits)
    log_p = jnp.where((y == 0) & jnp.isneginf(log_p), 0, log_p)  # 0 log 0 = 0
    return or_nan(-(y * log_p).sum(-1), bad)


def brier(logits, labels):
    """Squared distance between the probabilities and the truth, from 0 to 2.

    sum_k (p_k - y_k)^2, with p = softmax(logits) and y one-hot or soft.

    Args:
      logits: [... c] unnormalised scores.
      labels: [...] integer classes, or [... c] soft labels.

    Returns:
      [...] one value per example.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> brier(jnp.array([[0.0, 0.0]]), jnp.array([0]))
    Array([0.5], dtype=float32)

    Brier, Verification of forecasts expressed in terms of probability, 1950, eq. 2.
    """
    logits = real("logits", logits)
    y, bad = distribution(logits, labels)
    return or_nan(((jax.nn.softmax(logits) - y) ** 2).sum(-1), bad)


def calibration(logits, labels, *, bins=15):
    """One example put into the bin of its confidence: (1, confidence, correct) there, else 0.

    Bin m holds confidences in ((m - 1) / bins, m / bins]; confidence is the largest probability.
    The mean (or sum) over examples is a reliability diagram and what `ece` takes.

    Args:
      logits: [... c] unnormalised scores.
      labels: [...] integer classes, or [... c] soft labels, whose largest counts.
      bins: how many bins of equal width, at least 1.

    Returns:
      [... bins 3] float32: count, confidence, correct. NaN for NaN logits.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or bins is below 1.
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> calibration(jnp.array([[0.0, 2.0]]), jnp.array([1]), bins=2).round(2)
    Array([[[0.  , 0.  , 0.  ],
            [1.  , 0.88, 1.  ]]], dtype=float32)

    Guo et al., arXiv:1706.04599, eq. 2.
    """
    logits = real("logits", logits)
    if operator.index(bins) < 1:
        raise ValueError(f"bins is {bins}, expected at least 1; 15 is usual")
    true, bad = classes(logits, labels)
    confidence = jax.nn.softmax(logits).max(-1).astype(jnp.float32)
    right = (logits.argmax(-1).astype(jnp.int32) == true).astype(jnp.float32)
    place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
    here = jax.nn.one_hot(place, bins, dtype=jnp.float32)[..., None]  # [... bins 1]
    row = jnp.stack([jnp.ones_like(right), confidence, right], -1)[..., None, :]  # [... 1 3]
    none = jnp.isnan(confidence)
    return or_nan(here * row, none if bad is None else none | bad)


def ece(table):
    """Expected calibration error: the gap between confidence and accuracy, averaged over bins.

    sum_m |correct_m - confidence_m| / sum_m count_m. Any scale: means, sums or counts.

    Args:
      table: [... bins 3] the mean or sum of `calibration` over examples. (The mean over examples
        of the error of single examples would be another number.)

    Returns:
      [...] from 0 to 1; NaN for a table of no examples.

    Raises:
      ValueError: if the last axis is not (count, confidence, correct).

    >>> ece(jnp.array([[0.0, 0.0, 0.0], [4.0, 3.0, 2.0]]))
    Array(0.25, dtype=float32)

    Guo et al., arXiv:1706.04599, eq. 3.
    """
    if dims("... bins k", table=table).k != 3:
        raise ValueError(
            f"table has shape {jnp.shape(table)}, expected (... bins 3): count, confidence and "
            "correct; take the mean of `calibration` over the examples"
        )
    table = real("table", table)
    return jnp.abs(table[..., 2] - table[..., 1]).sum(-1) / table[..., 0].sum(-1)
