"""Six kinds of model, tiny: what the promises about bits are tried on.

Between them they have all that a state can hold: batch statistics, dropout, random augmentation,
moments, a schedule, phases of accumulation, an average, a guard with its copy, a carry that goes
from batch to batch, counts, and keys that decide an objective.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnkit as nk

__all__ = ["KINDS", "Kind", "kind"]

B, N, SEED = 16, 96, 5  # rows of a batch, examples, seed of the first state


class Kind(NamedTuple):
    """A kind of model, made once: everything to train it with.

    Attributes:
      step: the Step.
      task: what it is evaluated on.
      batches: i -> batch number i of an endless stream; a `Batches`, shuffled each epoch.
      tx: the optimizer inside of the step.

    >>> Kind._fields
    ('step', 'task', 'batches', 'tx')
    """

    step: nk.Step
    task: nk.Objective
    batches: Any
    tx: optax.GradientTransformation

    def start(self, seed: int = SEED):
        """The first state."""
        return nk.init(self.step, jax.random.key(seed), next(iter(self.batches)))

    def update(self) -> Callable:
        """The compiled update, which does not consume the state; compiled once."""
        return _compiled(self.step.update)


@functools.lru_cache(maxsize=64)
def _compiled(update):
    return jax.jit(update)


class Normed(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(16, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(4)(nn.Dropout(0.3, deterministic=not train)(x))


def labelled(*shape: int) -> dict:
    """N examples of four classes that can be told apart."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, *shape)).astype(np.float32)
    plane = rng.normal(size=(int(np.prod(shape)), 4))
    return {"x": x, "y": (x.reshape(N, -1) @ plane).argmax(-1).astype(np.int32)}


def sequences() -> dict:
    """N texts of 8 tokens out of 11, each row going up by 1 to 3."""
    rng = np.random.default_rng(2)
    ids = (rng.integers(0, 11, (N, 1)) + rng.integers(1, 4, (N, 1)) * np.arange(9)) % 11
    return {"tokens": ids[:, :-1].astype(np.int32), "labels": ids[:, 1:].astype(np.int32)}


def by_hand(init: Callable, losses: Callable) -> nk.Objective:
    """An objective whose losses(params, carry, batch, key) -> ([b], carry) are anybody's own."""

    def loss(params, carry, batch, key):
        each, after = losses(params, carry, batch, key)
        mean = nk.Mean.of(each, batch.get("mask"))
        return mean, (carry if key is None else after, {"loss": mean})

    return nk.Objective(init, loss)


def mlp():
    """Dense layers with batch statistics and dropout: AdamW, a cosine, an average."""
    task = nk.supervised(Normed(), nk.losses.cross_entropy)
    tx = optax.adamw(nk.optim.warmup_cosine(1e-2, 200, 5))
    return nk.ema(nk.step(nk.gradient(task), tx), 0.9), task, labelled(8), tx


CONVNET = nk.models.ConvNet((4, 6), hidden=8)


def shifted(x, key):
    """Pictures [b h w 1] mirrored or not, and rolled by -1 to 1 pixels, each by itself."""
    flip, roll = jax.random.split(key)
    mirrored = jax.random.bernoulli(flip, 0.5, x.shape[:1])
    x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    by = jax.random.randint(roll, x.shape[:1], -1, 2)
    return jax.vmap(lambda one, n: jnp.roll(one, n, axis=1))(x, by)


def cnn():
    """A network of convolutions on pictures augmented by key: Nesterov, in phases of two."""

    def losses(params, carry, batch, key):
        x = batch["x"] if key is None else shifted(batch["x"], key)
        logits = CONVNET.apply({"params": params}, x)
        return nk.losses.cross_entropy(logits, batch["y"]), carry

    def init(key, batch):
        return CONVNET.init(key, batch["x"])["params"], {}

    tx = optax.MultiSteps(optax.sgd(0.05, momentum=0.9, nesterov=True), 2).gradient_transformation()
    task = by_hand(init, losses)
    return nk.step(nk.gradient(task), tx), task, labelled(8, 8, 1), tx


GPT = nk.models.GPT(vocabulary=11, length=8, width=16, depth=1, heads=2, hidden=24, dropout=0.1)


def transformer():
    """A language model with dropout: AdamW, a clipped gradient, bad batches skipped."""
    task = nk.causal_lm(GPT)
    tx = optax.adamw(nk.optim.warmup_cosine(1e-2, 200, 5))
    step = nk.skip_nonfinite(nk.step(nk.clipped(nk.gradient(task), 1.0), tx))
    return step, task, sequences(), tx


H = 12


