"""fit: the loop. It adds bookkeeping and no numerics."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from nnkit.core import trees
from nnkit.data import prefetch
from nnkit.loop import feeding
from nnkit.loop.environment import code
from nnkit.loop.evaluation import read
from nnkit.loop.members import diverged, grid_of
from nnkit.loop.progress import Progress
from nnkit.loop.records import Run
from nnkit.loop.start import advance, compiled, inspect_batch, place_of_sums, traced
from nnkit.parallel import hosts
from nnkit.train import Step
from nnkit.train.nouns import expect

__all__ = ["fit", "patience"]


def fit(
    step: Step,
    state,
    batches,
    *,
    steps: int | None = None,
    every: Mapping[int, Callable] | None = None,
    log_every: int | None = None,
    stop: Callable[[list], bool] | None = None,
    run: Run | None = None,
    progress: bool | None = None,
):
    """Update the state batch by batch; log, evaluate, save and show on the way.

    Without the bookkeeping it is this loop, which you can paste and change:

        update = jax.jit(step.update, donate_argnums=0)
        for i, batch in zip(range(steps), train.stream()):
            state, metrics = update(state, batch)

    Logged values are means over all examples since the row before, not of the last batch. On many
    processes (`nk.hosts`) each reads its rows of every batch, and process 0 writes.

    Args:
      step: any Step.
      state: from `nk.init`. It is consumed (donated): go on with the one returned.
      batches: a `Batches` (a fresh shuffle per epoch), or any re-iterable of batches.
      steps: number of updates, counted from the very start of the run; None: one pass.
      every: {n: hook} or {n: [hooks]}: after each n steps (and at the end) hook(params, carry) is
        called, such as `nk.evaluate(task, test)`; what it returns, if anything, is a row.
      log_every: steps between rows of training metrics; None: about 100 rows. Steps 1, 2, 4, ...,
        and those of hooks and checkpoints give rows too.
      stop: rows -> bool, asked after each hook's row; `patience` makes one.
      run: a `Run`: rows are written, checkpoints saved, and an earlier start is continued.
      progress: False for silence.

    Returns:
      (state, rows): rows are dicts with step, time (s) and values (float, or [n] for members).

    Raises:
      ValueError: if there is nothing to do: no step, no batch, or data that end too early; if
        processes do not agree on configuration, code, data or step, or the state is on one only.
      ConnectionError: if another process has gone; names it.
      FloatingPointError: if the loss is not finite (of every member, if there are several).

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> descent, train = nk.step(nk.gradient(task), optax.sgd(0.25)), [{"x": jnp.ones(4)}]
    >>> state = nk.init(descent, jax.random.key(0), train[0])
    >>> state, rows = fit(descent, state, train, steps=3, progress=False)
    >>> state.params, [round(row["loss"], 4) for row in rows]
    (Array(0.875, dtype=float32), [1.0, 0.25, 0.0625])
    """
    expect("fit", step, Step)
    steps = updates(steps, batches)
    plan = Plan(steps, _hooks(every), _interval(log_every, steps), stop, run)
    _alive(state)
    _agreed(plan, state, batches)
    state, start, rows = _resumed(run, state, batches, steps, progress)
    if start >= steps or (stop is not None and rows and stop(rows)):
        return state, rows  # finished before
    _rehearse(step, state, plan)
    i, place, sums = start, place_of_sums(state), None
    update = advance(step, place)
    show = progress if hosts.first() else False
    with Progress(start, steps, show=show) as bar, hosts.together():
        book = Book(step, plan, rows, getattr(batches, "fingerprint", None), bar)
        for i, batch in zip(range(start + 1, steps + 1), _stream(step, state, batches, start)):
            if i == start + 1:
                form = _first_look(step, state, batch)
            if sums is None:
                zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), form)
                sums = feeding.whole(zeros, place)
            state, sums = update(state, sums, batch)
            if not plan.due(i):
                bar.update(i)
                continue
            book.write(i, state, sums)
            sums = None
            if book.stopped:
                break
    if i < steps and not book.stopped:
        raise ValueError(
            f"the data ended after {i} of {steps} steps; pass a re-iterable such as a list or a "
            "Batches, or fewer steps"
        )
    _report(rows, state, show)
    if run is not None:
        run.checkpoints.wait()
        run.mark("done")
    return state, rows


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

    def __init__(self, step: Step, plan: Plan, rows: list, fingerprint, bar: Progress):
        self.step, self.plan, self.rows, self.fingerprint, self.bar = (
            step, plan, rows, fingerprint, bar,
        )  # fmt: skip
        self.began = time.monotonic() - (rows[-1]["time"] if rows else 0.0)
        self.stopped = False

    def write(self, i: int, state, sums) -> None:
        """Rows, hooks and a checkpoint after step i, from the sums since the row before."""
        row = read(jax.device_get(sums))
        _finite(row, i, state)
        self._put(i, row)
        hooks = self.plan.hooked(i)
        for hook in hooks:
            found = hook(*self.step.weights(state))
            if found is not None:
                self._put(i, found)
        stop, run = self.plan.stop, self.plan.run
        if hooks and stop is not None:  # times differ: one process decides for all
            self.stopped = hosts.shared(bool(stop(self.rows)))
        if run is not None and (self.stopped or self.plan.saves(i)):
            run.save(i, state, self.rows, self.fingerprint)

    def _put(self, i: int, row: Mapping) -> None:
        row = {"step": i, "time": round(time.monotonic() - self.began, 3), **row}
        self.rows.append(row)
        if self.plan.run is not None:
            self.plan.run.log(row)
        self.bar.update(i, row)


def _rehearse(step: Step, state, plan: Plan) -> None:
    """Trace every evaluation now, rather than find its mistake after hours."""
    try:
        weights = jax.eval_shape(step.weights, state)
    except Exception as error:
        error.add_note("is it the state of another step? make one by nk.init(step, key, batch)")
        raise
    names: set[str] = set()
    for _, hook in plan.hooks:
        if hasattr(hook, "trial"):
            names |= set(hook.trial(*weights))
    best = plan.run.checkpoints.keep_best if plan.run is not None else None
    if best and names and best[0].rsplit("/", 1)[-1] not in names:
        raise ValueError(
            f"keep_best wants the metric {best[0]!r}, the evaluations give {sorted(names)}"
        )


def _alive(state) -> None:
    """Raise if the buffers of a state were given away."""
    gone = [p for p, x in trees.paths(state) if isinstance(x, jax.Array) and x.is_deleted()]
    if gone:
        raise ValueError(
            f"the state was used up (donated) by an earlier fit or update, first at {gone[0]!r}: "
            "go on with the state that it returned, or make a new one by nk.init"
        )


def _resumed(run: Run | None, state, batches, steps: int, progress):
    """(state, steps done, rows): from the newest checkpoint of the run, if there is one."""
    if run is None:
        return state, 0, []
    state, start, rows = run.resume(state, getattr(batches, "fingerprint", None))
    if start < steps and run.status != "done":
        run.mark("running")
    if 0 < start < steps and progress is not False and hosts.first():
        print(f"resuming {run.folder} at step {start:,} of {steps:,}", flush=True)
    return state, start, rows


def updates(steps, batches) -> int:
    """The number of updates, checked; None is one pass."""
    if steps is None:
        if not hasattr(batches, "__len__"):
            raise ValueError("steps= is needed: the length of these batches is not known")
        steps = len(batches)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}, expected an integer >= 1")
    return steps


def _interval(log_every, steps) -> int:
    if log_every is None:
        return max(1, steps // 100)
    if isinstance(log_every, bool) or not isinstance(log_every, int) or log_every < 1:
        raise ValueError(f"log_every={log_every!r}, expected an integer >= 1, or None")
    return log_every


def _hooks(every) -> list[tuple[int, Callable]]:
    if every is not None and not isinstance(every, Mapping):
        raise TypeError(f"every={every!r:.60}, expected {{steps: hook}}, such as {{500: hook}}")
    found = []
    for n, hook in (every or {}).items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1 or not hook:
            raise ValueError(f"every={{{n!r}: ...}}: expected {{steps >= 1: hook or [hooks]}}")
        for one in hook if isinstance(hook, list | tuple) else [hook]:
            if not callable(one):
                raise TypeError(
                    f"every={{{n}: {one!r:.60}}}: expected hook(params, carry), such as "
                    "nk.evaluate(task, test)"
                )
            found.append((n, one))
    return found


def _agreed(plan: Plan, state, batches) -> None:
    """On many processes: the state is on all of them, and they were started alike."""
    if hosts.count() == 1:
        return
    if feeding.spanning(state) is None:
        n = jax.device_count()
        raise ValueError(
            f"the state is on the devices of this process only, and there are {hosts.count()} "
            f"processes, which would all train the same: spread the step over all {n} devices by "
            f'nk.shard(step, nk.mesh(data={n}), batch=P("data")), then init'
        )
    values = {"steps": plan.steps, "log_every": plan.log_every, **code()}
    values["hooks"] = [n for n, _ in plan.hooks]
    if plan.run is not None:
        values |= {"config": plan.run.hash, "save_every": plan.run.save_every}
    values |= {f"data.{k}": v for k, v in getattr(batches, "fingerprint", {}).items()}
    hosts.agree(values)


def _first_look(step: Step, state, batch):
    """The shapes of the metrics of an update, once the first batch and the program are right."""
    if hosts.count() == 1:
        inspect_batch(batch)
        return traced(step, state, batch)[1]
    form = traced(step, state, batch)[1]
    text = compiled(step).lower(state, batch).as_text()
    hosts.agree({"program": hashlib.sha256(text.encode()).hexdigest()[:16]}, "the first update")
    return form


def _stream(step, state, batches, start):
    """Endless batches from number `start`, placed ahead on the device."""
    if hosts.count() > 1:
        return feeding.trained(step, state, batches, start)
    if hasattr(batches, "stream"):
        return prefetch(batches.stream(start))
    if iter(batches) is batches:  # a generator: it can be read once
        return prefetch(itertools.islice(batches, start, None))
    return itertools.islice(itertools.cycle([jax.device_put(b) for b in batches]), start, None)


def _finite(row, i, state) -> None:
    loss = row.get("loss", 0.0)
    if np.isfinite(loss).any() or row.get("skipped", 0.0):
        return
    bad = [
        path
        for path, x in trees.paths(state)
        if jax.numpy.issubdtype(x.dtype, np.inexact)
        and not all(np.isfinite(np.asarray(s.data)).all() for s in x.addressable_shards)
    ]
    where = f"first in the state at {bad[0]!r}" if bad else "the state itself is still finite"
    raise FloatingPointError(
        f"the loss is {loss} at step {i} ({where}): a learning rate too high, labels outside the "
        "model's classes, token ids outside its vocabulary, or NaN in the inputs; "
        "nk.skip_nonfinite(step) skips such batches"
    )


def _report(rows, state, show) -> None:
    """Say which members of a sweep diverged, if any did."""
    last = next((row for row in reversed(rows) if "split" not in row), {})
    said = diverged(last, grid_of(state))
    if said and show is not False:
        print(said, flush=True)


def patience(metric: str, checks: int, *, mode: str, split: str = "test") -> Callable:
    """Stop when a metric has not improved for a number of evaluations: a pure function of rows.

    Args:
      metric: name in the evaluation rows; members [n] count by their mean.
      checks: evaluations without improvement to wait for, >= 1.
      mode: "max" or "min".
      split: which rows.

    Returns:
      rows -> bool, for `fit(stop=...)`.

    Raises:
      ValueError: if mode or checks are off.
      KeyError: if the rows of that split lack the metric.

    >>> stop = patience("accuracy", 2, mode="max")
    >>> rows = [{"split": "test", "accuracy": a} for a in (0.5, 0.7, 0.6, 0.7)]
    >>> stop(rows[:3]), stop(rows)
    (False, True)

    Prechelt 1998, doi:10.1007/3-540-49430-8_3 (criterion UP).
    """
    if mode not in ("max", "min"):
        raise ValueError(f"patience(mode={mode!r}): expected 'max' or 'min'")
    if not isinstance(checks, int) or checks < 1:
        raise ValueError(f"patience(checks={checks!r}): expected an integer >= 1")

    def stop(rows) -> bool:
        here = [row for row in rows if row.get("split") == split]
        if here and metric not in here[-1]:
            raise KeyError(f"patience: the {split!r} rows have {sorted(here[-1])}, not {metric!r}")
        values = [float(np.mean(row[metric])) * (1 if mode == "max" else -1) for row in here]
        return len(values) > checks and max(values[-checks:]) <= max(values[:-checks])

    return stop
