"""TextCNN against its definition, padding, what it returns, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import models

MODEL = models.TextCNN(vocabulary=20, classes=3, width=5, windows=(1, 2, 4), maps=3)
TOKENS = np.array([[3, 4, 5, 6, 0, 0], [7, 0, 0, 0, 0, 0], [9, 9, 2, 2, 1, 19]], np.int32)
MASK = np.arange(6) < np.array([[4], [1], [6]])


@pytest.fixture(scope="module")
def variables():
    found = MODEL.init(jax.random.key(0), TOKENS, MASK)
    rng = np.random.RandomState(0)  # biases are not 0
    return jax.tree.map(lambda x: x + rng.uniform(-0.3, 0.3, x.shape).astype(np.float32), found)


def slow(params, tokens):
    """The definition for one text without padding: every window by itself, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    words, found = p["embed"]["embedding"][tokens], []
    for h in (1, 2, 4):
        kernel, bias = p[f"conv_{h}"]["kernel"], p[f"conv_{h}"]["bias"]
        answers = []
        for s in range(-(h - 1), len(tokens)):  # every window with at least one word
            y = bias.copy()
            for i in range(h):
                if 0 <= s + i < len(tokens):
                    y += words[s + i] @ kernel[i]
            answers.append(np.maximum(y, 0))
        found.append(np.max(answers, 0))
    return np.concatenate(found) @ p["head"]["kernel"] + p["head"]["bias"]


def test_logits_are_those_of_the_definition_text_by_text(variables):
    y = MODEL.apply(variables, TOKENS, MASK)
    for row, tokens, mask in zip(y, TOKENS, MASK):
        np.testing.assert_allclose(row, slow(variables["params"], tokens[mask]), 1e-5, 1e-6)


def test_padding_changes_nothing_wherever_it_stands_and_whatever_is_in_it(variables):
    y = MODEL.apply(variables, TOKENS, MASK)
    more = np.pad(TOKENS, ((0, 0), (0, 3)), constant_values=11)
    wide = np.pad(MASK, ((0, 0), (0, 3)))
    for tokens, mask in ((more, wide), (np.roll(more, 2, 1), np.roll(wide, 2, 1))):
        np.testing.assert_allclose(MODEL.apply(variables, tokens, mask), y, 1e-6, 1e-6)
    alone = MODEL.apply(variables, TOKENS[:1, :4])
    np.testing.assert_allclose(alone, y[:1], 1e-6, 1e-6)


def test_padding_gets_no_gradient(variables):
    def total(params):
        return MODEL.apply({"params": params}, np.where(MASK, TOKENS, 8), MASK).sum()

    slope = jax.grad(total)(variables["params"])["embed"]["embedding"]
    assert float(abs(slope[8]).max()) == 0
    assert float(abs(slope[3]).max()) > 0


def test_a_text_without_words_gives_the_bias_of_the_head(variables):
    y, inside = MODEL.apply(variables, TOKENS, np.zeros_like(MASK), intermediates=True)
    assert float(abs(inside["features"]).max()) == 0
    np.testing.assert_allclose(y, np.tile(variables["params"]["head"]["bias"], (3, 1)))


def test_intermediates_and_dropout(variables):
    y, inside = MODEL.apply(variables, TOKENS, MASK, intermediates=True)
    assert {k: v.shape for k, v in inside.items()} == {"embedded": (3, 6, 5), "features": (3, 9)}
    head = variables["params"]["head"]
    np.testing.assert_allclose(inside["features"] @ head["kernel"] + head["bias"][None], y, 1e-5)
    rngs = {"dropout": jax.random.key(1)}
    thinned = MODEL.apply(variables, TOKENS, MASK, train=True, rngs=rngs)
    assert float(abs(thinned - y).max()) > 0


def test_the_published_size():
    model = models.TextCNN.from_size("rand", vocabulary=18_767)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 5_991_002
    embedding = models.TextCNN(9, width=200).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    embedding = embedding["params"]["embed"]["embedding"]
    assert 0.2 < float(embedding.max()) <= 0.25 and -0.25 <= float(embedding.min()) < -0.2


def test_what_is_wrong_is_said(variables):
    def init(**fields):
        models.TextCNN(**{"vocabulary": 9, **fields}).init(jax.random.key(0), TOKENS % 9)

    with pytest.raises(TypeError, match=r"TextCNN: windows is 3, expected integers >= 1 in a list"):
        init(windows=3)
    with pytest.raises(ValueError, match=r"TextCNN: windows is \(3, 3\), expected each size once"):
        init(windows=(3, 3))
    with pytest.raises(ValueError, match="TextCNN: maps is 0, expected an integer >= 1"):
        init(maps=0)
    with pytest.raises(ValueError, match=r"TextCNN: dropout is 1\.5, expected a share in"):
        init(dropout=1.5)
    with pytest.raises(KeyError, match="TextCNN has no size 'static'; there are 'rand'"):
        models.TextCNN.from_size("static", vocabulary=9)
    with pytest.raises(ValueError, match=r"tokens run from 0 to 21, but the vocabulary has 20 row"):
        MODEL.apply(variables, TOKENS + np.where(TOKENS == 19, 2, 0), MASK)
    with pytest.raises(TypeError, match=r"tokens is float32 of shape .*, expected integer ids"):
        MODEL.apply(variables, TOKENS.astype(np.float32), MASK)
    with pytest.raises(ValueError, match=r"tokens has shape \(6,\), expected \(b t\)"):
        MODEL.apply(variables, TOKENS[0])
    with pytest.raises(
        ValueError, match=r"mask has shape \(3, 4\), expected \(b t\) with t = 6 ta"
    ):
        MODEL.apply(variables, TOKENS, MASK[:, :4])
    traced = jax.jit(lambda t: MODEL.apply(variables, t, MASK))(TOKENS + 15 * (TOKENS == 7))
    assert np.isnan(traced[1]).all() and np.isfinite(traced[::2]).all()
