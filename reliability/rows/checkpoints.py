"""Checkpoints."""

from __future__ import annotations

from reliability import damage, exits, faults, golden, kills, power, sequences, trees
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "CK-01",
        (
            "Kill -9 at a random moment of training or saving: no acknowledged step is lost, "
            "every listed step can be read, nothing needs cleaning up"
        ),
        run=kills.anywhere,
        tests=("tests/reliability/test_kills.py::test_no_acknowledged_step_is_lost_to_a_kill",),
        nightly=60,
        release=200,
    ),
    Row(
        "CK-02",
        (
            "A run killed 20 times until it is done ends in the bits, losses and labels of the "
            "run that never was"
        ),
        run=kills.until_done,
        tests=("tests/test_resume.py::test_killed_twice_and_started_again",),
        nightly=2,
        release=10,
    ),
    Row(
        "CK-03",
        (
            "Every operation on files of opening, saving and deleting, and every failpoint of "
            "them, fails by kill, ENOSPC, EIO and EACCES: nothing acknowledged is lost, saving "
            "goes on"
        ),
        run=faults.everywhere,
        tests=("tests/reliability/test_faults.py",),
        nightly=1000,
        release=1000,
    ),
    Row(
        "CK-04",
        (
            "A power cut right after a save was acknowledged leaves all of it: every file and "
            "every directory entry was synced before"
        ),
        run=power.power_cut,
        tests=("tests/reliability/test_faults.py::test_a_power_cut_leaves_what_was_acknowledged",),
        nightly=100,
        release=200,
    ),
    Row(
        "CK-05",
        (
            "A disk that becomes full anywhere in a save: told with bytes needed and free, "
            "nothing half is left, older steps stay, the next save works; room for two is checked"
            " at the start"
        ),
        run=faults.disk_full,
        tests=("tests/reliability/test_faults.py",),
        nightly=40,
        release=40,
    ),
    Row(
        "CK-06",
        (
            "A checkpoint with a flipped bit, a zeroed block, a file cut, deleted, swapped or "
            "forged is found before a value of it is used, and the one before is taken with a "
            "warning"
        ),
        run=damage.checkpoints,
        tests=("tests/checkpoint/test_checkpoint_faults.py",),
        nightly=1000,
        release=1000,
    ),
    Row(
        "CK-07",
        (
            "A checkpoint of another model is refused with up to ten paths, what was saved, what "
            "is wanted and a remedy; nothing is cast unless it is allowed"
        ),
        tests=(
            (
                "tests/reliability/test_damage.py::"
                "test_another_model_is_refused_with_both_sides_and_a_remedy"
            ),
            "tests/reliability/test_damage.py::test_ten_differences_are_told_and_all_are_counted",
            (
                "tests/reliability/test_damage.py::"
                "test_floats_change_their_width_only_if_that_is_allowed"
            ),
        ),
    ),
    Row(
        "CK-08",
        (
            "Every way out of the process (return, sys.exit, exception, SIGINT, SIGTERM, SIGHUP, "
            "restart of a Jupyter kernel) waits for the save in flight, or exits with an error"
        ),
        run=exits.every_way,
        tests=("tests/reliability/test_exits.py::test_every_way_out_waits_for_the_save",),
        nightly=70,
        release=70,
    ),
    Row(
        "CK-09",
        "A save that fails in the background is told at the next step, and never listed",
        run=exits.failed_saves,
        tests=(
            "tests/reliability/test_exits.py::test_failed_saves_are_told_at_the_next_check",
            "tests/reliability/test_exits.py::test_fit_tells_of_a_failed_save_soon",
        ),
        nightly=60,
        release=200,
    ),
    Row(
        "CK-10",
        (
            "Of two processes that want one run one gets it, the other is told process, host and "
            "age; the lock of a dead process is taken over"
        ),
        run=exits.races,
        tests=("tests/reliability/test_locks.py",),
        nightly=50,
        release=200,
    ),
    Row(
        "CK-11",
        (
            "Trees with odd names, dtypes and bits come back equal in a new process, or are "
            "refused with the path"
        ),
        run=trees.odd,
        tests=("tests/checkpoint/test_checkpoint_odd_trees.py",),
        nightly=2000,
        release=2000,
    ),
    Row(
        "CK-12",
        (
            "In any order of saves, failures, kills, restores, deletions and jumps of the clock "
            "there is a valid step after the first, the best is kept, and what is listed is valid"
        ),
        run=sequences.random_orders,
        tests=(
            (
                "tests/reliability/test_orders.py::"
                "test_hypothesis_finds_no_order_that_breaks_a_promise"
            ),
        ),
        nightly=100,
        release=500,
    ),
    Row(
        "CK-13",
        "The checkpoint of every release is restored and trained on for five steps",
        run=golden.restored,
        nightly=len(golden.releases()),
        release=len(golden.releases()),
    ),
    Row(
        "CK-14",
        (
            "A checkpoint saved on 1, 2, 4 or 8 devices by 1 or 2 processes is restored on any "
            "others, bit by bit"
        ),
        tests=(
            "tests/checkpoint/test_topologies.py::test_pairs_of_device_counts_in_one_process",
            "tests/checkpoint/test_topologies.py::test_all_pairs_of_topologies",
            (
                "tests/parallel/test_hosts_training.py::"
                "test_a_checkpoint_of_one_process_is_that_of_two"
            ),
        ),
    ),
    Row(
        "CK-15",
        (
            "Things in a run folder that only look like checkpoints are named, never chosen and "
            "never deleted"
        ),
        tests=(
            (
                "tests/reliability/test_damage.py::"
                "test_foreign_things_are_noted_never_chosen_and_never_deleted"
            ),
        ),
    ),
    Row(
        "CK-16",
        (
            "A run folder belongs to one configuration: another value in any of 15 fields is "
            "refused with the differences; other code is told"
        ),
        tests=(
            "tests/reliability/test_locks.py::test_another_value_in_any_field_is_refused_with_both",
            "tests/reliability/test_locks.py::test_many_differences_are_told_in_three",
            "tests/reliability/test_locks.py::test_other_code_is_told_when_a_run_goes_on",
        ),
    ),
    Row(
        "CK-17",
        (
            "Save holds training up for at most one step (or 10 ms, where steps are shorter), for"
            " states up to 100 MB"
        ),
        run=exits.blocked,
        nightly=10,
        release=10,
    ),
)
