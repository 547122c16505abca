"""Metrics of classes. Per-example values to be averaged, and functions of the whole table.

Ties go to the class with the lower index. A label that no class has is an error where its value
is known and NaN where it is being traced.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import dims, real
from nnkit.metrics.inputs import binary, classes, masked, or_nan, weights

__all__ = [
    "accuracy",
    "confusion",
    "confusion_matrix",
    "f1",
    "precision",
    "recall",
    "top_k",
]


def accuracy(logits, labels):
    """1 where the largest logit is the true class, else 0.

    [argmax_k z_k = y]; NaN logits are wrong, whatever the label.

    Args:
      logits: [... c] scores, or [b] scores of class 1 in a binary problem (predicted if > 0).
      labels: [...] integer classes, or [... c] soft labels, whose largest counts; for binary
        logits [b] the labels [b] are bool, or 0 and 1.

    Returns:
      [...] float32, 0 or 1. Its mean is the accuracy.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> accuracy(jnp.array([[0.1, 2.0], [1.0, 0.0]]), jnp.array([1, 1]))
    Array([1., 0.], dtype=float32)

    Fawcett, An introduction to ROC analysis, 2006, figure 1.
    """
    if np.ndim(logits) == 1 and np.ndim(labels):
        logits, true, bad = binary("logits", logits, labels)
        right = ((logits > 0) == true) & ~jnp.isnan(logits)
        return or_nan(right.astype(jnp.float32), bad)
    return top_k(logits, labels, k=1)


def top_k(logits, labels, *, k=5):
    """1 where the true class is among the k largest logits, else 0.

    [#{j: z_j > z_y} + #{j < y: z_j = z_y} < k]; NaN logits are wrong, whatever the label.

    Args:
      logits: [... c] scores.
      labels: [...] integer classes, or [... c] soft labels, whose largest counts.
      k: how many guesses are allowed, 1 to c.

    Returns:
      [...] float32, 0 or 1. Its mean is the top-k accuracy.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or k is not in 1 to c.
      TypeError: if the logits are not floats, the labels not integers, or k not an int.

    >>> top_k(jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), jnp.array([1, 2]), k=2)
    Array([1., 0.], dtype=float32)

    Russakovsky et al., arXiv:1409.0575, section 4.1 (k = 5).
    """
    logits = real("logits", logits)
    true, bad = classes(logits, labels)
    c = logits.shape[-1]
    if not 1 <= operator.index(k) <= c:
        raise ValueError(
            f"k is {k}, expected 1 to {c}, as logits have {c} classes; k=1 is accuracy"
        )
    place = jnp.broadcast_to(jnp.arange(c, dtype=jnp.int32), logits.shape)
    hit = place == true[..., None]
    score = jnp.where(hit, logits, 0).sum(-1, keepdims=True)  # [... 1]
    ahead = (logits > score) | ((logits == score) & (place < true[..., None]))
    right = (ahead.sum(-1) < k) & ~jnp.isnan(logits).any(-1)
    return or_nan(right.astype(jnp.float32), bad)


def confusion(logits, labels):
    """One example as a table with a single 1: row the true class, column the predicted one.

    The mean over examples is the joint frequency table that `precision`, `recall` and `f1` take.

    Args:
      logits: [... c] scores.
      labels: [...] integer classes, or [... c] soft labels, whose largest counts.

    Returns:
      [... c c] float32. NaN logits have no column: their table is NaN.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats, or labels [...] are not integers.

    >>> confusion(jnp.array([[0.0, 2.0]]), jnp.array([0]))
    Array([[[0., 1.],
            [0., 0.]]], dtype=float32)

    Pearson, On the theory of contingency, 1904 (the table of two attributes).
    """
    logits = real("logits", logits)
    true, bad = classes(logits, labels)
    c, none = logits.shape[-1], jnp.isnan(logits).any(-1)
    row = jax.nn.one_hot(true, c, dtype=jnp.float32)[..., :, None]
    column = jax.nn.one_hot(logits.argmax(-1), c, dtype=jnp.float32)[..., None, :]
    return or_nan(row * column, none if bad is None else none | bad)


def confusion_matrix(logits, labels, *, mask=None):
    """How often each true class (row) was taken for each class (column).

    The sum of `confusion` over the examples, without its memory.

    Args:
      logits: [b c] scores.
      labels: [b] integer classes, or [b c] soft labels, whose largest counts.
      mask: [b] weights, 0 for padding; None counts all.

    Returns:
      [c c] float32 counts, exact up to 2**24 per cell. NaN everywhere if any logit that counts
      is NaN.

    Raises:
      ValueError: if shapes disagree or a known label is out of range.
      TypeError: if the logits are not floats, or labels [b] are not integers.

    >>> confusion_matrix(jnp.array([[0.0, 2.0], [0.0, 1.0]]), jnp.array([0, 1]))
    Array([[0., 1.],
           [0., 1.]], dtype=float32)

    Pearson, On the theory of contingency, 1904.
    """
    logits = real("logits", logits)
    weight = weights(mask, dims("b c", logits=logits).b)
    labels = masked(labels, mask)
    true, bad = classes(logits, labels)
    none = jnp.isnan(logits).any(-1)
    none = (none if bad is None else none | bad) & (weight != 0)
    table = jnp.zeros((logits.shape[-1],) * 2, jnp.float32)
    table = table.at[true, logits.argmax(-1).astype(jnp.int32)].add(weight, mode="drop")
    return or_nan(table, none.any())


def precision(table, *, average="macro"):
    """Share of the examples taken for a class that are of that class.

    n_kk / sum_i n_ik; a class never predicted has 0.

    Args:
      table: [... c c] counts or frequencies, rows true and columns predicted, as the mean of
        `confusion` or a `confusion_matrix`.
      average: "macro" for the mean over classes, "weighted" by their true counts, "micro" over
        all examples, None for one value per class.

    Returns:
      [...] float32, or [... c] for average=None.

    Raises:
      ValueError: if the table is not square or the average unknown.

    >>> precision(jnp.array([[3.0, 1.0], [0.0, 1.0]]), average=None)
    Array([1. , 0.5], dtype=float32)

    van Rijsbergen, Information Retrieval, 1979, chapter 7.
    """
    hits, true, taken = _counts(table)
    return _average(hits, taken, true, average)


def recall(table, *, average="macro"):
    """Share of the examples of a class that are taken for it.

    n_kk / sum_j n_kj; a class without examples has 0.

    Args:
      table: [... c c] counts or frequencies, rows true and columns predicted.
      average: "macro", "weighted", "micro" or None, as in `precision`.

    Returns:
      [...] float32, or [... c] for average=None.

    Raises:
      ValueError: if the table is not square or the average unknown.

    >>> recall(jnp.array([[3.0, 1.0], [0.0, 1.0]]), average=None)
    Array([0.75, 1.  ], dtype=float32)

    van Rijsbergen, Information Retrieval, 1979, chapter 7.
    """
    hits, true, _ = _counts(table)
    return _average(hits, true, true, average)


def f1(table, *, average="macro"):
    """Harmonic mean of precision and recall.

    2 n_kk / (sum_i n_ik + sum_j n_kj); a class neither present nor predicted has 0.

    Args:
      table: [... c c] counts or frequencies, rows true and columns predicted.
      average: "macro", "weighted", "micro" or None, as in `precision`; the mean is over the F1 of
        the classes.

    Returns:
      [...] float32, or [... c] for average=None.

    Raises:
      ValueError: if the table is not square or the average unknown.

    >>> f1(jnp.array([[3.0, 1.0], [0.0, 1.0]]), average="micro")
    Array(0.8, dtype=float32)

    van Rijsbergen, Information Retrieval, 1979, chapter 7 (1 - E at alpha = 1/2).
    """
    hits, true, taken = _counts(table)
    return _average(2 * hits, true + taken, true, average)


def _counts(table):
    """Diagonal [... c], row sums [... c] and column sums [... c]."""
    dims("... c c", table=table)
    table = jnp.asarray(table)
    table = table if table.dtype == jnp.float64 else table.astype(jnp.float32)
    return jnp.diagonal(table, axis1=-2, axis2=-1), table.sum(-1), table.sum(-2)


def _average(above, below, true, average):
    """above / below [... c], averaged; 0 / 0 is 0."""
    if average == "micro":
        return _ratio(above.sum(-1), below.sum(-1))
    if average is None:
        return _ratio(above, below)
    if average == "macro":
        return _ratio(above, below).mean(-1)
    if average == "weighted":
        return _ratio((_ratio(above, below) * true).sum(-1), true.sum(-1))
    raise ValueError(f'average is {average!r}, expected None, "macro", "micro" or "weighted"')


def _ratio(above, below):
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))
