"""One checkpoint of every release: this version restores it and trains on.

    python -m reliability.golden     writes that of the release in nnkit.__version__, once

tests/golden/VERSION has program.py, which stays as the release wrote it; run/, a run folder at step
20; and expected.json, the losses of the five steps that follow.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

import nnkit as nk
from nnkit.checkpoint import Checkpoints, verify

__all__ = ["releases", "restored"]

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
MORE = 5  # steps after the checkpoint
LARGEST = 200_000  # bytes of a release
CLOSE = 1e-3  # of losses: other versions of jax round in another order


def releases() -> list[str]:
    """The versions that have a checkpoint here.

    >>> releases()[0]
    '0.1.0'
    """
    return sorted(path.parent.name for path in FOLDER.glob("*/program.py"))


def program(version: str) -> ModuleType:
    """What the release was trained with."""
    title = f"golden_{version.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(title, FOLDER / version / "program.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _losses(rows, after: int) -> list[float]:
    return [float(row["loss"]) for row in rows if "loss" in row and row["step"] > after]


def restored(count: int, seed: int) -> dict:
    """Restores the checkpoints of all releases and trains them on.

    Args:
      count: how many releases at most, the newest first.
      seed: unused: they are what they are.

    Returns:
      {"count", "failures", "bytes": of the largest, "off": the largest relative error of a loss}.
    """
    failures, largest, off = [], 0, 0.0
    chosen = releases()[::-1][:count]
    for version in chosen:
        kept = FOLDER / version
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        largest = max(largest, size)
        expected = json.loads((kept / "expected.json").read_text())
        with tempfile.TemporaryDirectory(prefix="golden-") as place:
            folder = Path(place) / "run"
            shutil.copytree(kept / "run", folder)
            step, told = expected["step"], verify(folder / "checkpoints")
            found: list[float] = []
            try:
                body = Checkpoints(folder / "checkpoints").info(step)
                state, _ = program(version).train(folder, step)
                if nk.digest(state) != body["digest"]:
                    told.append("the state restored has other bits")
                found = _losses(program(version).train(folder, step + MORE)[1], step)
            except Exception as error:
                told.append(f"{type(error).__name__}: {error!s:.400}")
        if len(found) == len(expected["losses"]):
            off = max(off, float(np.max(np.abs(np.divide(found, expected["losses"]) - 1))))
        if not told and (len(found) != MORE or off > CLOSE):
            told.append(f"losses {found}, expected {expected['losses']}")
        if size > LARGEST:
            told.append(f"{size:,} bytes, at most {LARGEST:,} are kept")
        failures += [f"release {version}: {text}" for text in told]
    return {"count": len(chosen), "failures": failures, "bytes": largest, "off": round(off, 6)}


def write() -> None:
    """Keeps the checkpoint of this release; its program.py is there already."""
    kept = FOLDER / nk.__version__
    if (kept / "run").exists():
        raise SystemExit(f"{kept} is kept already; a release is written once")
    module = program(nk.__version__)
    with tempfile.TemporaryDirectory(prefix="golden-") as place:
        folder = Path(place) / "run"
        module.train(folder, module.CONFIG["steps"])
        for name in ("env.json", "STATUS", ".lock"):
            (folder / name).unlink(missing_ok=True)  # of the machine, not of the format
        shutil.copytree(folder, kept / "run", ignore=shutil.ignore_patterns(".lock*"))
        step = module.CONFIG["steps"]
        losses = _losses(module.train(folder, step + MORE)[1], step)
    expected = {"step": step, "losses": losses}
    (kept / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{kept}: {sum(p.stat().st_size for p in kept.rglob('*') if p.is_file()):,} bytes")


if __name__ == "__main__":
    sys.exit(write())
