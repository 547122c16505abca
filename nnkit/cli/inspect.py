"""`nnkit eval`, `ls` and `doctor`: look at what there is."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import textwrap
import time
from pathlib import Path

from nnkit.cli.restored import NotRestored, restored

__all__ = ["doctor", "evaluate", "list_runs"]

# (name, jax, flax): versions that are known to work together
STACKS = [
    ("the lowest supported, as in Colab", "0.7.2", "0.11.2"),
    ("Python 3.11", "0.10.2", "0.12.8"),
    ("newest", "0.12.0.1", "0.12.12"),
]


def evaluate(words: list[str]) -> int:
    """nnkit eval RUN [--latest]: the evaluations of the experiment on the saved weights.

    The best checkpoint is taken where the run keeps one, else the newest.

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> evaluate(["no-such-run"])
    no-such-run is no run folder: it has no config.json; `nnkit ls` lists runs
    2
    """
    if not words or words[0].startswith("-") or {*words[1:]} - {"--latest"}:
        print("usage: nnkit eval RUN [--latest]")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    try:
        run = restored(words[0], "--latest" in words)
    except NotRestored as error:
        print(error)
        return error.code
    from nnkit.loop.tables import print_table

    print(run.said)
    rows = [hook(*run.weights) for hook in run.evaluations.values()]
    if hasattr(run.module, "results"):
        print_table(run.module.results(run.config, rows))
    else:
        print_table([{k: str(v) for k, v in row.items()} for row in rows])
    return 0


def list_runs(words: list[str]) -> int:
    """nnkit ls [FOLDER]: every run with status, step and last evaluation.

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> list_runs(["no-such-folder"])
    no-such-folder does not exist; give the folder that the runs are in
    2
    """
    if len(words) > 1 or (words and words[0].startswith("-")):
        print("usage: nnkit ls [FOLDER]    FOLDER is NNKIT_RUNS, or runs, by default")
        return 0 if words in (["-h"], ["--help"]) else 2
    root = Path(words[0] if words else os.environ.get("NNKIT_RUNS", "runs"))
    if words and not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        print(f"{root} {what}; give the folder that the runs are in")
        return 2
    found = sorted(root.rglob("config.json")) if root.is_dir() else []
    if not found:
        print(f"no runs in {root}; `nnkit demo` makes one")
        return 0
    _print_runs([_row(path.parent) for path in found])
    return 0


def _print_runs(rows: list[dict]) -> None:
    """A table in which the name of a run is never broken: it is there to be copied."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    longest = max(len(row["run"]) for row in rows)
    table.add_column("run", no_wrap=True, min_width=longest)
    word = max(len(word) for row in rows for word in row["status"].split())
    table.add_column("status", min_width=min(word, 32), overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("minutes ago", justify="right")
    table.add_column("last evaluation")
    for row in rows:
        table.add_row(*map(str, row.values()))
    width = Console().width if sys.stdout.isatty() else 110
    Console(width=max(width, longest + 80), markup=False, highlight=False).print(table)


def _row(folder: Path) -> dict:
    last, values = {}, {}
    log = folder / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            last = json.loads(line)
        except json.JSONDecodeError:
            break
        if "split" in last and "text" not in last:  # texts that a model wrote are no numbers
            values = last
    status = (folder / "STATUS").read_text().strip() if (folder / "STATUS").exists() else ""
    if status.startswith("failed: KeyboardInterrupt"):
        status = "interrupted"
    age = time.time() - (log if log.exists() else folder).stat().st_mtime
    text = []
    for name, x in values.items():
        each = x if isinstance(x, list) else [x]
        if name in ("step", "time", "split") or not all(isinstance(y, int | float) for y in each):
            continue
        low, high = f"{min(each):.4g}", f"{max(each):.4g}"
        text.append(f"{name} {low}" if len(each) == 1 else f"{name} {low}..{high}")
    return {
        "run": str(folder),
        "status": textwrap.shorten(status or "new", 72, placeholder=" ..."),
        "step": int(last.get("step", 0)),
        "minutes ago": round(age / 60),
        "last evaluation": f"{values.get('split', '')} {', '.join(text)}".strip(),
    }


def doctor(words: list[str]) -> int:
    """nnkit doctor: versions, the stack they make, devices, data, and what is wrong.

    Args:
      words: the words after the verb.

    Returns:
      1 if something cannot work.

    >>> doctor([]) in (0, 1)  # doctest: +ELLIPSIS
    nnkit ...
    True
    """
    if words:
        print("usage: nnkit doctor")
        return 0 if words[0] in ("-h", "--help") else 2
    from nnkit import __version__

    names = "jax jaxlib flax optax orbax-checkpoint numpy tensorflow-datasets tyro".split()
    have = {name: _version(name) for name in names}
    problems = [f"{name} is not installed" for name, version in have.items() if version is None]
    print(f"nnkit {__version__}, Python {sys.version.split()[0]}")
    print("  ".join(f"{name} {version or '-'}" for name, version in have.items()))
    print(f"stack   {stack(have['jax'] or '', have['flax'] or '')}")
    if not problems:
        problems += _alive()
    data = os.environ.get("NNKIT_DATA_DIR")
    if data and Path(data).is_dir():
        count = sum(path.is_dir() for path in Path(data).iterdir())
        print(f"data    NNKIT_DATA_DIR has {count} data set{'' if count == 1 else 's'}")
    elif data:
        what = "is a file, not a folder" if Path(data).exists() else "does not exist"
        problems.append(f"NNKIT_DATA_DIR is {data}, which {what}")
    else:
        print("data    NNKIT_DATA_DIR is not set: only the embedded data sets")
    for problem in problems:
        print(f"wrong   {problem}")
    if not problems:
        print("nothing wrong")
    return 1 if problems else 0


def stack(jax_version: str, flax_version: str) -> str:
    """Which known combination of versions this is.

    >>> stack("0.7.2", "0.11.2")
    'known to work: jax 0.7.2 with flax 0.11.2 (the lowest supported, as in Colab)'
    """
    for name, jax_known, flax_known in STACKS:
        if (jax_version, flax_version) == (jax_known, flax_known):
            return f"known to work: jax {jax_version} with flax {flax_version} ({name})"
    known = ", ".join(f"{j} with {f}" for _, j, f in STACKS)
    return (
        f"jax {jax_version or '-'} with flax {flax_version or '-'} is not one of the tested "
        f"combinations, which are jax {known}"
    )


def _alive() -> list[str]:
    problems = []
    try:
        import jax

        devices = jax.devices()
        total = float(jax.jit(lambda x: x.sum())(jax.numpy.ones(8)))
        print(f"devices {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
        if total != 8:
            problems.append(f"the sum of eight ones is {total} on {devices[0]}")
    except Exception as error:
        return [f"jax does not run: {error}"]
    try:
        importlib.import_module("flax.nnx")

        print("nnx     imports")
    except Exception as error:
        print(f"nnx     does not import with this jax: {error}; Linen models are not affected")
    return problems


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
