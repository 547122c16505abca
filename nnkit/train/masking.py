"""Which tokens a masked language model has to guess, and what it sees in their place."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core import keys
from nnkit.core.checks import concrete, dims

__all__ = ["mask_tokens"]


def mask_tokens(
    key,
    tokens,
    *,
    mask_id: int,
    vocabulary: int,
    special=(),
    token_mask=None,
    share=0.15,
    hide=0.8,
    swap=0.1,
):
    """Choose tokens to guess and hide them: BERT's 15 %, of these 80 % / 10 % / 10 %.

    In a row of n ordinary tokens max(1, round(share n)) are chosen, all sets of that size being
    equally likely. Each of them becomes the mask with probability `hide`, a random ordinary token
    with probability `swap`, else it stays as it is. Special tokens and padding are never chosen.

    Args:
      key: [] a typed key; or None: what is chosen then follows from the tokens of the row alone,
        the same in every epoch, in any order and batch. For evaluation.
      tokens: [b t] ids.
      mask_id: id of the mask; it is special.
      vocabulary: number of tokens.
      special: ids that are neither chosen nor drawn: padding, start, end.
      token_mask: [b t] True for real tokens, or None.
      share: of the ordinary tokens of a row that are chosen, in (0, 1].
      hide: share of the chosen ones that become the mask.
      swap: share of the chosen ones that become a random ordinary token (it may be the same).

    Returns:
      (corrupted [b t] of the dtype of the tokens, chosen [b t] bool). A row without ordinary tokens
      has none chosen.

    Raises:
      TypeError: if the tokens are no integers, or there is no mask.
      ValueError: if shapes differ, a share is out of range, hide + swap is above 1, or the mask or
        a special id is outside the vocabulary.

    >>> tokens = jnp.arange(20)[None] % 10
    >>> seen, chosen = mask_tokens(jax.random.key(0), tokens, mask_id=10, vocabulary=11)
    >>> int(chosen.sum()), bool((seen == tokens)[~chosen].all())
    (3, True)

    Devlin et al., arXiv:1810.04805, section 3.1 (task 1) and appendix A.1.
    """
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens is {tokens.dtype}, expected integer ids [b t]")
    size = dims("b t", tokens=tokens)
    if mask_id is None:
        raise TypeError(
            "mask_id is None, expected the id of the mask: the tokenizer has none; make it with "
            'special=("[MASK]",), and the model with one token more'
        )
    named = tuple(sorted({int(mask_id), *map(int, special)}))
    if not 0 <= named[0] <= named[-1] < vocabulary:
        raise ValueError(
            f"mask_id={mask_id} and special={tuple(special)} run from {named[0]} to {named[-1]}, "
            f"expected 0 to {vocabulary - 1}, ids of the vocabulary; give the model one token more "
            "for the mask"
        )
    ordinary = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), named)
    if not len(ordinary):
        raise ValueError(f"all {vocabulary} tokens are special, expected at least one other")
    _shares(share, hide, swap)
    allowed = ~jnp.isin(tokens, jnp.asarray(named, tokens.dtype))
    if token_mask is not None:
        dims("b t, b t", tokens=tokens, token_mask=token_mask)
        allowed &= jnp.asarray(token_mask).astype(bool)
    if key is None:
        own = jax.vmap(_by_content)(tokens, allowed)
    else:
        own = jax.random.split(keys.fold(key, "mask_tokens"), size.b)
    row = functools.partial(_row, ordinary, mask_id, share, hide, swap)
    return jax.vmap(row)(own, tokens, allowed)


def _row(ordinary, mask_id, share, hide, swap, key, tokens, allowed):
    """One row [t]: what is seen, and what is chosen."""
    where, what, which = jax.random.split(key, 3)
    lots = jnp.where(allowed, jax.random.uniform(where, tokens.shape), 2.0)
    count = jnp.round(allowed.sum().astype(jnp.float32) * share)
    count = jnp.where(allowed.any(), jnp.maximum(count, 1), 0)
    chosen = jnp.argsort(jnp.argsort(lots)).astype(jnp.float32) < count
    draw = jax.random.uniform(what, tokens.shape)
    other = jnp.asarray(ordinary)[jax.random.randint(which, tokens.shape, 0, len(ordinary))]
    other = jnp.where(draw < hide + swap, other.astype(tokens.dtype), tokens)
    seen = jnp.where(draw < hide, jnp.asarray(mask_id, tokens.dtype), other)
    return jnp.where(chosen, seen, tokens), chosen


def _by_content(tokens, allowed):
    """A key [] that follows from the tokens [t] of a row."""
    powers = np.cumprod(np.full(len(tokens), 2654435761, np.uint32), dtype=np.uint32)
    marks = jnp.where(allowed, tokens.astype(jnp.uint32) + 1, 0) * powers
    return jax.random.fold_in(jax.random.key(0), marks.sum(dtype=jnp.uint32))


def _shares(share, hide, swap) -> None:
    known = concrete(share)
    if known is not None and not 0 < known <= 1:
        raise ValueError(f"share is {share}, expected a number in (0, 1]; 0.15 is BERT's")
    a, b = concrete(hide), concrete(swap)
    if a is not None and b is not None and (min(a, b) < 0 or a + b > 1 + 1e-6):
        raise ValueError(
            f"hide={hide} and swap={swap}, expected shares of at least 0 that add to at most 1; "
            "BERT's are 0.8 and 0.1"
        )
