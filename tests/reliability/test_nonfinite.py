"""What is not finite: the error, the update left out, the way back."""

import contextlib
import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.loop.nonfinite import inspect_update, spoilt
from reliability import nonfinite

TASK = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
PLAIN = nk.step(nk.gradient(TASK), optax.sgd(0.25))
GOOD, BAD = {"x": np.ones(2, np.float32)}, {"x": np.array([1, np.nan], np.float32)}


def go(step, batches, state=None):
    state = nk.init(step, jax.random.key(0), GOOD) if state is None else state
    update = jax.jit(step.update)
    for batch in batches:
        state, metrics = update(state, batch)
    return state, metrics


def test_bad_numbers_under_three_policies():
    found = nonfinite.poisoned(count=6, seed=1)
    assert not found["failures"], found
    assert found["count"] == 6


@pytest.mark.nightly
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_guard_that_keeps_one_thing_of_a_bad_update_is_noticed(policy, monkeypatch):
    from nnkit.train import guards

    def leaky(flag, a, b):
        kept = either(flag, a, b)
        count = lambda tree: jax.tree_util.tree_map_with_path(
            lambda p, x: x + 1 if nk.trees.path_name(p).endswith("inner/count") else x, tree
        )
        return jax.tree.map(lambda x, y: jnp.where(flag, x, y), count(kept), kept)

    either = guards._either
    wrong = leaky if policy == "rollback" else lambda flag, a, b: leaky(~flag, b, a)
    monkeypatch.setattr(guards, "_either", wrong)
    nonfinite.followed.cache_clear()
    bad = nonfinite.wrong(nonfinite.clean()[20], "gradient", random.Random(0))
    said = (nonfinite.skips if policy == "skip" else nonfinite.goes_back)(20, bad)
    nonfinite.followed.cache_clear()
    assert "inner/count" in said


# --- skip ---
def test_an_infinity_that_was_there_is_no_harm():
    """The best loss so far is infinite until there is one: that is no reason to skip for ever."""
    plateau = optax.contrib.reduce_on_plateau(patience=2, accumulation_size=4)
    step = nk.skip_nonfinite(nk.step(nk.gradient(TASK), optax.chain(optax.sgd(0.25), plateau)))
    state, metrics = go(step, [GOOD] * 3)
    assert int(state.count) == 3
    assert float(metrics["skipped"].value) == 0
    assert any(np.isinf(x).any() for x in jax.tree.leaves(nk.trees.plain(state)))
    assert not spoilt(state, step)
    assert spoilt(state)
    nk.fit(step, state, [GOOD], steps=4, progress=False)  # nor for fit


def test_what_is_spoilt_already_is_not_skipped_in_silence():
    step = nk.skip_nonfinite(PLAIN)
    state, _ = go(step, [GOOD])
    state = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, state)
    state, metrics = go(step, [GOOD], state)
    assert np.isnan(metrics["loss"].value)
    assert float(metrics["skipped"].value) == 0
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 .*'params'"):
        nk.fit(step, state, [GOOD], steps=2, progress=False)


# --- rollback ---
def test_back_to_the_copy_and_on():
    step = nk.rollback(PLAIN, every=3, times=2)
    alone = [nk.init(PLAIN, jax.random.key(0), GOOD)]
    for _ in range(5):
        alone.append(go(PLAIN, [GOOD], alone[-1])[0])
    state, _ = go(step, [GOOD] * 5)
    assert nk.digest(state.inner) == nk.digest(alone[5])  # nothing bad: the identity
    state, metrics = go(step, [BAD], state)
    assert nk.digest(state.inner) == nk.digest(alone[3])
    assert (int(state.back), int(state.since)) == (1, 0)
    assert (float(metrics["rolled_back"].value), float(metrics["loss"].weight)) == (1, 0)
    state, metrics = go(step, [GOOD] * 2, state)
    assert nk.digest(state.inner) == nk.digest(alone[5])
    assert float(metrics["rolled_back"].value) == 0
    state, _ = go(step, [BAD], state)
    assert nk.digest(state.inner) == nk.digest(alone[3])
    state, metrics = go(step, [BAD], state)  # the third time
    assert np.isnan(metrics["loss"].value)
    assert np.isnan(state.inner.params)


def test_what_is_spoilt_already_is_cured():
    step = nk.rollback(PLAIN, every=2)
    state, _ = go(step, [GOOD] * 3)
    hurt = dataclasses.replace(state.inner, params=state.inner.params * jnp.nan)
    after, _ = go(step, [GOOD], dataclasses.replace(state, inner=hurt))
    assert np.isfinite(after.inner.params)
    assert int(after.inner.count) == 2


