"""Settings, optimizers, states and devices that cannot be right: refused before compiling."""

import atexit
import dataclasses
import os
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.cli import settings
from nnkit.cli.train import load
from nnkit.core import documents
from nnkit.loop.memory import explain
from tests.mistakes import descent, first, fit, labelled, refused, run, start, task


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The inner settings of a nested configuration."""

    rate: float = 0.1
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class Nested:
    """A configuration in two levels."""

    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    steps: int = 3


def written(text):
    """The path of a file with this text; it is gone when the tests are."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        file.write(text)
    atexit.register(os.unlink, file.name)
    return file.name


def digits(**fields):
    return lambda: load("digits").Config(**fields)


def mnist1d(**fields):
    return lambda: load("mnist1d").Config(**fields)


CONFIG = {
    "steps 1.5": (lambda: digits(steps=1.5), TypeError, ["steps is 1.5", "an integer", "1500"]),
    "steps text": (lambda: digits(steps="10"), TypeError, ["steps is the string '10'", "steps=10"]),
    "steps True": (lambda: digits(steps=True), TypeError, ["steps is True", "an integer"]),
    "steps None": (lambda: digits(steps=None), TypeError, ["steps is None", "an integer"]),
    "dropout text": (
        lambda: digits(dropout="0.5"),
        TypeError,
        ["dropout is the string '0.5'", "a number", "write dropout=0.5"],
    ),
    "decay NaN": (lambda: digits(weight_decay=np.nan), ValueError, ["weight_decay is nan", "0.01"]),
    "decay inf": (lambda: digits(weight_decay=np.inf), ValueError, ["weight_decay is inf", "0.01"]),
    "widths 8": (lambda: digits(widths=8), TypeError, ["widths is 8", "a tuple", "widths=(8,)"]),
    "widths (8.5,)": (lambda: digits(widths=(8.5,)), TypeError, ["widths[0] is 8.5", "integer"]),
    "model of another name": (
        lambda: mnist1d(model="cn"),
        ValueError,
        ["model is 'cn'", "'logistic', 'mlp', 'cnn', 'gru'", "perhaps you meant 'cnn'"],
    ),
    "decay 1": (lambda: mnist1d(decay=1), TypeError, ["decay is 1", "True or False", "False is"]),
    "split 3": (lambda: mnist1d(split=3), ValueError, ["split is 3", "'validation'", "'test' is"]),
    "batch 0": (lambda: mnist1d(batch_size=0), ValueError, ["batch_size is 0", "> 0"]),
    "seeds -1": (lambda: mnist1d(seeds=-1), ValueError, ["seeds is -1", "> 0"]),
    "epochs 0": (
        lambda: lambda: load("mnist").Config(epochs=0),
        ValueError,
        ["epochs is 0", "> 0"],
    ),
    "nested field": (
        lambda: lambda: settings.field(Nested(), "optimizer.momentun=0.5"),
        settings.WrongGrid,
        ["no field 'momentun'", "perhaps you meant 'momentum'", "'momentum', 'rate'"],
    ),
    "grid of text": (
        lambda: lambda: settings.field(Nested(), "steps=many"),
        settings.WrongGrid,
        ["--grid steps: 'many'", "an integer"],
    ),
    "name twice in JSON": (
        lambda: (lambda path: lambda: documents.document(path))(
            written('{"steps": 1, "steps": 2}')
        ),
        ValueError,
        ["'steps'", "twice"],
    ),
    "value twice in a grid": (
        lambda: lambda: settings.field(Nested(), "steps=1,1"),
        settings.WrongGrid,
        ["steps", "1 is given twice", "once", "drop one"],
    ),
    "rate beside tx": (
        lambda: run(learning_rate=0.1, tx=optax.sgd(0.1)),
        ValueError,
        ["learning_rate is 0.1", "beside tx", "one of both", "tx=optax.adamw(0.1)"],
    ),
}

