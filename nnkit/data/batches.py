"""Batches: an endless, random-access, reproducible stream of fixed shapes over any source."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np

from nnkit.core.keys import seed as checked_seed
from nnkit.data.filtering import kept
from nnkit.data.grouping import Grouped
from nnkit.data.reading import TIMEOUT, Stream, explained, time_limit
from nnkit.data.report import corners, fingerprint, report, text
from nnkit.data.shares import Share
from nnkit.data.sources import Part, order, same_shape

__all__ = ["Batches"]

_SPLIT = 2**63  # the "epoch" of the permutation that splits a set in two; no training reaches it


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Batches:
    """Batches of one shape; batch i is a pure function of (seed, i).

    Batch i belongs to epoch i // len. Each epoch holds every example once. If the batch size does
    not divide n, the last batch is padded with zeros and *every* batch carries "mask" [b] float32,
    1 for an example and 0 for padding. `print(batches)` shows counts, dtypes and ranges.

    Attributes:
      source: a `Source`.
      batch_size: b.
      shuffle: a new order every epoch, or the order of the source.
      seed: decides the orders, 0 to 2**32 - 1.
      classes: names of the labels, where known.
      name: for messages.
      notes: what was converted on the way in.
      workers: threads that read at the same time; see `reading`.
      timeout: seconds without a batch after which reading counts as hung; see `reading`.

    Raises:
      ValueError: if the batch size is below 1 or above n, n is 0, or another number is off.
      TypeError: if batch size, workers or seed is no int, or the timeout no number.

    >>> batches = nk.data.arrays(np.arange(5), batch_size=2, shuffle=False)
    >>> len(batches), [b["x"].tolist() for b in batches], [b["mask"].tolist() for b in batches][-1]
    (3, [[0, 1], [2, 3], [4, 0]], [1.0, 0.0])
    """

    source: Any
    batch_size: int
    _: dataclasses.KW_ONLY
    shuffle: bool = True
    seed: int = 0
    classes: tuple[str, ...] | None = None
    name: str = "data"
    notes: tuple[str, ...] = ()
    workers: int = 0
    timeout: float = TIMEOUT

    def __post_init__(self):
        size, n = self.batch_size, len(self.source)
        if isinstance(size, bool) or not hasattr(type(size), "__index__"):
            raise TypeError(f"batch_size is {size!r}, expected an int from 1 to {n}, such as 32")
        if n == 0:
            raise ValueError(f"{self.name} has 0 examples, expected at least 1; check the path")
        if size < 1:
            raise ValueError(f"batch_size is {size}, expected 1 to {n}; 32 is a usual start")
        if size > n:
            raise ValueError(
                f"batch_size is {size}, but {self.name} has only {n} examples; "
                f"use a smaller batch_size, at most {n}"
            )
        checked_seed(self.seed)
        if not isinstance(self.shuffle, bool):
            raise TypeError(
                f"shuffle is {self.shuffle!r}, expected True or False; use shuffle=True to train"
            )
        if isinstance(self.workers, bool) or not hasattr(type(self.workers), "__index__"):
            raise TypeError(
                f"workers is {self.workers!r}, expected an int from 0 to 256; 4 is usual"
            )
        if not 0 <= self.workers <= 256:
            raise ValueError(f"workers is {self.workers}, expected 0 to 256; 4 is a usual start")
        time_limit(self.timeout)
        _ = self._rows  # reads one example: a broken source is noticed here

    @property
    def examples(self) -> int:
        """n, the examples of one epoch."""
        return len(self.source)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    @cached_property
    def _rows(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The spec of one example, without the batch axis."""
        one = self.source.take(np.zeros(1, np.int64))
        return {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in one.items()}

    def look(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The examples `rows` [m] as the source gives them; an error names the one at fault."""
        try:
            return self.source.take(rows)
        except Exception as error:
            raise explained(error, self.source.take, rows, self.name)  # noqa: B904

    @property
    def masked(self) -> bool:
        """Whether batches carry a "mask": a ragged end, or a field of that name."""
        return self.examples % self.batch_size != 0 or "mask" in self._rows

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape [b ...] and dtype of every field of every batch."""
        rows = dict(self._rows)
        if self.masked:
            rows["mask"] = jax.ShapeDtypeStruct((), np.dtype(np.float32))
        b = (self.batch_size,)
        return {k: jax.ShapeDtypeStruct(b + v.shape, v.dtype) for k, v in rows.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """One epoch: the batches 0 to len - 1."""
        return self._read(itertools.islice(self.numbers(0), len(self)))

    def stream(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches from number `start` on, without end: `stream(k)` is skipping k batches.

        Args:
          start: number of the first batch, counted over all epochs.

        Returns:
          An iterator of fresh dicts of numpy arrays [b ...].

        Raises:
          ValueError: if `start` is negative.
          TypeError: if it is no int.

        >>> batches = nk.data.arrays(np.arange(4), batch_size=2, shuffle=False)
        >>> next(batches.stream(start=3))
        {'x': array([2, 3], dtype=int32)}
        """
        if isinstance(start, bool) or not hasattr(type(start), "__index__"):
            raise TypeError(f"start is {start!r}, expected the number of a batch, an int >= 0")
        if start < 0:
            raise ValueError(f"start is {start}, expected a batch number >= 0; 0 is the beginning")
        return self._read(self.numbers(int(start)), int(start))

    def _read(self, rows: Iterator[np.ndarray], start: int = 0) -> Stream:
        known = {"name": self.name, "workers": self.workers, "timeout": self.timeout}
        return Stream(self.taken, rows, start=start, **known)

    def numbers(self, i: int) -> Iterator[np.ndarray]:
        """The numbers [m] of the examples of batch i, i + 1, ...; m < b where an epoch ends."""
        epoch, rows = -1, np.zeros(0, np.int64)
        while True:
            if i // len(self) != epoch:
                epoch = i // len(self)
                n = self.examples
                rows = order(n, self.seed, epoch) if self.shuffle else np.arange(n)
            first = i % len(self) * self.batch_size
            yield rows[first : first + self.batch_size]
            i += 1

    def taken(self, rows: np.ndarray, size: int | None = None) -> dict[str, np.ndarray]:
        """The examples `rows` [m], padded to the batch size, or to `size`."""
        size = self.batch_size if size is None else size
        batch = self.source.take(rows)
        same_shape(batch, self._rows, rows, self.name)
        if self.masked:
            ones = np.ones(len(rows), np.float32)
            batch["mask"] = batch["mask"].astype(np.float32) if "mask" in batch else ones
        if not (short := size - len(rows)):
            return batch
        return {k: np.pad(v, [(0, short)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}

    def share(self, rows) -> Share:
        """The same rows of every batch, for one of many processes; `fit` calls it by itself.

        Args:
          rows: [m] positions in a batch, ascending.

        Returns:
          A `Share`; only these examples are read.

        Raises:
          ValueError: if the positions do not ascend, or are outside the batch.

        >>> batches = nk.data.arrays(np.arange(4), batch_size=4, shuffle=False)
        >>> next(batches.share([2, 3]).stream())["x"].tolist()
        [2, 3]
        """
        return Share(self, rows)

    def reading(self, *, workers: int | None = None, timeout: float | None = None) -> Batches:
        """The same batches, bit by bit, read by threads ahead of time, or with more patience.

        Worth it where examples are decoded when they are asked for (pictures, records on disk): the
        work of numpy, Pillow and of file systems runs in parallel. There are no worker processes:
        nothing is copied between them, and nothing is left when a run is killed.

        Args:
          workers: threads that read at the same time; 0 reads in the thread that asks.
          timeout: seconds without a batch after which reading counts as hung; math.inf for never.

        Returns:
          `Batches`; what is None stays.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if it is none.

        >>> batches = nk.data.arrays(np.arange(4), batch_size=2, shuffle=False).reading(workers=2)
        >>> [batch["x"].tolist() for batch in batches]
        [[0, 1], [2, 3]]
        """
        given = {"workers": workers, "timeout": timeout}
        return dataclasses.replace(self, **{k: v for k, v in given.items() if v is not None})

    def where(self, keep: Callable, *, in_a_row: int | None = 1000) -> Batches:
        """Only the examples that a condition keeps; it is asked once, here.

        Args:
          keep: from a dict of arrays [m ...] to [m] bool.
          in_a_row: so many rejected examples one after the other are an error, before the rest is
            read; None reads all. For data sorted by what is asked.

        Returns:
          `Batches` in the same order.

        Raises:
          ValueError: if too many in a row, or all, are rejected; if fewer than a batch are kept; if
            `in_a_row` is below 1.
          TypeError: if `keep` gives anything but one bool per example.

        >>> batches = nk.data.arrays(np.arange(6), batch_size=2, shuffle=False)
        >>> [batch["x"].tolist() for batch in batches.where(lambda rows: rows["x"] % 3 > 0)]
        [[1, 2], [4, 5]]
        """
        rows = kept(self, keep, in_a_row)
        name = f"{self.name} ({len(rows)} of {self.examples} kept)"
        return dataclasses.replace(self, source=Part(self.source, rows), name=name)

    def grouped(self, k: int) -> Grouped:
        """Groups of k batches with a leading axis of steps, for a step that runs k at once.

        Args:
          k: batches per group.

        Returns:
          A `Grouped`: group g holds the batches g k to g k + k - 1 of the stream.

        Raises:
          ValueError: if k < 1.

        >>> batches = nk.data.arrays(np.arange(4), batch_size=2, shuffle=False)
        >>> next(batches.grouped(2).stream())["x"].tolist()
        [[0, 1], [2, 3]]
        """
        return Grouped(self, k)

    def split(self, fraction: float = 0.8, *, seed: int = 0) -> tuple[Batches, Batches]:
        """Two disjoint parts, drawn at random: (train, test), together every example once.

        Args:
          fraction: the share of the first part, between 0 and 1.
          seed: decides who goes where; independent of the order of the batches.

        Returns:
          (first, second); the second is not shuffled, its batch size at most its size.

        Raises:
          ValueError: if a part would be empty, or the first is smaller than one batch.

        >>> train, test = nk.data.arrays(np.arange(10), batch_size=2).split(0.8)
        >>> train.examples, test.examples
        (8, 2)
        """
        n = self.examples
        if not 0 < fraction < 1 or not 0 < round(fraction * n) < n:
            raise ValueError(
                f"fraction is {fraction}, expected a number between 0 and 1 that leaves at least "
                f"one of {n} examples on both sides; 0.8 is usual"
            )
        rows, cut = order(n, checked_seed(seed), _SPLIT), round(fraction * n)
        one, two = Part(self.source, np.sort(rows[:cut])), Part(self.source, np.sort(rows[cut:]))
        size = min(self.batch_size, n - cut)
        first = dataclasses.replace(self, source=one, name=f"{self.name} (first part)")
        name = f"{self.name} (second part)"
        return first, dataclasses.replace(
            self, source=two, batch_size=size, shuffle=False, name=name
        )

    def corners(self) -> dict[str, np.ndarray] | None:
        """Two real examples, with the lowest and the highest label: a batch to check ranges on.

        Searches all labels of a source in memory, a sample of one on disk.

        Returns:
          A batch [2 ...], or None if there is no integer field "y".

        >>> nk.data.arrays(np.arange(4), [1, 7, 0, 3], batch_size=2).corners()["y"]
        array([0, 7], dtype=int32)
        """
        rows = corners(self)
        return None if rows is None else self.taken(rows, size=2)

    @cached_property
    def report(self) -> dict[str, dict[str, Any]]:
        """Per field: dtype, shape, min, max, and how many examples were looked at.

        Integer labels "y" add the number of distinct values and the share of the rarest.
        """
        return report(self)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint keeps to refuse other data: counts, seed, fields, a hash of rows."""
        return fingerprint(self)

    def __repr__(self) -> str:
        return text(self)
