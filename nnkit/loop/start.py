"""From a Step to its first state: everything that can be known beforehand is checked here."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nnkit.core import means, trees
from nnkit.parallel import hosts
from nnkit.train import Step
from nnkit.train.nouns import expect

__all__ = ["init"]


def init(step: Step, key, batch):
    """The first state of a Step, made by one compiled program.

    Before anything is compiled the batch is looked at, and init and update are traced: a wrong
    shape, label or field raises here, within a second, with its name. On many processes each gives
    the same key and the same whole batch; that they do is checked.

    Args:
      step: any Step.
      key: [] a typed key: `jax.random.key(seed)`.
      batch: a mapping of arrays [b ...], the first batch of the data.

    Returns:
      A state whose buffers nothing else uses, so that it can be donated.

    Raises:
      ValueError: if the batch is empty, ragged, has NaN, or does not fit the model, or processes
        were given different ones.
      TypeError: if a field is not numeric, or the key is not a typed key.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> batch = {"x": jnp.ones(3)}
    >>> init(nk.step(nk.gradient(task), optax.sgd(0.5)), jax.random.key(0), batch).params
    Array(0., dtype=float32)
    """
    expect("init", step, Step)
    if not trees.is_key(key):
        raise TypeError(f"key is {key!r:.60}, expected a typed key: jax.random.key(seed)")
    inspect_batch(batch)
    state = jax.eval_shape(lambda key: step.init(key, batch), key)  # sees the values of the batch
    problem = trees.difference(traced(step, state, batch)[0], state)
    if problem:
        raise ValueError(f"update gives back another state than it takes: {problem}")
    if hosts.count() == 1:
        begin = step.init
        if isinstance(begin, jax.tree_util.Partial):  # a sweep: its grid is no part of the program
            return trees.unaliased(_started(begin, key, batch), key, batch, begin)
        return trees.unaliased(jax.jit(begin)(key, batch), key, batch)
    # with many processes, arrays of one of them cannot enter a program of all: numpy can
    kind = jax.random.key_impl(key)
    batch, data = jax.device_get((batch, jax.random.key_data(key)))
    hosts.agree({"key": data.tolist(), "batch": trees.digest(batch)}, "what init was given")
    make = jax.jit(lambda data, batch: step.init(jax.random.wrap_key_data(data, impl=kind), batch))
    with hosts.together():
        return trees.unaliased(make(data, batch))


@jax.jit
def _started(begin, key, batch):
    """The first state of a sweep; one compilation for every grid of the same shape."""
    return begin(key, batch)


def inspect_batch(batch) -> None:
    """Raise if a batch of host arrays [b ...] cannot be right, whatever the model."""
    if not isinstance(batch, Mapping) or not batch:
        pair = "; (train, test) is a pair: take one of them" if hasattr(batch, "stream") else ""
        raise TypeError(
            f"a batch is {type(batch).__name__}, expected a mapping of arrays [b ...] such as "
            f'{{"x": ..., "y": ...}}{pair}'
        )
    sizes = {}
    batch = jax.device_get(batch)  # said aloud: no implicit transfer
    for name, leaf in trees.paths(batch):
        x = np.asarray(leaf)
        if x.dtype.kind not in "biufcV":  # V: bfloat16 and its kin
            raise TypeError(f"batch[{name!r}] has dtype {x.dtype}, expected numbers: encode it")
        if not x.ndim:
            raise ValueError(
                f"batch[{name!r}] is a scalar, expected a leading axis [b ...]: np.full(b, value)"
            )
        sizes[name] = x.shape[0]
        if jax.numpy.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
            rows = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
            raise ValueError(
                f"batch[{name!r}] has {len(rows)} rows with NaN or infinity, the first is row "
                f"{rows[0]}; drop them, or fill them in"
            )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the fields of a batch differ in length: {sizes}; cut or complete one of them"
        )
    if not next(iter(sizes.values())):
        raise ValueError(f"the batch is empty: {sizes}; drop empty batches, they teach nothing")
    if "mask" in batch and not np.asarray(batch["mask"]).any():
        n = len(batch["mask"])
        raise ValueError(
            f"batch['mask'] is 0 for all {n} examples: all are masked out, nothing can be learnt "
            "from them; drop such batches"
        )


def compiled(step: Step):
    """`step.update`, compiled once, however often `fit` is called; donates the state.

    Sweeps by one recipe share their update, so that another grid compiles nothing.
    """
    return _compiled(step.update)


@functools.lru_cache(maxsize=64)
def _compiled(update):
    return jax.jit(update, donate_argnums=0)


def traced(step: Step, state, batch):
    """Shapes of (state, metrics) after an update; what is wrong with it raises here."""
    try:
        return compiled(step).eval_shape(state, batch)
    except Exception as error:
        error.add_note(
            "in the first update: is it the state of another step (make one by "
            "nk.init(step, key, batch)), or a batch unlike that of init?"
        )
        raise


def advance(step: Step, place):
    """(state, sums, batch) -> (state, sums + metrics), compiled once; donates both.

    Adding inside the program costs no dispatch. The sums stay where they were put (`place`), so
    that the second call finds the shardings of the first and compiles nothing.
    """
    return _advance(step.update, place)


@functools.lru_cache(maxsize=64)
def _advance(update, place):
    def move(state, sums, batch):
        state, metrics = update(state, batch)
        return state, means.add(sums, metrics)

    if place is None:
        return jax.jit(move, donate_argnums=(0, 1))
    return jax.jit(move, donate_argnums=(0, 1), out_shardings=(None, place))


def place_of_sums(state):
    """Where sums of metrics belong: whole on every device of the state; None for a single one."""
    for x in jax.tree.leaves(state):
        if isinstance(getattr(x, "sharding", None), NamedSharding):
            return NamedSharding(x.sharding.mesh, PartitionSpec())
    return None
