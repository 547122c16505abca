"""Labels and ids that index nothing: refused on the host at first, counted in the step later."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.core.ranges import indexed, kept, ranges, told, watching
from nnkit.loop.labels import CHECKED
from tests.compiles import counted
from tests.mistakes import descent, first, task

LATE = CHECKED + 2


def batches(wrong, at, n=8, **fields):
    """n batches, of which number `at` (from 1) has these labels."""
    good = {**first(), **fields}
    return [{**good, "y": wrong} if i == at else good for i in range(1, n + 1)]


def fit(step, data, **options):
    state = nk.init(step, jax.random.key(0), data[0])
    return nk.fit(step, state, iter(data), steps=len(data), log_every=1, progress=False, **options)


WRONG = np.array([0, 1, 3, -1, 0, 1, 2, 0], np.int32)


@pytest.mark.parametrize("at", [1, 2, CHECKED])
def test_the_first_batches_are_looked_at_on_the_host(at):
    step = descent()
    state = nk.init(step, jax.random.key(0), first())
    data = batches(WRONG, at)
    with pytest.raises(ValueError, match=rf"batch\['y'\] of update {at} runs from -1 to 3.* row 2"):
        nk.fit(step, state, iter(data), steps=8, progress=False)


def test_later_ones_are_counted_and_named_with_the_loss():
    with pytest.raises(FloatingPointError) as caught:
        fit(descent(), batches(WRONG, LATE))
    text = str(caught.value)
    assert f"at step {LATE}" in text
    assert "batch['y'] was outside 0..2 at 2 places" in text


def test_they_are_counted_where_the_update_is_skipped():
    with pytest.warns(UserWarning, match=rf"to step {LATE}, batch\['y'\] was outside 0..2 at 2"):
        _, rows = fit(nk.skip_nonfinite(descent()), batches(WRONG, LATE))
    assert [row.get("y outside 0..2") for row in rows] == [None] * (LATE - 1) + [2] + [None] * 3
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_what_a_mask_hides_is_not_counted():
    mask = np.array([1, 1, 0, 0, 1, 1, 1, 1], np.float32)
    _, rows = fit(descent(), batches(WRONG, 2, mask=mask))
    assert not any("y outside 0..2" in row for row in rows)


def test_evaluation_counts_them():
    step = descent()
    weights = step.weights(nk.init(step, jax.random.key(0), first()))
    row = nk.evaluate(task(), [first(), first(y=WRONG), first(y=WRONG)])(*weights)
    assert row["y outside 0..2"] == 4
    assert "y outside 0..2" not in nk.evaluate(task(), [first()])(*weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda step: step,
        lambda step: nk.ema(step, 0.9),
        lambda step: nk.ensemble(step, 3),
        nk.skip_nonfinite,
    ],
)
def test_techniques_leave_the_count_as_it_is(wrap):
    step = wrap(descent())
    _, metrics = jax.jit(step.update)(step.init(jax.random.key(0), first()), first(y=WRONG))
    assert np.max(metrics["y outside 0..2"].total) == 2.0


def test_slices_and_repeats_add():
    for step, x in (
        (nk.step(nk.accumulate(nk.gradient(task()), 4), optax.sgd(0.1)), first()),
        (nk.repeat(descent()), {k: v[None] for k, v in first().items()}),
    ):
        y = WRONG if x["y"].ndim == 1 else WRONG[None]
        _, metrics = jax.jit(step.update)(step.init(jax.random.key(0), x), {**x, "y": y})
        assert float(metrics["y outside 0..2"].total) == 2.0


def language():
    gpt = nk.models.GPT(vocabulary=11, length=4, width=8, depth=1, heads=2)
    batch = {k: np.array([[1, 2, 3, 4]], np.int32) for k in ("tokens", "labels")}
    return nk.causal_lm(gpt), {**batch, "label_mask": np.array([[1, 1, 1, 0]], np.float32)}


def test_tokens_and_labels_of_a_language_model():
    goal, batch = language()
    params, carry = jax.jit(goal.init)(jax.random.key(0), batch)
    measure = jax.jit(lambda batch: goal.loss(params, carry, batch, None)[1][1])
    log = measure(batch)
    assert {name for name in log if name in ranges(log)} == {
        "tokens outside 0..10", "labels outside 0..10",
    }  # fmt: skip
    assert all(float(log[name].total) == 0 for name in ranges(log))
    wrong = {**batch, "tokens": np.array([[1, 2, 11, -1]], np.int32)}
    wrong["labels"] = np.array([[1, 2, 99, -100]], np.int32)  # the last one is masked
    log = measure(wrong)
    assert float(log["tokens outside 0..10"].total) == 2
    assert float(log["labels outside 0..10"].total) == 1


def test_a_loss_by_hand_is_watched_too():
    goal = nk.objective(
        lambda key, b: jnp.zeros((3, 3)),
        lambda w, b, key: nk.losses.cross_entropy(b["x"] @ w, b["y"]),
    )
    _, (_, log) = jax.jit(lambda b: goal.loss(jnp.zeros((3, 3)), {}, b, None))(first(y=WRONG))
    assert float(log["y outside 0..2"].total) == 2


def test_numbers_that_index_nothing_are_not_watched():
    goal = task(nk.models.Linear(1), lambda o, y: nk.losses.mse(o[:, 0], y.astype(jnp.float32)))
    _, (_, log) = goal.loss(*goal.init(jax.random.key(0), first()), first(), None)
    assert sorted(log) == ["loss"]


def test_it_compiles_nothing_more():
    step, data = descent(), [first()] * 6
    state = nk.init(step, jax.random.key(0), data[0])
    state, _ = nk.fit(step, state, data, steps=6, progress=False)
    with counted() as programs:
        nk.fit(step, state, data, steps=6, progress=False)
    assert programs.count == 0


def test_nobody_watches_outside_of_an_objective():
    y = jnp.array([0, 5])
    indexed(y, 3)
    with watching([y]) as watch:
        indexed(y, 3)
    assert watch.sizes == {}
    assert watch.counts() == {}


def test_small_integers_and_unsigned_ones():
    for dtype in (jnp.uint8, jnp.int8, jnp.int32):
        y = jnp.array([0, 1, 99], dtype)
        with watching({"y": y}) as watch:
            indexed(y, 300)
            indexed(y, 3)
        assert float(watch.counts()["y outside 0..2"].total) == 1


def test_words():
    assert told({"loss": 1.0}) == ""
    said = told({"y outside 0..9": 3, "tokens outside 0..4": 1})
    assert said.split(", ") == [
        "batch['y'] was outside 0..9 at 3 places", "batch['tokens'] was outside 0..4 at 1 places",
    ]  # fmt: skip
    assert kept({"y": np.zeros(2)}, "y") is None
    both = {"labels": np.zeros((2, 3)), "mask": np.array([1, 0]), "label_mask": np.ones((2, 3))}
    assert kept(both, "labels").tolist() == [[True] * 3, [False] * 3]
