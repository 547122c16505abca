"""Tasks made when they are read: a pure function of (seed, number); what the targets are."""

from __future__ import annotations

import numpy as np
import pytest

from nnkit.data import generated
from nnkit.data.generated import adding, copying

GOLDEN_MARKS = [1, 0, 0, 0, 1]
GOLDEN_SUMS = [1.564685344696045, 0.9338507056236267]
GOLDEN_HELD = [1.4464349746704102, 1.7332606315612793]


def test_example_is_a_function_of_seed_and_number():
    train, test = generated("adding", batch_size=4, length=7, examples=12, test=5, seed=3)
    again, _ = generated("adding", batch_size=4, length=7, examples=12, test=5, seed=3)
    other, _ = generated("adding", batch_size=4, length=7, examples=12, test=5, seed=4)
    for a, b, c in zip(train, again, other):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert (a["x"] != c["x"]).any()
    skipped = next(train.stream(start=2))
    np.testing.assert_array_equal(skipped["x"], list(train)[2]["x"])
    wider, _ = generated("adding", batch_size=6, length=7, examples=12, test=5, seed=3)
    np.testing.assert_array_equal(next(iter(wider))["x"][:4], next(iter(train))["x"])
    seen = np.concatenate([b["x"][:, :, 0] for b in train])
    held = np.concatenate([b["x"][b.get("mask", np.ones(4)) > 0, :, 0] for b in test])
    assert len(np.unique(np.concatenate([seen, held]), axis=0)) == 12 + 5  # none twice


def test_golden_numbers():
    """The same in every version of numpy: from raw bits of Philox."""
    train, test = generated("adding", batch_size=2, length=5, seed=1)
    one, held = next(iter(train)), next(iter(test))
    np.testing.assert_array_equal(one["x"][1, :, 1], GOLDEN_MARKS)
    np.testing.assert_allclose(one["y"], GOLDEN_SUMS, rtol=1e-7)
    np.testing.assert_allclose(held["y"], GOLDEN_HELD, rtol=1e-7)


def test_adding_is_the_sum_of_two_marked_numbers():
    _, test = generated("adding", batch_size=500, length=10, test=4_000)
    rows = list(test)
    x = np.concatenate([b["x"] for b in rows])
    y = np.concatenate([b["y"] for b in rows])
    assert x.dtype == y.dtype == np.float32
    np.testing.assert_array_equal((x[:, :, 1] == 1).sum(1), 2)
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(1), y, rtol=1e-6)
    assert x[:, :, 0].min() >= 0
    assert x[:, :, 0].max() < 1
    assert abs(x[:, :, 0].mean() - 0.5) < 0.005
    marks = x[:, :, 1].mean(0)  # each place with chance 2/10; 4 standard errors
    np.testing.assert_allclose(marks, 0.2, atol=4 * np.sqrt(0.16 / 4000))
    # always saying 1: 2/12, whose standard error is sqrt(7/180/4000) = 0.003
    assert abs(((y - 1) ** 2).mean() - 2 / 12) < 0.01


def test_copying_has_the_published_layout():
    _, test = generated("copying", batch_size=100, length=5, test=500)
    batch = next(iter(test))
    x, y = batch["x"], batch["y"]
    assert x.shape == y.shape == (100, 25)
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x[:, 10:14], 0)
    np.testing.assert_array_equal(x[:, 14:], 9)
    np.testing.assert_array_equal(y[:, :15], 0)
    np.testing.assert_array_equal(y[:, 15:], x[:, :10])
    assert set(np.unique(x[:, :10])) == set(range(1, 9))
    # all known but ten symbols out of eight: 10 ln 8 / (T + 20)
    p = np.where(y == 0, 1.0, 1 / 8)
    np.testing.assert_allclose(-np.log(p).mean(), 10 * np.log(8) / 25)


@pytest.mark.parametrize(("t", "loss"), [(200, 0.0945), (500, 0.0400), (1000, 0.0204)])
def test_the_memoryless_loss_is_the_published_one(t, loss):
    assert round(10 * np.log(8) / (t + 20), 4) == loss


def test_shortest_sequences():
    bits = np.random.Philox(0).random_raw
    np.testing.assert_array_equal(adding(bits, 2)["x"][:, 1], 1)
    assert copying(bits, 1)["x"].tolist()[10:] == [9] * 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "add"}, "task is 'add', expected one of adding, copying"),
        ({"length": 1}, "length is 1, expected an integer >= 2 for adding"),
        ({"length": 2.0}, "length is 2.0, expected an integer >= 2 for adding"),
        ({"task": "copying", "length": 0}, "length is 0, expected an integer >= 1 for copying"),
        ({"examples": 0}, "examples is 0, expected an integer >= 1"),
        ({"test": True}, "test is True, expected an integer >= 1"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 to"),
    ],
)
def test_mistakes(change, message):
    settings = {"task": "adding", "batch_size": 2, "length": 5} | change
    with pytest.raises(ValueError) as caught:
        generated(settings.pop("task"), **settings)
    assert message in str(caught.value)
