"""Every way out waits for the save in flight; a failed one is told at the next step (CK-08, 09)."""

from __future__ import annotations

import signal
import threading

import jax
import jax.numpy as jnp
import optax
import pytest

import nnkit as nk
from nnkit.checkpoint import background, disk
from nnkit.core import failpoints
from reliability import exits
from reliability.children import child


def test_children_are_never_waited_for_longer_than_told():
    sleeps = "import time; print('ready', flush=True); time.sleep(60)"
    ended = child(sleeps).wait(0.3)
    assert (ended.code, ended.seconds < 5) == (None, True)
    with child(sleeps) as one, pytest.raises(TimeoutError, match=r"no line in 0\.5 s"):
        one.until("never", 0.5)
    assert not one.alive()
    with child("print('done')") as one, pytest.raises(RuntimeError, match="ended without a line"):
        one.until("never")
    with child(sleeps) as one:
        assert one.until("ready") == "ready"
        one.kill_after(0.05, signal.SIGTERM)
        assert one.wait(20).code == -15


def test_every_way_out_waits_for_the_save():
    found = exits.every_way(count=6, seed=0)  # the first and the last with a save that fails
    assert not found["failures"], found
    assert (found["committed"], found["told"]) == (4, 2)


def test_failed_saves_are_told_at_the_next_check():
    found = exits.failed_saves(count=20, seed=0)
    assert not found["failures"], found
    assert found["count"] == 20
    assert found["slowest"] < 0.05  # a check does not wait


def test_a_check_does_not_wait(tmp_path, monkeypatch):
    if background.BLOCKS:
        pytest.skip("this Python starts no threads while it ends: save itself waits")
    gate, commit = threading.Event(), disk.commit

    def slow(*arguments):
        assert gate.wait(20)
        commit(*arguments)

    monkeypatch.setattr(disk, "commit", slow)
    with nk.Checkpoints(tmp_path) as saver:
        saver.save(1, {"w": jnp.ones(3)})
        saver.check()
        assert saver.steps() == []
        gate.set()
    assert saver.steps() == [1]


def descent():
    task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    step, train = nk.step(nk.gradient(task), optax.sgd(0.01)), [{"x": jnp.ones(4)}]
    return step, nk.init(step, jax.random.key(0), train[0]), train


def test_fit_tells_of_a_failed_save_soon(tmp_path, monkeypatch):
    step, state, train = descent()
    plan = failpoints.Plan(failpoints.parsed("save.rename=EIO@1"))
    monkeypatch.setattr(failpoints, "_plan", plan)
    last = 20_000
    with nk.Run(tmp_path, {}) as run:  # saves at the end
        run.save(1, state, [])  # in flight, and about to fail
        with pytest.raises(RuntimeError, match=r"saving step 1 in .* failed: .*save.rename") as e:
            nk.fit(step, state, train, steps=last, log_every=last, run=run, progress=False)
    assert e.value.step < last


def test_training_goes_on_after_a_failed_save(tmp_path, monkeypatch):
    def trained(folder):
        told = []
        while True:  # the same command again
            step, state, train = descent()
            try:
                with nk.Run(tmp_path / folder, {}, save_every=50) as run:
                    settings = {"steps": 150, "log_every": 50, "progress": False}
                    return *nk.fit(step, state, train, run=run, **settings), told
            except RuntimeError as error:
                told.append(str(error))

    state, rows, told = trained("whole")
    assert told == []
    plan = failpoints.Plan(failpoints.parsed("save.begin=ENOSPC@2"))
    monkeypatch.setattr(failpoints, "_plan", plan)
    again, more, told = trained("broken")
    assert ["became full" in text for text in told] == [True]
    assert nk.digest(again) == nk.digest(state)
    assert [row["loss"] for row in more] == [row["loss"] for row in rows]


def test_the_signal_is_left_to_those_who_listen_already():
    mine = lambda number, frame: None
    before = signal.signal(signal.SIGTERM, mine)
    try:
        background._listen()
        assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        background._listen()
        assert signal.getsignal(signal.SIGTERM) is background._told
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.nightly
def test_saving_holds_training_up_for_a_step_at_most():
    found = exits.blocked(count=5, seed=0)
    assert not found["failures"], found
