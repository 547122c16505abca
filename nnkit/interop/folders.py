"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic"]


@contextlib.contextmanager
def atomic(folder, overwrite: bool = False) -> Iterator[Path]:
    """A folder that is there whole or not at all: write into what is given, it is renamed after.

    Args:
      folder: the final place.
      overwrite: replace what is there; else it is an error.

    Yields:
      An empty folder beside it. On any error it is removed, and what was there stays.

    Raises:
      FileExistsError: if the folder exists and is not to be replaced.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "out"
    >>> with atomic(place) as folder:
    ...     _ = (folder / "a.txt").write_text("whole")
    >>> (place / "a.txt").read_text()
    'whole'

    Commit by rename: Pillai et al., OSDI 2014, section 3.
    """
    folder = Path(folder)
    _free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent / f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        yield place
        for path in [*place.rglob("*"), place]:
            _sync(path)
        _free(folder, overwrite)
        old = folder.parent / f"{place.name}.old"
        if os.path.lexists(folder):
            os.rename(folder, old)
        os.rename(place, folder)
        _sync(folder.parent)
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif os.path.lexists(old):
            old.unlink()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _free(folder: Path, overwrite: bool) -> None:
    if os.path.lexists(folder) and not overwrite:
        raise FileExistsError(
            f"{folder} exists, and nothing is overwritten unasked; choose another folder, or say "
            "overwrite=True"
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
