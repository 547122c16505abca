"""Ctrl-C, SIGTERM and errors: no state is lost, and the same call goes on."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.main import main
from nnkit.core import failpoints, platforms
from nnkit.loop import environment
from nnkit.loop import interrupts as loop_interrupts
from reliability import endings, interrupts
from tests.compiles import counted


def sound(found, count):
    assert not found["failures"], found
    assert found["count"] == count


def test_ctrl_c_in_a_donated_loop():
    found = interrupts.ctrl_c(50, 0)
    sound(found, 50)
    assert {"once", "twice", "hook", "run"} <= set(found)


def test_errors_of_user_code():
    sound(interrupts.errors(20, 0), 20)


def test_sigterm_in_a_step_and_twice():
    sound(endings.terminated(2, 0, phases=("step", "twice")), 2)


@pytest.mark.nightly
def test_sigterm_in_every_phase():
    sound(endings.terminated(7, 1), 7)


@pytest.mark.nightly
def test_a_damaged_compilation_cache():
    sound(endings.cache(7, 0), 7)


@pytest.mark.nightly
def test_notebooks_end_in_the_bits_of_the_script():
    pytest.importorskip("ipykernel")
    found = endings.notebooks(10, 0)
    sound(found, 10)
    assert found["interrupted"] >= 5


@pytest.fixture
def listening():
    with interrupts.listening():
        yield


def told(number, at):
    """A hook that is called every step and sends a signal to this process at step `at`."""
    calls = iter(range(1, 10**6))

    def hook(params, carry):
        if next(calls) == at:
            signal.raise_signal(number)

    return {1: hook}


def fit(every, steps=12, **options):
    _, step, train, _ = interrupts.ingredients()
    options = {"progress": False, **options}
    return nk.fit(step, interrupts.begun(), train, steps=steps, every=every, **options)


def test_the_result_is_marked_and_the_handlers_are_back(listening, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    state, rows = fit(told(signal.SIGINT, 5), progress=True)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5]
    assert rows[-1]["interrupted"] is True
    assert nk.digest(state) == interrupts.reference(5)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert "interrupted at step 5 of 12" in capsys.readouterr().err
    assert not [t for t in threading.enumerate() if t.name == "nnkit-signals"]
    with pytest.raises(KeyboardInterrupt):  # as ever, outside of fit
        signal.raise_signal(signal.SIGINT)


def test_between_two_rows_the_row_has_the_means_so_far(listening):
    _, step, train, _ = interrupts.ingredients()

    class Batches:
        fingerprint = train.fingerprint

        def stream(self, start=0):
            for i, batch in enumerate(train.stream(start)):
                if i == 30:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.05)
                yield batch

    _, rows = nk.fit(step, interrupts.begun(), Batches(), steps=900, log_every=300, progress=False)
    assert rows[-1]["interrupted"]
    assert 16 < rows[-1]["step"] < 32
    assert 0 < rows[-1]["loss"] < 10


def test_the_same_call_goes_on_without_a_run(listening, capsys):
    _, step, train, _ = interrupts.ingredients()
    every = {1: lambda params, carry: None}
    whole, all_rows = fit(every)
    state, _ = fit(told(signal.SIGINT, 5))
    done = {"steps": 12, "every": every, "progress": True}
    again, rows = nk.fit(step, state, train, **done)
    assert "resuming the interrupted fit at step 5 of 12" in capsys.readouterr().out
    assert nk.digest(again) == nk.digest(whole)
    assert interrupts.values(rows) == interrupts.values(all_rows)

    state, _ = fit(told(signal.SIGINT, 5))
    other, rows = nk.fit(step, state, train, **{**done, "steps": 7})  # another call: seven more
    assert int(other.inner.count) == 12
    assert rows[0]["step"] == 1


def test_a_generator_that_was_read_is_refused(listening):
    _, step, train, _ = interrupts.ingredients()
    batches = iter(train.stream())
    state, _ = nk.fit(
        step, interrupts.begun(), batches, steps=12, every=told(signal.SIGINT, 5), progress=False
    )
    with pytest.raises(ValueError, match=r"interrupted at step 5 of 12.*pass a list or a Batches"):
        nk.fit(step, state, batches, steps=12, progress=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_last_evaluation(listening, number, tmp_path):
    """The hook of step 12 did not end: it is called again, and the log has it once."""
    seen = []

    def hook(params, carry):
        seen.append(nk.digest(params))
        if len(seen) == 2:
            signal.raise_signal(number)
        return {"split": "test", "value": 1.0}

    def go():
        with nk.Run(tmp_path / "a", {}) as run:
            return run, *fit({6: hook}, run=run)

    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as caught:
            go()
        assert caught.value.code == 143
    else:
        run, state, rows = go()
        assert rows[-1] == {"step": 12, "time": rows[-1]["time"], "interrupted": True}
    run = nk.Run(tmp_path / "a", {})
    assert run.status == "interrupted"
    run, state, rows = go()
    assert run.status == "done"
    assert len(seen) == 3
    assert seen[1] == seen[2]
    assert [row["step"] for row in rows if "split" in row] == [6, 12]
    assert interrupts.values(run.rows()) == interrupts.values(rows)
    assert nk.digest(state) == interrupts.reference(12)
    with counted() as programs:
        assert nk.digest(go()[1]) == nk.digest(state)
    assert programs.count == 0


def test_interrupted_before_it_was_asked_whether_to_stop(listening, tmp_path):
    """The evaluation that ends the training was interrupted: no step is made after it."""
    again = []

    def hook(params, carry):
        if not again:
            again.append(True)
            signal.raise_signal(signal.SIGINT)
        return {"split": "test", "value": 1.0}

    def go():
        with nk.Run(tmp_path / "a", {}) as run:
            return run, *fit({4: hook}, run=run, stop=lambda rows: rows[-1]["step"] >= 4)

    assert go()[2][-1]["interrupted"]
    run, state, rows = go()
    assert rows[-1]["step"] == 4
    assert run.status == "done"
    assert nk.digest(state) == interrupts.reference(4)


def test_sigterm_ends_with_143_and_a_second_one_at_once(listening, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        fit(told(signal.SIGTERM, 3))
    assert caught.value.code == 143
    left = []
    monkeypatch.setattr(loop_interrupts.os, "_exit", left.append)
    with loop_interrupts.Interrupts() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert left == []
        signal.raise_signal(signal.SIGTERM)
        assert left[0] == 143
    assert asked.signals == [signal.SIGTERM] * 2


def test_a_loop_that_cannot_look_is_ended_after_the_grace(monkeypatch):
    left = []
    monkeypatch.setattr(loop_interrupts.os, "_exit", left.append)
    monkeypatch.setattr(loop_interrupts, "GRACE", 0.05)
    with loop_interrupts.Interrupts():
        signal.raise_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while not left and time.monotonic() < end:
            time.sleep(0.01)
    assert left == [143]
    with loop_interrupts.Interrupts():  # one that looks in time is not
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert left == [143]


def test_twice_raises_with_the_state(listening, monkeypatch):
    calls = iter(range(1, 100))

    def hook(params, carry):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    class Twice(loop_interrupts.Interrupts):
        def _heard(self, number, frame):
            self.signals.append(number)
            super()._heard(number, frame)

    monkeypatch.setattr("nnkit.loop.fitting.Interrupts", Twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit({1: hook})
    assert nk.digest(caught.value.state) == interrupts.reference(4)


def test_handlers_of_others_and_other_threads_are_left_alone(listening):
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    _, rows = fit(told(signal.SIGINT, 2))
    assert heard == [signal.SIGINT]
    assert "interrupted" not in rows[-1]
    signal.signal(signal.SIGINT, signal.default_int_handler)

    found = []
    thread = threading.Thread(target=lambda: found.append(fit(None)))
    thread.start()
    thread.join()
    assert nk.digest(found[0][0]) == interrupts.reference(12)


def test_a_fit_in_a_hook_of_a_fit(listening):
    """Ctrl-C in the inner one ends both, and the outer one keeps its state."""
    inner = []

    def hook(params, carry):
        if not inner:
            inner.append(fit(None)[0])
        else:
            fit(told(signal.SIGINT, 3))

    state, rows = fit({2: hook})
    assert rows[-1]["interrupted"]
    assert nk.digest(state) == interrupts.reference(4)


def test_run_says_that_it_was_interrupted(listening, tmp_path):
    task = nk.supervised(nk.models.Linear(10), nk.losses.cross_entropy)
    train = interrupts.ingredients()[2]
    real, reads = train.stream, []

    class Batches(interrupts.Signalling):
        spec = train.spec

        def __iter__(self):
            return iter(train)

        def __len__(self):
            return len(train)

        def stream(self, start=0):
            for i, batch in enumerate(real(start)):
                reads.append(i)
                if len(reads) == 9:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    options = {"steps": 40, "folder": tmp_path / "a", "progress": False}
    result = nk.run(task, Batches(train, ()), **options)
    assert result.interrupted
    again = nk.run(task, Batches(train, ()), **options)
    assert not again.interrupted
    options["folder"] = None
    assert nk.digest(again.params) == nk.digest(nk.run(task, train, **options).params)


IDEA = """
import dataclasses, signal
import nnkit as nk
from reliability import endings, interrupts

