"""NU-05 and NU-10: what the loop computes is what a plain loop computes, and it learns.

`plain` is the loop that anybody would write with jax and optax; nothing of it comes from nnkit. The
models and the loss per example are the same functions in both: another way to write a loss is
another program, which XLA fuses, and rounds, in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import nnkit as nk
from reliability import kinds, progress

__all__ = ["MODELS", "overfit", "plain", "plain_loop"]


def plain(init: Callable, losses: Callable, tx, batches, key, steps: int):
    """Gradient descent in plain jax: ((params, carry, opt), the loss of each step).

    Args:
      init: (key, batch) -> (params, carry).
      losses: (params, carry, batch, key) -> (losses [...], carry).
      tx: any optimizer of optax.
      batches: an endless stream.
      key: a typed key.
      steps: number of updates.
    """
    start, key = jax.random.split(key)
    first = next(iter(batches))
    params, carry = jax.jit(init)(start, first)
    opt = tx.init(params)

    @jax.jit
    def update(params, carry, opt, count, batch):
        def total(params):
            each, after = losses(params, carry, batch, jax.random.fold_in(key, count))
            return each.sum(), (after, each.size)

        (loss, (after, n)), slope = jax.value_and_grad(total, has_aux=True)(params)
        slope = jax.tree.map(lambda g: g / n, slope)
        move, opt = tx.update(slope, opt, params)
        return optax.apply_updates(params, move), after, opt, loss, n

    seen = []
    for count, batch in zip(range(steps), batches.stream()):
        params, carry, opt, loss, n = update(params, carry, opt, count, batch)
        seen.append(float(loss) / float(n))
    return (params, carry, opt), seen


# --- the six kinds of model once more, for the plain loop ---
def mlp_init(key, batch):
    """Parameters and batch statistics."""
    found = kinds.Normed().init(key, batch["x"])
    return found["params"], {"batch_stats": found["batch_stats"]}


def mlp_losses(params, carry, batch, key):
    """[b] with dropout and the statistics of the batch."""
    logits, after = kinds.Normed().apply(
        {"params": params, **carry},
        batch["x"],
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return nk.losses.cross_entropy(logits, batch["y"]), after


def cnn_init(key, batch):
    """Parameters alone."""
    return kinds.CONVNET.init(key, batch["x"])["params"], {}


def cnn_losses(params, carry, batch, key):
    """[b] on augmented pictures."""
    logits = kinds.CONVNET.apply({"params": params}, kinds.shifted(batch["x"], key))
    return nk.losses.cross_entropy(logits, batch["y"]), carry


def transformer_init(key, batch):
    """Parameters alone."""
    return kinds.GPT.init(key, batch["tokens"])["params"], {}


def transformer_losses(params, carry, batch, key):
    """[b t] nats per token, with dropout."""
    logits = kinds.GPT.apply({"params": params}, batch["tokens"], train=True, rngs={"dropout": key})
    return nk.losses.cross_entropy(logits, batch["labels"]), carry


PLAIN = {  # the cheap ones first
    "mlp": (mlp_init, mlp_losses),
    "vae": (kinds.vae_init, kinds.vae_losses),
    "bandit": (kinds.bandit_init, kinds.bandit_losses),
    "lstm": (kinds.recurrent_init, kinds.recurrent_losses),
    "cnn": (cnn_init, cnn_losses),
    "transformer": (transformer_init, transformer_losses),
}


def plain_loop(count: int, seed: int, *, steps: int = 100) -> dict:
    """NU-05: `fit` against the plain loop, `count` kinds of model: every loss and every bit."""
    failures = []
    for name in list(PLAIN)[:count]:
        progress(f"NU-05: {name}")
        one = kinds.kind(name)
        with jax.numpy_dtype_promotion("standard"):  # optax is written for it
            want, losses = plain(*PLAIN[name], one.tx, one.batches, jax.random.key(seed), steps)
        step = nk.step(nk.gradient(one.task), one.tx)
        state = nk.init(step, jax.random.key(seed), next(iter(one.batches)))
        options = {"steps": steps, "log_every": 1, "progress": False}
        state, rows = nk.fit(step, state, one.batches, **options)
        off = [i for i, (row, loss) in enumerate(zip(rows, losses)) if row["loss"] != loss]
        if off or len(rows) != len(losses):
            failures.append(f"seed {seed}: {name}: the loss of step {off[0] + 1 if off else 0}")
        if nk.digest((state.params, state.carry, state.opt)) != nk.digest(want):
            failures.append(f"seed {seed}: {name}: the state after {steps} steps")
    return {"count": min(count, len(PLAIN)), "failures": failures, "steps": steps}


# --- it learns ---
class Model(NamedTuple):
    """A model of the library, and what it is asked to learn by heart.

    Attributes:
      task: an Objective.
      fields: 32 examples.
      classes: to choose from.
      rate: of Adam.

    >>> Model._fields
    ('task', 'fields', 'classes', 'rate')
    """

    task: Any
    fields: dict
    classes: int
    rate: float = 1e-2


def _classify(model, *shape) -> Model:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(32, *shape)).astype(np.float32)
    task = nk.supervised(model, nk.losses.cross_entropy)
    return Model(task, {"x": x, "y": rng.integers(0, 10, 32).astype(np.int32)}, 10)


def _language() -> Model:
    ids = np.random.default_rng(4).integers(0, 11, (32, 1))
    ids = (ids + np.arange(1, 10) * (1 + np.arange(32)[:, None] % 3)) % 11
    fields = {"tokens": ids[:, 1:-1].astype(np.int32), "labels": ids[:, 2:].astype(np.int32)}
    fields["tokens"][:, 0] = np.arange(32) % 11 + 11  # the first token says how it goes on
    fields["labels"] = (fields["tokens"][:, :1] + np.arange(7)).astype(np.int32) % 11
    model = nk.models.GPT(vocabulary=22, length=8, width=16, depth=1, heads=2)
    return Model(nk.causal_lm(model), fields, 22)


MODELS = {
    "MLP": lambda: _classify(nk.models.MLP((32, 10)), 12),
    "RecurrentClassifier": lambda: _classify(nk.models.RecurrentClassifier(10, width=16), 5, 6),
    "GPT": _language,
    "ConvNet": lambda: _classify(nk.models.ConvNet((8, 16), hidden=32, dropout=0.0), 8, 8, 1),
    "ViT": lambda: _classify(
        nk.models.ViT(classes=10, width=16, depth=1, heads=2, patch=4, image=(8, 8), channels=1),
        8,
        8,
        1,
    ),
    "ResNet": lambda: _classify(nk.models.ResNet((1,), (8,), 10, small=True), 8, 8, 1),
}


def overfit(count: int, seed: int, *, steps: int = 800) -> dict:
    """NU-10: `count` models learn 32 examples by heart, to a loss below 1e-3.

    The first loss is that of chance, ln(classes), within 5 %; for those that begin elsewhere it is
    told how far from it: "first_MODEL" is the ratio.
    """
    failures, found = [], {}
    for name in list(MODELS)[:count]:
        progress(f"NU-10: {name}")
        model = MODELS[name]()
        step = nk.step(nk.gradient(model.task), optax.adam(model.rate))
        state = nk.init(step, jax.random.key(seed), model.fields)
        update, best = jax.jit(step.update), math.inf
        for i in range(steps):
            state, metrics = update(state, model.fields)
            if i == 0:
                found[f"first_{name}"] = float(metrics["loss"].value) / math.log(model.classes)
            if i % 20 == 19:
                best = min(best, float(metrics["loss"].value))
                if best < 1e-3:
                    break
        if not best < 1e-3:
            failures.append(f"seed {seed}: {name} came to {best:.1e} in {steps} updates")
    return {"count": min(count, len(MODELS)), "failures": failures, **found}
