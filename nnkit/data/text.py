"""Texts as rows of token ids: windows of a running text, documents packed, documents padded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.packing import pack, whole
from nnkit.data.sources import Memory
from nnkit.data.tokenizers import Bytes, Tokenizer

__all__ = ["Running", "text"]


def text(
    source: str | bytes | os.PathLike | Sequence[str | bytes],
    *,
    length: int = 256,
    batch_size: int = 32,
    tokenizer: Tokenizer | None = None,
    stride: int | None = None,
    overlap: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Batches:
    """Batches of rows of `length` tokens and the token after each, from a text or from documents.

    A running text of n tokens is cut at 0, stride, 2 stride, ...: tokens = ids[s : s + length],
    labels = ids[s + 1 : s + 1 + length]. With stride = length, as it is unless said otherwise,
    every token but the first of the text is a label exactly once; the last row is filled up and
    its "label_mask" says so. A smaller stride overlaps the rows: stride=1 with shuffle=True draws
    the starts at random, as nanoGPT does (each start once per epoch).

    Documents are packed by `pack`: several in one row, kept apart by "segments". If the tokenizer
    has a start and an end token, each document is put between them; without a start token its
    first token is nobody's label.

    Args:
      source: a path; or a str, which is the name of a file if there is one, else the text itself
        (refused if it might be a name: no line break and no blank); or bytes, always the text
        itself; or [n] documents, a list of str or bytes.
      length: tokens of a row.
      batch_size: b; the last batch is padded, with a "mask".
      tokenizer: from text to ids; None is `Bytes()`.
      stride: tokens between the starts of two rows of a running text, 1 to length; None is length.
      overlap: what overlapping rows count. "all": every label in every row, the labels of an epoch
        being used length / stride times; "context": each label once, in the first row that has it,
        so that every one has at least length - stride tokens before it. None is "all" with
        shuffle=True; without (evaluation) one of both must be said.
      shuffle: a new order of the rows every epoch.
      seed: decides the orders, 0 to 2**32 - 1.

    Returns:
      `Batches` of {"tokens": [b length] int32, "labels": [b length] int32, "label_mask": [b length]
      bool, True for labels that count}; of documents also {"segments": [b length] int32}, from 1,
      0 for padding.

    Raises:
      FileNotFoundError: if a path, or what looks like one, names no file.
      TypeError: if the source is none of these, or a size is no int.
      ValueError: if the text has fewer than 2 tokens, a stride is not in 1..length, an overlap is
        unknown or has to be said, there is no document or an empty one, or a file is no UTF-8.

    >>> rows = nk.data.text(b"hello world", length=4, batch_size=3, shuffle=False)
    >>> batch = next(iter(rows))
    >>> ["".join(map(chr, row)) for row in batch["labels"]], batch["label_mask"].sum()
    (['ello', ' wor', 'ld\\x00\\x00'], np.int64(10))
    >>> rows = nk.data.text(["ab", "cde"], length=6, batch_size=1)
    >>> next(iter(rows))["segments"]
    array([[1, 1, 2, 2, 2, 0]], dtype=int32)

    Packing: Krell et al., arXiv:2107.02027, section 3.2. Overlap: Press et al., arXiv:2012.15832,
    section 2 (sliding window evaluation).
    """
    length = whole("length", length)
    tokenizer = Bytes() if tokenizer is None else tokenizer
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        if stride is not None or overlap is not None:
            raise ValueError(
                f"stride={stride} and overlap={overlap!r} are for a running text, but the source "
                f"is a list of {len(source)} documents, each used once; leave them out, or join "
                "the documents to one text"
            )
        arrays, notes = _documents(source, length, tokenizer)
        kept: Any = Memory(arrays)
        name = "documents"
    else:
        raw, name = _read(source)
        stride = length if stride is None else whole("stride", stride)
        every = _every(length, stride, overlap, shuffle)
        kept = Running(_narrow(tokenizer.encode(raw), len(tokenizer), name), length, stride, every)
        notes = kept.notes
    return Batches(kept, batch_size, shuffle=shuffle, seed=seed, name=name, notes=notes)


@dataclasses.dataclass(frozen=True, eq=False)
class Running:
    """A source that cuts rows out of one text.

    Attributes:
      ids: [n] the tokens; not copied, so they must not change afterwards.
      length: tokens of a row.
      stride: tokens between two starts, 1 to length.
      every: do the labels that the row before has count again?

    >>> rows = Running(np.arange(6), length=3, stride=2, every=False)
    >>> len(rows), rows.take(np.arange(2))["label_mask"].tolist()
    (2, [[True, True, True], [False, True, True]])
    """

    ids: np.ndarray
    length: int
    stride: int
    every: bool = True

    def __len__(self) -> int:
        return max(-(-(len(self.ids) - 1 - self.length) // self.stride), 0) + 1

    @property
    def notes(self) -> tuple[str, ...]:
        """How many tokens there are, how they are counted, what is filled up."""
        n, rows = len(self.ids) - 1, len(self)
        short = (rows - 1) * self.stride + self.length - n
        lines = [f"{n + 1} tokens, every one but the first is a label"]
        if self.stride < self.length:
            how = "in every row" if self.every else "once"
            lines.append(f"rows overlap by {self.length - self.stride}: a label counts {how}")
        if short:
            lines.append(f"the last {short} places of the last row are filled with 0 and masked")
        return tuple(lines)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows {"tokens": [i length], "labels": [i length], "label_mask": [i length]}."""
        indices = np.asarray(indices)
        at = indices[:, None] * self.stride + np.arange(self.length)
        last = len(self.ids) - 1
        real = at < last
        if not self.every:
            real &= (np.arange(self.length) >= self.length - self.stride) | (indices == 0)[:, None]
        tokens = np.where(at <= last, self.ids.take(np.minimum(at, last)), 0)
        labels = np.where(at < last, self.ids.take(np.minimum(at + 1, last)), 0)
        return {
            "tokens": tokens.astype(np.int32),
            "labels": labels.astype(np.int32),
            "label_mask": real,
        }


