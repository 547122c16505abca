"""check: one look at the data and the first gradient before hours are spent."""

from __future__ import annotations

import math

import jax
import numpy as np

from nnkit.core import trees
from nnkit.loop.evaluation import GONE, read
from nnkit.loop.start import inspect_batch
from nnkit.train import Objective, gradient
from nnkit.train.nouns import expect

__all__ = ["check"]


def check(task: Objective, train, *, seed: int = 0) -> list[str]:
    """Inputs, labels, first loss and reach of the gradient, from one batch.

    The lowest and the highest label of the whole data set are tried on the model, if the data can
    tell them (`Batches.corners`).

    Args:
      task: an Objective.
      train: the training data: a `Batches`, or a re-iterable of batches [b ...].
      seed: for the first parameters.

    Returns:
      Lines that begin with "ok" or "!!" (worth a look).

    Raises:
      ValueError: if something cannot be right (see `nk.init`), or the first loss is not finite.

    >>> task = nk.supervised(nk.models.Linear(2), nk.losses.cross_entropy)
    >>> batch = {"x": jnp.array([[0.0], [1.0], [2.0]]), "y": jnp.array([0, 1, 1])}
    >>> for line in check(task, [batch]): print(line)
    ok  x float32[3,1]  mean 1  sd 0.816
    ok  y int32[3]  0..1
    ok  loss 0.6931 before the first step (chance among 2: 0.6931)
    ok  4 parameters; the gradient reaches all 2 tensors
    """
    expect("check", task, Objective)
    g = gradient(task)
    first = next(iter(train), None)
    if first is None:
        raise ValueError(f"the training data gave no batch, {GONE}")
    inspect_batch(first)
    key = jax.random.key(seed)
    for batch in [first, getattr(train, "corners", lambda: None)()]:
        if batch is not None:
            shapes = jax.eval_shape(lambda key, batch=batch: task.init(key, batch), key)
            jax.eval_shape(g.grad, *shapes, batch, key)
    lines = [_field(name, np.asarray(x)) for name, x in first.items() if name != "mask"]
    params, carry = jax.jit(task.init)(key, first)
    mean, (_, metrics) = jax.jit(g.grad)(params, carry, first, jax.random.key(seed + 1))
    loss = read(jax.device_get(metrics)).get("loss", math.nan)
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} before the first step; look at inputs and labels: "
            "classes or token ids that the model has not, numbers far from unit scale"
        )
    y = np.asarray(first["y"]) if "y" in first else np.zeros(0)
    classes = int(y.max()) + 1 if y.dtype.kind in "iu" and y.size else 0
    chance = f" (chance among {classes}: {math.log(classes):.4f})" if classes > 1 else ""
    lines.append(f"ok  loss {loss:.4f} before the first step{chance}")
    leaves = trees.paths(mean.total)
    dead = [path for path, x in leaves if not np.any(np.asarray(x))]
    size = sum(x.size for _, x in leaves)
    if dead:
        lines.append(f"!!  no gradient reaches {', '.join(dead[:5])} ({len(dead)} tensors)")
    else:
        lines.append(f"ok  {size:,} parameters; the gradient reaches all {len(leaves)} tensors")
    return lines


def _field(name: str, x: np.ndarray) -> str:
    text = f"{name} {trees.describe(x)}"
    if x.dtype.kind in "iub":
        if name == "y" and x.ndim == 1 and len(x) > 1 and x.min() == x.max():
            return f"!!  {text}  all are {x.min()}: is the data sorted by label?"
        return f"ok  {text}  {x.min()}..{x.max()}"
    mean, sd = float(x.mean()), float(x.std())
    fine = sd > 0 and abs(mean) < 20 and 1e-3 < sd < 20
    mark = "ok" if fine or name == "y" else "!!"
    return f"{mark}  {text}  mean {mean:.3g}  sd {sd:.3g}{'' if fine else '  scale it'}"
