"""docs/reliability.md from the results: what is promised, and what was seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reliability.short import SHORT

__all__ = ["page", "results"]

RESULTS = Path(__file__).parent / "results"
KNOWN = {"id", "tier", "seed", "count", "failures", "failed", "tests", "skipped", "seconds"}
KNOWN |= {"origin", "of"}
HEAD = """# What a run can rely on

Every row is a promise, the test behind it, and what was seen when it last ran. \
This page is written by the runner from `reliability/results/`; nobody edits it.

    python -m reliability nightly        # all promises; those with a full count at fewer trials
    python -m reliability release        # all at their full count
    python -m reliability release CK-01  # one

The small counts of the same functions run with the test suite (`tests/reliability`). \
A trial is one fault: a kill, a damaged file, a wrong input, a cut point.
"""
PARTS = {
    "CK": "Checkpoints",
    "DT": "Determinism and resume",
    "PR": "Preemption, interrupts, notebooks",
    "BI": "Bad input",
    "DP": "Data",
    "NU": "Numerics",
    "RC": "Compiles, memory, transfers",
    "MH": "Many hosts",
    "SE": "Security",
}


def results() -> dict[str, dict]:
    """What was seen, by id."""
    files = sorted(RESULTS.glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files}


def page(rows: Sequence, found: dict[str, dict]) -> str:
    """The page: kept, broken and not measured promises, by part."""
    text = [HEAD, summary(rows, found)]
    for part, title in PARTS.items():
        here = [row for row in rows if row.id.startswith(part)]
        if not here:
            continue
        text.append(f"\n## {title}\n")
        text.append("| id | promise | seen | on | by |\n|---|---|---|---|---|")
        text += [line(row, found.get(row.id)) for row in here]
    broken = [row for row in rows if found.get(row.id, {}).get("failed")]
    if broken:
        text.append("\n## Not kept\n")
        for row in broken:
            text.append(f"- {row.id}: " + "; ".join(found[row.id]["failures"][:3]))
    text.append("\n## Short of what was wanted\n")
    text += [f"- {name}: {what}." for name, what in SHORT.items()]
    return "\n".join(text) + "\n"


def summary(rows: Sequence, found: dict[str, dict]) -> str:
    """How many promises were kept, and with what versions."""
    seen = [found[row.id] for row in rows if row.id in found]
    kept = sum(not one["failed"] for one in seen)
    with_ = sorted({stack(one["origin"]["versions"]) for one in seen})
    return (
        f"{kept} of {len(rows)} promises kept, {len(seen) - kept} not kept, "
        f"{len(rows) - len(seen)} not measured. CPU; {' and '.join(with_) or 'nothing ran yet'}."
    )


def stack(versions: dict[str, str]) -> str:
    """The versions in words."""
    return ", ".join(f"{k} {versions[k]}" for k in ("python", "jax", "flax", "optax"))


def line(row, seen: dict | None) -> str:
    """One row of the table."""
    run = f"`{row.run.__module__.split('.')[-1]}.{row.run.__name__}`" if row.run else ""
    files = dict.fromkeys(test.split("::")[0].removeprefix("tests/") for test in row.tests)
    by = ", ".join([run] * bool(run) + [f"`{name}`" for name in files])
    if seen is None:
        return f"| {row.id} | {row.promise} | not measured | | {by} |"
    counts = [f"{seen['count']} trial{'' if seen['count'] == 1 else 's'}"] if row.run else []
    if row.tests:
        skipped = f" ({seen['skipped']} skipped)" if seen.get("skipped") else ""
        n = seen.get("tests", 0)
        counts.append(f"{n} test{'' if n == 1 else 's'}{skipped}")
    full = min(row.release or row.nightly or 0, seen.get("of", 10**9))
    if row.run and full and seen["count"] < full:
        counts[0] += f" of {full}"
    verdict = f"**{seen['failed']} failed**" if seen["failed"] else "0 failed"
    more = [f"{k.replace('_', ' ')} {v}" for k, v in seen.items() if k not in KNOWN]
    said = "; ".join([", ".join(counts) + f": {verdict}", *more])
    origin = seen["origin"]
    commit = origin["commit"] + ("+" if origin["changed"] else "")
    return f"| {row.id} | {row.promise} | {said} | {origin['date'][:10]}, {commit} | {by} |"
