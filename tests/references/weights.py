"""Weights that both sides of a parity test can make: a pure function of name and shape.

The reference fills its state with them, the test fills ours with the same arrays under our names,
so that a golden file needs to hold outputs and gradients only. Needs numpy alone; `RandomState` is
frozen by numpy's policy, the newer generators are not.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LIMIT = 200_000  # bytes of a golden file


def filled(name, shape):
    """The array [shape] float32 of that name: norms near 1, biases near 0, matrices by fan-in."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("running_var"):
        draw = 1 + 0.2 * np.abs(draw)
    elif len(shape) >= 2:
        draw = draw / np.sqrt(max(np.prod(shape[1:]), 1))  # torch's layout: [out in ...]
    elif "norm" in name.lower() and name.endswith("weight"):
        draw = 1 + 0.1 * draw
    else:
        draw = 0.1 * draw
    return np.asarray(draw, np.float32)


def all_filled(shapes):
    """{name: array} for {name: shape}, as `filled`."""
    return {name: filled(name, shape) for name, shape in shapes.items()}


def write(name, about, **arrays):
    """One golden file; `about` (a dict) says reference, version and settings."""
    arrays = {k: np.asarray(v.detach() if hasattr(v, "detach") else v) for k, v in arrays.items()}
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, about=json.dumps(about), **arrays)
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, expected at most {LIMIT}")


def read(name):
    """(about, {key: array}) of a golden file."""
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        found = {k: file[k] for k in file.files}
    return json.loads(str(found.pop("about"))), found


def part(arrays, prefix):
    """What stands below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
