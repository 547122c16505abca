"""Security."""

from __future__ import annotations

from reliability import fuzz, hostile, names, sets
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "SE-01",
        "No source unpickles, evaluates, imports by a name from a file or runs a shell",
        tests=(
            "tests/reliability/test_security.py::test_no_source_runs_what_is_in_a_file",
            "tests/reliability/test_security.py::test_the_scan_sees",
        ),
    ),
    Row(
        "SE-02",
        "Saving and loading call no pickle, no eval and no exec",
        tests=(
            (
                "tests/reliability/test_security.py::"
                "test_loading_and_saving_never_unpickle_or_evaluate"
            ),
        ),
    ),
    Row(
        "SE-03",
        (
            "Hostile files, 40 and more, are refused in words, each in a second and 100 MB, with "
            "nothing written outside"
        ),
        run=hostile.files,
        tests=("tests/interop/test_huggingface_wrong.py",),
        nightly=len(hostile.CASES),
        release=len(hostile.CASES),
    ),
    Row(
        "SE-04",
        (
            "Hostile names of leaves, shards, files and data sets stay inside their folder or are"
            " refused"
        ),
        run=names.hostile,
        nightly=1000,
        release=10000,
    ),
    Row(
        "SE-05",
        "Deletion follows no link, leaves no run folder, and needs our marker",
        tests=(
            (
                "tests/reliability/test_security.py::"
                "test_deletion_follows_no_link_and_leaves_what_is_not_ours"
            ),
        ),
    ),
    Row(
        "SE-06",
        (
            "Settings, manifests, headers and run folders are data, bounded in size and depth; "
            "faulty ones are errors of ours within a second"
        ),
        run=fuzz.inputs,
        tests=(
            "tests/reliability/test_hostile.py::test_a_document_is_bounded",
            "tests/reliability/test_security.py::test_a_run_folder_is_data",
        ),
        nightly=100000,
        release=100000,
    ),
    Row(
        "SE-07",
        (
            "A download is checked by SHA-256 and kept out of sight until it is whole; another "
            "file, scheme or name is refused; nothing else opens a connection"
        ),
        run=sets.downloads,
        tests=(
            (
                "tests/reliability/test_security.py::"
                "test_nothing_is_downloaded_but_by_their_own_libraries"
            ),
            (
                "tests/reliability/test_data.py::"
                "test_nothing_in_the_package_opens_a_connection_of_its_own"
            ),
            "tests/reliability/test_data.py::test_features_of_a_set_name_no_other_code",
            "tests/data/test_data_tfds.py::test_a_failed_download_names_folders_cause_and_remedy",
            "tests/interop/test_huggingface_hub.py",
        ),
        nightly=14,
        release=70,
    ),
    Row(
        "SE-08",
        (
            "Run folders, checkpoints and exports hold no home folder, no token and no path of a "
            "source file"
        ),
        tests=(
            "tests/reliability/test_security.py::test_nothing_private_is_written",
            "tests/reliability/test_security.py::test_private_leaves_the_rest",
        ),
    ),
    Row(
        "SE-09",
        (
            "Weights leave and enter as safetensors with the SHA-256 of the file, which finds "
            "every flipped bit, and are verified without model code"
        ),
        tests=(
            (
                "tests/reliability/test_security.py::"
                "test_weights_carry_a_digest_that_finds_every_flipped_bit"
            ),
            (
                "tests/reliability/test_security.py::"
                "test_the_digest_is_that_of_the_file_with_zeros_in_its_place"
            ),
            "tests/reliability/test_verify.py",
        ),
    ),
)
