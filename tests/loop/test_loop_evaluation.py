"""Evaluation against float64 numpy over all examples at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from tests.compiles import counted

MODEL = nk.models.Linear(10)
TASK = nk.supervised(MODEL, nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)


@pytest.fixture(scope="module")
def digits():
    """All 1437 training digits (x [1437 8 8 1], y [1437]) and random weights."""
    train, _ = nk.data.embedded("digits", batch_size=1437)
    whole = next(iter(train))
    rng = np.random.default_rng(0)
    params = {
        "head": {
            "kernel": jnp.asarray(rng.normal(size=(64, 10)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=10), jnp.float32),
        }
    }
    return np.asarray(whole["x"]), np.asarray(whole["y"]), params


def by_hand(x, y, params):
    head = jax.tree.map(np.float64, params)["head"]
    logits = x.reshape(len(x), -1).astype(np.float64) @ head["kernel"] + head["bias"]
    top = logits.max(1)
    losses = np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(y)), y]
    return {"loss": losses.mean(), "accuracy": (logits.argmax(1) == y).mean()}


@pytest.mark.parametrize("size", [7, 50, 1000, 1437])
def test_evaluate_is_exact_whatever_the_batch_size(digits, size):
    x, y, params = digits
    batches = nk.data.arrays(x, y, batch_size=size, shuffle=False)
    row = nk.evaluate(TASK, batches, split="validation")(params, {})
    want = by_hand(x, y, params)
    assert row["split"] == "validation"
    assert row["accuracy"] == want["accuracy"]  # counts are exact
    np.testing.assert_allclose(row["loss"], want["loss"], rtol=1e-6)


def test_stacked_is_each_member_by_itself(digits):
    x, y, params = digits
    batches = nk.data.arrays(x, y, batch_size=50, shuffle=False)
    members = [jax.tree.map(lambda p, s=s: p * s, params) for s in (1.0, 0.5, -2.0)]
    stack = jax.tree.map(lambda *p: jnp.stack(p), *members)
    row = nk.evaluate(nk.stacked(TASK), batches)(stack, {})
    for i, member in enumerate(members):
        want = by_hand(x, y, member)
        assert row["accuracy"][i] == want["accuracy"]
        np.testing.assert_allclose(row["loss"][i], want["loss"], rtol=1e-6)
    assert row["loss"].shape == (3,)


def test_evaluate_compiles_once_and_does_not_change_its_arguments(digits):
    x, y, params = digits
    hook = nk.evaluate(TASK, nk.data.arrays(x, y, batch_size=500, shuffle=False))
    before = nk.digest(params)
    first = hook(params, {})
    with counted() as programs:
        assert hook(params, {}) == first
    assert programs.count == 0
    assert nk.digest(params) == before


def test_tables_keep_their_shape(digits):
    x, y, params = digits
    table = lambda logits, labels: jax.nn.one_hot(labels, 10)  # [b 10] per example
    task = nk.supervised(MODEL, nk.losses.cross_entropy, share=table)
    row = nk.evaluate(task, nk.data.arrays(x, y, batch_size=50, shuffle=False))(params, {})
    np.testing.assert_allclose(row["share"], np.bincount(y) / len(y), rtol=1e-12)


@pytest.mark.parametrize("size", [7, 50, 1000])
def test_predict_keeps_the_order_and_drops_padding(digits, size):
    x, y, params = digits
    ids = np.arange(len(y), dtype=np.int32)
    batches = nk.data.arrays(x, y, batch_size=size, shuffle=False, ids=ids)
    found = nk.predict(MODEL, params, {}, batches)
    assert sorted(found) == ["ids", "outputs", "y"]
    assert found["ids"].tolist() == ids.tolist()
    assert found["y"].tolist() == y.tolist()
    flat = x.reshape(len(x), -1).astype(np.float64)
    want = flat @ np.float64(params["head"]["kernel"]) + np.float64(params["head"]["bias"])
    np.testing.assert_allclose(found["outputs"], want, atol=1e-4)  # sums of 64 in float32


def test_one_example_and_a_mask():
    task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    one = [{"x": np.float32([3.0])}]
    assert nk.evaluate(task, one)(jnp.float32(1), {}) == {"split": "test", "loss": 4.0}
    masked = [{"x": np.float32([3.0, np.nan]), "mask": np.float32([1, 0])}, *one]
    assert nk.evaluate(task, masked)(jnp.float32(1), {})["loss"] == 4.0
