"""Losses of embeddings: which belong together, by pairs, triplets, or the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnkit.core.checks import concrete, dims, positive, real, same
from nnkit.core.means import Mean
from nnkit.losses.angular import root, unit
from nnkit.losses.classify import cross_entropy
from nnkit.losses.inputs import spoil, within

__all__ = ["contrastive", "info_nce", "semi_hard_triplet", "triplet"]

FOREVER = float("inf")


def info_nce(queries, keys, mask=None, *, temperature=0.07, symmetric=False):
    """Cross-entropy of finding each query's own key among the keys of the whole batch.

    -log exp(q_i k_i / T) / sum_j exp(q_i k_j / T), with q, k of length 1. Every example is a
    negative of all others: the loss of an example changes with its batch, and slices of a batch
    (`accumulate`, one device's share) have fewer negatives.

    Args:
      queries: [b d] embeddings.
      keys: [b d] embeddings; row i belongs to query i.
      mask: [b] 0 for padding, which is then no negative and has loss 0; None counts all.
      temperature: above 0; may be traced, and learned (CLIP: exp of a parameter).
      symmetric: True averages with the same loss for finding queries from keys (CLIP).

    Returns:
      [b] one loss per example.

    Raises:
      ValueError: if shapes disagree or the temperature is not above 0.
      TypeError: if an input is not floats.

    >>> loss = info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0)  # log(1 + 1/e)
    >>> loss.shape, round(float(loss[0]), 4)
    ((2,), 0.3133)

    van den Oord et al., arXiv:1807.03748, eq. 4; symmetric: Radford et al., arXiv:2103.00020.
    """
    queries, keys = _embeddings(queries=queries, keys=keys)
    positive(temperature=temperature)
    b = queries.shape[0]
    scores = unit(_rows(queries, mask)) @ unit(_rows(keys, mask)).T
    scores = scores / jnp.asarray(temperature).astype(scores.dtype)  # [b b]
    own = jnp.arange(b)
    if mask is not None:
        gone = ~jnp.asarray(mask).astype(bool)
        out = (gone[:, None] | gone[None, :]) & ~jnp.eye(b, dtype=bool)
        scores = jnp.where(out, -jnp.inf, scores)
    loss = cross_entropy(scores, own)
    return (loss + cross_entropy(scores.T, own)) / 2 if symmetric else loss


def contrastive(left, right, together, *, margin=1.0):
    """Pulls pairs that belong together, and pushes others apart up to a margin.

    y D^2 / 2 + (1 - y) max(0, margin - D)^2 / 2, with D the Euclidean distance.

    Args:
      left: [b d] embeddings.
      right: [b d] embeddings.
      together: [b] bool, or 1 for pairs that belong together and 0 for others.
      margin: distance at which others stop to matter, above 0.

    Returns:
      [b] one loss per pair; NaN for a traced `together` that is neither 0 nor 1.

    Raises:
      ValueError: if shapes disagree, `together` is neither 0 nor 1, or the margin not above 0.
      TypeError: if an embedding is not floats.

    >>> contrastive(jnp.zeros((2, 1)), jnp.full((2, 1), 0.5), jnp.array([1, 0]))
    Array([0.125, 0.125], dtype=float32)

    Hadsell, Chopra & LeCun 2006, doi:10.1109/CVPR.2006.100, eq. 4 (y is 1 - Y there).
    """
    left, right = _embeddings(left=left, right=right)
    dims("b _, b", left=left, together=together)
    positive(margin=margin)
    known = concrete(together)
    if known is not None and not ((known == 0) | (known == 1)).all():
        raise ValueError(
            f"together runs from {known.min()} to {known.max()}, expected 0 and 1: 1 for a pair "
            "that belongs together"
        )
    together = jnp.asarray(together)
    together = together.astype(jnp.int32) if together.dtype == bool else together
    squared = ((left - right) ** 2).sum(-1)
    short = jax.nn.relu(jnp.asarray(margin).astype(squared.dtype) - root(squared))
    bad = ~((together == 0) | (together == 1))
    loss = jnp.where(bad, squared, jnp.where(together == 1, squared, short**2) / 2)
    return spoil(loss, bad)


def triplet(anchor, positive, negative, *, margin=0.2, squared=True):
    """How much nearer than the negative the positive fails to be, by a margin.

    max(0, D(a, p) - D(a, n) + margin), with D the squared Euclidean distance (FaceNet, on
    embeddings of length 1) or, with squared=False, the distance itself. Nothing is normalised.

    Args:
      anchor: [b d] embeddings.
      positive: [b d] embeddings of the same thing.
      negative: [b d] embeddings of another.
      margin: at least 0; 0.2 in FaceNet.
      squared: whether D is squared.

    Returns:
      [b] one loss per triplet.

    Raises:
      ValueError: if shapes differ or the margin is negative.
      TypeError: if an input is not floats.

    >>> a, p, n = jnp.zeros((1, 1)), jnp.full((1, 1), 1.5), jnp.full((1, 1), 1.0)
    >>> triplet(a, p, n, margin=1.0), triplet(a, p, n, margin=1.0, squared=False)
    (Array([2.25], dtype=float32), Array([1.5], dtype=float32))

    Schroff et al., arXiv:1503.03832, eq. 3.
    """
    anchor, positive = _embeddings(anchor=anchor, positive=positive)
    anchor, negative = _embeddings(anchor=anchor, negative=negative)
    within("margin", margin, 0, FOREVER)
    near = ((anchor - positive) ** 2).sum(-1)
    far = ((anchor - negative) ** 2).sum(-1)
    if not squared:
        near, far = root(near), root(far)
    return jax.nn.relu(near - far + jnp.asarray(margin).astype(near.dtype))


def semi_hard_triplet(embeddings, labels, mask=None, *, margin=0.2, squared=True):
    """The triplet loss with negatives found in the batch: the nearest one beyond the positive.

    For every anchor a and every positive p of its label, n is the negative of smallest D(a, n)
    > D(a, p); where no negative is that far, the farthest. Then max(0, D(a, p) - D(a, n) +
    margin). The loss of an example changes with its batch.

    Args:
      embeddings: [b d], usually of length 1 (nothing is normalised).
      labels: [b] integers, one for each thing.
      mask: [b] 0 for padding, which takes part in no triplet; None counts all.
      margin: at least 0.
      squared: whether D is the squared Euclidean distance (FaceNet) or the distance.

    Returns:
      `Mean` of totals [b] over the positives of each anchor, and weights [b], their number: 0 for
      an anchor without positive or negative.

    Raises:
      ValueError: if shapes disagree or the margin is negative.
      TypeError: if the embeddings are not floats or the labels not integers.

    >>> x = jnp.array([[0.0], [1.0], [1.5], [9.0]])
    >>> mean = semi_hard_triplet(x, jnp.array([0, 0, 1, 1]), margin=2.0)
    >>> mean.total, mean.weight  # the second: 1 - 0.25 + 2, no: 0.25 < 1, so the farthest, 64
    (Array([ 0.75,  0.  , 56.  ,  0.  ], dtype=float32), Array([1., 1., 1., 1.], dtype=float32))

    Schroff et al., arXiv:1503.03832, section 3.2, eq. 4.
    """
    embeddings = real("embeddings", embeddings)
    b = dims("b d, b", embeddings=embeddings, labels=labels).b
    if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        raise TypeError(f"labels is {jnp.asarray(labels).dtype}, expected integers")
    within("margin", margin, 0, FOREVER)
    x = _rows(embeddings, mask)
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)  # [b b]: no |a|^2 + |b|^2 - 2ab, exact near 0
    distance = distance if squared else root(distance)
    labels = jnp.asarray(labels)
    equal, there = labels[:, None] == labels[None, :], jnp.ones((b, b), bool)
    if mask is not None:
        kept = jnp.asarray(mask).astype(bool)
        there = kept[:, None] & kept[None, :]
    count = (there & ~equal).sum(-1, dtype=jnp.int32)[:, None]  # negatives of each anchor
    used = there & equal & ~jnp.eye(b, dtype=bool) & (count > 0)  # anchor, positive
    others = jnp.sort(jnp.where(there & ~equal, distance, jnp.inf), axis=-1)
    fixed = jax.lax.stop_gradient((others, distance))
    beyond = jax.vmap(lambda row, d: jnp.searchsorted(row, d, side="right"))(*fixed)
    chosen = jnp.clip(beyond.astype(jnp.int32), 0, jnp.maximum(count - 1, 0))
    farther = jnp.take_along_axis(others, chosen, axis=-1, mode="clip")
    gap = distance - jnp.where(used, farther, 0) + jnp.asarray(margin).astype(distance.dtype)
    total = jnp.where(used, jax.nn.relu(gap), 0).sum(-1)
    return Mean(total, used.sum(-1).astype(total.dtype))


def _embeddings(**pair):
    """Two arrays [b d] of floats, of one shape."""
    (a, x), (b, y) = pair.items()
    x, y = real(a, x), real(b, y)
    same(None, **{a: x, b: y})
    dims("b d", **{a: x})
    return x, y.astype(x.dtype)


def _rows(x, mask):
    """Embeddings [b d], 0 where the mask [b] is 0."""
    if mask is None:
        return x
    dims("b d, b", embeddings=x, mask=mask)
    return jnp.where(jnp.asarray(mask).astype(bool)[:, None], x, jnp.zeros_like(x))