OPTIMIZERS = {
    "momentum 1.5": (
        lambda: lambda: nk.optim.muon(0.02, momentum=1.5, rest=optax.sgd(0.1)),
        ValueError,
        ["momentum=1.5", "0 <= momentum < 1", "0 is off"],
    ),
    "warmup above steps": (
        lambda: lambda: nk.optim.warmup_cosine(0.1, steps=10, warmup=20),
        ValueError,
        ["warmup=20", "steps=10", "warmup < steps", "shorter warm-up"],
    ),
    "decay above steps": (
        lambda: lambda: nk.optim.wsd(0.1, steps=10, warmup=5, decay=6),
        ValueError,
        ["decay=6", "warmup + decay <= steps", "shorten the decay"],
    ),
    "layerwise decay 0": (
        lambda: lambda: nk.optim.layerwise(optax.sgd(0.1), decay=0.0, depth=2),
        ValueError,
        ["decay=0", "0 < decay <= 1", "1 switches it off"],
    ),
    "schedule shorter than the run": (
        lambda: (
            lambda step, state: lambda: nk.fit(step, state, [first()], steps=20, progress=False)
        )(*scheduled()),
        ValueError,
        ["linear(steps=10)", "20 steps", "steps=20"],
    ),
    "pattern that matches nothing": (
        lambda: start(by_path({"haed": optax.sgd(0.1), "": optax.adam(0.1)})),
        ValueError,
        ["by_path", "'haed'", "head/kernel"],
    ),
    "state of other sizes": (
        lambda: (
            lambda state: lambda: nk.fit(descent(task(nk.models.Linear(4))), state, [first()])
        )(start()()),
        ValueError,
        ["state is of another step", "float32[3]", "float32[4]", "nk.init"],
    ),
    "state of another optimizer": (
        lambda: (lambda state: lambda: nk.fit(adam(), state, [first()]))(start()()),
        ValueError,
        ["state is of another step", "opt", "nk.init"],
    ),
    "update that changes a dtype": (
        lambda: start(changing(lambda state: dataclasses.replace(state, count=jnp.float32(1)))),
        ValueError,
        ["another state than it takes", "count is float32[]", "int32[]"],
    ),
    "update that changes the tree": (
        lambda: start(changing(lambda state: dataclasses.replace(state, params={}))),
        ValueError,
        ["another state than it takes", "is missing"],
    ),
}


def scheduled():
    step = nk.step(nk.gradient(task()), optax.sgd(nk.optim.linear(0.1, steps=10)))
    return step, nk.init(step, jax.random.key(0), first())


def by_path(patterns):
    return nk.step(nk.gradient(task()), nk.optim.by_path(patterns))


def adam():
    return nk.step(nk.gradient(task()), optax.adam(0.1))


def changing(change):
    step = descent()

    def update(state, batch):
        state, metrics = step.update(state, batch)
        return change(state), metrics

    return step._replace(update=update)


class Squashed(nn.Module):
    """A model that ends in softmax, or in the logistic function."""

    last: str = "softmax"

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3 if self.last == "softmax" else 1)(x)
        return jax.nn.softmax(h) if self.last == "softmax" else jax.nn.sigmoid(h)[:, 0]


class Flat(nn.Module):
    """One score per example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Read(nn.Module):
    """The mean of the rows of a table of three."""

    @nn.compact
    def __call__(self, x):
        return nk.layers.Embed(3, 3)(x).mean(1)


class Untold(nn.Module):
    """Dropout, and no way to say that this is training."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5)(nn.Dense(3)(x))


