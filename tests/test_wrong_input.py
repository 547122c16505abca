"""Every mistake: the message says what came, what is allowed and what to do; nothing compiled yet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import nnkit as nk
from nnkit.cli.main import main
from nnkit.cli.train import load
from tests.compiles import counted


class Normed(nn.Module):
    """Batch statistics and dropout in nine lines."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


def first(n=8, **changes):
    x = np.linspace(0, 1, 3 * n, dtype=np.float32).reshape(n, 3)
    return {"x": x, "y": np.arange(n, dtype=np.int32) % 3, **changes}


def labelled(*labels):
    return nk.data.arrays(first(len(labels))["x"], list(labels), batch_size=2, shuffle=False)


def task(model=None, loss=nk.losses.cross_entropy, **metrics):
    return nk.supervised(nk.models.Linear(3) if model is None else model, loss, **metrics)


def own(init=None, metric=None):
    """An Objective by hand: w x, with a metric that may be wrong."""

    def loss(w, carry, batch, key):
        mean = nk.Mean.of(w * batch["x"])
        return mean, (carry, {"loss": mean} if metric is None else {"own": metric})

    return nk.Objective(lambda key, b: (jnp.zeros(()) if init is None else init, {}), loss)


def descent(objective=None, wrap=lambda g: g):
    return nk.step(wrap(nk.gradient(task() if objective is None else objective)), optax.sgd(0.1))


def start(step=None, batch=None, key=None):
    """nk.init of a step on a batch, ready to be called."""
    key = jax.random.key(0) if key is None else key
    step, batch = descent() if step is None else step, first() if batch is None else batch
    return lambda: nk.init(step, key, batch)


def fit(batches=None, key=None, **options):
    """nk.fit from a state that is there already."""
    step = descent()
    state = nk.init(step, jax.random.key(0), first())
    batches = [first()] if batches is None else batches
    return lambda: nk.fit(step, state, batches, progress=False, **options)


def run(train=None, objective=None, **options):
    train = [first()] if train is None else train
    options = {"steps": 3, "progress": False, **options}
    return lambda: nk.run(task() if objective is None else objective, train, **options)


def nan(value=np.nan):
    x = first()["x"].copy()
    x[5, 1] = value
    return x


def rates(*values):
    return lambda: nk.sweep(lambda h: descent(), {"learning_rate": np.array(values)})


