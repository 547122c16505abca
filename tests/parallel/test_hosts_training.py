"""Two processes with four devices each train as one process with eight."""

from __future__ import annotations

import itertools
import re

import hosts_program
import launching
import numpy as np
import pytest

import nnkit as nk


def numbers(rows):
    return {
        (row["step"], row.get("split"), k): v
        for row in rows
        for k, v in row.items()
        if k not in ("step", "time", "split")
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One process with 8 devices; then two with 4 each, one killed after step 5; then two again."""
    folder = tmp_path_factory.mktemp("training")
    rows, read, _ = hosts_program.train(folder / "one")
    first = launching.Job(folder, "train", 1)
    codes = first.codes()
    second = launching.Job(folder, "train", -1)
    found = second.found()
    return folder, rows, read, (codes, first.errors), (found, second.errors)


def test_a_killed_process_ends_the_other_which_names_it(both):
    codes, errors = both[3]
    assert codes[1] == -9
    assert codes[0] != 0
    by_us = "lost its peers: process 1 of 2 (" in errors[0]
    by_jax = re.search(r"unhealthy \(stopped sending heartbeats\):\n(1\n|.*task:1\b)", errors[0])
    assert by_us or (by_jax and "task 1 is" in errors[0]), errors[0]


def test_two_processes_learn_what_one_learns_through_a_death(both):
    folder, rows, _, _, (found, _) = both
    one = numbers(rows)
    for many in found:
        two = numbers(many["rows"])
        assert two.keys() >= one.keys()
        for key, value in one.items():
            np.testing.assert_allclose(two[key], value, rtol=1e-6, err_msg=str(key))
    steps = [row["step"] for row in found[0]["rows"] if "split" not in row]
    assert steps == list(range(1, 9))
    logged = nk.Run(folder / "many", {"learning_rate": 1e-2}).rows()
    assert [row["step"] for row in logged if "split" not in row] == steps
    ends = [nk.Checkpoints(folder / name / "checkpoints") for name in ("one", "many")]
    assert [end.latest() for end in ends] == [8, 8]
    a, b = (end.restore(hosts_program.target(8)).state for end in ends)
    for (path, x), (_, y) in zip(nk.trees.paths(a.average), nk.trees.paths(b.average)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=path)


def test_each_process_reads_its_rows_and_no_others(both):
    _, _, whole, _, (found, _) = both
    batches = hosts_program.parts()[2]
    zero, one = (many["read"] for many in found)
    batches = list(itertools.islice(hosts_program.parts()[2].numbers(4), 4))  # went on at step 4
    assert [len(rows) for rows in batches] == [8, 4, 8, 8]
    assert zero[:4] == [rows[:4].tolist() for rows in batches]
    assert one[:3] == [rows[4:].tolist() for rows in batches if len(rows) > 4]
    assert whole[4] == batches[0].tolist()


def test_a_checkpoint_of_one_process_is_that_of_two(both):
    folder, _, _, _, (found, _) = both
    digest = nk.Checkpoints(folder / "one" / "checkpoints").info()["digest"]
    assert [many["again"] for many in found] == [digest, digest]
    assert nk.checkpoint.verify(folder / "again") == []
    for devices in (1, 2, 8):
        like = hosts_program.target(devices)
        state = nk.Checkpoints(folder / "again").restore(like).state
        assert nk.digest(state) == digest
        for x, y in zip(*map(nk.core.trees.paths, (state, like))):
            assert nk.core.trees.plain(x[1]).sharding == nk.core.trees.plain(y[1]).sharding, x[0]


def test_only_process_zero_writes_and_speaks(both):
    folder, _, _, _, (found, errors) = both
    assert "is ready; task 0 is" in errors[0] and "task 1 is" in errors[0]
    assert len(nk.Run(folder / "many", {"learning_rate": 1e-2})._sessions) == 2
    left = [p.name for p in (folder / "many" / "checkpoints").iterdir() if p.name[0] == "."]
    assert [name for name in left if name != ".run"] == []
    assert found[0]["predicted"] == found[1]["predicted"]


def test_a_folder_of_another_configuration_is_refused_by_both(tmp_path):
    job = launching.Job(tmp_path, "config")
    assert job.codes() == [1, 1]
    for text in job.errors.values():
        assert "config.learning_rate is 0.02, there 0.01" in text
    assert not (tmp_path / "many").exists()


@pytest.mark.nightly
def test_the_death_of_the_coordinator_ends_the_other(tmp_path):
    job = launching.Job(tmp_path, "train", 0)
    codes = job.codes()
    assert codes[0] == -9
    assert codes[1] != 0
    assert "process 0 of 2" in job.errors[1] or "leader task" in job.errors[1]
    print(codes, job.errors[1][-1500:])
