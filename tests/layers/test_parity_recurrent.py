"""RNN, LSTM and GRU equal torch's on the same weights: outputs, states, loss, all gradients.

The golden numbers are float64; ours are float32 here.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import filled, part, read

from nnkit.layers import GRU, LSTM, RNN, Bidirectional, Stacked

ABOUT, GOLDEN = read("recurrent_layers")
B, T, D, F = len(ABOUT["lengths"]), max(ABOUT["lengths"]), ABOUT["d"], ABOUT["f"]
LAYERS = {
    "rnn_tanh": RNN(F),
    "rnn_relu": RNN(F, nn.relu),
    "lstm": LSTM(F),
    "lstm_packed": LSTM(F),
    "lstm_projection": LSTM(F, projection=2),
    "gru": GRU(F),
    "gru_packed": GRU(F),
}


def shapes(kind, d, f, projection=0):
    """torch's names and shapes of one direction of one layer."""
    k = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind] * f
    found = {"weight_ih": (k, d), "weight_hh": (k, projection or f)}
    found |= {"bias_ih": (k,), "bias_hh": (k,)}
    return found | ({"weight_hr": (projection, f)} if projection else {})


def ours(torch, after):
    """Our names for the arrays of one direction: transposed, the two biases added but in a GRU."""
    found = {"kernel_in": torch["weight_ih"].T, "kernel_rec": torch["weight_hh"].T}
    if "weight_hr" in torch:
        found["kernel_proj"] = torch["weight_hr"].T
    if after:
        return {**found, "bias": torch["bias_ih"], "bias_rec": torch["bias_hh"]}
    return {**found, "bias": torch["bias_ih"] + torch["bias_hh"]}


def grads(torch, after):
    """The same for gradients: that of a sum of two biases is that of either."""
    return ours({**torch, "bias_hh": torch["bias_hh"] * (1 if after else 0)}, after)


def assembled(case, kind, layers, both, get, form=ours):
    """Our tree from what `get(name, shape)` gives for torch's names."""
    settings, tree = ABOUT["cases"][case], {}
    for i in range(layers):
        d = D if i == 0 else (2 if both else 1) * F
        one = shapes(kind, d, F, settings.get("proj_size", 0))
        pair = {
            side: form({k: get(f"{k}_l{i}{end}", v) for k, v in one.items()}, kind == "GRU")
            for side, end in (("forward", ""), ("backward", "_reverse"))
            if both or side == "forward"
        }
        tree[f"layers_{i}"] = pair if both else pair["forward"]
    return tree


@pytest.mark.parametrize("case", LAYERS)
def test_layer_is_torchs(case):
    settings, golden = ABOUT["cases"][case], part(GOLDEN, f"{case}/")
    kind, n, both = settings["class"], settings.get("num_layers", 1), "bidirectional" in settings
    copies = [
        LAYERS[case].clone() for _ in range(n)
    ]  # one layer given twice would share its weights
    net = Stacked([Bidirectional(one) if both else one for one in copies])
    packed = case not in ("rnn_tanh", "lstm", "gru")
    lengths = jnp.array(ABOUT["lengths"])
    mask = jnp.arange(T)[None] < lengths[:, None] if packed else None
    fixed = lambda name, shape: filled(f"{case}/{name}", shape)
    params = assembled(case, kind, n, both, fixed)
    starts = {k: fixed(f"{k}0", golden[k].shape) for k in "hc" if k in golden}

    def state_of(i):
        return {k: jnp.asarray(v[i]) for k, v in starts.items()}

    def pair_of(i):
        return {"forward": state_of(2 * i), "backward": state_of(2 * i + 1)}

    state = tuple((pair_of if both else state_of)(i) for i in range(n))

    def run(params, x):
        y, last = net.apply({"params": params}, x, mask, state)
        ends = [s for pair in last for s in pair.values()] if both else last
        found = {"y": y} | {k: jnp.stack([end[k] for end in ends]) for k in starts}
        total = sum((v * fixed(f"loss/{k}", v.shape)).sum() for k, v in found.items())
        return total, found

    x = jnp.asarray(fixed("x", (B, T, D)))
    (loss, found), slopes = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, x)
    their = lambda name, shape: golden[f"grads/{name}"]
    theirs = assembled(case, kind, n, both, their, grads)
    name, version = f"layers.{kind}", f"torch {ABOUT['version']} nn.{kind} ({case})"
    same(name, version, found, {k: golden[k] for k in found})
    same(name, version, {"loss": loss}, {"loss": golden["loss"]})
    same(name, version, slopes, (theirs, golden["grads/x"]))


@pytest.mark.parametrize("case", ["lstm_cell", "gru_cell"])
def test_one_step_is_torchs_cell(case):
    kind, golden = ABOUT["cases"][case]["class"].removesuffix("Cell"), part(GOLDEN, f"{case}/")
    layer = {"LSTM": LSTM, "GRU": GRU}[kind](F)
    fixed = lambda name, shape: filled(f"{case}/{name}", shape)
    params = ours({k: fixed(k, v) for k, v in shapes(kind, D, F).items()}, kind == "GRU")
    state = {k: jnp.asarray(fixed(f"{k}0", (B, F))) for k in "hc" if k in golden}

    def run(params, x):
        _, last = layer.apply({"params": params}, x[:, None], None, state)
        return sum((v * fixed(f"loss/{k}", v.shape)).sum() for k, v in last.items()), last

    x = jnp.asarray(fixed("x", (B, D)))
    (loss, last), slopes = jax.value_and_grad(run, (0, 1), has_aux=True)(params, x)
    theirs = {k: golden[f"grads/{k}"] for k in shapes(kind, D, F)}
    name, version = f"layers.{kind}", f"torch {ABOUT['version']} nn.{kind}Cell"
    same(name, version, last, {k: golden[k] for k in last})
    same(name, version, {"loss": loss}, {"loss": golden["loss"]})
    same(name, version, slopes, (grads(theirs, kind == "GRU"), golden["grads/x"]))
    assert np.isfinite(loss)
