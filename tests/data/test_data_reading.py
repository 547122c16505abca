"""Reading by threads, choosing examples by a condition, and what may be said to them."""

import gc
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.data import Batches, arrays, prefetch
from nnkit.data.reading import Stream, settings


def numbered(n=20, b=4, **options):
    return arrays(np.arange(n), np.arange(n) % 5, batch_size=b, shuffle=False, **options)


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("nnkit-reader")]


def gone(seconds=5.0):
    end = time.monotonic() + seconds
    while readers() and time.monotonic() < end:
        time.sleep(0.01)
    return not readers()


def test_the_options_of_reading_stay_with_the_batches():
    batches = numbered().reading(workers=2, timeout=7)
    assert (batches.workers, batches.timeout) == (2, 7)
    assert batches.reading(workers=0).timeout == 7
    assert batches.reading(timeout=math.inf).workers == 2
    assert batches.fingerprint == numbered().fingerprint  # who reads is no part of the data
    assert batches.split(0.5)[0].workers == 2
    assert (batches.share([0, 1]).timeout, batches.grouped(3).timeout) == (7, 21)
    assert batches.stream().timeout == prefetch(batches.stream()).timeout == 7
    assert prefetch([1]).timeout == 60
    assert prefetch(batches.stream(), timeout=9).timeout == 9


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"workers": 1.5},
            TypeError,
            r"workers is 1\.5, expected an int from 0 to 256; 4 is usual",
        ),
        ({"workers": True}, TypeError, r"workers is True, expected an int"),
        ({"workers": -1}, ValueError, r"workers is -1, expected 0 to 256; 4 is"),
        ({"workers": 257}, ValueError, r"workers is 257, expected 0 to 256"),
        ({"timeout": "60"}, TypeError, r"timeout is '60', expected seconds > 0; 60 is usual"),
        ({"timeout": 0}, ValueError, r"timeout is 0, expected seconds > 0; 60 is usual"),
        ({"timeout": math.nan}, ValueError, r"timeout is nan, expected seconds > 0"),
    ],
)
def test_wrong_options(options, kind, message):
    with pytest.raises(kind, match=message):
        numbered().reading(**options)
    if "timeout" in options:
        with pytest.raises(kind, match=message):
            prefetch([], **options)


@pytest.mark.parametrize("how", ["close", "drop", "end"])
def test_the_threads_go(how):
    batches = numbered(2000).reading(workers=3)
    stream = iter(batches) if how == "end" else batches.stream()
    assert not readers()  # they start with the first batch
    next(stream)
    assert len(readers()) == 3
    if how == "close":
        stream.close()
        assert next(stream, "end") == "end"
    elif how == "end":
        assert len(list(stream)) == 499
        assert next(stream, "end") == "end"
    del stream
    gc.collect()
    assert gone()


def test_they_read_no_further_than_there_is_room():
    taken = []

    def take(rows):
        taken.append(int(rows[0]))
        return {"x": rows}

    stream = Stream(take, (np.array([i]) for i in range(1000)), workers=2)
    assert next(stream)["x"].tolist() == [0]
    time.sleep(0.2)
    assert len(taken) <= 5  # one taken, four ahead
    assert [int(next(stream)["x"][0]) for _ in range(50)] == list(range(1, 51))
    stream.close()


