"""Pooling: the maximum or mean of windows, in forms whose gradients are cheap on CPU."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nnkit.layers.inputs import real, wide
from nnkit.layers.windows import each, pads_of

__all__ = ["avg_pool", "global_avg_pool", "max_pool"]


def max_pool(x, window, strides=None, padding: str | int | Sequence = "VALID") -> jax.Array:
    """The maximum of each window, channel by channel.

    y[n, p, c] = max over offsets q of x[n, stride p + q - left, c]. Equal maxima share the slope.

    Args:
      x: [b t c], [b h w c] or [b d h w c].
      window: size of the window, one number for all axes or one per axis.
      strides: its steps; None means the window itself (flax's default is 1).
      padding: "VALID" (what does not fill a window is left out), "SAME", one number, or one number
        or pair (before, after) per axis, smaller than the window. Padding never wins.

    Returns:
      The same rank, [b ... c].

    Raises:
      TypeError: if x is no floats, or a size no integer.
      ValueError: if x has another rank, or is smaller than the window; a padding is not smaller
        than the window.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)

    Zhou & Chellappa 1988, doi:10.1109/ICNN.1988.23914.
    """
    x = real("max_pool", x)
    window, strides, pads = _walk("max_pool", x, window, strides, padding)
    if strides == window and not any(map(any, pads)):
        blocks, axes = _blocks(x, window)
        return blocks.max(axes)
    space = ((0, 0, 0), *((a, b, 0) for a, b in pads), (0, 0, 0))
    x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), space)
    ends = [(n - k) // s * s + 1 for n, k, s in zip(x.shape[1:-1], window, strides)]
    parts = [
        x[(slice(None), *(slice(i, i + end, s) for i, end, s in zip(at, ends, strides)))]
        for at in itertools.product(*map(range, window))
    ]
    return functools.reduce(jnp.maximum, parts)  # its gradient: comparisons, no scatter


def avg_pool(x, window, strides=None, padding="VALID", *, count_include_pad=True):
    """The mean of each window, channel by channel. Sums in float32 or wider.

    y[n, p, c] = 1 / count sum over offsets q of x[n, stride p + q - left, c].

    Args:
      x: [b t c], [b h w c] or [b d h w c].
      window: size of the window, one number for all axes or one per axis.
      strides: its steps; None means the window itself (flax's default is 1).
      padding: "VALID" (what does not fill a window is left out), "SAME", one number, or one number
        or pair (before, after) per axis, smaller than the window.
      count_include_pad: True divides by the size of the window, False by the cells of x in it.

    Returns:
      The same rank and dtype, [b ... c].

    Raises:
      TypeError: if x is no floats, or a size no integer.
      ValueError: if x has another rank, or is smaller than the window; a padding is not smaller
        than the window.

    >>> avg_pool(jnp.ones((1, 3, 1)), 2, 1, "SAME", count_include_pad=False)[0, :, 0]
    Array([1., 1., 1.], dtype=float32)

    LeCun et al. 1990, Handwritten digit recognition with a back-propagation network.
    """
    x = real("avg_pool", x)
    window, strides, pads = _walk("avg_pool", x, window, strides, padding)
    if strides == window and not any(map(any, pads)):
        blocks, axes = _blocks(x, window)
        return wide(blocks).mean(axes).astype(x.dtype)

    def total(z):  # [b ... c]
        return lax.reduce_window(
            z,
            z.dtype.type(0),  # a known 0, else it is no sum to JAX and has no gradient
            lax.add,
            (1, *window, 1),
            (1, *strides, 1),
            ((0, 0), *pads, (0, 0)),
        )

    y = total(wide(x))
    count = (
        math.prod(window)
        if count_include_pad
        else total(jnp.ones_like(y, shape=(1, *x.shape[1:-1], 1)))
    )
    return (y / count).astype(x.dtype)


def global_avg_pool(x, mask=None):
    """The mean over every axis between the first and the last. Sums in float32 or wider.

    y[n, c] = sum_p m[n, p] x[n, p, c] / sum_p m[n, p]; 0 where the mask leaves nothing.

    Args:
      x: [b ... c], such as [b h w c] or [b t c].
      mask: [b ...] True (or 1) for what counts, or None for all. What stands in a masked place
        does not matter, not even NaN.

    Returns:
      [b c] in the dtype of x.

    Raises:
      TypeError: if x is no floats.
      ValueError: if x has no axis to average, or the mask is not [b ...].

    >>> global_avg_pool(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[1, 1, 0]]))
    Array([[2.]], dtype=float32)

    Lin, Chen & Yan, arXiv:1312.4400, section 3.2.
    """
    x = real("global_avg_pool", x)
    if x.ndim < 3:
        raise ValueError(
            f"global_avg_pool: x has shape {x.shape}, expected [b ... c] with axes in between"
        )
    axes = tuple(range(1, x.ndim - 1))
    if mask is None:
        return wide(x).mean(axes).astype(x.dtype)
    if jnp.shape(mask) != x.shape[:-1]:
        raise ValueError(
            f"global_avg_pool: mask has shape {jnp.shape(mask)}, expected {x.shape[:-1]}, the "
            f"leading axes of x, which has shape {x.shape}"
        )
    seen = jnp.asarray(mask).astype(bool)[..., None]  # [b ... 1]
    count = jnp.maximum(seen.sum(axes), 1).astype(wide(x).dtype)
    return (jnp.where(seen, wide(x), 0).sum(axes) / count).astype(x.dtype)


def _walk(layer: str, x, window, strides, padding):
    """(window, strides, pads) with one entry per axis, checked."""
    rank = x.ndim - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"{layer}: x has shape {x.shape}, expected [b t c], [b h w c] or [b d h w c]"
        )
    window = each(layer, "window", window, rank)
    strides = window if strides is None else each(layer, "strides", strides, rank)
    pads = pads_of(layer, padding, x.shape[1:-1], window, strides)
    for n, k, pad in zip(x.shape[1:-1], window, pads):
        if max(pad) >= k > 1 or (k == 1 and max(pad)):
            raise ValueError(
                f"{layer}: padding is {padding!r}, expected it smaller than the window {window}: a "
                "window of padding alone has no value"
            )
        if n + sum(pad) < k:
            raise ValueError(
                f"{layer}: x has shape {x.shape}, smaller than the window {window}; use a smaller "
                "window, or layers.global_avg_pool"
            )
    return window, strides, pads


def _blocks(x, window):
    """x [b ... c] as blocks [b n k ... c], and the axes of the cells in a block."""
    fit = [n // k for n, k in zip(x.shape[1:-1], window)]
    x = x[(slice(None), *(slice(0, n * k) for n, k in zip(fit, window)))]
    shape = [size for pair in zip(fit, window) for size in pair]
    blocks = jnp.reshape(x, (x.shape[0], *shape, x.shape[-1]))
    return blocks, tuple(range(2, 2 * len(window) + 1, 2))
