"""One program for the update, one for the evaluation; what makes another is named."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.loop.retraces import changes, watched
from reliability import compiles, interrupts


def sound(found, count):
    assert not found["failures"], found
    assert found["count"] == count


def test_one_update_and_one_evaluation():
    found = compiles.examples(1, 0)
    sound(found, 1)
    assert found["most_programs"] == 2


@pytest.mark.nightly
def test_six_models():
    sound(compiles.examples(6, 0), 6)


def test_twelve_drifts_are_named_or_normalised():
    found = compiles.drifts(12, 0)
    sound(found, 12)
    assert (found["named"], found["normalised"]) == (10, 2)


@pytest.mark.nightly
def test_memory_over_3000_steps():
    sound(compiles.memory(3, 0), 3000)


@pytest.mark.nightly
def test_no_array_is_left_to_the_garbage_collector():
    sound(compiles.cycles(3, 0), 3)


def test_arrays_of_a_training_go_with_their_names():
    """The short form of the campaign: what `fit` and `evaluate` made is gone, without gc."""
    task, step, train, test = interrupts.ingredients()
    state = interrupts.begun()
    hook = nk.evaluate(task, test)
    nk.fit(step, state, train, steps=6, every={3: hook}, progress=False)
    before = len(jax.live_arrays())
    for _ in range(3):
        nk.fit(step, interrupts.begun(), train, steps=6, every={3: hook}, progress=False)
    assert len(jax.live_arrays()) <= before


TASK = nk.supervised(nk.models.Linear(3), nk.losses.cross_entropy)
STEP = nk.step(nk.gradient(TASK), optax.sgd(0.1))


def cut(n):
    return {"x": np.ones((n, 8), np.float32), "y": np.arange(n, dtype=np.int32) % 3}


def begun():
    return nk.init(STEP, jax.random.key(0), cut(32))


def test_the_fourth_retrace_of_fit_raises_before_it_compiles():
    batches = [cut(n) for n in (32, 32, 31, 30, 29, 28, 32)]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with compiles.counted() as programs, pytest.raises(ValueError) as caught:
            nk.fit(STEP, begun(), batches, steps=7, progress=False)
    said = [str(w.message) for w in seen if "compiles again" in str(w.message)]
    assert len(said) == 3
    assert "batch['x'] changed from f32[32,8] to f32[31,8]" in said[0]
    text = str(caught.value)
    for part in ("the update of fit", "the 4th time", "f32[29,8] to f32[28,8]", "pad and"):
        assert part in text
    assert caught.value.step == 5
    assert not any(x.is_deleted() for x in jax.tree.leaves(caught.value.state))
    assert programs.count <= 6  # the first state, and the update four times


def test_a_ragged_last_batch_of_an_evaluation_is_as_it_should_be():
    task, step, _, _ = interrupts.ingredients()
    weights = step.weights(interrupts.begun())
    x, y = np.zeros((40, 8, 8, 1), np.float32), np.zeros(40, np.int32)
    cut = lambda *sizes: [{"x": x[:n], "y": y[:n]} for n in sizes]
    hook = nk.evaluate(task, cut(16, 16, 8))
    assert hook(*weights) == hook(*weights)
    model = nk.models.MLP((16, 10), dropout=0.3)
    assert len(nk.predict(model, *weights, cut(16, 16, 8))["y"]) == 40
    with pytest.warns(
        RuntimeWarning, match=r"'test'\) compiles again: batch\['x'\] changed from f32"
    ):
        nk.evaluate(task, cut(16, 8, 7))(*weights)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="predict would compile"):
        nk.predict(model, *weights, cut(16, 8, 7, 6, 5, 4))


def test_a_later_fit_may_have_another_shape_and_the_same_one_compiles_nothing():
    for sizes in ([24] * 3, [20] * 3, [18] * 3, [17] * 3, [16] * 3, [15] * 3):
        nk.fit(STEP, begun(), [cut(n) for n in sizes], steps=3, progress=False)
    state = begun()
    with compiles.counted() as programs:
        nk.fit(STEP, state, [cut(16)] * 3, steps=3, progress=False)
    assert programs.count == 0


def test_a_placement_that_changes_is_refused_at_the_next_call_and_loses_nothing():
    f = watched(lambda x: x + 1, who="f")
    mesh = nk.mesh(data=2)
    part = jax.sharding.PartitionSpec
    places = [jax.sharding.NamedSharding(mesh, part(*p)) for p in ([], ["data"])]
    places += [jax.sharding.SingleDeviceSharding(d) for d in jax.devices()[:4]]
    x = np.ones(4, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = [f(jax.device_put(x, place)) for place in places[:5]]
    assert all((np.asarray(r) == 2).all() for r in results)
    with pytest.raises(ValueError, match="f would compile again, the 4th time: x changed from"):
        f(jnp.ones(4))


def test_changes_are_three_at_most():
    before = dict.fromkeys("abcde", "f32[1]")
    now = dict.fromkeys("abcde", "f32[2]")
    assert changes(before, now).endswith("c changed from f32[1] to f32[2] and 2 more")
