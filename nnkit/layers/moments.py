"""Mean and variance under a mask, and what is done with them: the functions below the norms."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from nnkit.layers.inputs import wide

__all__ = ["moments", "normalise"]


def moments(x, axes, mask=None):
    """Mean and variance over some axes, of what a mask leaves. In float32 or wider, in two passes.

    mean = sum m x / n, variance = sum m (x - mean)^2 / n, n = sum m; both 0 where n = 0.

    Args:
      x: [...] floats.
      axes: the axes that are averaged.
      mask: [...] of the rank of x and broadcastable to it: True (or 1) for what counts. What
        stands in a masked place does not matter, not even NaN.

    Returns:
      (mean, variance, n), each with the axes kept as 1; n is a Python number without a mask.

    Raises:
      ValueError: if the mask has another rank.

    >>> mean, variance, n = moments(jnp.array([[1.0], [3.0], [9.0]]), 0, jnp.array([[1], [1], [0]]))
    >>> mean, variance, n
    (Array([[2.]], dtype=float32), Array([[1.]], dtype=float32), Array([[2.]], dtype=float32))

    Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115, eq. 1.1 (two passes).
    """
    x = wide(jnp.asarray(x))
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if mask is None:
        n = math.prod(x.shape[axis] for axis in axes)
        mean = x.mean(axes, keepdims=True)
        return mean, jnp.square(x - mean).mean(axes, keepdims=True), n
    if jnp.ndim(mask) != x.ndim:
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}, expected the rank of x, which has shape {x.shape}; "
            "add axes of size 1"
        )
    seen = jnp.broadcast_to(jnp.asarray(mask).astype(bool), x.shape)
    n = seen.sum(axes, keepdims=True).astype(x.dtype)
    mean = jnp.where(seen, x, 0).sum(axes, keepdims=True) / jnp.maximum(n, 1)
    far = jnp.where(seen, x - mean, 0)
    return mean, jnp.square(far).sum(axes, keepdims=True) / jnp.maximum(n, 1), n


def normalise(x, mean, variance, *, epsilon, scale=None, bias=None):
    """Shifted and scaled to mean 0 and variance 1, then to a learned scale and bias.

    scale (x - mean) / sqrt(variance + epsilon) + bias, computed in float32 or wider.

    Args:
      x: [...] floats.
      mean: broadcastable to x, of its rank.
      variance: the same.
      epsilon: keeps the root away from 0.
      scale: the same, or None for 1.
      bias: the same, or None for 0.

    Returns:
      [...] in the dtype of x.

    >>> normalise(jnp.array([1.0, 3.0]), jnp.array([2.0]), jnp.array([1.0]), epsilon=0.0)
    Array([-1.,  1.], dtype=float32)

    Ioffe & Szegedy, arXiv:1502.03167, algorithm 1.
    """
    y, z = wide(x), lax.rsqrt(variance + epsilon)
    z = z.astype(y.dtype) if scale is None else z.astype(y.dtype) * scale.astype(y.dtype)
    y = (y - mean.astype(y.dtype)) * z
    return (y if bias is None else y + bias.astype(y.dtype)).astype(x.dtype)
