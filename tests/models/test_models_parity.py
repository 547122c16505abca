"""Models, training and losses against PyTorch: the golden files of tests/references/make_torch.py.

What the two libraries call differently, and what is therefore translated here:

- dense weights are [out in] in torch and [in out] in Flax, kernels [out in h w] and [h w in out];
- torch flattens images as [c h w], Flax as [h w c]: the rows of the first dense layer after the
  convolutions change places;
- momentum of batch statistics: torch's 0.1 is the share of the new, Flax's 0.9 that of the old;
- running variance: torch adds n/(n-1) times the batch variance that it normalises by, Flax the
  batch variance itself. The outputs and gradients agree; the new variances agree after that
  correction, with n = b h w.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity import same

import nnkit as nk
from nnkit import losses, models

FOLDER = Path(__file__).parents[1] / "references"
NAMES = {"weight": "kernel", "bias": "bias"}
NORM_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def golden(name):
    """The arrays of one file; labels as int32."""
    with np.load(FOLDER / f"torch_{name}.npz", allow_pickle=False) as file:
        found = {k: file[k] for k in file.files}
    about = json.loads(str(found.pop("about")))
    assert about["dtype"] == "float32"
    return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in found.items()}


def part(arrays, prefix):
    """What stands below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def tree(arrays, *, channels=None):
    """{"LAYER.weight": torch's array} as the tree of Flax; `channels` enter the layer "dense"."""
    found = {}
    for name, x in arrays.items():
        layer, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        kind = (NORM_NAMES if layer.startswith("norm") else NAMES)[kind]
        if x.ndim == 2 and layer == "dense" and channels:
            side = round((x.shape[1] / channels) ** 0.5)
            x = x.reshape(x.shape[0], channels, side, side).transpose(2, 3, 1, 0)  # [h w c out]
            x = x.reshape(-1, x.shape[-1])
        elif kind == "kernel":
            x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
        found.setdefault(layer, {})[kind] = jnp.asarray(x)
    return found


def agree(ours, theirs, tolerance=1e-5):
    """Two trees of the same paths, leaf by leaf."""
    ours, theirs = dict(nk.trees.paths(ours)), dict(nk.trees.paths(theirs))
    assert ours.keys() == theirs.keys()
    for path, x in ours.items():
        np.testing.assert_allclose(x, theirs[path], tolerance, tolerance, err_msg=path)


