"""Which model classes read MNIST-1D, where position moves and a line sees nothing?

Logistic regression, a perceptron, a convolutional and a recurrent network on 4,000 examples of
length 40. The seeds of one model are one compiled program: they differ in first weights and
dropout, and share the batches (logistic regression starts from 0, so that its members are equal).

The defaults are the settings of the authors: Adam at 0.01, 6,000 steps of 100 examples. Their
perceptron has a skip connection besides, and their weights start uniform, as torch's do. Decay and
dropout were chosen on 800 held-out training examples (`--split validation`). The test part is read
once in a run, after the last step; the runs below are all there were.

Run      nnkit train mnist1d --model cnn            (logistic, mlp, cnn, gru)
         nnkit train mnist1d --model cnn --decay --dropout 0.3
Takes    7, 19, 81 and 121 s of processor time for six seeds, on a CPU
Result   logistic 32.60, mlp 67.87 ± 1.13, cnn 93.48 ± 0.87, gru 89.82 ± 2.60 % (published: 32, 68,
         94, 91); with decay and dropout 33.40, 69.35 ± 1.60, 96.35 ± 0.52 and 93.57 ± 0.76 %
         (n = 6 seeds), 2026-11-22; experiments/README.md

Greydanus & Kobak, arXiv:2011.14439; settings from the code published with it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

import nnkit as nk
from nnkit import layers, models


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment.

    Args:
      model: logistic (410 weights), mlp (two hidden layers of 100: 15,210), cnn (three
        convolutions of 25 channels: 5,210) or gru (6 units in both directions, all 40 outputs
        read: 5,134).
      seeds: members of the one program.
      steps: updates; 6,000 of 100 examples are 150 epochs.
      batch_size: examples per step.
      learning_rate: first rate of Adam.
      decay: whether the rate falls to 0 along a cosine, or stays.
      weight_decay: decoupled, times the rate.
      dropout: share of units dropped before the last layer.
      split: test trains on all 4,000 and reports the 1,000 of the test part; validation trains on
        3,200 of the 4,000 and reports the other 800, to choose settings.
      seed: base of everything random.
    """

    model: Literal["logistic", "mlp", "cnn", "gru"] = "cnn"
    seeds: int = 6
    steps: int = 6_000
    batch_size: int = 100
    learning_rate: float = 1e-2
    decay: bool = False
    weight_decay: float = 0.0
    dropout: float = 0.0
    split: Literal["test", "validation"] = "test"
    seed: int = 0

    def __post_init__(self):
        nk.checks.typed(self)
        nk.checks.positive(
            learning_rate=self.learning_rate,
            seeds=self.seeds,
            steps=self.steps,
            batch_size=self.batch_size,
        )


class Convolutional(nn.Module):
    """Three convolutions over time with stride 2 and ReLU, then one affine layer.

    Args:
      channels: of each convolution.
      classes: number of outputs.
      dropout: share of the last layer's inputs dropped while training.

    Call: x [b t], train=False -> [b classes].
    """

    channels: int = 25
    classes: int = 10
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        h = x[..., None]  # [b t 1]
        for i, width in enumerate((5, 3, 3)):
            conv = layers.Conv(self.channels, width, strides=2, padding=1, name=f"conv_{i}")
            h = nn.relu(conv(h))  # [b t/2 channels]
        h = jnp.reshape(h, (h.shape[0], -1))
        h = layers.Dropout(self.dropout)(h, train=train)
        return layers.Dense(self.classes, name="head")(h)


class Recurrent(nn.Module):
    """A GRU in both directions; one affine layer reads its outputs at all times.

    Args:
      width: units of each direction.
      classes: number of outputs.
      dropout: share of the last layer's inputs dropped while training.

    Call: x [b t], train=False -> [b classes].
    """

    width: int = 6
    classes: int = 10
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        h, _ = layers.Bidirectional(layers.GRU(self.width), name="gru")(x[..., None])
        h = jnp.reshape(h, (h.shape[0], -1))  # [b t*2*width]
        h = layers.Dropout(self.dropout)(h, train=train)
        return layers.Dense(self.classes, name="head")(h)


def network(config: Config):
    """The model of that name, in the sizes of the paper."""
    return {
        "logistic": models.Linear(10),
        "mlp": models.MLP((100, 100, 10), dropout=config.dropout),
        "cnn": Convolutional(dropout=config.dropout),
        "gru": Recurrent(dropout=config.dropout),
    }[config.model]


def batches(config: Config):
    """(train, {split: held out})."""
    from nnkit import data

    train, held = data.embedded("mnist1d", batch_size=config.batch_size, seed=config.seed)
    if config.split == "validation":
        train, held = train.split(0.8, seed=config.seed)
    return train, {config.split: held}


def single(config: Config, train):
    """(task, step, updates) of one run; its numbers may be traced, which `nnkit sweep` does."""
    import optax

    from nnkit import losses, metrics

    task = nk.supervised(network(config), losses.cross_entropy, accuracy=metrics.accuracy)
    rate = config.learning_rate
    if config.decay:
        shape = optax.cosine_decay_schedule(1.0, config.steps)
        rate = lambda count: config.learning_rate * shape(count)
    tx = optax.adamw(rate, weight_decay=config.weight_decay)
    return task, nk.step(nk.gradient(task), tx), config.steps


def build(config: Config):
    """(step, train, evaluations): the seeds as one Step."""
    import jax

    train, held = batches(config)
    task, step, _ = single(config, train)
    each = jax.vmap  # at this size quicker than members one by one, convolutions included
    step = nk.ensemble(step, config.seeds, each=each)
    judged = nk.stacked(task, each=each)
    return step, train, {split: nk.evaluate(judged, b, split=split) for split, b in held.items()}


def main(config: Config, folder=None):
    """Train the seeds together, print the table, return its rows."""
    import jax

    step, train, evaluations = build(config)
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    with nk.Run(folder, config, experiment="mnist1d", save_every=config.steps) as run:
        every = {config.steps: evaluations[config.split]}
        state, rows = nk.fit(step, state, train, steps=config.steps, every=every, run=run)
        table = results(config, rows)
        run.conclude(table)
    return table


def results(config: Config, rows):
    """Accuracy and loss after the last step: mean ± 95 % CI over the seeds."""
    last = [row for row in rows if row.get("split") == config.split][-1]
    return [
        {
            "model": config.model,
            "seeds": config.seeds,
            "steps": config.steps,
            f"{config.split} accuracy": nk.loop.percent(last["accuracy"]),
            f"{config.split} loss": nk.loop.number(last["loss"]),
            f"{config.split} accuracies": last["accuracy"].tolist(),
        }
    ]


if __name__ == "__main__":
    nk.cli.launch(__file__)
