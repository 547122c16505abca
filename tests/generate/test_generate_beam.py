"""Beam search: all texts of a tiny vocabulary written out and sorted; else a slow beam."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from compiles import counted
from writers import MODELS, V, close, drawn, padded, params_of, whole_of

from nnkit.generate import beam, gnmt, power, sample
from nnkit.models import GPT, EncDec

N, END = 4, 0
GPT4 = GPT(vocabulary=4, length=8, width=8, depth=1, heads=2)
ENCDEC4 = EncDec(4, width=8, depth=1, heads=2, head_dim=4, hidden=12)
ROWS = [np.array([1, 2, 3]), np.array([3, 1])]


@functools.cache
def log_probs(model, row, seed):
    """{text so far: [v] log-probabilities of the next token} for all texts shorter than N."""
    texts = np.array(list(itertools.product(range(4), repeat=N)), np.int32)
    prompt = np.broadcast_to(ROWS[row], (len(texts), len(ROWS[row])))
    params = params_of(model, seed)
    if isinstance(model, EncDec):
        mask = np.ones(prompt.shape, bool)
        logits = whole_of(model)(params, texts, prompt, mask)
    else:
        whole = np.concatenate([prompt, texts], 1)
        logits = whole_of(model)(params, whole)[:, prompt.shape[1] - 1 :]
    found = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return {tuple(text[:n]): law[n] for text, law in zip(texts.tolist(), found) for n in range(N)}


def every_text(next_law, penalty, end):
    """(score, text) of all texts, the best first."""
    found = []

    def grow(text, log_p):
        if text and (text[-1] == end or len(text) == N):
            found.append((log_p / penalty(len(text)), text))
            return
        for token, more in enumerate(next_law[text]):
            grow((*text, token), log_p + more)

    grow((), 0.0)
    return sorted(found, reverse=True)


def slow_beam(next_law, penalty, end, width):
    """The same search with loops, and without ever stopping early."""
    alive, done = [(0.0, ())], []
    for n in range(1, N + 1):
        grown = [
            (log_p + more, (*text, token))
            for log_p, text in alive
            for token, more in enumerate(next_law[text])
        ]
        grown = sorted(grown, reverse=True)[: 2 * width]
        ended = [x for x in grown if x[1][-1] == end or n == N]
        done = sorted(done + [(x / penalty(n), text) for x, text in ended], reverse=True)[:width]
        alive = [x for x in grown if x not in ended][:width]
    return done


PENALTIES = {
    "gnmt": (gnmt(0.6), lambda n: ((5 + n) / 6) ** 0.6),
    "long": (gnmt(3.0), lambda n: ((5 + n) / 6) ** 3.0),
    "mean": (power(1.0), lambda n: n),
    "none": (power(0.0), lambda n: 1),
    "short": (power(-1.0), lambda n: 1 / n),
}


def texts(found, row):
    return [
        (float(score), tuple(tokens[real].tolist()))
        for score, tokens, real in zip(
            np.asarray(found.scores)[row],
            np.asarray(found.tokens)[row],
            np.asarray(found.mask)[row],
        )
    ]


def same(found, want):
    assert [text for _, text in found] == [text for _, text in want]
    close([score for score, _ in found], [score for score, _ in want])


@pytest.mark.parametrize("model", [GPT4, ENCDEC4], ids=["gpt", "encdec"])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_wide_beam_is_enumeration(model, name):
    fast, slow = PENALTIES[name]
    given = padded(ROWS, 3, "left" if model is GPT4 else "right")
    found = beam(
        model, params_of(model), *given, new_tokens=N, width=32, end=END, penalty=fast, pad=3
    )
    for row in range(2):
        want = every_text(log_probs(model, row, 0), slow, END)
        assert len(want) == 1 + 3 + 9 + 27 + 81
        same(texts(found, row), want[:32])
    pads = np.asarray(found.tokens)[~np.asarray(found.mask)]
    assert (pads == 3).all() and (pads.size or name == "mean")
    lengths = np.asarray(found.mask).sum(-1)
    close(found.log_probs, found.scores * np.vectorize(slow)(lengths).astype(np.float32))


@pytest.mark.parametrize("name", PENALTIES)
def test_a_narrow_beam_is_the_slow_one_and_stopping_early_changes_nothing(name):
    fast, slow = PENALTIES[name]
    given = padded(ROWS, 3, "right")
    for seed in range(8):
        params = params_of(GPT4, seed)
        found = beam(GPT4, params, *given, new_tokens=N, width=2, end=END, penalty=fast)
        for row in range(2):
            same(texts(found, row), slow_beam(log_probs(GPT4, row, seed), slow, END, 2))


def test_all_texts_where_there_are_fewer_than_the_width():
    found = beam(GPT4, params_of(GPT4), np.array([ROWS[0]]), new_tokens=1, width=6, end=END)
    assert np.asarray(found.mask).sum(-1).tolist() == [[1, 1, 1, 1, 0, 0]]
    assert np.isneginf(np.asarray(found.scores)[0, 4:]).all()
    close(np.exp(np.asarray(found.log_probs)).sum(), 1)


def test_a_beam_of_one_is_greedy_and_no_end_is_the_full_length():
    model, tokens = MODELS["modern"], drawn(2, 5)
    params = params_of(model)
    found = beam(model, params, tokens, new_tokens=6, width=1)
    greedy = sample(model, params, tokens, new_tokens=6)
    assert found.tokens[:, 0].tolist() == greedy.tokens.tolist()
    close(found.log_probs[:, 0], np.asarray(greedy.log_probs).sum(1))
    close(found.scores[:, 0], np.asarray(greedy.log_probs).mean(1))  # power(1.0) by default
    assert V == 13 and np.asarray(found.mask).all()


def test_the_same_shapes_compile_once():
    params, tokens = params_of(GPT4), np.array([ROWS[0]])
    powers, others = [power(1.0), power(0.3)], [params_of(GPT4, n) for n in range(2)]
    beam(GPT4, params, tokens, new_tokens=3, width=2, end=0, penalty=powers[0])
    with counted() as programs:
        beam(GPT4, others[1], tokens, new_tokens=3, width=2, end=1, penalty=powers[1])
    assert programs.count == 0


BAD = [
    ({"width": 0}, ValueError, "width is 0, expected an integer >= 1"),
    ({"end": 4}, ValueError, "end is 4, but the vocabulary has 4 tokens"),
    ({"penalty": 0.6}, TypeError, r"penalty is 0.6, expected a function such as gnmt\(0.6\)"),
    ({"new_tokens": 7}, ValueError, "need 9 to be read, expected at most length=8"),
]


@pytest.mark.parametrize(("change", "kind", "said"), BAD)
def test_wrong_input(change, kind, said):
    given = {"model": GPT4, "params": params_of(GPT4), "tokens": np.array([ROWS[0]])}
    with pytest.raises(kind, match=said):
        beam(**given | {"new_tokens": 2} | change)
    with pytest.raises(ValueError, match="alpha is nan, expected a finite number"):
        gnmt(np.nan)
    with pytest.raises(ValueError, match="alpha is inf"):
        power(np.inf)
