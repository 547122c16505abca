"""Checkpoints of earlier releases."""

import nnkit as nk
from reliability import golden


def test_every_release_is_restored_and_trains_on():
    found = golden.restored(count=99, seed=0)
    assert not found["failures"], found
    assert found["count"] == len(golden.releases())
    assert found["bytes"] < 200_000


def test_this_release_has_one():
    assert nk.__version__ in golden.releases()
