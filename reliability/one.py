"""One campaign in this process: python -m reliability.one ID COUNT SEED FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reliability.rows import ROWS


def main(name: str, count: str, seed: str, out: str) -> None:
    """Runs it and writes what it returns."""
    run = next(row.run for row in ROWS if row.id == name)
    Path(out).write_text(json.dumps(run(int(count), int(seed))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
