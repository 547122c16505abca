"""Mixtures of experts against loops over tokens, and the limits of routing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import FeedForward, MoE, silu

B, T, WIDTH = 3, 7, 6
X = np.random.default_rng(0).normal(size=(B, T, WIDTH)).astype(np.float32)
MASK = np.arange(T)[None] < np.array([7, 4, 2])[:, None]


def slow(params, x, layer, mask=None):
    """(y, chosen experts of each real token) one token at a time, in float64."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items() if k != "router"}
    router = np.asarray(params["router"]["kernel"], np.float64)
    act = lambda z: z / (1 + np.exp(-z))
    y, choices, probabilities, logits = np.zeros(x.shape), [], [], []
    for at in np.ndindex(x.shape[:2]):
        if mask is not None and not mask[at]:
            continue
        t = np.asarray(x[at], np.float64)
        z = t @ router
        q = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        chosen = np.argsort(-q, kind="stable")[: layer.top_k]
        weights = q[chosen] / (q[chosen].sum() if layer.routing == "mixtral" else 1)
        for e, w in zip(chosen, weights):
            h = t @ p["up"][e]
            h = act(t @ p["gate"][e]) * h if layer.gated else act(h)
            y[at] += w * (h @ p["down"][e])
        choices.append(chosen)
        probabilities.append(q)
        logits.append(z)
    return y, np.array(choices), np.array(probabilities), np.array(logits)


def weights(layer, d=WIDTH):
    """Variables as numpy arrays; drawn here, so that nothing is compiled for them."""
    draw = np.random.default_rng(1)
    make = lambda *shape: draw.normal(size=shape).astype(np.float32) / np.float32(shape[-2] ** 0.5)
    e, hidden = layer.experts, layer.hidden
    params = {
        "router": {"kernel": make(d, e)},
        "up": make(e, d, hidden),
        "down": make(e, hidden, d),
    }
    return {"params": {**params, **({"gate": make(e, d, hidden)} if layer.gated else {})}}


def runner(layer):
    return jax.jit(lambda variables, *xs: layer.apply(variables, *xs))


@functools.cache
def started(*args, **fields):
    layer = MoE(*args, **fields)
    return layer, weights(layer), runner(layer)


@pytest.mark.parametrize(
    ("experts", "top_k", "routing", "gated", "masked"),
    [
        (1, 1, "mixtral", False, False),
        (4, 2, "mixtral", True, False),
        (9, 2, "mixtral", True, True),  # in blocks
        (9, 1, "switch", False, False),
        (64, 3, "switch", True, True),  # more experts than choices
    ],
)
def test_every_form_is_the_loop_over_tokens(experts, top_k, routing, gated, masked):
    layer, params, run = started(experts, top_k, 5, routing=routing, gated=gated)
    mask = MASK if masked else None
    y, chosen, p, z = slow(params["params"], X, layer, mask)
    found, losses = run(params, X, mask)
    np.testing.assert_allclose(found, y, atol=2e-6)
    wide = runner(layer.clone(capacity=float(experts)))
    np.testing.assert_allclose(wide(params, X, mask)[0], found, atol=2e-6)
    load = np.bincount(chosen.ravel(), minlength=experts) / chosen.size
    np.testing.assert_allclose(losses["load"], load, atol=1e-6)
    np.testing.assert_allclose(losses["balance"], experts * (load * p.mean(0)).sum(), rtol=1e-5)
    np.testing.assert_allclose(losses["z"], (np.log(np.exp(z).sum(-1)) ** 2).mean(), rtol=1e-5)
    assert float(losses["dropped"]) == 0


def test_all_experts_is_the_dense_mixture():
    layer, params, run = started(4, 4, 5, gated=True)
    p = params["params"]
    share = np.exp(X @ p["router"]["kernel"])
    share = share / share.sum(-1, keepdims=True)
    dense = FeedForward(5, silu, gated=True, use_bias=False)
    one = jax.jit(lambda w: dense.apply({"params": {n: {"kernel": k} for n, k in w.items()}}, X))
    each = lambda e: np.asarray(one({n: p[n][e] for n in ("up", "gate", "down")}))
    y = sum(share[..., e, None] * each(e) for e in range(layer.experts))
    np.testing.assert_allclose(run(params, X)[0], y, atol=2e-6)