DATA = {
    "no data": (
        lambda: lambda: nk.data.arrays(np.zeros((0, 3), np.float32), batch_size=2),
        ValueError,
        ["x has shape (0, 3)", "0 examples", "at least 1", "check the path"],
    ),
    "no batch, check": (
        lambda: lambda: nk.check(task(), []),
        ValueError,
        ["no batch", "path", "generator"],
    ),
    "no batch, run": (lambda: run(train=[]), ValueError, ["no batch", "path", "generator"]),
    "no batch, fit": (lambda: fit([], steps=3), ValueError, ["after 0 of 3 steps", "re-iterable"]),
    "no batch, evaluate": (
        lambda: lambda: nk.evaluate(task(), [])({}, {}),
        ValueError,
        ["split='test'", "no batch", "path", "generator"],
    ),
    "no batch, predict": (
        lambda: lambda: nk.predict(nk.models.Linear(3), {}, {}, []),
        ValueError,
        ["no batch", "path", "generator"],
    ),
    "batch above the data": (
        lambda: lambda: nk.data.arrays(first()["x"], batch_size=9),
        ValueError,
        ["batch_size is 9", "8 examples", "smaller"],
    ),
    "float labels": (
        lambda: start(batch=first(y=np.zeros(8, np.float32))),
        TypeError,
        ["labels is float32 of shape (8,)", "expected integers (8,)", "labels.astype(int)"],
    ),
    "labels (n, 1), data": (
        lambda: lambda: nk.data.arrays(first()["x"], first()["y"][:, None], batch_size=4),
        ValueError,
        ["y has shape (8, 1)", "(8,)", "y[:, 0]"],
    ),
    "labels (n, 1), init": (
        lambda: start(batch=first(y=first()["y"][:, None])),
        ValueError,
        ["labels has shape (8, 1)", "expected (8,)", "labels[:, 0]"],
    ),
    "label = classes": (
        lambda: start(batch=first(y=np.full(8, 3, np.int32))),
        ValueError,
        ["from 3 to 3", "3 classes (0..2)", "subtract the minimum or widen"],
    ),
    "label -1": (
        lambda: start(batch=first(y=np.arange(8, dtype=np.int32) % 3 - 1)),
        ValueError,
        ["from -1 to 1", "(0..2)", "subtract the minimum"],
    ),
    "label = classes, later": (
        lambda: lambda: nk.check(task(), labelled(0, 1, 2, 3)),
        ValueError,
        ["from 0 to 3", "(0..2)", "widen"],
    ),
    "label -1, later": (
        lambda: run(train=labelled(0, 1, 2, -1)),
        ValueError,
        ["from -1 to 2", "(0..2)", "subtract the minimum"],
    ),
    "one-hot of wrong width": (
        lambda: start(batch=first(y=np.zeros((8, 4), np.float32))),
        ValueError,
        ["labels is float32 of shape (8, 4)", "(8, 3)", "need the same shape"],
    ),
    "one-hot of integers": (
        lambda: start(batch=first(y=np.zeros((8, 3), np.int32))),
        ValueError,
        ["labels has shape (8, 3)", "expected (8,)", "labels.astype(jnp.float32)"],
    ),
    "images unscaled, data": (
        lambda: lambda: nk.data.arrays(np.full((4, 2, 2), 255, np.uint8), batch_size=2),
        TypeError,
        ["x is uint8", "255..255", "(x / 255).astype(np.float32)"],
    ),
    "images unscaled, init": (
        lambda: start(batch=first(x=np.zeros((8, 3), np.uint8))),
        TypeError,
        ["x is uint8[8, 3]", "0..255", "divide by 255"],
    ),
    "fields image and label": (
        lambda: start(batch={"image": first()["x"], "label": first()["y"]}),
        KeyError,
        ["['image', 'label']", "needs 'x'", "rename the field, or say supervised(..., x=..., y="],
    ),
    "only the label missing": (
        lambda: run(train=[{"x": first()["x"]}]),
        KeyError,
        ["['x']", "needs 'y'", "rename"],
    ),
    "NaN": (lambda: start(batch=first(x=nan())), ValueError, ["'x'", "NaN", "row 5", "drop them"]),
    "inf": (lambda: run(train=[first(x=nan(np.inf))]), ValueError, ["'x'", "infinity", "row 5"]),
    "NaN, data": (
        lambda: lambda: nk.data.arrays(nan(), batch_size=2),
        ValueError,
        ["x has 1 NaN", "row 5", "drop or fill"],
    ),
    "all masked": (
        lambda: start(batch=first(mask=np.zeros(8, np.float32))),
        ValueError,
        ["batch['mask']", "all 8", "masked out", "drop"],
    ),
    "empty batch": (lambda: start(batch=first(0)), ValueError, ["empty", "'x': 0", "drop"]),
    "ragged batch": (
        lambda: start(batch=first(y=np.zeros(7, np.int32))),
        ValueError,
        ["differ in length", "'x': 8", "'y': 7", "cut or complete"],
    ),
    "batch is a tuple": (
        lambda: start(batch=(1, 2)),
        TypeError,
        ["a batch is tuple", "mapping", '{"x": ..., "y": ...}'],
    ),
    "text": (
        lambda: start(batch=first(x=np.array(["a"] * 8))),
        TypeError,
        ["batch['x']", "<U1", "expected numbers", "encode"],
    ),
    "scalar field": (
        lambda: start(batch=first(t=np.float32(1))),
        ValueError,
        ["batch['t']", "scalar", "[b ...]", "np.full"],
    ),
}

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
        ["learning_rates is nan", "> 0"],
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