def _documents(source, length, tokenizer):
    """Packed rows, and what to say about them."""
    if not len(source):
        raise ValueError("there are no documents, expected a list of at least one text")
    before, after = (
        np.array([] if mark is None else [mark], np.int32)
        for mark in (tokenizer.start, tokenizer.end)
    )
    ids = [np.concatenate([before, tokenizer.encode(one), after]) for one in source]
    arrays = pack(ids, length)
    padding = float((arrays["segments"] == 0).mean())
    longer = sum(len(one) > length for one in ids)
    many, rows = sum(map(len, ids)), len(arrays["tokens"])
    notes = [f"{len(ids)} documents, {many} tokens in {rows} rows; padding {100 * padding:.1f} %"]
    if longer:
        notes.append(f"{longer} documents are longer than {length} and go on in further rows")
    if tokenizer.start is None:
        notes.append("no start token: the first token of a document is nobody's label")
    if tokenizer.end is None:
        notes.append("no end token: a model does not learn where a document ends")
    return arrays, tuple(notes)


def _read(source) -> tuple[str | bytes, str]:
    """(the text, its name) of a path, of a str that is a name or a text, of bytes."""
    if isinstance(source, bytes):
        return source, "text"
    if isinstance(source, os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"source is {str(path)!r}, which is no file")
        return path.read_bytes(), path.name
    if not isinstance(source, str):
        raise TypeError(
            f"source is {source!r:.60}, expected a path, a text (str or bytes), or a list of "
            "documents"
        )
    if not any(mark in source for mark in "\n\r\0") and len(source) < 1024:
        path = Path(source)
        if source and path.is_file():
            return path.read_bytes(), path.name
        if not any(c.isspace() for c in source) or path.suffix in (".txt", ".md", ".text"):
            raise FileNotFoundError(
                f"source is {source!r}, which is no file; a text without a line break might be a "
                "name: give the text itself as bytes, source.encode()"
            )
    return source, "text"


def _every(length: int, stride: int, overlap: str | None, shuffle: bool) -> bool:
    """Does every label of overlapping rows count?"""
    if stride > length:
        raise ValueError(
            f"stride is {stride}, expected 1 to {length}, the length: tokens between two rows "
            "would be left out"
        )
    if overlap not in (None, "all", "context"):
        raise ValueError(f"overlap is {overlap!r}, expected 'all' or 'context'")
    if overlap is None and stride < length and not shuffle:
        raise ValueError(
            f"stride={stride} is below length={length} and shuffle=False: a mean over overlapping "
            "rows counts tokens more than once; say overlap='context' to count each once, with at "
            f"least {length - stride} tokens before it, or overlap='all' to count all"
        )
    return overlap != "context"


def _narrow(ids: np.ndarray, size: int, name: str) -> np.ndarray:
    """Ids [n] in the fewest bytes; at least two of them."""
    if len(ids) < 2:
        raise ValueError(
            f"{name} has {len(ids)} tokens, expected at least 2: one to read and one to predict"
        )
    return ids.astype(np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int32)
