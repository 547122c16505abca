"""Compiles, memory, transfers."""

from __future__ import annotations

from reliability import compiles
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "RC-01",
        "A run compiles one update and one evaluation, and nothing after step 2",
        run=compiles.examples,
        tests=(
            "tests/reliability/test_compiles.py::test_one_update_and_one_evaluation",
            "tests/loop/test_loop_fit.py::test_fit_compiles_one_program_whatever_the_sharding",
            "tests/loop/test_loop_fit.py::test_the_second_fit_compiles_nothing",
        ),
        nightly=6,
        release=6,
    ),
    Row(
        "RC-02",
        (
            "An argument that drifts in shape, dtype, weak type, structure, static value or "
            "placement is normalised, or named with its old and new form; the fourth time raises"
        ),
        run=compiles.drifts,
        tests=(
            "tests/reliability/test_compiles.py::test_twelve_drifts_are_named_or_normalised",
            (
                "tests/reliability/test_compiles.py::"
                "test_the_fourth_retrace_of_fit_raises_before_it_compiles"
            ),
            (
                "tests/reliability/test_compiles.py::"
                "test_a_ragged_last_batch_of_an_evaluation_is_as_it_should_be"
            ),
            (
                "tests/reliability/test_compiles.py::"
                "test_a_placement_that_changes_is_refused_at_the_next_call_and_loses_nothing"
            ),
        ),
        nightly=12,
        release=12,
    ),
    Row(
        "RC-03",
        (
            "From step 1,000 to 10,000, with rows and evaluations, memory grows by at most 5 MiB "
            "and no array is left over"
        ),
        run=compiles.memory,
        tests=(
            "tests/reliability/test_compiles.py::test_arrays_of_a_training_go_with_their_names",
        ),
        nightly=9,
        release=9,
    ),
    Row(
        "RC-04",
        (
            "Nothing is moved between host and device without being asked for, and the host waits"
            " at rows alone"
        ),
        tests=(
            "tests/loop/test_loop_fit.py::test_no_implicit_transfer",
            "tests/loop/test_loop_fit.py::test_the_host_waits_at_rows_alone",
        ),
    ),
    Row(
        "RC-05",
        "No array of a training waits for the garbage collector",
        run=compiles.cycles,
        nightly=3,
        release=10,
    ),
)