def pass_through(model, variables, x, y, **call):
    """(logits, loss, gradients, new statistics or None) of the mean cross-entropy."""
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        out = model.apply({"params": params, **rest}, x, **call)
        logits, new = out if "mutable" in call else (out, None)
        return losses.cross_entropy(logits, y).mean(), (logits, new)

    (value, (logits, new)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return logits, value, grads, new


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_dense_model_gives_the_logits_loss_and_gradients_of_torch(name):
    g = golden(name)
    model = models.Linear(5) if name == "linear" else models.MLP((16, 12, 5))
    variables = {"params": tree(part(g, "params/"))}
    logits, value, grads, _ = pass_through(model, variables, jnp.asarray(g["x"]), g["y"])
    agree((logits, value), (g["logits"], g["loss"]))
    agree(grads, tree(part(g, "grads/")))
    theirs = (g["logits"], g["loss"], tree(part(g, "grads/")))
    same(
        f"models.{type(model).__name__}",
        "torch 2.13.0 nn.Sequential",
        (logits, value, grads),
        theirs,
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_convnet_gives_the_logits_loss_and_gradients_of_torch(norm, train):
    g = golden("convnet")
    x, y = jnp.asarray(g["x"].transpose(0, 2, 3, 1)), g["y"]  # [b h w c]
    mine = part(g, f"norm={norm}/")
    then = part(mine, f"train={train}/")
    model = models.ConvNet(channels=(3, 4), hidden=8, classes=5, dropout=0.0, norm=norm)
    variables = {"params": tree(part(mine, "params/"), channels=4)}
    if norm:
        variables["batch_stats"] = tree(part(mine, "before/"))
    call = {"train": train, **({"mutable": ["batch_stats"]} if train else {})}
    logits, value, grads, new = pass_through(model, variables, x, y, **call)
    agree((logits, value), (then["logits"], then["loss"]))
    agree(grads, tree(part(then, "grads/"), channels=4))
    theirs = then["logits"], then["loss"]
    same("models.ConvNet", "torch 2.13.0 nn.Sequential, logits and loss", (logits, value), theirs)
    if norm and train:
        agree(new["batch_stats"], biased(variables["batch_stats"], tree(part(then, "stats/")), x))


def biased(before, after, x):
    """torch's new running statistics, as if it averaged the biased variances of batches."""
    found = {}
    for i, (name, old) in enumerate(sorted(before.items())):
        n = x.shape[0] * x.shape[1] * x.shape[2] // 4**i  # each block halves height and width
        seen = after[name]["var"] - 0.9 * old["var"]  # 0.1 times the unbiased variance
        found[name] = {**after[name], "var": 0.9 * old["var"] + seen * (n - 1) / n}
    return found


def test_the_running_variance_of_torch_is_the_unbiased_one():
    """The difference is real: without the correction the new variances are not the same."""
    g = part(golden("convnet"), "norm=True/")
    before, after = (tree(part(g, k)) for k in ("before/", "train=True/stats/"))
    x = np.zeros((2, 8, 8, 1))
    gap = after["norm_1"]["var"] - biased(before, after, x)["norm_1"]["var"]
    assert float(abs(gap).max()) > 1e-4
    unmoved = tree(part(g, "train=False/stats/"))
    agree(unmoved, before, 0)


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "momentum": optax.sgd(5e-2, momentum=0.9),
    "nesterov": optax.sgd(5e-2, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_end_where_those_of_torch_end(name):
    g = golden("training")
    task = nk.supervised(models.MLP((16, 12, 5)), losses.cross_entropy)
    task = nk.adapt(task, tree(part(g, "params/")))
    step = nk.step(nk.gradient(task), OPTIMIZERS[name])
    batches = [{"x": x, "y": y} for x, y in zip(g["x"], g["y"])]
    state = nk.init(step, jax.random.key(0), batches[0])
    update, seen = jax.jit(step.update), []
    for batch in batches:
        state, log = update(state, batch)
        seen.append(float(log["loss"].value))
    # 1e-4: twenty steps in float32, and Adam divides by the root of what may be small.
    np.testing.assert_allclose(seen, g[f"{name}/losses"], 1e-4, 1e-4)
    agree(step.weights(state)[0], tree(part(g, f"{name}/params/")), 1e-4)


LOSSES = {  # name in the file: (argument, the same loss of nnkit)
    "cross_entropy": ("z", lambda z, g: losses.cross_entropy(z, g["y"])),
    "smoothed": ("z", lambda z, g: losses.cross_entropy(z, g["y"], smoothing=0.1)),
    "soft": ("z", lambda z, g: losses.cross_entropy(z, g["soft"])),
    "binary": ("score", lambda s, g: losses.binary(s, g["share"])),
    "huber": ("z", lambda z, g: losses.huber(z, g["target"], delta=0.7)),
    "mse": ("z", lambda z, g: losses.mse(z, g["target"])),
    "mae": ("z", lambda z, g: losses.mae(z, g["target"])),
    "kl": ("z", lambda z, g: losses.kl(z, g["teacher"])),
    "hinge": ("score", lambda s, g: losses.hinge(s, g["bit"])),
    "multiclass_hinge": ("z", lambda z, g: losses.multiclass_hinge(z, g["y"])),
}


@pytest.mark.parametrize("name", [*LOSSES, "focal"])
def test_a_loss_has_the_values_and_slopes_of_torch(name):
    g = golden("losses")
    if name == "focal":  # gamma = 0 is cross-entropy
        at, loss, name = "z", lambda z, g: losses.focal(z, g["y"], gamma=0.0), "cross_entropy"
    else:
        at, loss = LOSSES[name]
    at = jnp.asarray(g[at])
    agree(loss(at, g), g[f"{name}/value"])
    agree(jax.grad(lambda at: loss(at, g).sum())(at), g[f"{name}/slope"])
