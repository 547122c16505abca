"""Checks and conversions of what losses are given, for the files of this folder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete, indices

__all__: list[str] = []


def within(name, x, low, high):
    """A number [] must lie in [low, high); traced values pass."""
    known = concrete(x)
    if known is not None and not (low <= known < high):
        raise ValueError(f"{name} is {x}, expected {low} <= {name} < {high}; {low} switches it off")


def is_soft(logits, labels) -> bool:
    """True for soft labels [... c], False for integers [...]; anything else is an error."""
    shape, have, dtype = logits.shape, tuple(np.shape(labels)), jnp.asarray(labels).dtype
    if jnp.issubdtype(dtype, jnp.integer):
        return False
    if not jnp.issubdtype(dtype, jnp.floating) or len(have) < len(shape):
        raise TypeError(
            f"labels is {dtype} of shape {have}, expected integers {shape[:-1]} or soft floats "
            f"{shape}, from logits of shape {shape}; labels.astype(int) for class indices, "
            "jax.nn.one_hot for soft labels, losses.binary for one logit, losses.mse for regression"
        )
    if have != shape:
        raise ValueError(
            f"labels is {dtype} of shape {have}, but logits has shape {shape}: soft labels need "
            "the same shape; for class indices (b, 1) write labels[:, 0].astype(int)"
        )
    return True


def classes(logits, labels):
    """Labels [...] as int32, and which of them are no class [...] (those become 0)."""
    shape, have, dtype = logits.shape, tuple(np.shape(labels)), jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"labels is {dtype} of shape {have}, expected integers {shape[:-1]}, from logits of "
            f"shape {shape}; write labels.astype(int)"
        )
    return indices(logits, labels)


def log_chosen(logits, labels):
    """Log-probability [...] of the labels; nothing of the size of the logits stays in memory."""
    top = jax.lax.stop_gradient(logits.max(-1))  # taken off first: exact for large logits too
    rest = jnp.log(jnp.exp(logits - top[..., None]).sum(-1))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
    return (chosen - top) - rest


def spoil(loss, bad):
    """The loss [...], NaN where `bad` [...] in value and gradient.

    A gradient that arrives as 0 leaves as 0, so that a mask hides wrong labels as it hides
    everything else: g * huge * huge * 0 is NaN for every g but 0.
    """
    one, zero = jnp.ones((), loss.dtype), jnp.zeros((), loss.dtype)
    huge = jnp.where(bad, jnp.finfo(loss.dtype).max.astype(loss.dtype), one)
    loss = loss * jnp.where(bad, zero, one) * huge * huge  # transposed: from right to left
    return loss + jnp.where(bad, jnp.full((), jnp.nan, loss.dtype), zero)
