"""A power cut after a save: what was not synced is gone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from reliability import progress

__all__ = ["Durable", "power_cut"]


class Durable:
    """What a power cut would leave: what was synced, under names that were synced.

    Within the block `os.fsync` and `os.rename` are watched. A file keeps the bytes it had when it
    was synced; a folder the entries it had: a rename counts once its folder was synced after it.
    """

    def __init__(self):
        self.files: dict[str, Any] = {}  # path: bytes
        self.folders: dict[str, Any] = {}  # path: {entry: path it had when synced}

    def __enter__(self) -> Durable:
        self._plain = os.fsync, os.rename, os.replace
        os.fsync, os.rename, os.replace = self.fsync, self.rename, self.replace
        return self

    def __exit__(self, *_) -> None:
        os.fsync, os.rename, os.replace = self._plain

    def fsync(self, file) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if os.path.isdir(path):
            self.folders[path] = {name: os.path.join(path, name) for name in os.listdir(path)}
        else:
            with open(path, "rb") as again:
                self.files[path] = again.read()
        self._plain[0](file)

    def rename(self, old, new, **words) -> None:
        self._plain[1](old, new, **words)
        self._renamed(os.path.realpath(old), os.path.realpath(new))

    def replace(self, old, new, **words) -> None:
        self._plain[2](old, new, **words)
        self._renamed(os.path.realpath(old), os.path.realpath(new))

    def _renamed(self, old: str, new: str) -> None:
        for table in (self.files, self.folders):
            for path in [p for p in table if p == old or p.startswith(old + "/")]:
                table[new + path[len(old) :]] = table.pop(path)
        for path, entries in self.folders.items():
            if path == new or path.startswith(new + "/"):
                self.folders[path] = {name: os.path.join(path, name) for name in entries}

    def left(self, folder: Path, place: Path) -> None:
        """Makes at `place` what is left of a folder after a power cut."""
        place.mkdir()
        source = os.path.realpath(folder)
        for name in self.folders.get(source, {}):
            path = os.path.join(source, name)
            if path in self.files:
                (place / name).write_bytes(self.files[path])
            elif path in self.folders or os.path.isdir(path):
                self.left(Path(path), place / name)
            elif os.path.lexists(path):
                (place / name).write_bytes(b"")  # its name was synced, its bytes were not


def power_cut(count: int, seed: int) -> dict:
    """Cuts the power after each acknowledged save: all of it must have been synced before.

    Args:
      count: saves, of trees of 1 to 9 leaves.
      seed: of the trees.

    Returns:
      count, failures, syncs (of files and folders).
    """
    import numpy as np

    from nnkit.checkpoint import Checkpoints, verify
    from nnkit.core import trees

    failures, syncs = [], 0
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "run")
        folder.mkdir()
        for step in range(1, count + 1):
            rng = np.random.default_rng([seed, step])
            sizes = rng.integers(1, 20_000, rng.integers(1, 10))
            state = {f"w{i}": rng.random(n, np.float32) for i, n in enumerate(sizes)}
            with Durable() as durable, Checkpoints(folder, keep_last=1) as saver:
                saver.save(step, state, position=step)
                saver.wait()
            syncs += len(durable.files) + len(durable.folders)
            place = Path(root, f"left-{step}")
            durable.left(folder, place)
            told = f"seed {seed}, step {step}"
            try:
                found = Checkpoints(place).restore(state, step)
                if trees.digest(found.state) != trees.digest(state):
                    failures.append(f"{told}: other bits")
                failures += [f"{told}: {why}" for why in verify(place / f"{step:08d}")]
            except (OSError, ValueError) as error:
                failures.append(f"{told}: {error}")
            shutil.rmtree(place)
            progress(f"power cut {step} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures, "syncs": syncs}
