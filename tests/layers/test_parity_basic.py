"""Basic layers against torch: outputs, losses, all gradients, statistics (make_layers.py)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import filled, part, read

from nnkit import layers

UP = {"up2d": (2, 2), "up2d_padding": (2, 4), "up2d_output": (2, 3), "up1d": (1, 3)}
conv, up = layers.Conv, layers.ConvTranspose

AFFINE = {
    "linear": layers.Dense(7),
    "conv1d": conv(4, 3),
    "conv1d_causal": conv(4, 3, padding="CAUSAL", kernel_dilation=2),
    "conv2d": conv(4, (3, 3)),
    "conv2d_stride": conv(4, (3, 3), strides=2, padding=1),
    "conv2d_dilation": conv(4, (3, 3), padding="VALID", kernel_dilation=2),
    "conv2d_groups": conv(6, (3, 3), padding=(1, 1), feature_group_count=2),
    "conv2d_depthwise": conv(4, (5, 5), feature_group_count=4, use_bias=False),
    "conv2d_pieces": conv(3, (3, 3)),
    "conv3d": conv(3, (2, 3, 3), padding="VALID"),
    "up2d": up(4, (2, 2), strides=2),
    "up2d_padding": up(4, (4, 4), strides=2, padding=2),  # k - 1 - p
    "up2d_output": up(6, (3, 3), strides=2, padding=((1, 2), (1, 2)), feature_group_count=2),
    "up1d": up(4, 3, padding="VALID", kernel_dilation=2),
    "weight_linear": layers.WeightNorm(layers.Dense(7)),
    "weight_conv": layers.WeightNorm(conv(4, (3, 3))),
    "spectral_linear": layers.SpectralNorm(layers.Dense(7)),
    "spectral_conv": layers.SpectralNorm(conv(4, (3, 3))),
}
NORMS = {
    "norm_layer": layers.LayerNorm(),
    "norm_rms": layers.RMSNorm(),
    "norm_group": layers.GroupNorm(2),
    "norm_instance": layers.InstanceNorm(),
    "norm_batch1d": layers.BatchNorm(),
    "norm_batch2d": layers.BatchNorm(),
}
POOLS = {
    "max_pool": lambda x: layers.max_pool(x, 2),
    "max_pool_overlap": lambda x: layers.max_pool(x, 3, 2, 1),
    "max_pool_1d": lambda x: layers.max_pool(x, 3, 1),
    "avg_pool": lambda x: layers.avg_pool(x, 2),
    "avg_pool_overlap": lambda x: layers.avg_pool(x, 3, 2, 1),
    "avg_pool_without": lambda x: layers.avg_pool(x, 3, 2, 1, count_include_pad=False),
    "global_avg_pool": layers.global_avg_pool,
}
GATED = ("swiglu", "geglu", "reglu", "glu")
MAPS = (
    "celu elu leaky_relu mish relu relu6 selu silu softplus softsign sigmoid tanh log_sigmoid "
    "hard_sigmoid hard_swish hard_tanh gelu gelu_tanh relu2 softmax log_softmax prelu"
).split()


@functools.cache
def golden(name):
    return read(f"torch_layers_{name}")


def last(x):
    """Channels first, as in torch, to channels last; [b c] stays."""
    return np.moveaxis(np.asarray(x), 1, -1) if np.ndim(x) > 2 else np.asarray(x)


def kernel(w, case):
    """torch's weight in our order: [k ... i/groups o], transposed ones flipped."""
    if w.ndim == 2:
        return w.T
    if case not in UP:
        return np.moveaxis(w, (0, 1), (-1, -2))  # [o i/g k ...]
    axes = tuple(range(2, w.ndim))
    groups = AFFINE[case].feature_group_count
    w = np.flip(w, axes).reshape(groups, w.shape[0] // groups, *w.shape[1:])  # [g i/g o/g k ...]
    w = np.moveaxis(w, (1, 0, 2), (-3, -2, -1))
    return w.reshape(*w.shape[:-2], -1)


def ours(case, arrays):
    """{our name: array} of torch's parameters (or gradients) of a layer."""
    found = {}
    for name, w in arrays.items():
        base = name.split(".", 1)[1] if name[0].isdigit() else name
        if base.endswith("original0"):
            found["scale"] = w.reshape(-1)
        elif base == "bias":
            found["bias"] = w
        elif case.startswith("norm") and base == "weight":
            found["scale"] = w
        elif base.startswith(("weight", "parametrizations.weight.original")):
            found["kernel"] = kernel(w, case)
    return found


def statistics(case, arrays):
    """Our batch statistics from torch's buffers; sigma is not among them."""
    if case.startswith("norm"):
        found = {"mean": arrays.get("running_mean"), "var": arrays.get("running_var")}
        return {k: v for k, v in found.items() if v is not None}
    found = {k[-1]: v for k, v in arrays.items() if k.endswith(("_u", "_v"))}
    if "v" in found and "conv" in case:  # [i k k] -> [k k i]
        found["v"] = found["v"].reshape(3, 3, 3).transpose(1, 2, 0).reshape(-1)
    return found


def fill(case, shapes):
    new = {}
    for name, shape in shapes.items():
        value = filled(f"{case}.{name}", shape)
        unit = name.endswith(("_u", "_v"))
        new[name] = value / np.linalg.norm(value) if unit else value
    return new


def passed(layer, case, variables, x, like, *, step="", train=None):
    """Our {y, loss, grads of x and params} and new statistics. torch's axes move to the end."""
    to_last = (lambda v: v) if case in ("linear", "norm_layer", "norm_rms") else last
    g = jnp.asarray(to_last(filled(f"{case}.g{step}", like.shape)))
    options = {} if train is None else {"train": train}
    rest = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def run(params, rest, x):
        def loss(params, x):
            y, new = layer.apply({"params": params, **rest}, x, mutable=list(rest), **options)
            return (g * y).sum(), (y, new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (loss, (y, new)), (slopes, dx) = run(variables["params"], rest, to_last(x))
    return {"y": y, "loss": loss, "grads": dict(slopes), "x": dx}, dict(new), to_last


def compare(layer, case, reference, variables, shape, seen, *, step="", train=None):
    """One pass, ours and torch's; gives the new statistics back."""
    x = filled(f"{case}.x{step}", shape)
    mine, new, to_last = passed(layer, case, variables, x, seen["y"], step=step, train=train)
    grads = part(seen, "grads/")
    want = {"y": to_last(seen["y"]), "loss": seen["loss"], "x": to_last(grads.pop("x"))}
    want["grads"] = ours(case, grads)
    same(f"layers.{type(layer).__name__}", reference, mine, want)
    stats = statistics(case, part(seen, "stats/"))
    found = {k: v for k, v in new.get("batch_stats", {}).items() if k != "sigma"}
    if stats:
        same(f"layers.{type(layer).__name__}", reference, found, stats)
    return new


def check(file, layer, case):
    about, arrays = golden(file)
    start, shape = fill(case, about["shapes"][case]), about["inputs"][case]
    variables = {"params": jax.tree.map(jnp.asarray, ours(case, start))}
    stats = statistics(case, start)
    name = {"linear": "Linear", "norm_rms": "RMSNorm"}.get(case, case)
    reference = f"{about['reference']} {name}"
    seen = part(arrays, f"{case}/")
    if f"{case}/before/y" not in arrays:
        compare(layer, case, reference, variables, shape, seen)
        return
    more = {"sigma": jnp.ones(())} if case.startswith("spectral") else {}
    variables["batch_stats"] = jax.tree.map(jnp.asarray, stats) | more
    for label, step, train in (("before", "", False), ("first", "1", True), ("second", "2", True)):
        now = part(arrays, f"{case}/{label}/")
        variables |= compare(layer, case, reference, variables, shape, now, step=step, train=train)
    compare(layer, case, reference, variables, shape, part(arrays, f"{case}/"), train=False)


@pytest.mark.parametrize("case", list(AFFINE))
def test_affine(case):
    check("affine", AFFINE[case], case)


@pytest.mark.parametrize("case", list(NORMS))
def test_norms(case):
    check("norms", NORMS[case], case)


def test_a_scale_kept_as_its_distance_from_one():
    about, arrays = golden("norms")
    scale = ours("norm_rms", fill("norm_rms", about["shapes"]["norm_rms"]))["scale"]
    variables = {"params": {"scale": jnp.asarray(scale) - 1}}
    seen, shape = part(arrays, "norm_rms/"), about["inputs"]["norm_rms"]
    reference = f"{about['reference']} RMSNorm"
    compare(layers.ShiftedRMSNorm(), "norm_rms", reference, variables, shape, seen)


@pytest.mark.parametrize("case", [*MAPS, *GATED, *POOLS])
def test_activations_and_pooling(case):
    about, arrays = golden("maps")
    seen, x = part(arrays, f"{case}/"), filled(f"{case}.x", about["inputs"][case])
    g, order = filled(f"{case}.g", seen["y"].shape), last if case in POOLS else np.asarray
    function = POOLS.get(case) or getattr(layers, case)
    if case in GATED:
        function = lambda x: getattr(layers, case)(x[..., :4], x[..., 4:])
    elif case == "prelu":
        function = lambda x: layers.prelu(x, jnp.float32(0.3))
    y, back = jax.vjp(jax.jit(function), jnp.asarray(order(x)))
    found = {"y": y, "x": back(jnp.asarray(order(g)))[0]}
    same(
        f"layers.{case.split('_pool')[0] + '_pool' if case in POOLS else case}",
        f"{about['reference']} functional",
        found,
        {"y": order(seen["y"]), "x": order(seen["grads/x"])},
    )
