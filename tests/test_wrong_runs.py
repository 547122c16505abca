"""Folders, checkpoints and machines that cannot be right: refused with the path and a remedy."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import nnkit as nk
from nnkit.checkpoint import Checkpoints
from nnkit.core.platforms import require
from nnkit.loop import environment
from tests.mistakes import refused


def folder() -> Path:
    """A folder that is gone when the tests are."""
    path = Path(tempfile.mkdtemp(prefix="nnkit-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def a_file() -> Path:
    path = folder() / "notes.txt"
    path.write_text("mine")
    return path


def run_of(**config) -> Path:
    """The folder of a run of this configuration."""
    path = folder() / "run"
    nk.Run(path, config)
    return path


def saved(state) -> Checkpoints:
    """The checkpoints of a run with this state at step 10."""
    path = folder()
    with Checkpoints(path) as keep:
        keep.save(10, state)
    return Checkpoints(path)


def restoring(was, wanted):
    """Restore a state into another model."""
    return (lambda keep: lambda: keep.restore(wanted))(saved(was))


W = np.ones((2, 3), np.float32)
RUNS = {
    "folder is a file": (
        lambda: (lambda path: lambda: nk.Run(path))(a_file()),
        NotADirectoryError,
        ["notes.txt is a file", "expected a folder", "give another name"],
    ),
    "folder that cannot be made": (
        lambda: lambda: nk.Run("/proc/nnkit/run"),
        OSError,
        ["folder is '/proc/nnkit/run'", "cannot be made", "expected a path", "give another"],
    ),
    "name with NUL": (
        lambda: (lambda path: lambda: nk.Run(f"{path}/a\0b"))(folder()),
        ValueError,
        ["a\\x00b'", "null byte", "expected a path", "give another"],
    ),
    "name of 300 characters": (
        lambda: (lambda path: lambda: nk.Run(path / ("a" * 300)))(folder()),
        ValueError,
        ["aaa", "too long", "255 bytes", "give another"],
    ),
    "other configuration": (
        lambda: (lambda path: lambda: nk.Run(path, {"steps": 4}))(run_of(steps=3)),
        ValueError,
        ["another configuration", "steps was 3, is now 4", "use another folder"],
    ),
    "other model": (
        lambda: restoring({"w": W}, {"w": W[:, :2]}),
        ValueError,
        ["w was saved as float32[2,3]", "float32[2,2]", "use the config that made it"],
    ),
    "wider numbers": (
        lambda: restoring({"w": W.astype(np.float64)}, {"w": W}),
        ValueError,
        ["w was saved as float64[2,3]", "float32[2,3]", "use the config that made it"],
    ),
    "no checkpoint": (
        lambda: (lambda path: lambda: Checkpoints(path).restore({"w": W}))(folder()),
        FileNotFoundError,
        ["no checkpoint", "save one first"],
    ),
    "step that is not there": (
        lambda: (lambda keep: lambda: keep.restore({"w": W}, 5))(saved({"w": W})),
        FileNotFoundError,
        ["no checkpoint of step 5", "[10]"],
    ),
}

DEVICES = {
    "TPU asked, CPU found": (
        lambda: lambda: require("tpu"),
        RuntimeError,
        ["platform 'tpu' was asked for", "JAX_PLATFORMS=cpu"],
    ),
    "unknown platform": (
        lambda: lambda: require("cuda"),
        ValueError,
        ["platform is 'cuda'", "cpu, gpu, tpu", "'cpu' is usual"],
    ),
    "more devices than there are": (
        lambda: lambda: require("cpu", devices=64),
        RuntimeError,
        ["64 cpu devices", "there are 8", "ask for 8"],
    ),
}

ALL = {"runs": RUNS, "machine": DEVICES}
NAMES = [f"{group}/{name}" for group, table in ALL.items() for name in table]


@pytest.mark.parametrize("name", NAMES)
def test_mistake(name):
    group, _, case = name.partition("/")
    refused(*ALL[group][case])


def test_parents_are_made(tmp_path):
    nk.Run(tmp_path / "a" / "b" / "c", {"steps": 1})
    assert (tmp_path / "a" / "b" / "c" / "config.json").is_file()


def test_a_disk_that_does_not_last_is_told_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "COLAB", tmp_path)
    monkeypatch.setattr(environment, "DRIVE", tmp_path / "drive")
    said = environment.perishable(tmp_path / "run")
    assert "gone when that stops" in said
    assert "mount Drive" in said


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(1, {"w": W})
        keep.save(2, {"w": 2 * W})
    for name, when in (("00000001", 2e9), ("00000002", 1.0)):
        for path in [tmp_path / name, *(tmp_path / name).rglob("*")]:
            os.utime(path, (when, when))
    found = Checkpoints(tmp_path)
    assert found.latest() == 2
    assert found.restore({"w": W}).step == 2
