"""Decoders: reading step by step is reading at once, however prompts are padded and cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from writers import MODELS, MODERN, SIZE, V, close, drawn, padded, params_of, whole_of

from nnkit.generate import Decoder, decoder, sliding
from nnkit.layers import Attention, cache
from nnkit.layers.memory import rewind
from nnkit.models import BERT, GPT

GPTS = ("learned", "modern", "alibi", "experts")


def programs(model, ahead=None):
    made = decoder(model, ahead=ahead)
    return made, jax.jit(made.start, static_argnums=3), jax.jit(made.step)


@pytest.mark.parametrize("name", [*GPTS, "lstm"])
def test_every_position_is_that_of_the_full_pass(name):
    """Prompts of 2 and 6 places, padded either way, then five tokens one by one."""
    model, tokens, lengths = MODELS[name], drawn(2, 11), (2, 6)
    params = params_of(model)
    whole = np.asarray(whole_of(model)(params, tokens))
    _, start, step = programs(model)
    for side in ("left", "right"):
        rows = [row[:n] for row, n in zip(tokens, lengths)]
        logits, memory = start(params, *padded(rows, 6, side, fill=7), 5)
        for i in range(6):
            close(logits, [whole[b, n - 1 + i] for b, n in enumerate(lengths)])
            if i < 5:
                new = np.array([[tokens[b, n + i]] for b, n in enumerate(lengths)])
                logits, memory = step(params, new, memory)
                logits = logits[:, 0]


def test_a_target_is_written_as_the_full_pass_reads_it():
    model, source, target = MODELS["encdec"], drawn(2, 6), drawn(2, 5, seed=1)
    params, rows = params_of(model), [source[0], source[1, :4]]
    _, start, step = programs(model)
    right = padded(rows, 6, "right")
    whole = np.asarray(whole_of(model)(params, target, *right))
    logits, memory = start(params, *right, 4)
    for i in range(5):
        close(logits, whole[:, i])
        if i < 4:
            logits, memory = step(params, target[:, i : i + 1], memory)
            logits = logits[:, 0]
    first, tree = jnp.full((2, 1), 3, jnp.int32), {"params": params}
    want = jax.jit(model.apply)(tree, right[0], first, right[1])[:, 0]
    other = jax.jit(decoder(model.clone(begin=3)).start, static_argnums=3)
    close(other(params, *right, 4)[0], want)


@pytest.mark.parametrize("name", GPTS)
def test_several_tokens_at_once_and_taken_back(name):
    """Steps of 3 after a prompt; wrong tokens are read, taken back, and the right ones follow."""
    model, tokens = MODELS[name], drawn(2, 12)
    params, rng = params_of(model), np.random.default_rng(1)
    whole = np.asarray(whole_of(model)(params, tokens))
    made, start, step = programs(model, ahead=3)
    back = jax.jit(made.rewind)
    _, memory = start(params, tokens[:, :5], None, 9)
    count = np.array([5, 5])
    while count.min() < 10:
        right = rng.integers(1, 4, 2)  # so many of the three are right, at least one
        new = np.stack([tokens[b, n : n + 3] for b, n in enumerate(count)])
        new = np.where(np.arange(3) < right[:, None], new, 9)
        live = (count < 10)[:, None] & np.ones((2, 3), bool)
        logits, memory = step(params, new, memory, live)
        for b, n in enumerate(count):
            if live[b, 0]:
                close(logits[b, : right[b]], whole[b, n : n + right[b]])
        count = count + np.where(live[:, 0], np.minimum(right, 10 - count), 0)
        memory = back(memory, count)
    assert memory["block_0"]["index"].tolist() == [10, 10]


def test_a_ring_takes_calls_of_any_size():
    """A layer with window 3 and three places: 7 + 1 + 4 tokens are the 12 at once."""
    layer = Attention(2, causal=True, window=3, rope=100.0)
    x = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    run = jax.jit(lambda x, **given: layer.apply(params, x, **given))
    whole, past, found = run(x), cache(2, 3, 2, 4, ring=True), []
    for a, b in ((0, 7), (7, 8), (8, 12)):
        y, past = run(x[:, a:b], cache=past)
        found.append(y)
    close(jnp.concatenate(found, 1), whole)
    assert past["k"].shape == (2, 3, 2, 4) and past["index"].tolist() == [12, 12]
    np.testing.assert_array_equal(np.sort(past["positions"]), [[9, 10, 11]] * 2)


def test_padding_within_a_text_takes_no_place_in_a_ring():
    layer = Attention(2, causal=True, window=4)
    x = np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    run = jax.jit(lambda x, **given: layer.apply(params, x, **given))
    real = np.array([[1, 1, 0, 0, 0, 1, 1, 0, 1]], bool)
    junk = np.where(real[..., None], x, 1e3)
    y, past = run(junk[:, :5], cache=cache(1, 4, 2, 4, ring=True), mask=real[:, :5])
    more, past = run(junk[:, 5:], cache=past, mask=real[:, 5:])
    both = np.concatenate([y, more], 1)[real]
    close(both, run(x[:, real[0]])[0])
    assert past["index"].tolist() == [5]


def test_a_ring_without_a_window_is_full_when_it_is_full():
    layer = Attention(2, causal=True)
    x = np.ones((2, 4, 8), np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    run = jax.jit(lambda x, **given: layer.apply(params, x, **given))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    _, past = run(x, cache=cache(2, 5, 2, 4, ring=True), mask=mask)
    y, after = run(x[:, :2], cache=past)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()  # 4 + 2 do not fit, 2 + 2 do
    for name in ("k", "v", "positions"):
        np.testing.assert_array_equal(after[name][0], past[name][0])
    with pytest.raises(ValueError, match="2 new tokens after 4 do not fit into a cache of length"):
        layer.apply(params, x[:, :2], cache=past)
    with pytest.raises(ValueError, match=r"expected \(b,\) both: a memory of cache\(..., ring=T"):
        rewind(cache(2, 5, 2, 4), np.array([1, 1]))
    with pytest.raises(ValueError, match=r"count \(3,\)"):
        rewind(past, np.array([1, 1, 1]))


def test_the_memory_of_a_window_does_not_grow_with_the_text():
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    model = GPT(**{**SIZE, "length": 4096}, **MODERN, window=8)
    made = [jax.eval_shape(lambda n=n: model.cache(2, n, ring=1)) for n in (64, 4096)]
    short, long = (sum(x.size for x in jax.tree.leaves(tree)) for tree in made)
    assert (
        short == long == 2 * (2 * (2 * 8 * 2 * 4 + 2 * 8) + 2)
    )  # k, v, positions, segments, index
    assert size(model.cache(2, 128)) > 10 * size(model.cache(2, 128, ring=1))
    mixed = model.clone(window=(8, None)).cache(2, 64, ring=3)
    assert [mixed[name]["k"].shape[1] for name in ("block_0", "block_1")] == [10, 64]
    assert model.cache(2, 5, ring=3)["block_0"]["k"].shape[1] == 5
    _, start, _ = programs(model)
    _, memory = start(params_of(model), drawn(2, 40), None, 100)
    assert memory["block_0"]["k"].shape[1] == 8
    with pytest.raises(ValueError, match="ring is 0, expected an integer >= 1"):
        model.cache(2, 5, ring=0)


def test_only_one_place_of_each_sequence():
    model, tokens = MODELS["learned"], drawn(2, 6)
    params = {"params": params_of(model)}
    y = jax.jit(lambda only: model.apply(params, tokens, only=only))(np.array([1, 5]))
    whole = whole_of(model)(params["params"], tokens)
    assert y.shape == (2, 1, V)
    close(y[:, 0], [whole[0, 1], whole[1, 5]])


def test_sliding_reads_the_last_tokens_anew():
    model, tokens = MODELS["learned"].clone(length=4), drawn(2, 9)
    params = params_of(model)
    run, made = whole_of(model), sliding(model)

    def last(row):
        text = np.zeros((1, 4), np.int32)
        text[0, : len(row[-4:])] = row[-4:]
        return np.asarray(run(params, text))[0, len(row[-4:]) - 1]

    start, step = jax.jit(made.start, static_argnums=3), jax.jit(made.step)
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    logits, memory = start(params, tokens[:, :5], mask, 99)
    rows = [list(tokens[0, :2]), list(tokens[1, :5])]
    close(logits, [last(row) for row in rows])
    new = drawn(2, 4, seed=3)
    logits, memory = step(params, new, memory)
    for i in range(4):
        rows = [[*row, x] for row, x in zip(rows, new[:, i])]
        close(logits[:, i], [last(row) for row in rows])
    assert made is sliding(model.clone()) and sliding(MODELS["lstm"]) is decoder(MODELS["lstm"])


def test_what_is_no_language_model():
    assert decoder(decoder(MODELS["learned"])) is decoder(MODELS["learned"])
    with pytest.raises(TypeError, match=r"expected a models.GPT, RecurrentLM or EncDec"):
        decoder(BERT(vocabulary=5))
    with pytest.raises(TypeError, match=r"expected a models.GPT, RecurrentLM or EncDec"):
        decoder(GPT)
    with pytest.raises(TypeError, match=r"expected a models.GPT"):
        sliding(MODELS["encdec"])
    with pytest.raises(ValueError, match="ahead is 0, expected an integer >= 1"):
        decoder(MODELS["learned"], ahead=0)
    with pytest.raises(TypeError, match=r"GPT: window is \[3, None\], which has no hash"):
        decoder(MODELS["modern"].clone(window=[3, None]))
    assert Decoder(len, len).continues
