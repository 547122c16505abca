"""Attention whose memory grows with the length, not with its square.

A softmax over all keys is gathered block of keys by block of keys: with the largest score m so
far, l = sum exp(z - m) and a = sum exp(z - m) v, a new block only rescales what was gathered. The
backward pass computes each block again (`jax.checkpoint`) instead of keeping it. Everything is
plain JAX, so that forward mode, `vmap` and derivatives of any order work.

Milakov & Gimelshein, arXiv:1805.02867; Rabe & Staats, arXiv:2112.05682; Dao et al.,
arXiv:2205.14135, algorithm 1.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from nnkit.layers.scores import Sight, mix, scores, wide

__all__: list[str] = []

BLOCK = 256  # queries, and keys, of one block
GROUPS = 16  # at most so many groups of queries, each with its own range of keys


def blockwise(q, k, v, sight: Sight, scale, softcap):
    """Attention [b t g r e] of q [b t g r d], k [b s g d], v [b s g e].

    Queries are cut into at most GROUPS groups; keys that no query of a group can see, because of
    causality or a window, are left out while tracing.
    """
    t, s = q.shape[1], k.shape[1]
    blocks = -(-t // BLOCK)
    size = BLOCK * -(-blocks // GROUPS)
    parts = []
    for a, b, low, high in sight.spans(t, s, size):
        if high == low:
            parts.append(jnp.zeros((q.shape[0], b - a, *q.shape[2:4], v.shape[-1]), v.dtype))
            continue
        rows, columns = slice(a, b), slice(low, high)
        part = sight.cut(rows, columns)
        parts.append(_group(q[:, rows], k[:, columns], v[:, columns], part, scale, softcap))
    return jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def _group(q, k, v, sight, scale, softcap):
    """Attention of some queries to all of the keys given."""
    t, s = q.shape[1], k.shape[1]
    n, m = min(BLOCK, t), min(BLOCK, s)
    sight = dataclasses.replace(sight, hides=sight.hides or s % m > 0)
    fixed = sight.bias is not None and sight.bias.shape[3] == 1  # a bias on keys alone
    keys = (_stacked(k, 1, m), _stacked(v, 1, m))
    rows = dataclasses.replace(
        sight,
        q_pos=_stacked(sight.q_pos, 1, n),
        k_pos=None,
        q_seg=_stacked(sight.q_seg, 1, n),
        k_seg=None,
        pair=_stacked(sight.pair, 1, n),
        bias=None if fixed else _stacked(sight.bias, 3, n),
    )

    @jax.checkpoint
    def row(block):
        q, here = block
        bias = sight.bias if fixed else here.bias
        here = dataclasses.replace(here, k_pos=sight.k_pos, k_seg=sight.k_seg, bias=bias)
        return _row(q, keys, here, m, scale, softcap)

    blocks = (_stacked(q, 1, n), rows)
    y = jax.lax.map(row, blocks) if t > n else row(jax.tree.map(lambda x: x[0], blocks))[None]
    return jnp.moveaxis(y, 0, 1).reshape(y.shape[1], -1, *y.shape[3:])[:, :t]


def _row(q, keys, sight, m, scale, softcap):
    """One block of queries against the blocks of keys, one after another."""
    (b, t, g, r, _), e, dtype = q.shape, keys[1].shape[-1], wide(q.dtype)
    fixed = sight.bias is not None and sight.bias.shape[4] == 1  # a bias on queries alone
    columns = dataclasses.replace(
        sight,
        q_pos=None,
        k_pos=_stacked(sight.k_pos, 1, m, fill=-1),
        q_seg=None,
        k_seg=_stacked(sight.k_seg, 1, m),
        pair=_stacked(sight.pair, 2, m),
        bias=None if fixed else _stacked(sight.bias, 4, m),
    )

    @jax.checkpoint
    def step(state, block):
        top, total, gathered = state  # [b g r t], [b g r t], [b t g r e]
        k, v, here = block
        bias = sight.bias if fixed else here.bias
        here = dataclasses.replace(here, q_pos=sight.q_pos, q_seg=sight.q_seg, bias=bias)
        z = scores(q, k, here, scale, softcap)  # [b g r t m]
        new = jnp.maximum(top, jax.lax.stop_gradient(z.max(-1)))
        safe = jnp.where(jnp.isneginf(new), 0, new)
        p, fade = jnp.exp(z - safe[..., None]), jnp.exp(top - safe)
        gathered = gathered * jnp.moveaxis(fade, 3, 1)[..., None] + mix(p, v)
        return (new, total * fade + p.sum(-1), gathered), None

    none = jnp.full((b, g, r, t), -jnp.inf, dtype)
    state = (none, jnp.zeros((b, g, r, t), dtype), jnp.zeros((b, t, g, r, e), dtype))
    blocks = (*keys, columns)
    # The first block outside of the loop: what the state varies with (under shard_map) is then
    # known before the loop begins.
    state, _ = step(state, jax.tree.map(lambda x: x[0], blocks))
    if keys[0].shape[0] > 1:
        state, _ = jax.lax.scan(step, state, jax.tree.map(lambda x: x[1:], blocks))
    total = jnp.moveaxis(state[1], 3, 1)[..., None]  # [b t g r 1]
    return (state[2] / jnp.where(total == 0, 1, total)).astype(q.dtype)


def _stacked(x, axis, size, *, fill=0):
    """The axis padded and cut into blocks of that size, stacked in a new first axis."""
    if x is None:
        return None
    short = -x.shape[axis] % size
    if short:
        widths = [(0, short if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=fill)
    shape = x.shape[:axis] + (x.shape[axis] // size, size) + x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)
