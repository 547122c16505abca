"""Metrics of verification: are two pictures of one person? Functions of the whole set of pairs.

A pair is accepted if its score is above the threshold. `same` is 1 for genuine pairs and 0 for
impostors. FAR is the share of impostors accepted, TAR that of genuine pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete
from nnkit.metrics.inputs import binary, masked, or_nan, weights

__all__ = ["Roc", "equal_error_rate", "tar_at_far", "verification_accuracy", "verification_roc"]

SLACK = 5e-7  # far * n is rounded in float32


def tar_at_far(scores, same, *, far=1e-3, mask=None):
    """Share of genuine pairs accepted when at most a share `far` of the impostors is.

    The threshold comes from the impostors alone: with n of them it is the (k + 1)-th largest
    score, k = floor(far n), and a pair must score above it. At most k impostors do, fewer if some
    share that score: then all of them are out.

    Args:
      scores: [n] floats; larger means more likely the same.
      same: [n] bool, or 1 for genuine pairs and 0 for impostors.
      far: the false accept rate allowed, above 0 and below 1.
      mask: [n] 0 for padding; None counts all.

    Returns:
      [] from 0 to 1. NaN if a score that counts is NaN, or under `jit` where it would be an
      error.

    Raises:
      ValueError: if shapes differ, a known label is neither 0 nor 1, there is no genuine pair, or
        there are fewer than 1 / far impostors.
      TypeError: if the scores are not floats.

    >>> scores = jnp.array([0.9, 0.6, 0.4, 0.7, 0.5, 0.3, 0.2])
    >>> tar_at_far(scores, jnp.array([1, 1, 1, 0, 0, 0, 0]), far=0.25)  # above 0.5: 2 of 3
    Array(0.6666667, dtype=float32)

    Klare et al. 2015, doi:10.1109/CVPR.2015.7298803, section 4.1.
    """
    if not 0 < far < 1:
        raise ValueError(f"far is {far}, expected 0 < far < 1; 1e-3 accepts 1 impostor of 1,000")
    scores, genuine, impostor, bad = _pairs(scores, same, mask)
    _enough("tar_at_far", same, mask, math.ceil(1 / far * (1 - SLACK)), f" for far={far}")
    n = impostor.sum(dtype=jnp.int32)
    allowed = jnp.floor(n.astype(jnp.float32) * (far * (1 + SLACK))).astype(jnp.int32)
    falling = -jnp.sort(jnp.where(impostor, -scores, jnp.inf))
    at = jnp.clip(allowed, 0, max(falling.shape[0] - 1, 0))
    threshold = jnp.take(falling, at, mode="clip")
    right = (genuine & (scores > threshold)).sum(dtype=jnp.int32)
    tar = _share(right, genuine.sum(dtype=jnp.int32), scores.dtype)
    return or_nan(tar, bad | (allowed < 1))


class Roc(NamedTuple):
    """The points of a verification ROC, thresholds falling; equal scores are one point.

    Attributes:
      far: [n + 1] share of impostors with a score of at least the threshold, from 0.
      tar: [n + 1] the same share of genuine pairs, from 0.
      threshold: [n + 1] infinity, then the scores.

    >>> Roc(jnp.zeros(1), jnp.ones(1), jnp.array([0.5])).tar
    Array([1.], dtype=float32)

    Egan, Signal Detection Theory and ROC Analysis, 1975.
    """

    far: jax.Array
    tar: jax.Array
    threshold: jax.Array


def verification_roc(scores, same, *, mask=None) -> Roc:
    """False and true accept rates at every score, from none accepted to all.

    A repeated score repeats its point; padding repeats the last one, so that shapes are fixed.

    Args:
      scores: [n] floats; larger means more likely the same.
      same: [n] bool, or 1 for genuine pairs and 0 for impostors.
      mask: [n] 0 for padding; None counts all.

    Returns:
      A `Roc` of arrays [n + 1]. NaN if a score that counts is NaN, or without genuine pairs or
      impostors under `jit`.

    Raises:
      ValueError: if shapes differ, a known label is neither 0 nor 1, or one kind is absent.
      TypeError: if the scores are not floats.

    >>> roc = verification_roc(jnp.array([0.9, 0.5, 0.1]), jnp.array([1, 0, 1]))
    >>> roc.far.tolist(), roc.tar.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])

    Egan, Signal Detection Theory and ROC Analysis, 1975; Huang et al. 2007 (LFW, report 07-49).
    """
    scores, genuine, impostor, bad = _pairs(scores, same, mask)
    _enough("verification_roc", same, mask, 1)
    counts = genuine | impostor
    order = jnp.argsort(jnp.where(counts, -scores, jnp.inf))
    scores, genuine, impostor = scores[order], genuine[order], impostor[order]
    scores = jnp.where(counts[order], scores, -jnp.inf)  # padding stands last
    last = jnp.searchsorted(-scores, -scores, side="right", method="sort")

    def rate(kind):
        upto = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(kind, dtype=jnp.int32)])
        at = jnp.concatenate([jnp.zeros((1,), last.dtype), last])
        return or_nan(_share(upto[at], upto[-1], scores.dtype), bad)

    first = jnp.full((1,), jnp.inf, scores.dtype)
    return Roc(rate(impostor), rate(genuine), jnp.concatenate([first, scores]))


def equal_error_rate(scores, same, *, mask=None):
    """The error rate at the threshold where as many impostors are accepted as genuine refused.

    Where the ROC, its points joined by straight lines, crosses TAR = 1 - FAR; the value is FAR.

    Args:
      scores: [n] floats; larger means more likely the same.
      same: [n] bool, or 1 for genuine pairs and 0 for impostors.
      mask: [n] 0 for padding; None counts all.

    Returns:
      [] from 0 to 1, 0.5 for scores that say nothing. NaN as in `verification_roc`.

    Raises:
      ValueError: as in `verification_roc`.
      TypeError: if the scores are not floats.

    >>> equal_error_rate(jnp.array([0.9, 0.7, 0.8, 0.1]), jnp.array([1, 1, 0, 0]))
    Array(0.5, dtype=float32)

    Egan, Signal Detection Theory and ROC Analysis, 1975.
    """
    roc = verification_roc(scores, same, mask=mask)
    gap = roc.far + roc.tar - 1  # from -1 to 1, never falling
    end = jnp.argmax(gap >= 0)
    here = jnp.maximum(end - 1, 0)
    step = gap[end] - gap[here]
    part = jnp.where(step > 0, -gap[here] / jnp.where(step > 0, step, 1), 0)
    found = roc.far[here] + part * (roc.far[end] - roc.far[here])
    return or_nan(found, jnp.isnan(gap).any())


def verification_accuracy(scores, same, fold, *, mask=None):
    """Accuracy on one fold of pairs, at the threshold that is best on all the others.

    The fold takes no part in choosing: the accuracy at its own best threshold is no estimate of
    anything. LFW's number is the mean over ten folds (`jax.vmap` over them).

    Args:
      scores: [n] floats; larger means more likely the same.
      same: [n] bool, or 1 for genuine pairs and 0 for impostors.
      fold: [n] bool, or 1 for the pairs that are tested.
      mask: [n] 0 for padding; None counts all.

    Returns:
      [] from 0 to 1. The threshold lies midway between two scores of the other folds, or is
      infinite where accepting all or none is best; of equally good ones it is the highest. NaN
      if a score that counts is NaN.

    Raises:
      ValueError: if shapes differ, a known label is neither 0 nor 1, or one side of a known fold
        has no pair.
      TypeError: if the scores are not floats.

    >>> scores, same = jnp.array([0.9, 0.8, 0.2, 0.4, 0.6]), jnp.array([1, 1, 0, 0, 1])
    >>> verification_accuracy(scores, same, jnp.array([0, 0, 0, 1, 1]))  # threshold 0.5
    Array(1., dtype=float32)

    Huang et al. 2007, Labeled Faces in the Wild, report 07-49 (10-fold protocol, view 2).
    """
    if np.shape(fold) != np.shape(scores):
        raise ValueError(f"fold has shape {np.shape(fold)}, expected {np.shape(scores)}")
    known, kept = concrete(fold), None if mask is None else concrete(mask)
    if known is not None and (mask is None or kept is not None):
        inside = known.astype(bool)[slice(None) if kept is None else kept != 0]
        if inside.all() or not inside.any():
            raise ValueError(
                f"fold holds {inside.sum()} of {inside.size} pairs, expected some in it to test "
                "and some outside to choose the threshold"
            )
    scores, genuine, impostor, bad = _pairs(scores, same, mask)
    fold = jnp.asarray(fold).astype(bool)
    counts = genuine | impostor
    train = counts & ~fold
    order = jnp.argsort(jnp.where(train, -scores, jnp.inf))
    falling = jnp.where(train, scores, -jnp.inf)[order]  # the other folds first
    up = jnp.cumsum((genuine & train)[order], dtype=jnp.int32)
    down = jnp.cumsum((impostor & train)[order], dtype=jnp.int32)
    n = train.sum(dtype=jnp.int32)
    place = jnp.arange(scores.shape[0], dtype=jnp.int32)
    below = jnp.concatenate([falling[1:], jnp.full((1,), -jnp.inf, scores.dtype)])
    cut = (place < n) & (falling > below)  # accept those up to here; none between equal scores
    value = jnp.where(cut, up - down, -scores.shape[0] - 1)
    best = jnp.argmax(value)
    threshold = (falling[best] + below[best]) / 2
    threshold = jnp.where(value[best] > 0, threshold, jnp.inf)  # accepting none is as good
    test = counts & fold
    right = (test & ((scores > threshold) == genuine)).sum(dtype=jnp.int32)
    return or_nan(_share(right, test.sum(dtype=jnp.int32), scores.dtype), bad | (n == 0))


def _pairs(scores, same, mask):
    """Scores [n], which pairs are genuine and which impostors [n], and whether any is bad []."""
    scores, genuine, bad = binary("scores", scores, masked(same, mask))
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}, expected (n): one score per pair")
    counts = weights(mask, scores.shape[0]) != 0
    bad = ((bad | jnp.isnan(scores)) & counts).any()
    scores = jnp.where(counts & (scores != 0), scores, 0)  # -0 is 0, and padding may be NaN
    return scores, genuine & counts, ~genuine & counts, bad


def _enough(name, same, mask, needed, why=""):
    """At least one genuine pair and `needed` impostors, where that can be known."""
    known, kept = concrete(same), None if mask is None else concrete(mask)
    if known is None or (mask is not None and kept is None) or known.ndim != 1:
        return
    if kept is not None:
        known = known[kept != 0] if kept.shape == known.shape else known
    genuine, impostors = int((known == 1).sum()), int((known == 0).sum())
    if genuine < 1 or impostors < needed:
        raise ValueError(
            f"{name} needs a genuine pair and at least {needed} impostor pairs{why}, got "
            f"{genuine} and {impostors}; take all pairs of the whole set, or a larger far"
            if why
            else f"{name} needs a genuine pair and an impostor pair, got {genuine} and {impostors}"
        )


def _share(count, total, dtype):
    """count / total of integers; NaN for the share of nothing."""
    return count.astype(dtype) / total.astype(dtype)