@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 2


def main(config, folder=None):
    _, step, train, _ = interrupts.ingredients()
    hook = lambda params, carry: signal.raise_signal(config.number)
    with nk.Run(folder, config) as run:
        nk.fit(step, interrupts.begun(), train, steps=9, every={4: hook}, run=run, progress=False)
        print("after fit")
"""


def test_the_command_line_ends_with_130_and_143(listening, tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(IDEA)
    assert main(["train", str(file), "--folder", str(tmp_path / "a")]) == 130
    out = capsys.readouterr().out
    assert "after fit" not in out
    assert out.endswith("interrupted; the same command resumes from the last checkpoint\n")
    with pytest.raises(SystemExit) as caught:
        main(["train", str(file), "--folder", str(tmp_path / "b"), "--number", "15"])
    assert caught.value.code == 143
    for name in "ab":
        assert (tmp_path / name / "STATUS").read_text() == "interrupted\n"
        assert nk.Checkpoints(tmp_path / name / "checkpoints").latest() == 4


def test_a_failed_save_is_raised_at_one_of_the_next_steps(tmp_path, monkeypatch):
    plan = failpoints.Plan(failpoints.parsed("save.arrays=EIO@1"))
    monkeypatch.setattr(failpoints, "_plan", plan)
    calls = iter(range(1, 200))
    slow = {1: lambda params, carry: time.sleep(0.02 * (next(calls) > 60))}
    with (
        pytest.raises(RuntimeError, match=r"saving step 60 .* failed") as caught,
        nk.Run(tmp_path / "a", {}, save_every=60) as run,
    ):
        fit(slow, steps=119, run=run)
    assert 60 < caught.value.step < 119
    assert nk.digest(caught.value.state) == interrupts.reference(caught.value.step)
    assert run.checkpoints.latest() == caught.value.step  # the disk is well again


def test_a_spoilt_state_is_not_left_on_the_error(tmp_path):
    _, step, train, _ = interrupts.ingredients()
    batches = [dict(b) for _, b in zip(range(6), train.stream())]
    batches[4]["x"] = np.full_like(batches[4]["x"], np.nan)

    def hook(params, carry):
        if next(calls) == 5:
            raise KeyError("mine")

    calls = iter(range(1, 9))
    with (
        nk.Run(tmp_path / "a", {}, save_every=2) as run,
        pytest.raises(FloatingPointError) as caught,
    ):
        nk.fit(step, interrupts.begun(), batches, steps=6, every={1: hook}, run=run, progress=False)
    assert not hasattr(caught.value, "state")
    assert "not sound: it was not kept" in "".join(caught.value.__notes__)
    assert run.checkpoints.latest() == 4


# --------------------------------------------------------------------------- what is asked for


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that has what is written into it."""
    there = SimpleNamespace(dev=tmp_path, plugins=set(), devices=0, error=None)

    def devices(kind=None):
        if there.error:
            raise RuntimeError(there.error)
        return ["device"] * there.devices

    monkeypatch.setattr(platforms, "DEV", tmp_path)
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda n: n in there.plugins or None)
    monkeypatch.setattr(jax, "devices", devices)
    return there


