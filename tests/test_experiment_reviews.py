"""The review experiment at toy size: folds as members under masks, the baseline, the table."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import losses
from nnkit.cli.train import load

GOOD, BAD = "good fine great warm".split(), "bad poor dull cold".split()
SMALL = {"members": 3, "epochs": 1, "batch_size": 8, "width": 8}


def made_up(n, seed=0):
    """n sentences, half of them with a good word, half with a bad one: (texts, y)."""
    rng, texts = np.random.RandomState(seed), []
    y = np.arange(n) % 2
    for label in y:
        words = [*rng.choice(["the", "film", "is", "a", "plot"], rng.randint(1, 6))]
        words.insert(rng.randint(len(words) + 1), rng.choice(GOOD if label else BAD))
        texts.append(" ".join(words))
    return texts, y


@pytest.fixture
def reviews(monkeypatch):
    module = load("reviews")
    sizes = {"train": 40, "validation": 12, "test": 14, "train+validation+test": 66}
    monkeypatch.setattr(module, "read", lambda split: made_up(sizes[split], seed=len(split)))
    return module


def test_real_reviews_are_read_whole(data_dir):
    texts, y = load("reviews").read("validation")
    assert (len(texts), len(y), y.sum()) == (1066, 1066, 533)
    assert isinstance(texts[0], str)


def test_a_member_never_learns_from_its_fold_and_is_evaluated_on_it_alone():
    apply = lambda params, carry, x, key: (x @ params["w"], carry)
    linear = (lambda key, x: ({"w": jnp.ones((3, 2))}, {}), apply)
    plain = nk.supervised(linear, losses.cross_entropy)
    task, rng = load("reviews").held_out(plain, 1), np.random.RandomState(0)
    batch = {
        "x": rng.randn(6, 3).astype(np.float32),
        "y": np.array([0, 1, 1, 0, 1, 0]),
        "fold": np.array([0, 1, 2, 1, 0, 2]),
        "mask": np.array([1, 1, 1, 1, 0, 1], np.float32),
    }
    params, carry = task.init(jax.random.key(0), batch)
    for key, rows in ((jax.random.key(1), [0, 2, 5]), (None, [1, 3])):
        mean, (after, log) = task.loss(params, carry, batch, key)
        part = {name: array[rows] for name, array in batch.items()}
        want = plain.loss(params, {}, part, None)[0]
        assert float(mean.weight) == len(rows) == float(log["loss"].weight)
        np.testing.assert_allclose(mean.value, want.value, 1e-6)
        assert int(after["fold"]) == 1


@pytest.mark.parametrize("model", ["textcnn", pytest.param("encoder", marks=pytest.mark.nightly)])
def test_folds_are_members_and_cover_every_review_once(reviews, model, tmp_path, capsys):
    config = reviews.Config(model=model, **SMALL)
    network, words = reviews.main(config, tmp_path / "run")
    assert (network["model"], words["model"]) == (model, "bag of words")
    assert network["members"] == words["members"] == 3
    assert words["folds accuracy"] in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())[0] == network
    texts, y, fold, n = reviews.reviews(config)
    assert n == len(texts) == len(y) == len(fold) == 66
    assert np.bincount(fold).tolist() == [22, 22, 22]


def test_textcnn_learns_which_words_are_good(reviews):
    config = reviews.Config(members=2, epochs=12, batch_size=8, split="validation")
    step, train, evaluations = reviews.build(config)
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    state, _ = nk.fit(step, state, train, steps=60, progress=False)
    found = evaluations["validation"](*step.weights(state))
    assert (found["accuracy"] > 0.9).all()
    assert (reviews.baseline(config) > 0.9).all()


def test_parts_and_words_of_a_split(reviews):
    config = reviews.Config(members=2, batch_size=8, split="test")
    texts, y, fold, n = reviews.reviews(config)
    assert (len(texts), len(y), fold, n) == (54, 54, None, 40)
    _, train, _ = reviews.build(config)
    assert train.examples == 40
    with pytest.raises(ValueError, match="members is 0, expected a finite number > 0"):
        reviews.Config(members=0)
