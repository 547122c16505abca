"""fit: the loop. It adds bookkeeping and no numerics."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from nnkit.data import prefetch
from nnkit.data.ahead import owned
from nnkit.loop import feeding
from nnkit.loop.book import Book, Plan, alive
from nnkit.loop.environment import code
from nnkit.loop.interrupts import Interrupts, recall, remember, unpacked
from nnkit.loop.labels import CHECKED, seen
from nnkit.loop.members import diverged, grid_of
from nnkit.loop.memory import explain
from nnkit.loop.progress import Progress
from nnkit.loop.rates import lasting
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

    Ctrl-C ends it after the update in flight: what was reached is saved and returned, and the last
    row says `"interrupted": True`. A second Ctrl-C raises. SIGTERM saves, then exits with 143. The
    same call again goes on as if nothing had happened. An error carries `state` and `step`, the
    last that are sound, and a run has them as a checkpoint.

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
      KeyboardInterrupt: after a second Ctrl-C; has the state too.
      ValueError: if there is nothing to do: no step, no batch, or data that end too early; if
        processes do not agree on configuration, code, data or step, or the state is on one only.
      ConnectionError: if another process has gone; names it.
      FloatingPointError: if the loss is not finite (of every member, if there are several), or
        the state to be saved or returned.
      RuntimeError: if a replay of an update (`nk.replayed`) gave other bits, or a save failed.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> descent, train = nk.step(nk.gradient(task), optax.sgd(0.25)), [{"x": jnp.ones(4)}]
    >>> state = nk.init(descent, jax.random.key(0), train[0])
    >>> state, rows = fit(descent, state, train, steps=3, progress=False)
    >>> state.params, [round(row["loss"], 4) for row in rows]
    (Array(0.875, dtype=float32), [1.0, 0.25, 0.0625])
    """
    expect("fit", step, Step)
    steps = updates(steps, batches)
    lasting(step.update, steps)
    plan = Plan(steps, _hooks(every), _interval(log_every, steps), stop, run)
    alive(state)
    _agreed(plan, state, batches)
    state, start, rows, sums = _resumed(run, state, batches, steps, progress)
    if sums is None and (start >= steps or (stop is not None and rows and stop(rows))):
        return state, rows  # finished before
    _rehearse(step, state, plan)
    done, place, batch = start, place_of_sums(state), None
    sums, update = feeding.whole(sums, place), advance(step, place)
    show = progress if hosts.first() else False
    with Interrupts() as asked, Progress(start, steps, show=show) as bar, hosts.together():
        book = Book(step, plan, rows, getattr(batches, "fingerprint", None), bar, asked)
        try:
            if sums is not None and plan.due(start):  # interrupted before this row was written
                book.write(start, state, sums)
                sums = None
            stream = asked.between(_stream(step, state, batches, start))
            last = start if book.stopped else steps
            for i, batch in zip(range(start + 1, last + 1), stream):
                if i == start + 1:
                    form = _first_look(step, state, batch)
                if i <= start + CHECKED:
                    seen(batch, form, i)
                state, sums = update(state, _zeros(form, place) if sums is None else sums, batch)
                done = i
                if plan.due(i):
                    book.write(i, state, sums)
                    sums = None
                else:
                    book.turn(i)
                if asked.signals or book.stopped:
                    break
            book.complete(done)
        except BaseException as error:
            explain(error, batch)
            if not asked.caused(error):
                book.rescue(error, done, state, sums, new=done > start)
                raise
        if asked.signals:
            if run is None:
                remember(state, batches, steps, done, rows, sums)
            book.interrupted(done, state, sums, new=done > start)
        elif run is not None:
            run.checkpoints.wait()
            run.mark("done")
        _report(rows, state, show)
        asked.leave(state)
        return state, rows


