"""Twenty runs as one program, against the same twenty one after another.

The recipe of experiments/digits.py: 4 learning rates x 5 seeds of an MLP with dropout. The single
runs are given every chance: hyperparameters are traced values, so that all twenty share one
program, compiled before the clock starts. Same batches, on the device; same number of steps.
`spread` is what the experiment does: two cores as two devices, each with ten runs in turn.

Run      JAX_PLATFORMS=cpu python -m benchmarks.sweep_digits [spread | vmap | unrolled | ...]
Writes   results/sweep_<how>.json; target <= 0.6
Fails    if a loss of a member differs by more than 1e-6 from its single run's in 100 steps, or if
         fit compiles the update other than once
"""

from __future__ import annotations

import collections
import itertools
import sys
from functools import partial

import jax
import numpy as np

import nnkit as nk
from benchmarks.compare import compare
from experiments import digits
from nnkit import data, losses, metrics, models

jax.config.update("jax_num_cpu_devices", 2)
CONFIG = digits.Config(steps=300)
CHECKED = 100
EACH = {
    "spread": lambda: nk.spread(nk.mesh(run=2)),
    "vmap": lambda: jax.vmap,
    "unrolled": lambda: nk.unrolled,
    "in_turn": lambda: nk.in_turn,
    "chosen": lambda: None,
}


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


def loop(state, update, batches):
    """(state, [metrics of each step]), done."""
    log = []
    for batch in batches:
        state, seen = update(state, batch)
        log.append(seen)
    return jax.block_until_ready((state, log))


def together(step, batches):
    """A function: steps -> (state, log) of all runs."""
    init = jax.jit(lambda: step.init(jax.random.key(CONFIG.seed), batches[0]))
    update = jax.jit(step.update, donate_argnums=0)
    return lambda steps: loop(init(), update, batches[:steps])


def one_by_one(batches):
    """A function: steps -> [(state, log)] of the runs, by one program for start and update each."""
    init = jax.jit(lambda h: recipe(h).init(jax.random.key(CONFIG.seed), batches[0]))
    update = jax.jit(lambda h, state, b: recipe(h).update(state, b), donate_argnums=1)
    return lambda n: [loop(init(h), partial(update, h), batches[:n]) for h in MEMBERS]


def differences(step, run, singles):
    """The largest |a - b| / (1 + |b|) after CHECKED steps, of the losses on the way and weights.

    Batched and single products round differently. AdamW divides by the size of the gradient, so
    a weight whose gradient is near its eps (a pixel that is nearly always 0) may move by any share
    of the learning rate: weights are shown, losses are held to 1e-6.
    """
    state, log = run(CHECKED)
    states, logs = zip(*singles(CHECKED))
    ours = {"losses": [m["loss"].value for m in log], "weights": step.weights(state)[0]}
    alone = {
        "losses": [np.stack([m["loss"].value for m in now]) for now in zip(*logs)],
        "weights": jax.tree.map(lambda *x: np.stack(x), *(s.params for s in states)),
    }
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b) / (1 + np.abs(b))), ours, alone)
    return {name: float(np.max(jax.tree.leaves(gap))) for name, gap in gaps.items()}


def compilations(step, batches):
    """{program: times compiled} during nk.fit."""
    state, counts = nk.init(step, jax.random.key(0), batches[0]), collections.Counter()

    def heard(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            counts[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(heard)
    nk.fit(step, state, batches, steps=50, log_every=10, progress=False)
    return dict(counts)


def main(how="spread"):
    train, _ = data.embedded("digits", batch_size=CONFIG.batch_size, seed=CONFIG.seed)
    batches = [jax.device_put(b) for b in itertools.islice(train.stream(), CONFIG.steps)]
    step = nk.sweep(recipe, GRID, each=EACH[how]())
    singles, run = one_by_one(batches), together(step, batches)
    gaps = differences(step, run, singles)  # compiles both sides, too
    print(f"largest differences in {CHECKED} steps: {gaps}")
    compiled = compilations(nk.sweep(recipe, GRID, each=EACH[how]()), batches)
    print(f"compiled by fit: {compiled}")
    sides = {"sweep": lambda: run(CONFIG.steps), "in turn": lambda: singles(CONFIG.steps)}
    notes = {"steps": CONFIG.steps, "runs": len(MEMBERS), "differences": gaps}
    compare(f"sweep_{how}", sides, rounds=5, compiled=compiled, **notes)
    assert sum(compiled.values()) == 1, compiled
    assert gaps["losses"] <= 1e-6, gaps


if __name__ == "__main__":
    main(*sys.argv[1:])
