"""Scores to probabilities: softmax under a mask, and its sparse relatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from nnkit.layers.inputs import wide

__all__ = ["entmax15", "softmax", "sparsemax"]


def softmax(x, mask=None, *, axis=-1):
    """Probabilities from scores, of what a mask leaves. In float32 or wider.

    p_i = m_i exp(x_i - max) / sum_j m_j exp(x_j - max); 0 everywhere if the mask leaves nothing.

    Args:
      x: [...] scores.
      mask: broadcastable to x, of its rank: True (or 1) for what counts; None for all.
      axis: the axis that adds to 1.

    Returns:
      [...] in the dtype of x. Never NaN, in value and gradient, for finite scores.

    Raises:
      ValueError: if the mask has another rank.

    >>> softmax(jnp.zeros((2, 2)), jnp.array([[1, 0], [0, 0]]))
    Array([[1., 0.],
           [0., 0.]], dtype=float32)

    Bridle 1990, doi:10.1007/978-3-642-76153-9_28.
    """
    if mask is None:
        return jax.nn.softmax(wide(x), axis).astype(x.dtype)
    if jnp.ndim(mask) != x.ndim:
        raise ValueError(
            f"softmax: mask has shape {jnp.shape(mask)}, expected the rank of x, which has shape "
            f"{x.shape}; add axes of size 1"
        )
    seen = jnp.broadcast_to(jnp.asarray(mask).astype(bool), x.shape)
    y = jnp.where(seen, wide(x), -jnp.inf)
    top = y.max(axis, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    weight = jnp.where(seen, jnp.exp(jnp.where(seen, y - top, 0)), 0)
    total = weight.sum(axis, keepdims=True)
    return (weight / jnp.where(total > 0, total, 1)).astype(x.dtype)


def sparsemax(x, *, axis=-1):
    """The point of the simplex nearest to the scores: probabilities, many of them exactly 0.

    p_i = max(0, x_i - tau), tau such that they add to 1.

    Args:
      x: [...] scores.
      axis: the axis that adds to 1.

    Returns:
      [...] in the dtype of x.

    >>> sparsemax(jnp.array([1.0, 0.5, -1.0]))
    Array([0.75, 0.25, 0.  ], dtype=float32)

    Martins & Astudillo, arXiv:1602.02068, algorithm 1 and eq. 14.
    """
    z = jnp.moveaxis(wide(x), axis, -1)
    z = jnp.maximum(z - lax.stop_gradient(z.max(-1, keepdims=True)), -1)  # below -1: never chosen
    fall = -jnp.sort(-lax.stop_gradient(z), axis=-1)
    k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    k = jnp.reshape(k, (1,) * (z.ndim - 1) + (-1,))
    tau = (jnp.cumsum(fall, -1) - 1) / k
    n = (fall > tau).sum(-1, keepdims=True)
    chosen = lax.stop_gradient(z) > jnp.take_along_axis(tau, n - 1, -1)
    # With the chosen ones known, tau is a mean: plain differentiation gives the Jacobian.
    n = chosen.sum(-1, keepdims=True).astype(z.dtype)
    tau = (jnp.where(chosen, z, 0).sum(-1, keepdims=True) - 1) / n
    return jnp.moveaxis(jnp.where(chosen, z - tau, 0), -1, axis).astype(x.dtype)


def entmax15(x, *, axis=-1):
    """Between softmax and `sparsemax`: smooth probabilities, some of them exactly 0.

    p_i = max(0, x_i / 2 - tau)^2, tau such that they add to 1 (alpha = 1.5). Exact, by sorting.

    Args:
      x: [...] scores.
      axis: the axis that adds to 1.

    Returns:
      [...] in the dtype of x.

    >>> entmax15(jnp.array([3.0, 1.0, 0.0]))
    Array([1., 0., 0.], dtype=float32)

    Peters, Niculae & Martins, arXiv:1905.05702, algorithm 2.
    """
    z = jnp.moveaxis(wide(x), axis, -1)
    z = (z - lax.stop_gradient(z.max(-1, keepdims=True))) / 2
    z = jnp.maximum(z, -1)  # below -1: never chosen
    fall = -jnp.sort(-lax.stop_gradient(z), axis=-1)
    k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    k = jnp.reshape(k, (1,) * (z.ndim - 1) + (-1,))
    mean = jnp.cumsum(fall, -1) / k
    rest = (1 - (jnp.cumsum(jnp.square(fall), -1) - k * jnp.square(mean))) / k
    tau = mean - jnp.sqrt(jnp.maximum(rest, 0))
    n = (tau <= fall).sum(-1, keepdims=True)
    chosen = lax.stop_gradient(z) > jnp.take_along_axis(tau, n - 1, -1)
    # With the chosen ones known, tau follows from their mean and spread, which are differentiable.
    n = chosen.sum(-1, keepdims=True).astype(z.dtype)
    mean = jnp.where(chosen, z, 0).sum(-1, keepdims=True) / n
    far = jnp.where(chosen, z - mean, 0)
    root = jnp.sqrt((1 - jnp.square(far).sum(-1, keepdims=True)) / n)
    p = jnp.square(jnp.where(chosen, far + root, 0))
    return jnp.moveaxis(p, -1, axis).astype(x.dtype)
