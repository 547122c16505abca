"""What the tests of wrong input share: right input, and what every mistake must do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnkit as nk
from reliability.messages import heard


def refused(make, kind, parts):
    """The mistake that `make` gives raises `kind`, says all `parts`, and compiles nothing before.

    >>> refused(lambda: lambda: nk.ema(descent(), 2.0), ValueError, ["decay=2.0", "0.999 is usual"])
    """
    mistake = make()
    found = heard(mistake)
    assert found.kind is not None, "nothing was raised"
    assert issubclass(found.kind, kind), found
    missing = [part for part in parts if part not in found.text]
    assert not missing, f"{missing} not in: {found.text}"
    assert found.programs == 0
    assert len(found.text) < 500


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
