"""JSON that others may have written: small, shallow, each name once, or refused in words."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

__all__ = ["document", "parsed"]

LIMIT = 2**20  # bytes of a settings file
DEPTH = 32  # levels of lists and objects


def document(path, *, limit: int = LIMIT, depth: int = DEPTH) -> Any:
    """The JSON value in a file, which may be hostile: it is data, and bounded in size and depth.

    Args:
      path: a plain file, or a link to one.
      limit: bytes at most.
      depth: levels of lists and objects at most.

    Returns:
      The value.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no plain file, too large, too deep, no JSON, or has a name twice.

    >>> document("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'
    """
    status = os.stat(path)  # before it is opened: opening a pipe would wait for ever
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no plain file, expected one with JSON; remove it")
    if status.st_size > limit:
        raise ValueError(
            f"{path} has {status.st_size:,} bytes, expected JSON of at most {limit:,}; it is not "
            "what its name says, copy the right file there"
        )
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    try:
        return parsed(data, depth=depth)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged JSON: {error}; expected one JSON value: copy the file again"
        ) from None


def parsed(data: bytes | str, *, depth: int = DEPTH) -> Any:
    """The value of a JSON text whose size is bounded already.

    Args:
      data: the text.
      depth: levels of lists and objects at most.

    Returns:
      The value.

    Raises:
      ValueError: if it is too deep, no JSON, or has a name twice in one object.

    >>> parsed('{"a": 1, "a": 2}')
    Traceback (most recent call last):
        ...
    ValueError: the name 'a' comes twice
    """
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"it has more than {depth} levels of lists and objects") from None
    except ValueError as error:
        raise ValueError(str(error)) from None
    level, here = 0, [found]
    while here := [x for x in here if isinstance(x, (list, dict))]:
        level += 1
        if level > depth:
            raise ValueError(f"it has more than {depth} levels of lists and objects")
        here = [y for x in here for y in (x.values() if isinstance(x, dict) else x)]
    return found


def _once(pairs):
    """An object of JSON; a name that comes twice is an error, not the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twice!r:.80} comes twice")
    return found