def test_fit_raises_when_it_has_gone_back_often_enough(tmp_path):
    step = nk.rollback(PLAIN, every=2, times=1)
    state = nk.init(step, jax.random.key(0), GOOD)
    batches = [GOOD, GOOD, GOOD, GOOD, BAD, GOOD, BAD, GOOD]
    with (
        pytest.raises(FloatingPointError, match="gone back as often as it may"),
        nk.Run(tmp_path / "a", {}, save_every=3) as run,
    ):
        nk.fit(step, state, batches, steps=8, log_every=1, run=run, progress=False)
    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["rolled_back"] for row in rows] == [0, 0, 0, 0, 1, 0]
    assert "loss" not in rows[4]  # nothing was learnt in it
    assert run.checkpoints.steps() == [3, 6]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"every": 0}, r"rollback\(every=0\): expected an integer >= 1"),
        ({"every": 2.0}, r"rollback\(every=2.0\): expected an integer >= 1"),
        ({"times": -1}, r"rollback\(times=-1\): expected an integer >= 0"),
        ({"times": True}, r"rollback\(times=True\): expected an integer >= 0"),
    ],
)
def test_wrong_knobs(knobs, message):
    with pytest.raises(ValueError, match=message):
        nk.rollback(PLAIN, **knobs)


@pytest.mark.parametrize("technique", [nk.rollback, nk.replayed, nk.skip_nonfinite])
def test_a_guard_wraps_a_step(technique):
    knobs = {"every": 2} if technique is nk.replayed else {}
    with pytest.raises(TypeError, match=r"got Gradient, expected a Step: nk.step\(gradient, tx\)"):
        technique(nk.gradient(TASK), **knobs)


def test_members_go_back_each_by_itself():
    def recipe(h):
        return nk.rollback(nk.step(nk.gradient(TASK), optax.sgd(h["rate"])), every=1, times=9)

    step = nk.sweep(recipe, {"rate": jnp.array([0.25, 3e38])})
    state, metrics = go(step, [GOOD] * 4)
    alone, _ = go(PLAIN, [GOOD] * 4)
    np.testing.assert_allclose(state.inner.inner.params[0], alone.params, rtol=1e-6)
    assert np.isfinite(state.inner.inner.params).all()
    assert metrics["rolled_back"].value.tolist()[0] == 0
    assert int(state.inner.back[1]) > 0


# --- fit ---
def poisoned_at(at: int):
    """An update whose new weights, not its loss, are NaN at step `at`."""

    def update(state, batch):
        new, metrics = PLAIN.update(state, batch)
        params = jnp.where(new.count == at, jnp.nan, new.params)
        return dataclasses.replace(new, params=params), metrics

    return update


@pytest.mark.parametrize("last", [False, True])
def test_a_bad_state_is_neither_saved_nor_returned_though_the_loss_is_finite(last, tmp_path):
    step = PLAIN._replace(update=poisoned_at(6))
    state = nk.init(step, jax.random.key(0), GOOD)
    run = None if last else nk.Run(tmp_path / "a", {}, save_every=3)
    options = {"steps": 6 if last else 8, "log_every": 6, "progress": False, "run": run}
    match = r"the state after step 6 is not finite \(first in the state at 'params'\), though the"
    with pytest.raises(FloatingPointError, match=match), run or contextlib.nullcontext():
        nk.fit(step, state, [GOOD], **options)
    if not last:
        assert run.checkpoints.steps() == [3]
        told = json.loads((tmp_path / "a" / "nonfinite.json").read_text())
        assert (told["step"], told["before"]) == (6, 4)
        assert told["leaves"] == [{"path": "params", "shape": [], "nan": 1, "inf": 0}]


def test_one_finite_member_is_enough_and_its_state_is_kept(tmp_path):
    recipe = lambda h: nk.step(nk.gradient(TASK), optax.sgd(h["rate"]))
    step = nk.sweep(recipe, {"rate": jnp.array([0.25, 3e38])})
    state = nk.init(step, jax.random.key(0), GOOD)
    with nk.Run(tmp_path / "a", {}) as run:
        nk.fit(step, state, [GOOD], steps=5, run=run, progress=False)
    assert run.checkpoints.steps() == [5]


def test_the_error_says_since_when_and_what_to_do():
    state = nk.init(PLAIN, jax.random.key(0), GOOD)
    rows = [{"step": 4, "loss": 0.1}, {"step": 4, "split": "test", "loss": 0.2}]
    with pytest.raises(FloatingPointError) as seen:
        inspect_update(7, {"loss": np.inf}, state, PLAIN, saves=False, rows=rows)
    for part in ["the loss is inf at step 7", "not so at step 4", "NaN in the inputs", "itself is"]:
        assert part in str(seen.value)