def test_two_threads_are_faster_than_none_where_reading_waits():
    class Slow:
        def __len__(self):
            return 8

        def take(self, rows):
            time.sleep(0.05 * (len(rows) > 1))
            return {"x": rows.astype(np.float32)}

    def seconds(workers):
        began = time.monotonic()
        list(Batches(Slow(), 2).reading(workers=workers))
        return time.monotonic() - began

    assert seconds(4) < 0.7 * seconds(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_settings_of_the_thread_that_asks_hold_in_those_that_read(workers):
    class Device:
        """Examples that are made by jax, where and as wide as jax is told."""

        def __len__(self):
            return 4

        def take(self, rows):
            return {"x": np.asarray(jnp.asarray(np.float64(rows) / 3))}

    plain = Batches(Device(), 2, shuffle=False).reading(workers=workers)
    assert next(prefetch(plain.stream()))["x"].dtype == jnp.float32
    where = jax if hasattr(jax, "enable_x64") else jax.experimental
    last = jax.devices()[-1]
    with where.enable_x64(True), jax.default_device(last):
        wide = Batches(Device(), 2, shuffle=False).reading(workers=workers)
        batch = next(prefetch(wide.stream()))
    assert batch["x"].dtype == jnp.float64
    assert batch["x"].devices() == {last}
    with settings():
        assert jnp.ones(1).dtype == jnp.float32


def test_where_keeps_what_is_asked_for_in_order():
    batches = numbered(23, 4)
    kept = batches.where(lambda rows: rows["y"] == 3)
    assert [b["x"].tolist() for b in kept] == [[3, 8, 13, 18]]
    assert kept.name == "data (4 of 23 kept)"
    assert kept.fingerprint != batches.fingerprint
    again = batches.where(lambda rows: rows["x"] >= 0)
    assert [b["x"].tolist() for b in again] == [b["x"].tolist() for b in batches]


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 2500])
def test_where_is_numpy_across_pieces(n):
    rng = np.random.default_rng(n)
    x = rng.integers(0, 9, n)
    x[rng.integers(n)] = 4
    kept = arrays(x, batch_size=1).where(lambda rows: rows["x"] == 4, in_a_row=None)
    assert kept.source.rows.tolist() == np.flatnonzero(x == 4).tolist()


@pytest.mark.parametrize(
    ("good", "in_a_row", "first"),
    [
        ([], 1000, 0),
        ([0], 1000, 1),
        ([999], 999, 0),
        ([999, 2000], 1000, 1000),
        ([1500], 1000, 0),
        ([0, 1001, 2002], 1000, 1),
        ([3, 5], 2, 0),
        ([0, 1], 5, 2),
    ],
)
def test_so_many_rejected_in_a_row_are_an_error(good, in_a_row, first):
    batches = arrays(np.isin(np.arange(3000), good), batch_size=1)
    with pytest.raises(
        ValueError, match=rf"rejected {in_a_row} .* from example {first} on.*sorted"
    ):
        batches.where(lambda rows: rows["x"], in_a_row=in_a_row)


def test_as_many_as_are_allowed_pass():
    good = np.isin(np.arange(3000), [999, 1999, 2000])
    with pytest.raises(ValueError, match="from example 0 on"):
        arrays(good, batch_size=1).where(lambda rows: rows["x"], in_a_row=999)
    good[0] = good[2500] = True
    assert arrays(good, batch_size=1).where(lambda rows: rows["x"]).examples == 5


def test_a_filter_that_rejects_nearly_all_does_not_read_everything():
    read = []

    class Watched:
        def __len__(self):
            return 10**9

        def take(self, rows):
            read.append(len(rows))
            return {"x": rows.astype(np.float32)}

    with pytest.raises(ValueError, match="rejected 1000 examples in a row"):
        Batches(Watched(), 8).where(lambda rows: rows["x"] < 0)
    assert sum(read) <= 1001


@pytest.mark.parametrize(
    ("keep", "options", "kind", "message"),
    [
        (
            lambda rows: rows["x"] < 0,
            {},
            ValueError,
            r"rejected all 20 examples of data.*>= 1",
        ),
        (
            lambda rows: rows["x"] == 0,
            {},
            ValueError,
            r"batch_size is 4, but data \(1 of 20 kept\)",
        ),
        (
            lambda rows: True,
            {},
            TypeError,
            r"gave bool\[\] for 20 examples.*bool\[20\].*lambda rows",
        ),
        (lambda rows: rows["x"], {}, TypeError, r"gave int32\[20\] for 20 examples.*bool\[20\]"),
        (lambda rows: rows["x"][:3] > 0, {}, TypeError, r"gave bool\[3\] for 20 examples"),
        (None, {"in_a_row": 0}, ValueError, r"in_a_row is 0, expected an int >= 1, or None; 1000"),
        (
            None,
            {"in_a_row": 2.5},
            TypeError,
            r"in_a_row is 2\.5, expected an int >= 1, or None; 1000",
        ),
    ],
)
def test_wrong_conditions(keep, options, kind, message):
    with pytest.raises(kind, match=message):
        numbered().where(keep, **options)


def test_training_on_chosen_examples():
    task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    chosen = arrays(np.float32([1, 5, 1, 5]), batch_size=2).where(lambda rows: rows["x"] < 2)
    assert nk.evaluate(task, chosen)(jnp.float32(1), {})["loss"] == 0
