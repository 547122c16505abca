"""Means that stay exact when they are added: over slices, batches, devices and masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Mean", "add", "scalar", "values"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean kept as (total, weight) until somebody asks for its `value`.

    Two means add to the mean of both populations, whatever their sizes. The average of two
    averages is not that: under a mask or with a ragged last batch it is simply another number.

    Attributes:
      total: weighted sum; an array [...], or a tree of arrays (a gradient is the mean of a tree).
      weight: [] (or [n] for n stacked members) how much was summed.

    >>> a, b = Mean.of(jnp.array([1.0, 2.0, 3.0])), Mean.of(jnp.array([6.0]))
    >>> float((a + b).value), float((a.value + b.value) / 2)
    (3.0, 4.0)
    """

    total: Any
    weight: jax.Array

    @classmethod
    def of(cls, values, mask=None, *, keep=False) -> Mean:
        """The mean of per-example values under a mask. Sums in float32 or wider.

        Args:
          values: [b ...] one value (or one array of them) per example; any real dtype or bool.
          mask: [b] (or the leading axes of `values`) weights, 0 for padding; None counts all.
            What stands in a masked place does not matter, not even NaN.
          keep: False averages over every axis; True over the axes of the mask only (the first one
            without a mask), so that a confusion table [b c c] has a mean [c c].

        Returns:
          A `Mean`; its weight is the sum of the mask.

        Raises:
          ValueError: if `values` is a scalar (reduced too early), or the mask is not a prefix.

        >>> Mean.of(jnp.array([1.0, 3.0, jnp.nan]), mask=jnp.array([1, 1, 0])).value
        Array(2., dtype=float32)
        """
        values = jnp.asarray(values)
        if values.ndim == 0:
            raise ValueError(
                "Mean.of got a scalar, expected [b ...] one value per example; "
                "return the values before any mean or sum over the batch"
            )
        if values.dtype != jnp.float64:
            values = values.astype(jnp.float32)
        axes = 1 if mask is None else jnp.ndim(mask)
        if mask is not None and (axes == 0 or jnp.shape(mask) != values.shape[:axes]):
            raise ValueError(
                f"mask has shape {jnp.shape(mask)}, expected the leading axes of the values, "
                f"which have shape {values.shape}"
            )
        if mask is None:
            mask = jnp.ones(values.shape[:1], values.dtype)
        mask = jnp.asarray(mask).astype(values.dtype)
        wide = mask.reshape(mask.shape + (1,) * (values.ndim - axes))
        weighted = jnp.where(wide == 0, jnp.zeros_like(values), values) * wide  # NaN * 0 is NaN
        if keep:
            return cls(weighted.sum(tuple(range(axes))), mask.sum())
        return cls(weighted.sum(), mask.sum() * (values.size // max(mask.size, 1)))

    @property
    def value(self) -> Any:
        """total / weight; NaN for the mean of nothing."""
        return jax.tree.map(lambda t: t / _against(self.weight, t), self.total)

    def __add__(self, other: Mean) -> Mean:
        return Mean(jax.tree.map(jnp.add, self.total, other.total), self.weight + other.weight)


def _against(weight, total):
    """The weight [n] (or []) with trailing axes, so that it divides total [n ...]."""
    return jnp.reshape(weight, jnp.shape(weight) + (1,) * (jnp.ndim(total) - jnp.ndim(weight)))


def scalar(x) -> Mean:
    """One number per step as a `Mean` of weight 1 (a norm, a count), float32.

    Args:
      x: [] any real number.

    Returns:
      `Mean(x, 1)`: added over steps it averages over steps.

    >>> (scalar(1) + scalar(2)).value
    Array(1.5, dtype=float32)
    """
    return Mean(jnp.asarray(x).astype(jnp.float32), jnp.float32(1))


def _is_mean(x) -> bool:
    return isinstance(x, Mean)


def values(tree):
    """Every `Mean` of a tree replaced by its value [...]; other leaves stay.

    Args:
      tree: any tree of `Mean`s.

    Returns:
      The same tree of arrays.

    >>> values({"loss": Mean(jnp.float32(6), jnp.float32(3))})
    {'loss': Array(2., dtype=float32)}
    """
    return jax.tree.map(lambda m: m.value if _is_mean(m) else m, tree, is_leaf=_is_mean)


def add(a, b):
    """Two trees of `Mean`s of the same structure, added leaf by leaf: the means of both.

    Args:
      a: any tree of `Mean`s.
      b: a tree of the same structure.

    Returns:
      The same tree; every total [...] and weight [] is the sum of the two.

    Raises:
      ValueError: if the structures differ.

    >>> add({"n": scalar(1)}, {"n": scalar(3)})["n"].value
    Array(2., dtype=float32)
    """
    return jax.tree.map(jnp.add, a, b)
