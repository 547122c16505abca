"""Which examples a condition keeps, found once, with an end when it keeps none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["kept"]

_CHUNK = 1000


def kept(batches, keep: Callable[[dict[str, np.ndarray]], Any], in_a_row: int | None):
    """The numbers of the examples that a condition keeps.

    Args:
      batches: a `Batches`.
      keep: from a dict of arrays [m ...] to [m] bool.
      in_a_row: the most examples that may be rejected one after the other; None is any number.

    Returns:
      [m] int64, ascending.

    Raises:
      ValueError: if too many in a row, or all, are rejected, or `in_a_row` is below 1.
      TypeError: if `keep` gives anything but one bool per example.

    >>> from nnkit.data.arrays import arrays
    >>> kept(arrays(np.arange(5), batch_size=1), lambda rows: rows["x"] > 2, None)
    array([3, 4])
    """
    if in_a_row is not None and (isinstance(in_a_row, bool) or not isinstance(in_a_row, int)):
        raise TypeError(f"in_a_row is {in_a_row!r}, expected an int >= 1, or None; 1000 is usual")
    if in_a_row is not None and in_a_row < 1:
        raise ValueError(f"in_a_row is {in_a_row}, expected an int >= 1, or None; 1000 is usual")
    n, size, last = batches.examples, min(_CHUNK, in_a_row or _CHUNK), -1
    found = []
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        good = rows[_asked(keep, batches.look(rows), len(rows))]
        gaps = np.diff(np.concatenate([[last], good, rows[-1:] + 1])) - 1
        if in_a_row is not None and gaps.max() >= in_a_row:
            first = int(np.concatenate([[last], good])[gaps.argmax()]) + 1
            raise ValueError(
                f"where: keep rejected {in_a_row} examples in a row of {batches.name}, from "
                f"example {first} on, expected < {in_a_row}; check the condition, or pass "
                "in_a_row=None if the data are sorted by it"
            )
        found.append(good)
        last = int(good[-1]) if len(good) else last
    rows = np.concatenate(found)
    if not len(rows):
        raise ValueError(
            f"where: keep rejected all {n} examples of {batches.name}, expected >= 1 to be "
            "kept; check the condition"
        )
    return rows


def _asked(keep, rows: dict[str, np.ndarray], m: int) -> np.ndarray:
    """The answer [m] of the condition, checked."""
    answer = np.asarray(keep(rows))
    if answer.shape != (m,) or answer.dtype != bool:
        raise TypeError(
            f"where: keep gave {answer.dtype}{list(answer.shape)} for {m} examples, expected "
            f"bool[{m}], one for each; it gets a dict of arrays [m ...], so write "
            'lambda rows: rows["y"] == 3'
        )
    return answer
