"""Bad input."""

from __future__ import annotations

from reliability import configs, inputs
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "BI",
        (
            "Each of the bad inputs of the tables raises an error that names field, value, what "
            "is allowed and a remedy, before anything is compiled: at least 3 of the 4 parts, 95 "
            "% all"
        ),
        run=inputs.scored,
        tests=(
            "tests/reliability/test_inputs.py",
            "tests/test_wrong_input.py",
            "tests/test_wrong_nouns.py",
            "tests/test_wrong_numbers.py",
            "tests/test_wrong_settings.py",
            "tests/test_wrong_runs.py",
        ),
        nightly=238,
        release=238,
    ),
    Row(
        "BI-2000",
        (
            "Each random edit of a valid configuration, in Python or on the command line, trains "
            "two steps or raises such an error"
        ),
        run=configs.edits,
        nightly=2000,
        release=2000,
    ),
    Row(
        "BI-counters",
        (
            "Labels and ids out of range are refused on the host in the first three batches, "
            "counted in the step later, and named with field, count and range"
        ),
        tests=("tests/reliability/test_counters.py",),
    ),
)
