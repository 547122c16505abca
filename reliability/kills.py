"""SIGKILL at random moments of saving and of training: nothing acknowledged is lost."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reliability import progress
from reliability.children import Child, child
from reliability.forks import Forks

__all__ = ["anywhere", "at_random", "until_done", "while_saving"]

SIZES = (0.1, 10.0, 100.0)  # megabytes of a state
TRAINING = "import sys; from reliability import kills; kills.training(*map(float, sys.argv[2:]))"


def drawn(step: int, numbers: int) -> dict[str, np.ndarray]:
    """{"w": [numbers]}: the state of a step, which does not compress."""
    return {"w": np.random.default_rng(step).random(numbers, np.float32)}


def saving(folder: str, keep: int, numbers: int, waits: bool) -> None:
    """Saves step after step until it is killed, and says which are committed."""
    from nnkit.checkpoint import Checkpoints

    saver = Checkpoints(folder, keep_last=keep)
    step = saver.restore(drawn(0, numbers)).step if saver.steps() else 0
    print("ready", step, flush=True)
    while True:
        step += 1
        saver.save(step, drawn(step, numbers), position=step)
        if waits:
            saver.wait()
        print("ack", step if waits else step - 1, flush=True)  # `save` waits for the one before


def while_saving(count: int, seed: int, sizes=SIZES) -> dict:
    """Kills a process 1 ms to 1 s (log-uniform) after it began to save, again and again.

    Of 12 kills with 0.1 MB, 3 are with 10 MB and 1 with 100 MB; keep is 1, 2, 3, with and without
    waiting for each save. After each kill: all that was acknowledged is there, all that is listed
    can be read, bit by bit, opening the folder leaves no temporaries, at most keep + 1 steps stay.

    Args:
      count: kills.
      seed: of the times.
      sizes: megabytes of the states.

    Returns:
      count, failures, interrupted (kills that left a temporary behind), acknowledged.
    """
    failures, cut, acknowledged = [], 0, 0
    with tempfile.TemporaryDirectory() as root, Forks("kills") as forks:
        known: dict[str, int] = {}
        for trial in range(count):
            rng = random.Random(f"{seed}-{trial}")
            size = rng.choices(sizes, (12, 3, 1)[: len(sizes)])[0]
            numbers, keep, waits = int(size * 250_000), rng.randint(1, 3), rng.random() < 0.5
            folder = Path(root, f"{size}-{keep}-{waits}")
            told = f"seed {seed}, trial {trial}, {size} MB, keep {keep}, waits {waits}"
            forks.start("saving", folder=str(folder), keep=keep, numbers=numbers, waits=waits)
            ready = forks.until("ready")
            if ready is None or int(ready.split()[1]) < known.get(folder.name, 0):
                failures.append(f"{told}: started with {ready}, not {known.get(folder.name, 0)}")
            forks.until("ack")
            forks.kill(0.001 * 1000 ** rng.random())
            ended = forks.wait()
            if ended.code != -9:
                failures.append(f"{told}: ended with {ended.code}: {forks.child.said()[-800:]}")
            acks = [int(line.split()[1]) for line in ended.lines if line.startswith("ack ")]
            known[folder.name] = max([known.get(folder.name, 0), *acks])
            acknowledged += len(acks)
            cut += bool(hidden(folder))
            failures += [f"{told}: {why}" for why in lost(folder, known[folder.name], keep)]
            progress(f"kill {trial + 1} of {count}: {told}, {len(failures)} failures")
    return {
        "count": count, "failures": failures, "interrupted": cut, "acknowledged": acknowledged,
    }  # fmt: skip


def hidden(folder: Path) -> list[str]:
    """What is neither a checkpoint nor the id of the run: temporaries of saves and deletions."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if name != ".run" and not name.isdigit()]


def lost(folder: Path, acknowledged: int, keep: int) -> list[str]:
    """What is wrong with a folder of `drawn` states after a kill."""
    from nnkit.checkpoint import Checkpoints, verify
    from nnkit.core import trees

    saver, problems = Checkpoints(folder), []
    if left := hidden(folder):
        problems.append(f"opening it left {left}")
    steps = saver.steps()
    if (saver.latest() or 0) < acknowledged:
        problems.append(f"step {acknowledged} was acknowledged, the steps are {steps}")
    if len(steps) > keep + 1:
        problems.append(f"{len(steps)} steps with keep_last={keep}")
    for step in steps:
        problems += verify(folder / f"{step:08d}")
        shape = tuple(saver.info(step)["leaves"][0]["shape"])
        found = saver.restore(drawn(0, *shape), step)
        if trees.digest(found.state) != trees.digest(drawn(step, *shape)):
            problems.append(f"step {step} holds other bits")
    return problems


