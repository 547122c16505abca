"""Where a token stands: added tables, rotated queries and keys, biases on the scores."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete
from nnkit.layers.embeddings import rows
from nnkit.layers.meshes import batchwise, gathered

__all__ = ["LearnedPositions", "RelativeBias", "alibi", "rope", "sinusoidal", "sinusoidal_2d"]


def sinusoidal(length, width):
    """The fixed positions of the first Transformer, sine and cosine interleaved.

    P[p, 2i] = sin(p / 10000^(2i/width)), P[p, 2i+1] = cos of the same, as the paper writes it;
    tensor2tensor and fairseq put all sines first, which is the same up to an order of columns.

    Args:
      length: number of positions.
      width: columns, even.

    Returns:
      [length width] float32.

    Raises:
      ValueError: if the width is odd or a size is below 1.

    >>> sinusoidal(2, 4).round(4)
    Array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]], dtype=float32)

    Vaswani et al., arXiv:1706.03762, section 3.5.
    """
    if length < 1 or width < 2 or width % 2:
        raise ValueError(
            f"sinusoidal(length={length}, width={width}) needs length >= 1 and an even width >= 2: "
            "a sine and a cosine per frequency"
        )
    angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)  # [t d/2]
    both = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, width)
    return jnp.asarray(both, jnp.float32)


def sinusoidal_2d(h, w, width):
    """Fixed positions of an h x w grid of patches, as the plain ViT baselines use them.

    Row r, column c: [sin(c f), cos(c f), sin(r f), cos(r f)], f_i = 10000^(-i / (width/4 - 1)).

    Args:
      h: rows of patches.
      w: columns of patches.
      width: size of a position, divisible by 4 and at least 8.

    Returns:
      [h*w width] float32, patches in reading order.

    Raises:
      ValueError: if the width is not divisible by 4 or below 8, or a side is below 1.

    >>> sinusoidal_2d(2, 3, 8).shape
    (6, 8)

    Beyer, Zhai & Kolesnikov, arXiv:2205.01580, section 3 (`posemb_sincos_2d` of big_vision).
    """
    if h < 1 or w < 1 or width < 8 or width % 4:
        raise ValueError(
            f"sinusoidal_2d(h={h}, w={w}, width={width}) needs sides >= 1 and a width >= 8 "
            f"divisible by 4; use width={max(8, round(width / 4) * 4)}"
        )
    f = 10000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    row, column = (x.reshape(-1, 1) * f for x in np.mgrid[:h, :w])  # [h*w width/4]
    parts = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return jnp.asarray(np.concatenate(parts, -1), jnp.float32)


class LearnedPositions(nn.Module):
    """A learned row for every position.

    The parameter is `embedding` [length width].

    Args:
      length: the longest sequence.
      width: size of a row.
      embedding_init: initialiser of the table.

    Call: positions, either the int t (0 to t-1) -> [1 t width], to be added to [b t width], or an
    array of positions [t] or [b t] -> [t width] or [b t width].

    Raises:
      TypeError: if the positions are not integers.
      ValueError: if a sequence is longer than the table, or a known position is outside it;
        traced positions outside give rows of NaN.

    >>> positions = LearnedPositions(length=8, width=4)
    >>> positions.init_with_output(jax.random.key(0), 5)[0].shape
    (1, 5, 4)

    Gehring et al., arXiv:1705.03122, section 3.1; Radford et al. 2018 (GPT).
    """

    length: int
    width: int
    embedding_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, positions):
        table = self.param("embedding", self.embedding_init, (self.length, self.width))
        if isinstance(positions, int | np.integer):
            if not 1 <= positions <= self.length:
                raise ValueError(
                    f"the sequence has {positions} positions, expected 1 to {self.length}: the "
                    "length of LearnedPositions; cut the sequence or make a longer table"
                )
            return jnp.asarray(table)[None, :positions]  # [1 t d]
        table = gathered(jnp.asarray(table))
        found = rows(table, positions, name="positions", of="table of positions")
        return batchwise(found) if found.ndim == 3 else found


def rope(x, positions, *, theta=10000.0, interleaved=False):
    """Rotate pairs of features by an angle that grows with the position.

    Pair i at position p turns by p theta^(-2i/d): the product of a rotated query and key then
    depends on the difference of their positions only. Two conventions pair the features:

    - half (default): i with i + d/2, as GPT-NeoX, Llama and Mistral do;
    - interleaved: 2i with 2i + 1, as the paper and GPT-J do.

    They differ by a fixed order of the features: trained weights need the one they were made for.

    Args:
      x: [b t h d] queries or keys; d even.
      positions: [t] or [b t] positions, traced ones too.
      theta: base of the frequencies.
      interleaved: the second convention.

    Returns:
      [b t h d] of the dtype of x; angles are taken in float32 or wider.

    Raises:
      ValueError: if d is odd, or shapes do not fit.

    >>> [f"{x:.4f}" for x in rope(jnp.ones((1, 2, 1, 2)), jnp.arange(2))[0, 1, 0]]
    ['-0.3012', '1.3818']

    Su et al., arXiv:2104.09864, eq. 15 and 34.
    """
    x, positions = jnp.asarray(x), jnp.asarray(positions)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}, expected (b t h d)")
    b, t, _, d = x.shape
    if d % 2:
        raise ValueError(f"rope turns pairs of features: the head size is {d}, expected it even")
    if positions.shape not in ((t,), (b, t)):
        raise ValueError(
            f"positions has shape {positions.shape}, expected ({t},) or ({b}, {t}) from x of "
            f"shape {x.shape}"
        )
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    known = concrete(theta)
    if known is not None:  # in double precision, rounded once
        rate = jnp.asarray(float(known) ** -(np.arange(0, d, 2) / d), wide)  # [d/2]
    else:
        rate = jnp.asarray(theta, wide) ** jnp.asarray(-np.arange(0, d, 2) / d, wide)
    angle = positions.astype(wide)[..., None] * rate.reshape((1,) * positions.ndim + (-1,))
    angle = angle.reshape((-1, t, 1, d // 2))  # [b|1 t 1 d/2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if interleaved:
        u, v = x[..., 0::2].astype(wide), x[..., 1::2].astype(wide)
        turned = jnp.stack([u * cos - v * sin, v * cos + u * sin], -1).reshape(x.shape)
    else:
        u, v = (half.astype(wide) for half in jnp.split(x, 2, -1))
        turned = jnp.concatenate([u * cos - v * sin, v * cos + u * sin], -1)
    return turned.astype(x.dtype)


def alibi(heads):
    """Slopes of the linear penalty on distance, one per head.

    Head i of n = 2^k heads: 2^(-8 i / n), i from 1. Other n: the slopes of the next smaller power
    of two m, then every second slope of 2 m, as the authors and BLOOM do. The bias is
    -slope |i - j|, that is `-alibi(h)[:, None, None] * abs(i - j)` with shape [h t s].

    Args:
      heads: number of heads.

    Returns:
      [heads] float32 slopes.

    Raises:
      ValueError: if there is no head.

    >>> alibi(4)
    Array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)

    Press, Smith & Lewis, arXiv:2108.12409, section 3.
    """
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ValueError(f"alibi: heads is {heads!r}, expected an integer >= 1")
    power = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return jnp.asarray(np.concatenate([slopes, more[: heads - power]]), jnp.float32)


class RelativeBias(nn.Module):
    """A learned bias on the scores for every head and bucket of relative position.

    Distances below buckets/2 (of each direction) have a bucket of their own; the others share
    buckets that widen like a logarithm up to max_distance. Bidirectional: half of the buckets for
    keys after the query. Otherwise all keys after the query fall into bucket 0: use it causal.

    The parameter is `embedding` [buckets heads].

    Args:
      heads: number of heads.
      buckets: number of buckets (even, if bidirectional).
      max_distance: from where on all distances share the last bucket.
      bidirectional: are there keys after the query?
      embedding_init: initialiser of the table.

    Call: (queries, keys) positions, each an int n (0 to n-1) or an array [t] or [b t] ->
    [1 h t s] (or [b h t s]), to be given to `attention` as bias.

    Raises:
      ValueError: if the buckets are too few or odd, or max_distance too small for them.

    >>> bias = RelativeBias(heads=2, buckets=8, max_distance=16)
    >>> bias.init_with_output(jax.random.key(0), 5, 7)[0].shape
    (1, 2, 5, 7)

    Raffel et al., arXiv:1910.10683, section 2.1 (T5, `_relative_position_bucket`).
    """

    heads: int
    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    embedding_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, queries, keys):
        table = self.param("embedding", self.embedding_init, (self.buckets, self.heads))
        i, j = _places(queries), _places(keys)  # [b|1 t], [b|1 s]
        bucket = relative_bucket(
            j[:, None, :] - i[:, :, None],
            buckets=self.buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return jnp.moveaxis(jnp.asarray(table)[bucket], -1, 1)  # [b|1 h t s]


def relative_bucket(distance, *, buckets=32, max_distance=128, bidirectional=True):
    """The bucket of T5 for a distance between key and query.

    With n buckets per direction: d < n/2 is bucket d; the others
    n/2 + floor(log(2 d / n) / log(2 max_distance / n) n/2), at most n - 1.

    Args:
      distance: [...] integers, position of the key minus that of the query.
      buckets: number of buckets of both directions together.
      max_distance: from where on there is one bucket.
      bidirectional: half of the buckets for keys after the query.

    Returns:
      [...] int32 from 0 to buckets-1.

    Raises:
      ValueError: if the buckets are too few or odd, or max_distance too small for them.

    >>> relative_bucket(jnp.array([-200, -9, -1, 0, 1, 9]), buckets=8, max_distance=16)
    Array([3, 3, 1, 0, 5, 7], dtype=int32)

    Raffel et al., arXiv:1910.10683, section 2.1.
    """
    n = buckets // 2 if bidirectional else buckets
    exact = n // 2
    if exact < 1 or (bidirectional and buckets % 2) or max_distance <= exact:
        raise ValueError(
            f"buckets={buckets}, max_distance={max_distance}, bidirectional={bidirectional}: "
            f"expected at least {4 if bidirectional else 2} buckets (even, if bidirectional) and "
            f"max_distance > {max(exact, 1)}; T5 has 32 and 128"
        )
    distance = jnp.asarray(distance).astype(jnp.int32)
    first = jnp.where(distance > 0, n, 0) if bidirectional else jnp.zeros_like(distance)
    far = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
    ratio = jnp.log(jnp.maximum(far, exact).astype(jnp.float32) / np.float32(exact))
    wide = ratio / np.float32(math.log(max_distance / exact)) * np.float32(n - exact)
    wide = jnp.minimum(exact + wide.astype(jnp.int32), n - 1)
    return (first + jnp.where(far < exact, far, wide)).astype(jnp.int32)


def _places(x) -> jax.Array:
    """Positions [b|1 t] from an int, [t] or [b t]."""
    x = jnp.arange(x) if isinstance(x, int | np.integer) else jnp.asarray(x)
    if x.ndim not in (1, 2) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"positions are {x.dtype} of shape {x.shape}, expected integers (t) or (b t)"
        )
    return x[None] if x.ndim == 1 else x
