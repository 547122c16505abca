"""A cache of decoded examples, so that the second run does not decode again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["key", "load", "save"]

_LARGEST = 2**28


def key(files: Sequence[Path], **facts) -> str:
    """A name for what the files decode to: changes with their size, time, place and the facts.

    Args:
      files: the files of the examples.
      **facts: JSON values that decide the result.

    Returns:
      32 hexadecimal digits.

    >>> key([], name="mnist", split="train") == key([], name="mnist", split="test")
    False
    """
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([1, stats, facts], sort_keys=True).encode()).hexdigest()[:32]


def load(name: str) -> dict[str, np.ndarray] | None:
    """The arrays [n ...] saved under a name, or None; a damaged file counts as none.

    Args:
      name: from `key`.

    Returns:
      Arrays by field, or None.

    >>> load("nothing") is None
    True
    """
    if _off():
        return None
    try:
        with open(_place() / f"{name}.npz", "rb") as kept:
            file = np.load(kept, allow_pickle=False)
            return {field: file[field] for field in file.files}  # zip checks a CRC of each
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile):
        return None


def save(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays [n ...] of at most 256 MiB; a place that cannot be written to is no error.

    Args:
      name: from `key`.
      arrays: numeric arrays by field.

    >>> save("too large", {"x": np.broadcast_to(np.uint8(0), (2**28 + 1,))})
    """
    if _off() or sum(a.nbytes for a in arrays.values()) > _LARGEST:
        return
    with contextlib.suppress(OSError):
        _place().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=_place(), suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, _place() / f"{name}.npz")
        except BaseException:
            os.unlink(temporary)
            raise


def _off() -> bool:
    return os.environ.get("NNKIT_CACHE") == "0"


def _place() -> Path:
    home = os.environ.get("NNKIT_CACHE") or Path.home() / ".cache" / "nnkit"
    return Path(home) / "data"
