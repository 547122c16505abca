"""One checkpoint written by many processes: each its part of the arrays, one the manifest.

Orbax writes the arrays, every process the shards it holds. Then they are read back, compared with
what was in memory, and hashed leaf by leaf, so that the manifest is the one that a single process
would have written: who saved, and on how many devices, cannot be seen from the leaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nnkit.checkpoint import disk, leaves, listing, manifest
from nnkit.core import trees
from nnkit.core.failpoints import failpoint
from nnkit.parallel import hosts

__all__: list[str] = []  # for this package only


def begun(folder: Path, body, state) -> Callable[[], None]:
    """Copies the state and starts to write it; every process calls this, in the main thread.

    Args:
      folder: the folder of all checkpoints, seen by all processes.
      body: the manifest so far.
      state: a tree of arrays [...], some on the devices of several processes.

    Returns:
      The rest of the work, for a thread; it uses no device.
    """
    hosts.agree({"folder": str(folder), "step": body["step"]}, "what to save")
    table, arrays, spread = hosts.unanimous(lambda: _parted(state))
    prepare = (lambda: _prepared(folder, body, table)) if hosts.first() else (lambda: None)
    temporary = Path(hosts.shared(hosts.unanimous(prepare)))
    hosts.unanimous(lambda: _visible(temporary))
    pieces = {name: _pieces(x) for name, x in spread.items()}
    from orbax.checkpoint import v1 as ocp

    stored: dict[str, Any] = {n: leaves.encode(a) for n, a in arrays.items() if a.size}
    stored |= {name: x.copy() for name, x in spread.items()}  # the state may be donated next
    response = None
    if stored:
        with disk.context(set(range(hosts.count()))):
            response = ocp.save_checkpointables_async(str(temporary / "arrays"), {"state": stored})

    def work():
        try:
            _stage(temporary, "written", lambda: _written(temporary, response, pieces))
            failpoint("save.parts")
            rows = [row for row in table if row["name"] in spread]
            _stage(temporary, "read back", lambda: _hashed(temporary, rows))
            _stage(temporary, "committed", lambda: _commit(folder, temporary, body, table, arrays))
        finally:
            if hosts.first():
                disk.remove(temporary)

    return work


def _parted(state):
    """The leaf table, host copies of leaves every process has, and the leaves spread over them."""
    table, arrays, spread = [], {}, {}
    for name, (path, leaf) in leaves.flat(state).items():
        row = leaves.entry(name, path, leaf)
        table.append(row)
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"leaf {path} was deleted by donation; save the state that update returned"
            )
        if trees.is_key(leaf):
            row["key"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        split = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if not split or leaf.is_fully_replicated:
            arrays[name] = trees.to_host(leaf)
            continue
        if str(leaf.dtype) not in leaves.NATIVE:
            raise NotImplementedError(
                f"leaf {path} has dtype {leaf.dtype} and is split over processes; Orbax stores "
                "it only whole: keep it on every device (rules.replicated)"
            )
        spread[name] = leaf
    return table, arrays, spread


def _prepared(folder: Path, body, table) -> str:
    """The temporary folder of a save, made by process 0."""
    disk.make(folder)
    place = folder / f"{body['step']:08d}"
    if os.path.lexists(place) and not manifest.looks_ours(place):
        raise FileExistsError(f"{place} is in the way and is no checkpoint; move it elsewhere")
    damaged = listing.survey(folder).damaged
    if os.path.lexists(place):
        problems = [damaged[body["step"]]] if body["step"] in damaged else manifest.verify(place)
        if problems:
            disk.set_aside(place, problems[0])
    disk.space(folder, sum(leaves.blank(row).nbytes for row in table))
    temporary = folder / f".tmp-{body['step']}-{os.getpid()}"
    disk.remove(temporary)
    temporary.mkdir()
    return str(temporary)


def _visible(temporary: Path) -> None:
    """Raise unless this process sees the folder; disks of a network may take a while."""
    for _ in range(50):
        if temporary.is_dir():
            return
        time.sleep(0.1)
    raise FileNotFoundError(
        f"{temporary.parent} of process 0 is not that of {hosts.who(jax.process_index())}: save "
        "to a disk that all hosts share"
    )


def _pieces(x) -> list[tuple[list[list[int]], np.ndarray]]:
    """(bounds [[start, stop] per axis], values) of each part of an array that is written here."""
    return [
        ([list(s.indices(n)[:2]) for s, n in zip(shard.index, x.shape)], np.array(shard.data))
        for shard in x.addressable_shards
        if shard.replica_id == 0
    ]


def _written(temporary: Path, response, pieces) -> None:
    """Waits for Orbax, then says what this process has given it."""
    if response is not None:
        response.result()
    said = {
        name: [[bounds, _hash(array)] for bounds, array in parts] for name, parts in pieces.items()
    }
    _write(temporary / f"pieces-{jax.process_index()}.json", said)


def _hashed(temporary: Path, rows) -> None:
    """Reads leaves back, compares them with what all processes gave, and hashes them.

    The groups of leaves are dealt out to the processes. All make the same number of reads: Orbax
    numbers its operations, and the numbers must stay equal.
    """
    n, me = hosts.count(), jax.process_index()
    given: dict[str, list] = {row["name"]: [] for row in rows}
    for process in range(n):
        for name, parts in json.loads((temporary / f"pieces-{process}.json").read_text()).items():
            given[name] += parts
    groups, found = disk.groups(rows), {}
    for turn in range(0, len(groups), n):
        group = groups[turn + me] if turn + me < len(groups) else groups[0][:1]
        for row, array in zip(group, disk.read(temporary, group, whole=False)):
            parts, have = given[row["name"]], 0
            for bounds, digest in parts:
                piece = array[tuple(slice(*b) for b in bounds)]
                have += piece.size
                if _hash(piece) != digest:
                    raise OSError(
                        f"leaf {row['path']} was not written as it was, at {bounds}; is the disk "
                        "sound? save again"
                    )
            if have != array.size:
                raise OSError(f"of leaf {row['path']} {have} of {array.size} numbers were written")
            found[row["name"]] = leaves.leaf_digest(row, array)
    _write(temporary / f"digests-{me}.json", found)


def _commit(folder: Path, temporary: Path, body, table, arrays) -> None:
    """Process 0: the manifest, and the rename that makes the checkpoint count."""
    if not hosts.first():
        return
    known: dict[str, str] = {}
    for process in range(hosts.count()):
        known |= json.loads((temporary / f"digests-{process}.json").read_text())
    digest = leaves.seal(table, arrays, known)
    for path in [*temporary.glob("pieces-*.json"), *temporary.glob("digests-*.json")]:
        path.unlink()
    place = folder / f"{body['step']:08d}"
    if not os.path.lexists(place):
        disk.finish(temporary, place, body | {"digest": digest}, table)
        return
    there = manifest.read(place)
    if (there["digest"], there["position"]) != (digest, body["position"]):
        raise FileExistsError(
            f"{place} exists, with other contents; delete it, save under another step, or use "
            "another folder"
        )


def _stage(temporary: Path, name: str, work: Callable[[], None]) -> None:
    """Work of every process, after which all know whether it went well with all."""
    problem, me = None, jax.process_index()
    try:
        work()
    except Exception as error:
        problem = error
        if temporary.is_dir():
            _write(temporary / f"failed-{me}", f"{type(error).__name__}: {error}"[:2000])
    key = f"{temporary.name} {name}"
    hosts.barrier(key)
    failed = sorted(temporary.glob("failed-*"))
    told = [f"{hosts.who(int(p.name[7:]))}: {json.loads(p.read_text())}" for p in failed]
    hosts.barrier(f"{key}, told")
    if problem is not None:
        raise problem
    if told:
        raise RuntimeError(told[0])


def _write(path: Path, data) -> None:
    """A JSON file, there completely or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(data))
    shutil.move(draft, path)


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
