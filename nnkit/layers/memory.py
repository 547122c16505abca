"""The memory of keys and values for decoding: a plain one, and a ring for every sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnkit.core.checks import concrete, sizes

__all__ = ["cache", "rewind"]

KEPT = ("k", "v", "positions", "segments")


def cache(batch, length, kv_heads, head_dim, dtype=jnp.float32, *, ring=False):
    """An empty memory of keys and values, for decoding token by token.

    A plain dict of arrays: scan it, donate it, save it. Beside keys and values it holds the
    position of every key (-1: nothing there, or padding) and its segment, so that padded batches,
    windows and segments see what they would see without a cache.

    A ring counts the real tokens of each sequence by itself: token n is written at n modulo length
    and padding not at all. Once it is full the oldest give way, so that a layer with a window needs
    no more places than the window, however long the text. `rewind` takes tokens back.

    Args:
      batch: number of sequences.
      length: the most tokens that fit; a ring keeps the last ones.
      kv_heads: heads of keys and values.
      head_dim: size of a head.
      dtype: of keys and values.
      ring: an index for each sequence, going round?

    Returns:
      {"k", "v": [batch length kv_heads head_dim], "positions", "segments": [batch length] int32,
      "index": int32, the tokens written, [] with padding; of a ring [batch], real ones}.

    Raises:
      ValueError: if a size is not >= 1.

    >>> memory = cache(batch=2, length=8, kv_heads=1, head_dim=4)
    >>> memory["k"].shape, int(memory["index"])
    ((2, 8, 1, 4), 0)
    >>> cache(batch=2, length=8, kv_heads=1, head_dim=4, ring=True)["index"]
    Array([0, 0], dtype=int32)

    Shazeer, arXiv:1911.02150, section 2.4 (incremental multi-head attention); the ring: Jiang et
    al., arXiv:2310.06825, section 2 (rolling buffer cache).
    """
    sizes("cache", batch=batch, length=length, kv_heads=kv_heads, head_dim=head_dim)
    shape = (batch, length, kv_heads, head_dim)
    return {
        "k": jnp.zeros(shape, dtype),
        "v": jnp.zeros(shape, dtype),
        "positions": jnp.full((batch, length), -1, jnp.int32),
        "segments": jnp.zeros((batch, length), jnp.int32),
        "index": jnp.zeros((batch,) if ring else (), jnp.int32),
    }


def rewind(memory, count):
    """A ring without the tokens from number `count` on: they are forgotten, and written anew.

    A ring of window + n - 1 places can take back n - 1 tokens and still hold the window before the
    next one.

    Args:
      memory: `cache(..., ring=True)` after some tokens.
      count: [b] how many tokens of each sequence stay; at least as many as are there: all.

    Returns:
      The memory.

    Raises:
      ValueError: if it is no ring, or count does not fit.

    >>> memory = cache(1, 4, kv_heads=1, head_dim=2, ring=True)
    >>> memory |= {"positions": jnp.array([[0, 1, 2, -1]]), "index": jnp.array([3])}
    >>> rewind(memory, jnp.array([1]))["positions"]
    Array([[ 0, -1, -1, -1]], dtype=int32)

    Leviathan et al., arXiv:2211.17192, section 2.3: tokens guessed and refused.
    """
    index, s = memory["index"], memory["positions"].shape[1]
    if not index.ndim or jnp.shape(count) != index.shape:
        raise ValueError(
            f"rewind: the index has shape {index.shape} and count {jnp.shape(count)}, expected (b,)"
            " both: a memory of cache(..., ring=True), and one count for each sequence"
        )
    newest = index[:, None] - 1
    number = newest - (newest - jnp.arange(s, dtype=index.dtype)[None]) % s  # of what is in a place
    count = jnp.minimum(jnp.asarray(count).astype(index.dtype), index)
    stays = number < count[:, None]
    return {
        **memory,
        "positions": jnp.where(stays, memory["positions"], -1),
        "index": count,
    }


def places_of(memory, x, mask, positions):
    """Positions [b t] of new tokens: given, or behind the real tokens of each sequence."""
    b, t = x.shape[:2]
    if positions is not None:
        positions = jnp.asarray(positions).astype(jnp.int32)
        if positions.shape not in ((t,), (b, t)):
            raise ValueError(
                f"positions has shape {positions.shape}, expected ({t},) or ({b}, {t})"
            )
        return jnp.broadcast_to(positions.reshape(-1, t), (b, t))
    if mask is not None and jnp.shape(mask) != (b, t):
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}, expected ({b}, {t}): with a cache it says which of "
            "the new tokens are real; those written before are remembered"
        )
    real = jnp.ones((b, t), jnp.int32) if mask is None else jnp.asarray(mask).astype(jnp.int32)
    count = memory["positions"].max(1, keepdims=True) + 1  # [b 1]
    return jnp.maximum(count + jnp.cumsum(real, 1) - 1, 0).astype(jnp.int32)


def written(memory, k, v, places, mask, segments, window):
    """(memory with the new keys, what the queries see, is it too full? [b|1]).

    What the queries see is {"k", "v": [b s g d], "positions", "segments": pairs ([b t], [b s])}.
    """
    (b, t, g, d), shape = k.shape, memory["k"].shape
    ring = memory["index"].ndim > 0
    if shape[0] != b or shape[2:] != (g, d):
        more = ", ring=True" if ring else ""
        raise ValueError(
            f"the cache has keys of shape {shape}, expected ({b}, length, {g}, {d}) from x and the "
            f"fields; make it with cache({b}, {shape[1]}, kv_heads={g}, head_dim={d}{more})"
        )
    real = jnp.ones((b, t), bool) if mask is None else jnp.asarray(mask).astype(bool)
    if segments is None:
        segments = jnp.zeros((b, t), jnp.int32)
    new = {"k": k, "v": v, "positions": jnp.where(real, places, -1), "segments": segments}
    new = {name: jnp.asarray(x).astype(memory[name].dtype) for name, x in new.items()}
    if ring:
        out, full = _round(memory, new, real, mask is None, window)
    else:
        out, full = _behind(memory, new)
    seen = out
    if ring and window is not None and window <= shape[1] < window + t - 1:
        # the first of the new tokens would miss what the last of them overwrite
        seen = {name: jnp.concatenate([memory[name], new[name]], 1) for name in KEPT}
    pairs = {
        "positions": (places, seen["positions"]),
        "segments": (new["segments"], seen["segments"]),
    }
    return out, {"k": seen["k"].astype(k.dtype), "v": seen["v"].astype(v.dtype), **pairs}, full


def _behind(memory, new):
    """New keys behind the old ones; where there is no room all stays as it is."""
    index, length, t = memory["index"], memory["k"].shape[1], new["k"].shape[1]
    known = concrete(index)
    _fits(t, 0 if known is None else int(known), length)
    full = index + t > length

    def put(old, x):
        start = tuple(jnp.asarray(i, index.dtype) for i in (0, index) + (0,) * (old.ndim - 2))
        there = jax.lax.dynamic_slice(old, start, x.shape)
        return jax.lax.dynamic_update_slice(old, jnp.where(full, there, x), start)

    out = {name: put(memory[name], new[name]) for name in KEPT}
    return {**out, "index": (index + t).astype(index.dtype)}, full[None]


def _round(memory, new, real, whole, window):
    """Real tokens at their number modulo the length; what a window still needs is never lost."""
    index, s, t = memory["index"], memory["k"].shape[1], new["k"].shape[1]
    total = real.sum(1, dtype=index.dtype)  # [b]
    full = jnp.zeros(index.shape, bool)
    if window is None or s < window:
        known = concrete(index)
        if whole:
            _fits(t, 0 if known is None else int(known.max()), s)
        full = index + total > s
    order = jnp.cumsum(real, 1, dtype=index.dtype) - 1  # [b t]
    kept = real & (order >= total[:, None] - s) & ~full[:, None]
    at = jnp.where(kept, (index[:, None] + order) % s, s)  # s: outside, so dropped
    rows = jnp.arange(at.shape[0])[:, None]
    out = {name: memory[name].at[rows, at].set(new[name], mode="drop") for name in KEPT}
    return {**out, "index": index + total}, full


def _fits(t, before, length):
    if t + before > length:
        raise ValueError(
            f"{t} new tokens after {before} do not fit into a cache of length {length}; make a "
            "longer one or drop old tokens"
        )
