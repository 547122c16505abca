"""Windows of a series: the definition in loops, the laws of `Batches`, the messages."""

import numpy as np
import pytest

import nnkit as nk
from nnkit.data import windows


def series(t=20, f=2):
    return np.random.default_rng(0).normal(size=(t, f)).astype(np.float32)


def slow(values, length, horizon, stride):
    """Every window, cut one by one."""
    found, s = [], 0
    while s + length + horizon <= len(values):
        found.append((values[s : s + length], values[s + length : s + length + horizon]))
        s += stride
    return [np.stack(x) for x in zip(*found)]


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize("stride", [1, 3, 50])
def test_windows_are_those_cut_one_by_one(length, horizon, stride):
    values = series()
    x, y = slow(values, length, horizon, stride)
    batches = windows(
        values, length=length, horizon=horizon, stride=stride, batch_size=1, shuffle=False
    )
    assert batches.examples == len(x)
    rows = list(batches)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in rows]), x)
    np.testing.assert_array_equal(np.concatenate([b["y"] for b in rows]), y)


@pytest.mark.parametrize(("t", "b"), [(9, 1), (20, 12), (20, 5), (33, 8)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_window_once_an_epoch_and_resume_anywhere(t, b, shuffle):
    values = np.arange(1.0, t + 1)[:, None]
    batches = windows(values, length=5, horizon=4, batch_size=b, shuffle=shuffle, seed=3)
    n = t - 8
    assert (batches.examples, len(batches)) == (n, -(-n // b))
    for epoch in range(2):
        seen = []
        stream = batches.stream(epoch * len(batches))
        for _ in range(len(batches)):
            batch = next(stream)
            assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
                k: (s.shape, s.dtype) for k, s in batches.spec.items()
            }
            mask = batch.get("mask", np.ones(b, np.float32))
            assert (batch["x"][mask == 0] == 0).all()
            seen += batch["x"][mask == 1][:, 0, 0].astype(int).tolist()
            assert (batch["y"][mask == 1][:, 0, 0] == batch["x"][mask == 1][:, -1, 0] + 1).all()
        assert sorted(seen) == list(range(1, n + 1))
        assert shuffle or seen == sorted(seen)
    ahead, later = batches.stream(), batches.stream(start=3)
    for _ in range(3):
        next(ahead)
    for _ in range(len(batches) + 1):
        one, two = next(ahead), next(later)
        assert all(np.array_equal(one[k], two[k]) for k in one)


def test_the_series_is_kept_once_and_batches_are_their_own():
    values = series(2000, 3)
    batches = windows(values, length=336, horizon=96, batch_size=8, shuffle=False)
    assert batches.source.values is values
    first = next(iter(batches))
    first["x"][:] = 0
    np.testing.assert_array_equal(next(iter(batches))["x"][0], values[:336])
    assert batches.report["x"]["shape"] == (336, 3)
    assert batches.fingerprint == windows(values.copy(), batch_size=8, shuffle=False).fingerprint
    assert batches.fingerprint != windows(values + 1, batch_size=8, shuffle=False).fingerprint
    assert "windows: 1569 examples" in repr(batches)


def test_windows_can_be_scaled_split_and_grouped():
    batches = windows(series(40) * 3 + 5, length=4, horizon=2, batch_size=5)
    scaled = nk.data.standardise(batches)
    x = np.concatenate([b["x"][b.get("mask", np.ones(5)) == 1] for b in scaled])
    np.testing.assert_allclose(x.reshape(-1, 2).mean(0), 0, atol=1e-5)
    one, two = batches.split(0.8)
    assert one.examples + two.examples == 35
    assert next(batches.grouped(3).stream())["x"].shape == (3, 5, 4, 2)


def test_numbers_of_other_kinds_are_converted_and_said():
    batches = windows(np.arange(10)[:, None], length=2, horizon=1, batch_size=2)
    assert next(iter(batches))["x"].dtype == np.float32
    assert any("converted to float32" in note for note in batches.notes)
    batches = windows(np.arange(10.0)[:, None], length=2, horizon=1, batch_size=2)
    assert "values was float64, converted to float32" in batches.notes


@pytest.mark.parametrize(
    ("values", "options", "error", "said"),
    [
        (series(9), {"length": 8, "horizon": 2}, ValueError,
         r"values has 9 rows, expected at least 10 for one window: length=8 \+ horizon=2; shorten"),
        (series()[:, 0], {}, ValueError, r"values has shape \(20,\).*\(t f\).*values\[:, None\]"),
        (series()[None], {}, ValueError, r"values has shape \(1, 20, 2\), expected \(t f\)"),
        (np.full((20, 1), np.nan), {}, ValueError, r"values has 20 NaN or inf.*drop or fill"),
        (series().astype(complex), {}, TypeError, "values is complex64, expected real numbers"),
        (series().astype(str), {}, TypeError, "values has dtype .* expected numbers"),
        (series(), {"length": 0}, ValueError, "length is 0, expected an integer number of rows"),
        (series(), {"horizon": 2.0}, TypeError, r"horizon is 2\.0, expected an integer number"),
        (series(), {"stride": True}, TypeError, "stride is True, expected an integer number"),
        (series(), {"stride": -1}, ValueError, "stride is -1, expected an integer number"),
        (series(), {"batch_size": 99}, ValueError, "batch_size is 99, but windows has only 16"),
    ],
)  # fmt: skip
def test_messages(values, options, error, said):
    with pytest.raises(error, match=said):
        windows(values, **{"length": 3, "horizon": 2, "batch_size": 4, **options})
