"""What happens on disk: commit by one rename, deletion that renames first, cleaning up."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nnkit.checkpoint import leaves, manifest
from nnkit.core.failpoints import failpoint
from nnkit.parallel import hosts

__all__: list[str] = []  # for this package only

_TOGETHER = 2**28  # bytes read at a time
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
    make(folder)
    name = f"{body['step']:08d}"
    temporary = folder / f".tmp-{body['step']}-{os.getpid()}"
    _writing.add(str(temporary))
    try:
        failpoint("save.begin")
        space(folder, sum(a.nbytes for a in arrays.values()))
        remove(temporary)
        temporary.mkdir()
        failpoint("save.folder")
        stored = {n: leaves.encode(a) for n, a in arrays.items() if a.size}  # Orbax refuses empty
        if stored:
            with context():
                save(temporary / "arrays", {"state": stored})
        failpoint("save.arrays")
        finish(temporary, folder / name, body | {"digest": leaves.seal(table, arrays)}, table)
    except BaseException as error:
        full = _full(folder, sum(a.nbytes for a in arrays.values()), error)
        remove(temporary)
        if full is not None:
            raise full from error
        raise
    finally:
        _writing.discard(str(temporary))


def finish(temporary: Path, place: Path, body, table) -> None:
    """Writes the manifest of a checkpoint whose arrays are written, and renames it to its place."""
    folder = place.parent
    body = body | {"format": manifest.FORMAT, "run": _run(folder, temporary)}
    body |= {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    body |= {"versions": manifest.versions()}
    body |= {"leaves": table, "files": manifest.file_table(temporary)}
    failpoint("save.digests")
    manifest.write(temporary, body)
    failpoint("save.manifest")
    manifest.sync_folder(temporary)
    failpoint("save.rename")
    os.rename(temporary, place)
    failpoint("save.renamed")
    manifest.sync_folder(folder)
    failpoint("save.committed")


def load(folder: Path, rows, whole: bool = True) -> Iterator[tuple[Any, np.ndarray]]:
    """The rows of a checkpoint with their arrays [...] on the host, checked by their digests.

    Args:
      folder: that of the checkpoint.
      rows: rows of its leaf table.
      whole: whether these are all of them.

    Returns:
      An iterator over (row, array); memory is held for some hundred megabytes at a time.
    """
    found = groups(rows)
    for group in found:
        for row, array in zip(group, read(folder, group, whole and len(found) == 1)):
            if leaves.leaf_digest(row, array) != row["sha256"]:
                raise manifest.CorruptCheckpoint(
                    f"checkpoint {folder}: leaf {row['path']} is not what was saved (its sha256 "
                    f"differs); {manifest.REMEDY}"
                )
            yield row, array


def groups(rows) -> list[list[Any]]:
    """The rows in their order, cut where their bytes would be more than are held at a time."""
    found: list[list[Any]] = []
    held = 0
    for row in rows:
        size = leaves.blank(row).nbytes
        if not found or held + size > _TOGETHER:
            found.append([])
            held = 0
        found[-1].append(row)
        held += size
    return found


def read(folder: Path, rows, whole: bool) -> list[np.ndarray]:
    """The arrays [...] of some rows (`whole`: of all), read by this process alone, not checked."""
    from orbax.checkpoint import v1 as ocp

    blank = [leaves.blank(row) for row in rows]
    stored = {row["name"]: leaves.encode(a) for row, a in zip(rows, blank) if a.size}
    me = {jax.process_index()} if hosts.count() > 1 else None
    if stored:
        with context(me, some=not whole):
            stored = ocp.load_checkpointables(str(folder / "arrays"), {"state": stored})["state"]
    arrays = []
    for row, like in zip(rows, blank):
        array = np.ascontiguousarray(stored.get(row["name"], like))
        arrays.append(array.reshape(-1).view(like.dtype).reshape(like.shape))
    return arrays


def context(processes: set[int] | None = None, some: bool = False):
    """The settings of Orbax for a save or a read.

    Args:
      processes: those that take part, the least of them first; None is its default.
      some: whether leaves that are not asked for are left out.
    """
    from orbax.checkpoint import v1 as ocp

    found = ocp.Context()
    # else threads of Orbax wait for a folder that cannot be made, and the exit of the process too
    found.async_options.create_directories_asynchronously = False
    if processes is not None:
        found.multiprocessing_options.active_processes = processes
        found.multiprocessing_options.primary_host = min(processes)
    if some:
        found.pytree_options.loading.partial_load = True
    return found


def retire(path: Path) -> None:
    """Deletes a checkpoint; one rename makes it disappear, whatever happens then."""
    trash = path.parent / f".trash-{int(path.name)}"
    if os.path.lexists(trash):
        trash = path.parent / f"{trash.name}-{os.getpid()}"
    failpoint("delete.rename")
    os.rename(path, trash)
    failpoint("delete.renamed")
    manifest.sync_folder(path.parent)  # or a power cut could leave half of it under its old name
    remove(trash)
    failpoint("delete.removed")


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
            with contextlib.suppress(OSError):  # it is never listed, so it may stay
                failpoint("sweep.remove")
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


def make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        manifest.sync_folder(folder.parent)


def _full(folder: Path, size: int, error: BaseException) -> OSError | None:
    """The error in numbers, if it is that the disk became full while a checkpoint was written."""
    said = os.strerror(errno.ENOSPC)
    if getattr(error, "errno", None) != errno.ENOSPC and said not in str(error):
        return None
    if "needed" in str(error):  # said by `space`
        return None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        return OSError(
            errno.ENOSPC,
            f"the disk of {folder} became full while a checkpoint was written: needed "
            f"{int(size * 1.2):,} bytes, free {free:,}; delete something, or choose another folder",
        )
    return None


def space(folder: Path, size: int, what: str = "a checkpoint") -> None:
    """Raise unless a disk has room for some bytes of arrays."""
    while not folder.is_dir():  # it will be made on the disk of its parent
        folder = folder.parent
    needed, free = int(size * 1.2), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"not enough space for {what} in {folder}: needed {needed:,} bytes, "
            f"free {free:,}; delete something, or choose another folder",
        )
