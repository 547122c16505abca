"""Beam search: the likeliest texts, as far as a beam of some width finds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nnkit.core.checks import concrete, sizes
from nnkit.generate import inputs
from nnkit.generate.decoders import decoder

__all__ = ["Beams", "beam", "gnmt", "power"]


class Beams(NamedTuple):
    """The best texts of each row, best first.

    Attributes:
      tokens: [b w n] int32 new tokens, with the one that ends a text; `pad` behind it.
      mask: [b w n] bool, True for tokens written; all False where there are fewer than w texts.
      scores: [b w] log-probability / penalty(length); -inf where there is no text.
      log_probs: [b w] log-probability of the whole text.

    >>> Beams._fields
    ('tokens', 'mask', 'scores', 'log_probs')

    Wu et al., arXiv:1609.08144, section 7.
    """

    tokens: Any
    mask: Any
    scores: Any
    log_probs: Any


def gnmt(alpha: float = 0.6) -> Callable:
    """The length penalty of Google's translator: ((5 + n) / 6)^alpha.

    Args:
      alpha: [] 0 is none; the larger, the longer the texts. 0.6 in T5 and the Transformer.

    Returns:
      A function: lengths [n] -> penalties [n] float32.

    Raises:
      ValueError: if alpha is not finite.

    >>> gnmt(1.0)(jnp.array([1, 7]))
    Array([1., 2.], dtype=float32)

    Wu et al., arXiv:1609.08144, eq. 14.
    """
    return Partial(_gnmt, _alpha(alpha))


def power(alpha: float = 1.0) -> Callable:
    """The length penalty of transformers: n^alpha, with alpha = 1 the mean log-probability.

    Args:
      alpha: [] 0 is none; the larger, the longer the texts.

    Returns:
      A function: lengths [n] -> penalties [n] float32.

    Raises:
      ValueError: if alpha is not finite.

    >>> power(2.0)(jnp.array([1, 3])).round(4)
    Array([1., 9.], dtype=float32)

    Cho et al., arXiv:1409.1259, section 4.2 (alpha = 1).
    """
    return Partial(_power, _alpha(alpha))


def beam(
    model, params, tokens, mask=None, *, new_tokens, width=4, end=None, penalty=None, pad=0
) -> Beams:
    """The `width` best texts that beam search finds.

    score(y) = log p(y) / penalty(n), n tokens with the one that ends it. The `width` likeliest
    beginnings are kept and continued. Texts are those that end, and at new_tokens those that have
    not ended, too. A row stops early when no beginning, whatever its length in the end, could
    still beat the worst of `width` texts: stopping changes nothing.

    Args:
      model: a `models.GPT`, `RecurrentLM`, `EncDec`, or any `Decoder`.
      params: its parameters, of a Step, or {"params": them, ...}.
      tokens: [b t] prompts, or sources.
      mask: [b t] True for real tokens, padding left or right; or None.
      new_tokens: the most tokens to write.
      width: of the beam, and how many texts come back.
      end: id that ends a text, or None: all have new_tokens.
      penalty: lengths [n] -> [n] positive numbers, such as `gnmt(0.6)`; None is `power(1.0)`.
      pad: id that stands behind the end.

    Returns:
      `Beams`.

    Raises:
      TypeError: if the model or the penalty is of another kind.
      ValueError: as `sample`; or if width is not >= 1.

    >>> step = lambda params, tokens, cache: (params[tokens], cache)
    >>> after = nk.generate.Decoder(lambda params, tokens, *_: (params[tokens[:, -1]], ()), step)
    >>> law = jnp.array([[0.0, 0.6, 0.4], [0.5, 0.3, 0.2], [0.0, 0.1, 0.9]])  # of the next token
    >>> found = beam(after, jnp.log(law), jnp.array([[0]]), new_tokens=3, width=2, penalty=power(0))
    >>> found.tokens.tolist(), jnp.exp(found.scores).round(3)  # the likeliest start is not the best
    ([[[2, 2, 2], [1, 0, 1]]], Array([[0.324, 0.18 ]], dtype=float32))

    Graves, arXiv:1211.3711, algorithm 1; penalty and end: Wu et al., arXiv:1609.08144, section 7.
    """
    made = decoder(model)
    inputs.weights("beam", params)
    sizes("beam", width=width)
    tokens, mask = inputs.prompt("beam", made, tokens, mask, new_tokens, end=end, pad=pad)
    penalty = power() if penalty is None else penalty
    if not callable(penalty):
        raise TypeError(f"penalty is {penalty!r:.60}, expected a function such as gnmt(0.6)")
    penalty = penalty if isinstance(penalty, Partial) else Partial(penalty)
    end, pad = inputs.token_id(end), inputs.token_id(pad)
    return _beam(made, params, tokens, mask, penalty, end, pad, int(new_tokens), int(width))


class Alive(NamedTuple):
    """Beginnings: log-probabilities [b w] (-inf: none), tokens [b w n], memory [b*w ...]."""

    log_p: Any
    tokens: Any
    cache: Any


@functools.partial(jax.jit, static_argnames=("decoder", "new_tokens", "width"))
def _beam(decoder, params, tokens, mask, penalty, end, pad, new_tokens, width):
    b = tokens.shape[0]
    lengths = jnp.arange(1, new_tokens + 1)
    penalties = penalty(lengths).astype(jnp.float32)  # [n]
    largest = jax.lax.cummax(penalties, axis=0, reverse=True)  # of this length and longer ones
    logits, cache = decoder.start(params, tokens, mask, new_tokens - 1)
    wide = lambda x: jnp.repeat(x, width, 0) if x.ndim else x
    none = jnp.full((b, width), -jnp.inf, jnp.float32)
    blank = jnp.zeros((b, width, new_tokens), jnp.int32) + pad
    alive = Alive(none.at[:, 0].set(0.0), blank, jax.tree.map(wide, cache))
    done = Beams(blank, jnp.zeros(blank.shape, bool), none, none)

    def more(carry):
        n, alive, done = carry
        reach = alive.log_p.max(1) / largest[jnp.minimum(n, new_tokens - 1)]  # [b]
        return (n < new_tokens) & (reach > done.scores[:, -1]).any()

    def one(carry):
        n, alive, done = carry
        last = jax.lax.dynamic_index_in_dim(alive.tokens, n - 1, 2, keepdims=False)  # [b w]
        y, cache = decoder.step(params, last.reshape(-1, 1), alive.cache)
        alive = alive._replace(cache=cache)
        return n + 1, *_grow(alive, done, y.reshape(b, width, -1), n, end, penalties)

    wide_logits = jnp.broadcast_to(logits[:, None], (b, width, logits.shape[-1]))
    first = jnp.zeros((), jnp.int32)
    carry = first + 1, *_grow(alive, done, wide_logits, first, end, penalties)
    return jax.lax.while_loop(more, one, carry)[2]


def _grow(alive: Alive, done: Beams, logits, n, end, penalties):
    """Every beginning with every token behind it: what goes on, and the best texts so far."""
    b, w, v = logits.shape
    size = alive.tokens.shape[2]
    each = alive.log_p[..., None] + jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    log_p, at = jax.lax.top_k(each.reshape(b, w * v), min(2 * w, w * v))  # [b m]
    parent, token = at // v, (at % v).astype(jnp.int32)
    tokens = jnp.take_along_axis(alive.tokens, parent[..., None], 1).at[:, :, n].set(token)
    ends = (token == end) | (n + 1 == size)  # of 2w texts w at most end here, so w go on
    scores = jnp.where(ends, log_p / penalties[n], -jnp.inf)
    real = jnp.isfinite(scores)[..., None] & (jnp.arange(size) <= n)[None, None]
    new = Beams(tokens, real, scores, jnp.where(ends, log_p, -jnp.inf))
    both = Beams(*(jnp.concatenate(pair, 1) for pair in zip(done, new)))
    best = jax.lax.top_k(both.scores, w)[1]
    kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, log_p), w)
    rows = (jnp.arange(b)[:, None] * w + _at(parent, kept[1])).reshape(-1)
    cache = jax.tree.map(lambda x: x[rows] if x.ndim else x, alive.cache)
    alive = Alive(kept[0], _at(tokens, kept[1]), cache)
    return alive, Beams(*(_at(x, best) for x in both))


def _at(x, places):
    """x [b m ...] at places [b w]."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), 1)


def _gnmt(alpha, lengths):
    return ((5 + lengths.astype(jnp.float32)) / 6) ** alpha


def _power(alpha, lengths):
    return lengths.astype(jnp.float32) ** alpha


def _alpha(alpha):
    known = concrete(alpha)
    if known is not None and not (known.dtype.kind in "fiu" and abs(known) < float("inf")):
        raise ValueError(f"alpha is {alpha!r}, expected a finite number; 0 is no penalty")
    return jnp.asarray(alpha).astype(jnp.float32)
