"""Runs promises at their nightly or release count, keeps what was seen, writes the table.

    python -m reliability nightly              every promise, those of `release` at fewer trials
    python -m reliability release              every promise at its full count (hours)
    python -m reliability release CK-01 PR-02  some
    python -m reliability list                 the promises, and at which counts they run
    python -m reliability write                docs/reliability.md again, from results/*.json

Each promise runs in a process of its own, with 8 CPU devices. results/<id>.json is written when
it has ended, well or not; the exit status is the number of promises that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path

from reliability import page, progress
from reliability.row import Row
from reliability.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 20  # failures that are kept


def main() -> int:
    """The command line; returns how many promises failed."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("nightly", "release", "list", "write"))
    parser.add_argument("ids", nargs="*", help="such as CK-01; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=6.0, help="a promise may take, at most")
    asked = parser.parse_args()
    unknown = sorted(set(asked.ids) - {row.id for row in ROWS})
    if unknown:
        parser.error(f"no promise {', '.join(unknown)}; `python -m reliability list` shows them")
    rows = [row for row in ROWS if not asked.ids or row.id in asked.ids]
    if asked.what == "list":
        for row in rows:
            print(f"{row.id}  {row.nightly or '-':>6} {row.release or '-':>6}  {row.promise}")
        return 0
    failed = 0
    if asked.what != "write":
        for row in rows:
            failed += not ran(row, asked.what, asked.seed, asked.hours)
    (ROOT / "docs" / "reliability.md").write_text(page.page(ROWS, page.results()))
    return min(failed, 100)


def ran(row: Row, tier: str, seed: int, hours: float) -> bool:
    """Runs one promise, writes what was seen, and says whether it was kept."""
    progress(f"{row.id}  {row.promise}")
    found: dict = {"id": row.id, "tier": tier, "seed": seed, "count": 0, "failures": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if row.run is not None:
            found |= campaign(row, row.trials(tier), seed, folder, hours * 3600)
        if row.tests:
            passed, skipped, failures = tests(row, folder, hours * 3600)
            found |= {"tests": passed, "skipped": skipped}
            found["failures"] = [*found["failures"], *failures]
    found["seconds"] = round(time.monotonic() - began, 1)
    found["failed"], found["failures"] = len(found["failures"]), found["failures"][:SHOWN]
    from benchmarks.compare import origin

    found["origin"] = origin()
    page.RESULTS.mkdir(exist_ok=True)
    (page.RESULTS / f"{row.id}.json").write_text(json.dumps(found, indent=1) + "\n")
    seen = f"{found['count']} trials, {found.get('tests', 0)} tests, {found['seconds']} s"
    progress(f"{row.id}  {'FAILED' if found['failed'] else 'kept'}: {seen}")
    for failure in found["failures"][:5]:
        progress(f"    {failure}")
    return not found["failed"]


def campaign(row: Row, count: int, seed: int, folder: str, limit: float) -> dict:
    """What a campaign returns, run in a process of its own."""
    out = Path(folder) / "found.json"
    words = [sys.executable, "-m", "reliability.one", row.id, str(count), str(seed), str(out)]
    try:
        code = subprocess.run(words, cwd=ROOT, env=environment(), timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return {"failures": [f"not finished in {limit:.0f} s; count={count} seed={seed}"]}
    if not out.exists():
        return {"failures": [f"ended with exit code {code}; count={count} seed={seed}"]}
    found = json.loads(out.read_text())
    if found["count"] < min(count, found.get("of", count)):
        found["failures"].append(f"{found['count']} of {count} trials were made")
    return found


def tests(row: Row, folder: str, limit: float) -> tuple[int, int, list[str]]:
    """(tests passed, skipped, failures) of the tests of a promise."""
    report = Path(folder) / "tests.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "nightly or not nightly"]
    try:
        subprocess.run(
            [*words, f"--junitxml={report}", *row.tests],
            cwd=ROOT, env=environment(), timeout=limit, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 0, 0, [f"tests did not finish in {limit:.0f} s: {' '.join(row.tests)}"]
    if not report.exists():
        return 0, 0, [f"pytest did not run: {' '.join(row.tests)}"]
    cases = list(xml.parse(report).getroot().iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    failures = [f"{c.get('classname')}::{c.get('name')}" for c in bad]
    if len(cases) == len(skipped):
        failures.append(f"no test ran: {' '.join(row.tests)}")
    return len(cases) - len(bad) - len(skipped), len(skipped), failures


def environment() -> dict[str, str]:
    """That of a promise: CPU, 8 devices, a compilation cache, byte code kept."""
    cache = Path(os.environ.get("NNKIT_CACHE", Path.home() / ".cache" / "nnkit" / "tests"))
    found = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NNKIT_CACHE": str(cache)}
    return found | {"PYTHONPYCACHEPREFIX": str(cache / "bytecode")}


if __name__ == "__main__":
    sys.exit(main())
