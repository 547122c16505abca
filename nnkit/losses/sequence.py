"""Losses of sequences: tokens under a mask, and labels whose alignment is unknown (CTC).

A masked place may hold anything (-100, NaN): it touches neither value nor gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, dims, real, seen
from nnkit.core.means import Mean
from nnkit.losses.classify import cross_entropy
from nnkit.losses.inputs import spoil, within

__all__ = ["ctc", "sequence_cross_entropy", "z_loss"]


def sequence_cross_entropy(logits, labels, mask=None, *, smoothing=0.0, z_loss=0.0):
    """Cross-entropy of every token, as totals and token counts per example.

    sum_t m_t (-log softmax(logits_t)[y_t] + z_loss log^2 Z_t), with Z_t = sum_k exp(logits_tk).
    `supervised` adds totals and weights over the batch, so that every token counts the same,
    whatever the lengths; the average of per-example averages is another number.

    Args:
      logits: [b t v] unnormalised scores.
      labels: [b t] token ids 0 to v-1; anything (also -100) where the mask is 0.
      mask: [b t] 1 or True for tokens that count, or their weights; None counts all.
      smoothing: share of the label spread over all tokens, 0 <= smoothing < 1.
      z_loss: weight of `z_loss` at each token, at least 0; 1e-4 in PaLM.

    Returns:
      `Mean` of totals [b] and weights [b]. A traced id outside 0 to v-1 that counts gives NaN.

    Raises:
      ValueError: if shapes disagree, a known id that counts is out of range, or smoothing or
        z_loss is.
      TypeError: if the logits are not floats or the labels not integers.

    >>> logits = jnp.array([[[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]]])
    >>> mean = sequence_cross_entropy(logits, jnp.array([[0, 1, -100]]), jnp.array([[1, 1, 0]]))
    >>> round(float(mean.total[0]), 4), float(mean.weight[0])  # log(1 + e^-2) + log 2
    (0.8201, 2.0)

    Chowdhery et al., arXiv:2204.02311, section 5; smoothing: Szegedy et al., arXiv:1512.00567.
    """
    logits = real("logits", logits)
    dims("b t _, b t", logits=logits, labels=labels)
    known = concrete(labels) if mask is None else None
    if known is not None and known.size and known.min() < 0:
        raise ValueError(
            f"labels run from {known.min()} to {known.max()} and there is no mask; to leave out "
            'places give mask=(labels != -100), or a field of the batch: y=("labels", '
            '"label_mask")'
        )
    within("z_loss", z_loss, 0, float("inf"))
    if mask is not None:
        dims("b t, b t", labels=labels, mask=mask)
        labels, logits = seen(labels, mask), _only(logits, mask)
    each = cross_entropy(logits, labels, smoothing=smoothing)  # [b t]
    if isinstance(z_loss, jax.Array) or z_loss != 0:
        each = each + jnp.asarray(z_loss).astype(each.dtype) * _log_z(logits) ** 2
    mask = jnp.ones_like(each) if mask is None else jnp.asarray(mask).astype(each.dtype)
    return Mean((each * mask).sum(-1), mask.sum(-1))


def z_loss(logits):
    """Square of the log of the softmax's denominator: keeps logits from drifting together.

    log^2 Z, with Z = sum_k exp(logits_k).

    Args:
      logits: [... v] unnormalised scores.

    Returns:
      [...] one value per place; times 1e-4 in PaLM, 1e-3 for routers.

    Raises:
      TypeError: if the logits are not floats.
      ValueError: if they have no axis of classes.

    >>> z_loss(jnp.array([[0.0, 0.0], [5.0, -5.0]])).round(2)
    Array([ 0.48, 25.  ], dtype=float32)

    Chowdhery et al., arXiv:2204.02311, section 5; Zoph et al., arXiv:2202.08906, eq. 5.
    """
    logits = real("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits has shape (), expected (... v): classes in the last axis")
    return _log_z(logits) ** 2


def ctc(logits, labels, logit_mask=None, label_mask=None, *, blank=0):
    """Minus the log-probability of the labels, summed over all alignments to the frames.

    -log sum_{a in B^-1(y)} prod_t p_t(a_t): B merges repeats, then takes the blanks away. By the
    forward recursion in log space; exact for any logits (no large number stands for log 0).

    Args:
      logits: [b t v] unnormalised scores of each frame.
      labels: [b l] ids 0 to v-1 without the blank; anything where the label mask is 0.
      logit_mask: [b t] 1 or True for frames that are real; None takes all.
      label_mask: [b l] 1 or True for labels that are real, these first; None takes all.
      blank: the id of the blank.

    Returns:
      [b] one loss per example. Too few frames for the labels (each repeated label needs one more,
      for the blank between) is an error where it is known; while it is being traced the loss is
      what it is, infinite, and its gradient NaN. A traced label that is none gives NaN.

    Raises:
      ValueError: if shapes disagree, blank is no class, a known label is out of range or the
        blank, a known label mask has a hole, or an example has too few frames.
      TypeError: if the logits are not floats or the labels not integers.

    >>> ctc(jnp.zeros((1, 2, 3)), jnp.array([[1]])).round(4)  # 11, 01 and 10 of 9 strings
    Array([1.0986], dtype=float32)

    Graves et al. 2006, doi:10.1145/1143844.1143891, eq. 6 to 8.
    """
    logits = real("logits", logits)
    size = dims("b t v, b _", logits=logits, labels=labels)
    if not 0 <= blank < size.v:
        raise ValueError(f"blank is {blank}, but the logits have {size.v} classes")
    if logit_mask is None:
        logit_mask = np.ones((size.b, size.t), bool)
    if label_mask is None:
        label_mask = np.ones(np.shape(labels), bool)
    dims("b t _, b t", logits=logits, logit_mask=logit_mask)
    dims("b l, b l", labels=labels, label_mask=label_mask)
    symbols, bad = _symbols(labels, label_mask, size.v, blank)
    _alignable(labels, label_mask, logit_mask)
    frames = jnp.asarray(logit_mask).astype(bool)
    log_p = jax.nn.log_softmax(_only(logits, frames))
    total = _forward(log_p, symbols, jnp.asarray(label_mask).astype(bool), frames, blank)
    never = jnp.isneginf(total)
    loss = jnp.where(never, -log_p[..., blank].sum(-1), -total)  # a slope that is never cut off
    impossible = jnp.where(never, jnp.inf, 0).astype(loss.dtype)
    return spoil(_nan_slope(loss, never) + impossible, bad)


def _only(logits, mask):
    """Logits [b t v], 0 where the mask [b t] is 0: NaN there would pass through a product by 0."""
    return jnp.where(jnp.asarray(mask).astype(bool)[..., None], logits, jnp.zeros_like(logits))


def _log_z(logits):
    return jax.nn.logsumexp(logits, axis=-1)


def _nan_slope(loss, bad):
    """The loss, 0 with the slope NaN where `bad` (g * huge * huge * 0)."""
    one, zero = jnp.ones((), loss.dtype), jnp.zeros((), loss.dtype)
    huge = jnp.where(bad, jnp.finfo(loss.dtype).max.astype(loss.dtype), one)
    return loss * jnp.where(bad, zero, one) * huge * huge


def _symbols(labels, mask, v, blank):
    """Labels [b l] as int32 classes, and which examples [b] have one that is none."""
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"labels is {dtype}, expected integers; write labels.astype(int)")
    labels = seen(labels, mask)
    known, kept = concrete(labels), concrete(mask)
    if known is not None and kept is not None:
        some = known[kept != 0]
        if some.size and (some.min() < 0 or some.max() >= v):
            raise ValueError(
                f"labels run from {some.min()} to {some.max()}, but the logits have {v} classes "
                f"(0..{v - 1}, blank included); give a label_mask that is 0 for padding"
            )
        if (some == blank).any():
            raise ValueError(
                f"labels hold {blank}, which is the blank; give a label_mask that is 0 for "
                "padding, shift the labels by 1, or name another blank"
            )
        if (np.diff((kept != 0).astype(int), axis=1) > 0).any():
            raise ValueError("label_mask has a hole, expected ones first and then zeros in a row")
    labels, mask = jnp.asarray(labels), jnp.asarray(mask).astype(bool)
    bad = (mask & ((labels < 0) | (labels >= v) | (labels == blank))).any(-1)
    bad = bad | (mask[:, 1:] & ~mask[:, :-1]).any(-1)
    return jnp.clip(labels, 0, v - 1).astype(jnp.int32), bad


def _alignable(labels, label_mask, logit_mask):
    """Enough frames for the labels and for a blank between equal ones, where that is known."""
    labels, kept, frames = (concrete(x) for x in (labels, label_mask, logit_mask))
    if labels is None or kept is None or frames is None:
        return
    kept, have = kept != 0, (frames != 0).sum(-1)
    equal = (labels[:, 1:] == labels[:, :-1]) & kept[:, 1:]
    for i, (n, again) in enumerate(zip(kept.sum(-1), equal.sum(-1), strict=True)):
        if n + again > have[i]:
            raise ValueError(
                f"example {i} has {have[i]} frames for {n} labels with {again} repeats, expected "
                f"at least {n + again}: no alignment has a probability above 0; leave it out, or "
                "let the model keep more frames"
            )


def _forward(log_p, labels, kept, frames, blank):
    """Log-probability [b] of all alignments. States: blank, label, blank, ..., label, blank."""
    b, n = labels.shape
    states = jnp.full((b, 2 * n + 1), blank, jnp.int32).at[:, 1::2].set(labels)
    emit = jnp.take_along_axis(log_p, states[:, None, :], axis=-1, mode="clip")  # [b t 2n+1]
    hop = jnp.zeros((b, 2 * n + 1), bool)  # over the blank, between labels that differ
    hop = hop.at[:, 3::2].set(labels[:, 1:] != labels[:, :-1])
    never = jnp.full((b, 2), -jnp.inf, log_p.dtype)
    start = jnp.full((b, 2 * n + 1), -jnp.inf, log_p.dtype).at[:, 0].set(0)

    def move(alpha, now):
        score, real_frame = now
        before = jnp.concatenate([never, alpha], axis=1)
        two = jnp.where(hop, before[:, :-2], -jnp.inf)
        reached = _log_add(alpha, before[:, 1:-1], two) + score
        return jnp.where(real_frame[:, None], reached, alpha), None

    alpha, _ = jax.lax.scan(move, start, (emit.swapaxes(0, 1), frames.swapaxes(0, 1)))
    end = 2 * kept.sum(-1, dtype=jnp.int32)[:, None]
    last = jnp.take_along_axis(alpha, end, axis=1, mode="clip")[:, 0]
    before = jnp.take_along_axis(alpha, jnp.maximum(end - 1, 0), axis=1, mode="clip")[:, 0]
    return _log_add(last, jnp.where(end[:, 0] > 0, before, -jnp.inf))


def _log_add(*terms):
    """log sum exp of arrays of one shape; -inf is 0, in the gradient too."""
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
    top = jnp.where(jnp.isneginf(top), 0, top)
    total = sum(jnp.exp(term - top) for term in terms)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)
