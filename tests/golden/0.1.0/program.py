"""The run whose checkpoint lies beside this file, written with the names of release 0.1.0."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax

import nnkit as nk

CONFIG = {"seed": 7, "steps": 20, "learning_rate": 1e-2, "widths": [12, 3]}


class Network(nn.Module):
    """Two layers with batch statistics and dropout: x [b d] -> logits [b 3]."""

    @nn.compact
    def __call__(self, x, *, train=False):
        h = nn.Dense(CONFIG["widths"][0])(x)
        h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))
        return nn.Dense(CONFIG["widths"][1])(nn.Dropout(0.25, deterministic=not train)(h))


def batches():
    """80 points of two classes of noise and one of signal, in batches of 16."""
    rng = np.random.RandomState(3)
    y = (np.arange(80) % 3).astype(np.int32)
    x = (rng.standard_normal((80, 6)) + y[:, None]).astype(np.float32)
    return nk.data.arrays(x, y, batch_size=16, seed=5)


def train(folder, steps: int):
    """The run, from where the folder is, until so many steps: (state, rows)."""
    task = nk.supervised(Network(), nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)
    adam = optax.adamw(optax.cosine_decay_schedule(CONFIG["learning_rate"], 100))
    step = nk.skip_nonfinite(nk.ema(nk.step(nk.gradient(task), adam), 0.9))
    data = batches()
    state = nk.init(step, jax.random.key(CONFIG["seed"]), next(iter(data)))
    with nk.Run(folder, CONFIG, save_every=20) as run:
        return nk.fit(step, state, data, steps=steps, log_every=1, run=run, progress=False)
