"""run: the short way in. Everything it does is public; open it up and change a line."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import PartitionSpec

from nnkit.core.checks import positive
from nnkit.core.keys import seed as checked
from nnkit.loop.checking import check
from nnkit.loop.evaluation import evaluate
from nnkit.loop.fitting import fit, updates
from nnkit.loop.records import Run, claimable
from nnkit.loop.start import compiled, init, inspect_batch
from nnkit.parallel import hosts, mesh
from nnkit.train import Objective, Step, gradient, shard, step
from nnkit.train.nouns import expect

__all__ = ["Result", "run"]


class Result(NamedTuple):
    """What `run` gives: the weights, the log, and where it was recorded.

    Attributes:
      params: the trained parameters.
      carry: the trained carry.
      rows: the log, a list of dicts.
      folder: the run folder, or None.
      interrupted: was it ended by Ctrl-C? The same call again goes on, if it has a folder.

    >>> Result({}, {}, [{"step": 1}], None).rows[-1]["step"]
    1
    """

    params: Any
    carry: Any
    rows: list
    folder: Any

    @property
    def interrupted(self) -> bool:
        return bool(self.rows) and bool(self.rows[-1].get("interrupted"))


def run(
    task: Objective,
    train,
    test=None,
    *,
    steps: int,
    learning_rate: float | None = None,
    tx: optax.GradientTransformation | None = None,
    seed: int = 0,
    folder=None,
    progress: bool | None = None,
) -> Result:
    """check + gradient + step + init + fit + evaluate + record, in one call.

    On many processes (`nk.hosts`) the examples of a batch are split over all devices.

    Args:
      task: an Objective.
      train: training data: a `Batches` or a re-iterable of batches [b ...].
      test: data to evaluate on ten times on the way and at the end; may be None.
      steps: number of updates.
      learning_rate: > 0, for AdamW with cosine decay; None is 1e-3. Not with `tx`.
      tx: another optax optimizer.
      seed: int from 0 to 2**32 - 1: decides everything random.
      folder: a run folder; the same call again resumes there. It belongs to these settings and to
        the program they make with this version of jax. None records nothing.
      progress: False for silence.

    Returns:
      A `Result`.

    Raises:
      ValueError: before anything is compiled, if the input cannot be right.

    >>> train, test = nk.data.embedded("digits", batch_size=128)
    >>> right = nk.metrics.accuracy
    >>> task = nk.supervised(nk.models.Linear(10), nk.losses.cross_entropy, accuracy=right)
    >>> result = run(task, train, test, steps=100, learning_rate=0.01, progress=False)
    >>> result.rows[-1]["accuracy"] > 0.9
    True
    """
    expect("run", task, Objective)
    if tx is not None and learning_rate is not None:
        raise ValueError(
            f"learning_rate is {learning_rate} beside tx, expected one of both: give the rate to "
            f"the optimizer, tx=optax.adamw({learning_rate})"
        )
    learning_rate = 1e-3 if learning_rate is None else learning_rate
    positive(learning_rate=learning_rate)
    steps = updates(steps, train)
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    move = step(gradient(task), optax.adamw(schedule) if tx is None else tx)
    if hosts.count() > 1:
        move = shard(move, mesh(data=jax.device_count()), batch=PartitionSpec("data"))
    first = next(iter(train), None)
    config = {"steps": steps, "learning_rate": learning_rate, "seed": checked(seed)}
    if folder is not None and first is not None:
        claimable(folder, config := {**config, "program": _program(move, first)})
    for line in check(task, train, seed=checked(seed)):
        if progress is not False and hosts.first():
            print(line)
    state = init(move, jax.random.key(seed), first)
    every = {max(1, steps // 10): evaluate(task, test)} if test is not None else None
    with contextlib.ExitStack() as stack:
        record = None
        if folder is not None:
            save = max(1, steps // 10)
            record = stack.enter_context(Run(os.fspath(folder), config, save_every=save))
        state, rows = fit(
            move, state, train, steps=steps, every=every, run=record, progress=progress
        )
        told = progress is not False and hosts.first()
        if record is not None and record.restored == steps and told:
            print(f"{folder} was finished already: nothing was trained")
    params, carry = move.weights(state)
    return Result(params, carry, rows, folder)


def _program(move: Step, batch) -> str:
    """SHA-256 of the program of an update: another model, loss or optimizer gives another one."""
    inspect_batch(batch)
    state = jax.eval_shape(lambda key: move.init(key, batch), jax.random.key(0))
    text = compiled(move).lower(state, batch).as_text()
    return hashlib.sha256(text.encode()).hexdigest()[:16]
