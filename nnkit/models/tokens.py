"""Do token ids fit a model? Asked by every language model before JAX sees them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["fits", "places", "seen_places", "shift_right"]


def fits(model: str, tokens, *, length: int | None = None, mask=None, **others) -> None:
    """Token ids must be [b t] integers, no longer than the model; what goes with them likewise.

    Args:
      model: its name, for the message.
      tokens: [b t] ids; their values are checked by `layers.Embed`.
      length: the longest sequence, or None for any.
      mask: [b t] bool or 0/1, True for real tokens, or None.
      **others: more [b t] integers by name, or None.

    Raises:
      TypeError: if the ids are no integers, or the mask is of another kind.
      ValueError: if a shape does not fit, or the sequence is too long.

    >>> fits("GPT", np.zeros((2, 9), int), length=8)
    Traceback (most recent call last):
        ...
    ValueError: GPT: tokens has shape (2, 9), a sequence of 9, expected at most length=8; cut...
    """
    for name, ids in {"tokens": tokens, **others}.items():
        if ids is None:
            continue
        kind = jnp.result_type(ids)
        if not jnp.issubdtype(kind, jnp.integer):
            raise TypeError(
                f"{model}: {name} is {kind}{list(jnp.shape(ids))}, expected integer ids [b t]; "
                f"write {name}.astype(int) if they are whole numbers"
            )
    if mask is not None and jnp.issubdtype(jnp.result_type(mask), jnp.inexact):
        raise TypeError(
            f"{model}: mask is {jnp.result_type(mask)}{list(jnp.shape(mask))}, expected bool, or 0 "
            "and 1 as integers; write mask > 0"
        )
    shape = tuple(jnp.shape(tokens))
    if len(shape) != 2 or not shape[1]:
        hint = "; one sequence needs a batch axis: tokens[None]" if len(shape) == 1 else ""
        raise ValueError(f"{model}: tokens has shape {shape}, expected [b t] with t >= 1{hint}")
    if length is not None and shape[1] > length:
        raise ValueError(
            f"{model}: tokens has shape {shape}, a sequence of {shape[1]}, expected at most "
            f"length={length}; cut the sequence, or make the model with length={shape[1]}"
        )
    for name, x in {"mask": mask, **others}.items():
        if x is not None and tuple(jnp.shape(x)) != shape:
            raise ValueError(
                f"{model}: {name} has shape {tuple(jnp.shape(x))}, expected {shape}: one entry "
                "per token, as tokens has"
            )


def shift_right(tokens, start: int = 0):
    """What a decoder reads to predict these tokens: the start token, then all but the last.

    y[0] = start, y[i] = tokens[i - 1].

    Args:
      tokens: [b t] targets (or [... t]).
      start: id of the start token; T5 uses its padding, 0.

    Returns:
      [b t] of the dtype of the tokens.

    Raises:
      ValueError: if the tokens have no axis of time.

    >>> shift_right(jnp.array([[5, 6, 7]]))
    Array([[0, 5, 6]], dtype=int32)

    Raffel et al., arXiv:1910.10683, section 2.1; teacher forcing: Williams & Zipser 1989.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim < 1 or not tokens.shape[-1]:
        raise ValueError(f"tokens has shape {tokens.shape}, expected [b t] with t >= 1")
    first = jnp.full((*tokens.shape[:-1], 1), start, tokens.dtype)
    return jnp.concatenate([first, tokens[..., :-1]], -1)


def places(tokens, mask=None, segments=None, before=None):
    """The position of every token: real ones counted from 0, anew in each segment.

    Args:
      tokens: [b t] ids; only the shape is used.
      mask: [b t] True for real tokens, or None; padding takes the position before it.
      segments: [b t] integers that change where a new text starts, or None.
      before: a `layers.attention.cache` of the tokens so far: counting goes on behind its real
        tokens; or None.

    Returns:
      [b t] int32.

    >>> places(jnp.zeros((1, 5)), mask=jnp.array([[0, 0, 1, 1, 1]]))
    Array([[0, 0, 0, 1, 2]], dtype=int32)
    >>> places(jnp.zeros((1, 5)), segments=jnp.array([[4, 4, 4, 7, 7]]))
    Array([[0, 1, 2, 0, 1]], dtype=int32)

    Packed texts: Krell et al., arXiv:2107.02027, section 3.2.
    """
    if mask is None and segments is None and before is None:
        shape = jnp.shape(tokens)
        return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
    real = jnp.ones(jnp.shape(tokens), jnp.int32)
    if mask is not None:
        real = jnp.asarray(mask).astype(jnp.int32)
    count = jnp.cumsum(real, 1) - 1
    if before is not None:
        count = count + before["positions"].max(1, keepdims=True) + 1
    count = jnp.maximum(count, 0)
    if segments is None:
        return count.astype(jnp.int32)
    segments = jnp.asarray(segments)
    new = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return (count - jax.lax.cummax(jnp.where(new, count, 0), axis=1)).astype(jnp.int32)


def seen_places(positions, before):
    """The positions of all keys once these tokens are written behind those in a cache.

    Args:
      positions: [b t] of the new tokens.
      before: a `layers.attention.cache` of length s.

    Returns:
      [b s] int32, -1 where nothing is written.

    >>> from nnkit.layers.attention import cache
    >>> seen_places(jnp.array([[0, 1]]), cache(1, 4, kv_heads=1, head_dim=2))
    Array([[ 0,  1, -1, -1]], dtype=int32)

    Shazeer, arXiv:1911.02150, section 2.4.
    """
    index = before["index"]
    start = (jnp.zeros_like(index), index)
    return jax.lax.dynamic_update_slice(before["positions"], positions.astype(jnp.int32), start)
