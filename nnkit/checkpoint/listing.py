"""Which checkpoints a folder has: listed means valid, all else is left alone."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from nnkit.checkpoint import disk, leaves, manifest
from nnkit.checkpoint.values import number

__all__: list[str] = []  # for this package only


class Survey(NamedTuple):
    """What was found: readable manifests of this run, and why others are not, by step."""

    valid: dict[int, dict[str, Any]]
    damaged: dict[int, str]


def survey(folder: Path) -> Survey:
    """Looks at every folder named as a step; checkpoints of other runs are in neither part."""
    found = Survey({}, {})
    run = disk.run_id(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if not manifest.looks_ours(path) or path.name != f"{int(path.name):08d}":
            continue
        step = int(path.name)
        try:
            body = read(folder, step)
        except manifest.CorruptCheckpoint as error:
            found.damaged[step] = str(error)
            continue
        if body["run"] == run:
            found.valid[step] = body
    return found


def foreign(folder: Path) -> str:
    """What looks like a checkpoint of this run and is none, and why; it is left alone."""
    found: dict[str, str] = {}
    run = disk.run_id(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name
        if name.startswith("."):
            continue
        if not name.isdecimal():
            if re.match(r"[0-9]", name):
                found[name] = "no name of a checkpoint"
        elif path.is_symlink():
            found[name] = "a link"
        elif not path.is_dir():
            found[name] = "no folder"
        elif not manifest.STEP.fullmatch(name) or name != f"{int(name):08d}":
            found[name] = "no name of a checkpoint"
        elif not manifest.looks_ours(path):
            found[name] = "a folder without a manifest"
        else:
            with contextlib.suppress(manifest.CorruptCheckpoint):
                if read(folder, int(name))["run"] != run:
                    found[name] = "of another run"
    said = ", ".join(f"{name} ({why})" for name, why in found.items())
    return f"; no checkpoints, and left alone: {said}" if said else ""


def read(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a step, which must be of that step."""
    path = folder / f"{step:08d}"
    body = manifest.read(path)
    if body["step"] != step:
        raise manifest.CorruptCheckpoint(
            f"checkpoint {path}: {manifest.NAME} is that of step {body['step']}; give it that name"
        )
    return body


def best(manifests, keep_best) -> int | None:
    """The step with the best metric, of equals the newest; None if none has it."""
    if keep_best is None:
        return None
    name, way = keep_best
    sign = 1 if way == "max" else -1
    scored = [
        (sign * number(body["metrics"][name]), step)
        for step, body in manifests.items()
        if name in body["metrics"] and not math.isnan(number(body["metrics"][name]))
    ]
    return max(scored)[1] if scored else None


def taken(folder: Path, body, table, arrays) -> bool:
    """True if the step is there with the same bits; raises if it cannot be written.

    Args:
      folder: the folder of all checkpoints.
      body: the manifest of the new checkpoint so far.
      table: its rows.
      arrays: its leaves [...] by name.
    """
    step = body["step"]
    path = folder / f"{step:08d}"
    if not os.path.lexists(path):
        return False
    if not manifest.looks_ours(path):
        raise FileExistsError(f"{path} is in the way and is no checkpoint; move it elsewhere")
    valid, damaged = survey(folder)
    if problems := [damaged[step]] if step in damaged else manifest.verify(path):
        disk.set_aside(path, problems[0])
        return False
    what = "another run" if step not in valid else "other contents"
    if step in valid and valid[step]["digest"] == leaves.seal(table, arrays):
        if valid[step]["position"] == body["position"]:
            return True
        what = f"the same state at data position {valid[step]['position']}"
    raise FileExistsError(
        f"{path} exists, with {what}; delete it, save under another step, or use another folder"
    )