NOUNS = {
    "raw key": (
        lambda: start(key=np.zeros(2, np.uint32)),
        TypeError,
        ["key is array([0, 0]", "typed key", "jax.random.key(seed)"],
    ),
    "step of an objective": (
        lambda: lambda: nk.step(task(), optax.sgd(0.1)),
        TypeError,
        ["g is Objective", "expected a Gradient", "step(gradient(objective), tx)"],
    ),
    "step with a float": (
        lambda: lambda: nk.step(nk.gradient(task()), 0.1),
        TypeError,
        ["tx is 0.1", "optax optimizer", "optax.adamw(1e-3)"],
    ),
    "run with a float": (lambda: run(tx=0.1), TypeError, ["tx is 0.1", "optax.adamw(1e-3)"]),
    "run of a step": (
        lambda: run(objective=descent()),
        TypeError,
        ["Step", "expected an Objective", "nk.supervised"],
    ),
    "check of a step": (
        lambda: lambda: nk.check(descent(), [first()]),
        TypeError,
        ["Step", "expected an Objective", "nk.supervised"],
    ),
    "gradient of a step": (
        lambda: lambda: nk.gradient(descent()),
        TypeError,
        ["gradient", "Step", "expected an Objective", "nk.supervised"],
    ),
    "half of a gradient": (
        lambda: lambda: nk.half(nk.gradient(task())),
        TypeError,
        ["half", "Gradient", "expected an Objective"],
    ),
    "stacked step": (
        lambda: lambda: nk.stacked(descent()),
        TypeError,
        ["stacked", "Step", "expected an Objective"],
    ),
    "evaluate a step": (
        lambda: lambda: nk.evaluate(descent(), [first()]),
        TypeError,
        ["evaluate", "Step", "expected an Objective"],
    ),
    "accumulate an objective": (
        lambda: lambda: nk.accumulate(task(), 2),
        TypeError,
        ["accumulate", "Objective", "expected a Gradient", "nk.gradient(objective)"],
    ),
    "clipped step": (
        lambda: lambda: nk.clipped(descent(), 1.0),
        TypeError,
        ["clipped", "Step", "expected a Gradient", "nk.gradient(objective)"],
    ),
    "sam of an objective": (
        lambda: lambda: nk.sam(task()),
        TypeError,
        ["sam", "Objective", "expected a Gradient"],
    ),
    "per_example of a gradient": (
        lambda: lambda: nk.per_example(nk.gradient(task()), 1.0),
        TypeError,
        ["per_example", "Gradient", "expected an Objective"],
    ),
    "ema of a gradient": (
        lambda: lambda: nk.ema(nk.gradient(task()), 0.9),
        TypeError,
        ["ema", "Gradient", "expected a Step", "nk.step(gradient, tx)"],
    ),
    "ensemble of an objective": (
        lambda: lambda: nk.ensemble(task(), 2),
        TypeError,
        ["ensemble", "Objective", "expected a Step"],
    ),
    "shard of a gradient": (
        lambda: lambda: nk.shard(nk.gradient(task()), nk.mesh(data=2)),
        TypeError,
        ["shard", "Gradient", "expected a Step"],
    ),
    "init of a gradient": (
        lambda: start(step=nk.gradient(task())),
        TypeError,
        ["init", "Gradient", "expected a Step", "nk.step(gradient, tx)"],
    ),
    "fit of a gradient": (
        lambda: lambda: nk.fit(nk.gradient(task()), {}, [first()], steps=1),
        TypeError,
        ["fit", "Gradient", "expected a Step", "nk.step(gradient, tx)"],
    ),
    "recipe without a step": (
        lambda: start(step=nk.sweep(lambda h: task(), {"a": np.ones(2, np.float32)})),
        TypeError,
        ["recipe gave Objective", "expected a Step"],
    ),
    "model class": (
        lambda: lambda: nk.supervised(nk.models.MLP, nk.losses.cross_entropy),
        TypeError,
        ["MLP", "an instance, not the class"],
    ),
    "loss by name": (
        lambda: lambda: nk.supervised(nk.models.Linear(3), "mse"),
        TypeError,
        ["loss is 'mse'", "expected a function"],
    ),
}

