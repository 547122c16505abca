"""`nnkit sweep`: settings x seeds of an experiment, compared on equal seeds."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from nnkit.cli.settings import Field, WrongGrid, field, label, replaced, settings

__all__ = ["sweep"]

MODES = {"accuracy": "max", "loss": "min"}


class Plan(NamedTuple):
    """What is to be swept.

    >>> Plan._fields[:3]
    ('module', 'name', 'config')
    """

    module: Any
    name: str
    config: Any
    fields: list[Field]
    settings: list[dict]
    seeds: int
    asked: Any
    folder: Path


def sweep(words: list[str]) -> int:
    """nnkit sweep EXPERIMENT --grid FIELD=VALUE,VALUE [--seeds 5] [--field value].

    Every combination of the values, each with the same seeds. An experiment with `batches(config)`
    and `single(config, train)` trains them all as one program, as far as the fields are numbers
    that may be traced; a field that decides shapes or words makes a program of its own for each of
    its values. Of any other experiment `main` is called once for each setting.

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> sweep(["digits", "--grid", "learning_rate=1e-3,3e-3"])
    --grid learning_rate: the experiment has no field 'learning_rate'; perhaps you meant 'learni...
    2
    """
    parser = _parser()
    if not words or words[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if words else 2
    from nnkit.cli.train import load

    try:
        module = load(words[0])
        plan = _plan(parser, module, Path(words[0]).stem, words[1:])
    except SystemExit as ended:  # words that are wrong: said by argparse or tyro
        return int(ended.code or 0)
    except (FileNotFoundError, WrongGrid) as error:
        print(error)
        return 2
    n = len(plan.settings) * plan.seeds
    print(f"{len(plan.settings)} settings x {plan.seeds} seeds = {n} runs in {plan.folder}")
    from nnkit.loop.interrupts import ending

    try:
        with ending():
            return _conduct(plan)
    except (WrongGrid, NotADirectoryError) as error:
        print(error)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", flush=True)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnkit sweep",
        usage="nnkit sweep EXPERIMENT --grid FIELD=VALUE,VALUE [--seeds 5] [--field value]",
        description="Settings x seeds of EXPERIMENT, compared on equal seeds.",
        epilog="nnkit train EXPERIMENT --help lists the fields.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--grid", action="append", nargs="+", default=[], metavar="FIELD=VALUE,VALUE",
        help="values of a field (a.b for one inside); more of them: every combination")  # fmt: skip
    add("--seeds", type=int, default=5, help="runs per setting (default: 5)")
    add("--metric", metavar="SPLIT/METRIC",
        help="what counts (default: accuracy or loss, of validation or the first)")  # fmt: skip
    add("--mode", choices=("min", "max"), help="what is good, for another metric")
    add("--memory", type=float, metavar="BYTES",
        help="for members that train at the same time (default: what is free)")  # fmt: skip
    add("--folder", default="", help="of the sweep (default: EXPERIMENT-sweep-HASH in NNKIT_RUNS)")
    add("--fresh", action="store_true", help="in a folder of its own, instead of resuming")
    return parser


def _plan(parser, module, name: str, words: list[str]) -> Plan:
    """What the words ask for, checked as far as it can be before anything is imported."""
    import tyro

    asked, rest = parser.parse_known_args(words)
    if asked.seeds < 1:
        raise WrongGrid(f"--seeds {asked.seeds}: expected at least 1; 5 is usual")
    config = tyro.cli(
        module.Config, args=rest, prog=f"nnkit sweep {name}", config=(tyro.conf.OmitArgPrefixes,)
    )
    fields = [field(config, word) for group in asked.grid for word in group]
    if not fields:
        raise WrongGrid(
            "give at least one --grid FIELD=VALUE,VALUE such as learning_rate=1e-3,3e-3"
        )
    _given_once(fields, rest)
    found = settings(config, fields)
    from nnkit.cli.train import unused
    from nnkit.loop.records import canonical

    what = {"config": config, "grid": {f.name: f.values for f in fields}, "seeds": asked.seeds}
    root = Path(os.environ.get("NNKIT_RUNS", "runs"))
    folder = Path(asked.folder or root / f"{name}-sweep-{canonical(what)[1][:8]}")
    if asked.fresh:
        folder = unused(folder)
    if folder.exists() and not folder.is_dir():
        raise WrongGrid(f"{folder} is a file, expected a folder for the sweep; give another name")
    return Plan(module, name, config, fields, found, asked.seeds, asked, folder)


def _given_once(fields: list[Field], words: list[str]) -> None:
    """Raise if a field is given a value beside the values of its grid, which would be dropped."""
    given = {word.partition("=")[0].replace("_", "-"): word for word in words}
    for one in fields:
        name = one.name.replace("_", "-")
        for flag in (f"--{name}", f"--no-{name}"):
            if flag in given:
                raise WrongGrid(
                    f"{given[flag]} and --grid {one.name}=... both decide {one.name}, expected one "
                    "of them: add its value to the grid, or leave the grid out"
                )


def _conduct(plan: Plan) -> int:
    """Train all, then compare. The exit code is 1 if no setting has a finite result."""
    from nnkit.cli.train import cache_programs, cores_as_devices

    cache_programs()
    cores_as_devices(SimpleNamespace(devices=os.cpu_count()))
    plan.folder.mkdir(parents=True, exist_ok=True)
    single = hasattr(plan.module, "single") and hasattr(plan.module, "batches")
    logs = _together(plan) if single else _apart(plan)
    return _compare(plan, logs)


def _together(plan: Plan) -> list[list[dict]]:
    """The rows of every setting, values [seeds]; one program for all that differ in numbers."""
    logs: list[list[dict]] = [[] for _ in plan.settings]
    traced = [f.name for f in plan.fields if f.traced]
    first = replaced(plan.config, plan.settings[0])
    train, held = plan.module.batches(first)
    try:
        task, step, _ = plan.module.single(first, train)
    except ValueError as error:
        raise WrongGrid(f"the experiment cannot train with {first}: {error}") from error
    _metric_there(plan, task, step, train, held)
    traced = [name for name in traced if _enters(plan, name, train)]
    groups: dict[str, list[int]] = {}
    for i, setting in enumerate(plan.settings):
        own = {name: v for name, v in setting.items() if name not in traced}
        groups.setdefault(label(own) if own else "all", []).append(i)
    for title, which in groups.items():
        print(f"one program: {len(which)} settings x {plan.seeds} seeds ({title})", flush=True)
        own = {name: v for name, v in plan.settings[which[0]].items() if name not in traced}
        mine = [{name: plan.settings[i][name] for name in traced} for i in which]
        rows = _program(plan, replaced(plan.config, own), mine, plan.folder / _word(title))
        for j, i in enumerate(which):
            part = slice(j * plan.seeds, (j + 1) * plan.seeds)
            logs[i] = [_cut(row, part, len(which) * plan.seeds) for row in rows]
    return logs


def _program(plan: Plan, config, mine: list[dict], folder: Path) -> list[dict]:
    """Train settings x seeds as one sweep; rows with values [settings * seeds]."""
    import jax
    import numpy as np

    import nnkit as nk

    train, held = plan.module.batches(config)
    first = next(iter(train))
    steps = plan.module.single(replaced(config, mine[0]), train)[2]
    several = {name: isinstance(v, tuple) for name, v in mine[0].items()}

    def made(h):
        setting = {name: (h[name],) if many else h[name] for name, many in several.items()}
        return plan.module.single(replaced(config, setting), train)

    flat = lambda v: v[0] if isinstance(v, tuple) else v
    grid = {name: [flat(one[name]) for one in mine for _ in range(plan.seeds)] for name in mine[0]}
    grid = {name: jax.numpy.asarray(v, "float32") for name, v in grid.items()}
    grid["seed"] = jax.numpy.asarray([*range(plan.seeds)] * len(mine), "int32")
    recipe = lambda h: nk.seeded(made(h)[1], h["seed"])
    inner = _fitting(plan, recipe, grid, first)
    seen = lambda state: ((state.grid, inner.weights(state)[0]), inner.weights(state)[1])
    step = inner._replace(weights=seen)
    judged = nk.Objective(
        lambda key, batch: ({}, {}),
        lambda both, carry, batch, key: made(both[0])[0].loss(both[1], carry, batch, key),
    )
    hooks: Any = [nk.evaluate(nk.stacked(judged), b, split=split) for split, b in held.items()]
    state = nk.init(step, jax.random.key(getattr(config, "seed", 0)), first)
    belongs = {"config": config, "grid": {n: x.tolist() for n, x in grid.items()}, "steps": steps}
    print("; ".join(nk.chosen(step, first)), flush=True)
    every = max(1, steps // 10)
    with nk.Run(folder, belongs, save_every=every) as run:
        try:
            return nk.fit(step, state, train, steps=steps, every={every: hooks}, run=run)[1]
        except FloatingPointError as error:
            print(error)
            return [*run.rows(), {"step": steps, "loss": np.full(len(grid["seed"]), np.nan)}]


def _fitting(plan: Plan, recipe: Callable, grid, batch):
    """The sweep, in chunks if memory asks for it."""
    import jax

    import nnkit as nk
    from nnkit.train.chunks import memory

    whole = nk.sweep(recipe, grid)
    limit = int(plan.asked.memory or memory())
    state = jax.eval_shape(lambda key: whole.init(key, batch), jax.random.key(0))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    if plan.asked.memory is None and 4 * size < limit:
        return whole
    try:
        found = nk.chunked(recipe, grid, batch, limit_bytes=limit)
    except ValueError as error:
        raise WrongGrid(f"{error}; on the command line: fewer values in one --grid") from error
    print(found, flush=True)
    return whole if found.size == found.members else found.step


def _enters(plan: Plan, name: str, train) -> bool:
    """May a field enter the program as a traced number? Tried on the real update."""
    import jax

    config, batch = replaced(plan.config, plan.settings[0]), next(iter(train))
    value = plan.settings[0][name]

    def one(x):
        changed = replaced(config, {name: (x,) if isinstance(value, tuple) else x})
        step = plan.module.single(changed, train)[1]
        return step.update(step.init(jax.random.key(0), batch), batch)[1]

    try:
        jax.eval_shape(one, jax.ShapeDtypeStruct((), "float32"))
    except (TypeError, IndexError, jax.errors.UnexpectedTracerError) as error:
        why = str(error).strip().splitlines()[0]
        print(f"{name} decides what the program is, so each value has its own ({why:.90})")
        return False
    return True


def _apart(plan: Plan) -> list[list[dict]]:
    """The rows of every setting from `main`, one after another; values [seeds]."""
    if not hasattr(plan.config, "seeds"):
        raise WrongGrid(
            f"the experiment {plan.name!r} has neither single(config, train) and batches(config), "
            "nor a field `seeds`: it cannot be swept over seeds (docs/sweeps.md)"
        )
    _mode_said(plan)
    print(f"{plan.name} has no single(config, train): a run of its own for each setting")
    logs = []
    for setting in plan.settings:
        folder = plan.folder / _word(label(setting))
        config = replaced(plan.config, {**setting, "seeds": plan.seeds})
        lost = []
        try:
            plan.module.main(config, folder)
        except FloatingPointError as error:
            print(error)
            lost = [{"step": 0, "loss": [float("nan")] * plan.seeds}]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines] + lost)
    return logs


def _metric_there(plan: Plan, task, step, train, held) -> None:
    """Raise before anything is compiled if what is asked for will not be measured."""
    import jax

    import nnkit as nk

    split, metric = _counts(plan.asked)
    state = jax.eval_shape(step.init, jax.random.key(0), next(iter(train)))
    hook = nk.evaluate(task, next(iter(held.values())))
    known = sorted(set(hook.trial(*jax.eval_shape(step.weights, state))) - {"split"})
    if split not in (None, *held) or metric not in (None, *known):
        there = [f"{s}/{m}" for s in held for m in known]
        asked = plan.asked.metric if split else f"{next(iter(held))}/{metric}"
        near = difflib.get_close_matches(asked, there, n=1, cutoff=0.0)[0]
        raise WrongGrid(
            f"--metric {plan.asked.metric}: the evaluations of {sorted(held)} give {known}; the "
            f"nearest is {near}"
        )
    _mode_said(plan)


def _mode_said(plan: Plan) -> None:
    """Raise if nobody says what is good of a metric that is not one of the usual."""
    if _counts(plan.asked)[1] not in (None, *MODES) and plan.asked.mode is None:
        raise WrongGrid(f"--metric {plan.asked.metric}: say what is good: --mode max or --mode min")


def _counts(asked) -> tuple[str | None, str | None]:
    """(split, metric) of --metric, None for what it leaves open."""
    split, _, metric = (asked.metric or "").rpartition("/")
    return split or None, metric or None


def _compare(plan: Plan, logs: list[list[dict]]) -> int:
    """Table, verdict, curves and files from the rows of all settings."""
    import numpy as np

    from nnkit import loop
    from nnkit.cli.report import Report

    names = [label(setting) for setting in plan.settings]
    report = Report(dict(zip(names, logs)), plan.settings, plan.seeds)
    try:
        split, metric = report.chosen(*_counts(plan.asked))
    except ValueError as error:
        print(error)
        return 1
    mode = plan.asked.mode or MODES.get(metric, "min")
    last = report.last(split, metric)
    found = loop.verdict(last, mode=mode)
    table = report.table(split, metric, found.best)
    loop.print_table(table, title=f"{plan.folder}")
    gone = report.diverged()
    for line in [found.said, gone] if gone else [found.said]:
        print(line)
    result = {"split": split, "metric": metric, "mode": mode, "said": found.said, "table": table}
    (plan.folder / "sweep.json").write_text(json.dumps(result, indent=1) + "\n")
    loop.write_csv(plan.folder / "sweep.csv", report.long())
    figure = loop.curves(report.series(split, metric), metric=f"{split} {metric}", title=plan.name)
    figure.savefig(plan.folder / "sweep.png", dpi=120)
    print(f"sweep.json, sweep.csv, sweep.png in {plan.folder}")
    return 0 if any(np.isfinite(x).any() for x in last.values()) else 1


def _cut(row: dict, part: slice, n: int) -> dict:
    """A row of one setting out of that of all."""
    import numpy as np

    return {k: v[part] if np.shape(v)[:1] == (n,) else v for k, v in row.items()}


def _word(title: str) -> str:
    """A name of a folder."""
    return re.sub(r"[^\w=.+-]+", "_", title)[:80] or "all"
