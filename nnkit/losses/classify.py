"""Losses for classes: cross-entropy and its relatives, one value per example.

Inputs are taken to float32 (float64 stays), shapes never broadcast, and a label that no class has
is an error where its value is known and NaN, in value and gradient, where it is being traced.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from nnkit.core.checks import concrete, real, same
from nnkit.losses.inputs import classes, is_soft, log_chosen, spoil, within

__all__ = ["binary", "cross_entropy", "focal", "hinge", "kl", "multiclass_hinge"]


def cross_entropy(logits, labels, *, smoothing=0.0):
    """Minus the log-probability of the true class.

    -sum_k y_k log softmax(logits)_k, with y one-hot, or the soft labels themselves; smoothing
    replaces y by (1 - smoothing) y + smoothing / c.

    Args:
      logits: [... c] unnormalised scores, such as [b c] or [b t c].
      labels: [...] integer classes 0 to c-1, or [... c] soft float labels.
      smoothing: share of the label spread over all classes, 0 <= smoothing < 1.

    Returns:
      [...] one loss per example. Reduce with `Mean.of`, so that masks and ragged batches stay
      exact. A label outside 0 to c-1 gives NaN there, in value and gradient, unless the mask is 0.

    Raises:
      ValueError: if shapes disagree, a label is out of range (when its value is known: not under
        `jit`) or smoothing is not in [0, 1).
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([0.1269], dtype=float32)

    Szegedy et al., arXiv:1512.00567, section 7 (smoothing).
    """
    logits = real("logits", logits)
    within("smoothing", smoothing, 0, 1)
    if is_soft(logits, labels):
        labels, log_p = jnp.asarray(labels).astype(logits.dtype), jax.nn.log_softmax(logits)
        never = (labels == 0) & jnp.isneginf(log_p)  # 0 log 0 = 0
        chosen, bad = (labels * jnp.where(never, 0, log_p)).sum(-1), None
    else:
        labels, bad = classes(logits, labels)
        chosen = log_chosen(logits, labels)
    if isinstance(smoothing, jax.Array) or smoothing != 0:
        smoothing = jnp.asarray(smoothing).astype(logits.dtype)
        chosen = (1 - smoothing) * chosen + smoothing * jax.nn.log_softmax(logits).mean(-1)
    return -chosen if bad is None else spoil(-chosen, bad)


def binary(logits, labels):
    """Cross-entropy of two classes from one logit each.

    -y log s(z) - (1 - y) log s(-z), with s the logistic function.

    Args:
      logits: [b] the score of class 1; other shapes [...] are taken element by element.
      labels: [b] (the shape of the logits) bool, 0 or 1, or a probability.

    Returns:
      [b] one loss per example (or [...] one per element).

    Raises:
      ValueError: if shapes differ, or a label is outside 0 to 1 (when its value is known;
        otherwise the loss is NaN).
      TypeError: if the logits are not floats.

    >>> binary(jnp.array([0.0, 2.0]), jnp.array([0, 1])).round(4)
    Array([0.6931, 0.1269], dtype=float32)

    Bishop, Pattern Recognition and Machine Learning, 2006, eq. 4.90.
    """
    logits = real("logits", logits)
    same("binary", logits=logits, labels=labels)
    known = concrete(labels)
    if known is not None and known.size and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"labels run from {known.min()} to {known.max()}, expected probabilities from 0 to 1; "
            "for labels -1 and 1 write (labels + 1) / 2"
        )
    labels = jnp.asarray(labels).astype(logits.dtype)
    bad = ~((labels >= 0) & (labels <= 1))
    safe = jnp.where(bad, 0, labels)
    return spoil(optax.sigmoid_binary_cross_entropy(logits, safe), bad)


def focal(logits, labels, *, gamma=2.0):
    """Cross-entropy that fades for examples already classified well.

    -(1 - p)^gamma log p, with p the probability of the true class. gamma = 0 is cross-entropy.

    Args:
      logits: [... c] unnormalised scores.
      labels: [...] integer classes 0 to c-1.
      gamma: how fast easy examples fade, at least 0; 2 in the paper.

    Returns:
      [...] one loss per example; NaN for labels out of range, as in `cross_entropy`.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or gamma is below 0.
      TypeError: if the logits are not floats or the labels not integers.

    >>> focal(jnp.array([[2.0, 0.0]]), jnp.array([0]), gamma=0.0).round(4)
    Array([0.1269], dtype=float32)

    Lin et al., arXiv:1708.02002, eq. 4.
    """
    logits = real("logits", logits)
    within("gamma", gamma, 0, float("inf"))
    labels, bad = classes(logits, labels)
    log_p = log_chosen(logits, labels)  # [...]
    gamma = jnp.asarray(gamma).astype(log_p.dtype)
    miss = -jnp.expm1(log_p)  # 1 - p without cancellation
    some = miss > 0  # at p = 1 the power has no finite slope for gamma < 1
    fade = jnp.where(some, jnp.where(some, miss, 1) ** gamma, (gamma == 0).astype(log_p.dtype))
    return spoil(-fade * log_p, bad)


def hinge(scores, labels):
    """Distance by which a binary score misses a margin of 1.

    max(0, 1 - s z), with z the score, s = 1 for label 1 and s = -1 for label 0.

    Args:
      scores: [b] positive means class 1; other shapes [...] are taken element by element.
      labels: [b] (the shape of the scores) bool, or 0 and 1.

    Returns:
      [b] one loss per example (or [...] one per element).

    Raises:
      ValueError: if shapes differ, or a label is neither 0 nor 1 (when its value is known;
        otherwise the loss is NaN).
      TypeError: if the scores are not floats.

    >>> hinge(jnp.array([0.25, 3.0]), jnp.array([0, 1]))
    Array([1.25, 0.  ], dtype=float32)

    Cortes and Vapnik, Support-vector networks, 1995, eq. 20 to 22.
    """
    scores = real("scores", scores)
    same("hinge", scores=scores, labels=labels)
    known = concrete(labels)
    if known is not None and not ((known == 0) | (known == 1)).all():
        raise ValueError(
            f"labels run from {known.min()} to {known.max()}, expected 0 and 1; "
            "for labels -1 and 1 write (labels + 1) // 2"
        )
    labels = jnp.asarray(labels).astype(scores.dtype)
    bad = ~((labels == 0) | (labels == 1))
    loss = optax.hinge_loss(scores, jnp.where(bad, 0, 2 * labels - 1))
    return spoil(jnp.where(bad, scores, loss), bad)  # scores: a slope that is never cut off


def multiclass_hinge(logits, labels):
    """Distance by which the true class misses a margin of 1 over the best other class.

    max(0, 1 + max_{k != y} z_k - z_y), with z the logits and y the label.

    Args:
      logits: [... c] scores.
      labels: [...] integer classes 0 to c-1.

    Returns:
      [...] one loss per example; NaN for labels out of range, as in `cross_entropy`.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats or the labels not integers.

    >>> multiclass_hinge(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]))
    Array([0.5], dtype=float32)

    Crammer and Singer, On the algorithmic implementation of multiclass kernel-based vector
    machines, 2001, eq. 3.
    """
    logits = real("logits", logits)
    labels, bad = classes(logits, labels)
    hit = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool) | bad[..., None]  # NaN for all
    best = jnp.where(hit, logits, logits + 1).max(-1)
    return spoil(best - jnp.where(hit, logits, 0).sum(-1), bad)


def kl(logits, target_logits):
    """Kullback-Leibler divergence from the target's classes to the model's.

    sum_k t_k (log t_k - log p_k), with p and t the softmax of both; 0 where they agree.

    Args:
      logits: [... c] unnormalised scores of the model.
      target_logits: [... c] those of the target (a teacher). Gradients flow to them too: use
        `jax.lax.stop_gradient` if they should not.

    Returns:
      [...] one divergence per example.

    Raises:
      ValueError: if shapes differ.
      TypeError: if either is not a float.

    >>> kl(jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])).round(4)
    Array([0.3278], dtype=float32)

    Kullback and Leibler, On information and sufficiency, 1951, eq. 2.4.
    """
    logits, target_logits = real("logits", logits), real("target_logits", target_logits)
    same(logits=logits, target_logits=target_logits)
    if jnp.ndim(logits) == 0:
        raise ValueError("logits has shape (), expected (... c): classes in the last axis")
    log_p, log_t = jax.nn.log_softmax(logits), jax.nn.log_softmax(target_logits)
    log_t = log_t.astype(log_p.dtype)
    t = jnp.exp(log_t)
    return (t * jnp.where(t == 0, 0, log_t - log_p)).sum(-1)  # 0 log 0 = 0
