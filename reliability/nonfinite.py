"""NU-07: a NaN or an infinity in a batch, a gradient or a parameter, under three policies."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnkit as nk
from nnkit.core import trees
from nnkit.loop.nonfinite import spoilt
from reliability import kinds, progress

__all__ = ["poisoned"]

SITES = "batch", "gradient", "parameter"
VALUES = np.nan, np.inf, -np.inf
STEPS, EVERY, TIMES = 50, 7, 3


def spoil(tree, on, which, code):
    """The first number of leaf `which` of a tree [...] replaced by `VALUES[code]`, if `on` []."""
    flat, form = jax.tree.flatten(tree)
    value = jnp.asarray(VALUES, jnp.float32)[code]

    def one(n, x):
        hit = on & (which % len(flat) == n)
        first = jnp.where(hit, value.astype(x.dtype), x.reshape(-1)[0])
        return x.reshape(-1).at[0].set(first).reshape(x.shape)

    return jax.tree.unflatten(form, [one(n, x) for n, x in enumerate(flat)])


def poisonable() -> nk.Step:
    """Batch statistics, dropout, AdamW by a schedule and an average; a batch says what goes wrong.

    "site" [b] 0 nothing or the batch itself, 1 the gradient, 2 a new parameter; "leaf" and "value".
    """
    task = nk.supervised(kinds.Normed(), nk.losses.cross_entropy)
    right = nk.gradient(task)

    def grad(params, carry, batch, key):
        mean, aux = right.grad(params, carry, batch, key)
        wrong = spoil(mean.total, batch["site"][0] == 1, batch["leaf"][0], batch["value"][0])
        return nk.Mean(wrong, mean.weight), aux

    inner = nk.step(right._replace(grad=grad), optax.adamw(nk.optim.warmup_cosine(1e-2, 120, 5)))

    def update(state, batch):
        new, metrics = inner.update(state, batch)
        wrong = spoil(new.params, batch["site"][0] == 2, batch["leaf"][0], batch["value"][0])
        return dataclasses.replace(new, params=wrong), metrics

    return nk.ema(inner._replace(update=update), 0.9)


@functools.cache
def clean() -> list[dict]:
    """Batches in which nothing is wrong."""
    data = nk.data.arrays(kinds.labelled(8), batch_size=kinds.B)
    zero = {name: np.zeros(kinds.B, np.int32) for name in ("site", "leaf", "value")}
    return [{**batch, **zero} for _, batch in zip(range(STEPS + 4), data.stream())]


def wrong(batch: dict, site: str, rng: random.Random) -> dict:
    """The batch with something wrong: a number of x, or what is to happen later."""
    code, batch = rng.randrange(len(VALUES)), dict(batch)
    if site == "batch":
        batch["x"] = batch["x"].copy()
        batch["x"][rng.randrange(kinds.B), rng.randrange(8)] = VALUES[code]
    numbers = {"site": SITES.index(site), "leaf": rng.randrange(100), "value": code}
    return batch | {name: np.full(kinds.B, n, np.int32) for name, n in numbers.items()}


@functools.cache
def followed(policy: str):
    """(step, compiled update, the state after each of 0 to 53 clean updates)."""
    step = poisonable()
    if policy == "skip":
        step = nk.skip_nonfinite(step)
    if policy == "rollback":
        step = nk.rollback(step, every=EVERY, times=TIMES)
    state = nk.init(step, jax.random.key(0), clean()[0])
    if policy == "raise":
        return step, None, [state]
    update, states = jax.jit(step.update), [state]
    for batch in clean():
        state, _ = update(state, batch)
        states.append(state)
    return step, update, states


def weights_of(metrics) -> float:
    """What all metrics weigh together but for those of the guard, and counts of wrong labels."""
    named = [m for name, m in metrics.items() if name not in GUARDS and "outside" not in name]
    return float(sum(np.sum(m.weight) for m in named))


GUARDS = "skipped", "rolled_back"


def skips(at: int, bad: dict) -> str:
    """What is wrong with skipping; "" if nothing is."""
    _, update, states = followed("skip")
    after, metrics = update(states[at], bad)
    if nk.digest(after) != nk.digest(states[at]):
        return f"the state differs: {_first(after, states[at])}"
    if float(metrics["skipped"].value) != 1 or weights_of(metrics):
        return "the metrics do not say that the update was skipped"
    onward, _ = update(after, clean()[at])
    return "" if nk.digest(onward) == nk.digest(states[at + 1]) else "the update after it differs"


def goes_back(at: int, bad: dict) -> str:
    """What is wrong with going back; "" if nothing is."""
    _, update, states = followed("rollback")
    good, state = states[at - at % EVERY].inner, states[at]
    for time in range(1, TIMES + 1):
        state, metrics = update(state, bad)
        if nk.digest(state.inner) != nk.digest(good):
            return f"time {time}: {_first(state.inner, good)}"
        if float(metrics["rolled_back"].value) != 1 or weights_of(metrics):
            return f"time {time}: the metrics do not say so"
    onward, metrics = update(state, clean()[at])
    if spoilt(onward) or not np.isfinite(float(metrics["loss"].value)):
        return "the update after it is not finite"
    _, metrics = update(state, bad)
    loss, again = (float(metrics[name].value) for name in ("loss", "rolled_back"))
    return "" if np.isnan(loss) and not again else f"{TIMES + 1} times, and no NaN: loss {loss}"


def raises(at: int, bad: dict, site: str, rng: random.Random, folder: Path) -> str:
    """What is wrong with stopping: message, file, checkpoints; "" if nothing is."""
    step, _, (state,) = followed("raise")
    state = jax.tree.map(jnp.copy, state)
    batches = [*clean()[:at], bad, *clean()[at : at + 3]]
    options = {"steps": len(batches), "log_every": rng.randrange(1, 9), "progress": False}
    run = nk.Run(folder, {"at": at}, save_every=rng.randrange(1, 20), keep_last=2)
    try:
        with run:
            nk.fit(step, state, batches, run=run, **options)
    except FloatingPointError as error:
        text = str(error)
    except ValueError as error:  # the first batches are looked at before they are used
        seen = site == "batch" and at < 3 and "NaN or infinity" in str(error)
        return "" if seen else f"another error: {error}"
    else:
        return "nothing was raised"
    found = re.search(r"(?:at|after) step (\d+) .*not so at step (\d+)", text, re.S)
    late = SITES.index(site)  # a bad gradient shows one update later, relu(-inf) two
    if found is None or not int(found[2]) - late <= at < int(found[1]):
        return f"the steps are not in it: {text}"
    told = json.loads((folder / "nonfinite.json").read_text())
    leaves = [leaf["path"] for leaf in told["leaves"]]
    if leaves and repr(leaves[0]) not in text:
        return f"the first leaf is not in it: {text}"
    kept = run.checkpoints.steps()
    if kept and kept[-1] > at:
        return f"a checkpoint at {kept[-1]}, after the bad update {at + 1}"
    if kept and spoilt(run.checkpoints.restore(followed("raise")[2][0]).state):
        return f"the checkpoint at {kept[-1]} is not finite"
    return ""


def poisoned(count: int, seed: int) -> dict:
    """NU-07: `count` bad numbers in batch, gradient and parameter at steps 1 to 50, three policies.

    raise: an error with the steps and the first bad leaf, all such leaves in a file, no bad state
    saved. skip: the state bit by bit as if the batch had not been seen. rollback: the state of the
    last copy, three times; the fourth is an error.
    """
    failures = []
    for trial in range(count):
        if trial % 25 == 0:
            progress(f"NU-07: trial {trial} of {count}")
        rng = random.Random(f"{seed}-{trial}")
        site, at = SITES[trial % 3], (trial // 3 * STEPS // -(-count // 3)) % STEPS
        bad = wrong(clean()[at], site, rng)
        with tempfile.TemporaryDirectory() as folder:
            found = {
                "skip": skips(at, bad),
                "rollback": goes_back(at, bad),
                "raise": raises(at, bad, site, rng, Path(folder) / "run"),
            }
        where = f"seed {seed} trial {trial}: {site} at step {at + 1}"
        failures += [f"{where}: {policy}: {text}" for policy, text in found.items() if text]
    return {"count": count, "failures": failures, "policies": 3}


def _first(found, wanted) -> str:
    pairs = zip(trees.paths(trees.plain(found)), trees.paths(trees.plain(wanted)))
    off = [path for (path, x), (_, y) in pairs if not np.array_equal(x, y)]
    return ", ".join(off[:3])
