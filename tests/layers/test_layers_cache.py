"""The attention layer: heads, rotations, weights, and decoding with a cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import Attention, attention, cache

B, T, WIDTH = 2, 7, 8
X = np.random.default_rng(0).normal(size=(B, T, WIDTH)).astype(np.float32)
LAYERS = {
    "plain": Attention(4, causal=True),
    "rope, grouped, window": Attention(
        4, kv_heads=2, causal=True, rope=100.0, window=3, qk_norm=True, use_bias=False
    ),
    "one key head, softcap": Attention(4, kv_heads=1, causal=True, rope=1e4, softcap=1.0),
}


def memory(layer, length, batch=B):
    return cache(batch, length, layer.kv_heads or layer.heads, WIDTH // layer.heads)


@functools.cache
def started(name):
    layer = LAYERS[name]
    params = jax.device_get(jax.jit(layer.init)(jax.random.key(1), X))
    return layer, params, jax.jit(lambda p, x, **k: layer.apply(p, x, **k))


def test_it_is_projections_around_the_function():
    _, params, run = started("plain")
    p = params["params"]
    part = lambda n: (X @ p[n]["kernel"] + p[n]["bias"]).reshape(B, T, 4, 2)
    y = jax.jit(lambda *a: attention(*a, causal=True))(part("query"), part("key"), part("value"))
    y = np.asarray(y).reshape(B, T, WIDTH) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(run(params, X), y, atol=1e-6)


def test_qk_norm_makes_the_scale_of_queries_irrelevant():
    _, params, run = started("rope, grouped, window")
    louder = jax.tree.map(lambda x: x, params)
    louder["params"]["query"]["kernel"] = 50 * params["params"]["query"]["kernel"]
    np.testing.assert_allclose(run(louder, X), run(params, X), atol=1e-4)


@pytest.mark.parametrize("name", list(LAYERS))
def test_decoding_one_by_one_is_the_whole_at_once(name):
    layer, params, run = started(name)
    whole, past = run(params, X), memory(layer, T + 2)
    for i in range(T):
        y, past = run(params, X[:, i : i + 1], cache=past)
        np.testing.assert_allclose(np.asarray(y)[:, 0], np.asarray(whole)[:, i], atol=1e-5)
    assert int(past["index"]) == T
    first, past = run(params, X[:, :5], cache=memory(layer, T))
    rest, _ = run(params, X[:, 5:], cache=past)
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_prompts_of_different_length_decode_as_if_alone(name, side):
    """A padded batch, then tokens one by one: each sequence as without padding or cache."""
    layer, params, run = started(name)
    prompt, lengths = 4, (2, 4)
    mask = np.arange(prompt)[None] < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if side == "left" else mask
    x = np.full((B, prompt, WIDTH), 1e3, np.float32)
    for n, length in enumerate(lengths):
        x[n, mask[n]] = X[n, :length]
    y, past = run(params, x, cache=memory(layer, prompt + 3), mask=mask)
    found = [list(np.asarray(y)[n, mask[n]]) for n in range(B)]
    for step in range(3):
        new = np.stack([X[n, length + step] for n, length in enumerate(lengths)])[:, None]
        y, past = run(params, new, cache=past)
        for n in range(B):
            found[n].append(np.asarray(y)[n, 0])
    whole = np.asarray(run(params, X))  # causal: what comes later does not matter
    for n, length in enumerate(lengths):
        np.testing.assert_allclose(np.stack(found[n]), whole[n, : length + 3], atol=1e-5)


def test_segments_are_remembered():
    layer, params, run = started("plain")
    segments = np.array([[0, 0, 0, 1, 1, 1, 1]] * B, np.int32)
    whole = np.asarray(run(params, X, segments=segments))
    _, past = run(params, X[:, :5], cache=memory(layer, T), segments=segments[:, :5])
    y, _ = run(params, X[:, 5:], cache=past, segments=segments[:, 5:])
    np.testing.assert_allclose(y, whole[:, 5:], atol=1e-5)
    np.testing.assert_allclose(whole[:, 3:], run(params, X[:, 3:]), atol=1e-5)


def test_a_full_cache_is_an_error_or_nan_and_is_not_overwritten():
    layer, params, run = started("plain")
    _, past = run(params, X[:, :4], cache=memory(layer, 5))
    with pytest.raises(
        ValueError, match="2 new tokens after 4 do not fit into a cache of length 5"
    ):
        layer.apply(params, X[:, :2], cache=past)
    y, after = run(params, X[:, :2], cache=past)
    assert np.isnan(y).all()
    for name in ("k", "v", "positions"):
        np.testing.assert_array_equal(after[name], past[name])
    assert np.isnan(run(params, X[:, :1], cache=after)[0]).all()
    with pytest.raises(ValueError, match="6 new tokens"):
        run(params, X[:, :6], cache=memory(layer, 5))


def test_a_cache_scans():
    layer, params, run = started("rope, grouped, window")

    def step(past, x):
        y, past = layer.apply(params, x[:, None], cache=past)
        return past, y[:, 0]

    _, y = jax.jit(lambda past: jax.lax.scan(step, past, X.swapaxes(0, 1)))(memory(layer, T))
    np.testing.assert_allclose(np.asarray(y).swapaxes(0, 1), run(params, X), atol=1e-5)


def test_weights_and_dropout():
    layer, params, run = started("plain")
    y, p = jax.jit(lambda x: layer.apply(params, x, probabilities=True))(X)
    np.testing.assert_allclose(y, run(params, X), atol=1e-6)
    np.testing.assert_allclose(np.asarray(p).sum(-1), np.ones((B, 4, T)), rtol=1e-6)
    assert np.all(np.triu(np.asarray(p)[0, 0], 1) == 0)
    noisy = layer.clone(dropout=0.5)
    draw = jax.jit(lambda key: noisy.apply(params, X, train=True, rngs={"dropout": key}))
    a, b = (np.asarray(draw(jax.random.key(n))) for n in range(2))
    assert np.isfinite(a).all() and not np.allclose(a, b)


@pytest.mark.parametrize("train", [False, True])
def test_padding_of_a_context_does_not_matter(train):
    layer = Attention(2, dropout=0.3)
    context = np.random.default_rng(1).normal(size=(B, 5, 6)).astype(np.float32)
    params = jax.device_get(jax.jit(layer.init)(jax.random.key(1), X, context))
    mask = np.arange(5)[None] < np.array([3, 5])[:, None]
    junk = np.where(mask[..., None], context, np.float32(np.nan))

    @jax.jit
    def run(x, context, mask):
        rngs = {"dropout": jax.random.key(0)}
        return layer.apply(params, x, context, mask=mask, train=train, rngs=rngs)

    np.testing.assert_array_equal(run(X, junk, mask), run(X, context, mask))
    if not train:
        alone = run(X[:1], context[:1, :3], mask[:1, :3])
        np.testing.assert_allclose(run(X, context, mask)[:1], alone, atol=1e-6)


small = functools.partial(Attention, 4, causal=True)
past = cache(B, T, 4, 2)
WRONG = {
    "heads": (Attention(3), {}, "width 8 of x is not divisible by heads=3; use a width of 6 or 9"),
    "no heads": (Attention(0), {}, "heads is 0, expected an integer >= 1"),
    "kv_heads": (Attention(4, kv_heads=3), {}, "heads=4 is not divisible by kv_heads=3"),
    "odd": (Attention(8, rope=1e4), {}, "head size is 1, expected it even"),
    "dropout": (Attention(4, dropout=1.5), {}, r"dropout is 1.5, expected a share in \[0, 1\)"),
    "context": (small(rope=1e4), {"context": X}, "causal, rope given with a context"),
    "cache": (Attention(4), {"cache": past}, "a cache needs causal=True"),
    "other cache": (small(), {"cache": cache(B, T, 2, 4)}, r"expected \(2, length, 4, 2\)"),
    "mask": (small(), {"cache": past, "mask": jnp.ones((B, 3), bool)}, "which of the new tokens"),
    "positions": (small(), {"cache": past, "positions": jnp.arange(3)}, r"expected \(7,\) or"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_input_says_what_to_do(name):
    layer, options, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        layer.init(jax.random.key(0), X, **options)


def test_wrong_ranks_and_sizes_are_errors():
    with pytest.raises(ValueError, match=r"x has shape \(7, 8\), expected \(b t d\)"):
        small().init(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="length is 0, expected an integer >= 1"):
        cache(B, 0, 4, 2)
