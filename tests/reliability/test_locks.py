"""One process writes to a run, and a run belongs to one configuration (CK-10, CK-16)."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time

import jax.numpy as jnp
import pytest

import nnkit as nk
from nnkit.checkpoint import Locked, locks
from nnkit.cli.main import main
from nnkit.loop.records import claimable
from reliability import exits
from reliability.children import child

MESSAGE = r"is in use by process {} on \S+, for 1[23] seconds; only one process may write.*{}"
MESSAGE += "or use another folder"


def record(pid, **more):
    return locks._me() | {"pid": pid, "since": time.time() - 12, "token": "theirs"} | more


@pytest.fixture
def taken(tmp_path):
    """A folder whose lock is held, as another process would."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").write_text(json.dumps(record(os.getppid())))
    file = os.open(folder / ".lock", os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    yield folder
    os.close(file)


def test_a_second_process_is_refused_and_told_who_has_it(taken, monkeypatch):
    monkeypatch.setattr(locks, "BRIEF", 0.05)
    message = MESSAGE.format(os.getppid(), r"\(kill \d+\), ")
    with pytest.raises(Locked, match=message):
        locks.Lock(taken).take()
    with pytest.raises(Locked, match=message), nk.Run(taken, {}):
        pass
    with pytest.raises(Locked, match=message):
        nk.Run(taken, {}).resume({"w": jnp.zeros(1)})


def test_the_command_line_says_who_has_it(taken, capsys, monkeypatch):
    with pytest.raises(Locked, match=r"in use by process \d+ on"):
        claimable(taken, {})
    words = f"train digits --steps 2 --seeds 1 --learning-rates 1e-3 --folder {taken}".split()
    assert main(words) == 2
    assert "in use by process" in " ".join(capsys.readouterr().out.split())


def test_readers_need_no_lock(taken):
    assert nk.Checkpoints(taken / "checkpoints").steps() == []
    run = nk.Run(taken, {})
    assert (run.status, run.rows()) == ("new", [])


def test_it_is_free_after_the_block_and_after_the_last_of_this_process(tmp_path):
    with nk.Run(tmp_path, {"a": 1}) as run, nk.Run(tmp_path, {"a": 1}):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert locks.holder(tmp_path) is None  # ours is no obstacle
        claimable(tmp_path, {"a": 1})
    assert not (tmp_path / ".lock").exists()
    assert not locks._held
    run.resume({"w": jnp.zeros(1)})
    assert locks._held
    del run
    assert not locks._held


def test_that_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text(exits.stale_record())
    assert locks.holder(tmp_path) is None
    lock = locks.Lock(tmp_path)
    lock.take()
    lock.check()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    for text in ("", "garbage", "[1]", '{"pid": "x"}'):
        (tmp_path / ".lock").write_text(text)
        lock.take()
        lock.release()


@pytest.mark.parametrize(("pid", "free"), [(os.getppid(), False), (2**22 + 1, True)])
def test_where_the_disk_has_no_locks_the_record_counts(tmp_path, monkeypatch, pid, free):
    monkeypatch.setattr(locks, "_locked", lambda file: None)
    (tmp_path / ".lock").write_text(json.dumps(record(pid)))
    assert (locks.holder(tmp_path) is None) == free
    lock = locks.Lock(tmp_path)
    if free:
        lock.take()
        lock.release()
        return
    with pytest.raises(Locked, match=MESSAGE.format(pid, "")):
        lock.take()


def test_that_of_another_host_counts_while_it_shows_signs_of_life(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    monkeypatch.setattr(locks, "SILENT", 0.2)
    path, lock = tmp_path / ".lock", locks.Lock(tmp_path)
    path.write_text(json.dumps(record(1, host="node7")))
    os.utime(path, (time.time() - 60, time.time() - 60))
    lock.take()  # silent for long
    lock.release()
    path.write_text(json.dumps(record(1, host="node7")))
    assert "process 1 on node7, for 12 seconds" in locks.holder(tmp_path)
    lock.take()  # no sign of life within SILENT
    assert "was in use by process 1 on node7" in capsys.readouterr().out
    lock.release()
    path.write_text(json.dumps(record(1, host="node7")))
    stat, n = os.stat, []  # `_still` looks once, then the one who waits

    def beating(where, *arguments, **words):
        if where == path:
            n.append(1)
            os.utime(path, (time.time() + len(n), time.time() + len(n)))
        return stat(where, *arguments, **words)

    monkeypatch.setattr(locks.os, "stat", beating)
    with pytest.raises(
        Locked, match=r"process 1 on node7, .* wait until it has ended, or stop it,"
    ):
        lock.take()


def test_a_lock_that_was_taken_over_is_noticed_before_the_next_save(tmp_path):
    with nk.Run(tmp_path, {}) as run:
        run.save(1, {"w": jnp.ones(2)}, [])
        (tmp_path / ".lock").write_text(json.dumps(record(7, host="node7")))
        with pytest.raises(Locked, match=r"taken over by process 7 on node7, .* no sign of life"):
            run.save(2, {"w": jnp.ones(2)}, [])
    assert run.checkpoints.steps() == [1]
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == 7  # theirs stays


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        locks.Lock(tmp_path / "run").take()
    assert (tmp_path / "other").read_text() == "keep"


ORPHAN = """
import os, sys, time
from nnkit.checkpoint.locks import Lock
lock = Lock(sys.argv[1])
lock.take()
if os.fork() == 0:
    time.sleep(60)
print("taken", flush=True)
time.sleep(60)
"""


def test_a_forked_child_does_not_keep_it(tmp_path):
    with child(ORPHAN, tmp_path, env={"PYTHONWARNINGS": "ignore"}) as one:
        one.until("taken")
        assert locks.holder(tmp_path).startswith(f"process {one.pid} on ")
        one.send()
        one.process.wait(20)
        lock = locks.Lock(tmp_path)
        lock.take()
        lock.release()


def test_of_two_at_once_one_gets_it():
    found = exits.races(count=6, seed=0)
    assert not found["failures"], found
    assert (found["count"], found["writers"]) == (6, 6)


@dataclasses.dataclass(frozen=True)
class Config:
    """Fifteen fields."""

    model: str = "mlp"
    width: int = 32
    depth: int = 2
    dropout: float = 0.1
    learning_rate: float = 1e-3
    momentum: float = 0.9
    decay: float = 0.0
    steps: int = 100
    batch_size: int = 32
    seed: int = 0
    seeds: tuple = (0, 1)
    clip: float | None = None
    augment: bool = True
    split: str = "test"
    warmup: int = 10


OTHER = {
    "model": "cnn", "width": 33, "depth": 3, "dropout": 0.2, "learning_rate": 1.0000001e-3,
    "momentum": 0.91, "decay": 1e-9, "steps": 101, "batch_size": 64, "seed": 1, "seeds": (1, 0),
    "clip": 1.0, "augment": False, "split": "train", "warmup": 10.5,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config)])
