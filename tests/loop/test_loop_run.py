"""nk.run: what a folder belongs to; fit: what is noticed before the first step."""

from __future__ import annotations

import flax.errors
import jax
import numpy as np
import optax
import pytest
from table import PLAIN, batch, plain_step

import nnkit as nk
from nnkit import losses, metrics, models

TRAIN = [batch(i) for i in range(4)]


def go(folder, task=PLAIN, **changes):
    return nk.run(task, TRAIN, TRAIN, steps=6, folder=folder, progress=False, **changes)


def test_the_same_call_finds_its_result_and_says_so(tmp_path, capsys):
    first = go(tmp_path / "a")
    again = nk.run(PLAIN, TRAIN, TRAIN, steps=6, folder=tmp_path / "a")
    assert nk.digest(again.params) == nk.digest(first.params)
    assert "was finished already: nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("optimizer", {"tx": optax.sgd(1.0)}),
        ("its constant", {"tx": optax.adamw(1e-2)}),
        ("loss", {"task": nk.supervised(models.MLP((4, 3)), losses.focal)}),
        ("rate", {"tx": optax.adamw(0.5)}),
    ],
)
def test_another_program_is_refused_a_folder(tmp_path, what, changes):
    go(tmp_path / "a", tx=optax.adamw(1e-3))
    with pytest.raises(ValueError, match=r"belongs to another configuration.*use another folder"):
        go(tmp_path / "a", **{"tx": optax.adamw(1e-3), **changes})


def test_a_hook_that_cannot_work_is_noticed_before_the_first_step():
    step = nk.ensemble(plain_step(PLAIN), 2)
    state = nk.init(step, jax.random.key(0), TRAIN[0])
    with pytest.raises(flax.errors.ScopeParamShapeError) as caught:
        nk.fit(step, state, TRAIN, steps=9, every={9: nk.evaluate(PLAIN, TRAIN)}, progress=False)
    assert "evaluate nk.stacked(task)" in "".join(caught.value.__notes__)
    assert not jax.tree.leaves(state)[0].is_deleted()  # nothing was trained


def test_a_metric_that_nothing_gives_is_noticed_before_the_first_step(tmp_path):
    step = plain_step(PLAIN)
    state = nk.init(step, jax.random.key(0), TRAIN[0])
    hook = nk.evaluate(PLAIN, TRAIN)
    with (
        nk.Run(tmp_path / "a", {}, keep_best=("acc", "max")) as run,
        pytest.raises(ValueError, match=r"keep_best wants the metric 'acc'.*'accuracy', 'loss'"),
    ):
        nk.fit(step, state, TRAIN, steps=9, every={3: hook}, run=run, progress=False)


def test_a_used_state_and_a_wrong_every_are_named():
    step = plain_step(PLAIN)
    state = nk.init(step, jax.random.key(0), TRAIN[0])
    nk.fit(step, state, TRAIN, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"used up \(donated\).*go on with the state"):
        nk.fit(step, state, TRAIN, steps=1, progress=False)
    state = nk.init(step, jax.random.key(0), TRAIN[0])
    with pytest.raises(TypeError, match=r"every=5, expected \{steps: hook\}"):
        nk.fit(step, state, TRAIN, steps=1, every=5, progress=False)


def test_rows_of_skipped_updates_have_no_nan():
    step = nk.skip_nonfinite(plain_step(PLAIN))
    bad = dict(batch(0), x=batch(0)["x"].at[0, 0].set(np.nan))
    state = nk.init(step, jax.random.key(0), batch(0))
    _, rows = nk.fit(step, state, [batch(0), bad], steps=2, log_every=1, progress=False)
    assert set(rows[1]) == {"step", "time", "skipped"}
    assert rows[1]["skipped"] == 1


def test_an_interrupted_run_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt), nk.Run(tmp_path / "a", {}) as run:
        raise KeyboardInterrupt
    assert run.status == "interrupted"


def test_a_metric_is_logged_beside_the_loss():
    task = nk.supervised(models.MLP((4, 3)), losses.cross_entropy, accuracy=metrics.accuracy)
    rows = nk.run(task, TRAIN, steps=2, progress=False).rows
    assert {"loss", "accuracy"} <= set(rows[0])
