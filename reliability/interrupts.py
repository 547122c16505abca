"""Ctrl-C and errors of user code: what a run keeps."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import optax

import nnkit as nk
from reliability import progress

__all__ = ["ctrl_c", "errors"]

FOREVER = 1_000_000  # steps: the signal always comes before the end


@functools.cache
def ingredients():
    """(task, step, train, test): dropout, an average of the weights, a schedule, a shuffle."""
    train, test = nk.data.embedded("digits", batch_size=32)
    model = nk.models.MLP((16, 10), dropout=0.3)
    task = nk.supervised(model, nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)
    tx = optax.adamw(optax.cosine_decay_schedule(1e-2, 2_000))
    return task, nk.ema(nk.step(nk.gradient(task), tx), 0.9), train, test


@functools.cache
def plain():
    """The update of the loop written out."""
    return jax.jit(ingredients()[1].update)


def begun():
    """A first state."""
    _, step, train, _ = ingredients()
    return nk.init(step, jax.random.key(0), next(iter(train)))


_reached: dict[int, str] = {}


def reference(steps: int) -> str:
    """The digest of the state after so many steps that nothing disturbed."""
    if steps not in _reached:
        state = begun()
        for _, batch in zip(range(steps), ingredients()[2].stream()):
            state = plain()(state, batch)[0]
        _reached[steps] = nk.digest(state)
    return _reached[steps]


class Signalling:
    """Batches that send signals to this process, some time after the first one is asked for."""

    def __init__(self, batches, delays, number=signal.SIGINT):
        self.batches, self.delays, self.number = batches, delays, number
        self.fingerprint, self.timers = batches.fingerprint, []

    def stream(self, start=0):
        """The batches from number `start` on."""
        for delay in self.delays:
            timer = threading.Timer(delay, os.kill, (os.getpid(), self.number))
            timer.daemon = True
            self.timers.append(timer)
            timer.start()
        return self.batches.stream(start)

    def stop(self):
        """Send nothing more."""
        for timer in self.timers:
            timer.cancel()
            timer.join()


@contextlib.contextmanager
def listening():
    """Ctrl-C raises KeyboardInterrupt, whatever the parent process wanted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def alike() -> dict[str, str]:
    """The environment of a process that compiles as this one does."""
    few = jax.config.values["jax_disable_most_optimizations"]
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(few))}


def values(rows) -> list[dict]:
    """Rows without the wall time and the mark, arrays as lists."""
    rows = [{k: v for k, v in row.items() if k != "time"} for row in rows]
    return [
        {k: np.asarray(v).tolist() for k, v in r.items()} for r in rows if "interrupted" not in r
    ]


