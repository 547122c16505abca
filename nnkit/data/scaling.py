"""Features of mean 0 and deviation 1, by the numbers of the training set alone."""

from __future__ import annotations

import dataclasses
import difflib
import time
from typing import Any

import jax
import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.sources import same_shape

__all__ = ["Scaled", "standardise"]

_BYTES = 2**26  # examples are looked at in pieces of about this size


def standardise(train: Batches, *others: Batches, field: str = "x"):
    """The same batches with a field shifted and scaled to mean 0 and deviation 1 on `train`.

    (x - mean) / deviation, per index of the last axis: per feature of [n d], per channel of
    [n h w c]; a field [n] has one of each. The deviation is that of the whole set (divided by n);
    a feature that is constant on `train` is only shifted. Examples with mask 0 do not count.
    Order, seed and batch sizes stay; the numbers are computed once, here, and used batch by batch.

    Args:
      train: decides mean and deviation.
      *others: such as the test set; they are scaled by the same numbers.
      field: which field, of floats [b ...].

    Returns:
      (train, *others) as new `Batches`, or the one if there is only `train`. The field is float32.
      `source.mean` and `source.deviation` [d] hold the numbers, for inputs from elsewhere.

    Raises:
      TypeError: if something is no `Batches`, or the field is not of real floats.
      KeyError: if there is no such field; says the nearest one.
      ValueError: if the shape of the field differs between `train` and others, or nothing counts.

    >>> train = nk.data.arrays([[0.0, 7.0], [4.0, 7.0]], batch_size=2, shuffle=False)
    >>> test = nk.data.arrays([[6.0, 8.0]], batch_size=1)
    >>> train, test = standardise(train, test)
    >>> next(iter(train))["x"].tolist(), next(iter(test))["x"].tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[2.0, 1.0]])
    """
    every = {"train": train} | {f"others[{i}]": other for i, other in enumerate(others)}
    for which, batches in every.items():
        _check(which, batches, field)
        have, want = batches._rows[field].shape, train._rows[field].shape
        if have != want:
            raise ValueError(
                f"{field} of {which} ({batches.name}) has the shape {have} per example, expected "
                f"{want} as in train ({train.name}); bring both to the same features"
            )
    mean, deviation = _moments(train, field)
    note = f"{field} standardised by mean and deviation of {train.name}"
    done = tuple(
        dataclasses.replace(
            batches,
            source=Scaled(batches.source, field, mean, deviation),
            notes=(*batches.notes, note),
        )
        for batches in every.values()
    )
    return done if others else done[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    """Another source with one field shifted and scaled when it is read.

    Attributes:
      source: a `Source`.
      field: the name of the field.
      mean: [d] float64, or [] for a field [n].
      deviation: [d] float64, above 0.

    >>> from nnkit.data.sources import Memory
    >>> Scaled(Memory({"x": np.float32([1, 5])}), "x", np.float64(3), np.float64(2)).column("x")
    array([-1.,  1.], dtype=float32)
    """

    source: Any
    field: str
    mean: np.ndarray
    deviation: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows [i ...] of every field."""
        rows = self.source.take(indices)
        return {**rows, self.field: self._scaled(rows[self.field])}

    def column(self, name: str) -> np.ndarray | None:
        """A whole field [n ...], if the source has it."""
        whole = self.source.column(name) if hasattr(self.source, "column") else None
        return self._scaled(whole) if whole is not None and name == self.field else whole

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        """[i ...] float32; the mean is taken off in two parts, exact also where it is large."""
        high = np.asarray(self.mean).astype(np.float32)
        low = (self.mean - high.astype(np.float64)).astype(np.float32)
        x = x.astype(np.float32) - high
        x -= low
        x /= self.deviation.astype(np.float32)
        return x


def _check(which: str, batches, field: str) -> None:
    """A `Batches` with a field of real floats of that name."""
    if not isinstance(batches, Batches):
        raise TypeError(
            f"{which} is a {type(batches).__name__}, expected a Batches, as data.arrays gives; "
            "standardise before .grouped(k) or .stream()"
        )
    names = [name for name in batches._rows if name != "mask"]
    if field not in names:
        near = difflib.get_close_matches(str(field), names, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; write field={names[0]!r}"
        raise KeyError(
            f"{which} ({batches.name}) has no field {field!r}, expected one of "
            f"{', '.join(names)}{hint}"
        )
    dtype = batches._rows[field].dtype
    if not jax.numpy.issubdtype(dtype, np.floating):
        raise TypeError(
            f"{field} of {which} ({batches.name}) is {dtype}, expected floats; labels and token "
            f"ids are not scaled, and quantities become floats with {field}.astype(np.float32) "
            "when the Batches are made"
        )


def _moments(train: Batches, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [d] in float64, piece by piece; the deviation of a constant is 1."""
    row = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in train._rows.values())
    n, size = train.examples, max(1, min(10_000, _BYTES // max(row, 1)))
    count, mean, squares, low, high = 0, np.zeros(()), np.zeros(()), np.inf, -np.inf
    began, said = time.monotonic(), False
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        piece = train.source.take(rows)
        same_shape(piece, train._rows, rows, train.name)
        x = piece[field].astype(np.float64)
        if "mask" in piece:
            x = x[piece["mask"] != 0]
        x = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x
        if len(x):
            shift = x.mean(axis=0) - mean  # Chan et al. 1979: moments of two pieces together
            mean = mean + shift * (len(x) / (count + len(x)))
            squares = squares + x.var(axis=0) * len(x)
            squares = squares + shift**2 * (count * len(x) / (count + len(x)))
            low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
            count += len(x)
        if not said and time.monotonic() - began > 5:
            said = True
            print(f"{train.name}: mean of {n} examples, {rows[-1] + 1} done after 5 s", flush=True)
    if not count:
        raise ValueError(
            f"mask of train ({train.name}) is 0 for all {n} examples, expected at least one that "
            "counts; check the mask"
        )
    deviation = np.sqrt(squares / count)
    flat = (low == high) | (deviation.astype(np.float32) == 0)
    return np.asarray(np.where(low == high, low, mean)), np.where(flat, 1.0, deviation)
