"""Losses of regions: one value per image from all its pixels.

Two forms: one logit per pixel [b ...] for two classes, and [b ... c] for c classes. `...` are the
axes of the image: h w, or any others. Pixels whose mask is 0 (void) may hold anything.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, real, seen
from nnkit.losses.inputs import classes, spoil, within

__all__ = ["dice", "lovasz_hinge", "lovasz_softmax", "soft_iou"]


def dice(logits, labels, mask=None, *, smooth=1.0):
    """One minus the soft Dice coefficient of an image, averaged over the classes.

    1 - (2 sum_i p_i y_i + smooth) / (sum_i p_i + sum_i y_i + smooth), with p the sigmoid or the
    softmax of the logits; all classes count, the background too, and those absent from the image.

    Args:
      logits: [b h w] scores of class 1, or [b h w c] scores of c classes.
      labels: [b h w] bool or 0 and 1, or integer classes 0 to c-1.
      mask: [b h w] 0 for void, or weights of the pixels; None counts all.
      smooth: added above and below, at least 0; it decides what an absent class costs. With 0 a
        class without pixels and probability costs nothing.

    Returns:
      [b] one loss per image, from 0 to 1; NaN for a traced label that is no class.

    Raises:
      ValueError: if shapes disagree, a known label that counts is out of range, or smooth is
        negative.
      TypeError: if the logits are not floats, or the labels of [b h w c] no integers.

    >>> logits = jnp.array([[[9.0, -9.0]], [[9.0, 9.0]]])
    >>> dice(logits, jnp.array([[[1, 0]], [[1, 0]]]), smooth=0.0).round(3)
    Array([0.   , 0.333], dtype=float32)

    Drozdzal et al., arXiv:1608.04117, section 2; Milletari et al., arXiv:1606.04797, have squares
    below.
    """
    p, y, weight, bad = _pixels(logits, labels, mask)
    within("smooth", smooth, 0, float("inf"))
    both, either = (weight * p * y).sum(1), (weight * (p + y)).sum(1)  # [b c]
    return spoil((1 - _share(2 * both, either, smooth)).mean(-1), bad)


def soft_iou(logits, labels, mask=None, *, smooth=1.0):
    """One minus the soft intersection over union of an image, averaged over the classes.

    1 - (I + smooth) / (U + smooth), with I = sum_i p_i y_i and U = sum_i p_i + sum_i y_i - I.

    Args:
      logits: [b h w] scores of class 1, or [b h w c] scores of c classes.
      labels: [b h w] bool or 0 and 1, or integer classes 0 to c-1.
      mask: [b h w] 0 for void, or weights of the pixels; None counts all.
      smooth: added above and below, at least 0, as in `dice`.

    Returns:
      [b] one loss per image, from 0 to 1; NaN for a traced label that is no class.

    Raises:
      ValueError: as in `dice`.
      TypeError: as in `dice`.

    >>> logits = jnp.array([[[9.0, -9.0]], [[9.0, 9.0]]])
    >>> soft_iou(logits, jnp.array([[[1, 0]], [[1, 0]]]), smooth=0.0).round(3)
    Array([0. , 0.5], dtype=float32)

    Rahman & Wang 2016, doi:10.1007/978-3-319-50835-1_22, eq. 3.
    """
    p, y, weight, bad = _pixels(logits, labels, mask)
    within("smooth", smooth, 0, float("inf"))
    both = (weight * p * y).sum(1)  # [b c]
    union = (weight * (p + y - p * y)).sum(1)
    return spoil((1 - _share(both, union, smooth)).mean(-1), bad)


def lovasz_hinge(logits, labels, mask=None):
    """The convex extension of one minus IoU, of hinge errors: two classes, one logit per pixel.

    sum_i max(0, e_(i)) g_i over the errors e = 1 - z s in falling order (s = 1 for label 1, -1
    for 0), with g_i how much the Jaccard loss grows when pixel i is added to the wrong ones.

    Args:
      logits: [b h w] scores of class 1.
      labels: [b h w] bool, or 0 and 1.
      mask: [b h w] 0 for void; None counts all.

    Returns:
      [b] one loss per image, at least 0; NaN for a traced label that is neither 0 nor 1.

    Raises:
      ValueError: if shapes differ or a known label that counts is neither 0 nor 1.
      TypeError: if the logits are not floats.

    >>> lovasz_hinge(jnp.array([[[2.0, -0.5, 0.0]]]), jnp.array([[[1, 0, 0]]])).round(3)
    Array([0.583], dtype=float32)

    Berman et al., arXiv:1705.08790, eq. 12 and algorithm 1.
    """
    logits = real("logits", logits)
    if np.shape(labels) != logits.shape or logits.ndim < 2:
        raise ValueError(
            f"lovasz_hinge: logits has shape {logits.shape} and labels {np.shape(labels)}, "
            "expected the same (b h w); for [b h w c] use lovasz_softmax"
        )
    _, y, weight, bad = _pixels(logits, labels, mask)
    kept = weight[..., 0] > 0  # [b n]
    z = jnp.where(kept, logits.reshape(kept.shape), 0)
    errors = jax.nn.relu(1 - z * (2 * y[..., 0] - 1))
    return spoil(jax.vmap(_extended)(errors, jnp.where(kept, y[..., 0], 0), kept), bad)


def lovasz_softmax(logits, labels, mask=None):
    """The convex extension of one minus IoU, of probabilities: the mean over classes present.

    For each class c in the labels of the image: sum_i e_(i) g_i over the errors e = |y_c - p_c|
    in falling order, with g_i as in `lovasz_hinge`.

    Args:
      logits: [b h w c] scores.
      labels: [b h w] integer classes 0 to c-1.
      mask: [b h w] 0 for void; None counts all. An image that is all void has loss 0.

    Returns:
      [b] one loss per image, from 0 to 1; NaN for a traced label that is no class.

    Raises:
      ValueError: if shapes disagree or a known label that counts is out of range.
      TypeError: if the logits are not floats or the labels not integers.

    >>> logits = jnp.log(jnp.array([[[[0.8, 0.2], [0.4, 0.6]]]]))
    >>> lovasz_softmax(logits, jnp.array([[[0, 1]]])).round(2)
    Array([0.35], dtype=float32)

    Berman et al., arXiv:1705.08790, eq. 9 and 11.
    """
    logits = real("logits", logits)
    if np.shape(labels) != logits.shape[:-1] or logits.ndim < 3:
        raise ValueError(
            f"lovasz_softmax: logits has shape {logits.shape} and labels {np.shape(labels)}, "
            "expected (b h w c) and (b h w); for one logit per pixel use lovasz_hinge"
        )
    p, y, weight, bad = _pixels(logits, labels, mask)
    kept = weight > 0  # [b n 1]
    errors, y = jnp.where(y > 0, 1 - p, p), jnp.where(kept, y, 0)  # |y - p| [b n c]
    over_classes = jax.vmap(_extended, in_axes=(1, 1, None))
    each = jax.vmap(over_classes)(errors, y, kept[..., 0])  # [b c]
    present = y.sum(1) > 0
    number = jnp.maximum(present.sum(-1), 1).astype(each.dtype)
    return spoil(jnp.where(present, each, 0).sum(-1) / number, bad)


def _extended(errors, y, kept):
    """The Lovasz extension of the Jaccard loss at errors [n], for the region y [n] of 0 and 1."""
    order = jnp.argsort(-jax.lax.stop_gradient(errors))
    y, kept = y[order], kept[order].astype(y.dtype)
    inside = y.sum() - jnp.cumsum(y)
    union = y.sum() + jnp.cumsum(kept - y)
    loss = jnp.where(union > 0, 1 - inside / jnp.where(union > 0, union, 1), 0)
    growth = jnp.diff(loss, prepend=jnp.zeros_like(loss[:1]))
    return (errors[order] * growth).sum()


def _share(above, below, smooth):
    """(above + smooth) / (below + smooth); 0 / 0 is 1."""
    smooth = jnp.asarray(smooth).astype(above.dtype)
    some = below + smooth > 0
    return jnp.where(some, (above + smooth) / jnp.where(some, below + smooth, 1), 1)


def _pixels(logits, labels, mask):
    """Probabilities [b n c], truth [b n c], weights [b n 1], images with a wrong label [b]."""
    logits, shape = real("logits", logits), np.shape(labels)
    if logits.ndim < 2 or shape not in (logits.shape, logits.shape[:-1]) or len(shape) < 2:
        raise ValueError(
            f"logits has shape {logits.shape} and labels {shape}, expected (b h w c) and (b h w), "
            "or (b h w) for both with one logit per pixel"
        )
    b, n = shape[0], math.prod(shape[1:])
    if mask is not None:
        if np.shape(mask) != shape:
            raise ValueError(f"mask has shape {np.shape(mask)}, expected {shape}, from labels")
        labels = seen(labels, mask)
    kept = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    kept = kept.astype(logits.dtype).reshape(b, n, 1)
    if shape == logits.shape:
        labels, bad = _bits(labels)
        labels, squash = labels.astype(logits.dtype), jax.nn.sigmoid
    else:
        labels, bad = classes(logits, labels)
        labels, squash = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), _softmax
    p = squash(jnp.where(kept != 0, logits.reshape(b, n, -1), 0))
    return p, labels.reshape(b, n, -1), kept, bad.reshape(b, n).any(-1)


def _softmax(x):
    return jax.nn.softmax(x, axis=-1)


def _bits(labels):
    """Which labels [...] are 1, and which are neither 0 nor 1."""
    known = concrete(labels)
    if known is not None and not ((known == 0) | (known == 1)).all():
        raise ValueError(
            f"labels run from {known.min()} to {known.max()}, expected 0 and 1 for one logit per "
            "pixel: give a mask that is 0 for void, or logits [b h w c] for more classes"
        )
    labels = jnp.asarray(labels)
    labels = labels.astype(jnp.int32) if labels.dtype == bool else labels
    return labels == 1, ~((labels == 0) | (labels == 1))
