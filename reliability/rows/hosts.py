"""Many hosts."""

from __future__ import annotations

from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "MH-01",
        (
            "A process that is killed ends the others, who name it, with an exit code that is not"
            " 0; started again they go on to the same losses"
        ),
        tests=("tests/parallel/test_hosts_training.py",),
    ),
    Row(
        "MH-03",
        (
            "A process that does not come, a wrong count and a number given twice are named "
            "before JAX starts"
        ),
        tests=("tests/parallel/test_hosts.py",),
    ),
    Row(
        "MH-05",
        (
            "Processes that differ in configuration, code, data or program are refused before the"
            " first update"
        ),
        tests=("tests/parallel/test_hosts.py::test_who_differs_in_what_is_named_everywhere",),
    ),
)
