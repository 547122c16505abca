"""Killed while it saves or trains: nothing acknowledged is lost (CK-01, CK-02)."""

from __future__ import annotations

import pytest

from reliability import kills


def test_no_acknowledged_step_is_lost_to_a_kill():
    found = kills.while_saving(count=8, seed=0, sizes=(0.1,))
    assert not found["failures"], found
    assert found["count"] == 8
    assert found["acknowledged"] >= 8
    assert found["interrupted"] >= 2  # or nothing was tested


def test_what_counts_as_lost(tmp_path):
    from nnkit.checkpoint import Checkpoints

    with Checkpoints(tmp_path, keep_last=3) as saver:
        for step in (1, 2, 3):
            saver.save(step, kills.drawn(step, 10), position=step)
    assert kills.lost(tmp_path, 3, keep=3) == []
    assert "step 4 was acknowledged" in kills.lost(tmp_path, 4, keep=3)[0]
    assert "3 steps with keep_last=1" in kills.lost(tmp_path, 3, keep=1)[0]
    with Checkpoints(tmp_path, keep_last=9) as saver:
        saver.save(5, kills.drawn(4, 10), position=5)
    assert kills.lost(tmp_path, 5, keep=3) == ["step 5 holds other bits"]


@pytest.mark.nightly
def test_training_goes_on_from_what_it_acknowledged():
    found = kills.at_random(count=4, seed=0)
    assert not found["failures"], found


@pytest.mark.nightly
def test_a_run_killed_until_it_is_done_is_the_run_that_never_was():
    found = kills.until_done(count=1, seed=0, kills=6)
    assert not found["failures"], found
    assert found["kills"] == 6
