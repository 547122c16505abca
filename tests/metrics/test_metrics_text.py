"""Metrics of text: exact means, named denominators, and BLEU by counting."""

import math
import sys
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import losses, metrics

HYPOTHESES = [
    "The cat sat on the mat.",
    "There is a cat, isn't there?",
    "A completely different sentence stands here today.",
]
REFERENCES = [
    "The cat is sitting on the mat.",
    "There is a cat on it, isn't there?",
    "A quite different sentence stands here now, today.",
]


def test_perplexity_is_of_all_tokens_not_the_mean_of_perplexities():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(2, t, 7)).astype(np.float32), t) for t in (1, 3, 9)]
    total, nats, n = None, 0.0, 0
    for z, t in batches:
        y = rng.integers(0, 7, (2, t))
        mean = losses.sequence_cross_entropy(z, y)
        mean = nk.Mean(mean.total.sum(), mean.weight.sum())
        total = mean if total is None else total + mean
        p = np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(-1, keepdims=True)
        nats -= np.log(np.take_along_axis(p, y[..., None], -1)).sum()
        n += y.size
    np.testing.assert_allclose(metrics.perplexity(total), math.exp(nats / n), rtol=1e-5)
    np.testing.assert_allclose(metrics.perplexity(nats / n), math.exp(nats / n), rtol=1e-6)
    np.testing.assert_allclose(metrics.bits_per_token(total), nats / n / math.log(2), rtol=1e-5)
    got = metrics.bits_per_byte(total, tokens=total.weight, bytes=100)
    np.testing.assert_allclose(got, nats / math.log(2) / 100, rtol=1e-5)


def test_a_uniform_model_of_bytes_needs_8_bits():
    nats = nk.Mean(jnp.float32(50 * math.log(256)), jnp.float32(50))
    np.testing.assert_allclose(metrics.perplexity(nats), 256, rtol=1e-5)
    np.testing.assert_allclose(metrics.bits_per_token(nats), 8, rtol=1e-6)
    np.testing.assert_allclose(metrics.bits_per_byte(nats, 50, 50), 8, rtol=1e-6)
    members = nk.Mean(jnp.array([0.0, 2.0]), jnp.array([2.0, 2.0]))  # of a sweep
    np.testing.assert_allclose(metrics.perplexity(members), [1, math.e], rtol=1e-6)


def test_losses_that_were_not_accumulated_are_an_error():
    for f in (metrics.perplexity, metrics.bits_per_token):
        with pytest.raises(ValueError, match=r"got an array of shape \(2,\), expected the accum"):
            f(jnp.ones(2))
    with pytest.raises(ValueError, match="bytes is 0, expected a finite number > 0"):
        metrics.bits_per_byte(1.0, 3, 0)


def slow_bleu(hypotheses, references):
    """Papineni et al.: clipped n-gram counts of the corpus, one reference, split at blanks."""
    log, lengths = [], np.zeros(2)
    for n in range(1, 5):
        right = count = 0
        for h, r in zip(hypotheses, references):
            grams = [Counter(zip(*(x.split()[i:] for i in range(n)))) for x in (h, r)]
            right += sum(min(k, grams[1][g]) for g, k in grams[0].items())
            count += sum(grams[0].values())
            lengths += [len(h.split()), len(r.split())] if n == 1 else 0
        log.append(math.log(right / count))
    return 100 * math.exp(min(0, 1 - lengths[1] / lengths[0]) + np.mean(log))


def test_bleu_by_counting_on_texts_that_are_tokens_already():
    h = ["the cat sat on the mat now", "a b c d e f"]
    r = ["the cat sat on the red mat now or so", "a b c d e g h"]
    found = metrics.bleu(h, r, tokenize="none")
    assert found.score == pytest.approx(slow_bleu(h, r))
    assert found.lengths == (13, 17)
    assert found.brevity == pytest.approx(math.exp(1 - 17 / 13))
    assert "tok:none" in found.signature


def test_bleu_names_tokenisation_and_case():
    plain = metrics.bleu(HYPOTHESES, REFERENCES)
    assert "tok:13a" in plain.signature
    assert "case:mixed" in plain.signature
    assert "nrefs:1" in plain.signature
    loud = [text.upper() for text in HYPOTHESES]
    assert metrics.bleu(loud, REFERENCES).score < plain.score
    lower = metrics.bleu(loud, REFERENCES, lowercase=True)
    assert lower.score >= plain.score
    assert "case:lc" in lower.signature
    assert metrics.bleu(HYPOTHESES, REFERENCES, tokenize="none").score != plain.score


def test_bleu_is_sacrebleus_with_several_references():
    import sacrebleu

    more = [[a, b] for a, b in zip(REFERENCES, HYPOTHESES[::-1])]
    want = sacrebleu.corpus_bleu(HYPOTHESES, [list(column) for column in zip(*more)])
    found = metrics.bleu(HYPOTHESES, more)
    assert found.score == want.score
    assert found.precisions == tuple(want.precisions)
    assert "nrefs:2" in found.signature


def test_bleu_wrong_input(monkeypatch):
    with pytest.raises(TypeError, match="hypotheses is one string, expected a list of texts"):
        metrics.bleu("a b", ["a b"])
    with pytest.raises(TypeError, match="references is one string"):
        metrics.bleu(["a b"], "a b")
    with pytest.raises(ValueError, match="3 hypotheses and 2 references, expected as many"):
        metrics.bleu(HYPOTHESES, REFERENCES[:2])
    with pytest.raises(ValueError, match=r"the texts have \[1, 2\] references, expected the same"):
        metrics.bleu(["a", "b"], [["a"], ["a", "b"]])
    with pytest.raises(ValueError, match="0 hypotheses and 0 references"):
        metrics.bleu([], [])
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ImportError, match=r"pip install 'nnkit-jax\[text\]'"):
        metrics.bleu(["a"], ["a"])
