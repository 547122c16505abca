"""Evaluation over whole data sets, exact under masks and ragged last batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nnkit.core.ranges import ranges
from nnkit.data import prefetch
from nnkit.loop import feeding
from nnkit.loop.retraces import watched
from nnkit.train import Objective, pair
from nnkit.train.nouns import expect

__all__ = ["evaluate", "predict"]

GONE = "expected at least 1; check the path, or whether a generator was used up"


def evaluate(objective: Objective, batches, *, split: str = "test") -> Callable:
    """A function (params, carry) -> {metric: value} over every example of a data set.

    Sums are added in float64 on the host, so that sizes of any number of examples stay exact. With
    weights on many processes each reads its share of the examples, and all get the numbers.

    Args:
      objective: any Objective; it is called with key=None. `stacked` gives arrays [n].
      batches: a re-iterable of batches, such as a `Batches`.
      split: the name the row carries.

    Returns:
      (params, carry) -> {"split": split, "loss": float, ...}; one compilation, however often.

    Raises:
      ValueError: if there is no example, or all are masked.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> test = [{"x": jnp.array([1.0, 2.0])}, {"x": jnp.ones(2) * 3, "mask": jnp.array([1, 0])}]
    >>> round(evaluate(task, test)(jnp.float32(0), {})["loss"], 4)
    4.6667
    """

    expect("evaluate", objective, Objective)

    def metrics(params, carry, batch):
        return objective.loss(params, carry, batch, None)[1][1]

    one = watched(metrics, who=f"evaluate(split={split!r})", spare=1)  # the last batch is shorter

    @functools.lru_cache(maxsize=4)
    def on(mesh):  # many processes: every one of them is to have the numbers
        return jax.jit(metrics, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def whole(params, carry):
        one.begin()
        mesh = feeding.spanning((params, carry))
        ahead = prefetch(iter(batches)) if mesh is None else feeding.evaluated(batches, mesh)
        say = one if mesh is None else on(mesh)
        found = [say(params, carry, batch) for batch in ahead]
        if not found:
            raise ValueError(f"evaluate(split={split!r}): the data gave no batch, {GONE}")
        return {"split": split, **read(*jax.device_get(found))}

    def trial(params, carry):
        """The metrics of one batch as shapes: what would fail later fails here."""
        batch = next(iter(batches), None)
        if batch is None:
            raise ValueError(f"evaluate(split={split!r}): the data gave no batch, {GONE}")
        try:
            found = jax.eval_shape(one, params, carry, batch)
            return {name: found[name] for name in found if name not in ranges(found)}
        except Exception as error:
            error.add_note(
                f"this is evaluate(split={split!r}) on its first batch: if the step is a sweep or "
                "an ensemble, evaluate nk.stacked(task); else its data differ from the training's"
            )
            raise

    whole.trial = trial  # pyright: ignore[reportFunctionMemberAccess]  (fit calls it beforehand)
    return whole


def read(*sums) -> dict:
    """Trees of `Mean`s on the host, added in float64: floats, or arrays [n ...] of members."""
    row, counters = {}, ranges(sums[0])
    left_out = [name for name in ("skipped", "rolled_back") if name in sums[0]]
    for name in sums[0]:
        total = sum((np.asarray(s[name].total, np.float64) for s in sums), np.float64(0))
        weight = sum((np.asarray(s[name].weight, np.float64) for s in sums), np.float64(0))
        if name in counters:  # members see the same batches
            if count := int(np.max(total)):
                row[name] = count
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(
                total / weight.reshape(weight.shape + (1,) * (total.ndim - weight.ndim))
            )
        if weight.any() or not left_out:  # a row whose updates were all left out
            row[name] = float(value) if not value.ndim else value
    none = "loss" in sums[0] and not sum(np.asarray(s["loss"].weight).sum() for s in sums)
    if none and not np.any([np.any(s[name].total) for s in sums for name in left_out]):
        raise ValueError("every example is masked out: there is nothing to average")
    return row


def predict(
    model, params, carry, batches, *, x: str | tuple[str, ...] = "x"
) -> dict[str, np.ndarray]:
    """What a model says about every example of a data set, in its order, without the padding.

    For metrics of the whole (`metrics.roc_auc`, `metrics.r2`, ...), pictures and error analysis.

    Args:
      model: a Linen module or an (init, apply) tuple, as `supervised` takes.
      params: its parameters.
      carry: its carry.
      batches: a re-iterable of batches with the field "x" [b ...].
      x: name of the inputs in a batch, or a tuple of names, as `supervised` takes.

    Returns:
      {"outputs": [n ...]} and every field of the batches but the inputs and "mask", [n ...].

    Raises:
      KeyError: if a batch lacks an input.
      ValueError: if there is no batch.

    >>> test = [{"x": jnp.ones((2, 3)), "y": jnp.array([0, 1]), "mask": jnp.array([1, 0])}]
    >>> add_up = (lambda key, x: ({}, {}), lambda params, carry, x, key: (x.sum(1), carry))
    >>> found = predict(add_up, {}, {}, test)
    >>> found["outputs"].tolist(), found["y"].tolist()
    ([3.0], [0])
    """
    _, apply = pair(model)
    mesh = feeding.spanning((params, carry))
    say = watched(
        lambda params, carry, x: apply(params, carry, x, None)[0],
        who="predict",
        spare=1,  # the last batch is shorter
        out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()),
    )
    names = x if isinstance(x, tuple) else (x,)
    rows: dict[str, list] = {}
    for batch in batches:
        if missing := [name for name in names if name not in batch]:
            raise KeyError(
                f"the batch has the fields {sorted(batch)}, predict(x={x!r}) needs {missing[0]!r}"
            )
        inputs = tuple(batch[name] for name in names)
        inputs = jax.device_put(inputs) if mesh is None else jax.device_get(inputs)
        keep = np.asarray(batch.get("mask", np.ones(len(inputs[0])))) > 0
        outputs = say(params, carry, inputs if isinstance(x, tuple) else inputs[0])
        for name, values in {"outputs": outputs, **batch}.items():
            if name not in (*names, "mask"):
                rows.setdefault(name, []).append(np.asarray(values)[keep])
    if not rows:
        raise ValueError(f"predict: the data gave no batch, {GONE}")
    return {name: np.concatenate(parts) for name, parts in rows.items()}