TECHNIQUES = {
    "shard of 60 over 8": (
        lambda: start(nk.shard(descent(), nk.mesh(data=8), batch=PartitionSpec("data")), first(60)),
        ValueError,
        ["60 rows over 8 devices", "56 or 64"],
    ),
    "shard over an axis that is not": (
        lambda: lambda: nk.shard(descent(), nk.mesh(data=2), batch=PartitionSpec("run")),
        ValueError,
        ["names 'run'", "('data',)"],
    ),
    "accumulate 3 of 8": (
        lambda: start(descent(wrap=lambda g: nk.accumulate(g, 3))),
        ValueError,
        ["accumulate(n=3)", "divisible by 3", "float32[8,3]", "pad and mask"],
    ),
    "accumulate 0": (
        lambda: lambda: nk.accumulate(nk.gradient(task()), 0),
        ValueError,
        ["n=0", "integer >= 1"],
    ),
    "grid of two lengths": (
        lambda: lambda: nk.sweep(lambda h: descent(), {"a": np.ones(2), "b": np.ones(3)}),
        ValueError,
        ["grid['b']", "(3,)", "axis of 2 as in 'a'", "nk.product"],
    ),
    "grid of scalars": (
        lambda: lambda: nk.sweep(lambda h: descent(), {"a": 0.5}),
        ValueError,
        ["grid['a']", "()", "nk.product"],
    ),
    "empty grid": (lambda: lambda: nk.sweep(lambda h: descent(), {}), ValueError, ["empty"]),
    "ensemble of 0": (
        lambda: lambda: nk.ensemble(descent(), 0),
        ValueError,
        ["n=0", "integer >= 1"],
    ),
    "ema 1": (lambda: lambda: nk.ema(descent(), 1.0), ValueError, ["decay=1.0", "< 1", "0.999"]),
    "per_example with statistics": (
        lambda: start(nk.step(nk.per_example(task(Normed()), 1.0), optax.sgd(0.1))),
        TypeError,
        ["per_example", "batch_stats", "group normalisation"],
    ),
    "clipped to 0": (
        lambda: lambda: nk.clipped(nk.gradient(task()), 0),
        ValueError,
        ["norm is 0", "> 0"],
    ),
    "frozen altogether": (
        lambda: start(descent(nk.frozen(task(), lambda path: "haed" in path))),
        ValueError,
        ["chooses none", "head/kernel"],
    ),
    "adapt with another shape": (
        lambda: start(
            descent(
                nk.adapt(
                    task(), {"head": {"kernel": np.ones((4, 3), "f"), "bias": np.ones(3, "f")}}
                )
            )
        ),
        ValueError,
        ["head/kernel is float32[4,3]", "expected float32[3,3]", "fresh="],
    ),
    "adapt without a leaf": (
        lambda: start(descent(nk.adapt(task(), {"head": {"kernel": np.ones((3, 3), "f")}}))),
        ValueError,
        ["head/bias is missing", "float32[3]", "fresh="],
    ),
    "integer params": (
        lambda: start(descent(own(init=np.int32(1)))),
        TypeError,
        ["int32[]", "expected floating", "carry"],
    ),
    "metric that is no Mean": (
        lambda: start(descent(own(metric=np.float32(1)))),
        TypeError,
        ["metric 'own'", "float32", "Mean.of(values, mask)"],
    ),
    "reduced loss": (
        lambda: start(descent(task(loss=lambda o, y: o.sum()))),
        ValueError,
        ["shape ()", "(8,)", "leave the mean over the batch to nnkit"],
    ),
    "reduced loss, check": (
        lambda: lambda: nk.check(task(loss=lambda o, y: o.sum()), [first()]),
        ValueError,
        ["shape ()", "(8,)", "leave the mean"],
    ),
    "reduced metric": (
        lambda: run(objective=task(best=lambda o, y: o.max())),
        ValueError,
        ["best returned shape ()", "(8,)", "one value per example"],
    ),
    "init of stacked": (
        lambda: start(descent(nk.stacked(task()))),
        TypeError,
        ["ensemble(step, n)", "sweep(recipe, grid)"],
    ),
    "state of another step": (
        lambda: (lambda state: lambda: nk.fit(nk.ema(descent(), 0.9), state, [first()], steps=1))(
            start()()
        ),
        Exception,
        ["state of another step", "nk.init(step"],
    ),
}

