"""What is shown: lines into a pipe, one display in a notebook, one bar in a terminal."""

import sys
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import nnkit as nk
from nnkit.loop.progress import Progress, kind

TASK = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
STEP = nk.step(nk.gradient(TASK), optax.sgd(0.1))
BATCH = {"x": jnp.ones(4)}


def go(steps, **options):
    state = nk.init(STEP, jax.random.key(0), BATCH)
    return nk.fit(STEP, state, [BATCH], steps=steps, **options)


@pytest.mark.parametrize("log_every", [None, 7])
def test_lines_at_doubling_steps_and_at_the_end(capsys, log_every):
    go(20, log_every=log_every)
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()] == [
        f"{i}/20" for i in (1, 2, 4, 8, 16, 20)
    ]
    assert out.startswith("step 1/20  loss 1\n")
    assert "\r" not in out + err
    assert err == ""


def test_lines_of_a_long_run_go_on_doubling(capsys):
    go(300)
    lines = capsys.readouterr().out.splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_evaluations_are_lines_too(capsys):
    go(6, every={3: nk.evaluate(TASK, [BATCH], split="validation")})
    assert capsys.readouterr().out.count("validation  loss") == 2


def test_silence(capsys):
    go(10, progress=False)
    assert capsys.readouterr() == ("", "")


def test_once_a_minute(capsys, monkeypatch):
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(0, 10_000) as bar:
        for i in range(3000, 3200):
            now[0] += 1.0
            bar.update(i, {"loss": 0.5} if i % 50 == 0 else None)
    assert len(capsys.readouterr().out.splitlines()) == 3  # after 60, 120 and 180 seconds


class Handle:
    """What `display(..., display_id=True)` gives back."""

    def __init__(self):
        self.shown = []

    def update(self, data, raw):
        assert raw
        self.shown.append(data["text/plain"])


def test_notebook_has_one_display_that_is_updated(capsys, monkeypatch):
    handles = []

    def display(data, raw, display_id):
        assert raw
        assert display_id
        handles.append(Handle())
        return handles[-1]

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    assert kind() == "notebook"
    go(20)
    assert capsys.readouterr().out == ""
    assert len(handles) == 1
    assert len(handles[0].shown) == 20  # a row each: log_every is 1 for 20 steps
    assert handles[0].shown[-1].startswith("step 20/20")
    assert "loss" in handles[0].shown[-1]


def test_terminal_has_one_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert kind() == "terminal"
    go(5)
    assert "5/5" in capsys.readouterr().out
