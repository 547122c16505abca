"""standardise: numpy in float64, in memory and from disk; order, parts and masks; every message."""

import numpy as np
import pytest

from nnkit.data import Batches, arrays, scaling, standardise
from nnkit.data.sources import Memory


class Disk:
    """A source without `column`, as one that reads files."""

    def __init__(self, **fields):
        self.inner = Memory(fields)

    def __len__(self):
        return len(self.inner)

    def take(self, indices):
        return self.inner.take(indices)


def numbers(shape, seed=0):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.arange(shape[-1]) if len(shape) > 1 else 3.0
    return (rng.normal(size=shape) * scale + 5 * scale).astype(np.float32)


def slow(x, train):
    """By numpy, in float64."""
    x, train = x.astype(np.float64), train.astype(np.float64)
    axes = (0,) if train.ndim == 1 else tuple(range(train.ndim - 1))
    return (x - train.mean(axes)) / train.std(axes)


def whole(batches, field="x"):
    """All examples in the order of the batches."""
    parts = [b[field][b["mask"] > 0] if "mask" in b else b[field] for b in batches]
    return np.concatenate(parts)


@pytest.mark.parametrize("shape", [(23,), (23, 3), (23, 4, 5, 3), (23, 6, 2)])
@pytest.mark.parametrize("disk", [False, True])
def test_it_is_that_of_numpy(shape, disk, monkeypatch):
    monkeypatch.setattr(scaling, "_BYTES", 900)  # several pieces
    a, b = numbers(shape), numbers((7, *shape[1:]), seed=1)
    made = [Disk(x=v) if disk else Memory({"x": v}) for v in (a, b)]
    train, test = (Batches(source, 5, shuffle=False) for source in made)
    train, test = standardise(train, test)
    for batches, x in ((train, a), (test, b)):
        got = whole(batches)
        assert got.dtype == batches.spec["x"].dtype == np.float32
        np.testing.assert_allclose(got, slow(x, a), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(made[0].take(np.arange(23))["x"], a)  # nothing was written to
    assert train.report["x"]["max"] == whole(train).max()


def test_pixels_are_scaled_per_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
    batches = standardise(Batches(Memory({"x": pixels}, {"x": 255}), 9, shuffle=False))
    np.testing.assert_allclose(next(iter(batches))["x"], slow(pixels, pixels), atol=1e-5)


def test_constant_and_large_features_and_one_example():
    x = np.stack([np.full(8, 0.1), 1e7 + np.arange(8), np.zeros(8)], 1).astype(np.float32)
    train, test = (arrays(v, batch_size=1, shuffle=False) for v in (x, x[:1] + 1))
    train, test = standardise(train, test)
    want = (np.arange(8) - 3.5) / np.arange(8).std()
    np.testing.assert_allclose(whole(train)[:, 1], want, rtol=1e-6)
    np.testing.assert_array_equal(whole(train)[:, [0, 2]], np.zeros((8, 2)))
    assert whole(test)[0, 2] == 1  # a constant feature keeps its scale
    one = standardise(arrays(x[:1], batch_size=1))
    np.testing.assert_array_equal(whole(one), np.zeros((1, 3)))
    again = standardise(train)
    np.testing.assert_allclose(whole(again), whole(train), atol=1e-6)


def test_order_labels_and_resuming_stay():
    x, y = numbers((10, 2)), np.arange(10)
    plain = arrays(x, y, batch_size=4, seed=3, z=x)
    scaled = standardise(plain)
    assert (scaled.batch_size, scaled.seed, scaled.shuffle) == (4, 3, True)
    assert scaled.corners()["y"].tolist() == [0, 9]
    np.testing.assert_allclose(scaled.corners()["x"], slow(x, x)[[0, 9]], rtol=1e-5)
    a, b, late = plain.stream(), scaled.stream(), scaled.stream(start=2)
    for i in range(7):
        one, other = next(a), next(b)
        assert all(np.array_equal(one[k], other[k]) for k in ("y", "z", "mask"))
        if i >= 2:
            assert all(np.array_equal(other[k], v) for k, v in next(late).items())
    assert (whole(scaled, "x")[0] != whole(plain, "x")[0]).all()
    assert next(iter(scaled.grouped(3)))["x"].shape == (3, 4, 2)
    assert "x standardised by mean and deviation of data" in str(scaled)


def test_split_before_and_after_and_the_fingerprint():
    x = numbers((20, 3))
    plain = arrays(x, np.arange(20) % 2, batch_size=4)
    first, second = plain.split(0.8)
    train, test = standardise(first, second)
    rows = first.source.rows
    np.testing.assert_allclose(train.source.mean, x[rows].astype(np.float64).mean(0))
    np.testing.assert_allclose(train.source.deviation, x[rows].astype(np.float64).std(0))
    np.testing.assert_allclose(whole(test), slow(x[second.source.rows], x[rows]), rtol=2e-5)
    late, _ = standardise(plain).split(0.8)
    np.testing.assert_array_equal(late.source.rows, rows)
    values = slow(x, x)[rows]
    assert late.report["x"]["min"] == pytest.approx(values.min(), rel=1e-5)
    assert train.fingerprint["sha256"] != first.fingerprint["sha256"]
    assert train.fingerprint == standardise(first).fingerprint


def test_a_mask_and_another_field(monkeypatch):
    monkeypatch.setattr(scaling, "_BYTES", 1)  # pieces of one example, some of them empty
    x, mask = numbers((6, 2)), np.array([0, 1, 1, 0, 1, 0], bool)
    train = standardise(arrays(x, batch_size=6, mask=mask, shuffle=False))
    np.testing.assert_allclose(next(iter(train))["x"], slow(x, x[mask]), rtol=1e-5)
    prices = numbers((6,))
    train = standardise(arrays(x, prices, batch_size=6, shuffle=False), field="y")
    np.testing.assert_allclose(next(iter(train))["y"], slow(prices, prices), rtol=1e-5)
    np.testing.assert_array_equal(next(iter(train))["x"], x)


def test_messages():
    x = numbers((4, 2))
    train = arrays({"pixels": x, "ids": np.arange(4), "mask": np.zeros(4)}, batch_size=2)
    wide = arrays({"pixels": numbers((4, 3))}, batch_size=2)
    cases = [
        ((train,), "pixel", KeyError, r"no field 'pixel', expected .*ids.*did you mean 'pixels'"),
        ((train,), "mask", KeyError, r"no field 'mask', expected one of pixels, ids; write field="),
        ((train,), "ids", TypeError, r"ids of train \(data\) is int32.*ids\.astype\(np\.float32\)"),
        (
            (train, wide),
            "pixels",
            ValueError,
            r"pixels of others\[0\] \(data\) has the shape \(3,\).*expected \(2,\) as in train",
        ),
        ((train,), "pixels", ValueError, r"mask of train \(data\) is 0 for all 4.*check the mask"),
        ((x,), "x", TypeError, r"train is a ndarray, expected a Batches, as data\.arrays gives"),
        ((wide, wide.grouped(2)), "pixels", TypeError, r"others\[0\] is a Grouped.*before \.grou"),
    ]
    for given, field, kind, message in cases:
        with pytest.raises(kind, match=message):
            standardise(*given, field=field)
