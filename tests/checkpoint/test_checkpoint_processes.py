"""Processes that are killed, that end at once, that fail while ending."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from nnkit.checkpoint import Checkpoints, verify

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (50, 50)


def child(script, *arguments):
    """A Python process with this checkout; bytecode is kept, which makes its start cheap."""
    cache = Path(tempfile.gettempdir()) / "nnkit-test-bytecode"
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cache)}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SAVES = """
    import sys, numpy as np
    from orbax.checkpoint import v1  # so that kills fall into saves, not into the import
    from nnkit.checkpoint import Checkpoints
    saver = Checkpoints(sys.argv[1], keep_last=2)
    target = {"w": np.zeros((50, 50), np.float32)}
    step = saver.restore(target).step if saver.steps() else 0
    print("ready", step, flush=True)
    while True:
        step += 1
        saver.save(step, {"w": np.full((50, 50), step, np.float32)}, position=step)
        saver.wait()
        print("ack", step, flush=True)
"""


@pytest.mark.slow
def test_no_acknowledged_step_is_lost_to_a_kill(tmp_path):
    rng = random.Random(0)
    acknowledged = interrupted = 0
    target = {"w": np.zeros(SHAPE, np.float32)}
    for kill in range(10):
        process = child(SAVES, tmp_path)
        word, step = process.stdout.readline().split()
        assert (word, int(step) >= acknowledged) == ("ready", True)
        for _ in range(rng.randint(1, 4)):  # then somewhere in the save after these
            word, step = process.stdout.readline().split()
            assert (word, int(step)) == ("ack", int(step))
        time.sleep(0.001 * 100 ** rng.random())  # 1 to 100 ms, log-uniform
        process.kill()
        out, err = process.communicate(timeout=30)
        assert "Error" not in err, err
        late = [int(line.split()[1]) for line in out.splitlines() if line.startswith("ack ")]
        acknowledged = max([int(step), *late])
        hidden = [p.name for p in tmp_path.iterdir() if p.name.startswith((".tmp", ".trash"))]
        interrupted += bool(hidden)
        saver = Checkpoints(tmp_path)
        left = [p.name for p in tmp_path.iterdir() if p.name.startswith((".tmp", ".trash"))]
        assert left == [], f"kill {kill}"
        assert saver.latest() >= acknowledged, f"kill {kill}"
        assert len(saver.steps()) <= 3
        for step in saver.steps():
            assert verify(tmp_path / f"{step:08d}") == []
            found = saver.restore(target, step)
            assert found.position == step
            assert (found.state["w"] == step).all()
    print(f"{interrupted} kills during a save or a deletion, {acknowledged} steps acknowledged")
    assert acknowledged >= 10
    assert interrupted >= 1  # or nothing was tested


ENDS = """
    import sys, os, time, numpy as np
    from nnkit.checkpoint import Checkpoints, disk
    folder, way = sys.argv[1:]
    commit = disk.commit
    def slow(*arguments):  # still at work when the main thread is long gone
        time.sleep(0.5)
        if way == "fail":
            raise OSError(5, "the disk is gone")
        commit(*arguments)
    disk.commit = slow
    saver = Checkpoints(folder)
    saver.save(3, {"w": np.full((50, 50), 3, np.float32)})
    if way == "exit":
        sys.exit(0)
    if way == "raise":
        raise KeyError("mine")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "code"), [("end", 0), ("exit", 0), ("raise", 1), ("fail", 1)])
def test_a_process_that_ends_after_save_still_commits(tmp_path, way, code):
    process = child(ENDS, tmp_path, way)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    if way == "fail":
        assert f"nnkit: saving step 3 in {tmp_path} failed: OSError(5, 'the disk is gone')" in err
        assert Checkpoints(tmp_path).steps() == []
        return
    assert ("KeyError" in err) == (way == "raise")
    found = Checkpoints(tmp_path).restore({"w": np.zeros(SHAPE, np.float32)})
    assert found.step == 3
    assert (found.state["w"] == 3).all()
    assert verify(tmp_path) == []
