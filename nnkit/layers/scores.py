"""What the forms of attention share: which keys a query sees, scores, their softmax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

__all__: list[str] = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
    """Which keys a query sees, kept as positions: the table [b t s] is made block by block.

    Attributes:
      q_pos: [b|1 t] positions of the queries.
      k_pos: [b|1 s] positions of the keys; negative: hidden.
      q_seg: [b t] or None; k_seg: [b s] or None: seen only within the same segment.
      pair: [b t s] bool or None, a mask given as such.
      bias: [b|1 g|1 r|1 t|1 s|1] added to the scores, or None.
      causal: only keys at or before the query.
      window: only keys less than this far away, or None.
      hides: are there negative k_pos?
      start: position of the first query where known, so that blocks nobody sees are left out.
    """

    q_pos: Any
    k_pos: Any
    q_seg: Any = None
    k_seg: Any = None
    pair: Any = None
    bias: Any = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    hides: bool = dataclasses.field(default=False, metadata={"static": True})
    start: int | None = dataclasses.field(default=None, metadata={"static": True})

    def cut(self, rows, columns):
        """The same for a slice of queries and one of keys."""
        return dataclasses.replace(
            self,
            q_pos=self.q_pos[:, rows],
            k_pos=self.k_pos[:, columns],
            q_seg=None if self.q_seg is None else self.q_seg[:, rows],
            k_seg=None if self.k_seg is None else self.k_seg[:, columns],
            pair=None if self.pair is None else self.pair[:, rows, columns],
            bias=_cut(self.bias, rows, columns),
        )

    def table(self):
        """[b|1 1 1 t s] bool, or None if everything is seen."""
        i, j = self.q_pos[:, :, None], self.k_pos[:, None, :]
        tests = []
        if self.hides:
            tests.append(j >= 0)
        if self.causal:
            tests.append(j <= i)
        if self.window is not None:
            tests.append(i - j < self.window)
            if not self.causal:
                tests.append(j - i < self.window)
        if self.q_seg is not None:
            tests.append(self.q_seg[:, :, None] == self.k_seg[:, None, :])
        if self.pair is not None:
            tests.append(self.pair)
        if not tests:
            return None
        seen = tests[0]
        for test in tests[1:]:
            seen = seen & test
        return seen[:, None, None]

    def spans(self, t, s, size):
        """(a, b, low, high): queries a to b-1 see only keys low to high-1."""
        for a in range(0, t, size):
            b, low, high = min(a + size, t), 0, s
            if self.start is not None:
                if self.causal:
                    high = min(s, self.start + b)
                elif self.window is not None:
                    high = min(s, self.start + b + self.window - 1)
                if self.window is not None:
                    low = max(0, self.start + a - self.window + 1)
            yield a, b, low, max(high, low)


def _cut(bias, rows, columns):
    if bias is None:
        return None
    bias = bias if bias.shape[3] == 1 else bias[:, :, :, rows]
    return bias if bias.shape[4] == 1 else bias[..., columns]


def wide(dtype):
    """float32, or float64 for float64: where softmax and sums are taken."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def scores(q, k, sight: Sight, scale, softcap):
    """Scores [b g r t s] of q [b t g r d] and k [b s g d]; -inf where a query does not see."""
    z = jnp.einsum("btgrd,bsgd->bgrts", q, k, preferred_element_type=wide(q.dtype)) * scale
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
    if sight.bias is not None:
        z = z + sight.bias.astype(z.dtype)
    seen = sight.table()
    return z if seen is None else jnp.where(seen, z, jnp.full((), -jnp.inf, z.dtype))


def softmax(z):
    """Softmax [... s] over the last axis; a row of -inf gives 0, and no gradient."""
    top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
    p = jnp.exp(z - jnp.where(jnp.isneginf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total == 0, 1, total)


def mix(p, v):
    """Values [b t g r e] weighted by p [b g r t s]; v [b s g e]."""
    return jnp.einsum(
        "bgrts,bsge->btgre", p.astype(v.dtype), v, preferred_element_type=wide(v.dtype)
    )
