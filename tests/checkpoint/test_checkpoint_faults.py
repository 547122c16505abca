"""Damage is found before use, failures are told, and nothing foreign is touched."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
import warnings
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.checkpoint import Checkpoints, CorruptCheckpoint, background, disk, manifest, verify
from nnkit.core import trees


def state(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(40, 40)).astype(np.float32), "n": np.int32(seed)}


def saved(folder, *steps, **options):
    with Checkpoints(folder, **({"keep_last": 9} | options)) as saver:
        for step in steps:
            saver.save(step, state(step), position=step)
    return saver


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    saved(tmp_path, 1)
    rng = random.Random(0)
    found = 0
    paths = files(tmp_path / "00000001")
    for path in paths:
        good = path.read_bytes()
        for _ in range(12 if good else 0):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            assert len(verify(tmp_path)) == 1
            with pytest.raises(CorruptCheckpoint, match=path.name):
                Checkpoints(tmp_path).restore(state(), 1)
            found += 1
        path.write_bytes(good)
    assert len(paths) >= 6
    assert found >= 60
    assert trees.digest(Checkpoints(tmp_path).restore(state(), 1).state) == trees.digest(state(1))


@pytest.mark.parametrize("damage", ["truncate", "delete", "zero", "link", "extra"])
def test_other_damage_names_the_file(tmp_path, damage):
    saved(tmp_path, 1)
    folder = tmp_path / "00000001"
    path = max(files(folder), key=lambda p: p.stat().st_size * ("arrays" in str(p)))
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "delete":
        path.unlink()
    elif damage == "zero":
        path.write_bytes(bytes(len(data)))
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = folder / "arrays" / "more"
        path.write_bytes(b"?")
    with pytest.raises(CorruptCheckpoint, match=rf"00000001: .*{path.name}.*restore another step"):
        Checkpoints(tmp_path).restore(state(), 1)
    assert path.name in verify(folder)[0]


def test_a_leaf_that_is_not_what_was_saved_is_named(tmp_path):
    saved(tmp_path, 1, 2)
    ours, other = tmp_path / "00000001", tmp_path / "00000002"
    shutil.rmtree(ours / "arrays")
    shutil.copytree(other / "arrays", ours / "arrays")  # sound files of another state
    body = manifest.read(ours)
    (ours / "manifest.json").unlink()
    manifest.write(ours, body | {"files": manifest.file_table(ours)})
    assert verify(tmp_path) == []
    with pytest.raises(CorruptCheckpoint, match="leaf n is not what was saved"):
        Checkpoints(tmp_path).restore(state(), 1)


@pytest.mark.parametrize("name", ["manifest.json", "arrays"])
@pytest.mark.parametrize("gone", [False, True])
def test_the_newest_valid_one_is_taken_with_a_warning(tmp_path, name, gone):
    saver = saved(tmp_path, 1, 2, 3)
    path = tmp_path / "00000003" / name
    path = path if path.is_file() else max(files(path), key=lambda p: p.stat().st_size)
    path.unlink() if gone else path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(
        UserWarning, match=r"restored step 2, skipping damaged ones: .*00000003"
    ) as w:
        found = saver.restore(state())
    assert w[0].filename == __file__
    assert (found.step, found.position) == (2, 2)
    assert trees.digest(found.state) == trees.digest(state(2))
    with pytest.raises(CorruptCheckpoint):
        saver.restore(state(), 3)
    again = Checkpoints(tmp_path, keep_last=2)  # the run goes on, and comes by step 3 again
    with pytest.warns(UserWarning, match="skipping"):
        again.restore(state())
    with pytest.warns(UserWarning, match=r"moved to .*damaged-00000003-1"):
        again.save(3, state(3), position=3)
    again.close()
    assert verify(tmp_path / "00000003") == []
    assert again.restore(state()).step == 3
    assert (tmp_path / "damaged-00000003-1").is_dir()


def test_damaged_ones_do_not_push_out_good_ones(tmp_path):
    saved(tmp_path, 1, 2, 9)
    path = max(files(tmp_path / "00000009" / "arrays"), key=lambda p: p.stat().st_size)
    path.write_bytes(b"")
    with Checkpoints(tmp_path, keep_last=2) as saver:
        with pytest.warns(UserWarning, match="skipping"):
            saver.restore(state())
        saver.save(3, state(3))
        saver.wait()
        assert saver.steps() == [2, 3, 9]


def test_all_damaged_and_none_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="save one first, or give another folder"):
        Checkpoints(tmp_path / "none").restore(state())
    with pytest.raises(FileNotFoundError, match="give a folder such as"):
        verify(tmp_path)
    saver = saved(tmp_path, 4)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .*there are \[4\]"):
        saver.restore(state(), 5)
    (tmp_path / "00000004" / "manifest.json").write_text("{}\n")
    assert saver.steps() == []
    with pytest.raises(CorruptCheckpoint, match=r"no valid checkpoint: .*does not match its own"):
        saver.restore(state())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": NaN}', "is no JSON"),
        (b'{"a": 1, "a": 2}', "is no JSON (the name 'a' comes twice)"),
        (b"[" * 33 + b"]" * 33, "is no JSON (it has more than 32 levels"),
        (b"\x80\x04.", "is no JSON"),
        (b"", "is no JSON"),
    ],
)
def test_hostile_manifests_are_refused(tmp_path, data, message):
    saved(tmp_path, 1)
    (tmp_path / "00000001" / "manifest.json").write_bytes(data)
    assert message in verify(tmp_path)[0]
    assert Checkpoints(tmp_path).steps() == []


def test_manifests_with_their_own_digest_are_checked_too(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    folder = tmp_path / "00000001"
    body = manifest.read(folder)
    for change, message in [
        ({"format": 2}, "has format 2, this nnkit reads 1: upgrade it"),
        ({"leaves": [3]}, "lacks fields, or has some of another type"),
        ({"metrics": {"loss": "no"}}, "lacks fields"),
        ({"files": {"../../etc": {"bytes": 1, "sha256": "0"}}}, "../../etc is missing"),
    ]:
        manifest.write(folder, body | change)
        assert message in verify(folder)[0]
    manifest.write(folder, body | {"step": 2})
    with pytest.raises(CorruptCheckpoint, match="is that of step 2; give it that name"):
        Checkpoints(tmp_path).restore(state(), 1)
    monkeypatch.setattr(manifest, "LIMIT", 100)
    assert "at most 100 bytes" in verify(folder)[0]
    with pytest.raises(ValueError, match="at most 100 fit; shorten `meta`"):
        manifest.write(folder, body)


def test_the_last_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_best=("accuracy", "max")) as saver:
        for step, score in enumerate([0.1, 0.9, float("nan"), 0.9, 0.2, None, 0.3]):
            metrics = None if score is None else {"accuracy": score}
            saver.save(step, state(step), metrics=metrics)
        saver.wait()
        assert saver.steps() == [3, 5, 6]
        assert (saver.best(), saver.latest()) == (3, 6)
        with pytest.raises(
            ValueError, match=r"keep_best wants the metric 'accuracy', got \['acc'\]"
        ):
            saver.save(7, state(), metrics={"acc": 1.0})
    with Checkpoints(tmp_path / "low", keep_last=1, keep_best=("loss", "min")) as saver:
        for step, loss in enumerate([3.0, float("-inf"), float("inf")]):
            saver.save(step, state(step), metrics={"loss": loss})
        saver.wait()
        assert (saver.steps(), saver.best()) == ([1, 2], 1)
        assert saver.info(1)["metrics"] == {"loss": float("-inf")}
    assert Checkpoints(tmp_path).best() is None


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0, expected an int of at least 1"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"keep_best is 'loss', expected such as \(\"accuracy\""):
        Checkpoints(tmp_path, keep_best="loss")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder; give another name"):
        Checkpoints(tmp_path / "file")


def test_foreign_things_are_never_chosen_and_never_deleted(tmp_path):
    saved(tmp_path / "other", 50)
    run = tmp_path / "run"
    saved(run, 1)
    (run / "7").mkdir()
    (run / "00000007").mkdir()
    (run / ".DS_Store").write_text("x")
    (run / "00000001" / ".DS_Store").write_text("x")
    (run / "9.orbax-checkpoint-tmp").mkdir()
    (run / "00000060").symlink_to(run / "00000001")
    (run / ".tmp-8-1").mkdir()  # of a process that lives: 1 always does
    (run / ".trash-4").symlink_to(tmp_path / "other")
    shutil.copytree(run / "00000001", run / "00000070")  # a copy under another name
    shutil.copytree(tmp_path / "other" / "00000050", run / "00000050")  # of another run
    before = sorted(p.name for p in run.iterdir())
    saver = Checkpoints(run, keep_last=1)
    assert saver.steps() == [1]
    for step in (2, 3):
        saver.save(step, state(step))
        saver.wait()
        assert saver.steps() == [step]
    after = sorted(p.name for p in run.iterdir())
    assert after == sorted({*before, "00000003"} - {"00000001"})
    assert verify(tmp_path / "other") == []
    for step in (7, 60):
        with pytest.raises(FileExistsError, match="in the way and is no checkpoint; move it"):
            saver.save(step, state())
    with pytest.raises(FileExistsError, match="with another run; delete it, save under another"):
        saver.save(50, state())
    with pytest.warns(UserWarning, match="00000070"):
        assert saver.restore(state()).step == 3
    saver.close()


def test_stale_temporaries_of_ours_go_on_opening(tmp_path):
    saved(tmp_path, 1)
    for name in (".tmp-2-999999999", ".trash-1", ".trash-1-999999999", f".tmp-2-{os.getpid()}"):
        (tmp_path / name / "arrays").mkdir(parents=True)
    Checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run", "00000001"]


def test_a_folder_without_its_run_file_is_adopted(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / ".run").write_text("garbage")
    saver = Checkpoints(tmp_path)
    assert saver.steps() == [1, 2]
    (tmp_path / ".run").unlink()
    saver.save(3, state(3))
    saver.wait()
    assert saver.steps() == [2, 3]


def test_a_step_is_not_overwritten(tmp_path):
    saver = saved(tmp_path, 1)
    saver = Checkpoints(tmp_path)
    when = (tmp_path / "00000001" / "manifest.json").stat().st_mtime_ns
    saver.save(1, state(1), position=1)  # the same bits
    saver.close()
    assert (tmp_path / "00000001" / "manifest.json").stat().st_mtime_ns == when
    saver = Checkpoints(tmp_path)
    with pytest.raises(FileExistsError, match="exists, with other contents; delete it"):
        saver.save(1, state(2), position=1)
    with pytest.raises(FileExistsError, match="with the same state at data position 1; delete it"):
        saver.save(1, state(1), position=2)


@pytest.mark.parametrize("how", ["save", "wait", "close", "with"])
def test_a_failed_save_is_told_once_and_leaves_nothing(tmp_path, monkeypatch, how):
    saver = saved(tmp_path, 1)
    saver = Checkpoints(tmp_path)

    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "rename", fail)
        saver.save(2, state(2))
        saver._background.join()
    message = rf"saving step 2 in {tmp_path} failed: .*the disk is gone; older .* save again"
    ways = {"save": lambda: saver.save(3, state(3)), "wait": saver.wait, "close": saver.close}
    ways["with"] = lambda: saver.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match=message) as error:
        ways[how]()
    assert isinstance(error.value.__cause__, OSError)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run", "00000001"]
    assert (saver.latest(), saver.restore(state()).step) == (1, 1)
    saver.wait()  # told once
    if how in ("save", "wait"):
        saver.save(2, state(2))
        saver.wait()
        assert saver.steps() == [1, 2]


def test_a_failed_save_does_not_hide_the_error_that_ended_the_block(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    def block():
        with Checkpoints(tmp_path) as saver, monkeypatch.context() as patch:
            patch.setattr(disk.os, "rename", fail)
            saver.save(2, state(2))
            saver._background.join()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        block()
    assert "the disk is gone" in error.value.__notes__[0]


def test_a_full_disk_is_told_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    saver = Checkpoints(tmp_path)
    saver.save(1, state())
    message = rf"not enough space .*{tmp_path}: needed 7,684 bytes, free 1,000; delete something"
    with pytest.raises(RuntimeError, match=message) as error:
        saver.close()
    assert error.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(background.BLOCKS, reason="this Python starts no threads while it ends")
def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    gate = threading.Event()
    sync = manifest.file_table

    def slow(folder):
        assert gate.wait(20)
        return sync(folder)

    monkeypatch.setattr(manifest, "file_table", slow)
    saver = Checkpoints(tmp_path)
    saver.save(1, {"w": jnp.ones(3)})
    assert saver.steps() == []  # not committed, so not listed
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob(".tmp-1-*/arrays")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.glob(".tmp-1-*/arrays"))
    Checkpoints(tmp_path)  # a second look removes nothing that is in use
    assert list(tmp_path.glob(".tmp-1-*/arrays"))
    gate.set()
    saver.close()
    assert saver.steps() == [1]


def test_saving_waits_where_python_starts_no_threads_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "BLOCKS", True)
    saver = Checkpoints(tmp_path)
    saver.save(1, state())
    assert saver.steps() == [1]
    saver.close()


def test_the_copy_is_taken_before_save_returns(tmp_path, monkeypatch):
    gate = threading.Event()
    commit = disk.commit

    def slow(*arguments):
        gate.wait(0.0 if background.BLOCKS else 20)
        commit(*arguments)

    monkeypatch.setattr(disk, "commit", slow)
    mine = state(1)
    device = jnp.arange(5.0)
    saver = Checkpoints(tmp_path)
    saver.save(1, {"mine": mine, "device": device})
    mine["w"][:] = 0  # as a simulator does with its arrays
    device.delete()  # as donation does
    gate.set()
    saver.close()
    found = saver.restore({"mine": mine, "device": jnp.zeros(5)}).state
    assert trees.digest(found) == trees.digest({"mine": state(1), "device": jnp.arange(5.0)})


def test_a_cut_deletion_leaves_nothing_listed(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    with monkeypatch.context() as patch, Checkpoints(tmp_path, keep_last=1) as saver:
        patch.setattr(disk.shutil, "rmtree", lambda *_, **__: None)
        saver.save(2, state(2))
        saver.wait()
        assert saver.steps() == [2]
        assert (tmp_path / ".trash-1").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(tmp_path).restore(state()).step == 2
    assert not (tmp_path / ".trash-1").exists()
