"""A language model as pure functions that read a prompt and then one token after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from nnkit.core.checks import sizes
from nnkit.layers import memory
from nnkit.models import GPT, EncDec, RecurrentLM

__all__ = ["Decoder", "decoder", "sliding"]


class Decoder(NamedTuple):
    """What text is made with, as pure functions; your own model needs `start` and `step` only.

    Make it once: programs are compiled for its functions. A cache is a tree of arrays [b ...], or
    [] where all sequences share a number.

    Attributes:
      start: (params, tokens [b t], mask [b t] or None, room) -> (logits [b v] of the token after
        the last real one, cache); steps will read at most `room` tokens. A token not in the mask
        is padding, wherever it stands.
      step: (params, tokens [b n], cache) -> (logits [b n v] after each of them, cache). Where there
        is a rewind it takes mask=[b n], too.
      rewind: (cache, count [b]) -> cache without the real tokens from number `count` on, those of
        the prompt counted; or None. `speculative` needs it.
      vocabulary: v, or None if it is not known beforehand.
      length: the most tokens it reads, or None for any number.
      continues: does the text go on from the prompt? False: the prompt is a source of its own.

    >>> def start(params, tokens, mask, room):  # the next token is one more than the last
    ...     return params[tokens[:, -1]], tokens[:, -1]
    >>> count_up = Decoder(start, lambda params, tokens, cache: (params[tokens], tokens[:, -1]))
    >>> params = jnp.roll(jnp.eye(5), 1, axis=1)
    >>> nk.generate.sample(count_up, params, jnp.array([[0, 1]]), new_tokens=4).tokens
    Array([[2, 3, 4, 0]], dtype=int32)

    Shazeer, arXiv:1911.02150, section 2.4 (incremental decoding).
    """

    start: Callable[..., tuple[Any, Any]]
    step: Callable[..., tuple[Any, Any]]
    rewind: Callable | None = None
    vocabulary: int | None = None
    length: int | None = None
    continues: bool = True


def decoder(model, *, ahead: int | None = None) -> Decoder:
    """The `Decoder` of a model; the same one for equal models, so that nothing compiles twice.

    Parameters are those of a Step, or {"params": them} with what else the model carries. A GPT
    keeps keys and values, of a block with a window the last ones only; a RecurrentLM its state;
    an EncDec reads the source once, and writes from its token `begin`.

    Args:
      model: a `models.GPT`, `RecurrentLM` or `EncDec`, or a `Decoder`, which stays as it is.
      ahead: the most tokens of a step all but one of which may be taken back, or None; for GPT.

    Returns:
      A `Decoder`.

    Raises:
      TypeError: if it is another kind of model, or a field of it cannot be hashed.
      ValueError: if `ahead` is not >= 1.

    >>> model = nk.models.GPT(vocabulary=11, length=8, width=16, depth=1, heads=2)
    >>> params, read = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]])), decoder(model)
    >>> logits, _ = jax.jit(lambda *a: read.start(*a, None, 4))(params, jnp.array([[1, 2, 3]]))
    >>> logits.shape, read is decoder(model.clone())
    ((1, 11), True)

    Shazeer, arXiv:1911.02150, section 2.4; EncDec: Raffel et al., arXiv:1910.10683, section 2.1.
    """
    if isinstance(model, Decoder):
        return model
    if not isinstance(model, GPT | RecurrentLM | EncDec):
        raise TypeError(
            f"model is {model!r:.80}, expected a models.GPT, RecurrentLM or EncDec (an instance), "
            "or a generate.Decoder with your own start and step"
        )
    if ahead is not None:
        sizes("decoder", ahead=ahead)
    return _made(_hashable(model), ahead)


def sliding(model) -> Decoder:
    """A GPT for texts longer than it is: for every token it reads the last `length` ones anew.

    Positions begin at the first token that is still read, as while training, so that keys and
    values cannot be kept: a token costs as much as `length` of them. A RecurrentLM has no longest
    text, and stays what `decoder` makes of it.

    Args:
      model: a `models.GPT` or `RecurrentLM`.

    Returns:
      A `Decoder`, the same one for equal models.

    Raises:
      TypeError: if it is another kind of model.

    >>> model = nk.models.GPT(vocabulary=11, length=4, width=16, depth=1, heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]]))
    >>> nk.generate.sample(sliding(model), params, jnp.array([[1, 2]]), new_tokens=9).tokens.shape
    (1, 9)

    Karpathy 2022, nanoGPT, model.py, generate: the context is cropped to the block size.
    """
    if isinstance(model, RecurrentLM):
        return decoder(model)
    if not isinstance(model, GPT):
        raise TypeError(f"sliding: model is {model!r:.80}, expected a models.GPT")
    return _slid(_hashable(model))


def variables(params):
    """{"params": ...} of parameters with or without that name."""
    return params if isinstance(params, Mapping) and "params" in params else {"params": params}


def last_real(tokens, mask):
    """[b] the place of the last real token of [b t]."""
    t = tokens.shape[1]
    if mask is None:
        return jnp.full(tokens.shape[:1], t - 1, jnp.int32)
    return (t - 1 - jnp.argmax(jnp.asarray(mask).astype(bool)[:, ::-1], 1)).astype(jnp.int32)


def compact(tokens, mask, size):
    """(the last `size` real tokens of [b t], moved to the left: [b size]; how many: [b])."""
    real = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    total = real.sum(1, dtype=jnp.int32)
    at = jnp.cumsum(real, 1, dtype=jnp.int32) - 1 - jnp.maximum(total - size, 0)[:, None]
    at = jnp.where(real & (at >= 0), at, size)  # size: outside, so dropped
    rows = jnp.arange(tokens.shape[0])[:, None]
    text = jnp.zeros((tokens.shape[0], size), jnp.int32).at[rows, at].set(tokens, mode="drop")
    return text, jnp.minimum(total, size)


@functools.lru_cache(maxsize=64)
def _made(model: Any, ahead) -> Decoder:
    if isinstance(model, GPT):
        return _gpt(model, ahead)
    return _encdec(model) if isinstance(model, EncDec) else _recurrent(model)


def _hashable(model: Any) -> Any:
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{type(model).__name__}: {field.name} is {value!r:.60}, which has no hash, but "
                "programs are compiled for a model by its value: give tuples instead of lists"
            ) from None
    return model


def _gpt(model: GPT, ahead) -> Decoder:
    windows = model.window if isinstance(model.window, tuple) else (model.window,)
    ring = ahead or (1 if any(windows) else None)

    def start(params, tokens, mask, room):
        params = variables(params)
        dtype = params["params"]["embed"]["embedding"].dtype
        cache = model.cache(tokens.shape[0], tokens.shape[1] + room, dtype, ring=ring)
        only = last_real(tokens, mask)
        y, cache = model.apply(params, tokens, mask, cache=cache, only=only)
        return _logits(y)[:, 0], cache

    def step(params, tokens, cache, mask=None):
        y, cache = model.apply(variables(params), tokens, mask, cache=cache)
        return _logits(y), cache

    def rewind(cache, count):
        return {name: memory.rewind(block, count) for name, block in cache.items()}

    back = rewind if ahead else None
    return Decoder(start, step, back, model.vocabulary, model.length)


def _logits(y):
    """Without what experts hand on beside them."""
    return y[0] if isinstance(y, tuple) else y


def _recurrent(model: RecurrentLM) -> Decoder:
    def start(params, tokens, mask, room):
        params = variables(params)
        dtype = params["params"]["embed"]["embedding"].dtype
        state = model.start(tokens.shape[0], dtype)
        y, state = model.apply(params, tokens, mask, state=state)
        return jnp.take_along_axis(y, last_real(tokens, mask)[:, None, None], 1)[:, 0], state

    def step(params, tokens, state):
        return model.apply(variables(params), tokens, state=state)

    return Decoder(start, step, vocabulary=model.vocabulary)


def _encdec(model: EncDec) -> Decoder:
    def start(params, tokens, mask, room):
        params, b = variables(params), tokens.shape[0]
        encoded = model.apply(params, tokens, mask, method="encode")
        cache = model.apply(params, encoded, room + 1, mask, method="start")
        first = jnp.full((b, 1), model.begin, jnp.int32)
        y, cache = model.apply(params, first, cache=cache, method="decode")
        return y[:, 0], cache

    def step(params, tokens, cache):
        return model.apply(variables(params), tokens, cache=cache, method="decode")

    return Decoder(start, step, vocabulary=model.vocabulary, continues=False)


@functools.lru_cache(maxsize=64)
def _slid(model: Any) -> Decoder:
    length = model.length

    def read(params, text, count):
        mask = jnp.arange(length)[None] < count[:, None]
        y = model.apply(variables(params), text, mask, only=count - 1)
        return _logits(y)[:, 0], {"text": text, "count": count}

    def start(params, tokens, mask, room):
        return read(params, *compact(tokens, mask, length))

    def one(params, token, cache):
        text, count = cache["text"], cache["count"]
        full = (count == length)[:, None]
        text = jnp.where(full, jnp.roll(text, -1, 1), text)
        count = jnp.minimum(count + 1, length)
        text = text.at[jnp.arange(text.shape[0]), count - 1].set(token)
        return read(params, text, count)

    def step(params, tokens, cache):
        found = []
        for i in range(tokens.shape[1]):
            logits, cache = one(params, tokens[:, i], cache)
            found.append(logits)
        return jnp.stack(found, 1), cache

    return Decoder(start, step, vocabulary=model.vocabulary)
