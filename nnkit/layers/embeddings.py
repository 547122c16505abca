"""Tables of vectors: token ids to rows, and back to logits over the vocabulary."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import concrete, sizes
from nnkit.core.ranges import indexed
from nnkit.layers.meshes import batchwise, gathered

__all__ = ["Embed", "rows"]


class Embed(nn.Module):
    """A row of a table for every token id, and the tied head that reads the table backwards.

    e_i = E[token_i]; `attend`: logits = h E^T. The parameter is `embedding` [vocabulary width].

    Args:
      vocabulary: number of rows.
      width: size of a row.
      embedding_init: initialiser of the table.

    Call: tokens [b t] (any shape [...] of integers) -> [b t width].

    Raises:
      TypeError: if the tokens or sizes are not integers.
      ValueError: if a size is not >= 1, or known ids are outside 0 to vocabulary-1. Ids that are
        being traced cannot be read: those outside give rows of NaN, never the nearest row.

    >>> embed, tokens = Embed(vocabulary=7, width=4), jnp.array([[1, 6, 0]])
    >>> params = embed.init(jax.random.key(0), tokens)
    >>> h = embed.apply(params, tokens)
    >>> h.shape, embed.apply(params, h, method="attend").shape
    ((1, 3, 4), (1, 3, 7))

    Bengio et al. 2003, section 2; tied head: Press & Wolf, arXiv:1608.05859.
    """

    vocabulary: int
    width: int
    embedding_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    def setup(self):
        sizes("Embed", vocabulary=self.vocabulary, width=self.width)
        self.embedding = self.param("embedding", self.embedding_init, (self.vocabulary, self.width))

    def __call__(self, tokens):
        table = gathered(self.embedding, vocabulary=True)
        return batchwise(rows(table, tokens, name="tokens", of="vocabulary"))

    def attend(self, h):
        """Logits over the vocabulary from hidden states, with the table as the head.

        Args:
          h: [... width] hidden states.

        Returns:
          [... vocabulary] logits h E^T.

        Raises:
          ValueError: if the last axis of h is not the width.

        >>> embed = Embed(vocabulary=7, width=4)
        >>> embed.init_with_output(jax.random.key(0), jnp.ones((2, 4)), method="attend")[0].shape
        (2, 7)

        Press & Wolf, arXiv:1608.05859.
        """
        if jnp.ndim(h) < 1 or jnp.shape(h)[-1] != self.width:
            raise ValueError(
                f"h has shape {jnp.shape(h)}, expected (... {self.width}): the width of the table "
                f"of {self.vocabulary} tokens; project h to it first"
            )
        return batchwise(jnp.einsum("...d,vd->...v", h, gathered(self.embedding, vocabulary=True)))


def rows(table, ids, *, name="ids", of="table"):
    """Rows of a table by id, checked: nothing wraps around and nothing is clamped.

    Args:
      table: [n d] one row per id.
      ids: [...] integers 0 to n-1.
      name: what the ids are called in the message.
      of: what the table is called in the message.

    Returns:
      [... d] rows; NaN for traced ids outside the table (their gradient is 0).

    Raises:
      TypeError: if the ids are not integers.
      ValueError: if known ids are outside the table.

    >>> rows(jnp.eye(3), jnp.array([0, 3]))
    Traceback (most recent call last):
        ...
    ValueError: ids run from 0 to 3, but the table has 3 rows (0 to 2); use the ids of the...

    Bengio et al. 2003, section 2.
    """
    known = concrete(ids)  # asked first: an array made while tracing is not known
    indexed(ids, jnp.shape(table)[0])
    table, ids = jnp.asarray(table), jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"{name} is {ids.dtype} of shape {ids.shape}, expected integer ids; "
            f"write {name}.astype(int) if they are whole numbers"
        )
    n = table.shape[0]
    if known is not None and known.size and (known.min() < 0 or known.max() >= n):
        low, top = int(known.min()), int(known.max())
        wider = f"widen it to {top + 1}" if top >= n else "-1 and -100 mark no token here"
        raise ValueError(
            f"{name} run from {low} to {top}, but the {of} has {n} rows (0 to {n - 1}); use the "
            f"ids of the tokenizer the table was made for, {wider}, or put 0 in masked places"
        )
    ids = ids if ids.dtype.itemsize == 8 else ids.astype(jnp.int32)
    bad = (ids < 0) | (ids >= n)
    found = table[jnp.where(bad, 0, ids)]  # [... d]
    return jnp.where(bad[..., None], jnp.full((), jnp.nan, table.dtype), found)