class Statistics(nn.Module):
    """Batch statistics of whatever is given."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nk.layers.BatchNorm()(nn.Dense(3)(x), train=train)


PICTURE = {"x": np.zeros((8, 3, 8, 8), np.float32), "y": np.zeros(8, np.int32)}

MODELS = {
    "probabilities": (
        lambda: start(descent(task(Squashed()))),
        ValueError,
        ["model ends in softmax", "cross_entropy", "logits", "leave it out"],
    ),
    "probability": (
        lambda: start(
            descent(task(Squashed("sigmoid"), nk.losses.binary)), first(y=first()["y"] % 2)
        ),
        ValueError,
        ["model ends in sigmoid", "binary", "logits", "leave it out"],
    ),
    "target of 2": (
        lambda: start(descent(task(Flat(), nk.losses.binary)), first(y=np.full(8, 2, "f"))),
        ValueError,
        ["labels run from 2.0 to 2.0", "from 0 to 1", "(labels + 1) / 2"],
    ),
    "outputs (n, 1)": (
        lambda: start(descent(task(nk.models.Linear(1), nk.losses.mse)), first(y=np.zeros(8, "f"))),
        ValueError,
        ["(8, 1)", "(8,)", "the same shape", "[:, 0]"],
    ),
    "batch statistics of one": (
        lambda: start(descent(task(Statistics())), first(1)),
        ValueError,
        ["BatchNorm", "(1, 3)", "at least 2", "larger batch"],
    ),
    "no key": (lambda: lambda: nk.init(descent(), None, first()), TypeError, ["key is None"]),
    "no train flag": (
        lambda: start(descent(task(Untold()))),
        Exception,
        ["Untold has no argument train", "train=False", "deterministic=not train"],
    ),
    "loss of two axes": (
        lambda: start(descent(task(loss=lambda o, y: o.T))),
        ValueError,
        ["loss returned shape (3, 8)", "(8,)", "leave the mean"],
    ),
    "channels first": (
        lambda: start(descent(task(nk.models.ConvNet(classes=3))), PICTURE),
        ValueError,
        ["(8, 3, 8, 8)", "[b h w c]", "jnp.transpose(x, (0, 2, 3, 1))"],
    ),
    "no batch axis": (
        lambda: start(
            descent(task(nk.models.ConvNet(classes=3))), first(x=np.zeros((8, 8, 3), "f"))
        ),
        ValueError,
        ["(8, 8, 3)", "[b h w c]", "x[None]"],
    ),
    "ids above the table": (
        lambda: start(descent(task(Read())), first(x=np.full((8, 3), 3, np.int32))),
        ValueError,
        ["tokens run from 3 to 3", "3 rows (0 to 2)", "widen it to 4"],
    ),
}


def later(**changes):
    """A batch that is unlike the one that `init` saw."""
    return lambda: fit([first(**changes)], steps=1)


DATA = {
    "label = classes, after init": (
        later(y=np.full(8, 3, np.int32)),
        ValueError,
        ["batch['y'] of update 1 runs from 3 to 3", "0..2", "row 0", "widen the layer to 4"],
    ),
    "label -1, after init": (
        later(y=np.arange(8, dtype=np.int32) % 3 - 1),
        ValueError,
        ["batch['y'] of update 1 runs from -1 to 1", "0..2", "first, -1, in row 0", "subtract"],
    ),
    "label 255, after init": (
        later(y=np.array([0, 1, 2, 255, 0, 1, 2, 255], np.int32)),
        ValueError,
        ["runs from 0 to 255", "0..2", "2 of 8", "row 3", "255 often marks what to ignore"],
    ),
    "another field": (
        lambda: (
            lambda state: lambda: nk.fit(descent(), state, [{"x": first()["x"], "z": first()["y"]}])
        )(start()()),
        KeyError,
        ["the fields ['x', 'z']", "needs 'y'", "rename the field"],
    ),
    "label 255": (
        lambda: lambda: nk.check(task(), labelled(0, 1, 2, 255)),
        ValueError,
        ["from 0 to 255", "(0..2)", "masked places: put 0"],
    ),
}

DEVICES = {
    "mesh of other sizes": (
        lambda: lambda: nk.mesh(data=3, devices=jax.devices()[:2]),
        ValueError,
        ["mesh(data=3)", "needs 3 devices", "has 2", "exactly 3"],
    ),
    "mesh of 0": (lambda: lambda: nk.mesh(data=0), ValueError, ["'data': 0", ">= 1", "data=8"]),
}

ALL = {"config": CONFIG, "optimizers": OPTIMIZERS, "training": MODELS, "later": DATA}
ALL["devices"] = DEVICES
NAMES = [f"{group}/{name}" for group, table in ALL.items() for name in table]


@pytest.mark.parametrize("name", NAMES)
def test_mistake(name):
    group, _, case = name.partition("/")
    refused(*ALL[group][case])


def test_a_softmax_is_no_mistake_where_the_loss_wants_it():
    goal = task(Squashed(), lambda o, y: nk.losses.mse(o, jax.nn.one_hot(y, 3)))
    assert start(descent(goal))() is not None


def test_right_configurations_pass():
    assert load("digits").Config(learning_rates=(1,), widths=[8]).widths == [8]
    assert load("mnist1d").Config(learning_rate=np.float32(0.1)).seeds == 6


def test_out_of_memory_names_the_batch_and_a_smaller_one():
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1234567 bytes.")
    explain(error, first())
    for part in ["batch_size is 8", "1,234,567 bytes", "batch_size=4", "accumulate(gradient, 2)"]:
        assert part in error.__notes__[0]
    other = RuntimeError("INTERNAL: something else")
    explain(other, first())
    assert not hasattr(other, "__notes__")


def test_all_labels_equal_is_worth_a_look():
    lines = nk.check(task(), [first(y=np.ones(8, np.int32))])
    assert any(line.startswith("!!  y") and "all are 1" in line for line in lines)


def test_a_sum_of_bfloat16_is_exact():
    mean = nk.Mean.of(jnp.full(1000, 0.125, jnp.bfloat16))
    assert float(mean.total) == 125.0


def test_a_gradient_of_0_is_worth_a_look():
    goal = nk.objective(lambda key, b: jnp.ones(()), lambda w, b, key: 0 * w * b["x"])
    lines = nk.check(goal, [{"x": np.linspace(0, 1, 4, dtype=np.float32)}])
    assert lines[-1].startswith("!!  no gradient reaches")


def test_decay_of_norms_is_a_choice():
    params = {"norm": {"scale": jnp.ones(3)}, "dense": {"kernel": jnp.ones((3, 3))}}
    mask = nk.optim.decay_mask(params)
    assert mask == {"norm": {"scale": False}, "dense": {"kernel": True}}