def ctrl_c(count: int, seed: int) -> dict:
    """PR-02: Ctrl-C at a random moment of `fit`, once or twice; the state goes on bit by bit.

    A third of the trials record a run and finish it by the same call; in a fifth the signal comes
    twice within 2 s; in a fifth while a hook works.
    """
    _, step, train, _ = ingredients()
    failures, kinds = [], {}
    with listening():
        for trial in range(count):
            draw = random.Random(f"{seed}-{trial}")
            delay = math.exp(draw.uniform(math.log(2e-4), math.log(5e-2)))
            kind = draw.choice(["once", "once", "twice", "hook", "run"])
            kinds[kind] = kinds.get(kind, 0) + 1
            try:
                problem = _pressed(kind, delay, draw.uniform(0, 0.005), train, step)
            except (Exception, KeyboardInterrupt):
                problem = traceback.format_exc()[-1500:]
            if problem:
                failures.append(f"seed {seed} trial {trial} ({kind}, {delay:.4f} s): {problem}")
            if trial % 20 == 19:
                progress(f"Ctrl-C: {trial + 1} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures, **kinds}


def _pressed(kind: str, delay: float, later: float, train, step) -> str:
    """One trial; what is wrong, or ""."""
    delays = (delay, delay + later) if kind == "twice" else (delay,)
    data = Signalling(train, delays)
    options: dict = {"steps": FOREVER, "log_every": 7, "progress": False}
    if kind == "hook":
        options["every"] = {1: lambda params, carry: time.sleep(0.01)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if kind == "run":
            options["run"] = stack.enter_context(nk.Run(folder, {"a": 1}, save_every=20))
        state, rows = None, []
        try:
            state, rows = nk.fit(step, begun(), data, **options)
        except KeyboardInterrupt as error:
            state = getattr(error, "state", None)
            if kind != "twice":
                return "the first Ctrl-C raised"
        finally:
            with contextlib.suppress(KeyboardInterrupt):  # the second one, after the end
                data.stop()
                time.sleep(0.001)
        if state is None:
            return "KeyboardInterrupt without a state"
        if rows and not rows[-1].get("interrupted"):
            return f"the last row does not say that it was interrupted: {rows[-1]}"
        done = int(state.inner.count)
        if rows and rows[-1]["step"] != done:
            return f"the row says step {rows[-1]['step']}, the state {done}"
        if nk.digest(state) != reference(done):
            return f"the state after {done} steps is another"
        return _resumed(folder, step, train, done) if kind == "run" else ""


def _resumed(folder: str, step, train, done: int) -> str:
    """The run goes on where it was interrupted; what is wrong, or ""."""
    found = nk.Checkpoints(Path(folder) / "checkpoints")
    if done and found.latest() != done:
        return f"interrupted after step {done}, but the newest checkpoint is {found.latest()}"
    if (Path(folder) / "STATUS").read_text() != "interrupted\n":
        return "the run is not marked as interrupted"
    last = done + 11
    options: dict = {"steps": last, "log_every": 7, "progress": False}
    with nk.Run(folder, {"a": 1}, save_every=20) as again:
        state, rows = nk.fit(step, begun(), train, run=again, **options)
    with tempfile.TemporaryDirectory() as other, nk.Run(other, {"a": 1}, save_every=20) as run:
        whole, all_rows = nk.fit(step, begun(), train, run=run, **options)
    if nk.digest(state) != nk.digest(whole):
        return f"interrupted after {done}, the run ended at {last} in other bits"
    if values(rows) != values(all_rows):
        return f"interrupted after {done}, the run logged other rows"
    return ""


# ------------------------------------------------------------------------------------- errors


class Wrong(Exception):
    """An error of the user's own, whose arguments no library could guess."""

    def __init__(self, code: int, *, why: str):
        super().__init__(code, why)


def _place(error: BaseException) -> str:
    return traceback.extract_tb(error.__traceback__)[-1].name


def _failing_hook(at: int, error: BaseException):
    def users_hook(params, carry):
        if next(calls) == at:
            raise error

    calls = iter(range(1, FOREVER))
    return users_hook


def _failing_data(train, at: int, error: BaseException):
    def users_data():
        for i, batch in zip(range(1, FOREVER), train.stream()):
            if i == at + 1:
                raise error
            yield batch

    return users_data()


def _failing_stop(at: int, error: BaseException):
    def users_stop(rows):
        if rows[-1]["step"] >= at:
            raise error
        return False

    return users_stop


KINDS = ("hook", "data", "stop", "exit", "interrupt", "shape", "end", "evaluation")


def errors(count: int, seed: int) -> dict:
    """PR-03: user code raises at a random step: the state is on the error, and in a checkpoint."""
    failures, kinds = [], {}
    for trial in range(count):
        draw = random.Random(f"{seed}-{trial}")
        kind = KINDS[trial % len(KINDS)]
        at, recorded = draw.randint(1, 30), draw.random() < 0.6
        kinds[kind] = kinds.get(kind, 0) + 1
        try:
            problem = _raised(kind, at, recorded, draw)
        except Exception:
            problem = traceback.format_exc()[-1500:]
        if problem:
            failures.append(f"seed {seed} trial {trial} ({kind} at {at}): {problem}")
    return {"count": count, "failures": failures, **kinds}


def _situation(kind: str, at: int, draw: random.Random) -> tuple:
    """(data, options, class of the error, function it must end in, step it must tell)."""
    task, _, train, test = ingredients()
    error = draw.choice(
        [ValueError("mine"), KeyError("mine"), Wrong(3, why="mine"), OSError(5, "mine")]
    )
    if kind in ("exit", "interrupt"):
        error = SystemExit(3) if kind == "exit" else KeyboardInterrupt()
    if kind in ("hook", "exit", "interrupt"):
        return train, {"every": {1: _failing_hook(at, error)}}, type(error), "users_hook", at
    if kind == "stop":
        found = {"every": {1: lambda params, carry: None}, "stop": _failing_stop(at, error)}
        return train, found, type(error), "users_stop", at
    if kind == "data":
        return _failing_data(train, at, error), {}, type(error), "users_data", at
    if kind == "shape":  # a batch that does not fit the model: noticed before it is compiled
        batches = [*(b for _, b in zip(range(at), train.stream()))]
        batches.append({**batches[0], "x": batches[0]["x"][:, :4]})
        return batches, {}, Exception, "", at
    if kind == "evaluation":
        every = {at: nk.evaluate(task, _Spoilt(test, error))}
        return train, {"every": every}, type(error), "users_batches", at
    batches = (b for _, b in zip(range(at), train.stream()))
    return batches, {}, ValueError, "complete", at


class _Spoilt:
    """Evaluation data that fail the second time they are read."""

    def __init__(self, batches, error):
        self.batches, self.error, self.reads = batches, error, 0

    def __iter__(self):
        return self.users_batches()

    def users_batches(self):
        """The first batch, and then the error."""
        self.reads += 1
        yield next(iter(self.batches))
        if self.reads > 1:
            raise self.error


def _raised(kind: str, at: int, recorded: bool, draw: random.Random) -> str:
    """One trial; what is wrong, or ""."""
    step = ingredients()[1]
    data, options, wanted, place, told = _situation(kind, at, draw)
    caught: BaseException | None = None
    with tempfile.TemporaryDirectory() as folder:
        run = nk.Run(folder, {}, save_every=8) if recorded else None
        with run or contextlib.nullcontext():
            try:
                nk.fit(step, begun(), data, steps=FOREVER, run=run, progress=False, **options)
            except BaseException as error:
                caught = error
        if caught is None or not isinstance(caught, wanted):
            return f"expected {wanted}, got {caught!r}"
        if place and _place(caught) != place:
            return f"the traceback ends in {_place(caught)}, expected {place}"
        state, done = getattr(caught, "state", None), getattr(caught, "step", None)
        if state is None or done != told:
            return f"the error has step {done}, expected {told}; {caught!r}"
        if nk.digest(state) != reference(told):
            return f"the state on the error is not that after {told} steps"
        if run is not None and run.checkpoints.latest() != told:
            return f"the newest checkpoint is {run.checkpoints.latest()}, expected {told}"
        if run is not None:
            restored = run.checkpoints.restore(begun())
            if nk.digest(restored.state) != reference(told):
                return "the checkpoint holds another state"
    return ""


def main() -> None:
    """One campaign by name: python -m reliability.interrupts ctrl_c 50 0."""
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = {"ctrl_c": ctrl_c, "errors": errors}[name]
    print(json.dumps(work(count, seed), indent=1))


if __name__ == "__main__":
    main()
