"""Checks and conversions of what metrics are given, for the files of this folder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, indices, real, same

__all__: list[str] = []


def weights(mask, n):
    """A mask [n] as float32 weights; ones without one."""
    if mask is None:
        return jnp.ones((n,), jnp.float32)
    if np.shape(mask) != (n,):
        raise ValueError(
            f"mask has shape {np.shape(mask)}, expected ({n},): one weight for each of the "
            f"{n} examples"
        )
    return jnp.asarray(mask).astype(jnp.float32)


def masked(labels, mask):
    """Labels [n ...] with 0 where the mask [n] is 0: what stands there does not matter."""
    if mask is None:
        return labels
    if np.shape(labels)[:1] != np.shape(mask):
        raise ValueError(
            f"mask has shape {np.shape(mask)}, expected {np.shape(labels)[:1]}, from labels"
        )
    both = concrete(labels), concrete(mask)
    if both[0] is None or both[1] is None:
        labels = jnp.asarray(labels)
        kept = jnp.asarray(mask).astype(bool).reshape((-1,) + (1,) * (labels.ndim - 1))
        return jnp.where(kept, labels, jnp.zeros_like(labels))
    wide = both[1].reshape((-1,) + (1,) * (both[0].ndim - 1))
    return np.where(wide == 0, np.zeros_like(both[0]), both[0])


def binary(name, scores, labels):
    """Scores [b] as floats, labels [b] as bools, and which labels are neither 0 nor 1."""
    scores = real(name, scores)
    same(**{name: scores, "labels": labels})
    known = concrete(labels)
    if known is not None and not ((known == 0) | (known == 1)).all():
        raise ValueError(
            f"labels run from {known.min()} to {known.max()}, expected 0 and 1 for one score per "
            "example; (labels + 1) // 2 turns -1 and 1 into them, more classes need logits [b c]"
        )
    labels = jnp.asarray(labels)
    labels = labels.astype(jnp.int32) if labels.dtype == bool else labels
    return scores, labels == 1, ~((labels == 0) | (labels == 1))


def classes(logits, labels):
    """The class meant [...], and which labels are none [...] (None if it cannot happen)."""
    shape, labels = logits.shape, labels if hasattr(labels, "dtype") else np.asarray(labels)
    have, dtype = tuple(labels.shape), labels.dtype
    if jnp.issubdtype(dtype, jnp.floating) and have == shape:
        return jnp.argmax(labels, -1).astype(jnp.int32), jnp.isnan(labels).any(-1)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"labels is {dtype} of shape {have}, expected integers {shape[:-1]} or soft floats "
            f"{shape}, from logits of shape {shape}; write labels.astype(int) for class indices"
        )
    return indices(logits, labels)


def distribution(logits, labels):
    """The true distribution [... c], and which labels are none [...]."""
    if np.shape(labels) == logits.shape and jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
        return jnp.asarray(labels).astype(logits.dtype), None
    true, bad = classes(logits, labels)
    return jax.nn.one_hot(true, logits.shape[-1], dtype=logits.dtype), bad


def or_nan(values, bad):
    """Values [... rest], NaN where `bad` [...]."""
    if bad is None:
        return values
    bad = jnp.reshape(bad, bad.shape + (1,) * (values.ndim - bad.ndim))
    return jnp.where(bad, jnp.full((), jnp.nan, values.dtype), values)
