"""Losses of the angle between embeddings and class centres: faces, speakers, retrieval.

Embeddings need not have length 1: cosines are taken here. An embedding of length 0 has cosine 0
with everything, and every slope stays finite at equal and opposite vectors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnkit.core.checks import dims, positive, real
from nnkit.losses.classify import cross_entropy
from nnkit.losses.inputs import classes, within

__all__ = ["arcface", "cosface", "cosines", "normalised_softmax"]


def cosines(embeddings, weights):
    """Cosine of every embedding with every class centre: the scores of the three losses below.

    c_ik = x_i w_k / (|x_i| |w_k|).

    Args:
      embeddings: [b d].
      weights: [d c] one column per class.

    Returns:
      [b c] from -1 to 1; their largest is the prediction.

    Raises:
      ValueError: if shapes disagree.
      TypeError: if an input is not floats.

    >>> cosines(jnp.array([[3.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 5.0]]))
    Array([[1., 0.]], dtype=float32)

    Wang et al., arXiv:1704.06369, section 3.
    """
    embeddings, weights = real("embeddings", embeddings), real("weights", weights)
    dims("b d, d c", embeddings=embeddings, weights=weights)
    return unit(embeddings) @ unit(weights, axis=0)


def normalised_softmax(embeddings, weights, labels, *, scale=64.0):
    """Cross-entropy of cosines: neither the length of embeddings nor that of centres helps.

    -log exp(s cos_y) / sum_k exp(s cos_k).

    Args:
      embeddings: [b d].
      weights: [d c] one column per class.
      labels: [b] integer classes 0 to c-1.
      scale: s, above 0.

    Returns:
      [b] one loss per example; NaN for labels out of range, as in `cross_entropy`.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or the scale not above 0.
      TypeError: if an input is not floats, or the labels not integers.

    >>> normalised_softmax(jnp.array([[5.0, 0.0]]), jnp.eye(2), jnp.array([0]), scale=2.0).round(4)
    Array([0.1269], dtype=float32)

    Wang et al., arXiv:1704.06369, eq. 6.
    """
    positive(scale=scale)
    cosine = cosines(embeddings, weights)
    return cross_entropy(cosine * jnp.asarray(scale).astype(cosine.dtype), labels)


def cosface(embeddings, weights, labels, *, margin=0.35, scale=64.0):
    """The normalised softmax with the cosine of the true class lowered by a margin.

    -log exp(s (cos_y - m)) / (exp(s (cos_y - m)) + sum_{k != y} exp(s cos_k)). margin = 0 is
    `normalised_softmax`.

    Args:
      embeddings: [b d].
      weights: [d c] one column per class.
      labels: [b] integer classes 0 to c-1.
      margin: m, at least 0.
      scale: s, above 0.

    Returns:
      [b] one loss per example; NaN for labels out of range, as in `cross_entropy`.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or a knob is.
      TypeError: if an input is not floats, or the labels not integers.

    >>> x = jnp.array([[5.0, 0.0]])
    >>> loss = cosface(x, jnp.eye(2), jnp.array([0]), margin=0.5, scale=2.0)  # 2 (1 - 0.5) = 1
    >>> round(float(loss[0]), 4)
    0.3133

    Wang et al., arXiv:1801.09414, eq. 4.
    """
    within("margin", margin, 0, float("inf"))

    def lower(cosine, _):
        return cosine - jnp.asarray(margin).astype(cosine.dtype)

    return _with_margin(embeddings, weights, labels, lower, scale)


def arcface(embeddings, weights, labels, *, margin=0.5, scale=64.0):
    """The normalised softmax with the angle to the true class widened by a margin.

    -log exp(s phi) / (exp(s phi) + sum_{k != y} exp(s cos_k)), phi = cos(angle_y + m) up to
    angle_y = pi - m, where that would rise again, and cos angle_y - m sin m beyond, as in the
    authors' program: phi falls everywhere. margin = 0 is `normalised_softmax`.

    Args:
      embeddings: [b d].
      weights: [d c] one column per class.
      labels: [b] integer classes 0 to c-1.
      margin: m, an angle from 0 to below pi / 2.
      scale: s, above 0.

    Returns:
      [b] one loss per example; NaN for labels out of range, as in `cross_entropy`.

    Raises:
      ValueError: if shapes disagree, a known label is out of range, or a knob is.
      TypeError: if an input is not floats, or the labels not integers.

    >>> x, angle = jnp.array([[5.0, 0.0]]), jnp.pi / 3
    >>> loss = arcface(x, jnp.eye(2), jnp.array([0]), margin=angle, scale=2.0)  # 2 cos m = 1
    >>> round(float(loss[0]), 4)
    0.3133

    Deng et al., arXiv:1801.07698, eq. 3.
    """
    within("margin", margin, 0, 1.5707964)

    def widen(cosine, sine):
        m = jnp.asarray(margin).astype(cosine.dtype)
        further = cosine * jnp.cos(m) - sine * jnp.sin(m)
        return jnp.where(cosine > -jnp.cos(m), further, cosine - m * jnp.sin(m))

    return _with_margin(embeddings, weights, labels, widen, scale)


def _with_margin(embeddings, weights, labels, change, scale):
    """Cross-entropy of scale * cosines [b c], that of the true class replaced by `change`.

    The sine is the length of what the embedding has across the centre, not sqrt(1 - cos^2): its
    slope has length 1 wherever the two point.
    """
    positive(scale=scale)
    cosine = cosines(embeddings, weights)
    chosen, _ = classes(cosine, labels)
    x, w = unit(real("embeddings", embeddings)), real("weights", weights)
    w = unit(jnp.take(w.T, chosen, axis=0, mode="clip"))  # [b d]; XLA 0.7.2 errs on take(w).T
    along = (x * w).sum(-1)
    sine = root(((x - along[:, None] * w) ** 2).sum(-1))
    hit = jax.nn.one_hot(chosen, cosine.shape[-1], dtype=bool)
    logits = jnp.where(hit, change(along, sine)[:, None], cosine)
    return cross_entropy(logits * jnp.asarray(scale).astype(logits.dtype), labels)


def unit(x, axis=-1):
    """Vectors of length 1 along an axis; those of length 0 stay."""
    length = root((x**2).sum(axis, keepdims=True))
    return x / jnp.where(length > 0, length, 1)


def root(squared):
    """The square root, with slope 0 at 0."""
    some = squared > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1)), 0)
