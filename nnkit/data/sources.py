"""Sources: examples by number, in memory or wherever; and the order of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

__all__ = ["Memory", "Part", "Source", "order", "same_shape"]


class Source(Protocol):
    """What `Batches` reads: n examples, any of them by number.

    `take` gives arrays of its own memory, one row per index, of one dtype and shape per field.
    A source may also have `column(name)`, a whole field [n ...] if that is cheap, or None.

    >>> len(Memory({"x": np.zeros((5, 2), np.float32)}))
    5
    """

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """A source in memory.

    Attributes:
      arrays: [n ...] by name; not copied, so they must not change afterwards.
      scale: name -> divisor for fields kept as integers and handed out as float32.

    >>> Memory({"x": np.array([0, 51], np.uint8)}, {"x": 255}).take(np.array([1]))
    {'x': array([0.2], dtype=float32)}
    """

    arrays: Mapping[str, np.ndarray]
    scale: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows [i ...] of every field."""
        rows = {name: array.take(indices, axis=0) for name, array in self.arrays.items()}
        for name, divisor in self.scale.items():
            rows[name] = rows[name].astype(np.float32)
            rows[name] /= np.float32(divisor)
        return rows

    def column(self, name: str) -> np.ndarray | None:
        """A whole field [n ...], or None if it is scaled on the way out."""
        return None if name in self.scale else self.arrays[name]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some rows of another source.

    Attributes:
      source: a `Source`.
      rows: [m] row numbers of it.

    >>> Part(Memory({"x": np.arange(9)}), np.array([3, 8])).take(np.array([1]))
    {'x': array([8])}
    """

    source: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows [i ...] of every field."""
        return self.source.take(self.rows[indices])

    def column(self, name: str) -> np.ndarray | None:
        """A whole field [m ...], if the source has it."""
        whole = self.source.column(name) if hasattr(self.source, "column") else None
        return None if whole is None else whole[self.rows]


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, from the raw bits of Philox: the same in every numpy version.

    Args:
      n: how many examples.
      seed: 0 to 2**32 - 1.
      epoch: from 0.

    Returns:
      [n] int64, each number below n once.

    >>> order(5, seed=0, epoch=0), order(5, seed=0, epoch=1)
    (array([0, 2, 1, 4, 3]), array([3, 2, 4, 1, 0]))
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def same_shape(batch: Mapping[str, np.ndarray], spec: Mapping[str, Any], rows, name: str) -> None:
    """A source must give every example in the shape and dtype of its first one.

    Args:
      batch: [m ...] by field, what the source gave for `rows`.
      spec: shape [...] and dtype of one example, by field.
      rows: [m] the row numbers.
      name: of the data, for the message.

    Raises:
      ValueError: naming field, both shapes and the first rows.

    >>> x = np.zeros((2, 3))
    >>> same_shape({"x": x}, {"x": x[0]}, np.arange(2), "data")
    """
    for field, one in spec.items():
        array, want = batch[field], (len(rows), *one.shape)
        if array.shape != want or array.dtype != one.dtype:
            raise ValueError(
                f"{field} of {name} is {array.dtype}{list(array.shape)} at rows "
                f"{rows[:3].tolist()}.., expected {one.dtype}{list(want)} as in row 0; "
                "bring all examples to one shape (map=...)"
            )
