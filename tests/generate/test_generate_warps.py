"""Warps: each against its definition written out, and against transformers."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import counted

from nnkit.generate import chain, min_p, repetition_penalty, temperature, top_k, top_p
from nnkit.generate.inputs import warping

RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=(5, 17))).astype(np.float32)
SEEN = RNG.random((5, 17)) < 0.3
run = jax.jit(lambda warp, logits, seen: warp(logits, seen))


def softmax(z):
    z = np.exp(z - z.max())
    return z / z.sum()


def kept(warp, logits=LOGITS):
    """Which tokens stay, after a check that their logits stay as well."""
    z = np.asarray(run(warp, logits, SEEN))
    stays = np.isfinite(z)
    np.testing.assert_array_equal(z[stays], logits[stays])
    return stays


@pytest.mark.parametrize("k", [1, 3, 17, 40])
def test_top_k_is_the_k_likeliest(k):
    want = [np.isin(np.arange(17), np.argsort(-row)[:k]) for row in LOGITS]
    np.testing.assert_array_equal(kept(top_k(k)), want)


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_token_that_crosses(p):
    for row, stays in zip(LOGITS, kept(top_p(p))):
        prob, total, want = softmax(row.astype(np.float64)), 0.0, set()
        for token in np.argsort(-prob):
            want.add(int(token))
            total += prob[token]
            if total >= p:
                break
        assert set(np.flatnonzero(stays)) == want
        assert prob[stays].sum() >= p - 1e-12 and (p == 1 or len(want) < 17)
        if len(want) > 1:
            assert prob[stays].sum() - prob[stays].min() < p


def test_top_p_of_a_law_known():
    law = np.log(np.array([[0.125, 0.5, 0.25, 0.125]], np.float32))
    some = lambda p: np.isfinite(np.asarray(run(top_p(p), law, SEEN[:1, :4])))[0].tolist()
    assert some(0.4) == [False, True, False, False]
    assert some(0.5) == [False, True, False, False]  # reached exactly: nothing more
    assert some(0.51) == [False, True, True, False]
    assert some(0.76) == [True, True, True, True]  # the last two are equal: both stay


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_min_p_is_a_share_of_the_likeliest(p):
    for row, stays in zip(LOGITS, kept(min_p(p))):
        prob = softmax(row.astype(np.float64))
        np.testing.assert_array_equal(stays, prob >= p * prob.max())


def test_temperature_and_repetition():
    np.testing.assert_allclose(run(temperature(0.7), LOGITS, SEEN), LOGITS / 0.7, rtol=1e-6)
    z = np.asarray(run(repetition_penalty(1.3), LOGITS, SEEN))
    for i, j in np.ndindex(LOGITS.shape):
        x = float(LOGITS[i, j])
        want = x if not SEEN[i, j] else x / 1.3 if x > 0 else x * 1.3
        assert abs(z[i, j] - want) < 1e-6
    np.testing.assert_array_equal(run(repetition_penalty(1.0), LOGITS, SEEN), LOGITS)
    np.testing.assert_array_equal(run(chain(), LOGITS, SEEN), LOGITS)


def test_a_chain_goes_from_left_to_right_on_what_is_left():
    both = run(chain(top_k(2), top_p(0.5)), LOGITS, SEEN)
    step = run(top_p(0.5), run(top_k(2), LOGITS, SEEN), SEEN)
    np.testing.assert_array_equal(both, step)
    other = run(chain(top_p(0.5), top_k(2)), LOGITS, SEEN)
    assert not np.array_equal(np.isfinite(both), np.isfinite(other))


def test_ties_at_the_border_stay():
    even = np.zeros((1, 4), np.float32)
    for warp in (top_k(2), top_p(0.3), min_p(1.0)):
        assert np.isfinite(run(warp, even, SEEN[:1, :4])).all()


def test_other_numbers_compile_nothing():
    own = warping(lambda logits, seen: jnp.where(seen, logits, 0))
    make = lambda t, k, p: chain(temperature(t), top_k(k), top_p(p), own)
    warps = [make(0.5, 3, 0.9), make(0.7, 5, 0.2)]
    run(warps[0], LOGITS, SEEN)
    with counted() as programs:
        run(warps[1], LOGITS, SEEN)
    assert programs.count == 0


def test_warps_are_those_of_transformers():
    found = np.load(Path(__file__).parents[1] / "references" / "warps_transformers.npz")
    logits, seen = found["logits"], found["seen"]
    warps = {
        "temperature": temperature(0.6),
        "top_k": top_k(7),
        "top_p": top_p(0.8),
        "min_p": min_p(0.15),
        "repetition": repetition_penalty(1.4),
        "chain": chain(
            repetition_penalty(1.2), temperature(0.8), top_k(12), top_p(0.85), min_p(0.05)
        ),
    }
    assert sorted(warps) == sorted(set(found.files) - {"logits", "seen"})
    for name, warp in warps.items():
        mine = np.asarray(run(warp, logits, seen))
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(found[name]), err_msg=name)
        there = np.isfinite(mine)
        np.testing.assert_allclose(mine[there], found[name][there], rtol=1e-6, err_msg=name)


BAD = [
    (temperature, 0.0, "temperature is 0, expected > 0; for the likeliest token give key=None"),
    (temperature, -1.0, "temperature is -1.0, expected a finite number > 0"),
    (temperature, np.nan, "temperature is nan"),
    (top_k, 0, "top_k is 0, expected an integer >= 1; leave it out"),
    (top_k, 2.5, "top_k is 2.5, expected an integer"),
    (top_k, True, "top_k is True, expected an integer"),
    (top_p, 0.0, r"top_p is 0.0, expected a number in \(0, 1\]"),
    (top_p, 1.1, r"top_p is 1.1, expected a number in \(0, 1\]"),
    (top_p, np.nan, "top_p is nan"),
    (min_p, -0.1, r"min_p is -0.1, expected a number in \[0, 1\]"),
    (min_p, "0.1", r"min_p is '0.1'"),
    (repetition_penalty, 0.0, "repetition_penalty is 0.0, expected a finite number > 0"),
]


@pytest.mark.parametrize(("warp", "value", "said"), BAD)
def test_numbers_that_cannot_be(warp, value, said):
    with pytest.raises(ValueError, match=said):
        warp(value)


def test_what_is_no_warp():
    with pytest.raises(TypeError, match=r"chain got 0.8, expected warps such as temperature"):
        chain(0.8)
    with pytest.raises(TypeError, match=r"warp is 0.8, expected a function \(logits \[b v\]"):
        warping(0.8)
