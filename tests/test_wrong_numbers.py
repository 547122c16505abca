"""Numbers, words and folders that cannot be right, in Python and on the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.cli.main import main
from nnkit.cli.train import load
from tests.compiles import counted
from tests.mistakes import first, fit, rates, refused, run

NUMBERS = {
    "rate 0": (lambda: run(learning_rate=0.0), ValueError, ["learning_rate is 0.0", "> 0", "1e-3"]),
    "rate -1": (lambda: run(learning_rate=-1), ValueError, ["learning_rate is -1", "> 0", "1e-3"]),
    "rate NaN": (lambda: run(learning_rate=np.nan), ValueError, ["is nan", "finite", "1e-3"]),
    "rate text": (
        lambda: run(learning_rate="1e-3"),
        TypeError,
        ["learning_rate is the string '1e-3'", "expected a number", "learning_rate=1e-3"],
    ),
    "rate schedule": (
        lambda: run(learning_rate=optax.constant_schedule(0.1)),
        TypeError,
        ["learning_rate is <function", "expected a number"],
    ),
    "grid rate 0": (lambda: rates(0.1, 0.0), ValueError, ["learning_rate is 0.0", "> 0", "1e-3"]),
    "grid rate NaN": (lambda: rates(0.1, np.nan), ValueError, ["is nan", "> 0", "1e-3"]),
    "grid rate text": (lambda: rates("1e-3"), TypeError, ["learning_rate", "'1e-3'", "number"]),
    "config rate 0": (
        lambda: lambda: load("digits").Config(learning_rates=(0.1, 0.0)),
        ValueError,
        ["learning_rates is 0.0", "> 0"],
    ),
    "config rate NaN": (
        lambda: lambda: load("digits").Config(learning_rates=(np.nan,)),
        ValueError,
        ["learning_rates[0] is nan", "finite", "0.0003"],
    ),
    "config rate text": (
        lambda: lambda: load("digits").Config(learning_rates=("1e-3",)),
        TypeError,
        ["learning_rates", "'1e-3'", "number"],
    ),
    "seed -1": (lambda: run(seed=-1), ValueError, ["seed is -1", "0 to 4294967295"]),
    "run steps 0": (lambda: run(steps=0), ValueError, ["steps=0", "integer >= 1"]),
    "run steps text": (lambda: run(steps="10"), ValueError, ["steps='10'", "integer >= 1"]),
    "fit steps 0": (lambda: fit(steps=0), ValueError, ["steps=0", "integer >= 1"]),
    "fit steps 1.5": (lambda: fit(steps=1.5), ValueError, ["steps=1.5", "integer >= 1"]),
    "fit log_every 0": (
        lambda: fit(steps=3, log_every=0),
        ValueError,
        ["log_every=0", "integer >= 1", "None"],
    ),
    "every 0": (
        lambda: fit(steps=3, every={0: print}),
        ValueError,
        ["every={0: ...}", "steps >= 1", "hook"],
    ),
    "every without call": (
        lambda: fit(steps=3, every={1: 5}),
        TypeError,
        ["every={1: 5}", "hook(params, carry)", "nk.evaluate"],
    ),
    "fit of a generator without steps": (
        lambda: fit(iter([first()])),
        ValueError,
        ["steps=", "length", "not known"],
    ),
    "data end early": (
        lambda: fit(iter([]), steps=3),
        ValueError,
        ["ended after 0 of 3 steps", "re-iterable such as a list", "fewer steps"],
    ),
    "save_every 0": (
        lambda: lambda: nk.Run("unused", save_every=0),
        ValueError,
        ["save_every is 0", ">= 1 or None"],
    ),
    "patience mode": (
        lambda: lambda: nk.patience("accuracy", 2, mode="best"),
        ValueError,
        ["mode='best'", "'max' or 'min'"],
    ),
    "patience checks": (
        lambda: lambda: nk.patience("accuracy", 0, mode="max"),
        ValueError,
        ["checks=0", ">= 1"],
    ),
    "patience metric": (
        lambda: lambda: nk.patience("f1", 1, mode="max")([{"split": "test", "loss": 1.0}]),
        KeyError,
        ["'test' rows", "'loss'", "'f1'"],
    ),
    "config of arrays": (
        lambda: lambda: nk.loop.records.canonical({"a": {"b": np.ones(2)}}),
        TypeError,
        ["config.a.b", "ndarray", "numbers, strings and lists"],
    ),
    "interval of nothing": (
        lambda: lambda: nk.loop.interval([]),
        ValueError,
        ["0 values", "need >= 1"],
    ),
    "interval at 95": (
        lambda: lambda: nk.loop.interval([1.0, 2.0], 95),
        ValueError,
        ["confidence 95", "between 0 and 1", "0.95"],
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_mistake(name):
    refused(*NUMBERS[name])


COMMANDS = {
    "rate 0": ("train digits --learning-rates 0", ["learning_rates is 0.0", "> 0"]),
    "rate -1": ("train digits --learning-rates -1", ["learning_rates is -1.0", "> 0"]),
    "rate NaN": ("demo --learning-rates 0.1 nan", ["learning_rates[1] is nan", "finite number"]),
    "rate text": ("train digits --learning-rates fast", ["fast", "FLOAT", "learning-rates"]),
    "steps 0": ("train digits --steps 0", ["steps is 0", "> 0"]),
    "steps 1.5": ("train digits --steps 1.5", ["1.5", "int", "steps"]),
    "field": ("train digits --learning-rate 0.1", ["--learning-rate", "--learning-rates"]),
    "field of demo": ("demo --step 10", ["--step", "--steps"]),
    "experiment": ("train digist", ["'digist'", "'digits'", "file.py"]),
    "no such file": ("train ideas/mine.py", ["there is no file ideas/mine.py", "digits"]),
    "verb": ("trian digits", ["'trian'", "'train'"]),
    "verb unlike any": ("xyz", ["'xyz'", "demo, train, eval"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NNKIT_RUNS", str(tmp_path))
    words, parts = COMMANDS[name]
    with counted() as programs:
        try:
            code = main(words.split())
        except SystemExit as ended:
            code = ended.code
    text = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert code == 2
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"
    assert "Traceback" not in text
    assert programs.count == 0
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_configuration(tmp_path):
    nk.Run(tmp_path / "a", {"steps": 3, "learning_rate": 0.1})
    with pytest.raises(ValueError) as caught:
        nk.Run(tmp_path / "a", {"steps": 3, "learning_rate": 0.2})
    assert "learning_rate was 0.1, is now 0.2" in str(caught.value)
    assert "use another folder" in str(caught.value)
    assert "steps" not in str(caught.value)

    with counted() as programs, pytest.raises(ValueError) as caught:
        run(learning_rate=0.3, folder=tmp_path / "a")()
    assert "learning_rate was 0.1, is now 0.3" in str(caught.value)
    assert programs.count == 0


def test_folder_of_another_configuration_on_the_command_line(tmp_path, capsys):
    nk.Run(tmp_path / "a", load("digits").Config(steps=3), experiment="digits")
    with counted() as programs:
        assert main(["train", "digits", "--steps", "4", "--folder", str(tmp_path / "a")]) == 2
    text = capsys.readouterr().out
    assert "steps was 3, is now 4" in text
    assert "use another folder" in text
    assert programs.count == 0


def test_folder_is_a_file(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"notes.txt is a file, expected a folder"):
        nk.Run(file)
    with counted() as programs, pytest.raises(NotADirectoryError, match="give another name"):
        run(folder=file)()
    assert main(["train", "digits", "--folder", str(file)]) == 2
    assert "notes.txt is a file, expected a folder" in capsys.readouterr().out
    assert programs.count == 0
    assert file.read_text() == "mine"


def explode(wrap=lambda s: s, **options):
    """w is 1, then -4, then nothing: the root of the second loss is not finite."""
    goal = nk.objective(
        lambda key, b: {"layer": {"w": jnp.ones(())}},
        lambda p, b, key: jnp.sqrt(p["layer"]["w"]) * b["x"],
    )
    step = wrap(nk.step(nk.gradient(goal), optax.sgd(10.0)))
    state = nk.init(step, jax.random.key(0), {"x": jnp.ones(2)})
    return nk.fit(step, state, [{"x": jnp.ones(2)}], steps=40, progress=False, **options)


def test_loss_that_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError) as caught, nk.Run(tmp_path / "a") as record:
        explode(log_every=1, run=record)
    text = str(caught.value)
    for part in ["at step 2", "'params/layer/w'", "learning rate too high", "nk.skip_nonfinite"]:
        assert part in text
    assert nk.Run(tmp_path / "a").status.startswith("failed: FloatingPointError: the loss is")


def test_of_several_members_one_finite_loss_is_enough():
    goal = nk.objective(lambda key, b: jnp.ones(()), lambda w, b, key: (w * b["x"]) ** 2)
    recipe = lambda h: nk.step(nk.gradient(goal), optax.sgd(h["learning_rate"]))
    step = nk.sweep(recipe, {"learning_rate": jnp.array([1e6, 0.1])})
    batch = {"x": jnp.ones(2)}
    state = nk.init(step, jax.random.key(0), batch)
    _, rows = nk.fit(step, state, [batch], steps=40, progress=False)
    assert not np.isfinite(rows[-1]["loss"][0])
    assert rows[-1]["loss"][1] < 1e-3
