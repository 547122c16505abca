"""Random keys: one base key, never advanced; each use folds in a name or a step."""

from __future__ import annotations

import zlib

import jax

__all__ = ["fold", "seed"]


def fold(key, *marks):
    """A key of its own for every name and number: fold(key, "dropout", 3).

    Adding a new name never changes the stream of another, which splitting one key into n does.

    Args:
      key: [] a typed key (`jax.random.key`).
      *marks: names (hashed with CRC-32) or integers [] below 2**32 (traced ones too), in order.

    Returns:
      [] a typed key.

    Raises:
      TypeError: if `key` is a raw uint32 key, or a mark is neither a name nor an integer.

    >>> a, b = fold(jax.random.key(0), "data", 1), fold(jax.random.key(0), "data", 2)
    >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
    False
    """
    if not jax.numpy.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        raise TypeError(f"key is {_kind(key)}, expected a typed key: jax.random.key(seed)")
    for mark in marks:
        if isinstance(mark, str):
            mark = zlib.crc32(mark.encode())
        elif isinstance(mark, bool) or not jax.numpy.issubdtype(
            getattr(mark, "dtype", type(mark)), jax.numpy.integer
        ):
            raise TypeError(f"fold takes names and integers, got {mark!r}")
        key = jax.random.fold_in(key, mark)
    return key


def seed(number: int) -> int:
    """A seed, checked: jax takes 2**32 + 1 for 1 without a word.

    Args:
      number: an int from 0 to 2**32 - 1.

    Returns:
      The same int.

    Raises:
      TypeError: if it is not an int.
      ValueError: if it is out of range.

    >>> seed(2**32 + 1)
    Traceback (most recent call last):
        ...
    ValueError: seed is 4294967297, expected 0 to 4294967295; 0 is usual
    """
    if isinstance(number, bool) or not hasattr(type(number), "__index__"):
        raise TypeError(f"seed is {number!r}, expected an int from 0 to 4294967295; 0 is usual")
    if not 0 <= int(number) < 2**32:
        raise ValueError(f"seed is {number}, expected 0 to {2**32 - 1}; 0 is usual")
    return int(number)


def _kind(x) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
