"""Batches: each example once per epoch, fixed shapes, and a position that is one integer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.data import Batches, arrays
from nnkit.data.sources import Memory, order

SIZES = [(1, 1), (2, 1), (7, 7), (7, 3), (8, 4), (64, 64), (65, 64), (300, 7)]


def numbered(n, b, **options):
    """n examples whose content is their number plus one: padding is 0."""
    x = np.arange(1, n + 1, dtype=np.float32)
    return arrays(x, np.arange(n), batch_size=b, **options)


def covers(n, b, seed, start, shuffle=True):
    """The laws of one epoch and of a resumed stream."""
    batches = numbered(n, b, seed=seed, shuffle=shuffle)
    assert len(batches) == -(-n // b)
    assert batches.examples == n
    total, weight, seen = 0.0, 0.0, []
    for batch in batches:
        mask = batch.get("mask", np.ones(b, np.float32))
        assert ("mask" in batch) == (n % b != 0)
        assert mask.dtype == np.float32
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (s.shape, s.dtype) for k, s in batches.spec.items()
        }
        assert (batch["x"][mask == 0] == 0).all()
        seen += batch["x"][mask == 1].astype(int).tolist()
        total, weight = total + float(mask @ batch["x"]), weight + float(mask.sum())
    assert sorted(seen) == list(range(1, n + 1))
    assert total / weight == pytest.approx((n + 1) / 2, rel=1e-6)
    skipped = batches.stream()
    for _ in range(start):
        next(skipped)
    resumed = batches.stream(start=start)
    for _ in range(len(batches) + 2):
        a, b_ = next(skipped), next(resumed)
        assert a.keys() == b_.keys()
        assert all(np.array_equal(a[k], b_[k]) for k in a)


@pytest.mark.parametrize(("n", "b"), SIZES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once_and_resume_anywhere(n, b, shuffle):
    for start in (0, 1, len(numbered(n, b)), 2 * len(numbered(n, b)) + 1):
        covers(n, b, seed=n, start=start, shuffle=shuffle)


def test_order_is_the_documented_function_of_seed_and_epoch():
    raw = np.random.Philox(key=np.array([3, 5], np.uint64)).random_raw(100)
    by_hand = sorted(range(100), key=lambda i: int(raw[i]))
    assert order(100, 3, 5).tolist() == by_hand
    assert order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]  # the same for ever


def test_epochs_and_seeds_differ_and_repeat():
    batches = numbered(64, 64)
    stream = batches.stream()
    first, second = next(stream)["y"], next(stream)["y"]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, next(iter(batches))["y"])
    assert not np.array_equal(first, next(iter(numbered(64, 64, seed=1)))["y"])


def test_order_is_that_of_the_source_without_shuffle():
    assert np.concatenate([b["y"] for b in numbered(6, 2, shuffle=False)]).tolist() == list(
        range(6)
    )


def test_batches_own_their_memory():
    x = np.ones((4, 2), np.float32)
    batches = arrays(x, batch_size=2, shuffle=False)
    for batch in batches:
        batch["x"][:] = 7
    assert (x == 1).all()
    assert all((batch["x"] == 1).all() for batch in batches)


def test_own_mask_is_kept_and_padded():
    batches = arrays(np.ones(3, np.float32), mask=[True, False, True], batch_size=2, shuffle=False)
    assert [b["mask"].tolist() for b in batches] == [[1, 0], [1, 0]]
    even = arrays(np.ones(2, np.float32), mask=np.float32([0.5, 0]), batch_size=2, shuffle=False)
    assert [b["mask"].tolist() for b in even] == [[0.5, 0]]


def test_padding_keeps_dtypes():
    fields = {"a": np.zeros((3, 2), jnp.bfloat16), "b": np.ones(3, bool), "c": np.ones(3, np.int8)}
    for batch in arrays(fields, batch_size=2):
        assert batch["a"].dtype == jnp.bfloat16
        assert batch["b"].dtype == bool
        assert batch["c"].dtype == np.int8


@pytest.mark.parametrize("start", [0, 1, 4])
def test_grouped_is_k_batches_at_a_time(start):
    batches = numbered(7, 2)  # 4 batches an epoch: groups of 3 cross it
    grouped = batches.grouped(3)
    group = next(grouped.stream(start=start))
    stream = batches.stream(start=3 * start)
    for i in range(3):
        one = next(stream)
        assert all(np.array_equal(group[k][i], one[k]) for k in one)
    assert {k: (v.shape, v.dtype) for k, v in group.items()} == {
        k: (s.shape, s.dtype) for k, s in grouped.spec.items()
    }
    assert (len(grouped), grouped.examples, grouped.batch_size) == (2, 7, 2)
    assert grouped.fingerprint == {**batches.fingerprint, "grouped": 3}
    assert grouped.corners()["y"].tolist() == [0, 6]


def test_grouped_epoch_needs_a_divisor():
    assert sum(1 for _ in numbered(8, 2).grouped(2)) == 2
    with pytest.raises(ValueError, match=r"k=3.*4 batches.*divides it \(1, 2, 4\)"):
        iter(numbered(8, 2).grouped(3))
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match=rf"grouped\(k={bad}\) needs an int >= 1"):
            numbered(8, 2).grouped(bad)


@pytest.mark.parametrize("n", [3, 10, 101])
def test_split_is_disjoint_and_complete(n):
    train, test = numbered(n, 1).split(0.8, seed=3)
    a = np.concatenate([b["y"] for b in train]).tolist()
    b = np.concatenate([b["y"] for b in test]).tolist()
    assert sorted(a + b) == list(range(n))
    assert train.examples == round(0.8 * n)
    assert (train.shuffle, test.shuffle) == (True, False)
    again = numbered(n, 1).split(0.8, seed=3)[1]
    assert again.fingerprint == test.fingerprint
    inner, _ = numbered(101, 1).split(0.5)[0].split(0.5)
    assert inner.report["y"]["classes"] == inner.examples


def test_split_refuses_empty_parts_and_large_batches():
    for fraction in (0, 1, -0.5, 1e-9):
        with pytest.raises(ValueError, match=rf"fraction is {fraction}.*0.8 is usual"):
            numbered(10, 2).split(fraction)
    with pytest.raises(ValueError, match=r"batch_size is 9.*only 5 examples.*smaller"):
        numbered(10, 9).split(0.5)
    assert numbered(10, 5).split(0.8)[1].batch_size == 2


def test_fingerprint_changes_with_what_decides_the_batches():
    one = numbered(50, 5).fingerprint
    assert json.loads(json.dumps(one)) == one == numbered(50, 5).fingerprint
    x = np.arange(1, 51, dtype=np.float32)
    x[-1] = 0
    others = [
        numbered(50, 10),
        numbered(50, 5, seed=1),
        numbered(50, 5, shuffle=False),
        numbered(51, 5),
        arrays(x, np.arange(50), batch_size=5),
        arrays({"x": x}, batch_size=5),
    ]
    assert all(other.fingerprint != one for other in others)


def test_report_counts_everything_in_memory():
    y = np.array([3] * 90 + [5] * 10)
    batches = arrays(np.linspace(-2, 4, 100), y, batch_size=30)
    report = batches.report
    assert report["x"] == {"dtype": "float32", "shape": (), "rows": 100, "min": -2.0, "max": 4.0}
    assert (report["y"]["classes"], report["y"]["rarest"]) == (2, 0.1)
    text = str(batches)
    for part in ("100 examples", "4 batches of 30", "holds 10", "-2..4", "2 classes", "10.00 %"):
        assert part in text
    assert "x was float64, converted to float32" in text
    assert "all labels are equal" in str(arrays(np.ones(3), [1, 1, 1], batch_size=1))


def test_report_samples_what_is_scaled_on_the_way_out():
    source = Memory({"x": np.full((5000, 2, 2, 1), 255, np.uint8)}, {"x": 255})
    batches = Batches(source, 5)
    assert batches.report["x"]["rows"] == 1000
    assert batches.report["x"]["max"] == 1.0
    assert next(iter(batches))["x"].dtype == np.float32


def test_corners_are_real_examples():
    y = np.array([4, 2, 9, 3, 9])
    corners = arrays(np.arange(5.0), y, batch_size=2).corners()
    assert corners["y"].tolist() == [2, 9]
    assert corners["x"].tolist() == [1, 2]
    assert corners["mask"].tolist() == [1, 1]
    assert arrays(np.arange(5.0), batch_size=2).corners() is None
    assert arrays(np.arange(5.0), np.arange(5.0), batch_size=2).corners() is None
    tokens = arrays(np.zeros(2), [[1, 7], [0, 2]], batch_size=1).corners()
    assert tokens["y"].tolist() == [[0, 2], [1, 7]]
    assert arrays([1.0], [3], batch_size=1).corners()["y"].tolist() == [3, 3]


def test_start_is_checked_at_once():
    with pytest.raises(ValueError, match="start is -1, expected a batch number >= 0"):
        numbered(4, 2).stream(start=-1)
    with pytest.raises(TypeError, match=r"start is 0\.5"):
        numbered(4, 2).stream(start=0.5)
    assert next(numbered(4, 2).stream(np.int64(3)))["y"].shape == (2,)


def test_a_source_that_changes_shape_is_named():
    class Growing:
        def __len__(self):
            return 4

        def take(self, indices):
            return {"x": np.zeros((len(indices), 1 + indices.max()), np.float32)}

    with pytest.raises(ValueError, match=r"x of data is float32\[2, 2\].*expected.*\[2, 1\].*map="):
        next(iter(Batches(Growing(), 2, shuffle=False)))


def test_a_batch_goes_through_jit_once():
    traces = []

    @jax.jit
    def total(batch):
        traces.append(1)
        return jnp.sum(batch["x"] * batch["mask"])

    assert sum(float(total(batch)) for batch in numbered(7, 3)) == 28
    assert len(traces) == 1
