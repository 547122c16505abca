"""Determinism and resume."""

from __future__ import annotations

from reliability import data, determinism
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "DT-01",
        (
            "The same command twice, in new processes, on 1 and on 8 devices: the same losses and"
            " the same state, bit by bit"
        ),
        run=determinism.twice,
        tests=("tests/reliability/test_determinism.py::test_the_same_command_twice",),
        nightly=6,
        release=6,
    ),
    Row(
        "DT-02",
        (
            "Cut after any step and resumed from the checkpoint: every loss, evaluation and bit "
            "is that of the run that was not cut, over six kinds of model"
        ),
        run=determinism.cut,
        tests=(
            "tests/reliability/test_determinism.py::test_cut_and_resumed",
            "tests/reliability/test_determinism.py::test_a_cut_that_forgets_something_is_noticed",
            "tests/test_resume.py",
        ),
        nightly=300,
        release=300,
    ),
    Row(
        "DT-03",
        (
            "Each leaf of a saved state, changed, changes what follows, or is listed as one that "
            "does not, with the reason"
        ),
        run=determinism.leaves,
        tests=(
            "tests/reliability/test_determinism.py::test_each_leaf_of_a_state_decides_what_follows",
            "tests/reliability/test_determinism.py::test_a_leaf_that_decides_nothing_is_noticed",
        ),
        nightly=1000,
        release=1000,
    ),
    Row(
        "DT-04",
        "Batches read by 0, 1, 2 or 4 threads and 0, 1 or 8 ahead are equal bit by bit",
        run=data.workers,
        nightly=12,
        release=120,
    ),
    Row(
        "DT-05",
        (
            "On 2, 4 and 8 devices: the same examples, losses and predictions within 1e-5 of one "
            "device (1e-12 in float64) after 100 steps"
        ),
        run=determinism.across_devices,
        tests=("tests/parallel/test_shard_laws.py::test_shard_is_the_step_at_each_of_20_steps",),
        nightly=3,
        release=3,
    ),
    Row(
        "DT-06",
        (
            "A layer, metric, evaluation, log, hook, folder, bar, field, guard or replay more "
            "leaves every other random stream alone"
        ),
        tests=(
            "tests/reliability/test_determinism.py::test_an_edit_leaves_other_streams_alone",
            (
                "tests/reliability/test_determinism.py::"
                "test_another_seed_or_rate_of_dropout_is_not_the_same"
            ),
        ),
    ),
    Row(
        "DT-07",
        "Evaluating never, once or twice changes no bit of the state nor of what follows",
        tests=(
            "tests/reliability/test_determinism.py::test_evaluating_changes_nothing",
            "tests/test_laws.py::test_evaluation_is_deterministic_and_leaves_the_carry_alone",
        ),
    ),
    Row(
        "DT-08",
        "Digests of six kinds of model per jax and platform: changes are told, not failed",
        run=determinism.digests,
        nightly=6,
        release=6,
    ),
    Row(
        "DT-09",
        (
            "A bit flipped in one of two replays of an update (nk.replayed) is found, without one"
            " nothing is; off by default"
        ),
        run=determinism.flipped,
        tests=(
            "tests/reliability/test_determinism.py::test_a_flipped_bit_is_found_by_the_replay",
            (
                "tests/reliability/test_determinism.py::"
                "test_a_replay_is_computed_and_is_one_piece_of_program"
            ),
            (
                "tests/reliability/test_determinism.py::"
                "test_fit_stops_when_a_replay_differs_and_between_replays_nothing_is_computed_twice"
            ),
            (
                "tests/reliability/test_determinism.py::"
                "test_off_it_is_the_very_same_step_and_on_the_same_numbers"
            ),
        ),
        nightly=200,
        release=200,
    ),
)
