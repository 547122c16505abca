"""Is there something to write from, and room for it? Asked before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core import trees
from nnkit.core.checks import concrete, sizes
from nnkit.models.tokens import fits

__all__: list[str] = []


def weights(owner, params):
    """Parameters must be a tree of arrays, not what holds one."""
    if isinstance(params, Mapping):
        return
    if hasattr(params, "params"):
        hint = "; give its .params"
    elif isinstance(params, tuple):
        hint = ": step.weights(state) is a pair, params, carry = step.weights(state)"
    else:
        return
    raise TypeError(
        f"{owner}: params is {type(params).__name__}, expected parameters, a dict of arrays{hint}"
    )


def prompt(owner, decoder, tokens, mask, new_tokens, **ids):
    """(tokens [b t] int32, mask [b t] bool or None), checked; ids: others that must be tokens."""
    sizes(owner, new_tokens=new_tokens)
    if isinstance(tokens, str) or (isinstance(tokens, list) and str in map(type, tokens)):
        raise TypeError(
            f"{owner}: tokens is text, {tokens!r:.40}, expected ids [b t]: "
            "tokenizer.encode(text)[None], or write with generate.stream"
        )
    if isinstance(tokens, list):
        if len({len(row) if isinstance(row, Sized) else 0 for row in tokens}) > 1:
            raise ValueError(
                f"{owner}: the rows of tokens differ in length, expected [b t]; fill them up: "
                'rows = nk.data.pad(tokens, side="left"), then tokens=rows["tokens"] and '
                'mask=rows["token_mask"]'
            )
        tokens = np.asarray(tokens)
    fits(owner, tokens, mask=mask)
    known = concrete(tokens)
    for name, x in {"tokens": known, **ids}.items():
        x = None if x is None else concrete(x)
        if x is None or decoder.vocabulary is None:
            continue
        if x.dtype.kind not in "iu":
            raise TypeError(f"{owner}: {name} is {x!r:.60}, expected the id of a token")
        if x.min() < 0 or x.max() >= decoder.vocabulary:
            run = f"is {x}" if not x.ndim else f"run from {x.min()} to {x.max()}"
            raise ValueError(
                f"{owner}: {name} {run}, but the vocabulary has {decoder.vocabulary} tokens "
                f"(0..{decoder.vocabulary - 1}); take the tokenizer that the model was trained with"
            )
    real = None if mask is None else concrete(mask)
    if real is not None and not real.astype(bool).any(1).all():
        raise ValueError(
            f"{owner}: row {int(np.argmin(real.astype(bool).any(1)))} of the mask has no real "
            "token, expected at least one to write from, such as the end of text"
        )
    _length(owner, decoder, jnp.shape(tokens)[1], new_tokens)
    return _as(tokens, np.int32), None if mask is None else _as(mask, np.bool_)


def _as(x, dtype):
    """x of a dtype; on the host where it is known, so that nothing is compiled for it."""
    known = concrete(x)
    return jnp.asarray(x).astype(dtype) if known is None else known.astype(dtype)


def _length(owner, decoder, t, new_tokens):
    if decoder.length is None or t + new_tokens - 1 <= decoder.length:
        return
    over = t + new_tokens - 1 - decoder.length
    raise ValueError(
        f"{owner}: a prompt of {t} tokens and new_tokens={new_tokens} need {t + new_tokens - 1} to "
        f"be read, expected at most length={decoder.length}, that of the model: {over} too many; "
        "shorten them, or let the oldest tokens be forgotten: generate.sliding(model) in place of "
        "the model"
    )


def row_keys(key, b):
    """[b] keys, each sequence its own, by its row; None for greedy. `key` is [] or already [b]."""
    if key is None:
        return None
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))


def random_key(owner, key, b):
    """A typed key [] or [b], or None, as it came."""
    if key is None:
        return None
    if not trees.is_key(key) or jnp.shape(key) not in ((), (b,)):
        raise TypeError(
            f"{owner}: key is {key!r:.60}, expected a typed key, jax.random.key(seed), or one for "
            f"each of {b} sequences; None is greedy"
        )
    return key


def token_id(x):
    """An id as [] int32; -1, which no token has, for None."""
    return _as(-1 if x is None else x, np.int32)


def warping(warp):
    """A warp whose numbers are traced and whose functions are static; None stays."""
    if warp is None or isinstance(warp, jax.tree_util.Partial):
        return warp
    if not callable(warp):
        raise TypeError(
            f"warp is {warp!r:.60}, expected a function (logits [b v], seen [b v]) -> logits, such "
            "as generate.temperature(0.8); several: generate.chain(...)"
        )
    return jax.tree_util.Partial(warp)
