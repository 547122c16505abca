"""Fault tests as functions of a count and a seed: small on every commit, complete by one command.

    python -m reliability nightly            # every promise at its nightly count
    python -m reliability release CK-01 PR-02

A campaign returns {"count": trials, "failures": [text, ...], further figures}; the tests in
tests/reliability call the same functions with a small count. What was seen is in results/<id>.json,
from which docs/reliability.md is written.
"""

from __future__ import annotations

import sys

__all__ = ["progress"]


def progress(text: str) -> None:
    """Says where a campaign is, on standard error."""
    print(text, file=sys.stderr, flush=True)