def recurrent_init(key, batch):
    """Weights of a language model of one LSTM, and its state, which batches hand on."""
    keys = iter(jax.random.split(key, 3))
    draw = lambda *shape: jax.random.normal(next(keys), shape) / np.sqrt(shape[0])
    params = {"embed": draw(11, H), "gates": draw(2 * H, 4 * H), "out": draw(H, 11)}
    b = batch["tokens"].shape[0]
    return params | {"bias": jnp.zeros(4 * H)}, {"h": jnp.zeros((b, H)), "c": jnp.zeros((b, H))}


def recurrent_losses(params, carry, batch, key):
    """[b] nats of each text, and the state to begin the next batch with."""

    def one(held, x):
        gates = jnp.concatenate([x, held["h"]], -1) @ params["gates"] + params["bias"][None]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f + 1) * held["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        held = {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}
        return held, held["h"]

    x = params["embed"][batch["tokens"]].swapaxes(0, 1)  # [t b d]
    after, hidden = jax.lax.scan(one, carry, x)
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden / 0.9, 0)
    log_p = jax.nn.log_softmax((hidden @ params["out"]).swapaxes(0, 1))  # [b t v]
    chosen = jnp.take_along_axis(log_p, batch["labels"][..., None], -1)[..., 0]
    return -chosen.mean(-1), after


def recurrent():
    """An LSTM whose state goes on from batch to batch: RMSProp, with dropout."""
    tx = optax.rmsprop(3e-3)
    task = by_hand(recurrent_init, recurrent_losses)
    return nk.step(nk.gradient(task), tx), task, sequences(), tx


def vae_init(key, batch):
    """Weights of a variational autoencoder of 8 numbers with 3 hidden ones."""
    a, b = jax.random.split(key)
    return {
        "down": jax.random.normal(a, (8, 6)) / 3,
        "up": jax.random.normal(b, (3, 8)) / 2,
        "mean": jnp.zeros(8),
    }, {}


def vae_losses(params, carry, batch, key):
    """[b] minus the evidence bound, up to a constant."""
    mean, log_var = jnp.split(batch["x"] @ params["down"], 2, -1)
    drawn = 0 if key is None else jax.random.normal(key, mean.shape) * jnp.exp(log_var / 2)
    error = batch["x"] - (mean + drawn) @ params["up"] - params["mean"][None]
    divergence = (jnp.square(mean) + jnp.exp(log_var) - 1 - log_var).sum(-1) / 2
    return jnp.square(error).sum(-1) / 2 + divergence, carry


def vae():
    """A variational autoencoder: Adam, back to the last good state if need be."""
    tx = optax.adam(1e-2)
    task = by_hand(vae_init, vae_losses)
    return nk.rollback(nk.step(nk.gradient(task), tx), every=5), task, labelled(8), tx


def bandit_init(key, batch):
    """A policy over four arms, and what is known of each."""
    params = {"policy": 0.1 * jax.random.normal(key, (8, 4))}
    return params, {"pulls": jnp.zeros(4, jnp.int32), "value": jnp.zeros(4)}


def bandit_losses(params, carry, batch, key):
    """[b] REINFORCE with the value of an arm so far as baseline; arms are drawn by key."""
    logits = batch["x"] @ params["policy"]
    if key is None:
        return -jax.nn.softmax(logits)[jnp.arange(len(logits)), batch["y"]], carry
    draw, luck = jax.random.split(key)
    arm = jax.random.categorical(draw, logits)
    reward = (arm == batch["y"]).astype(jnp.float32) + 0.1 * jax.random.normal(luck, arm.shape)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), arm[:, None], -1)[:, 0]
    hit = jax.nn.one_hot(arm, 4)
    pulls = carry["pulls"] + hit.sum(0).astype(jnp.int32)
    gained = (hit * (reward[:, None] - carry["value"][None])).sum(0)
    value = carry["value"] + gained / jnp.maximum(pulls, 1).astype(jnp.float32)
    return -chosen * (reward - carry["value"][arm]), {"pulls": pulls, "value": value}


def bandit():
    """A bandit that sees features: momentum, every third update replayed."""
    tx = optax.sgd(0.1, momentum=0.9)
    task = by_hand(bandit_init, bandit_losses)
    return nk.replayed(nk.step(nk.gradient(task), tx), every=3), task, labelled(8), tx


KINDS = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "lstm": recurrent,
    "vae": vae,
    "bandit": bandit,
}


@functools.cache
def kind(name: str) -> Kind:
    """One of `KINDS`, the same one each time, so that its programs are compiled once.

    >>> sorted(kind("vae").start().inner.params)
    ['down', 'mean', 'up']
    """
    step, task, fields, tx = KINDS[name]()
    return Kind(step, task, nk.data.arrays(fields, batch_size=B), tx)
