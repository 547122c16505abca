"""Where the guesses of speculative decoding come from: a small model, or the text itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nnkit.generate.decoders import Decoder, compact
from nnkit.generate.sampling import folded, law, pick

__all__: list[str] = []


class Guesser(NamedTuple):
    """Where guesses come from: a draft model, or the text itself.

    Attributes:
      start: (params, tokens [b t], mask, room) -> memory, before the first new token.
      guess: (params, state, rule, keys, left [b]) -> (guess [b k], q [b k v], memory).
      tell: (memory, new [b k+1], length [b], count [b]) -> memory: of the new tokens so many are
        written; so many are read by now.
    """

    start: Callable
    guess: Callable
    tell: Callable


@functools.lru_cache(maxsize=64)
def drafting(small: Decoder, k: int) -> Guesser:
    """Guesses of a draft model; its last step only reads the last guess."""

    def start(params, tokens, mask, room):
        return small.start(params, tokens, mask, room)[1]

    def guess(params, state, rule, keys, left):
        def one(carry, j):
            token, seen, cache = carry
            logits, cache = small.step(params, token[:, None], cache, mask=(j < left)[:, None])
            p = law(rule, logits[:, 0], seen)
            token = pick(folded(keys, j), jnp.log(p))
            if seen is not None:
                seen = seen | jax.nn.one_hot(token, seen.shape[1], dtype=bool)
            return (token, seen, cache), (token, p)

        begin = (state.token, state.seen, state.memory)
        (_, _, cache), (tokens, laws) = jax.lax.scan(one, begin, jnp.arange(k + 1))
        return tokens[:k].swapaxes(0, 1), laws[:k].swapaxes(0, 1), cache

    def tell(memory, new, length, count):
        return small.rewind(memory, count)  # pyright: ignore[reportOptionalCall]

    return Guesser(start, guess, tell)


@functools.lru_cache(maxsize=64)
def looking(k: int, ngram: int, vocabulary: int) -> Guesser:
    """Guesses from the text so far, the last token chosen among it."""

    def start(params, tokens, mask, room):
        return compact(tokens, mask, tokens.shape[1] + room + 1)

    def guess(params, state, rule, keys, left):
        text, size = state.memory
        at = behind(text, size, ngram)[:, None] + jnp.arange(k)[None]  # [b k]
        there = at < size[:, None]
        found = jnp.take_along_axis(text, jnp.minimum(at, text.shape[1] - 1), 1)
        q = jnp.where(there[..., None], jax.nn.one_hot(found, vocabulary), 0)
        return found, q, state.memory

    def tell(memory, new, length, count):
        text, size = memory
        order = jnp.arange(new.shape[1])[None]
        at = jnp.where(order < length[:, None], size[:, None] + order, text.shape[1])
        rows = jnp.arange(text.shape[0])[:, None]
        return text.at[rows, at].set(new, mode="drop"), size + length

    return Guesser(start, guess, tell)


def behind(text, size, ngram):
    """[b] where text [b l] goes on behind the latest earlier n-gram like its last; size: nowhere.

    The longest n-gram that is found, of `ngram` tokens or fewer, is taken.
    """
    length = text.shape[1]
    places = jnp.arange(length)[None]
    found = size
    for n in range(1, min(ngram, length - 1) + 1):  # longer ones last: they take precedence
        like = (places + n < size[:, None]) & (size[:, None] > n)
        for j in range(n):
            last = jnp.take_along_axis(text, jnp.maximum(size - n + j, 0)[:, None], 1)  # [b 1]
            like = like & (jnp.roll(text, -j, 1) == last)
        latest = length - 1 - jnp.argmax(like[:, ::-1], 1)
        found = jnp.where(like.any(1), latest + n, found)
    return found.astype(jnp.int32)
