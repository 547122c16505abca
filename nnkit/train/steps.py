"""Steps: one move. init makes a state, update takes a batch, weights is what to evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nnkit.core import keys, trees
from nnkit.train.gradients import Gradient
from nnkit.train.nouns import expect

__all__ = ["Step", "ema", "repeat", "seeded", "step"]


class Step(NamedTuple):
    """One move of training, as three pure functions.

    Techniques wrap a Step and give a Step, so that `fit`, `save` and each other apply to all.

    Attributes:
      init: (key, batch) -> state, a tree of arrays that holds all that decides the future.
      update: (state, batch) -> (state, metrics), metrics a mapping of names to `Mean`s.
      weights: state -> (params, carry), the point to evaluate and to keep.

    >>> count = Step(
    ...     init=lambda key, batch: jnp.int32(0),
    ...     update=lambda state, batch: (state + 1, {}),
    ...     weights=lambda state: (state, {}),
    ... )
    >>> int(count.update(count.init(jax.random.key(0), {}), {})[0])
    1
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
    weights: Callable[[Any], tuple[Any, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What `step` remembers.

    Attributes:
      count: [] int32, updates done.
      key: [] the base key; never advanced, each update folds in the count.
      params: what gradients flow to.
      carry: what is carried along.
      opt: the state of the optimizer.
    """

    count: jax.Array
    key: jax.Array
    params: Any
    carry: Any
    opt: Any


def step(g: Gradient, tx: optax.GradientTransformation) -> Step:
    """Gradient descent: the mean gradient through an optax optimizer, onto the parameters.

    Args:
      g: any Gradient.
      tx: any optax optimizer. Those that want the loss (`value`, such as reduce_on_plateau) get it.

    Returns:
      A Step with a `State`. A batch whose mask is all 0 gives a gradient of 0.

    Raises:
      TypeError: if `g` is no Gradient or `tx` no optimizer.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> descent = step(nk.gradient(task), optax.sgd(0.5))
    >>> batch = {"x": jnp.array([1.0, 3.0])}
    >>> state = descent.init(jax.random.key(0), batch)
    >>> state, metrics = descent.update(state, batch)
    >>> state.params, metrics["loss"].value
    (Array(2., dtype=float32), Array(5., dtype=float32))
    """
    if not isinstance(g, Gradient):
        remedy = "; wrap the objective: step(gradient(objective), tx)" if hasattr(g, "loss") else ""
        raise TypeError(f"step(g, tx): g is {type(g).__name__}, expected a Gradient{remedy}")
    if not (hasattr(tx, "init") and hasattr(tx, "update")) or isinstance(tx, Step):
        raise TypeError(
            f"step(g, tx): tx is {tx!r:.60}, expected an optax optimizer such as optax.adamw(1e-3)"
        )
    tx = optax.with_extra_args_support(tx)

    def init(key, batch):
        start, key = jax.random.split(key)
        params, carry = g.init(start, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax is written for it
            return State(jnp.zeros((), jnp.int32), key, params, carry, tx.init(params))

    def update(state, batch):
        key = jax.random.fold_in(state.key, state.count)
        mean, (carry, metrics) = g.grad(state.params, state.carry, batch, key)
        some = jnp.where(mean.weight == 0, jnp.ones_like(mean.weight), mean.weight)
        slope = jax.tree.map(lambda t: t / some.astype(t.dtype), mean.total)
        extra = {"value": metrics["loss"].value} if "loss" in metrics else {}
        with jax.numpy_dtype_promotion("standard"):
            move, opt = tx.update(slope, state.opt, state.params, **extra)
            params = optax.apply_updates(state.params, move)
        return State(state.count + 1, state.key, params, carry, opt), metrics

    return Step(init, update, lambda state: (state.params, state.carry))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averaged:
    """What `ema` remembers: the state inside, and the average of its params."""

    inner: Any
    average: Any


def ema(inner: Step, decay) -> Step:
    """Evaluate an exponential moving average of the weights; training itself is unchanged.

    a <- decay a + (1 - decay) w after each update, from a = w at the start. decay = 0 is the
    identity.

    Args:
      inner: any Step.
      decay: [] in [0, 1); may be traced. 0.999 is usual.

    Returns:
      A Step whose weights are (average, carry).

    Raises:
      ValueError: if decay is outside [0, 1).

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> descent = ema(step(nk.gradient(task), optax.sgd(0.5)), 0.75)
    >>> state = descent.init(jax.random.key(0), {"x": jnp.array([4.0])})
    >>> state, _ = descent.update(state, {"x": jnp.array([4.0])})
    >>> descent.weights(state)[0], state.inner.params
    (Array(1., dtype=float32), Array(4., dtype=float32))

    Polyak & Juditsky 1992, doi:10.1137/0330046; Tarvainen & Valpola, arXiv:1703.01780, eq. 2.
    """
    expect("ema", inner, Step)
    if isinstance(decay, int | float) and not 0 <= decay < 1:
        raise ValueError(f"ema(decay={decay}): expected 0 <= decay < 1; 0.999 is usual")

    def init(key, batch):
        state = inner.init(key, batch)
        return Averaged(state, jax.tree.map(jnp.copy, inner.weights(state)[0]))

    def update(state, batch):
        new, metrics = inner.update(state.inner, batch)

        def blend(a, p):
            if not jnp.issubdtype(a.dtype, jnp.floating):
                return p
            d = jnp.asarray(decay).astype(a.dtype)
            return d * a + (1 - d) * p

        return Averaged(new, jax.tree.map(blend, state.average, inner.weights(new)[0])), metrics

    return Step(init, update, lambda state: (state.average, inner.weights(state.inner)[1]))


def repeat(inner: Step) -> Step:
    """One call, many updates: each leaf of the batch has a leading axis of steps [k b ...].

    The loop is a scan on the device, so a tiny step costs no dispatch. k = 1 is the identity.

    Args:
      inner: any Step.

    Returns:
      A Step; its metrics are the `Mean`s of the k updates added. Feed it `train.grouped(k)`.

    Raises:
      ValueError: if the leaves disagree about k.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> many = repeat(step(nk.gradient(task), optax.sgd(0.25)))
    >>> batches = {"x": jnp.ones((3, 8))}
    >>> state, metrics = many.update(many.init(jax.random.key(0), batches), batches)
    >>> state.params, state.count
    (Array(0.875, dtype=float32), Array(3, dtype=int32))
    """

    expect("repeat", inner, Step)

    def init(key, batches):
        _steps(batches)
        return inner.init(key, jax.tree.map(lambda x: x[0], batches))

    def update(state, batches):
        _steps(batches)
        state, metrics = jax.lax.scan(inner.update, state, batches)
        return state, jax.tree.map(lambda m: m.sum(0), metrics)

    return inner._replace(init=init, update=update)


def _steps(batches):
    sizes = {path: jnp.shape(x)[:1] for path, x in trees.paths(batches)}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(f"repeat: the leaves disagree about the leading axis of steps: {sizes}")


def seeded(inner: Step, seed) -> Step:
    """The same Step from another random start: its base key gets `seed` folded in.

    With `sweep`, seeds are one more hyperparameter: recipe = lambda h: seeded(..., h["seed"]).

    Args:
      inner: any Step.
      seed: [] an integer; may be traced.

    Returns:
      A Step.

    >>> task = nk.objective(lambda key, b: jax.random.normal(key), lambda w, b, key: w * b["x"])
    >>> a, b = (seeded(step(nk.gradient(task), optax.sgd(0.1)), s) for s in (1, 2))
    >>> batch = {"x": jnp.ones(1)}
    >>> a.init(jax.random.key(0), batch).params == b.init(jax.random.key(0), batch).params
    Array(False, dtype=bool)
    """
    expect("seeded", inner, Step)
    if isinstance(seed, int):
        seed = keys.seed(seed)

    def init(key, batch):
        return inner.init(keys.fold(key, "seed", seed), batch)

    return inner._replace(init=init)