@pytest.mark.parametrize("load", ["one expert", "even", "random"])
def test_blocks_hold_every_load(load):
    """Dropless whatever the router does: all tokens on one expert is the worst case."""
    layer, params, run = started(9, 1, 5, routing="switch")
    kernel = params["params"]["router"]["kernel"]
    if load == "one expert":
        kernel = np.where(np.arange(9) == 3, 50, np.zeros_like(kernel))
    router = {"kernel": kernel if load != "even" else np.eye(WIDTH, 9, dtype=np.float32) * 9}
    x = np.abs(X) if load == "one expert" else X
    params = {"params": {**params["params"], "router": router}}
    np.testing.assert_allclose(run(params, x)[0], slow(params["params"], x, layer)[0], atol=1e-5)


def test_switch_loss_is_one_at_uniform_routing():
    """Equal probabilities, and tokens spread evenly: f = P = 1/E."""
    _, params, run = started(6, 1, 5, routing="switch")
    eye = np.eye(6, dtype=np.float32)
    small = {"params": {**params["params"], "router": {"kernel": np.float32(1e-4) * eye}}}
    x = np.tile(eye, (2, 1))[None]  # each expert twice
    losses = run(small, x)[1]
    assert float(losses["balance"]) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(losses["load"], np.full(6, 1 / 6), rtol=1e-6)
    assert float(losses["z"]) == pytest.approx(np.log(6) ** 2, rel=1e-3)
    one = {"params": {**params["params"], "router": {"kernel": eye * 99}}}
    assert float(run(one, 0 * x + eye[None, :1])[1]["balance"]) == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("capacity", [None, 9.0])
def test_tokens_may_change_places(capacity):
    _, params, run = started(9, 2, 5, gated=True, capacity=capacity)
    order = np.random.default_rng(0).permutation(T)
    y = np.asarray(run(params, X)[0])
    np.testing.assert_allclose(run(params, X[:, order])[0], y[:, order], atol=1e-6)


def test_no_room_means_zero_and_first_choices_first():
    """Two experts with room for ceil(0.5 * 2 * 4 / 2) = 2 choices each of 4 tokens."""
    layer = MoE(2, 2, 5, capacity=0.5, routing="switch")
    x = np.array([[[1, 0], [2, 0], [3, 0], [0, 1]]], np.float32)  # 3 prefer expert 0, 1 expert 1
    params = weights(layer, 2)["params"] | {"router": {"kernel": np.eye(2, dtype=np.float32)}}
    y, losses = runner(layer)({"params": params}, x)
    p = np.exp(x[0]) / np.exp(x[0]).sum(-1, keepdims=True)
    act = lambda z: z / (1 + np.exp(-z))
    expert = lambda e, t: p[t, e] * (act(x[0, t] @ params["up"][e]) @ params["down"][e])
    # expert 0: first choices of tokens 0 and 1; expert 1: of token 3, then second of token 0
    expected = [expert(0, 0) + expert(1, 0), expert(0, 1), np.zeros(2), expert(1, 3)]
    np.testing.assert_allclose(y[0], np.stack(expected), atol=1e-6)
    assert float(losses["dropped"]) == 0.5
    np.testing.assert_allclose(losses["load"], [0.5, 0.5])