def training(size: float, keep: float, every: float, waits: float) -> None:
    """Trains a vector of some megabytes in the folder sys.argv[1] until it is killed."""
    import jax
    import jax.numpy as jnp
    import optax

    import nnkit as nk

    n = int(size * 125_000)  # a weight and its momentum are 8 bytes
    task = nk.objective(
        lambda key, batch: jax.random.normal(key, (n,)),
        lambda w, batch, key: ((w - batch["x"].mean()) ** 2).mean() * jnp.ones_like(batch["x"]),
    )
    step = nk.step(nk.gradient(task), optax.sgd(0.1, momentum=0.9))
    data = nk.data.arrays({"x": np.arange(64, dtype=np.float32)}, batch_size=8)
    state = nk.init(step, jax.random.key(0), next(iter(data)))
    config = {"size": size, "keep": keep, "every": every}
    with nk.Run(sys.argv[1], config, save_every=int(every), keep_last=int(keep)) as run:

        def tell(params, carry):
            if waits:
                run.checkpoints.wait()
            print("ack", run.checkpoints.latest() or 0, flush=True)

        print("ready", run.checkpoints.latest() or 0, flush=True)
        nk.fit(step, state, data, steps=10**6, every={1: tell}, run=run, progress=False)


def at_random(count: int, seed: int) -> dict:
    """Kills `fit` in a process of its own at a random moment, then gives the same command again.

    A quarter of the kills come 5 ms to 5 s after the start of the process, the others 5 ms to 30 s
    after its training began (log-uniform). States of 0.1, 10 and 100 MB, keep 1, 2, 3, a save
    every 1, 3 or 10 steps, with and without waiting for them.

    Args:
      count: kills.
      seed: of the times and settings.

    Returns:
      count, failures, interrupted (kills that left a temporary behind), listed (steps verified).
    """
    failures, cut, listed = [], 0, 0
    with tempfile.TemporaryDirectory() as root:
        known: dict[str, int] = {}
        for trial in range(count):
            rng = random.Random(f"{seed}-{trial // 4}")  # four kills of one run
            size, keep = rng.choices(SIZES, (12, 3, 1))[0], rng.randint(1, 3)
            every, waits = rng.choice((1, 3, 10)), rng.random() < 0.5
            rng = random.Random(f"{seed}-{trial}-when")
            folder = Path(root, f"{trial // 4}")
            told = f"seed {seed}, trial {trial}, {size} MB, keep {keep}, every {every}"
            one = child(TRAINING, folder, size, keep, every, int(waits))
            problems = killed(one, rng, known, folder)
            cut += bool(hidden(folder / "checkpoints"))
            if (folder / "checkpoints").is_dir():
                found, steps = unread(folder / "checkpoints", known.get(folder.name, 0), keep)
                problems += found
                listed += steps
            failures += [f"{told}: {why}" for why in problems]
            progress(f"kill {trial + 1} of {count}: {told}, {len(failures)} failures")
    return {"count": count, "failures": failures, "interrupted": cut, "listed": listed}


def anywhere(count: int, seed: int) -> dict:
    """`at_random`, then three times as many kills by `while_saving`.

    Args:
      count: kills of `fit`.
      seed: of times and settings.

    Returns:
      count (of both), failures, kills_of_fit, kills_of_savers, interrupted, acknowledged, listed.
    """
    one, other = at_random(count, seed), while_saving(3 * count, seed)
    return {
        "count": one["count"] + other["count"],
        "failures": one["failures"] + other["failures"],
        "kills_of_fit": one["count"],
        "kills_of_savers": other["count"],
        "interrupted": one["interrupted"] + other["interrupted"],
        "acknowledged": other["acknowledged"],
        "listed": one["listed"],
    }


