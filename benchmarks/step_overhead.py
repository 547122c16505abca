"""What does nnkit cost per step, where the arithmetic costs almost nothing?

An MLP 16-16-4 on batches of 32, AdamW. One side is what one would write by hand, with the same
model, loss and optimizer; the other is

    update   jax.jit(step.update) of nk.step(nk.gradient(nk.supervised(...)), tx), one batch
    fit      the whole of nk.fit over a list of batches, against a loop over the same list

Run      JAX_PLATFORMS=cpu python -m benchmarks.step_overhead
Writes   results/step_update.json, results/step_fit.json; target of the first: <= 1.15
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnkit as nk
from benchmarks.compare import compare
from nnkit import losses, models

STEPS, BATCH, INPUTS, CLASSES = 2_000, 32, 16, 4
MODEL = models.MLP(widths=(16, CLASSES))
TX = optax.adamw(1e-3)


def make_batches(n: int):
    """n batches {"x" [b d], "y" [b]} on the device."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, BATCH, INPUTS), np.float32)
    y = rng.integers(CLASSES, size=(n, BATCH), dtype=np.int32)
    return [jax.device_put({"x": a, "y": b}) for a, b in zip(x, y)]


def bare():
    """(first state, update) without nnkit; the key is folded as dropout would need it."""

    def init(key, batch):
        start, key = jax.random.split(key)
        params = MODEL.init(start, batch["x"])["params"]
        return params, TX.init(params), key, jnp.int32(0)

    def update(state, batch):
        params, opt, key, count = state
        rngs = {"dropout": jax.random.fold_in(key, count)}

        def loss(params):
            logits = MODEL.apply({"params": params}, batch["x"], train=True, rngs=rngs)
            return losses.cross_entropy(logits, batch["y"]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        move, opt = TX.update(grads, opt, params)
        return (optax.apply_updates(params, move), opt, key, count + 1), value

    return init, jax.jit(update, donate_argnums=0)


def runner(update, state, batches):
    """A function that goes on for STEPS updates, and waits for the last."""
    held = [state]

    def go():
        state = held[0]
        for batch in itertools.islice(itertools.cycle(batches), STEPS):
            state, _ = update(state, batch)
        held[0] = jax.block_until_ready(state)

    return go


def main():
    batches = make_batches(50)
    key = jax.random.key(0)
    init, update = bare()
    step = nk.step(nk.gradient(nk.supervised(MODEL, losses.cross_entropy)), TX)
    ours = jax.jit(step.update, donate_argnums=0)

    def first():
        return nk.init(step, key, batches[0])

    held = [first()]

    def fit():
        state, _ = nk.fit(step, held[0], batches, steps=STEPS, log_every=STEPS, progress=False)
        held[0] = jax.block_until_ready(state)

    pairs = {
        "step_update": {
            "nnkit": runner(ours, first(), batches[:1]),
            "bare": runner(update, init(key, batches[0]), batches[:1]),
        },
        "step_fit": {"nnkit": fit, "bare": runner(update, init(key, batches[0]), batches)},
    }
    for name, sides in pairs.items():
        for side in sides.values():
            side()  # compile and warm
        row = compare(name, sides, rounds=7, steps=STEPS)
        for side, seconds in row["seconds"].items():
            print(f"    {side}: {1e6 * sorted(seconds)[len(seconds) // 2] / STEPS:.1f} us per step")


if __name__ == "__main__":
    main()
