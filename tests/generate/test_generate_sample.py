"""Sampling: greedy is the argmax of full passes, the law is the model's, rows are alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import counted
from writers import MODELS, SIZE, V, close, drawn, follows, laws, padded, params_of, whole_of

from nnkit.generate import (
    Decoder,
    chain,
    repetition_penalty,
    sample,
    sliding,
    temperature,
    top_k,
    top_p,
)
from nnkit.models import GPT

SMALL = GPT(vocabulary=4, length=8, width=8, depth=1, heads=2)


def greedy(model, row, n, **source):
    """The argmax of a full pass, n times; the pass has one shape."""
    run, params, text = whole_of(model), params_of(model), list(row)
    for _ in range(n):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(text)] = text
        at = len(text) - 1
        if source:
            tokens[0, len(text)], at = 0, len(text)
        logits = run(params, tokens, *source.values())
        text.append(int(np.argmax(logits[0, at])))
    return text[len(row) :]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["learned", "modern", "lstm"])
def test_greedy_is_the_argmax_of_full_passes(name, side):
    model, rows = MODELS[name], [drawn(2)[:2], drawn(5, seed=1)]
    found = sample(model, params_of(model), *padded(rows, 5, side), new_tokens=6)
    assert found.tokens.tolist() == [greedy(model, row, 6) for row in rows]
    assert found.lengths.tolist() == [6, 6] and np.asarray(found.mask).all()


def test_greedy_of_a_source():
    model, source = MODELS["encdec"], drawn(1, 4, seed=5)
    real = np.ones((1, 4), bool)
    found = sample(model, params_of(model), source, real, new_tokens=5)
    assert found.tokens[0].tolist() == greedy(model, [], 5, source=source, mask=real)


@pytest.mark.parametrize(
    "warp",
    [None, chain(repetition_penalty(1.5), temperature(1.3), top_p(0.9))],
    ids=["plain", "warped"],
)
def test_what_is_drawn_has_the_law_of_the_model(warp):
    prompt, b = np.array([1, 2, 3]), 4000
    tokens = np.broadcast_to(prompt, (b, 3))
    params = params_of(SMALL)
    found = sample(SMALL, params, tokens, new_tokens=3, key=jax.random.key(0), warp=warp)
    p = laws(SMALL, prompt, 3, warp)
    number = np.asarray(found.tokens) @ np.array([16, 4, 1])
    follows(number, p)
    joint = np.exp(np.asarray(found.warped_log_probs).sum(1))
    close(joint, p[number], 1e-4)
    if warp is not None:
        joint = np.exp(np.asarray(found.log_probs).sum(1))
    close(joint, laws(SMALL, prompt, 3, None)[number], 1e-4)


def test_a_row_is_what_it_is_alone():
    model, key = MODELS["modern"], jax.random.key(3)
    params, tokens = params_of(model), drawn(3, 4)
    options = {"new_tokens": 6, "warp": chain(temperature(1.2), top_k(8))}
    found = sample(model, params, tokens, key=key, **options)
    other = np.where(np.arange(3)[:, None] == 1, tokens, drawn(3, 4, seed=9))
    again = sample(model, params, other, key=key, **options)
    assert again.tokens[1].tolist() == found.tokens[1].tolist()
    assert again.tokens[0].tolist() != found.tokens[0].tolist()
    mine = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, 2))
    alone = sample(model, params, tokens[1:2], key=mine, **options)
    assert alone.tokens[0].tolist() == found.tokens[1].tolist()
    close(alone.log_probs[0], found.log_probs[1])
    same = sample(model, params, np.repeat(tokens[:1], 3, 0), key=key, **options).tokens
    assert len({tuple(row) for row in same.tolist()}) == 3  # one prompt, another text in each row


def test_the_same_shapes_compile_once():
    model = MODELS["learned"].clone()
    params, prompts = params_of(model), [drawn(2, 4), drawn(2, 4, seed=8)]
    keys = [jax.random.key(n) for n in range(2)]
    warps = [chain(temperature(t), top_k(k), top_p(p)) for t, k, p in ((0.5, 4, 0.9), (2, 9, 0.5))]
    sample(model, params, prompts[0], new_tokens=4, key=keys[0], warp=warps[0], end=3)
    with counted() as programs:
        sample(model, params, prompts[1], new_tokens=4, key=keys[1], warp=warps[1], end=5)
        sample(model.clone(), params, prompts[1], new_tokens=4, key=keys[1], warp=warps[0], end=5)
    assert programs.count == 0


def scripted(*texts, calls=None):
    """A decoder that writes these texts, one in each row."""
    script = jnp.asarray(np.array(texts, np.int32))

    def at(n):
        return jax.nn.one_hot(script[:, jnp.minimum(n, script.shape[1] - 1)], V) * 9

    def step(params, tokens, n):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(1))
        return at(n)[:, None], n + 1

    return Decoder(lambda params, tokens, mask, room: (at(0), jnp.ones((), int)), step, None, V)


def test_texts_end_and_the_program_with_the_last_of_them():
    calls = []
    made = scripted([4, 5, 2, 7, 7, 7, 7, 7], [4, 2, 7, 7, 2, 7, 7, 7], calls=calls)
    found = sample(made, {}, drawn(2, 3), new_tokens=8, end=2, pad=11)
    jax.effects_barrier()
    assert found.tokens.tolist() == [[4, 5, 2] + [11] * 5, [4, 2] + [11] * 6]
    assert found.lengths.tolist() == [3, 2] and len(calls) == 2
    assert (np.asarray(found.log_probs)[~np.asarray(found.mask)] == 0).all()
    assert (np.asarray(found.log_probs)[np.asarray(found.mask)] < 0).all()
    whole = sample(made, {}, drawn(2, 3), new_tokens=8)
    assert whole.lengths.tolist() == [8, 8]
    one = sample(made, {}, drawn(2, 3), new_tokens=1, end=4)
    assert one.tokens.tolist() == [[4], [4]] and one.mask.tolist() == [[True], [True]]


def test_longer_than_the_model_by_sliding():
    model = MODELS["learned"].clone(length=4)
    params, row = params_of(model), [1, 2, 3]
    found = sample(sliding(model), params, np.array([row]), new_tokens=7)
    for token in found.tokens[0].tolist():
        text = np.zeros((1, 4), np.int32)
        text[0, : len(row[-4:])] = row[-4:]
        assert token == int(np.argmax(whole_of(model)(params, text)[0, len(row[-4:]) - 1]))
        row = [*row, token]
    full = sample(model, params, [[1, 2, 3]], new_tokens=2)  # the last is never read
    assert full.tokens[0].tolist() == found.tokens[0, :2].tolist()


MODEL = GPT(**SIZE)
PARAMS = params_of(MODEL)
BAD = [
    ({"tokens": np.zeros((1, 10), int)}, ValueError, "a prompt of 10 tokens .*: 1 too many"),
    ({"tokens": np.zeros((1, 0), int)}, ValueError, r"expected \[b t\] with t >= 1"),
    ({"tokens": np.zeros(3, int)}, ValueError, r"tokens\[None\]"),
    ({"tokens": np.zeros((1, 3))}, TypeError, "expected integer ids"),
    ({"tokens": np.array([[1, 13]])}, ValueError, "tokens run from 1 to 13, but the voc"),
    ({"tokens": np.array([[-1, 3]])}, ValueError, "tokens run from -1 to 3"),
    ({"mask": np.array([[1, 0, 0], [0, 0, 0]])}, ValueError, "row 1 of the mask has no real token"),
    ({"mask": np.ones((2, 2), bool)}, ValueError, r"mask has shape \(2, 2\), expected \(2, 3\)"),
    ({"end": 13}, ValueError, "end is 13, but the vocabulary has 13 tokens"),
    ({"end": 1.0}, TypeError, "end is .*, expected the id of a token"),
    ({"pad": -1}, ValueError, "pad is -1, but the vocabulary"),
    ({"new_tokens": 0}, ValueError, "new_tokens is 0, expected an integer >= 1"),
    ({"key": 3}, TypeError, "key is 3, expected a typed key"),
    ({"key": jax.random.split(jax.random.key(0), 5)}, TypeError, "or one for each of 2 sequences"),
    ({"warp": 0.8}, TypeError, "warp is 0.8, expected a function"),
    ({"model": "gpt2"}, TypeError, "model is 'gpt2', expected a models.GPT, RecurrentLM"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(change, kind, said):
    given = {"model": MODEL, "params": PARAMS, "tokens": np.zeros((2, 3), int), "new_tokens": 8}
    with counted() as programs, pytest.raises(kind, match=said):
        sample(**given | change)
    assert programs.count == 0
