"""What happens on disk: commit by one rename, deletion that renames first, cleaning up."""

from __future__ import annotations

import datetime
import errno
import os
import re
import shutil
import uuid
import warnings
from pathlib import Path

import numpy as np

from nnkit.checkpoint import leaves, manifest

__all__: list[str] = []  # for this package only

_OURS = re.compile(r"\.(tmp|trash)-[0-9]+(-([0-9]+))?")
_RUN = re.compile(r"[0-9a-f]{32}\n?")
_writing: set[str] = set()  # temporaries in use by this process


def commit(folder: Path, save, body, table, arrays) -> None:
    """Writes one checkpoint: arrays, digests, manifest, and the rename that makes it count.

    Args:
      folder: the folder of all checkpoints.
      save: `save_checkpointables` of Orbax.
      body: the manifest so far.
      table: the rows of the leaves.
      arrays: host copies [...] by name.
    """
    _make(folder)
    name = f"{body['step']:08d}"
    temporary = folder / f".tmp-{body['step']}-{os.getpid()}"
    _writing.add(str(temporary))
    try:
        _space(folder, sum(a.nbytes for a in arrays.values()))
        remove(temporary)
        temporary.mkdir()
        stored = {n: leaves.encode(a) for n, a in arrays.items() if a.size}  # Orbax refuses empty
        if stored:
            save(temporary / "arrays", {"state": stored})
        body = body | {"format": manifest.FORMAT, "run": _run(folder, temporary)}
        body |= {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        body |= {"versions": manifest.versions(), "digest": leaves.seal(table, arrays)}
        body |= {"leaves": table, "files": manifest.file_table(temporary)}
        manifest.write(temporary, body)
        manifest.sync_folder(temporary)
        os.rename(temporary, folder / name)
        manifest.sync_folder(folder)
    except BaseException:
        remove(temporary)
        raise
    finally:
        _writing.discard(str(temporary))


def load(folder: Path, rows) -> dict[str, np.ndarray]:
    """The arrays [...] of a checkpoint by name, as host arrays checked by their digests."""
    from orbax.checkpoint import v1 as ocp

    blank = {row["name"]: leaves.blank(row) for row in rows}
    stored = {name: leaves.encode(a) for name, a in blank.items() if a.size}
    if stored:
        stored = ocp.load_checkpointables(str(folder / "arrays"), {"state": stored})["state"]
    arrays = {}
    for row in rows:
        name, like = row["name"], blank[row["name"]]
        array = np.ascontiguousarray(stored.get(name, like))
        arrays[name] = array.reshape(-1).view(like.dtype).reshape(like.shape)
        if leaves.leaf_digest(row, arrays[name]) != row["sha256"]:
            raise manifest.CorruptCheckpoint(
                f"checkpoint {folder}: leaf {row['path']} is not what was saved (its sha256 "
                f"differs); {manifest.REMEDY}"
            )
    return arrays


def retire(path: Path) -> None:
    """Deletes a checkpoint; one rename makes it disappear, whatever happens then."""
    trash = path.parent / f".trash-{int(path.name)}"
    if os.path.lexists(trash):
        trash = path.parent / f"{trash.name}-{os.getpid()}"
    os.rename(path, trash)
    remove(trash)


def remove(path: Path) -> None:
    """Deletes a folder of ours if it is there, never following links."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path, why: str) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again; deletes nothing."""
    number = 1
    while os.path.lexists(aside := path.parent / f"damaged-{path.name}-{number}"):
        number += 1
    os.rename(path, aside)
    warnings.warn(f"{why}; moved to {aside} to save the step again", stacklevel=4)


def sweep(folder: Path) -> None:
    """Removes temporaries of processes that have died; those of others, and all else, stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _OURS.fullmatch(path.name)
        if match and str(path) not in _writing and not _alive(match[3]):
            remove(path)


def run_id(folder: Path) -> str:
    """The id shared by all checkpoints of a folder; if lost, that of the newest one."""
    path = folder / ".run"
    if path.is_file() and not path.is_symlink() and path.stat().st_size < 100:
        text = path.read_text(errors="replace")
        if _RUN.fullmatch(text):
            return text.strip()
    found = ""
    for one in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        try:
            found = manifest.read(one)["run"] if manifest.looks_ours(one) else found
        except manifest.CorruptCheckpoint:
            continue
        if found:
            break
    return found


def _run(folder: Path, temporary: Path) -> str:
    """The id of the run, written down if it was not."""
    found = run_id(folder) or uuid.uuid4().hex
    if not (folder / ".run").exists():
        with open(temporary / "run", "w") as file:
            file.write(found + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary / "run", folder / ".run")
    return found


def _alive(pid: str | None) -> bool:
    if pid is None or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        manifest.sync_folder(folder.parent)


def _space(folder: Path, size: int) -> None:
    needed, free = int(size * 1.2), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"not enough space for a checkpoint in {folder}: needed {needed:,} bytes, "
            f"free {free:,}; delete something, or choose another folder",
        )
