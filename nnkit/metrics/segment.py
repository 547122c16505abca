"""Metrics of regions, from one confusion table of all pixels of all images.

Average the table, then read it: the mean over images of their IoU is another number, in which a
class of three pixels in one image weighs as much as that of a whole other image.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import dims, real, seen
from nnkit.core.means import Mean
from nnkit.metrics.inputs import classes, or_nan

__all__ = ["dice", "iou", "mean_iou", "pixel_confusion"]


def pixel_confusion(logits, labels, mask=None):
    """Counts of (true class, predicted class) over the pixels of each image.

    As a metric of `supervised` it accumulates over images and batches to the joint frequency of
    all pixels, each counting the same; `iou`, `dice` and `mean_iou` read that table.

    Args:
      logits: [b h w c] scores, or [b h w] scores of class 1 of 2 (predicted if > 0); any other
        axes in place of h w.
      labels: [b h w] integer classes, or bool or 0 and 1; anything where the mask is 0.
      mask: [b h w] 0 for void pixels, which count nowhere; None counts all.

    Returns:
      `Mean` of totals [b c c], rows true and columns predicted, and weights [b], the pixels that
      count. Exact up to 2**24 pixels per image and cell; NaN logits that count make it NaN.

    Raises:
      ValueError: if shapes disagree or a known label that counts is out of range.
      TypeError: if the logits are not floats or the labels not integers.

    >>> logits = jnp.array([[[3.0, -3.0], [3.0, 3.0]]])
    >>> labels, mask = jnp.array([[[1, 0], [0, 255]]]), jnp.array([[[1, 1], [1, 0]]])
    >>> mean = pixel_confusion(logits, labels, mask)
    >>> mean.total[0], mean.weight
    (Array([[1., 1.],
           [0., 1.]], dtype=float32), Array([3.], dtype=float32))

    Everingham et al. 2010, doi:10.1007/s11263-009-0275-4, section 4.3.
    """
    logits, shape = real("logits", logits), np.shape(labels)
    if shape not in (logits.shape, logits.shape[:-1]) or len(shape) < 2:
        raise ValueError(
            f"logits has shape {logits.shape} and labels {shape}, expected (b h w c) and (b h w), "
            "or (b h w) for both with one logit per pixel"
        )
    if shape == logits.shape:  # two classes, the other one has score 0
        logits = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
        labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
        labels = labels.astype(np.int32) if labels.dtype == bool else labels
    kept = jnp.ones(shape, bool)
    if mask is not None:
        if np.shape(mask) != shape:
            raise ValueError(f"mask has shape {np.shape(mask)}, expected {shape}, from labels")
        labels, kept = seen(labels, mask), jnp.asarray(mask).astype(bool)
    true, bad = classes(logits, labels)
    bad = jnp.isnan(logits).any(-1) if bad is None else bad | jnp.isnan(logits).any(-1)
    flat = (shape[0], math.prod(shape[1:]))
    hot = lambda k: jax.nn.one_hot(k.reshape(flat), logits.shape[-1], dtype=jnp.float32)
    weight = kept.reshape(flat).astype(jnp.float32)
    table = jnp.einsum("bni,bnj->bij", hot(true) * weight[..., None], hot(logits.argmax(-1)))
    return Mean(or_nan(table, (bad & kept).reshape(flat).any(-1)), weight.sum(-1))


def iou(table):
    """Intersection over union of each class, over all pixels.

    n_kk / (sum_j n_kj + sum_i n_ik - n_kk).

    Args:
      table: [... c c] counts or frequencies of pixels, rows true and columns predicted, added
        over all images; void pixels must not be in it.

    Returns:
      [... c] float32; NaN for a class that is neither there nor predicted.

    Raises:
      ValueError: if the table is not square.

    >>> iou(jnp.array([[3.0, 1.0], [0.0, 4.0]]))
    Array([0.75, 0.8 ], dtype=float32)

    Everingham et al. 2010, doi:10.1007/s11263-009-0275-4, section 4.3.
    """
    hits, true, taken = _counts(table)
    return _ratio(hits, true + taken - hits)


def dice(table):
    """The Dice coefficient of each class (its F1), over all pixels.

    2 n_kk / (sum_j n_kj + sum_i n_ik) = 2 IoU / (1 + IoU).

    Args:
      table: [... c c] counts or frequencies of pixels, as for `iou`.

    Returns:
      [... c] float32; NaN for a class that is neither there nor predicted.

    Raises:
      ValueError: if the table is not square.

    >>> dice(jnp.array([[3.0, 2.0], [0.0, 3.0]]))
    Array([0.75, 0.75], dtype=float32)

    Dice 1945, doi:10.2307/1932409.
    """
    hits, true, taken = _counts(table)
    return _ratio(2 * hits, true + taken)


def mean_iou(table):
    """IoU averaged over the classes that are there or predicted.

    Args:
      table: [... c c] counts or frequencies of pixels, as for `iou`.

    Returns:
      [...] float32; NaN for an empty table.

    Raises:
      ValueError: if the table is not square.

    >>> mean_iou(jnp.array([[3.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    Array(0.775, dtype=float32)

    Cordts et al., arXiv:1604.01685, section 4.1.
    """
    each = iou(table)
    there = ~jnp.isnan(each)
    return _ratio(jnp.where(there, each, 0).sum(-1), there.sum(-1).astype(each.dtype))


def _counts(table):
    """Diagonal [... c], row sums [... c] and column sums [... c]."""
    dims("... c c", table=table)
    table = jnp.asarray(table)
    table = table if table.dtype == jnp.float64 else table.astype(jnp.float32)
    return jnp.diagonal(table, axis1=-2, axis2=-1), table.sum(-1), table.sum(-2)


def _ratio(above, below):
    """above / below; NaN where below is 0."""
    return jnp.where(below == 0, jnp.nan, above / jnp.where(below == 0, 1, below))
