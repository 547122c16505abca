"""Killed and started again by the same command: bit by bit the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.cli.main import main

ROOT = Path(nk.__file__).parents[1]

SCRIPT = """
import sys, time
import flax.linen as nn, jax, optax
import nnkit as nk
from nnkit.cli.train import cache_programs


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        h = nn.Dense(16)(x.reshape(x.shape[0], -1))
        h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(h))


folder, pause = sys.argv[1], float(sys.argv[2])
cache_programs()
train, test = nk.data.embedded("digits", batch_size=100)
task = nk.supervised(Normed(), nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)
adam = optax.adamw(optax.cosine_decay_schedule(1e-2, 400))
step = nk.ema(nk.step(nk.gradient(task), adam), 0.99)
state = nk.init(step, jax.random.key(0), next(iter(train)))
every = {5: lambda params, carry: time.sleep(pause), 100: nk.evaluate(task, test)}
with nk.Run(folder, {"steps": 400}, save_every=50) as run:
    state, rows = nk.fit(step, state, train, steps=400, every=every, run=run, progress=False)
print(nk.digest(state))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "training.py"
    path.write_text(SCRIPT)
    return path


def child(script, folder, pause):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(pause)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def last_step(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def killed_beyond(process, folder, step):
    """SIGKILL once the log is past `step`; the step it had come to."""
    end = time.monotonic() + 120
    while last_step(folder) <= step and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return last_step(folder)


def values(rows):
    """Rows without the wall time, arrays as lists."""
    return [{k: np.asarray(v).tolist() for k, v in row.items() if k != "time"} for row in rows]


def logged(folder):
    text = (folder / "metrics.jsonl").read_text()
    return values(json.loads(line) for line in text.splitlines())


def test_killed_twice_and_started_again(script, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    digest = finished(child(script, whole, 0.0))

    stops = [killed_beyond(child(script, broken, 0.02), broken, beyond) for beyond in (60, 210)]
    assert 60 < stops[0] < 400
    assert 210 < stops[1] < 400
    assert (broken / "STATUS").read_text() == "running\n"
    assert finished(child(script, broken, 0.0)) == digest

    assert logged(broken) == logged(whole)
    assert len(logged(whole)) > 80
    assert (broken / "STATUS").read_text() == "done\n"
    assert len(json.loads((broken / "env.json").read_text())) == 3
    for folder in (whole, broken):
        assert nk.Checkpoints(folder / "checkpoints").steps() == [350, 400]
        assert nk.checkpoint.verify(folder / "checkpoints") == []


@pytest.fixture(scope="module")
def digits():
    return nk.data.embedded("digits", batch_size=100)


def ingredients(kind):
    """A Step and what evaluates it, made anew."""
    model = nk.models.MLP((16, 10), dropout=0.3)
    task = nk.supervised(model, nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)

    def recipe(h):
        rate = optax.cosine_decay_schedule(1.0, 100)
        adam = optax.adamw(lambda count: h["learning_rate"] * rate(count))
        return nk.ema(nk.seeded(nk.step(nk.gradient(task), adam), h["seed"]), 0.9)

    if kind == "one run":
        return recipe({"learning_rate": 1e-2, "seed": 3}), task
    return nk.sweep(recipe, nk.product(learning_rate=[1e-2, 1e-3], seed=[0, 1])), nk.stacked(task)


@pytest.mark.parametrize("kind", ["one run", "sweep"])
def test_forty_then_sixty_steps_are_a_hundred(kind, digits, tmp_path):
    train, test = digits

    def go(steps, folder):
        step, task = ingredients(kind)
        state = nk.init(step, jax.random.key(0), next(iter(train)))
        with nk.Run(folder, {"kind": kind}, save_every=20) as run:
            return nk.fit(
                step,
                state,
                train,
                steps=steps,
                every={40: nk.evaluate(task, test)},
                log_every=10,
                run=run,
                progress=False,
            )

    whole, rows = go(100, tmp_path / "whole")
    go(40, tmp_path / "parts")
    state, again = go(100, tmp_path / "parts")
    assert nk.digest(state) == nk.digest(whole)
    assert values(again) == values(rows)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole") == values(rows)


def test_what_would_change_a_resumed_run_is_refused(digits, tmp_path):
    train, _ = digits
    for kind, error in (("one run", None), ("sweep", "belongs to another configuration")):
        step, _ = ingredients(kind)
        state = nk.init(step, jax.random.key(0), next(iter(train)))
        if error is None:
            with nk.Run(tmp_path / "a", {"kind": kind}) as run:
                nk.fit(step, state, train, steps=2, run=run, progress=False)
            continue
        with pytest.raises(ValueError, match=error):
            nk.Run(tmp_path / "a", {"kind": kind})
        with pytest.raises(ValueError, match=r"is not in it|was saved as") as caught:
            nk.Run(tmp_path / "a", {"kind": "one run"}).resume(state)
        assert "use the config that made it (config.json), or another folder" in str(caught.value)


def test_the_command_line_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NNKIT_RUNS", str(tmp_path))
    words = "train digits --steps 6 --seeds 2 --learning-rates 1e-2".split()
    assert main(words) == 0
    first = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    log = (folder / "metrics.jsonl").read_text()
    assert "step 6/6" in first

    assert main(words) == 0
    second = capsys.readouterr().out
    assert "step " not in second  # nothing was trained
    *table, last = second.splitlines()[-5:]
    assert table == first.splitlines()[-4:]
    assert last == "already finished; --fresh trains anew"
    assert (folder / "metrics.jsonl").read_text() == log
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "STATUS").read_text() == "done\n"
