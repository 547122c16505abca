"""Batches of arrays that fit in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnkit.data.batches import Batches
from nnkit.data.fields import clean
from nnkit.data.sources import Memory

__all__ = ["arrays"]


def arrays(
    x, y=None, *, batch_size: int, shuffle: bool = True, seed: int = 0, **fields: Any
) -> Batches:
    """Batches of arrays in memory, checked once.

    float64 becomes float32, int64 int32, integer labels int32; `print(batches)` notes it. The
    arrays are not copied: do not change them afterwards.

    Args:
      x: [n ...] an array or nested list; or a mapping of names to such arrays, without `y`.
      y: [n ...] targets: integer labels [n], or numbers.
      batch_size: b; the last batch is padded, with a "mask".
      shuffle: a new order every epoch.
      seed: decides the orders, 0 to 2**32 - 1.
      **fields: [n ...] more arrays by name. A "mask" [n] says which examples count.

    Returns:
      `Batches` of {"x": [b ...], "y": [b ...], ...}.

    Raises:
      TypeError: for strings, objects, iterators, unscaled uint8 images, a batch size that is no
        int.
      ValueError: for empty, ragged, non-finite fields, other lengths, labels [n 1], integers
        beyond int32, a batch size out of 1..n.

    >>> batches = arrays([[1.0], [2.0], [3.0]], [0, 1, 0], batch_size=2, shuffle=False)
    >>> [batch["y"].tolist() for batch in batches], next(iter(batches))["x"].dtype
    ([[0, 1], [0, 0]], dtype('float32'))
    >>> arrays([[1.0], [2.0]], [0], batch_size=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: y has 1 examples, but x has 2; every field needs one row per example: cut or ...
    """
    named = dict(x) if isinstance(x, Mapping) else {"x": x}
    if isinstance(x, Mapping) and y is not None:
        raise TypeError("y was given beside a mapping, expected one of both; put y in the mapping")
    if y is not None:
        named["y"] = y
    if twice := sorted(set(named) & set(fields)):
        raise TypeError(f"the field {twice[0]!r} was given twice, expected once; drop one")
    found, notes = clean(named | fields)
    return Batches(Memory(found), batch_size, shuffle=shuffle, seed=seed, notes=notes)