def test_another_value_in_any_field_is_refused_with_both(tmp_path, field):
    nk.Run(tmp_path, Config())
    changed = dataclasses.replace(Config(), **{field: OTHER[field]})
    shown = r".*".join([field, "was", "is now"])
    with pytest.raises(ValueError, match=rf"belongs to another configuration: {shown}.*; use anot"):
        nk.Run(tmp_path, changed)
    assert nk.Run(tmp_path, dataclasses.asdict(Config())).status == "new"  # equal, in other form


def test_many_differences_are_told_in_three(tmp_path):
    nk.Run(tmp_path, Config())
    with pytest.raises(ValueError, match=r"model was .*; width was .*; depth was .* and 12 more;"):
        nk.Run(tmp_path, Config(**OTHER))


def test_other_code_is_told_when_a_run_goes_on(tmp_path, capsys):
    state = {"w": jnp.zeros(2)}
    with nk.Run(tmp_path, {}) as run:
        run.save(1, state, [])
    sessions = json.loads((tmp_path / "env.json").read_text())
    sessions[-1] |= {"commit": "0f3a", "versions": sessions[-1]["versions"] | {"jax": "0.1"}}
    (tmp_path / "env.json").write_text(json.dumps(sessions))
    capsys.readouterr()
    with nk.Run(tmp_path, {}) as run:
        assert run.resume(state)[1] == 1
    said = capsys.readouterr().out
    assert "goes on with other code: commit was '0f3a', is now" in said
    assert "jax was '0.1', is now" in said
    with nk.Run(tmp_path, {}) as run:
        run.resume(state)
    assert capsys.readouterr().out == ""