ALL = DATA | NUMBERS | NOUNS | TECHNIQUES


@pytest.mark.parametrize("name", ALL)
def test_mistake(name):
    make, kind, parts = ALL[name]
    mistake = make()
    with counted() as programs, pytest.raises(kind) as caught:
        mistake()
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"
    assert programs.count == 0
    assert len(text) < 500


COMMANDS = {
    "rate 0": ("train digits --learning-rates 0", ["learning_rates is 0.0", "> 0"]),
    "rate -1": ("train digits --learning-rates -1", ["learning_rates is -1.0", "> 0"]),
    "rate NaN": ("demo --learning-rates 0.1 nan", ["learning_rates is nan", "> 0"]),
    "rate text": ("train digits --learning-rates fast", ["fast", "FLOAT", "learning-rates"]),
    "steps 0": ("train digits --steps 0", ["steps is 0", "> 0"]),
    "steps 1.5": ("train digits --steps 1.5", ["1.5", "int", "steps"]),
    "field": ("train digits --learning-rate 0.1", ["--learning-rate", "--learning-rates"]),
    "field of demo": ("demo --step 10", ["--step", "--steps"]),
    "experiment": ("train digist", ["'digist'", "'digits'", "file.py"]),
    "no such file": ("train ideas/mine.py", ["'ideas/mine.py'", "digits", "file.py"]),
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


def test_data_that_end_in_the_middle():
    with pytest.raises(ValueError) as caught:
        fit((first() for _ in range(2)), steps=5)()
    assert "ended after 2 of 5 steps" in str(caught.value)
    assert "re-iterable such as a list" in str(caught.value)


def test_other_data_than_those_of_the_run(tmp_path):
    options = {"steps": 2, "folder": tmp_path / "a"}
    run(train=nk.data.arrays(**first(), batch_size=4, seed=0), **options)()
    with pytest.raises(ValueError) as caught:
        run(train=nk.data.arrays(**first(), batch_size=4, seed=7), **options)()
    assert "seed was 0, is now 7" in str(caught.value)
    assert "use the same data, or another folder" in str(caught.value)


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


def test_nothing_left_but_masks_in_evaluation():
    masked = [first(mask=np.zeros(8, np.float32))] * 2
    params, carry = task().init(jax.random.key(0), first())
    with pytest.raises(ValueError, match="every example is masked out"):
        nk.evaluate(task(), masked)(params, carry)


def test_no_gradient_reaches_a_tensor_is_told():
    goal = nk.objective(
        lambda key, b: {"used": jnp.ones(()), "spare": jnp.ones(())},
        lambda p, b, key: p["used"] * b["x"],
    )
    lines = nk.check(goal, [{"x": np.linspace(0, 1, 4, dtype=np.float32)}])
    assert lines[-1] == "!!  no gradient reaches spare (1 tensors)"


def test_check_marks_inputs_far_from_unit_scale():
    lines = nk.check(task(), [first(x=1000 * first()["x"])])
    assert lines[0].startswith("!!  x float32[8,3]")
    assert lines[0].endswith("scale it")
    lines = nk.check(task(), [first(x=np.ones((8, 3), np.float32))])
    assert lines[0].startswith("!!  x")


def test_check_stops_at_a_first_loss_that_is_not_finite():
    broken = task(loss=lambda o, y: jnp.log(0 * o[:, 0]) + 0 * o[:, 0])
    with pytest.raises(ValueError, match=r"loss is -inf before the first step; look at inputs"):
        nk.check(broken, [first()])
