"""The part of every batch that one process reads, when many make one batch together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from nnkit.data.reading import Stream

__all__ = ["Share"]


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """Some rows of every batch; what `Batches.share` returns. Nothing else is read.

    The row `rows[j]` of batch i is row j here, so that shares with disjoint rows are disjoint, and
    together they are the batches, padding and mask included. Which rows a process takes may change
    at any batch: a run goes on with another number of processes.

    Attributes:
      batches: the `Batches`.
      rows: [m] positions in a batch, ascending, each below the batch size.

    Raises:
      ValueError: if the rows are not ascending, or outside the batch.

    >>> batches = nk.data.arrays(np.arange(6), batch_size=4, shuffle=False)
    >>> [b["x"].tolist() for b in batches.share([2, 3])]
    [[2, 3], [0, 0]]
    >>> next(batches.share([0, 1]).stream(start=1))
    {'x': array([4, 5], dtype=int32), 'mask': array([1., 1.], dtype=float32)}
    """

    batches: Any
    rows: Any

    def __post_init__(self):
        rows, b = np.asarray(self.rows), self.batches.batch_size
        good = rows.ndim == 1 and rows.size and rows.dtype.kind in "iu"
        if not good or rows[0] < 0 or rows[-1] >= b or (np.diff(rows) < 1).any():
            raise ValueError(
                f"share(rows={self.rows!r:.60}): expected ascending positions from 0 to {b - 1}, "
                f"as the batch size is {b}; np.arange(0, {max(b // 2, 1)}) is the first half"
            )
        object.__setattr__(self, "rows", rows.astype(np.int64))

    @property
    def examples(self) -> int:
        """n, the examples of one epoch, all shares together."""
        return self.batches.examples

    @property
    def batch_size(self) -> int:
        """m, the rows of this share."""
        return len(self.rows)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape [m ...] and dtype of every field."""
        whole = self.batches.spec
        return {
            k: jax.ShapeDtypeStruct((len(self.rows), *v.shape[1:]), v.dtype)
            for k, v in whole.items()
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the whole batches: it does not depend on who reads what."""
        return self.batches.fingerprint

    def corners(self) -> dict[str, np.ndarray] | None:
        """As `Batches.corners`."""
        return self.batches.corners()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """One epoch."""
        return self._read(itertools.islice(self._mine(0), len(self)))

    def stream(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This part of the batches from number `start` on, without end."""
        self.batches.stream(start)  # checks it
        return self._read(self._mine(int(start)), int(start))

    @property
    def timeout(self) -> float:
        """That of the batches."""
        return self.batches.timeout

    def _read(self, rows: Iterator[np.ndarray], start: int = 0) -> Stream:
        of = self.batches
        known = {"name": of.name, "workers": of.workers, "timeout": of.timeout}
        return Stream(self._taken, rows, start=start, **known)

    def _mine(self, start: int) -> Iterator[np.ndarray]:
        """The numbers of the examples of batch `start`, ... that are read here."""
        for numbers in self.batches.numbers(start):
            yield numbers[self.rows[self.rows < len(numbers)]]

    def _taken(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if len(rows):
            return self.batches.taken(rows, len(self.rows))
        # all of it is padding: sources may not like to be asked for nothing
        return {k: np.zeros(v.shape, v.dtype) for k, v in self.spec.items()}
