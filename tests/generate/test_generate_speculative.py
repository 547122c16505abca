"""Speculative decoding: its law is the model's, by enumeration; greedy is the greedy text."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import counted
from writers import MODELS, close, drawn, follows, laws, padded, params_of, whole_of

from nnkit.generate import (
    acceptance,
    chain,
    prompt_lookup,
    repetition_penalty,
    residual,
    sample,
    speculative,
    temperature,
    top_k,
    top_p,
)
from nnkit.generate.guessers import behind
from nnkit.generate.speculative import verify
from nnkit.models import GPT

RNG = np.random.default_rng(0)
SMALL = GPT(vocabulary=4, length=8, width=8, depth=1, heads=2)
DRAFT = SMALL.clone(width=4)


def simplex(*shape):
    return RNG.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


def warped(z, *warps):
    return np.asarray(jax.nn.softmax(chain(*warps)(jnp.asarray(z), None), -1))


def pairs():
    """Pairs of laws [n v]: random, warped, certain guesses, no guess, equal, disjoint."""
    p, q, z = simplex(50, 7), simplex(50, 7), 2 * RNG.normal(size=(2, 50, 7)).astype(np.float32)
    certain = np.eye(7, dtype=np.float32)[RNG.integers(0, 7, 50)]
    warps = (temperature(0.6), top_k(5), top_p(0.8))
    apart = np.array([[0.5, 0.5, 0, 0]], np.float32)
    return {
        "random": (p, q),
        "warped": (warped(z[0], *warps), warped(z[1], *warps)),
        "warped model": (warped(z[0], *warps), q),
        "certain guess": (p, certain),
        "certain both": (certain[::-1], certain),
        "no guess": (p, 0 * p),
        "equal": (p, p),
        "disjoint": (apart, apart[:, ::-1]),
    }


@pytest.mark.parametrize("name", pairs())
def test_one_guess_keeps_the_law(name):
    """q(x) a(x) + (1 - sum q a) r(x), with a and r of the program, is p(x)."""
    p, q = pairs()[name]
    a, r = (np.asarray(f(p, q), np.float64) for f in (acceptance, residual))
    taken = (q * a).sum(-1, keepdims=True)
    law = q * a + (1 - taken) * r
    assert (abs(law - p).sum(-1) / 2).max() < 1e-6  # total variation
    close(taken[:, 0], np.minimum(p, q).sum(-1), 1e-6)
    assert ((a >= 0) & (a <= 1) & (r >= 0)).all()
    close(r.sum(-1), 1, 1e-6)


def test_a_round_of_guesses_keeps_the_joint_law():
    """Two guesses and a token more, over all texts of three: what a round writes, completed by the
    model itself, has the law of the model. Laws depend on the text so far."""
    v = 3
    p = [simplex(*[v] * n, v) for n in range(3)]  # p[n][text] of n tokens
    q = [simplex(*[v] * n, v) for n in range(2)]
    took = [np.asarray(acceptance(p[n], q[n]), np.float64) for n in range(2)]
    rest = [np.asarray(residual(p[n], q[n]), np.float64) for n in range(2)]
    law = np.zeros((v, v, v))
    for a, b in itertools.product(range(v), repeat=2):
        guess = float(q[0][a]) * float(q[1][a, b])
        law += guess * (1 - took[0][a]) * rest[0][:, None, None] * p[1][..., None] * p[2]
        law[a] += guess * took[0][a] * (1 - took[1][a, b]) * rest[1][a][:, None] * p[2][a]
        law[a, b] += guess * took[0][a] * took[1][a, b] * p[2][a, b]
    want = p[0][:, None, None] * p[1][..., None] * p[2]
    assert abs(law - want).sum() / 2 < 1e-6


def test_the_draws_have_the_probabilities_said():
    """`verify` itself: how many are taken, and what follows, for two guesses."""
    b, p, q = 40_000, simplex(3, 4), simplex(2, 4)
    keys = jax.random.split(jax.random.key(0), (3, b))
    draw = jax.jit(lambda keys, q: jax.vmap(lambda k: jax.random.categorical(k, jnp.log(q)))(keys))
    guess = jnp.stack([draw(keys[n], q[n]) for n in range(2)], 1)
    wide = lambda x: jnp.broadcast_to(x, (b, *x.shape))
    count, token = jax.jit(verify)(keys[2], wide(p), wide(q), guess)
    take = np.minimum(p[:2], q).sum(-1)
    rest = np.asarray(residual(p[:2], q))
    parts = [1 - take[0], take[0] * (1 - take[1]), take[0] * take[1]]
    law = np.concatenate([part * r for part, r in zip(parts, [*rest, p[2]])])
    follows(np.asarray(count) * 4 + np.asarray(token), law.astype(np.float64))


WARPS = {
    "plain": None,
    "warped": chain(repetition_penalty(1.5), temperature(1.3), top_p(0.9)),
}


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_texts_have_the_law_of_the_model(kind, warp):
    """Three tokens from one prompt, 4,000 times; what is written last may be cut from a round."""
    prompt, b, warp = np.array([1, 2, 1]), 4000, WARPS[warp]
    tokens, options = np.broadcast_to(prompt, (b, 3)), {"new_tokens": 3, "ahead": 2, "warp": warp}
    options["key"] = jax.random.key(5)
    if kind == "draft":
        found = speculative(SMALL, params_of(SMALL), DRAFT, params_of(DRAFT), tokens, **options)
    else:
        found = prompt_lookup(SMALL, params_of(SMALL), tokens, **options)
    number = np.asarray(found.tokens) @ np.array([16, 4, 1])
    follows(number, laws(SMALL, prompt, 3, warp))
    close(np.exp(np.asarray(found.log_probs).sum(1)), laws(SMALL, prompt, 3, None)[number], 1e-4)
    assert 0 < found.accepted.sum() < found.guessed.sum()


NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("learned", "alibi")]


@pytest.mark.parametrize("name", ["modern", *NIGHTLY])
def test_greedy_is_the_greedy_text_of_the_model(name):
    model, rows = MODELS[name], [drawn(2)[:2], drawn(5, seed=1)]
    params, small = params_of(model), model.clone(depth=1)
    options = {"new_tokens": 12, "warp": repetition_penalty(1.05)}
    want = sample(model, params, *padded(rows, 5, "left"), **options)
    end = int(want.tokens[0, 3])
    for side in ("left", "right"):
        given = padded(rows, 5, side)
        found = speculative(model, params, small, params_of(small), *given, **options, ahead=3)
        assert found.tokens.tolist() == want.tokens.tolist()
        close(found.log_probs, want.log_probs)
        found = prompt_lookup(model, params, *given, **options, ahead=3, ngram=2, end=end, pad=1)
        ended = sample(model, params, *given, **options, end=end, pad=1)
        assert found.tokens.tolist() == ended.tokens.tolist()
        np.testing.assert_array_equal(found.mask, ended.mask)


@pytest.mark.parametrize("key", [None, 0])
def test_a_draft_that_is_the_model_is_always_right(key):
    model, tokens = MODELS["modern"], drawn(2, 4)
    key = None if key is None else jax.random.key(key)
    params = params_of(model)
    found = speculative(model, params, model, params, tokens, new_tokens=13, ahead=3, key=key)
    assert found.rate.tolist() == [1.0, 1.0]
    assert int(found.rounds) == 3  # 1 + 3 * (3 + 1) tokens
    assert found.guessed.tolist() == [9, 9]


def test_a_text_that_repeats_itself_is_looked_up():
    """A model that counts 0 1 2 3 0 1 ...: after one round of the cycle all is known."""
    model = GPT(vocabulary=4, length=64, width=8, depth=1, heads=1, learned=False)
    tree = jax.tree.map(np.zeros_like, params_of(model))
    code = np.eye(4, 8, dtype=np.float32) - 0.125
    tree["embed"]["embedding"] = code
    tree["norm"]["scale"] = np.ones(8, np.float32)
    free = model.clone(tied=False)
    tree["head"] = {"kernel": np.stack([code[(i - 1) % 4] for i in range(4)], 1)}
    found = prompt_lookup(free, tree, np.array([[0, 1, 2, 3, 0]]), new_tokens=21, ahead=4)
    assert found.tokens[0].tolist() == [(i + 1) % 4 for i in range(21)]
    assert int(found.rounds) == 4 and float(found.rate[0]) == 1.0


def test_look_up_takes_the_longest_and_the_latest():
    text = np.array([[1, 2, 3, 9, 2, 3, 8, 3, 7, 2, 3, 0], [5, 6, 7, 8, 9, 1, 0, 0, 0, 0, 0, 0]])
    found = lambda n, sizes: behind(jnp.asarray(text), jnp.array(sizes), n).tolist()
    assert found(3, [11, 6]) == [6, 6]  # "2 3" at 4, the latest; nothing found: the size
    assert found(1, [11, 6]) == [8, 6]  # "3" at 7
    assert found(3, [6, 1]) == [3, 1]
    assert found(99, [11, 6]) == [6, 6]


def test_rows_are_alone_and_the_same_shapes_compile_once():
    params, small = params_of(SMALL), params_of(DRAFT)
    warps = [temperature(1.2), temperature(0.9)]
    keys = [jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.array([2, n]))
            for n in (5, 6)]  # fmt: skip
    tokens = [np.array([[1, 2, 3], [3, 1, 0]]), np.array([[1, 2, 3], [0, 0, 1]])]
    run = lambda i, warp: speculative(
        SMALL, params, DRAFT, small, tokens[i], new_tokens=5, key=keys[i], warp=warp, ahead=2
    )
    found = run(0, warps[0])
    with counted() as programs:
        other = run(1, warps[0])
        run(1, warps[1])
    assert programs.count == 0
    assert found.tokens[0].tolist() == other.tokens[0].tolist()


MODEL, PARAMS = MODELS["learned"], params_of(MODELS["learned"])
BAD = [
    ({"draft": DRAFT}, ValueError, "the draft has a vocabulary of 4 tokens, the model of 13"),
    ({"draft": MODELS["lstm"]}, ValueError, "the draft is RecurrentLM, expected a models.GPT"),
    ({"model": MODELS["encdec"]}, ValueError, "the model is EncDec.*must be taken back"),
    ({"ahead": 0}, ValueError, "ahead is 0, expected an integer >= 1"),
    ({"new_tokens": 15}, ValueError, "need 17 to be read, expected at most length=16"),
    ({"draft": MODEL.clone(length=9)}, ValueError, "need 10 to be read, expected at most length=9"),
    ({"key": 1}, TypeError, "key is 1, expected a typed key"),
    ({"end": 13}, ValueError, "end is 13"),
]


@pytest.mark.parametrize(("change", "kind", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(change, kind, said):
    given = {"model": MODEL, "params": PARAMS, "draft": MODEL, "draft_params": PARAMS}
    given |= {"tokens": np.zeros((1, 3), int), "new_tokens": 8}
    with counted() as programs, pytest.raises(kind, match=said):
        speculative(**given | change)
    with pytest.raises(ValueError, match="ngram is 0, expected an integer >= 1"):
        prompt_lookup(MODEL, PARAMS, given["tokens"], new_tokens=3, ngram=0)
    assert programs.count == 0


def test_log_probs_are_those_of_the_full_pass():
    tokens = drawn(1, 3)
    found = prompt_lookup(MODEL, PARAMS, tokens, new_tokens=9, key=jax.random.key(1))
    text = np.concatenate([tokens, found.tokens], 1)
    log_p = np.asarray(jax.nn.log_softmax(whole_of(MODEL)(PARAMS, text)))[0]
    close(found.log_probs[0], [log_p[i - 1, text[0, i]] for i in range(3, 12)])