@pytest.mark.parametrize("capacity", [None, 0.7])
def test_padding_takes_no_room_and_does_not_count(capacity):
    layer, params, run = started(4, 2, 5, gated=True, capacity=capacity)
    junk = np.where(MASK[..., None], X, np.float32(np.nan))
    y, losses = jax.device_get(run(params, junk, MASK))
    again, same = jax.device_get(run(params, np.where(MASK[..., None], X, np.float32(7)), MASK))
    np.testing.assert_array_equal(y, again)
    assert all(np.array_equal(losses[name], same[name]) for name in losses)
    assert np.all(y[~MASK] == 0)
    total = lambda x: sum(map(jnp.sum, jax.tree.leaves(layer.apply(params, x, MASK))))
    assert np.all(np.asarray(jax.jit(jax.grad(total))(junk))[~MASK] == 0)
    nothing = jax.device_get(run(params, X, np.zeros((B, T), bool)))
    assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def test_second_derivatives_exist_and_are_symmetric():
    layer, params, _ = started(9, 2, 5, gated=True)

    def f(params):
        y, losses = layer.apply(params, X)
        return jnp.sin(y).sum() + losses["balance"] + losses["z"]

    wave = lambda n, x: np.cos(n + np.arange(x.size)).reshape(x.shape).astype(np.float32)
    a, b = (jax.tree.map(lambda x, n=n: wave(n, x), params) for n in (1.0, 2.0))
    product = jax.jit(lambda way: jax.jvp(jax.grad(f), (params,), (way,))[1])
    dot = lambda x, y: sum(np.vdot(*pair) for pair in zip(*map(jax.tree.leaves, (x, y))))
    assert dot(a, product(b)) == pytest.approx(dot(b, product(a)), rel=1e-4)


def test_the_bias_moves_load_without_a_loss_and_leaves_weights():
    layer = MoE(3, 1, 5, routing="switch", bias_rate=0.25)
    kernel = np.zeros((WIDTH, 3), np.float32)
    kernel[0, 0], kernel[0, 2] = 1, -1
    params, x = weights(layer)["params"] | {"router": {"kernel": kernel}}, np.abs(X)
    variables = {"params": params, "balance": {"bias": np.zeros(3, np.float32)}}
    step = jax.jit(lambda v: layer.apply(v, x, train=True, mutable=["balance"]))
    (_, losses), new = step(variables)
    np.testing.assert_allclose(losses["load"], [1, 0, 0])
    np.testing.assert_allclose(new["balance"]["bias"], [-0.25, 0.25, 0.25])
    # evaluation leaves it; with it expert 1 is chosen, and its weight is still p_1
    low = np.float32(0.1) * x
    y, losses = runner(layer)({**variables, **new}, low)
    np.testing.assert_allclose(losses["load"], [0, 1, 0])
    p = np.exp(low @ kernel)
    h = low @ params["up"][1]
    expected = (h / (1 + np.exp(-h))) @ params["down"][1] * (p / p.sum(-1, keepdims=True))[..., 1:2]
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_experts_start_like_dense_layers():
    """The variance of a weight is 1 / inputs of one expert, not of all together."""
    layer = MoE(16, 1, 64, bias_rate=0.1)
    variables = jax.device_get(jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 2, 32))))
    up = variables["params"]["up"]
    assert float(up.std()) == pytest.approx(32**-0.5, rel=0.05)
    assert np.all(variables["balance"]["bias"] == 0)
    assert not np.allclose(up[0], up[1])


WRONG = {
    "top_k": ((2, 3, 4), {}, ValueError, "top_k=3 of experts=2"),
    "experts": ((0, 1, 4), {}, ValueError, "experts is 0, expected an integer >= 1"),
    "routing": ((2, 1, 4), {"routing": "hash"}, ValueError, "'hash', expected one of"),
    "capacity": ((2, 1, 4), {"capacity": 0.0}, ValueError, "capacity is 0.0, expected a number"),
    "activation": ((2, 1, 4), {"activation": "silu"}, TypeError, "expected a function"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_fields_are_errors(name):
    args, fields, error, said = WRONG[name]
    with pytest.raises(error, match=said):
        MoE(*args, **fields).init(jax.random.key(0), X)


def test_wrong_inputs_are_errors():
    layer = MoE(2, 1, 4)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 6\), expected \(3, 7\)"):
        layer.init(jax.random.key(0), X, MASK[:, :6])
    with pytest.raises(TypeError, match=r"mask is float32.*write mask > 0"):
        layer.init(jax.random.key(0), X, MASK.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"x has shape \(6,\)"):
        layer.init(jax.random.key(0), X[0, 0])
    with pytest.raises(TypeError, match="x is int32, expected floats"):
        layer.init(jax.random.key(0), X.astype(int))
