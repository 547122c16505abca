"""What `fit` does besides updating: rows, hooks, checkpoints, and a sound end of every kind."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from nnkit.core import trees
from nnkit.core.ranges import told
from nnkit.loop.evaluation import read
from nnkit.loop.interrupts import Interrupts, packed
from nnkit.loop.nonfinite import inspect_update
from nnkit.loop.progress import Progress
from nnkit.loop.records import Run
from nnkit.parallel import hosts

__all__ = ["Book", "Plan", "alive"]


class Plan(NamedTuple):
    """What happens at which step: pure functions of the step number.

    >>> plan = Plan(100, [], 10, None, None)
    >>> [i for i in range(1, 31) if plan.due(i)]
    [1, 2, 4, 8, 10, 16, 20, 30]
    """

    steps: int
    hooks: list[tuple[int, Callable]]
    log_every: int
    stop: Callable | None
    run: Run | None

    def hooked(self, i: int) -> list[Callable]:
        """The hooks to call after step i."""
        return [hook for n, hook in self.hooks if i % n == 0 or i == self.steps]

    def saves(self, i: int) -> bool:
        """Is there a checkpoint after step i?"""
        every = self.run.save_every if self.run is not None else None
        return self.run is not None and (i == self.steps or bool(every and i % every == 0))

    def due(self, i: int) -> bool:
        """Is there a row after step i? With a checkpoint there is: it has no sums to remember."""
        regular = i & (i - 1) == 0 or i % self.log_every == 0 or i == self.steps
        return regular or self.saves(i) or bool(self.hooked(i))


class Book:
    """The rows of a run, and what is written when they are due."""

    def __init__(self, step, plan: Plan, rows: list, fingerprint, bar: Progress, asked: Interrupts):
        self.step, self.plan, self.rows, self.fingerprint, self.bar, self.asked = (
            step, plan, rows, fingerprint, bar, asked,
        )  # fmt: skip
        self.began = time.monotonic() - (rows[-1]["time"] if rows else 0.0)
        self.stopped = False

    def write(self, i: int, state, sums) -> None:
        """Rows, hooks and a checkpoint after step i, from the sums since the row before."""
        self._check()
        row = read(jax.device_get(sums))
        kept = i == self.plan.steps or self.plan.saves(i) or bool(self.plan.hooked(i))
        seen = {"rows": self.rows, "run": self.plan.run}
        inspect_update(i, row, state, self.step, saves=kept, **seen)
        self._put(i, row)
        hooks = self.plan.hooked(i)
        for hook in hooks:
            with self.asked.safely():
                found = hook(*self.step.weights(state))
            if found is not None:
                self._put(i, found)
        stop, run = self.plan.stop, self.plan.run
        if hooks and stop is not None:  # times differ: one process decides for all
            self.stopped = hosts.shared(bool(stop(self.rows)))
        if run is not None and (self.stopped or self.plan.saves(i)):
            run.save(i, state, self.rows, self.fingerprint)

    def turn(self, i: int) -> None:
        """After a step without a row; raises if a save in the background has failed."""
        self.bar.update(i)
        self._check()

    def complete(self, done: int) -> None:
        """Raise if the data ended before the steps did."""
        if done < self.plan.steps and not self.stopped and not self.asked.signals:
            raise ValueError(
                f"the data ended after {done} of {self.plan.steps} steps, expected a batch for "
                "each; pass a re-iterable such as a list or a Batches, or fewer steps"
            )

    def interrupted(self, done: int, state, sums, *, new: bool) -> None:
        """Save what is needed to go on bit by bit; the last row says that this is not the end."""
        row, run = {}, self.plan.run
        if sums is not None and not (self.rows and self.rows[-1]["step"] == done):
            row = read(jax.device_get(sums))
            inspect_update(done, row, state, self.step, saves=True, rows=self.rows, run=run)
        row = {"step": done, "time": self._seconds(), **row, "interrupted": True}
        self.rows.append(row)
        if self.bar.kind != "silent":
            said = f"interrupted at step {done:,} of {self.plan.steps:,}"
            print(said, file=sys.stderr, flush=True)
        if run is not None:
            run.mark("interrupted")
            if new:
                run.save(done, state, self.rows, self.fingerprint, packed(sums))
            with self.asked.safely():
                run.checkpoints.wait()

    def rescue(self, error: BaseException, done: int, state, sums, *, new: bool) -> None:
        """Leave the last sound state on an error, and in the folder of the run."""
        run = self.plan.run
        try:
            alive(jax.block_until_ready(state))
            row = {"loss": 0.0} if sums is None else read(jax.device_get(sums))
            inspect_update(done, row, state, self.step, saves=True, rows=self.rows)
        except Exception:
            error.add_note(f"the state after step {done} is lost or not sound: it was not kept")
            return
        error.state, error.step = state, done  # pyright: ignore[reportAttributeAccessIssue]
        if run is None or not new or hosts.count() > 1:
            return
        try:
            run.save(done, state, self.rows, self.fingerprint, packed(sums))
            run.checkpoints.wait()
        except Exception as failed:
            error.add_note(f"step {done} could not be saved: {failed}")
        else:
            error.add_note(f"saved at step {done}: the same call goes on from there")

    def _check(self) -> None:
        if self.plan.run is not None:
            self.plan.run.checkpoints.check()

    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)

    def _put(self, i: int, row: Mapping) -> None:
        row = {"step": i, "time": self._seconds(), **row}
        self.rows.append(row)
        if self.plan.run is not None:
            self.plan.run.log(row)
        self.bar.update(i, row)
        if said := told(row):
            warnings.warn(f"up to step {i}, {said}: they teach nothing", stacklevel=4)


def alive(state) -> None:
    """Raise if the buffers of a state were given away."""
    gone = [p for p, x in trees.paths(state) if isinstance(x, jax.Array) and x.is_deleted()]
    if gone:
        raise ValueError(
            f"the state was used up (donated) by an earlier fit or update, first at {gone[0]!r}: "
            "go on with the state that it returned, or make a new one by nk.init"
        )
