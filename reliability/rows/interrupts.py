"""Preemption, interrupts, notebooks."""

from __future__ import annotations

from reliability import endings, interrupts
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "PR-01",
        (
            "SIGTERM in import, data, compilation, step, evaluation or save: the process has left"
            " within 25 s by 143, at most one step is lost, and a second SIGTERM ends it at once"
        ),
        run=endings.terminated,
        tests=(
            "tests/reliability/test_interrupts.py::test_sigterm_in_a_step_and_twice",
            (
                "tests/reliability/test_interrupts.py::"
                "test_sigterm_ends_with_143_and_a_second_one_at_once"
            ),
            (
                "tests/reliability/test_interrupts.py::"
                "test_a_loop_that_cannot_look_is_ended_after_the_grace"
            ),
            "tests/reliability/test_interrupts.py::test_interrupted_in_the_last_evaluation",
            "tests/reliability/test_interrupts.py::test_the_command_line_ends_with_130_and_143",
        ),
        nightly=14,
        release=105,
    ),
    Row(
        "PR-02",
        (
            "Ctrl-C at a random moment of a loop that donates its state: fit returns the state of"
            " the last step, marked as interrupted, and the same call goes on bit by bit"
        ),
        run=interrupts.ctrl_c,
        tests=(
            "tests/reliability/test_interrupts.py::test_ctrl_c_in_a_donated_loop",
            (
                "tests/reliability/test_interrupts.py::"
                "test_the_result_is_marked_and_the_handlers_are_back"
            ),
            "tests/reliability/test_interrupts.py::test_twice_raises_with_the_state",
            (
                "tests/reliability/test_interrupts.py::"
                "test_handlers_of_others_and_other_threads_are_left_alone"
            ),
            "tests/reliability/test_interrupts.py::test_a_fit_in_a_hook_of_a_fit",
        ),
        nightly=200,
        release=200,
    ),
    Row(
        "PR-03",
        (
            "An error of user code carries the last sound state, which the run has as a "
            "checkpoint, and its traceback ends in the user's line"
        ),
        run=interrupts.errors,
        tests=(
            "tests/reliability/test_interrupts.py::test_errors_of_user_code",
            "tests/reliability/test_interrupts.py::test_a_spoilt_state_is_not_left_on_the_error",
            (
                "tests/reliability/test_interrupts.py::"
                "test_a_failed_save_is_raised_at_one_of_the_next_steps"
            ),
        ),
        nightly=40,
        release=40,
    ),
    Row(
        "PR-04",
        (
            "A notebook that is interrupted, run again, restarted or run in another order ends in"
            " the bits and rows of the script"
        ),
        run=endings.notebooks,
        tests=(
            "tests/reliability/test_interrupts.py::test_the_same_call_goes_on_without_a_run",
            "tests/reliability/test_interrupts.py::test_a_generator_that_was_read_is_refused",
        ),
        nightly=10,
        release=10,
    ),
    Row(
        "PR-05",
        (
            "A run on a disk that may go away is told so once, with a remedy; when it has gone, "
            "the next save is an error"
        ),
        tests=(
            "tests/reliability/test_interrupts.py::test_a_folder_that_may_go_away_is_told_once",
            (
                "tests/reliability/test_interrupts.py::"
                "test_a_disk_that_is_unmounted_is_an_error_within_one_save"
            ),
        ),
    ),
    Row(
        "PR-06",
        (
            "An accelerator that was asked for and is not there, is in use, or has too few "
            "devices, is an error within 2 s and before anything is compiled"
        ),
        tests=(
            "tests/reliability/test_interrupts.py::test_an_accelerator_that_is_not_here",
            "tests/reliability/test_interrupts.py::test_what_the_environment_asks_for_is_required",
        ),
    ),
    Row(
        "PR-07",
        "A damaged compilation cache costs a warning and a compilation, never another result",
        run=endings.cache,
        nightly=20,
        release=20,
    ),
)