def _rehearse(step: Step, state, plan: Plan) -> None:
    """Trace every evaluation now, rather than find its mistake after hours."""
    try:
        weights = jax.eval_shape(step.weights, state)
    except Exception as error:
        raise ValueError(
            f"the state is a {type(state).__name__}, the state of another step, expected that of "
            "this step; make one by nk.init(step, key, batch)"
        ) from error
    names: set[str] = set()
    for _, hook in plan.hooks:
        if hasattr(hook, "trial"):
            names |= set(hook.trial(*weights))
    best = plan.run.checkpoints.keep_best if plan.run is not None else None
    if best and names and best[0].rsplit("/", 1)[-1] not in names:
        raise ValueError(
            f"keep_best wants the metric {best[0]!r}, the evaluations give {sorted(names)}"
        )


def _resumed(run: Run | None, state, batches, steps: int, progress):
    """(state, steps done, rows, sums since the last row or None): where an earlier start ended."""
    if run is None:
        found = recall(state, batches, steps)
        start, rows, sums = found or (0, [], None)
    else:
        state, start, rows = run.resume(state, getattr(batches, "fingerprint", None))
        sums = unpacked(run.pending)
        if (start < steps or sums is not None) and run.status != "done":
            run.mark("running")
    if 0 < start < steps and progress is not False and hosts.first():
        what = "the interrupted fit" if run is None else run.folder
        print(f"resuming {what} at step {start:,} of {steps:,}", flush=True)
    return state, start, rows, sums


def updates(steps, batches) -> int:
    """The number of updates, checked; None is one pass."""
    if steps is None:
        if not hasattr(batches, "__len__"):
            raise ValueError(
                "steps= is None, expected a number: the length of these batches is not known; "
                "write steps=1000 or as many updates as there are to be"
            )
        steps = len(batches)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}, expected an integer >= 1, such as steps=1000")
    return steps


def _interval(log_every, steps) -> int:
    if log_every is None:
        return max(1, steps // 100)
    if isinstance(log_every, bool) or not isinstance(log_every, int) or log_every < 1:
        raise ValueError(f"log_every={log_every!r}, expected an integer >= 1; None is usual")
    return log_every


def _hooks(every) -> list[tuple[int, Callable]]:
    if every is not None and not isinstance(every, Mapping):
        raise TypeError(f"every={every!r:.60}, expected {{steps: hook}}, such as {{500: hook}}")
    found = []
    for n, hook in (every or {}).items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1 or not hook:
            raise ValueError(
                f"every={{{n!r}: ...}}: expected {{steps >= 1: hook or [hooks]}}, such as "
                "{500: hook}"
            )
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
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    hosts.agree({"program (settings and code of the step)": digest}, "the first update")
    return form


def _zeros(form, place):
    """Sums of metrics of nothing."""
    return feeding.whole(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), form), place)


def _stream(step, state, batches, start):
    """Endless batches from number `start`, placed ahead on the device."""
    if hosts.count() > 1:
        return feeding.trained(step, state, batches, start)
    if hasattr(batches, "stream"):
        return prefetch(batches.stream(start))
    if iter(batches) is batches:  # a generator: it can be read once
        rest = itertools.islice(batches, start, None) if start else batches
        return prefetch(rest, timeout=getattr(batches, "timeout", None))
    return itertools.islice(itertools.cycle([owned(b) for b in batches]), start, None)


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
        raise ValueError(f"patience(mode={mode!r}): expected 'max' or 'min'; use 'min' for a loss")
    if not isinstance(checks, int) or checks < 1:
        raise ValueError(f"patience(checks={checks!r}): expected an integer >= 1, such as checks=3")

    def stop(rows) -> bool:
        here = [row for row in rows if row.get("split") == split]
        if here and metric not in here[-1]:
            raise KeyError(
                f"patience: the {split!r} rows have {sorted(here[-1])}, not {metric!r}; name one "
                "of these metrics"
            )
        values = [float(np.mean(row[metric])) * (1 if mode == "max" else -1) for row in here]
        return len(values) > checks and max(values[-checks:]) <= max(values[:-checks])

    return stop
