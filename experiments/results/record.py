"""One JSON file from the folder of a run: what the tables of experiments/README.md link to.

python experiments/results/record.py RUN experiments/results/NAME.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def record(run: Path) -> dict:
    """Configuration, date, versions, machine, evaluations and table of a run."""

    def read(name):
        return json.loads((run / name).read_text())

    start = read("env.json")[-1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {
        "config": read("config.json"),
        "date": start["time"],
        "commit": start.get("commit"),
        "versions": {**start["versions"], "python": start["python"]},
        "cores": start["cores"],
        "devices": start["devices"],
        "seconds": rows[-1]["time"],
        "evaluations": [row for row in rows if "split" in row],
        "table": read("results.json"),
    }
    if (run / "reading").is_dir():  # what came before, in a run of its own
        inner = (run / "reading" / "metrics.jsonl").read_text().splitlines()
        inner = [json.loads(line) for line in inner]
        found["reading"] = [row for row in inner if "split" in row]
    return found


def text(found: dict) -> str:
    """JSON with lists of numbers on one line each."""
    whole = json.dumps(found, indent=1, ensure_ascii=False)
    flat = r'\[\s+((?:[-\d.e+]+,?\s*|"[^"\[\]\n]*",?\s*|null,?\s*|NaN,?\s*)+)\]'
    short = re.sub(flat, lambda m: "[" + " ".join(m.group(1).split()) + "]", whole)
    assert json.loads(short) == json.loads(whole)
    return short + "\n"


if __name__ == "__main__":
    place, out = map(Path, sys.argv[1:])
    out.write_text(text(record(place)))
