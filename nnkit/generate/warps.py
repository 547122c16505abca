"""Warps of the law of the next token: (logits [b v], seen [b v]) -> logits [b v].

A token left out has the logit -inf. Each is equal to the one of that name in transformers (but for
equal logits at the border, which all stay); `chain` goes from left to right, and their order is

    chain(repetition_penalty(1.1), temperature(0.8), top_k(50), top_p(0.95), min_p(0.05))

A warp is a tree whose leaves are its numbers: under jit another temperature compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nnkit.core.checks import concrete, positive

__all__ = ["chain", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"]


def temperature(t: float) -> Callable:
    """Sharper (t < 1) or flatter (t > 1): logits / t.

    Args:
      t: [] the temperature, above 0.

    Returns:
      A warp.

    Raises:
      ValueError: if t is not a finite number > 0; greedy is key=None.

    >>> temperature(0.5)(jnp.array([[1.0, 2.0]]), None)
    Array([[2., 4.]], dtype=float32)

    Ackley et al. 1985, doi:10.1207/s15516709cog0901_7, eq. 5.
    """
    if (known := concrete(t)) is not None and known.size == 1 and known == 0:
        raise ValueError("temperature is 0, expected > 0; for the likeliest token give key=None")
    positive(temperature=t)
    return Partial(_temperature, _number(t))


def top_k(k: int) -> Callable:
    """The k likeliest tokens, and those as likely as the last of them.

    Args:
      k: [] how many, at least 1; from the size of the vocabulary on all.

    Returns:
      A warp.

    Raises:
      ValueError: if k is not an integer >= 1.

    >>> top_k(2)(jnp.array([[1.0, 3.0, 2.0]]), None)
    Array([[-inf,   3.,   2.]], dtype=float32)

    Fan et al., arXiv:1805.04833, section 5.4.
    """
    known = concrete(k)
    if known is not None and (known.ndim or known.dtype.kind not in "iu" or known < 1):
        raise ValueError(f"top_k is {k!r}, expected an integer >= 1; leave it out for all tokens")
    return Partial(_top_k, jnp.asarray(k).astype(jnp.int32))


def top_p(p: float) -> Callable:
    """The likeliest tokens whose probabilities reach p; the one that crosses p stays.

    A token stays if those likelier than it have less than p together.

    Args:
      p: [] in (0, 1].

    Returns:
      A warp.

    Raises:
      ValueError: if p is not in (0, 1].

    >>> top_p(0.6)(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), None) > -jnp.inf
    Array([[ True,  True, False]], dtype=bool)

    Holtzman et al., arXiv:1904.09751, section 3.1.
    """
    _within("top_p", p, above=0)
    rest = 1 - p if concrete(p) is None else np.float32(1 - float(p))
    return Partial(_top_p, _number(rest))


def min_p(p: float) -> Callable:
    """The tokens at least p times as likely as the likeliest.

    Args:
      p: [] in [0, 1]; 0 keeps all.

    Returns:
      A warp.

    Raises:
      ValueError: if p is not in [0, 1].

    >>> min_p(0.5)(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), None) > -jnp.inf
    Array([[ True,  True, False]], dtype=bool)

    Nguyen et al., arXiv:2407.01082, section 3.
    """
    _within("min_p", p)
    return Partial(_min_p, _number(p))


def repetition_penalty(r: float) -> Callable:
    """Tokens seen before are made less likely: logits / r where positive, else logits * r.

    Seen are the tokens of the prompt (not of a source) and those written so far.

    Args:
      r: [] above 0; 1 changes nothing, less than 1 asks for repetition.

    Returns:
      A warp.

    Raises:
      ValueError: if r is not a finite number > 0.

    >>> seen = jnp.array([[True, True, False]])
    >>> repetition_penalty(2.0)(jnp.array([[1.0, -1.0, 1.0]]), seen)
    Array([[ 0.5, -2. ,  1. ]], dtype=float32)

    Keskar et al., arXiv:1909.05858, section 4.1; of negative scores: transformers.
    """
    positive(repetition_penalty=r)
    return Partial(_repetition, _number(r))


def chain(*warps: Callable) -> Callable:
    """One warp after the other, from left to right.

    Args:
      *warps: functions (logits [b v], seen [b v]) -> logits [b v]; none at all changes nothing.

    Returns:
      A warp.

    Raises:
      TypeError: if one of them is no function.

    >>> chain(temperature(0.5), top_k(1))(jnp.array([[1.0, 2.0]]), None)
    Array([[-inf,   4.]], dtype=float32)

    Holtzman et al., arXiv:1904.09751, section 3; the order is that of transformers' generate.
    """
    for warp in warps:
        if not callable(warp):
            raise TypeError(f"chain got {warp!r:.60}, expected warps such as temperature(0.8)")
    return Partial(_chain, *(w if isinstance(w, Partial) else Partial(w) for w in warps))


def _temperature(t, logits, seen):
    return logits / t.astype(logits.dtype)


def _top_k(k, logits, seen):
    best = -jnp.sort(-logits, -1)  # [b v]
    at = jnp.clip(k, 1, logits.shape[-1]) - 1
    border = jax.lax.dynamic_slice_in_dim(best, at, 1, axis=-1)
    return _kept(logits, logits >= border)


def _top_p(rest, logits, seen):
    """Summed from the least likely token on, where small numbers are still exact."""
    z = jnp.sort(logits, -1)
    below = jnp.cumsum(jax.nn.softmax(z, -1), -1)  # with the token itself
    out = (below <= rest.astype(z.dtype)).sum(-1, keepdims=True)
    border = jnp.take_along_axis(z, jnp.minimum(out, z.shape[-1] - 1), -1)
    return _kept(logits, logits >= border)


def _min_p(p, logits, seen):
    top = logits.max(-1, keepdims=True)
    return _kept(logits, jnp.exp(logits - top) >= p.astype(logits.dtype))


def _repetition(r, logits, seen):
    r = r.astype(logits.dtype)
    return jnp.where(seen, jnp.where(logits < 0, logits * r, logits / r), logits)


def _chain(*given):
    *warps, logits, seen = given
    for warp in warps:
        logits = warp(logits, seen)
    return logits


def _kept(logits, keep):
    return jnp.where(keep, logits, jnp.full((), -jnp.inf, logits.dtype))


def _number(x):
    return jnp.asarray(x).astype(jnp.float32)


def _within(name, p, above=None):
    known = concrete(p)
    if known is None:
        return
    ok = not known.ndim and known.dtype.kind in "fiu" and known <= 1
    if not (ok and (known > 0 if above == 0 else known >= 0)):
        span = "(0, 1]" if above == 0 else "[0, 1]"
        raise ValueError(f"{name} is {p!r}, expected a number in {span}")
