"""Groups of batches with a leading axis of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from nnkit.data.ahead import stack

__all__ = ["Grouped"]


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """k batches at a time; what `Batches.grouped` returns. Counts in groups.

    The stream crosses epochs, so that m groups are exactly m k batches, none dropped or repeated.

    Attributes:
      batches: the `Batches`, or a `Share` of them.
      k: batches per group.

    >>> grouped = nk.data.arrays(np.arange(4), batch_size=1, shuffle=False).grouped(2)
    >>> len(grouped), next(grouped.stream(start=1))["x"].tolist()
    (2, [[2], [3]])
    """

    batches: Any  # `Batches`, or a `Share` of them
    k: int

    def __post_init__(self):
        if isinstance(self.k, bool) or not hasattr(type(self.k), "__index__") or self.k < 1:
            raise ValueError(f"grouped(k={self.k!r}) needs an int >= 1; 1 is one batch per group")

    @property
    def examples(self) -> int:
        """n, the examples of one epoch."""
        return self.batches.examples

    @property
    def batch_size(self) -> int:
        """b, the examples of one batch of a group."""
        return self.batches.batch_size

    @property
    def timeout(self) -> float:
        """k times that of one batch."""
        return self.batches.timeout * self.k

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape [k b ...] and dtype of every field."""
        one = self.batches.spec
        return {n: jax.ShapeDtypeStruct((self.k, *s.shape), s.dtype) for n, s in one.items()}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the batches, and k."""
        return {**self.batches.fingerprint, "grouped": int(self.k)}

    def share(self, rows) -> Grouped:
        """The same rows [m] of every batch of every group."""
        return Grouped(self.batches.share(rows), self.k)

    def corners(self) -> dict[str, np.ndarray] | None:
        """As `Batches.corners`: a batch [2 ...] without the axis of steps."""
        return self.batches.corners()

    def __len__(self) -> int:
        return -(-len(self.batches) // self.k)

    def stream(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The groups from number `start` on, without end."""
        self.batches.stream(start)  # checks it
        return stack(self.batches.stream(start * self.k), self.k)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """One epoch exactly; only if k divides it."""
        steps = len(self.batches)
        if steps % self.k:
            fits = [d for d in range(1, steps + 1) if steps % d == 0]
            raise ValueError(
                f"grouped(k={self.k}) does not end with the epoch of {steps} batches; use a k "
                f"that divides it ({', '.join(map(str, fits[:12]))}), or stream()"
            )
        return stack(iter(self.batches), self.k)
