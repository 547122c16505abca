"""NLinear, DLinear and PatchTST equal their references in torch: outputs, loss, all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import all_filled, part, read

import nnkit as nk
from nnkit import losses, models

PATCHTST = {
    "patch": 6, "stride": 3, "width": 8, "heads": 2, "hidden": 12, "layers": 3, "dropout": 0.0,
}  # fmt: skip


def affine(arrays, name, *, turned=None):
    """{"kernel", "bias"} of a linear map of torch; the maps of several series are stacked."""
    if f"{name}.0.weight" in arrays:
        many = range(sum(k.startswith(f"{name}.") and k.endswith(".weight") for k in arrays))
        found = [affine(arrays, f"{name}.{i}", turned=turned) for i in many]
        return {k: np.stack([one[k] for one in found]) for k in found[0]}
    kernel = arrays[f"{name}.weight"].T
    if turned:  # our tokens are flattened patch by patch, the reference's feature by feature
        kernel = kernel.reshape(turned, -1, kernel.shape[-1]).swapaxes(0, 1)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    return {"kernel": kernel, "bias": arrays[f"{name}.bias"]}


def norm(arrays, name):
    return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}


def linears(arrays):
    """Weights (or gradients) of NLinear and DLinear under our names."""
    if any(name.startswith("Linear_") for name in arrays):
        both = {"seasonal": "Linear_Seasonal", "trend": "Linear_Trend"}
        return {ours: affine(arrays, theirs) for ours, theirs in both.items()}
    return {"head": affine(arrays, "Linear")}


def patchtst(arrays):
    """Those of the twin of yuqinie98/PatchTST."""
    found = {"positions": arrays["W_pos"], "embed": affine(arrays, "W_P")}
    found["head"] = {"map": affine(arrays, "head", turned=PATCHTST["width"])}
    names = {"query": "W_Q", "key": "W_K", "value": "W_V", "out": "to_out", "up": "ff_in",
             "down": "ff_out"}  # fmt: skip
    for i in range(sum(name.endswith("W_Q.bias") for name in arrays)):
        layer = {ours: affine(arrays, f"layers.{i}.{name}") for ours, name in names.items()}
        layer["norm_attention"] = norm(arrays, f"layers.{i}.norm_attn")
        layer["norm_ff"] = norm(arrays, f"layers.{i}.norm_ffn")
        found[f"layer_{i}"] = layer
    if "revin_norm_weight" in arrays:
        found |= {"scale": arrays["revin_norm_weight"], "bias": arrays["revin_norm_bias"]}
    return found


def hugging_face(arrays):
    """Those of transformers."""
    inside = part(arrays, "model.encoder.")
    found = {"positions": inside["positional_encoder.position_enc"]}
    found["embed"] = affine(inside, "embedder.input_embedding")
    found["head"] = {"map": affine(arrays, "head.projection")}
    names = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
             "out": "self_attn.out_proj", "up": "ff.0", "down": "ff.3"}  # fmt: skip
    for i in range(2):
        layer = {ours: affine(inside, f"layers.{i}.{name}") for ours, name in names.items()}
        layer["norm_attention"] = norm(inside, f"layers.{i}.norm_sublayer1.batchnorm")
        layer["norm_ff"] = norm(inside, f"layers.{i}.norm_sublayer3.batchnorm")
        found[f"layer_{i}"] = layer
    return found


def statistics(arrays, names):
    """Running statistics under our names; {} of a model without."""
    found = {}
    for name, x in arrays.items():
        if "running" not in name:
            continue
        i = name.split("layers.")[1].split(".")[0]
        which = next(ours for theirs, ours in names.items() if theirs in name)
        layer = found.setdefault(f"layer_{i}", {}).setdefault(which, {})
        layer[name.rsplit("running_", 1)[1]] = x
    return {"batch_stats": found} if found else {}


NORMS = {"norm_attn": "norm_attention", "norm_ffn": "norm_ff", "sublayer1": "norm_attention",
         "sublayer3": "norm_ff"}  # fmt: skip
ROWS = {
    "nlinear": (models.NLinear(5, length=24), linears),
    "nlinear_individual": (models.NLinear(5, length=24, individual=True), linears),
    "dlinear": (models.DLinear(5, length=24, window=7), linears),
    "dlinear_individual": (models.DLinear(5, length=24, window=7, individual=True), linears),
    "patchtst": (models.PatchTST(5, length=24, **PATCHTST), patchtst),
    "patchtst_affine": (
        models.PatchTST(5, length=24, **{**PATCHTST, "layers": 2}, affine=True, individual=True),
        patchtst,
    ),
    "patchtst_pre": (
        models.PatchTST(
            5, length=24, **{**PATCHTST, "layers": 2}, batch_norm=False, pre_norm=True,
            padded=False, revin=False,
        ),
        patchtst,
    ),
    "patchtst_plain": (
        models.PatchTST(
            5, length=24, **{**PATCHTST, "layers": 2}, last=True, residual_scores=False
        ),
        patchtst,
    ),
    "patchtst_transformers": (
        models.PatchTST(
            5, length=24, **{**PATCHTST, "layers": 2}, padded=False, pre_norm=True, revin=False,
            residual_scores=False,
        ),
        hugging_face,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_model_equals_its_reference(name):
    (model, renamed), (about, golden) = ROWS[name], read(f"timeseries_{name}")
    arrays = all_filled(about["shapes"])
    params = jax.tree.map(jnp.asarray, renamed(arrays))
    carry = jax.tree.map(jnp.asarray, statistics(arrays, NORMS))
    batch = {k: jnp.asarray(golden[k]) for k in ("x", "y")}
    task = nk.supervised(model, losses.mse)
    fresh = jax.eval_shape(task.init, jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, (params, carry)) == jax.tree.map(jnp.shape, fresh)

    _, apply = nk.pair(model)

    @jax.jit
    def everything(params, carry):
        out, _ = apply(params, carry, batch["x"], jax.random.key(1))
        mean, (after, _) = nk.gradient(task).grad(params, carry, batch, jax.random.key(1))
        loss = task.loss(params, carry, batch, jax.random.key(1))[0].value
        evaluated = apply(params, carry, batch["x"], None)[0]
        return mean.value, after, {"evaluated": evaluated, "outputs": out, "loss": loss}

    slope, after, ours = everything(params, carry)
    theirs = jax.tree.map(jnp.asarray, renamed(part(golden, "grads/")))
    # a bias before a norm, or that of the keys, moves nothing: its gradient is rounding around 0
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(theirs))
    no = jax.tree.map(lambda g: float(jnp.abs(g).max()) < 1e-6 * largest, theirs)
    assert all(
        float(jnp.abs(g).max()) < 1e-6 * largest
        for g, none in zip(jax.tree.leaves(slope), jax.tree.leaves(no)) if none
    )  # fmt: skip
    assert sum(jax.tree.leaves(no)) <= 4 * 3
    slope, theirs = (
        jax.tree.map(lambda g, none: jnp.zeros_like(g) if none else g, tree, no)
        for tree in (slope, theirs)
    )
    title = {"n": "NLinear", "d": "DLinear", "p": "PatchTST"}[name[0]]
    reference = f"{about['reference']} (torch {about['torch']})"
    same(
        f"models.{title}",
        reference,
        ours,
        {k: golden[k] for k in ("evaluated", "outputs", "loss")},
    )
    same(f"models.{title}", reference, slope, theirs)
    same(f"models.{title}", reference, after, statistics(part(golden, "after/"), NORMS))


def test_revin_around_a_model_is_that_of_patchtst():
    x = jax.random.normal(jax.random.key(0), (2, 24, 3)) * 5 + 2
    bare = models.PatchTST(5, length=24, **PATCHTST, revin=False)
    inner = bare.init(jax.random.key(1), x)
    whole = models.PatchTST(5, length=24, **PATCHTST)
    outside = {
        "params": {"model": inner["params"]},
        "batch_stats": {"model": inner["batch_stats"]},
    }
    np.testing.assert_array_equal(models.RevIN(bare).apply(outside, x), whole.apply(inner, x))
