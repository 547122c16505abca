"""Attention, embeddings, positions and experts against torch and transformers.

The golden files are written by references/make_attention.py. nn.MultiheadAttention keeps query,
key and value in one in_proj [3 d d]; Mixtral keeps gate and up in one gate_up_proj.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import all_filled, filled, part, read

from nnkit import layers

B, T, S, WIDTH, HEADS = 2, 5, 7, 8, 2


@functools.cache
def golden(name):
    return read(f"attention_{name}")


def named(name):
    about, _ = golden(name)
    return (
        f"transformers {about['transformers']}"
        if "transformers" in about
        else (f"torch {about['torch']}")
    )


def pull(f, *inputs):
    """Output and the gradients of sum(f cotangent) in every input."""
    y = f(*inputs)
    cotangent = filled("cotangent", y.shape)
    return y, jax.grad(lambda inputs: (f(*inputs) * cotangent).sum())(inputs)


def without(tree, layer, kind):
    """The tree without a gradient that is 0 but for rounding: nothing to compare relatively."""
    assert np.abs(tree[layer][kind]).max() < 1e-6
    return {**tree, layer: {k: v for k, v in tree[layer].items() if k != kind}}


def projections(arrays):
    """Weights (or gradients) of nn.MultiheadAttention under our names."""
    wide, bias = np.split(arrays["in_proj_weight"], 3), np.split(arrays["in_proj_bias"], 3)
    found = {
        n: {"kernel": w.T, "bias": b} for n, w, b in zip(("query", "key", "value"), wide, bias)
    }
    out = {"kernel": arrays["out_proj.weight"].T, "bias": arrays["out_proj.bias"]}
    return {**found, "out": out}


@pytest.mark.parametrize("case", ["self", "causal", "padded", "cross"])
def test_attention_is_torch_multihead_attention(case):
    about, arrays = golden("torch")
    theirs = part(arrays, f"mha_{case}/")
    params = projections(all_filled(about["shapes"]))
    layer = layers.Attention(HEADS, causal=case == "causal")
    mask = jnp.arange(S)[None] < jnp.array(about["padded"])[:, None]
    mask = mask if case in ("padded", "cross") else None
    inputs = (filled("x", (B, S, WIDTH)),)
    if case == "cross":
        inputs = (filled("x", (B, T, WIDTH)), filled("context", (B, S, WIDTH)))
    run = lambda p, *xs: layer.apply({"params": p}, *xs, mask=mask)
    y, (dp, *dx) = pull(run, params, *inputs)
    weights = layer.apply({"params": params}, *inputs, mask=mask, probabilities=True)[1]
    grads = part(theirs, "grads/")
    names = ("x", "context")[: len(dx)]
    zero = lambda tree: without(tree, "key", "bias")  # a softmax does not see it
    same(
        "layers.Attention",
        f"{named('torch')} nn.MultiheadAttention",
        {"y": y, "weights": weights, "params": zero(dp), "inputs": dict(zip(names, dx))},
        {
            "y": theirs["y"],
            "weights": theirs["weights"],
            "params": zero(projections(grads)),
            "inputs": {name: grads[name] for name in names},
        },
    )


@pytest.mark.parametrize("form", ["plain", "blockwise", "xla"])
@pytest.mark.parametrize("case", ["plain", "causal", "mask", "bias"])
def test_attention_is_torch_scaled_dot_product(case, form):
    about, arrays = golden("torch")
    theirs = part(arrays, f"sdpa_{case}/")
    t = S if case == "causal" else T
    inputs = [filled("q", (B, t, 4, 6)), filled("k", (B, S, 2, 6)), filled("v", (B, S, 2, 6))]
    options = {"causal": case == "causal", "implementation": form}
    if case == "mask":
        options["mask"] = jnp.arange(S)[None] < jnp.array(about["padded"])[:, None]
    if case == "bias":
        options["scale"] = 0.5
        inputs.append(filled("bias", (1, 4, t, S)))
    run = lambda q, k, v, bias=None: layers.attention(q, k, v, bias=bias, **options)
    y, grads = pull(jax.jit(run), *map(jnp.asarray, inputs))
    ours = {"y": y, **{f"grads/{n}": g for n, g in zip(("q", "k", "v", "bias"), grads)}}
    same("layers.attention", f"{named('torch')} scaled_dot_product_attention", ours, theirs)


def test_embedding_is_torch_embedding():
    theirs = part(golden("torch")[1], "embedding/")
    tokens, layer = jnp.asarray(theirs["tokens"].astype(np.int32)), layers.Embed(11, WIDTH)
    run = lambda table: layer.apply({"params": {"embedding": table}}, tokens)
    y, (grad,) = pull(run, jnp.asarray(filled("weight", (11, WIDTH))))
    expected = {"y": theirs["y"], "grad": theirs["grads/weight"]}
    same("layers.Embed", f"{named('torch')} nn.Embedding", {"y": y, "grad": grad}, expected)


@pytest.mark.parametrize(("model", "interleaved"), [("llama", False), ("gptj", True)])
def test_rope_is_that_of_llama_and_gptj(model, interleaved):
    theirs = part(golden("transformers")[1], f"{model}/")
    turn = lambda name: layers.rope(
        filled(name, (B, S, 2, 8)), jnp.arange(3, 3 + S), interleaved=interleaved
    )
    reference = f"{named('transformers')} {model} apply_rotary_pos_emb"
    same("layers.rope", reference, {"q": turn("q"), "k": turn("k")}, theirs)


def test_alibi_has_the_slopes_of_bloom():
    theirs = part(golden("transformers")[1], "alibi/")
    ours = {name: layers.alibi(int(name)) for name in theirs}
    same("layers.alibi", f"{named('transformers')} build_alibi_tensor", ours, theirs)


@pytest.mark.parametrize("both", [True, False])
def test_relative_buckets_are_those_of_t5(both):
    theirs = golden("transformers")[1][f"bucket/{both}"]
    layer = layers.RelativeBias(1, bidirectional=both)
    table = {"params": {"embedding": jnp.arange(32.0)[:, None]}}  # the bias is the bucket
    ours = layer.apply(table, jnp.array([200]), jnp.arange(401))[0, 0, 0]
    same("layers.RelativeBias", f"{named('transformers')} T5Attention buckets", ours, theirs)


def mixtral(arrays):
    gate, up = np.split(arrays["experts.gate_up_proj"], 2, axis=1)
    turned = lambda w: w.swapaxes(1, 2)
    return {
        "router": {"kernel": arrays["gate.weight"].T},
        "gate": turned(gate),
        "up": turned(up),
        "down": turned(arrays["experts.down_proj"]),
    }


@pytest.mark.parametrize("capacity", [None, 4.0])
@pytest.mark.parametrize("k", [1, 2])
def test_moe_is_the_mixtral_block(k, capacity):
    about, arrays = golden("transformers")
    theirs = part(arrays, f"mixtral_{k}/")
    params = mixtral(all_filled(about["shapes"]))
    layer = layers.MoE(4, k, 12, gated=True, capacity=capacity)
    x = jnp.asarray(filled("x", (B, T, WIDTH)))
    run = lambda p, x: layer.apply({"params": p}, x)[0]
    y, (dp, dx) = pull(jax.jit(run), params, x)
    losses = layer.apply({"params": params}, x)[1]
    kept = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    masked = layer.apply({"params": params}, x, kept)[1]
    # one expert has the weight p / p = 1, whatever the router says
    zero = (lambda tree: without(tree, "router", "kernel")) if k == 1 else (lambda tree: tree)
    same(
        "layers.MoE",
        f"{named('transformers')} MixtralSparseMoeBlock",
        # theirs counts a token k times, ours the share of its choices
        {
            "y": y,
            "balance": [k * losses["balance"], k * masked["balance"]],
            "params": zero(dp),
            "x": dx,
        },
        {
            "y": theirs["y"],
            "balance": [theirs["balance"], theirs["balance_masked"]],
            "params": zero(mixtral(part(theirs, "grads/"))),
            "x": theirs["grads/x"],
        },
    )
