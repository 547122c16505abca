"""BERT: it sees a set but for positions, padding changes nothing, heads are what they say."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.models.bert import BERT, SIZES

SIZE = {"vocabulary": 13, "length": 9, "width": 16, "depth": 2, "heads": 4, "hidden": 24}
VARIANTS = {
    "words": BERT(**SIZE),
    "classes": BERT(**SIZE, classes=3),
    "set": BERT(**SIZE, learned=False),
}


@functools.cache
def made(name):
    """A variant, its parameters (nothing at a start of 0 or 1), and its compiled pass."""
    model, rng = VARIANTS[name], np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    place = lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.normal(size=x.shape), x.dtype)
    params = jax.tree.map(place, shapes)
    return model, params, jax.jit(functools.partial(model.apply, params))


def within(model, params, tokens, kinds):
    """Outputs and intermediates."""
    run = jax.jit(lambda p: model.apply(p, tokens, None, kinds, intermediates=True))
    return run(params)


def drawn(*shape, top=13):
    return jnp.asarray(np.random.default_rng(0).integers(0, top, shape), jnp.int32)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_without_positions_it_does_not_know_the_order():
    run = made("set")[2]
    tokens, kinds = drawn(2, 7), drawn(2, 7, top=2)
    mask = jnp.arange(7)[None] < jnp.array([[7], [5]])
    order = np.random.default_rng(1).permutation(7)
    plain, mixed = run(tokens, mask, kinds), run(tokens[:, order], mask[:, order], kinds[:, order])
    close(mixed, plain[:, order])
    run = made("words")[2]  # with positions it does
    plain, mixed = run(tokens, mask, kinds), run(tokens[:, order], mask[:, order], kinds[:, order])
    assert float(jnp.abs(mixed - plain[:, order]).max()) > 0.1


@pytest.mark.parametrize("name", ["words", "classes"])
def test_padding_changes_nothing(name):
    run = made(name)[2]
    tokens, kinds, n = drawn(2, 7), drawn(2, 7, top=2), 4
    mask = jnp.broadcast_to(jnp.arange(7) < n, (2, 7))
    padded = run(tokens, mask, kinds)
    alone = run(tokens[:, :n], mask[:, :n], kinds[:, :n])
    other = run(jnp.where(mask, tokens, 5), mask, jnp.where(mask, kinds, 1))
    if name == "words":
        padded, other = padded[:, :n], other[:, :n]
    close(padded, alone)
    assert (other == padded).all()
    assert np.isfinite(run(tokens, jnp.zeros((2, 7), bool), kinds)).all()  # nothing but padding


def test_every_token_sees_every_other():
    model, params, _ = made("words")
    tokens = jnp.arange(7)[None]
    inside = jax.jit(lambda p: model.apply(p, tokens, intermediates=True)[1])(params)
    p = np.asarray(inside["attention_0"])
    assert p.shape == (1, 4, 7, 7) and (p > 0).all()
    close(p.sum(-1), np.ones((1, 4, 7)))
    assert sorted(inside) == [
        "attention_0",
        "attention_1",
        "block_0",
        "block_1",
        "embedded",
        "final",
    ]


def test_heads_are_as_the_paper_has_them():
    """By the definition, from the last features, in float64."""
    tokens, kinds = drawn(2, 5), drawn(2, 5, top=2)
    erf = np.vectorize(math.erf)
    model, params, _ = made("words")
    y, inside = within(model, params, tokens, kinds)
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    h = np.asarray(inside["final"], np.float64) @ tree["transform"]["kernel"]
    h = h + tree["transform"]["bias"]
    h = h * (1 + erf(h / np.sqrt(2))) / 2
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-12)
    h = h * tree["transform_norm"]["scale"] + tree["transform_norm"]["bias"]
    close(y, h @ tree["embed"]["embedding"].T + tree["bias"])
    model, params, _ = made("classes")
    y, inside = within(model, params, tokens, kinds)
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    h = np.asarray(inside["final"], np.float64)[:, 0] @ tree["pooler"]["kernel"]
    h = np.tanh(h + tree["pooler"]["bias"])
    close(y, h @ tree["head"]["kernel"] + tree["head"]["bias"])


def test_the_word_head_is_the_word_table_and_types_default_to_the_first():
    _, params, run = made("words")
    shapes = [x.shape for x in jax.tree.leaves(params)]
    assert shapes.count((13, 16)) == 1 and (16, 13) not in shapes
    tokens = drawn(2, 5)
    assert (run(tokens) == run(tokens, None, jnp.zeros_like(tokens))).all()
    assert float(jnp.abs(run(tokens) - run(tokens, None, jnp.ones_like(tokens))).max()) > 0.1


COUNTS = {  # transformers 5.23.0 on the meta device: words, and two classes
    "tiny": (4_416_698, 4_386_178),
    "mini": (11_201_594, 11_171_074),
    "small": (28_795_194, 28_764_674),
    "medium": (41_404_730, 41_374_210),
    "base": (109_514_298, 109_483_778),
    "large": (335_174_458, 335_143_938),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_parameters(size):
    def count(classes, depth):  # linear in the depth
        model = BERT.from_size(size, classes=classes, depth=depth)
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    for classes, known in zip((None, 2), COUNTS[size]):
        one, two = count(classes, 1), count(classes, 2)
        assert one + (two - one) * (SIZES[size]["depth"] - 1) == known


IDS = np.zeros((2, 3), int)
BAD = [
    ({}, (np.array([[0, 13]]),), ValueError, "tokens run from 0 to 13, but the vocabulary has 13"),
    ({}, (np.zeros((2, 10), int),), ValueError, "a sequence of 10, expected at most length=9"),
    ({}, (IDS, None, IDS + 2), ValueError, "token_types run from 2 to 2, expected 0 to 1"),
    ({}, (IDS, np.ones((2, 4), bool)), ValueError, r"mask has shape \(2, 4\), expected \(2, 3\)"),
    ({}, (IDS, None, IDS[:, :2]), ValueError, r"token_types has shape \(2, 2\)"),
    ({}, (IDS.astype(np.float32),), TypeError, r"tokens is float32\[2, 3\], expected integer ids"),
    ({"heads": 5}, (IDS,), ValueError, "width=16 is not divisible by heads=5"),
    ({"classes": 0}, (IDS,), ValueError, "classes is 0, expected an integer >= 1"),
    ({"dropout": 2}, (IDS,), ValueError, "dropout is 2"),
]


@pytest.mark.parametrize(("changes", "inputs", "kind", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(changes, inputs, kind, said):
    with pytest.raises(kind, match=said):
        BERT(**SIZE | changes).init(jax.random.key(0), *inputs)
    with pytest.raises(KeyError, match="BERT has no size 'huge'; there are 'tiny'"):
        BERT.from_size("huge")


def test_a_token_type_that_there_is_not_is_named():
    model = BERT(vocabulary=11, length=8, width=16, depth=1, heads=2, hidden=24)
    ids = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"token_types run from 2 to 2.*types=3"):
        model.init(jax.random.key(0), ids, None, 2 * ids)
