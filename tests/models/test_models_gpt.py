"""GPT: no token sees the future, padding and packing change nothing, a cache changes nothing."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import losses
from nnkit.core.means import Mean
from nnkit.layers import RMSNorm, alibi, silu
from nnkit.models.gpt import GPT, SIZES

SIZE = {"vocabulary": 13, "length": 12, "width": 16, "depth": 2, "heads": 4, "hidden": 24}
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
VARIANTS = {
    "learned": GPT(**SIZE, init_scale=0.3, tied=False),
    "modern": GPT(**SIZE, **MODERN, init_scale=0.3, window=(3, None), qk_norm=True, softcap=4.0),
    "alibi": GPT(**SIZE, init_scale=0.3, tied=False, learned=False, alibi=True),
    "experts": GPT(**SIZE, **MODERN, init_scale=0.3, experts=4, top_k=2),
}
variants = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def made(name):
    """A variant, its parameters (nothing at a start of 0 or 1), its compiled pass and step."""
    model, rng = VARIANTS[name], np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    place = lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.normal(size=x.shape), x.dtype)
    params = jax.tree.map(place, shapes)
    run = jax.jit(lambda tokens, mask: model.apply(params, tokens, mask))
    step = jax.jit(lambda tokens, mask, cache: model.apply(params, tokens, mask, cache=cache))
    return model, params, run, step


def within(model, params, tokens):
    """The intermediates."""
    return jax.jit(lambda ids: model.apply(params, ids, intermediates=True)[1])(tokens)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 13, shape), jnp.int32)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# --- what a token sees ---


@variants
def test_no_token_sees_the_future_by_gradient(name):
    model, params, *_ = made(name)
    tokens = jnp.arange(9)[None]  # one row of the table for every place; the head is another matrix
    some = jnp.asarray(np.random.default_rng(1).normal(size=13), jnp.float32)

    def at(table, i):
        tree = {"params": {**params["params"], "embed": {"embedding": table}}}
        return model.apply(tree, tokens)[0, i] @ some

    table = params["params"]["embed"]["embedding"]
    slope = jax.jit(jax.grad(at))
    for i in (0, 3, 8):
        size = np.abs(np.asarray(slope(table, i))).max(1)  # [vocabulary]
        assert (size[i + 1 :] == 0).all()
        assert (size[: i + 1] > 0).all()  # window 3 and none: the second block sees everything


def test_windows_reach_as_far_as_they_say():
    model = VARIANTS["modern"].clone(window=3)
    inside = within(model, made("modern")[1], drawn(1, 9))
    i, j = np.mgrid[:9, :9]
    seen = (j <= i) & (i - j < 3)
    for n in range(2):
        p = np.asarray(inside[f"attention_{n}"])[0]
        assert (p[:, ~seen] == 0).all() and (p[:, seen] > 0).all()


@variants
def test_padding_changes_nothing(name):
    *_, run, _ = made(name)
    tokens, n, all_ = drawn(2, 9), 5, jnp.ones((2, 9), bool)
    whole = run(tokens, all_)
    mask = jnp.broadcast_to(jnp.arange(9) < n, (2, 9))
    right = run(tokens, mask)
    close(right[:, :n], whole[:, :n])  # no token sees the future: the first ones are a text alone
    other = run(jnp.where(mask, tokens, 7), mask)
    assert (other[:, :n] == right[:, :n]).all()  # what stands in padding does not matter at all
    left = run(jnp.roll(jnp.where(mask, tokens, 7), 9 - n, 1), mask[:, ::-1])
    close(left[:, 9 - n :], whole[:, :n])


@variants
def test_packed_texts_are_texts_alone(name):
    model, params, run, _ = made(name)
    tokens = drawn(2, 9)
    segments = jnp.array([[4, 4, 4, 9, 9, 9, 9, 2, 2]] * 2)
    packed = jax.jit(lambda s: model.apply(params, tokens, segments=s))(segments)
    for a, b in ((0, 3), (3, 7), (7, 9)):
        alone = run(jnp.roll(tokens, -a, 1), jnp.ones((2, 9), bool))
        close(packed[:, a:b], alone[:, : b - a])


# --- decoding with a cache ---


@variants
@pytest.mark.parametrize("padded", ["", "left", "right"])
def test_decoding_with_a_cache_is_the_whole_forward_pass(name, padded):
    """A prompt of four places, then one token after the other; prompts of 2 and 4 if padded."""
    model, _, run, step = made(name)
    tokens, lengths = drawn(2, 9), np.array([2 if padded else 4, 4])
    whole = run(tokens, jnp.ones((2, 9), bool))
    places = np.arange(4) - (4 - lengths[:, None]) * (padded == "left")  # [b 4]
    mask = (places >= 0) & (places < lengths[:, None])
    prompt = np.where(mask, np.take_along_axis(np.asarray(tokens), places % 4, 1), 0)
    logits, cache = step(jnp.asarray(prompt), jnp.asarray(mask), model.cache(2, 12))
    for b in range(2):
        close(logits[b][mask[b]], whole[b, : lengths[b]])
    for i in range(4):
        new = jnp.stack([tokens[b, n + i] for b, n in enumerate(lengths)])[:, None]
        logits, cache = step(new, jnp.ones((2, 1), bool), cache)
        close(logits[:, 0], jnp.stack([whole[b, n + i] for b, n in enumerate(lengths)]))
    assert int(cache["block_0"]["index"]) == 8


def test_a_full_cache_is_an_error_or_nan():
    model, params, _, step = made("modern")
    _, cache = step(drawn(1, 3), jnp.ones((1, 3), bool), model.cache(1, 4))
    with pytest.raises(ValueError, match="2 new tokens after 3 do not fit into a cache"):
        model.apply(params, drawn(1, 2), cache=cache)
    assert np.isnan(np.asarray(step(drawn(1, 2), jnp.ones((1, 2), bool), cache)[0])).all()
    with pytest.raises(ValueError, match=r"a cache for 13 tokens, expected at most length=12"):
        model.cache(1, 13)
    with pytest.raises(ValueError, match=r"the cache has \['block_0'\], expected one entry"):
        model.apply(params, drawn(1, 2), cache={"block_0": cache["block_0"]})
    with pytest.raises(ValueError, match="segments with a cache need positions"):
        model.apply(params, drawn(1, 1), segments=jnp.ones((1, 1), jnp.int32), cache=cache)


# --- what it is made of ---


def test_a_tied_head_is_one_leaf():
    tokens = jnp.array([[1, 2]])
    tied = jax.jit(GPT(**SIZE).init)(jax.random.key(0), tokens)["params"]
    free = made("learned")[1]["params"]
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    assert "head" not in tied and shapes(tied).count((13, 16)) == 1
    assert free["head"]["kernel"].shape == (16, 13)
    model = GPT(**SIZE)
    grad = jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, tokens)).sum()))(tied)
    assert (np.abs(grad["embed"]["embedding"]).max(1) > 0).all()  # rows not read have one as well


def test_it_starts_as_gpt2_does_or_as_the_identity():
    model = GPT(vocabulary=300, length=64, width=64, depth=2, heads=2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    std = lambda path: float(np.std(dict(nk.core.trees.paths(params))[path]))
    assert abs(std("embed/embedding") - 0.02) < 1e-3
    assert abs(std("block_1/attention/query/kernel") - 0.02) < 1e-3
    assert abs(std("block_1/attention/out/kernel") - 0.02 / 2) < 5e-4  # / sqrt(2 depth)
    assert abs(std("block_1/mlp/down/kernel") - 0.02 / 2) < 5e-4
    model = GPT(**SIZE, zero_init=True)
    inside = within(model, jax.jit(model.init)(jax.random.key(0), drawn(1, 5)), drawn(1, 5))
    close(inside["block_1"], inside["embedded"], 0)


def test_alibi_is_a_penalty_on_distance():
    model, params, *_ = made("alibi")
    inside = within(model, params, drawn(1, 6))
    block = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]["block_0"])
    x = np.asarray(inside["embedded"][0], np.float64)
    norm = block["attention_norm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * norm["scale"] + norm["bias"]
    q, k = (
        x @ block["attention"][n]["kernel"] + block["attention"][n]["bias"]
        for n in ("query", "key")
    )
    for h, slope in enumerate(np.asarray(alibi(4), np.float64)):
        for i in range(6):
            z = [
                q[i, 4 * h : 4 * h + 4] @ k[j, 4 * h : 4 * h + 4] / 2 - slope * (i - j)
                for j in range(i + 1)
            ]
            p = np.exp(z) / np.exp(z).sum()
            close(inside["attention_0"][0, h, i, : i + 1], p)


def test_caps_bound_what_they_cap():
    model = VARIANTS["learned"].clone(final_softcap=0.5)
    y = jax.jit(model.apply)(made("learned")[1], drawn(2, 5))
    assert 0.4 < float(jnp.abs(y).max()) <= 0.5


def test_experts_hand_their_losses_to_the_objective():
    model = VARIANTS["experts"].clone(with_aux=True, depth=1)
    batch = {"tokens": drawn(3, 8), "real": jnp.arange(8)[None] < jnp.array([[8], [5], [6]])}

    def loss(outputs, tokens, real):
        logits, aux = outputs
        mean = losses.sequence_cross_entropy(logits[:, :-1], tokens[:, 1:], real[:, 1:])
        aux = 0.01 * aux["balance"] + 0.001 * aux["z"]  # [b]
        return Mean(mean.total + aux * mean.weight, mean.weight)

    task = nk.supervised(model, loss, x=("tokens", "real"), y=("tokens", "real"))
    step = nk.step(nk.gradient(task), optax.adam(3e-3))
    state = nk.init(step, jax.random.key(0), batch)
    update, seen = jax.jit(step.update), []
    for _ in range(8):
        state, log = update(state, batch)
        seen.append(float(log["loss"].value))
    assert seen[-1] < seen[0] - 0.1
    params = made("experts")[1]["params"]

    @jax.jit
    def run(p):
        (logits, aux), inside = model.apply(
            {"params": p}, batch["tokens"], batch["real"], intermediates=True
        )
        return aux["balance"][0], (logits, aux, inside)

    grad, (logits, aux, inside) = jax.grad(run, has_aux=True)(params)
    assert aux["balance"].shape == (3,) and logits.shape == (3, 8, 13)
    close(inside["z"], aux["z"], 0)
    assert float(jnp.abs(grad["block_0"]["mlp"]["router"]["kernel"]).max()) > 0
    with pytest.raises(ValueError, match="with_aux=True needs experts"):
        GPT(**SIZE, with_aux=True).init(jax.random.key(0), drawn(1, 2))


def test_dropout_is_off_unless_training():
    model, (_, params, run, _) = VARIANTS["learned"].clone(dropout=0.5), made("learned")
    tokens = drawn(1, 6)
    noisy = jax.jit(lambda key: model.apply(params, tokens, train=True, rngs={"dropout": key}))
    close(jax.jit(model.apply)(params, tokens), run(tokens, jnp.ones((1, 6), bool)))
    a, b = noisy(jax.random.key(0)), noisy(jax.random.key(1))
    assert float(jnp.abs(a - b).max()) > 0.01
    close(noisy(jax.random.key(0)), a, 0)


# --- published sizes ---

COUNTS = {  # transformers 5.23.0 on the meta device; nanoGPT by its README
    "nanogpt-cpu": 804_096,
    "nanogpt-char": 10_745_088,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "gemma2-2b": 2_614_341_888,
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_parameters(size):
    def count(depth):  # linear in the depth: two small ones say it all
        model = GPT.from_size(size, depth=depth)
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    one, two = count(1), count(2)
    assert one + (two - one) * (SIZES[size]["depth"] - 1) == COUNTS[size]


# --- what cannot be ---

BAD = [
    ({}, (np.array([[1, 13]]),), ValueError, "tokens run from 1 to 13, but the vocabulary has 13"),
    ({}, (np.array([[-1, 1]]),), ValueError, "tokens run from -1 to 1"),
    ({}, (np.zeros((2, 13), int),), ValueError, "a sequence of 13, expected at most length=12"),
    ({}, (np.zeros(5, int),), ValueError, r"tokens has shape \(5,\).*tokens\[None\]"),
    ({}, (np.zeros((2, 3)),), TypeError, r"tokens is float64\[2, 3\]|tokens is float32\[2, 3\]"),
    ({}, (np.zeros((2, 3), int), np.ones((2, 4), bool)), ValueError, r"mask has shape \(2, 4\)"),
    ({}, (np.zeros((2, 3), int), np.ones((2, 3))), TypeError, "mask is float.*write mask > 0"),
    ({"heads": 3}, (np.zeros((1, 2), int),), ValueError, "width=16 is not divisible by heads=3"),
    ({"kv_heads": 3}, (np.zeros((1, 2), int),), ValueError, "heads=4 is not divisible by kv_h"),
    ({"dropout": 1.0}, (np.zeros((1, 2), int),), ValueError, r"dropout is 1.0.*\[0, 1\)"),
    ({"depth": 0}, (np.zeros((1, 2), int),), ValueError, "depth is 0, expected an integer >= 1"),
]


@pytest.mark.parametrize(("changes", "inputs", "kind", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(changes, inputs, kind, said):
    model = GPT(**SIZE | changes)
    with pytest.raises(kind, match=said):
        model.init(jax.random.key(0), *inputs)


def test_traced_ids_outside_the_vocabulary_are_nan():
    *_, run, _ = made("learned")
    y = run(jnp.array([[1, 2, 99], [1, 2, 3]]), jnp.ones((2, 3), bool))
    assert np.isnan(y[0, 2]).all() and np.isfinite(y[1]).all()
    with pytest.raises(KeyError, match="GPT has no size 'gpt3'; there are 'nanogpt-cpu'"):
        GPT.from_size("gpt3")