def refused(kind, parts, kinds=RuntimeError, **options):
    began = time.monotonic()
    with counted() as programs, pytest.raises(kinds) as caught:
        platforms.require(kind, **options)
    assert time.monotonic() - began < 2
    assert programs.count == 0
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_an_accelerator_that_is_not_here(machine, monkeypatch):
    refused("tpu", ["platform 'tpu' was asked for", "has no TPU", "accel*", "JAX_PLATFORMS=cpu"])
    refused("gpu", ["platform 'gpu' was asked for", "has no GPU", "nvidia*", "JAX_PLATFORMS=cpu"])
    (machine.dev / "accel0").touch()
    (machine.dev / "nvidia0").touch()
    refused("tpu", ["JAX has no plugin", "pip install 'jax[tpu]'"])
    refused("gpu", ["JAX has no plugin", "pip install 'jax[cuda13]'"])
    machine.plugins |= {"libtpu", "jax_cuda12_plugin"}
    machine.error = "UNAVAILABLE: The TPU is already in use by process 7"
    refused("tpu", ["cannot start it", "in use by process 7", "end the other process"])
    machine.error, machine.devices = None, 4
    refused("gpu", ["programs run on cpu, expected gpu", "set it to gpu"])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    refused("tpu", ["8 tpu devices were asked for, but there are 4; ask for 4"], devices=8)
    refused("npu", ["'npu', expected one of cpu, gpu, tpu"], ValueError)
    refused("tpu", ["devices is 0, expected an integer >= 1"], ValueError, devices=0)
    platforms.require("tpu", 4)


