"""Speculative decoding: cheap guesses, checked by the model several at a time; its law is kept."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnkit.core.checks import sizes
from nnkit.generate import inputs
from nnkit.generate.decoders import Decoder, decoder
from nnkit.generate.guessers import drafting, looking
from nnkit.generate.sampling import Rule, folded, law, pick, seen_in

__all__ = ["Speculated", "acceptance", "prompt_lookup", "residual", "speculative"]


class Speculated(NamedTuple):
    """Texts, one in each row, and what the guesses were worth.

    Attributes:
      tokens: [b n] int32 new tokens, with the one that ends a text; `pad` behind it.
      mask: [b n] bool, True for tokens written.
      log_probs: [b n] log-probability of each token under the model, 0 for padding.
      accepted: [b] how many guesses were taken.
      guessed: [b] how many were made.
      rounds: [] how often the model was called after the prompt.

    >>> Speculated(None, None, None, jnp.array([3]), jnp.array([4]), 1).rate
    Array([0.75], dtype=float32)

    Leviathan et al., arXiv:2211.17192, section 3.1 (the rate).
    """

    tokens: Any
    mask: Any
    log_probs: Any
    accepted: Any
    guessed: Any
    rounds: Any

    @property
    def rate(self):
        """[b] the share of guesses taken; NaN where none was made."""
        return jnp.asarray(self.accepted).astype(jnp.float32) / self.guessed.astype(jnp.float32)


def acceptance(p, q):
    """The probability to take each token as guessed: min(1, p / q), 0 where q is 0.

    Args:
      p: [... v] the law wanted.
      q: [... v] the law of the guess; all 0: there is none.

    Returns:
      [... v].

    >>> acceptance(jnp.array([0.2, 0.8]), jnp.array([0.5, 0.5]))
    Array([0.4, 1. ], dtype=float32)

    Leviathan et al., arXiv:2211.17192, section 2.3.
    """
    return jnp.where(q > 0, jnp.minimum(1, p / jnp.where(q > 0, q, 1)), 0)


def residual(p, q):
    """The law of the token that stands in for a guess refused: (p - q)+ / sum (p - q)+.

    So q(x) acceptance(x) + (1 - sum q acceptance) residual(x) = p(x).

    Args:
      p: [... v] the law wanted.
      q: [... v] the law of the guess; all 0: there was none, and p comes back.

    Returns:
      [... v] a law; p where q = p, and nothing is ever refused.

    >>> residual(jnp.array([0.2, 0.8]), jnp.array([0.5, 0.5]))
    Array([0., 1.], dtype=float32)

    Leviathan et al., arXiv:2211.17192, section 2.3; Chen et al., arXiv:2302.01318, theorem 1.
    """
    rest = jnp.maximum(p - q, 0)
    total = rest.sum(-1, keepdims=True)
    return jnp.where(total > 0, rest / jnp.where(total > 0, total, 1), p)


def verify(keys, p, q, guess):
    """How many guesses are taken, and the token after them.

    Args:
      keys: [b] typed keys.
      p: [b k+1 v] laws wanted, at the guesses and behind the last of them.
      q: [b k v] laws of the guesses; all 0 where there is none.
      guess: [b k] tokens drawn from q.

    Returns:
      (accepted [b], token [b]).

    >>> p, q = jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), jnp.array([[[0.5, 0.5]]])
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> verify(keys, p, q, jnp.array([[1]]))
    (Array([1], dtype=int32), Array([0], dtype=int32))

    Leviathan et al., arXiv:2211.17192, algorithm 1.
    """
    k = guess.shape[1]
    share = jnp.take_along_axis(acceptance(p[:, :k], q), guess[..., None], 2)[..., 0]  # [b k]
    u = jax.vmap(lambda key: jax.random.uniform(key, (k,)))(folded(keys, 0))
    count = jnp.cumprod(u < share, 1).sum(1, dtype=jnp.int32)
    after = jnp.concatenate([residual(p[:, :k], q), p[:, k:]], 1)
    then = jnp.take_along_axis(after, count[:, None, None], 1)[:, 0]  # [b v]
    return count, pick(folded(keys, 1), jnp.log(then))


def speculative(
    model, params, draft, draft_params, tokens, mask=None, *, new_tokens,
    ahead=4, key=None, warp=None, end=None, pad=0,
) -> Speculated:  # fmt: skip
    """Texts with the law of `sample`, faster: a small model guesses, the large one checks.

    The draft writes `ahead` tokens, x ~ q; the model reads them in one step. Guess after guess is
    taken with probability min(1, p(x) / q(x)); in place of the first one refused comes a token from
    (p - q)+. Both laws are after the warp, so that what is written has the model's law exactly;
    without a key it is the greedy text. The draws are not those of `sample` with the same key.

    Args:
      model: a `models.GPT`, or a `Decoder` with `rewind`, whose step takes a mask.
      params: its parameters.
      draft: a small model of the same kind and vocabulary.
      draft_params: its parameters.
      tokens: [b t] prompts.
      mask: [b t] True for real tokens, padding left or right; or None.
      new_tokens: the most tokens to write.
      ahead: guesses in a round.
      key: [] a typed key, or [b] one for each row; None is greedy.
      warp: as in `sample`.
      end: id that ends a text, or None.
      pad: id that stands behind the end.

    Returns:
      A `Speculated`.

    Raises:
      TypeError: as `sample`.
      ValueError: as `sample`; or if the vocabularies differ, or tokens cannot be taken back.

    >>> model = nk.models.GPT(vocabulary=11, length=8, width=16, depth=2, heads=2)
    >>> draft, prompt = model.clone(depth=1), jnp.array([[1, 2]])
    >>> params = jax.jit(model.init)(jax.random.key(0), prompt)
    >>> small = jax.jit(draft.init)(jax.random.key(1), prompt)
    >>> found = speculative(model, params, draft, small, prompt, new_tokens=5, ahead=2)
    >>> bool((found.tokens == nk.generate.sample(model, params, prompt, new_tokens=5).tokens).all())
    True

    Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318, algorithm 2.
    """
    target, small = _rewinding("model", model, ahead), _rewinding("draft", draft, ahead)
    if target.vocabulary != small.vocabulary:
        raise ValueError(
            f"speculative: the draft has a vocabulary of {small.vocabulary} tokens, the model of "
            f"{target.vocabulary}, expected the same: they must share a tokenizer"
        )
    given = inputs.prompt("speculative", small, tokens, mask, new_tokens)
    given = inputs.prompt("speculative", target, *given, new_tokens, end=end, pad=pad)
    rule = _rule("speculative", given[0], key, warp, end, pad)
    guesser = drafting(small, int(ahead))
    return _speculate(target, guesser, (params, draft_params), *given, rule, int(new_tokens))


def prompt_lookup(
    model, params, tokens, mask=None, *, new_tokens,
    ahead=4, ngram=3, key=None, warp=None, end=None, pad=0,
) -> Speculated:  # fmt: skip
    """Texts with the law of `sample`, faster where they repeat themselves: the text is the draft.

    Where the last tokens (`ngram` of them, else one less, ...) stood before, for the last time, the
    `ahead` tokens behind them are the guess. It is certain, q = 1, so that a guess x is taken with
    probability p(x), and refused leaves p without x. Nothing found: one token, as always.

    Args:
      model: a `models.GPT`, or a `Decoder` with `rewind`, whose step takes a mask.
      params: its parameters.
      tokens: [b t] prompts.
      mask: [b t] True for real tokens, padding left or right; or None.
      new_tokens: the most tokens to write.
      ahead: guesses in a round.
      ngram: the most tokens that must agree.
      key: [] a typed key, or [b] one for each row; None is greedy.
      warp: as in `sample`.
      end: id that ends a text, or None.
      pad: id that stands behind the end.

    Returns:
      A `Speculated`.

    Raises:
      TypeError: as `sample`.
      ValueError: as `sample`; or if ngram is not >= 1, or tokens cannot be taken back.

    >>> model = nk.models.GPT(vocabulary=11, length=16, width=16, depth=1, heads=2)
    >>> prompt = jnp.array([[1, 2, 1, 2]])
    >>> params = jax.jit(model.init)(jax.random.key(0), prompt)
    >>> found = prompt_lookup(model, params, prompt, new_tokens=8)
    >>> bool((found.tokens == nk.generate.sample(model, params, prompt, new_tokens=8).tokens).all())
    True

    Saxena 2023, prompt lookup decoding; the law: Leviathan et al., arXiv:2211.17192, section 2.3.
    """
    target = _rewinding("model", model, ahead)
    sizes("prompt_lookup", ngram=ngram)
    given = inputs.prompt("prompt_lookup", target, tokens, mask, new_tokens, end=end, pad=pad)
    rule = _rule("prompt_lookup", given[0], key, warp, end, pad)
    guesser = looking(int(ahead), int(ngram), target.vocabulary)
    return _speculate(target, guesser, (params, None), *given, rule, int(new_tokens))


def _rewinding(name, model, ahead) -> Decoder:
    sizes("speculative", ahead=ahead)
    made = decoder(model, ahead=int(ahead) + 1)
    if made.rewind is None or made.vocabulary is None:
        raise ValueError(
            f"the {name} is {type(model).__name__}, expected a models.GPT, or a Decoder with a "
            "rewind and a vocabulary: tokens guessed wrongly must be taken back"
        )
    return made


def _rule(owner, tokens, key, warp, end, pad) -> Rule:
    key = inputs.random_key(owner, key, tokens.shape[0])
    pad = inputs.token_id(pad)
    return Rule(inputs.warping(warp), key, inputs.token_id(end), pad)


class State(NamedTuple):
    """Between two rounds; every field is of each row, but the number of the round."""

    token: Any  # [b] the last one chosen, not yet read
    ended: Any  # [b] bool
    seen: Any  # [b v] bool, or None without a warp
    cache: Any
    memory: Any  # of the guesser
    count: Any  # [b] tokens read
    n: Any  # [b] tokens chosen
    out: Any  # tokens [b n], log_probs [b n]
    stats: Any  # accepted [b], guessed [b]
    round: Any  # []


@functools.partial(jax.jit, static_argnames=("target", "guesser", "new_tokens"))
def _speculate(target, guesser, params, tokens, mask, rule, new_tokens):
    b, t = tokens.shape
    keys = inputs.row_keys(jax.random.key(0) if rule.key is None else rule.key, b)
    logits, cache = target.start(params[0], tokens, mask, new_tokens - 1)
    seen = None if rule.warp is None else seen_in(target, tokens, mask, logits.shape[-1])
    token = pick(folded(keys, 0), jnp.log(law(rule, logits, seen)))
    count = jnp.full((b,), t, jnp.int32) if mask is None else mask.sum(1, dtype=jnp.int32)
    memory = guesser.start(params[1], tokens, mask, new_tokens - 1)
    none, one = jnp.zeros((b,), jnp.int32), jnp.ones((b,), jnp.int32)
    out = (
        jnp.zeros((b, new_tokens), jnp.int32) + rule.pad,
        jnp.zeros((b, new_tokens), jnp.float32),
    )
    state = State(token, none > 0, seen, cache, memory, count, none, out, (none, none), none[0])
    state = _written(guesser, state, rule, token[:, None], one, logits[:, None])

    def more(state):
        return (~state.ended & (state.n < new_tokens)).any()

    def once(state):
        return _round(target, guesser, params, rule, folded(keys, state.round), state)

    state = jax.lax.while_loop(more, once, state)
    written = jnp.arange(new_tokens)[None] < state.n[:, None]
    (new, log_p), (accepted, guessed) = state.out, state.stats
    return Speculated(new, written, log_p, accepted, guessed, state.round - 1)


def _round(target, guesser, params, rule, keys, state: State):
    """Guess, read, check, write."""
    size = state.out[0].shape[1]
    left = jnp.where(state.ended, 0, size - state.n)  # [b] tokens still to be written
    guess, q, memory = guesser.guess(params[1], state, rule, folded(keys, 2), left)
    k = guess.shape[1]
    here = jnp.arange(k + 1)[None] < left[:, None]  # [b k+1] what is worth reading
    q = jnp.where(here[:, 1:, None], q, 0)
    read = jnp.concatenate([state.token[:, None], guess], 1)
    logits, cache = target.step(params[0], read, state.cache, mask=here)
    p = law(rule, logits, _seen_with(state.seen, guess))
    a, token = verify(keys, p, q, guess)
    length = jnp.where(left > 0, a + 1, 0)
    new = jnp.concatenate([guess, guess[:, :1]], 1)
    new = jnp.where(jnp.arange(k + 1)[None] == a[:, None], token[:, None], new)
    count = state.count + length
    stats = state.stats[0] + jnp.where(left > 0, a, 0), state.stats[1] + (q.sum(-1) > 0).sum(1)
    cache = target.rewind(cache, count)
    state = state._replace(cache=cache, memory=memory, count=count, stats=stats)
    return _written(guesser, state, rule, new, length, logits)


def _written(guesser, state: State, rule, new, length, logits):
    """The state with the first `length` [b] of the tokens new [b k] behind, up to the end."""
    order = jnp.arange(new.shape[1])[None]
    ends = (new == rule.end) & (order < length[:, None])
    over = ends.any(1)
    length = jnp.where(over, jnp.argmax(ends, 1).astype(jnp.int32) + 1, length)
    real = order < length[:, None]  # [b k]
    size = state.out[0].shape[1]
    at = jnp.where(real, state.n[:, None] + order, size)  # size: outside, so dropped
    rows = jnp.arange(new.shape[0])[:, None]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    log_p = jnp.take_along_axis(log_p, new[..., None], 2)[..., 0]
    out = tuple(x.at[rows, at].set(y, mode="drop") for x, y in zip(state.out, (new, log_p)))
    token = jnp.take_along_axis(new, jnp.maximum(length - 1, 0)[:, None], 1)[:, 0]
    seen = state.seen
    if seen is not None:
        seen = seen | (jax.nn.one_hot(new, seen.shape[1], dtype=bool) & real[..., None]).any(1)
    return state._replace(
        token=jnp.where(length > 0, token, state.token),
        ended=state.ended | over,
        seen=seen,
        memory=guesser.tell(state.memory, new, length, state.count),
        n=state.n + length,
        out=out,
        round=state.round + 1,
    )


def _seen_with(seen, guess):
    """[b k+1 v] the tokens seen at every guess, the guesses before it among them."""
    if seen is None:
        return None
    more = jnp.cumsum(jax.nn.one_hot(guess, seen.shape[1], dtype=jnp.int32), 1) > 0
    return jnp.concatenate([seen[:, None], more | seen[:, None]], 1)
