"""From a Step to its first state: everything that can be known beforehand is checked here."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nnkit.core import means, platforms, trees
from nnkit.loop.retraces import watched
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
      RuntimeError: if JAX_PLATFORMS asks for an accelerator that is not here.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> batch = {"x": jnp.ones(3)}
    >>> init(nk.step(nk.gradient(task), optax.sgd(0.5)), jax.random.key(0), batch).params
    Array(0., dtype=float32)
    """
    expect("init", step, Step)
    platforms.require()
    if not trees.is_key(key):
        raise TypeError(f"key is {key!r:.60}, expected a typed key: jax.random.key(seed)")
    inspect_batch(batch)
    state = jax.eval_shape(lambda key: step.init(key, batch), key)  # sees the values of the batch
    problem = trees.difference(traced(step, state, batch)[0], state)
    if problem:
        raise ValueError(
            f"update gives back another state than it takes: {problem}; keep its shapes"
        )
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
                f"{rows[0]}, expected finite numbers; drop them, or fill them in"
            )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the fields of a batch differ in length: {sizes}, expected one; cut or complete one "
            "of them"
        )
    if not next(iter(sizes.values())):
        raise ValueError(
            f"the batch is empty: {sizes}, expected at least 1 example; drop such batches"
        )
    if "mask" in batch and not np.asarray(batch["mask"]).any():
        n = len(batch["mask"])
        raise ValueError(
            f"batch['mask'] is 0 for all {n} examples: all are masked out, nothing can be learnt "
            "from them, expected a 1 somewhere; drop such batches"
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
        if problem := _stranger(step, state, batch):
            raise ValueError(
                f"the state is of another step: {problem}; make one by nk.init(step, key, batch)"
            ) from error
        error.add_note(
            "in the first update: is it the state of another step (make one by "
            "nk.init(step, key, batch)), or a batch unlike that of init?"
        )
        raise


def _stranger(step: Step, state, batch) -> str:
    """How a state differs from what `init` of the step would give; "" if it does not."""
    try:
        wanted = jax.eval_shape(step.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    except Exception:  # then it is the batch, or the step
        return ""
    return trees.difference(state, wanted)


def advance(step: Step, place):
    """(state, sums, batch) -> (state, sums + metrics), compiled once; donates both.

    Adding inside the program costs no dispatch. The sums stay where they were put (`place`), so
    that the second call finds the shardings of the first and compiles nothing.
    """
    found = _advance(step.update, place)
    found.begin()
    return found


@functools.lru_cache(maxsize=64)
def _advance(update, place):
    def move(state, sums, batch):
        state, metrics = update(state, batch)
        return state, means.add(sums, metrics)

    placed: dict = {} if place is None else {"out_shardings": (None, place)}
    return watched(move, who="the update of fit", donate_argnums=(0, 1), **placed)


def place_of_sums(state):
    """Where sums of metrics belong: whole on every device of the state; None for a single one."""
    for x in jax.tree.leaves(state):
        if isinstance(getattr(x, "sharding", None), NamedSharding):
            return NamedSharding(x.sharding.mesh, PartitionSpec())
    return None
