"""The manifest of a checkpoint: every leaf and every file with its digest, written last.

A checkpoint is valid if and only if its manifest checks out; nothing else is looked at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from nnkit.core.documents import parsed

__all__ = ["CorruptCheckpoint", "verify"]

FORMAT = 1
LIMIT = 64 * 2**20  # bytes of a manifest
NAME = "manifest.json"
NUMBERS = ("nan", "inf", "-inf")  # which JSON cannot say
STEP = re.compile(r"[0-9]{8,18}")
REMEDY = "restore another step, or copy the checkpoint again from its source"


class CorruptCheckpoint(ValueError):
    """A checkpoint whose manifest, files or leaves are not what was written.

    >>> issubclass(CorruptCheckpoint, ValueError)
    True
    """


def versions() -> dict[str, str]:
    """The versions that wrote a checkpoint."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    found["nnkit"] = str(getattr(sys.modules.get("nnkit"), "__version__", "unknown"))
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def canonical(body) -> bytes:
    """The one way to write a manifest, so that every changed byte is noticed."""
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write(folder: Path, body: dict[str, Any]) -> None:
    """Writes the manifest into a folder and syncs it to disk."""
    data = canonical(body | {"sha256": hashlib.sha256(canonical(body)).hexdigest()})
    if len(data) > LIMIT:
        raise ValueError(f"the manifest has {len(data)} bytes, at most {LIMIT} fit; shorten `meta`")
    with open(folder / NAME, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, checked against its own digest."""

    def corrupt(why: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"checkpoint {folder}: {NAME} {why}; {REMEDY}")

    try:
        status = os.lstat(folder / NAME)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LIMIT:
            raise corrupt(f"is no plain file of at most {LIMIT} bytes ({status.st_size})")
        data = (folder / NAME).read_bytes()
    except OSError as error:
        raise corrupt(f"cannot be read ({error.strerror})") from error
    try:
        body = parsed(data)
        same = isinstance(body, dict) and canonical(body) == data
        found = body.pop("sha256", None) if same else None
    except (ValueError, RecursionError) as error:
        raise corrupt(f"is no JSON ({error!s:.80})") from error
    if not same or found != hashlib.sha256(canonical(body)).hexdigest():
        raise corrupt("does not match its own sha256")
    if body.get("format") != FORMAT:
        raise corrupt(f"has format {body.get('format')!r}, this nnkit reads {FORMAT}: upgrade it")
    if not well_formed(body):
        raise corrupt("lacks fields, or has some of another type")
    return body


def well_formed(body) -> bool:
    """True if a manifest has the fields that are used, each of its type."""

    def has(row, **kinds):
        return isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in kinds.items())

    kinds = {"step": int, "run": str, "leaves": list, "files": dict, "metrics": dict}
    if not has(body, digest=str, versions=dict, **kinds) or not {"position", "meta"} <= set(body):
        return False
    numbers = [isinstance(x, (int, float)) or x in NUMBERS for x in body["metrics"].values()]
    row = {"name": str, "path": str, "dtype": str, "shape": list, "sha256": str}
    return (
        all(numbers)
        and all(has(one, **row) for one in body["leaves"])
        and all(has(one, bytes=int, sha256=str) for one in body["files"].values())
    )


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file below a folder by relative name; syncs all of them."""
    table = {}
    for root, _, files in os.walk(folder):
        for name in sorted(files):
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            relative = Path(root, name).relative_to(folder).as_posix()
            table[relative] = {"bytes": size, "sha256": digest}
        sync_folder(root)
    return table


def sync_folder(folder) -> None:
    """Brings the entries of a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_problems(folder: Path, body) -> list[str]:
    """What is wrong with the files of a checkpoint, against its manifest."""
    problems = []
    files = body["files"]
    present = set()
    for root, folders, names in os.walk(folder):
        folders.sort()
        links = [f for f in folders if os.path.islink(os.path.join(root, f))]
        present |= {Path(root, n).relative_to(folder).as_posix() for n in [*names, *links]}
    for name, wanted in files.items():
        if name not in present:  # names outside of the folder are never present
            problems.append(f"{name} is missing")
        elif not stat.S_ISREG(os.lstat(folder / name).st_mode):
            problems.append(f"{name} is no plain file")
        elif (size := os.lstat(folder / name).st_size) != wanted["bytes"]:
            problems.append(f"{name} has {size} bytes, the manifest says {wanted['bytes']}")
        else:
            with open(folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != wanted["sha256"]:
                said = wanted["sha256"]
                problems.append(f"{name} has sha256 {found:.12}, the manifest says {said:.12}")
    for name in sorted(present - set(files) - {NAME}):
        if not name.rpartition("/")[2].startswith("."):  # such as .DS_Store
            problems.append(f"{name} is not in the manifest")
    return problems


def verify(path) -> list[str]:
    """What is wrong with a checkpoint, or with each one in a folder of them; needs no model.

    Args:
      path: the folder of one checkpoint (`.../00000100`), or of a run's checkpoints.

    Returns:
      One sentence per problem; [] if every byte is what was written.

    Raises:
      FileNotFoundError: if there is no checkpoint at the path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, nk.checkpoint.Checkpoints(folder) as saver:
    ...     saver.save(1, {"w": jnp.ones(3)})
    ...     saver.wait()
    ...     verify(folder)
    []
    """
    folder = Path(path)
    if not STEP.fullmatch(folder.resolve().name) and not os.path.lexists(folder / NAME):
        inside = sorted(p for p in (folder.iterdir() if folder.is_dir() else ()) if looks_ours(p))
        if not inside:
            raise FileNotFoundError(
                f"no checkpoint at {folder}; give a folder such as checkpoints/ or "
                "checkpoints/00000100"
            )
        return [problem for one in inside for problem in verify(one)]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give that of a checkpoint")
    try:
        return [f"checkpoint {folder}: {p}" for p in file_problems(folder, read(folder))]
    except CorruptCheckpoint as error:
        return [str(error)]


def looks_ours(path: Path) -> bool:
    """True for a real folder named as a step that holds, or held, a checkpoint."""
    if not STEP.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return os.path.lexists(path / NAME) or (path / "arrays").is_dir()
