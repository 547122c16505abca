"""Failing disks, full disks, power cuts, and the points at which tests make them (CK-03 to 05)."""

from __future__ import annotations

import errno
import re
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import pytest

import nnkit as nk
from nnkit.checkpoint import Checkpoints, disk
from nnkit.core import failpoints
from reliability import faults, power

PACKAGE = Path(nk.__file__).parent


def test_operations_on_files_that_fail():
    found = faults.at_each_operation(count=8, seed=1)
    assert not found["failures"], found
    assert found["count"] == 8
    assert found["operations"] >= 40  # that many are seen


@pytest.mark.nightly
def test_named_points_that_fail():
    found = faults.named_points(count=8, seed=0)
    assert not found["failures"], found
    assert (found["count"], found["points"]) == (8, 12)


def test_a_power_cut_leaves_what_was_acknowledged():
    found = power.power_cut(count=3, seed=0)
    assert not found["failures"], found
    assert found["syncs"] >= 3 * 12


def test_a_power_cut_shows_what_was_not_synced(monkeypatch):
    monkeypatch.setattr(disk.manifest, "sync_folder", lambda _: None)
    assert power.power_cut(count=1, seed=0)["failures"]


def test_a_disk_that_becomes_full_while_it_saves():
    found = faults.disk_full(count=3, seed=0)
    if "why" in found:
        pytest.skip(found["why"])
    assert not found["failures"], found
    assert (found["count"], found["told"]) == (3, 3)


def test_room_for_two_checkpoints_is_wanted_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10_000, 8_000, 2_000))
    state = {"w": jnp.zeros(300)}
    with nk.Run(tmp_path / "small", {}) as run:
        assert run.resume({"w": jnp.zeros(200)})[1] == 0
    message = r"not enough space for two checkpoints in .*: needed 2,880 bytes, free 2,000; delete"
    with nk.Run(tmp_path / "large", {}) as run, pytest.raises(OSError, match=message) as error:
        run.resume(state)
    assert error.value.errno == errno.ENOSPC
    with nk.Run(tmp_path / "done", {}) as run:
        run.mark("done")
        assert run.resume(state)[1] == 0  # nothing will be saved


def test_a_full_disk_is_told_in_numbers(tmp_path, monkeypatch):
    def save(*_):
        raise ValueError(f"RESOURCE_EXHAUSTED: writing: {faults.os.strerror(errno.ENOSPC)}")

    saver = Checkpoints(tmp_path)
    monkeypatch.setattr("orbax.checkpoint.v1.save_checkpointables", save)
    saver.save(1, {"w": jnp.ones(100)})
    message = rf"{tmp_path} became full while .*: needed 480 bytes, free [\d,]+; delete something"
    with pytest.raises(RuntimeError, match=message):
        saver.close()


def test_an_old_one_that_cannot_be_deleted_is_told_as_that(tmp_path, monkeypatch):
    saver = Checkpoints(tmp_path, keep_last=1)
    saver.save(1, {"w": jnp.ones(3)})
    saver.wait()

    def fail(_):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(disk, "retire", fail)
    saver.save(2, {"w": jnp.ones(3)})
    with pytest.raises(RuntimeError, match=r"it is saved, but an older one could not be deleted"):
        saver.close()
    assert saver.steps() == [1, 2]


def test_the_table_of_points_is_that_of_the_code():
    called = r'failpoint\(\s*"([^"]+)"\s*\)'
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "failpoints.py"]
    found = [name for path in paths for name in re.findall(called, path.read_text())]
    assert sorted(found) == sorted(failpoints.names())
    calls = sum(len(re.findall(r"\bfailpoint\(", path.read_text())) for path in paths)
    assert calls == len(found)  # every name is written out


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("save.rename", r"has 'save.rename'; expected \"name=action\".*unset it"),
        ("save.rename=explode", "expected one of the actions kill, SIGTERM.*correct it, or unset"),
        ("sav.rename=kill", "no point is named 'sav.rename', expected one of save.begin"),
        ("save.rename=sleep", "sleep:SECONDS"),
        ("save.rename=EIO:3", "sleep:SECONDS"),
        ("save.rename=EIO@0", "points count from 1"),
    ],
)
def test_malformed_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        failpoints.parsed(rules)


def test_points_act_once_or_always_and_in_order(monkeypatch):
    plan = failpoints.Plan(failpoints.parsed("save.*=EIO@2, run.log=ENOSPC"))
    monkeypatch.setattr(failpoints, "_plan", plan)
    failpoints.failpoint("save.begin")
    with pytest.raises(OSError, match=r"failpoint save.folder") as error:
        failpoints.failpoint("save.folder")
    assert error.value.errno == errno.EIO
    failpoints.failpoint("save.arrays")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            failpoints.failpoint("run.log")


def test_rules_are_read_from_the_environment():
    from reliability.children import child

    script = "from nnkit.core.failpoints import failpoint; failpoint('save.begin')"
    ended = child(script, env={"NNKIT_FAILPOINTS": "save.begin=kill"}).wait(60)
    assert ended.code == -9
    ended = child(script, env={"NNKIT_FAILPOINTS": "save.begin"}).wait(60)
    assert (ended.code, "unset it" in ended.err) == (1, True)
