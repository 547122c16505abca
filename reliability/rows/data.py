"""Data."""

from __future__ import annotations

from reliability import data, sets
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "DP-01",
        (
            "A reader that raises, hangs, stops or ends names its example and thread, after all "
            "batches before it; of a killed program nothing is left"
        ),
        run=data.readers,
        tests=(
            "tests/reliability/test_data.py::test_fit_says_which_example_cannot_be_read",
            (
                "tests/reliability/test_data.py::"
                "test_a_source_that_hangs_is_named_with_the_line_where_it_stands"
            ),
            "tests/reliability/test_data.py::test_a_stop_of_the_program_is_no_hang",
            "tests/reliability/test_data.py::test_ctrl_c_in_the_middle_of_reading_loses_no_batch",
            "tests/reliability/test_data.py::test_a_thread_that_dies_elsewhere_is_an_error",
        ),
        nightly=40,
        release=200,
    ),
    Row(
        "DP-02",
        (
            "A filter that rejects 1,000 examples in a row, or a generator that rejects all, is "
            "an error"
        ),
        tests=(
            "tests/data/test_data_reading.py::test_so_many_rejected_in_a_row_are_an_error",
            "tests/data/test_data_reading.py::test_as_many_as_are_allowed_pass",
            (
                "tests/data/test_data_reading.py::"
                "test_a_filter_that_rejects_nearly_all_does_not_read_everything"
            ),
            "tests/data/test_data_reading.py::test_where_is_numpy_across_pieces",
            "tests/data/test_data_reading.py::test_wrong_conditions",
            (
                "tests/reliability/test_data.py::"
                "test_a_generator_that_rejects_everything_does_not_hang"
            ),
        ),
    ),
    Row(
        "DP-03",
        (
            "Every example comes once an epoch, for any size, reader, share and point of "
            "resuming; evaluation is that of NumPy, padding weighs nothing"
        ),
        run=data.coverage,
        tests=("tests/data/test_data_batches.py::test_every_example_once_and_resume_anywhere",),
        nightly=1000,
        release=5000,
    ),
    Row(
        "DP-04",
        (
            "A data set whose preparation or download was killed, cut, changed or done twice at "
            "once is whole or refused"
        ),
        run=sets.halves,
        tests=(
            (
                "tests/reliability/test_data.py::"
                "test_a_set_without_its_description_is_not_taken_for_prepared"
            ),
            "tests/data/test_data_tfds.py::test_decoded_cache_is_used_renewed_and_not_trusted",
        ),
        nightly=100,
        release=400,
    ),
    Row(
        "DP-05",
        (
            "Processes read disjoint, complete shares in equal steps, and never wait for each "
            "other in vain"
        ),
        run=data.together,
        tests=("tests/parallel/test_hosts_training.py",),
        nightly=200,
        release=1000,
    ),
    Row(
        "DP-06",
        (
            "A batch, or a list of batches, that is changed after it was handed over changes no "
            "training and no evaluation"
        ),
        tests=(
            "tests/reliability/test_data.py::test_batches_may_be_made_in_the_same_memory",
            "tests/reliability/test_data.py::test_a_list_of_batches_may_be_changed_while_training",
            "tests/reliability/test_data.py::test_evaluation_of_batches_made_in_the_same_memory",
            (
                "tests/reliability/test_data.py::"
                "test_a_source_may_give_the_same_memory_for_every_batch"
            ),
            "tests/data/test_data_batches.py::test_batches_own_their_memory",
        ),
    ),
)
