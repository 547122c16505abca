"""Any order of saves, failures, kills, restores, deletions: there is always a valid step."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import random
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.checkpoint import Checkpoints, disk, verify
from nnkit.core import trees
from reliability import progress

__all__ = ["OPERATIONS", "Machine", "random_orders"]

WATCHED = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")  # of os
OPERATIONS: tuple[str, ...] = (
    "save", "save", "save", "again", "fail", "kill", "kill", "restore", "one", "delete", "best",
    "retention", "clock",
)  # fmt: skip


def state(step: int) -> dict[str, Any]:
    """Another one for every step."""
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(6, 5)).astype(np.float32), "step": np.int32(step)}


@contextlib.contextmanager
def at(number: int, happen, ours: bool) -> Iterator[list[int]]:
    """Calls `happen` at the file operation of that number, from 0; `ours`: only nnkit's count.

    Yields:
      A list with how many there were.
    """
    real = {name: getattr(os, name) for name in WATCHED}
    seen, inside = [0], [False]

    def watched(name):
        def operation(*arguments, **options):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not inside[0] and (not ours or caller.startswith("nnkit")):
                due, seen[0] = seen[0] == number, seen[0] + 1
                if due:
                    inside[0] = True
                    try:
                        happen()
                    finally:
                        inside[0] = False
            return real[name](*arguments, **options)

        return operation

    for name in WATCHED:
        setattr(os, name, watched(name))
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(os, name, function)


class Machine:
    """A folder of checkpoints, what has been done to it, and what must therefore be there.

    Args:
      root: an empty folder.
      rate: "max" or "min", which loss is best.

    Raises:
      AssertionError: from `do`, if a promise is broken.
    """

    def __init__(self, root: Path, rate: str = "min"):
        self.root, self.number, self.rate = root, 0, rate
        self.keep, self.next, self.shift = 2, 1, datetime.timedelta()
        self.losses: dict[int, float | None] = {}  # of every step that was acknowledged
        self.gone: set[int] = set()  # deleted by the user
        self.counts = dict.fromkeys(OPERATIONS, 0)
        self.saver = self._opened()

    @property
    def folder(self) -> Path:
        """Where the run is now; a kill goes on in a copy."""
        return self.root / f"life-{self.number}"

    def _opened(self) -> Checkpoints:
        saver = Checkpoints(self.folder, keep_last=self.keep, keep_best=("loss", self.rate))
        left = [p.name for p in self.folder.glob(".t*")] if self.folder.is_dir() else []
        assert not left, f"left over after opening: {left}"
        return saver

    def do(self, operation: str, number: int) -> None:
        """One operation, and all promises after it."""
        rng = random.Random(number)
        self.counts[operation] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(self, f"_{operation}")(rng)
            self.check()

    def close(self) -> None:
        """Ends the last life."""
        self.saver.close()

    def check(self) -> None:
        """Listed is valid, one is there after the first, the best stays, no more than are kept."""
        steps = self.saver.steps()
        for step in steps:
            assert verify(self.folder / f"{step:08d}") == [], f"{step} is listed and damaged"
        there = sorted(int(p.name) for p in self.folder.glob("[0-9]*")) if steps else []
        assert there == steps, f"{there} are there, {steps} are listed"
        alive = {s: x for s, x in self.losses.items() if s not in self.gone}
        if alive:
            newest = max(alive)
            assert newest in steps, f"the newest, {newest}, is not in {steps}"
            scored = [s for s, x in alive.items() if x is not None and x == x]
            if scored:
                sign = 1 if self.rate == "min" else -1
                best = min(scored, key=lambda s: (sign * (alive[s] or 0.0), -s))
                assert best in steps, f"the best, {best}, is not in {steps}"
        assert len(steps) <= self.most + 1, f"{steps} are there, {self.keep} are kept"

    @property
    def most(self) -> int:
        """How many may be there but for the best: more were kept before, until the next save."""
        return max(self.keep, getattr(self, "kept", 0))

    def _begun(self, rng) -> tuple[int, float | None]:
        step = self.next
        self.next += rng.choice([1, 1, 5])
        return step, rng.choice([None, float("nan"), *[rng.random() for _ in range(4)]])

    def _started(self, step: int, loss: float | None) -> None:
        metrics = None if loss is None else {"loss": loss}
        self.saver.save(step, state(step), position=step, metrics=metrics)

    def _save(self, rng) -> None:
        step, loss = self._begun(rng)
        self._started(step, loss)
        self.saver.wait()
        self._acknowledged(step, loss)
        assert self.saver.latest() == step

    def _acknowledged(self, step: int, loss: float | None) -> None:
        self.losses[step] = loss
        self.kept = self.keep

    def _again(self, rng) -> None:
        if steps := self.saver.steps():
            before = (self.folder / f"{steps[-1]:08d}" / "manifest.json").read_bytes()
            self.saver.save(steps[-1], state(steps[-1]), position=steps[-1])
            self.saver.wait()
            assert (self.folder / f"{steps[-1]:08d}" / "manifest.json").read_bytes() == before

    def _fail(self, rng) -> None:
        """The disk fails at some operation; the save says so, and the next one works."""
        step, loss = self._begun(rng)
        number = rng.choice([errno.EIO, errno.ENOSPC, errno.EACCES])

        def fail():
            raise OSError(number, os.strerror(number))

        failed = False
        with at(rng.randrange(25), fail, ours=True):
            try:
                self._started(step, loss)
                self.saver.wait()
            except (RuntimeError, OSError):
                failed = True
        if not failed or step in self.saver.steps():  # committed, and then its clean-up failed
            self.losses[step] = loss
            self.kept = max(self.most, len(self.saver.steps()))

    def _kill(self, rng) -> None:
        """The folder as it was at some operation is what a killed process leaves."""
        step, loss = self._begun(rng)
        new = self.root / f"life-{self.number + 1}"
        before = len(self.saver.steps())

        def copy():
            with contextlib.suppress(shutil.Error, OSError):
                shutil.copytree(self.folder, new, symlinks=True)

        with at(rng.randrange(60), copy, ours=False):
            self._started(step, loss)
            self.saver.wait()
        self.saver.close()
        if new.is_dir():
            self.number += 1
            self.kept = max(self.most, before)
        self.saver = self._opened()
        if step in self.saver.steps():
            self.losses[step] = loss
        else:
            assert new.is_dir(), "an acknowledged step is lost"

    def _restore(self, rng) -> None:
        if steps := self.saver.steps():
            self._right(self.saver.restore(state(0)), steps[-1])
        else:
            with contextlib.suppress(FileNotFoundError):
                self.saver.restore(state(0))
                raise AssertionError("restored from nothing")

    def _one(self, rng) -> None:
        if steps := self.saver.steps():
            step = rng.choice(steps)
            self._right(self.saver.restore(state(0), step), step)

    def _right(self, restored, step: int) -> None:
        assert (restored.step, restored.position) == (step, step)
        assert trees.digest(restored.state) == trees.digest(state(step)), f"other bits in {step}"

    def _delete(self, rng) -> None:
        """The user deletes one by hand, not the only one."""
        if len(steps := self.saver.steps()) > 1:
            step = rng.choice(steps)
            shutil.rmtree(self.folder / f"{step:08d}")
            self.gone.add(step)
            self.gone |= {s for s in self.losses if s not in steps}  # went before, rightly

    def _best(self, rng) -> None:
        best, steps = self.saver.best(), self.saver.steps()
        scores = {s: self.saver.info(s)["metrics"].get("loss") for s in steps}
        scores = {s: x for s, x in scores.items() if x is not None and x == x}
        assert (best is None) == (not scores)
        if scores:
            extreme = (min if self.rate == "min" else max)(scores.values())
            assert best is not None and scores[best] == extreme

    def _retention(self, rng) -> None:
        self.saver.close()
        self.kept = max(self.most, len(self.saver.steps()))
        self.keep = rng.choice([1, 2, 3])
        self.saver = self._opened()

    def _clock(self, rng) -> None:
        """The clock jumps, by years in either direction, for files and for new manifests."""
        self.shift = datetime.timedelta(days=rng.randrange(-9000, 9000))
        when = time.time() + self.shift.total_seconds()
        for path in self.folder.rglob("*") if self.folder.is_dir() else ():
            if path.name != ".lock":
                os.utime(path, (when, when), follow_symlinks=False)
        step, loss = self._begun(rng)
        real, shift = disk.datetime, self.shift
        now = lambda zone: real.datetime.now(zone) + shift
        disk.datetime = types.SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
            datetime=types.SimpleNamespace(now=now), UTC=real.UTC
        )
        try:
            self._started(step, loss)
            self.saver.wait()
        finally:
            disk.datetime = real
        self._acknowledged(step, loss)


def random_orders(count: int, seed: int, length: int = 30) -> dict:
    """Machines that do so many operations each, drawn at random.

    Args:
      count: how many machines.
      seed: of the operations.
      length: operations of each.

    Returns:
      {"count", "failures", "operations": how many in all, and how often each}.
    """
    failures, done = [], dict.fromkeys(OPERATIONS, 0)
    for trial in range(count):
        rng = random.Random(f"{seed}-{trial}")
        with tempfile.TemporaryDirectory(prefix="orders-") as root:
            machine = Machine(Path(root), rng.choice(["min", "max"]))
            order = [(rng.choice(OPERATIONS), rng.randrange(10**6)) for _ in range(length)]
            said = ""
            try:
                for said in order:
                    machine.do(*said)
                machine.close()
            except Exception as error:
                told = f"{type(error).__name__}: {error!s:.300}"
                failures.append(f"seed {seed} trial {trial} at {said} of {order}: {told}")
            for name, number in machine.counts.items():
                done[name] += number
        if trial % 50 == 49:
            progress(f"orders of operations: {trial + 1} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures, "operations": sum(done.values()), **done}
