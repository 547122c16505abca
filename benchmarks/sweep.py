"""Twenty runs as one program, against the same twenty one after another.

The recipe of experiments/digits.py: 4 learning rates x 5 seeds of an MLP with dropout. The single
runs are given every chance: hyperparameters are traced values, so that all twenty share one
program, compiled before the clock starts. Same batches, on the device; same number of steps.

Run      JAX_PLATFORMS=cpu python -m benchmarks.sweep [vmap | unrolled | in_turn]
Writes   results/sweep_<how>.json; target <= 0.6
Fails    if a member differs from its single run by more than 1e-6 after 100 steps, or if fit
         compiles the update other than once
"""

from __future__ import annotations

import collections
import itertools
import sys

import jax
import numpy as np

import nnkit as nk
from benchmarks.compare import compare
from experiments import digits
from nnkit import data, losses, metrics, models

CONFIG = digits.Config(steps=300)
CHECKED = 100
EACH = {"vmap": jax.vmap, "unrolled": nk.train.unrolled, "in_turn": nk.train.in_turn}


def recipe(h):
    """One run of the experiment."""
    import optax

    model = models.MLP(widths=(*CONFIG.widths, 10), dropout=CONFIG.dropout)
    task = nk.supervised(model, losses.cross_entropy, accuracy=metrics.accuracy)
    rate = optax.cosine_decay_schedule(1.0, CONFIG.steps)
    tx = optax.adamw(lambda n: h["learning_rate"] * rate(n), weight_decay=CONFIG.weight_decay)
    return nk.seeded(nk.step(nk.gradient(task), tx), h["seed"])


GRID = nk.train.product(learning_rate=CONFIG.learning_rates, seed=range(CONFIG.seeds))
MEMBERS = [dict(zip(GRID, values)) for values in zip(*GRID.values())]


class Singles:
    """The runs one after another, by one compiled program each for start and update."""

    def __init__(self, batches):
        self.batches = batches
        self.init = jax.jit(lambda h: recipe(h).init(jax.random.key(CONFIG.seed), batches[0]))
        self.update = jax.jit(lambda h, state, b: recipe(h).update(state, b), donate_argnums=1)

    def run(self, h, steps):
        """The state after so many steps."""
        state = self.init(h)
        for batch in self.batches[:steps]:
            state, _ = self.update(h, state, batch)
        return jax.block_until_ready(state)


def together(step, batches):
    """A function of steps: the state of all runs."""
    init = jax.jit(lambda: step.init(jax.random.key(CONFIG.seed), batches[0]))
    update = jax.jit(step.update, donate_argnums=0)

    def run(steps):
        state = init()
        for batch in batches[:steps]:
            state, _ = update(state, batch)
        return jax.block_until_ready(state)

    return run


def difference(step, together, singles):
    """The largest |a - b| / (1 + |b|) of the weights of any member after CHECKED steps."""
    ours = step.weights(together(CHECKED))[0]
    alone = [singles.run(h, CHECKED).params for h in MEMBERS]
    alone = jax.tree.map(lambda *x: np.stack(x), *alone)
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b) / (1 + np.abs(b))), ours, alone)
    return float(max(jax.tree.leaves(gaps)))


def compilations(step, batches):
    """{program: times compiled} during nk.fit."""
    state, counts = nk.init(step, jax.random.key(0), batches[0]), collections.Counter()

    def heard(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            counts[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(heard)
    nk.fit(step, state, batches, steps=50, log_every=10, progress=False)
    return dict(counts)


def main(how="vmap"):
    train, _ = data.embedded("digits", batch_size=CONFIG.batch_size, seed=CONFIG.seed)
    batches = [jax.device_put(b) for b in itertools.islice(train.stream(), CONFIG.steps)]
    step = nk.sweep(recipe, GRID, each=EACH[how])
    singles, run = Singles(batches), together(step, batches)
    worst = difference(step, run, singles)  # also compiles both sides
    print(f"largest difference of a weight after {CHECKED} steps: {worst:.2g}")
    compiled = compilations(step, batches)
    print(f"compiled by fit: {compiled}")
    sides = {
        "sweep": lambda: run(CONFIG.steps),
        "in turn": lambda: [singles.run(h, CONFIG.steps) for h in MEMBERS],
    }
    notes = {"steps": CONFIG.steps, "runs": len(MEMBERS), "difference": worst}
    compare(f"sweep_{how}", sides, rounds=5, compiled=compiled, **notes)
    assert compiled.get("jit(move)") == 1, compiled
    assert worst <= 1e-6, worst


if __name__ == "__main__":
    main(*sys.argv[1:])
