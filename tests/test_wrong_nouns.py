"""Nouns mixed up, and techniques that do not fit: refused by name, before compiling."""

import flax.linen as nn
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import nnkit as nk
from tests.mistakes import descent, first, own, refused, run, start, task


class Normed(nn.Module):
    """Batch statistics and dropout in nine lines."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


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
    "mesh of more devices than there are": (
        lambda: lambda: nk.mesh(data=64),
        ValueError,
        ["mesh(data=64) needs 64", "has 8 (cpu)", "start the program with JAX_NUM_CPU_DEVICES=64"],
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
    "grid of a list": (
        lambda: (
            lambda: nk.sweep(lambda h: descent(), {"a": np.ones(3), "weight_decay": [0.0, 0.1, 1]})
        ),
        TypeError,
        ["grid['weight_decay'] is a list", "jnp.array([...])", "nk.product(weight_decay=[...])"],
    ),
    "grid of lists of two lengths": (
        lambda: lambda: nk.sweep(lambda h: descent(), {"a": [0.0], "b": [1, 2]}),
        TypeError,
        ["grid['a'] is a list", "jnp.array([...])", "nk.product(a=[...])"],
    ),
    "grid without names": (
        lambda: lambda: nk.sweep(lambda h: descent(), [0.0, 1.0]),
        TypeError,
        ["the grid is a list", "{name: jnp.array([...])}", "nk.product(name=[...])"],
    ),
    "recipe asks for another name": (
        lambda: start(nk.sweep(lambda h: descent(h["rate"]), {"rates": np.ones(2, np.float32)})),
        KeyError,
        ["asks for 'rate'", "the grid has ['rates']", "perhaps you meant h['rates']"],
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

ALL = NOUNS | TECHNIQUES


@pytest.mark.parametrize("name", ALL)
def test_mistake(name):
    refused(*ALL[name])
