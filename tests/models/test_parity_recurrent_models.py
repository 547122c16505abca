"""A TCN, a tied language model and a classifier equal their torch forms on the same weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import filled, part, read

from nnkit import losses, models
from nnkit.layers import GRU

ABOUT, GOLDEN = read("recurrent_models")
LENGTHS = np.array(ABOUT["lengths"])
MASK = np.arange(LENGTHS.max())[None] < LENGTHS[:, None]


def lstm(get, layer):
    w = {k: get(f"lstm.{k}_l{layer}") for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return {"kernel_in": w["weight_ih"].T, "kernel_rec": w["weight_hh"].T, "bias": w["bias_ih"]}


def gru(get, end):
    w = {k: get(f"gru.{k}_l{end}") for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    found = {"kernel_in": w["weight_ih"].T, "kernel_rec": w["weight_hh"].T}
    return {**found, "bias": w["bias_ih"], "bias_rec": w["bias_hh"]}


def affine(get, name):
    return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}


def tied_params(get):
    layers = {f"layers_{i}": lstm(get, i) for i in range(2)}
    return {"embed": {"embedding": get("embed.weight")}, "layers": layers, "head_bias": get("bias")}


def classifier_params(get):
    layers = {
        f"layers_{i}": {"forward": gru(get, f"{i}"), "backward": gru(get, f"{i}_reverse")}
        for i in range(2)
    }
    return {"layers": layers, "head": affine(get, "linear")}


def tcn_params(get):
    tree = {"head": affine(get, "linear")}
    for i, past in enumerate((True, False, True)):
        block = {}
        for j in range(2):
            name = f"network.{i}.conv{j + 1}"
            weight = f"{name}.parametrizations.weight.original"
            block[f"conv_{j}"] = {
                "scale": get(f"{weight}0").reshape(-1),
                "kernel": get(f"{weight}1").transpose(2, 1, 0),  # torch: [out in k]
                "bias": get(f"{name}.bias"),
            }
        if past:
            weight = get(f"network.{i}.downsample.weight")[..., 0].T
            block["past"] = {"kernel": weight, "bias": get(f"network.{i}.downsample.bias")}
        tree[f"block_{i}"] = block
    return tree


CASES = {
    "tied": (models.RecurrentLM(9, width=6, depth=2, tied=True), tied_params, MASK, MASK),
    "classifier": (
        models.RecurrentClassifier(5, layer=GRU, width=4, depth=2, bidirectional=True),
        classifier_params,
        MASK,
        None,
    ),
    "tcn": (
        models.TCN(9, channels=ABOUT["tcn"], kernel=ABOUT["kernel"], pool="each"),
        tcn_params,
        None,
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_model_is_torchs(case):
    model, names, mask, counted = CASES[case]
    golden = part(GOLDEN, f"{case}/")
    theirs = part(golden, "grads/")
    get = lambda name: jnp.asarray(filled(f"{case}/{name}", theirs[name].shape))
    params = names(get)
    if case == "tied":  # ours is the sum of torch's two biases
        for i in range(2):
            params["layers"][f"layers_{i}"]["bias"] += get(f"lstm.bias_hh_l{i}")
    x = golden["x"] if case == "tied" else golden["x"].astype(np.float32)
    mask = None if mask is None else jnp.asarray(mask)

    def run(params):
        logits = model.apply({"params": params}, jnp.asarray(x), mask)
        loss = losses.cross_entropy(logits, jnp.asarray(golden["y"]))
        some = jnp.ones(loss.shape) if counted is None else jnp.asarray(counted, jnp.float32)
        return (loss * some).sum() / some.sum(), logits

    (loss, logits), slopes = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    name, version = f"models.{type(model).__name__}", f"torch {ABOUT['version']}, {case}"
    same(name, version, {"logits": logits}, {"logits": golden["logits"]})
    same(name, version, {"loss": loss}, {"loss": golden["loss"]})
    same(name, version, slopes, names(theirs.__getitem__))
