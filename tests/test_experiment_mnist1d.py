"""The MNIST-1D experiment at toy size: sizes of the paper, parts, seeds, and its table."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.train import load

MODELS = {"logistic": 410, "mlp": 15_210, "cnn": 5_210, "gru": 5_134}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_as_many_weights_as_that_of_the_authors(name):
    mnist1d = load("mnist1d")
    model, x = mnist1d.network(mnist1d.Config(model=name)), np.zeros((1, 40), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_two_seeds_learn_as_one_program(name):
    mnist1d = load("mnist1d")
    config = mnist1d.Config(model=name, seeds=2, steps=30, split="validation")
    step, train, evaluations = mnist1d.build(config)
    evaluation = evaluations[config.split]
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    before = evaluation(*step.weights(state))
    state, rows = nk.fit(step, state, train, steps=30, progress=False)
    after = evaluation(*step.weights(state))
    assert after["loss"].shape == (2,)
    assert (after["loss"] < before["loss"]).all()
    assert len({*rows[-1]["loss"].tolist()}) == (1 if name == "logistic" else 2)


def test_settings_are_chosen_without_the_test_part():
    mnist1d = load("mnist1d")
    small = {"model": "logistic", "seeds": 1}
    _, some, _ = mnist1d.build(mnist1d.Config(**small, split="validation"))
    _, every, _ = mnist1d.build(mnist1d.Config(**small))
    assert (some.examples, every.examples) == (3200, 4000)
    rows = {x.tobytes() for batch in every for x in batch["x"]}
    assert {x.tobytes() for batch in some for x in batch["x"]} < rows


def test_a_run_leaves_its_table(tmp_path, capsys):
    mnist1d = load("mnist1d")
    (row,) = mnist1d.main(mnist1d.Config(model="logistic", seeds=3, steps=40), tmp_path / "run")
    assert "±" in row["test accuracy"] and len(row["test accuracies"]) == 3
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == [row]
    assert row["test accuracy"] in capsys.readouterr().out


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="steps is 0, expected a finite number > 0"):
        load("mnist1d").Config(steps=0)
