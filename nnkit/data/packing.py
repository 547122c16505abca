"""Sequences of different lengths in arrays of one: packed without waste, or padded."""

from __future__ import annotations

import collections
import operator
from collections.abc import Sequence

import numpy as np

__all__ = ["pack", "pad"]


def pack(documents: Sequence, length: int) -> dict[str, np.ndarray]:
    """Documents in rows of `length` tokens, several in one row, each a segment of its own.

    A document longer than a row is cut into pieces of `length` tokens; a piece does not see the one
    before it, but its last label is the first token of the next: every token of a document but the
    first is a label exactly once, and every token stands in exactly one place. The documents go in
    order, each piece into the row whose free room is the smallest that holds it (of those the one
    that has had it longest), or into a new row: always the same for the same documents.

    Args:
      documents: [n] sequences of token ids, none empty.
      length: tokens of a row.

    Returns:
      {"tokens", "labels", "segments": [rows length] int32, "label_mask": [rows length] bool}:
      segments count from 1 in each row, 0 is padding; label_mask is False where a document ends,
      and on padding.

    Raises:
      TypeError: if the length or the ids are no integers.
      ValueError: if there is no document, one is empty or not [t], an id is negative, or the length
        is below 1.

    >>> found = pack([[1, 2, 3], [4, 5, 6, 7], [8]], length=4)
    >>> found["tokens"].tolist(), found["segments"].tolist()
    ([[1, 2, 3, 8], [4, 5, 6, 7]], [[1, 1, 1, 2], [1, 1, 1, 1]])
    >>> found["labels"].tolist(), found["label_mask"].sum(1).tolist()
    ([[2, 3, 0, 0], [5, 6, 7, 0]], [2, 3])

    Krell et al., arXiv:2107.02027, section 3.2 (there the longest go first).
    """
    length = whole("length", length)
    rows = _checked("documents", documents, empty=False)
    pieces = [(i, s) for i, ids in enumerate(rows) for s in range(0, len(ids), length)]
    places, free = [], []  # of each piece: (row, first place)
    by_room: dict[int, collections.deque[int]] = collections.defaultdict(collections.deque)
    open_rooms = 0  # bit r is set if a row has r free places
    for i, s in pieces:
        size = min(len(rows[i]) - s, length)
        fits = open_rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = by_room[room].popleft()
            if not by_room[room]:
                open_rooms &= ~(1 << room)
        else:
            row, room = len(free), length
            free.append(length)
        places.append((row, length - room))
        free[row] = left = room - size
        if left:
            by_room[left].append(row)
            open_rooms |= 1 << left
    names = ("tokens", "labels", "segments")
    found = {name: np.zeros((len(free), length), np.int32) for name in names}
    found["label_mask"] = np.zeros((len(free), length), bool)
    count = np.zeros(len(free), np.int32)
    for (i, s), (row, at) in zip(pieces, places):
        tokens, labels = rows[i][s : s + length], rows[i][s + 1 : s + 1 + length]
        count[row] += 1
        found["tokens"][row, at : at + len(tokens)] = tokens
        found["labels"][row, at : at + len(labels)] = labels
        found["label_mask"][row, at : at + len(labels)] = True
        found["segments"][row, at : at + len(tokens)] = count[row]
    return found


def pad(
    rows: Sequence, length: int | None = None, *, side: str = "right", padding: int = 0
) -> dict[str, np.ndarray]:
    """Sequences of token ids as one array, filled up at one end.

    Args:
      rows: [n] sequences of token ids; empty ones are allowed.
      length: t; None takes the longest.
      side: where the padding goes: "right" for training, "left" for prompts that are continued.
      padding: its id.

    Returns:
      {"tokens": [n t] int32, "token_mask": [n t] bool}, True for real tokens.

    Raises:
      TypeError: if the length or the ids are no integers.
      ValueError: if there is no row, one is longer than `length` or not [t], an id is negative, or
        the side is neither.

    >>> pad([[5, 6], [7]], side="left")["tokens"].tolist()
    [[5, 6], [0, 7]]
    """
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}, expected 'right' or 'left'")
    found = _checked("rows", rows, empty=True)
    longest = max(map(len, found))
    length = max(longest, 1) if length is None else whole("length", length)
    if longest > length:
        i = next(i for i, row in enumerate(found) if len(row) > length)
        raise ValueError(
            f"row {i} has {len(found[i])} tokens, expected at most length={length} (the longest "
            f"has {longest}); use length={longest}, or cut the rows yourself: row[:{length}]"
        )
    sizes = np.array([len(row) for row in found])[:, None]
    at = np.arange(length)
    mask = at < sizes if side == "right" else at >= length - sizes
    tokens = np.full(mask.shape, padding, np.int32)
    tokens[mask] = np.concatenate(found)
    return {"tokens": tokens, "token_mask": mask}


def _checked(name: str, rows, empty: bool) -> list[np.ndarray]:
    """Sequences of ids as arrays [t] int32."""
    if isinstance(rows, str | bytes) or not hasattr(type(rows), "__len__"):
        raise TypeError(f"{name} is {rows!r:.60}, expected a list of sequences of token ids")
    if not len(rows):
        raise ValueError(f"{name} is empty, expected at least one sequence of token ids")
    found = []
    for i, row in enumerate(rows):
        if isinstance(row, str | bytes):
            raise TypeError(f"{name}[{i}] is {row!r:.60}, expected token ids: tokenizer.encode(it)")
        ids = np.asarray(row)
        if ids.ndim != 1:
            raise ValueError(f"{name}[{i}] has shape {ids.shape}, expected [t] token ids")
        if not ids.size and not empty:
            raise ValueError(f"{name}[{i}] is empty, expected at least one token; leave it out")
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"{name}[{i}] is {ids.dtype}, expected integer token ids")
        if ids.size and not 0 <= ids.min() <= ids.max() < 2**31:
            raise ValueError(
                f"{name}[{i}] has ids from {ids.min()} to {ids.max()}, expected 0 to {2**31 - 1}"
            )
        found.append(ids.astype(np.int32))
    return found


def whole(name: str, value) -> int:
    """A number of tokens, at least 1."""
    said = f"{name} is {value!r:.60}, expected an integer number of tokens >= 1"
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(said)
    if value < 1:
        raise ValueError(said)
    return operator.index(value)