def test_what_the_environment_asks_for_is_required(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        platforms, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms="tpu,cpu"))
    )
    refused(None, ["JAX_PLATFORMS=tpu was asked for, but this machine has no TPU"])
    _, step, train, _ = interrupts.ingredients()
    key, batch = jax.random.key(0), next(iter(train))
    with counted() as programs, pytest.raises(RuntimeError, match="JAX_PLATFORMS=tpu"):
        nk.init(step, key, batch)
    assert programs.count == 0
    file = tmp_path / "idea.py"
    file.write_text(IDEA)
    began = time.monotonic()
    assert main(["train", str(file), "--platform", "gpu", "--folder", str(tmp_path / "a")]) == 2
    assert time.monotonic() - began < 2
    assert "platform 'gpu' was asked for" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()


def test_a_folder_that_may_go_away_is_told_once(tmp_path, monkeypatch):
    assert environment.perishable(tmp_path) == ""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none / ext4 rw 0 0\ngcs {tmp_path}/my\\040bucket fuse.gcsfuse rw 0 0\n")
    monkeypatch.setattr(environment, "MOUNTS", mounts)
    folder = tmp_path / "my bucket" / "run"
    with (
        pytest.warns(UserWarning, match=r"user space \(fuse.gcsfuse\).*copy them elsewhere") as w,
        nk.Run(folder, {}) as run,
    ):
        fit(None, run=run, steps=3)
    assert len(w) == 1
    monkeypatch.setattr(environment, "COLAB", tmp_path / "content")
    monkeypatch.setattr(environment, "DRIVE", tmp_path / "content" / "drive")
    (tmp_path / "content").mkdir()
    assert "mount Drive" in environment.perishable(tmp_path / "content" / "run")
    assert "unmounted" in environment.perishable(tmp_path / "content" / "drive" / "run")
    assert environment.perishable(tmp_path / "run") == ""


def test_a_disk_that_is_unmounted_is_an_error_within_one_save(tmp_path):
    calls = iter(range(1, 100))

    def hook(params, carry):
        if next(calls) == 5:
            os.rename(tmp_path / "run", tmp_path / "gone")

    with (
        pytest.raises((OSError, RuntimeError)) as caught,
        nk.Run(tmp_path / "run", {}, save_every=4) as run,
    ):
        fit({1: hook}, run=run, steps=60)
    assert caught.value.step <= 12
    assert nk.digest(caught.value.state) == interrupts.reference(caught.value.step)


def test_a_rename_that_was_torn_is_found_by_digests(tmp_path, monkeypatch):
    """On disks in user space a folder is renamed file by file: here the manifest comes first."""
    state = interrupts.begun()
    saver = nk.Checkpoints(tmp_path)
    saver.save(1, state)
    saver.wait()

    def torn(old, new, whole=os.rename):
        if Path(new).name != "00000002":
            return whole(old, new)
        os.mkdir(new)
        shutil.copy(old / "manifest.json", new)
        raise OSError(5, "the connection to the disk is lost")

    with monkeypatch.context() as patch:
        patch.setattr("nnkit.checkpoint.disk.os.rename", torn)
        saver.save(2, state)
        with pytest.raises(RuntimeError, match="the connection to the disk is lost"):
            saver.wait()
    with pytest.warns(UserWarning, match="restored step 1, skipping damaged ones"):
        assert nk.Checkpoints(tmp_path).restore(state).step == 1
    assert nk.checkpoint.verify(tmp_path)
