"""A against B, in turn: the median of the ratios of paired times, and where it came from.

    from benchmarks.compare import compare
    compare("name", {"new": f, "old": g})                             one process
    python -m benchmarks.compare name "command A" "command B"         separate processes

A machine that slows down slows both sides of a pair, and every other pair runs B first.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

__all__ = ["compare", "origin"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
RESULTS = Path(__file__).parent / "results"


def compare(name: str, sides: Mapping[str, Callable | str], *, rounds=7, write=True, **notes):
    """Time two sides in turn, print and keep the ratio first / second.

    Args:
      name: of the comparison, and of its file results/<name>.json.
      sides: two of {name: a function that returns when its work is done, or a shell command}.
        Functions must have run once before, so that nothing compiles here.
      rounds: pairs, >= 5.
      write: whether to write the file.
      **notes: kept beside the numbers, such as steps=2000.

    Returns:
      The row that was written: ratio {median, min, max}, seconds per side, notes and origin.

    Raises:
      ValueError: if there are not two sides, or fewer than 5 rounds.

    >>> sides = {"a": lambda: sum(range(999)), "b": lambda: sum(range(99))}
    >>> row = compare("sums", sides, write=False)  # doctest: +ELLIPSIS
    sums: a / b = ...
    """
    if len(sides) != 2 or rounds < 5:
        raise ValueError(f"compare got {len(sides)} sides and rounds={rounds}, expected 2 and >= 5")
    seconds = {side: [] for side in sides}
    for i in range(rounds):
        for side in sorted(sides, key=list(sides).index, reverse=bool(i % 2)):
            seconds[side].append(_time(sides[side]))
    first, second = seconds
    ratios = [a / b for a, b in zip(seconds[first], seconds[second])]
    ratio = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    row = {"name": name, "ratio": ratio, "of": f"{first} / {second}", **notes}
    row |= {"seconds": seconds, "origin": origin()}
    print(
        f"{name}: {first} / {second} = {ratio['median']:.3f}  "
        f"({ratio['min']:.3f} to {ratio['max']:.3f}, {rounds} pairs; "
        f"{median(seconds[first]):.4g} s and {median(seconds[second]):.4g} s)"
    )
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
    return row


def origin() -> dict:
    """Date, commit, versions, machine and its load."""
    found = {p: _version(p) for p in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **found},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "devices": _devices(),
    }


def _time(side) -> float:
    began = time.perf_counter()
    if callable(side):
        side()
    else:
        subprocess.run(side, shell=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _version(package) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*args) -> str | None:
    here = Path(__file__).parent
    done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _devices() -> list[str]:
    jax = sys.modules.get("jax")  # the commands of separate processes need none here
    return [d.device_kind for d in jax.devices()] if jax else []


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: python -m benchmarks.compare NAME "COMMAND A" "COMMAND B"')
    compare(sys.argv[1], {"A": sys.argv[2], "B": sys.argv[3]}, commands=sys.argv[2:])
