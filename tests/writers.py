"""Tiny language models with all their weights drawn, for the tests of generate."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nnkit.layers import LSTM, RMSNorm, silu
from nnkit.models import GPT, EncDec, RecurrentLM
from nnkit.models.encdec import shift_right

V = 13
SIZE = {"vocabulary": V, "length": 16, "width": 16, "depth": 2, "heads": 4, "hidden": 24}
MODERN = {
    "norm": RMSNorm,
    "learned": False,
    "rope": 100.0,
    "kv_heads": 2,
    "activation": silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
MODELS = {
    "learned": GPT(**SIZE),
    "modern": GPT(**SIZE, **MODERN, window=(3, None), qk_norm=True, softcap=4.0),
    "alibi": GPT(**SIZE, learned=False, alibi=True, tied=False, window=(None, 4)),
    "experts": GPT(**SIZE, **MODERN, experts=4, top_k=2, with_aux=True, window=2),
    "lstm": RecurrentLM(V, LSTM, width=10, depth=2),
    "encdec": EncDec(
        V, width=16, depth=1, heads=2, head_dim=6, hidden=24, buckets=6, max_distance=8
    ),
}


def drawn(*shape, seed=0, top=V):
    """[*shape] token ids below `top`."""
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.int32)


@functools.cache
def params_of(model, seed=0):
    """Parameters of a model, nothing at a start of 0 or 1."""
    rng, one = np.random.default_rng(seed), np.zeros((1, 2), np.int32)
    inputs = (one, one) if isinstance(model, EncDec) else (one,)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    place = lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(place, shapes)["params"]


@functools.cache
def whole_of(model):
    """(params, tokens [b t]) -> logits [b t v] of one full pass; with a source before the tokens:
    (params, tokens [b t], source [b s], mask [b s]) -> logits [b t v] of the target tokens."""

    @jax.jit
    def run(params, tokens, *source):
        tree = {"params": params}
        if isinstance(model, EncDec):
            return model.apply(tree, source[0], shift_right(tokens, 0), *source[1:])
        y = model.apply(tree, tokens)
        return y[0] if isinstance(y, tuple) else y

    return run


def padded(rows, width, side, fill=0):
    """(tokens [b width], mask) of rows of ids, padded on a side."""
    tokens = np.full((len(rows), width), fill, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, row in enumerate(rows):
        at = slice(width - len(row), None) if side == "left" else slice(len(row))
        tokens[n, at], mask[n, at] = row, True
    return tokens, mask


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def laws(model, prompt, n, warp):
    """[v^n] the probability of every text of n tokens, in order, by full passes over all."""
    v, warp = model.vocabulary, warp or (lambda z, seen: z)
    texts = np.array(list(itertools.product(range(v), repeat=n)), np.int32)
    tokens = np.concatenate([np.broadcast_to(prompt, (len(texts), len(prompt))), texts], 1)
    logits = np.asarray(whole_of(model)(params_of(model), tokens))
    p = np.ones(len(texts))
    for i in range(n):
        at = len(prompt) + i
        seen = np.zeros((len(texts), v), bool)
        np.put_along_axis(seen, tokens[:, :at], True, 1)
        law = np.asarray(jax.nn.softmax(warp(jnp.asarray(logits[:, at - 1]), seen), -1), float)
        p *= np.take_along_axis(law, tokens[:, at : at + 1], 1)[:, 0]
    assert abs(p.sum() - 1) < 1e-5
    return p


def follows(numbers, p):
    """Do draws [b] of 0..len(p)-1 follow the law p? chi-square, rare ones together."""
    count = np.bincount(numbers, minlength=len(p))
    assert (count[p == 0] == 0).all()
    often = p * len(numbers) > 5
    seen, want = [*count[often], count[~often].sum()], [*p[often], p[~often].sum()]
    if want[-1] == 0:
        seen, want = seen[:-1], want[:-1]
    assert stats.chisquare(seen, len(numbers) * np.array(want) / sum(want)).pvalue > 1e-3
