"""80 mistakes, 80 messages: every wrong input of the tables, scored, and the scorer itself."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import nnkit as nk
from nnkit.core.outputs import last
from nnkit.loop.rates import lasting
from reliability import inputs
from reliability.answers import ANSWERS
from reliability.messages import heard, score

BY_HAND = [  # message, field, value, (field, value, allowed, remedy)
    ("invalid input", "rate", "-1", (0, 0, 0, 0)),
    ("rate", "rate", "-1", (1, 0, 0, 0)),
    ("rate is -1", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1, expected a number > 0", "rate", "-1", (1, 1, 1, 0)),
    ("rate is -1, expected a number > 0; 1e-3 is usual", "rate", "-1", (1, 1, 1, 1)),
    ("rate is -1; 1e-3 is usual", "rate", "-1", (1, 1, 0, 1)),
    ("expected a number > 0; use rate=1e-3", "rate", "-1", (1, 0, 1, 1)),
    ("rate is -1, expected a valid value; please fix it", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1, expected something else; use another value", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1, expected expected expected; use use use", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1, expected -1", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1: see the documentation", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1: check your input", "rate", "-1", (1, 1, 0, 0)),
    ("rate is -1: an error happened, try again", "rate", "-1", (1, 1, 0, 0)),
    ("the learning rate is too small", "rate", "-1", (1, 0, 0, 0)),
    ("iterate is -10, expected a number > 0", "rate", "-1", (0, 0, 1, 0)),
    ("ValueError: -1", "rate", "-1", (0, 1, 0, 0)),
    ("could not broadcast (8, 1) to (8,)", "y", "(8, 1)", (0, 1, 0, 0)),
    ("y has shape (8, 1), expected (8,); pass y[:, 0]", "y", "(8, 1)", (1, 1, 1, 1)),
    ("x is uint8, expected floats: (x / 255).astype(float)", "x", "uint8", (1, 1, 1, 0)),
    ("x is uint8, expected floats: divide by 255", "x", "uint8", (1, 1, 1, 1)),
    ("model is 'cn', expected one of 'cnn', 'mlp'", "model", "'cn'", (1, 1, 1, 0)),
    ("model is 'cn'; perhaps you meant 'cnn'", "model", "'cn'", (1, 1, 0, 1)),
    ("labels run from 0 to 3, but there are 3 classes (0..2)", "labels", "3", (1, 1, 1, 0)),
    ("ragged nested sequences", "x", "[[1], [2, 3]]", (0, 0, 0, 0)),
    ("dict contains fields not in fieldnames", "y", "['x']", (0, 0, 0, 0)),
]


@pytest.mark.parametrize("row", BY_HAND, ids=[row[0] for row in BY_HAND])
def test_the_scorer_agrees_with_a_reader(row):
    text, field, value, marks = row
    assert tuple(map(int, score(text, field, value))) == marks


def test_nothing_to_look_for_is_refused():
    for field, value in (("", "1"), ("x", " ")):
        with pytest.raises(ValueError, match="expected two texts"):
            score("x is 1", field, value)


def test_what_jax_adds_to_an_error_is_not_read():
    error = ValueError("x is 1")
    error.add_note("--------------------")
    error.add_note("For simplicity, JAX has removed its internal frames: use x=2")
    error.add_note("our own note")

    def mistake():
        raise error

    assert heard(mistake).text == "x is 1\nour own note"
    assert heard(lambda: None).kind is None


def test_every_message_has_its_parts():
    known = inputs.cases()
    assert set(known) == set(ANSWERS)
    found = inputs.scored(count=len(known), seed=0)
    assert not found["failures"], found["failures"]
    assert found["at least 3"] == found["count"] >= 80
    assert found["all 4"] >= 0.95 * found["count"]
    assert found["less than 4"] == "commands/verb unlike any"  # verbs of nnkit, not of a remedy
    assert found["programs"] == 0


def test_every_line_of_the_list_has_a_case():
    counts = {group: len(rows) for group, rows in inputs.SPEC.items()}
    assert counts == {
        "config": 16, "data": 24, "model, loss": 14, "optimizer": 8, "run, files": 12, "devices": 8,
    }  # fmt: skip
    known, root = inputs.cases(), Path(__file__).resolve().parents[2]
    for rows in inputs.SPEC.values():
        for line, names in rows.items():
            assert names, line
            for name in names:
                path, _, test = name.partition("::")
                module = path.removesuffix(".py").replace("/", ".")
                there = name in known or (
                    bool(test)
                    and (root / path).is_file()
                    and hasattr(importlib.import_module(module), test.partition("[")[0])
                )
                assert there, f"{line}: {name}"


def test_a_schedule_may_end_above_0_or_with_the_run():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(nk.optim.warmup_cosine(0.1, 10)))
    lasting(tx.update, 10)
    with pytest.raises(ValueError, match=r"warmup_cosine\(steps=10\) ends at rate 0.*the 11 steps"):
        lasting(tx.update, 11)
    lasting(optax.sgd(nk.optim.warmup_cosine(0.1, 10, final=0.1)).update, 11)
    lasting(optax.sgd(nk.optim.inverse_sqrt(0.1, 10)).update, 11)
    lasting(optax.sgd(0.1).update, 11)
    jax.jit(lambda n: lasting(optax.sgd(nk.optim.linear(0.1, n)).update, 11))(10)  # not known


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (jax.nn.softmax, "softmax"),
        (jax.nn.sigmoid, "sigmoid"),
        (lambda x: jax.jit(jax.nn.softmax)(x).T, "softmax"),
        (lambda x: jnp.exp(x) / jnp.exp(x).sum(), "softmax"),
        (jax.nn.log_softmax, ""),
        (lambda x: x / 2, ""),
        (lambda x: jax.nn.softmax(x) @ jnp.ones((3, 2)), ""),
        (lambda x: x, ""),
        (lambda x: (jax.nn.softmax(x), x), ""),
    ],
)
def test_what_a_model_does_last(f, word):
    found, shapes = last(f, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    assert found == word
    assert shapes == jax.eval_shape(f, jax.ShapeDtypeStruct((2, 3), jnp.float32))
