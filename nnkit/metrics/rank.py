"""Metrics of an order: how well scores [n] separate two classes. Functions of the whole set."""

from __future__ import annotations

import jax.numpy as jnp

from nnkit.core.checks import concrete
from nnkit.metrics.inputs import binary, masked, or_nan, weights

__all__ = ["average_precision", "roc_auc"]


def roc_auc(scores, labels, *, mask=None):
    """Probability that a positive scores higher than a negative; ties count one half.

    sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / sum_ij w_i w_j over positives i, negatives j.
    Exact (no thresholds on a grid), by sorting.

    Args:
      scores: [n] floats; larger means more likely positive.
      labels: [n] bool, or 0 and 1.
      mask: [n] weights, 0 for padding; None counts all.

    Returns:
      [] from 0 to 1. NaN if a score that counts is NaN, or for one class only under `jit`.

    Raises:
      ValueError: if shapes differ, a known label is neither 0 nor 1, or one class is absent.
      TypeError: if the scores are not floats.

    >>> roc_auc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1]))
    Array(0.875, dtype=float32)

    Hanley and McNeil, The meaning and use of the area under a ROC curve, 1982.
    """
    scores, up, down, bad = _sorted(scores, labels, mask)
    _both(labels, mask, "roc_auc", (0, 1))
    below, upto = _sums(scores, down)
    share = (below + upto) / 2 / down.sum()  # of the negatives that stand below each score
    return or_nan((up * share).sum() / up.sum(), bad)


def average_precision(scores, labels, *, mask=None):
    """Precision at each positive's score, averaged: the area under the precision-recall steps.

    sum_k (R_k - R_{k-1}) P_k over the distinct scores, from the largest down; equal scores are
    one step.

    Args:
      scores: [n] floats; larger means more likely positive.
      labels: [n] bool, or 0 and 1.
      mask: [n] weights, 0 for padding; None counts all.

    Returns:
      [] from 0 to 1. NaN if a score that counts is NaN, or without positives under `jit`.

    Raises:
      ValueError: if shapes differ, a known label is neither 0 nor 1, or there is no positive.
      TypeError: if the scores are not floats.

    >>> average_precision(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])).round(4)
    Array(0.8333, dtype=float32)

    Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008, section 8.4.
    """
    scores, up, down, bad = _sorted(scores, labels, mask)
    _both(labels, mask, "average_precision", (1,))
    hits = up.sum() - _sums(scores, up)[0]
    false = down.sum() - _sums(scores, down)[0]
    some = up > 0
    rate = jnp.where(some, hits / jnp.where(some, hits + false, 1), 0)
    return or_nan((up * rate).sum() / up.sum(), bad)


def _both(labels, mask, name, needed):
    """Every needed class must occur among the labels that count, where that can be known."""
    known, kept = concrete(labels), None if mask is None else concrete(mask)
    if known is None or (mask is not None and kept is None) or known.ndim != 1:
        return
    if kept is not None:
        if kept.shape != known.shape:
            return
        known = known[kept != 0]
    for label in needed:
        if not (known == label).any():
            raise ValueError(
                f"{name} needs an example of label {label}, got {known.size} examples of labels "
                f"{sorted(set(known.tolist()))[:5]}; compute it over the whole set, not per batch"
            )


def _sorted(scores, labels, mask):
    """Scores in ascending order, weights of positives and negatives [n], and whether any is bad."""
    scores, labels, bad = binary("scores", scores, masked(labels, mask))
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}, expected (n): one score per example")
    weight = weights(mask, scores.shape[0]).astype(scores.dtype)
    counts = weight != 0
    bad = ((bad | jnp.isnan(scores)) & counts).any()
    scores = jnp.where(counts & (scores != 0), scores, 0)  # -0 is 0, and padding may be NaN
    order = jnp.argsort(scores)
    zero = jnp.zeros_like(weight)
    up, down = jnp.where(labels, weight, zero), jnp.where(labels, zero, weight)
    return scores[order], up[order], down[order], bad


def _sums(scores, weight):
    """For each of the sorted scores [n], the weight strictly below it and up to it."""
    total = jnp.concatenate([jnp.zeros_like(weight[:1]), jnp.cumsum(weight)])
    first = jnp.searchsorted(scores, scores, side="left", method="sort")
    last = jnp.searchsorted(scores, scores, side="right", method="sort")
    return total[first], total[last]
