"""prefetch and stack: order, errors with their traceback, and no thread left behind."""

import gc
import subprocess
import sys
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from nnkit.data import arrays, prefetch, stack


def threads():
    return [t for t in threading.enumerate() if t.name == "nnkit-prefetch"]


def gone(seconds=5.0):
    end = time.monotonic() + seconds
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not threads()


def endless(closed=None):
    try:
        i = 0
        while True:
            yield np.full(3, i, np.int32)
            i += 1
    finally:
        if closed is not None:
            closed.append(True)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_items_come_in_order_on_the_device(size):
    batches = arrays(np.arange(10.0), batch_size=3)
    plain, ahead = list(batches), list(prefetch(batches, size))
    assert len(plain) == len(ahead) == 4
    for a, b in zip(plain, ahead):
        assert isinstance(b["x"], jax.Array)
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert gone()


def test_place_is_used():
    assert list(prefetch([1, 2, 3], place=lambda x: 10 * x)) == [10, 20, 30]


def test_an_empty_source_ends_and_stays_ended():
    ahead = prefetch([])
    assert list(ahead) == []
    assert next(ahead, "end") == "end"
    assert gone()


def test_an_error_of_the_source_keeps_its_traceback():
    def failing():
        yield np.zeros(1, np.float32)
        raise OSError("record 7 is damaged")

    ahead = prefetch(failing())
    next(ahead)
    with pytest.raises(OSError, match="record 7 is damaged") as caught:
        next(ahead)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "failing"
    assert next(ahead, "end") == "end"
    assert gone()


def test_an_error_of_place_comes_through_even_stop_iteration():
    def stops(_):
        raise StopIteration

    with pytest.raises(RuntimeError, match="place raised StopIteration; return the batch"):
        next(prefetch([1], place=stops))
    assert gone()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_stops_the_thread_and_closes_the_source(taken):
    closed = []
    ahead = prefetch(endless(closed))
    for _ in range(taken):
        next(ahead)
    ahead.close()
    ahead.close()
    assert not threads()
    assert closed == [True]
    assert next(ahead, "end") == "end"


def test_with_block_and_error_of_the_consumer():
    def consume():
        with prefetch(endless()) as ahead:
            for _ in ahead:
                raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()
    assert not threads()


def test_an_error_in_a_loop_over_it_stops_the_thread():
    def consume():
        for i, _ in enumerate(prefetch(endless())):
            if i == 3:
                raise KeyError(i)

    with pytest.raises(KeyError):
        consume()
    gc.collect()
    assert gone()


def test_dropping_it_stops_the_thread():
    ahead = prefetch(endless())
    next(ahead)
    del ahead
    gc.collect()
    assert gone()


def test_at_most_size_items_are_read_ahead():
    read = []

    def counted():
        for i in range(100):
            read.append(i)
            yield i

    ahead = prefetch(counted(), 2, place=lambda x: x)
    next(ahead)
    time.sleep(0.2)
    assert len(read) <= 1 + 2 + 1
    ahead.close()


def test_the_interpreter_exits_while_it_is_busy():
    code = (
        "import itertools, numpy as np\n"
        "from nnkit.data import prefetch\n"
        "ahead = prefetch(np.ones((64, 64), np.float32) for _ in itertools.count())\n"
        "for _ in range(20): next(ahead)\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_size_is_checked_at_once(size):
    with pytest.raises(ValueError, match=rf"prefetch\(size={size}\) needs an int >= 1; 2"):
        prefetch([], size)


def test_stack_groups_trees_with_a_leading_axis():
    trees = [{"x": np.full(2, i), "m": np.ones(1)} for i in range(6)]
    groups = list(stack(trees, 3))
    assert [g["x"][:, 0].tolist() for g in groups] == [[0, 1, 2], [3, 4, 5]]
    assert groups[0]["m"].shape == (3, 1)
    one = next(stack(trees, 1))
    assert np.array_equal(one["x"][0], trees[0]["x"])


def test_stack_drops_nothing_in_silence():
    groups = stack([np.zeros(1)] * 5, 2)
    next(groups), next(groups)
    with pytest.raises(ValueError, match=r"stack\(k=2\) got 1 batches at the end, expected 2; use"):
        next(groups)
    with pytest.raises(ValueError, match=r"stack\(k=0\) needs an int >= 1"):
        stack([], 0)