def killed(one: Child, rng: random.Random, known: dict[str, int], folder: Path) -> list[str]:
    """Kills a training process; notes what it acknowledged; what went wrong before."""
    problems = []
    if early := rng.random() < 0.25:
        one.kill_after(0.005 * 1000 ** rng.random())
    else:
        ready = one.until("ready")
        if int(ready.split()[1]) < known.get(folder.name, 0):
            problems.append(f"began with {ready!r} after {known[folder.name]} was acknowledged")
        one.until("ack")
        one.kill_after(0.005 * 6000 ** rng.random())
    ended = one.wait(120)
    if ended.code != -9:
        problems.append(f"ended by itself with {ended.code} (early: {early}): {ended.err[-800:]}")
    acks = [int(line.split()[1]) for line in ended.out.split("\n")[:-1] if line.startswith("ack ")]
    known[folder.name] = max([known.get(folder.name, 0), *acks])
    return problems


def unread(folder: Path, acknowledged: int, keep: int) -> tuple[list[str], int]:
    """What is wrong with the checkpoints of a run after a kill, and how many there are."""
    from nnkit.checkpoint import Checkpoints, verify

    saver = Checkpoints(folder)
    problems = [f"opening it left {left}" for left in hidden(folder)]
    steps = saver.steps()
    if max(steps, default=0) < acknowledged:
        problems.append(f"step {acknowledged} was acknowledged, the steps are {steps}")
    if len(steps) > keep + 1:
        problems.append(f"{len(steps)} steps with keep_last={keep}")
    return problems + [why for s in steps for why in verify(folder / f"{s:08d}")], len(steps)


def digits(folder: str, pause: float) -> None:
    """A run of 400 steps that has everything: shuffle, dropout, statistics, averages, schedule."""
    import flax.linen as nn
    import jax
    import optax

    import nnkit as nk
    from nnkit.cli.train import cache_programs

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            h = nn.Dense(16)(x.reshape(x.shape[0], -1))
            h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))
            return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(h))

    cache_programs()
    train, test = nk.data.embedded("digits", batch_size=100)
    means = {"accuracy": nk.metrics.accuracy, "label": lambda logits, y: y.astype(np.float32)}
    task = nk.supervised(Normed(), nk.losses.cross_entropy, **means)
    adam = optax.adamw(optax.cosine_decay_schedule(1e-2, 400))
    step = nk.ema(nk.step(nk.gradient(task), adam), 0.99)
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    every = {5: lambda params, carry: time.sleep(pause), 100: nk.evaluate(task, test)}
    with nk.Run(folder, {"steps": 400}, save_every=20) as run:
        print("ready", run.checkpoints.latest() or 0, flush=True)
        state, _ = nk.fit(step, state, train, steps=400, every=every, run=run, progress=False)
    print("digest", nk.digest(state), flush=True)


def rows(folder: Path) -> list[dict]:
    """The log of a run without the times."""
    text = (folder / "metrics.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k != "time"} for line in text.splitlines()
    ]


def until_done(count: int, seed: int, kills: int = 20) -> dict:
    """Runs that are killed again and again until they are done end as the one that never was.

    Args:
      count: runs.
      seed: of the times.
      kills: of each run, at most; a run that is done earlier counts those it had.

    Returns:
      count, failures, kills (of all runs), fewest (kills of one run).
    """
    failures, had = [], []
    with tempfile.TemporaryDirectory() as root, Forks("kills") as forks:
        whole = Path(root, "whole")
        forks.start("digits", folder=str(whole), pause=0.0)
        digest = forks.until("digest", 300)
        forks.wait()
        if digest is None:
            return {"count": 0, "failures": [f"no run at all: {forks.child.said()}"]}
        for trial in range(count):
            rng, folder, here, done = (
                random.Random(f"{seed}-{trial}"),
                Path(root, f"{trial}"),
                0,
                "",
            )
            while not done:
                rest = here >= kills
                forks.start("digits", folder=str(folder), pause=0.0 if rest else 0.1)
                if not rest:
                    forks.until("ready", 120)
                    forks.kill(0.05 * 60 ** rng.random())
                ended = forks.wait(120)
                done = next((line for line in ended.lines if line.startswith("digest")), "")
                if not done and ended.code != -9:
                    failures.append(f"seed {seed}, run {trial}: ended with {ended.code}")
                    break
                here += not done
            had.append(here)
            if done and done != digest:
                failures.append(f"seed {seed}, run {trial}: {done}, not {digest}")
            if done and rows(folder) != rows(whole):
                failures.append(f"seed {seed}, run {trial}: another log of losses and labels")
            progress(f"run {trial + 1} of {count}: {here} kills, {len(failures)} failures")
    return {"count": count, "failures": failures, "kills": sum(had), "fewest": min(had)}


WORKS = {"saving": saving, "digits": digits}
