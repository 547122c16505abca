"""Drawing texts: the prompt is read and the text written by one compiled program."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnkit.generate import inputs
from nnkit.generate.decoders import Decoder, decoder

__all__ = ["Sampled", "sample"]


class Sampled(NamedTuple):
    """Texts, one in each row.

    Attributes:
      tokens: [b n] int32 new tokens, with the one that ends a text; `pad` behind it: the text of
        row i is tokens[i][mask[i]].
      mask: [b n] bool, True for tokens written.
      log_probs: [b n] log-probability of each token under the model, 0 for padding.
      warped_log_probs: [b n] the same under the law after the warp, from which it was drawn.

    >>> Sampled(jnp.array([[7, 2, 0]]), jnp.array([[1, 1, 0]]), None, None).lengths
    Array([2], dtype=int32)

    Holtzman et al., arXiv:1904.09751, section 2.
    """

    tokens: Any
    mask: Any
    log_probs: Any
    warped_log_probs: Any

    @property
    def lengths(self):
        """[b] how many tokens were written."""
        return jnp.asarray(self.mask).sum(1, dtype=jnp.int32)


def sample(
    model, params, tokens, mask=None, *, new_tokens, key=None, warp=None, end=None, pad=0
) -> Sampled:
    """Texts that go on from prompts: the likeliest token every time, or drawn from its law.

    x_n ~ softmax(warp(logits(x_<n))); without a key x_n = argmax. The program stops when every text
    has ended. Calls of the same shapes compile nothing new, whatever key, warp's numbers, end.

    Row i draws by `fold_in(key, i)`, token n of it by n: what a row becomes depends on its prompt
    and its number only, not on the others (but for experts with a capacity).

    Args:
      model: a `models.GPT`, `RecurrentLM`, `EncDec`, or any `Decoder`.
      params: its parameters, of a Step, or {"params": them, ...}.
      tokens: [b t] prompts, or sources; t at least 1.
      mask: [b t] True for real tokens, padding left or right; or None.
      new_tokens: the most tokens to write.
      key: [] a typed key, or [b] one for each row; None is greedy.
      warp: (logits [b v], seen [b v] bool) -> logits, such as `temperature(0.8)`; or None.
      end: id that ends a text, or None.
      pad: id that stands behind the end.

    Returns:
      A `Sampled`.

    Raises:
      TypeError: if the model, key or warp is of another kind.
      ValueError: if a prompt is empty, known ids are outside the vocabulary, or more is to be read
        than the model can: then give `sliding(model)`.

    >>> model = nk.models.GPT(vocabulary=11, length=8, width=16, depth=1, heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]]))
    >>> options = {"key": jax.random.key(1), "warp": nk.generate.temperature(0.8)}
    >>> sample(model, params, jnp.array([[1, 2, 3]]), new_tokens=5, **options).tokens.shape
    (1, 5)

    Holtzman et al., arXiv:1904.09751, section 2; incremental: Shazeer, arXiv:1911.02150.
    """
    made = decoder(model)
    inputs.weights("sample", params)
    tokens, mask = inputs.prompt("sample", made, tokens, mask, new_tokens, end=end, pad=pad)
    key = inputs.random_key("sample", key, tokens.shape[0])
    rule = Rule(inputs.warping(warp), key, inputs.token_id(end), inputs.token_id(pad))
    return _sample(made, params, tokens, mask, rule, int(new_tokens))


class Rule(NamedTuple):
    """How a token is chosen: warp, key [] or [b], ids of end and padding."""

    warp: Any
    key: Any
    end: Any
    pad: Any


class State(NamedTuple):
    """Between two tokens: the last one of each row, not yet read, and what was before."""

    token: Any  # [b]
    ended: Any  # [b] bool
    seen: Any  # [b v] bool, or None without a warp
    cache: Any
    n: Any  # [] tokens chosen


@functools.partial(jax.jit, static_argnames=("decoder", "new_tokens"))
def _sample(decoder, params, tokens, mask, rule, new_tokens):
    state, first = begin(decoder, params, tokens, mask, rule, new_tokens - 1)
    first = Sampled(*(x[:, None] for x in first))
    if new_tokens == 1:
        return first
    _, rest = advance(decoder, params, state, rule, new_tokens - 1, new_tokens)
    return Sampled(*(jnp.concatenate(pair, 1) for pair in zip(first, rest)))


def begin(decoder: Decoder, params, tokens, mask, rule: Rule, room):
    """(state, a `Sampled` of [b]): the prompt is read, the first token chosen."""
    logits, cache = decoder.start(params, tokens, mask, room)
    seen = None if rule.warp is None else seen_in(decoder, tokens, mask, logits.shape[-1])
    none = jnp.zeros(tokens.shape[:1], bool)
    state = State(tokens[:, -1], none, seen, cache, jnp.zeros((), jnp.int32))
    return choose(rule, state, logits)


def advance(decoder: Decoder, params, state: State, rule: Rule, size, stop):
    """(state, a `Sampled` of [b size]): tokens until `stop` [] are chosen, or all texts ended."""
    b = state.token.shape[0]
    zeros = lambda dtype: jnp.zeros((b, size), dtype)
    width = jnp.float32
    out = Sampled(zeros(jnp.int32) + rule.pad, zeros(bool), zeros(width), zeros(width))

    def more(carry):
        i, state, _ = carry
        return (i < size) & (state.n < stop) & ~state.ended.all()

    def one(carry):
        i, state, out = carry
        logits, cache = decoder.step(params, state.token[:, None], state.cache)
        state, new = choose(rule, state._replace(cache=cache), logits[:, 0])
        return i + 1, state, Sampled(*(x.at[:, i].set(y) for x, y in zip(out, new)))

    return jax.lax.while_loop(more, one, (jnp.zeros((), jnp.int32), state, out))[1:]


def choose(rule: Rule, state: State, logits):
    """(state with the next token, a `Sampled` of [b]) from logits [b v]."""
    log_p, log_w = laws(rule.warp, logits, state.seen)
    keys = inputs.row_keys(rule.key, logits.shape[0])
    chosen = pick(None if keys is None else folded(keys, state.n), log_w)
    token = jnp.where(state.ended, rule.pad, chosen)
    real = ~state.ended
    seen = state.seen
    if seen is not None:
        seen = seen | (jax.nn.one_hot(token, seen.shape[1], dtype=bool) & real[:, None])
    at = lambda x: jnp.where(real, jnp.take_along_axis(x, token[:, None], 1)[:, 0], 0)
    state = State(token, state.ended | (token == rule.end), seen, state.cache, state.n + 1)
    return state, Sampled(token, real, at(log_p), at(log_w))


def laws(warp, logits, seen):
    """Log-probabilities [... v] float32 under the model, and after the warp."""
    logits = logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits, -1)
    return log_p, log_p if warp is None else jax.nn.log_softmax(warp(logits, seen), -1)


def law(rule, logits, seen):
    """Probabilities [... v] after the warp; all on the likeliest token for greedy."""
    shape, v = logits.shape, logits.shape[-1]
    flat = lambda x: None if x is None else x.reshape(-1, v)
    log_w = laws(rule.warp, flat(logits), flat(seen))[1].reshape(shape)
    if rule.key is None:
        return jax.nn.one_hot(jnp.argmax(log_w, -1), v, dtype=jnp.float32)
    return jnp.exp(log_w)


def pick(keys, log_p):
    """[b] tokens drawn from log_p [b v] by keys [b], or the likeliest without."""
    if keys is None:
        return jnp.argmax(log_p, -1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, log_p).astype(jnp.int32)


def folded(keys, n):
    """[b] keys, each with the number n [] folded in."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, n)


def seen_in(decoder, tokens, mask, v):
    """[b v] which tokens the text has so far."""
    b = tokens.shape[0]
    if not decoder.continues:
        return jnp.zeros((b, v), bool)
    real = jnp.ones(tokens.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    rows = jnp.arange(b)[:, None]
    return jnp.zeros((b, v), jnp.int32).at[rows, tokens].add(real) > 0
