"""Guards: what becomes of an update that is not finite, or that a device computed wrongly."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nnkit.core import trees
from nnkit.core.means import scalar
from nnkit.core.ranges import ranges
from nnkit.train.nouns import expect
from nnkit.train.steps import Step

__all__ = ["replayed", "rollback", "skip_nonfinite"]


def skip_nonfinite(inner: Step) -> Step:
    """An update that would leave a NaN or infinity anywhere in the state does not happen.

    The whole old state is kept, batch statistics, moments, averages and counters included, as if
    the batch had not been seen; so is every member of an ensemble or sweep *inside* this; wrap the
    recipe's step to skip each member by itself. Identity as long as all is finite. A number that
    was infinite before and is the same after is no harm. A NaN that is in the state already cannot
    be skipped: the update goes through, so that `fit` raises; `rollback` would cure it.

    Args:
      inner: any Step.

    Returns:
      A Step; logs "skipped", the share of updates skipped. The other metrics of a skipped update
      have weight 0, so that means over many updates stay finite.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> careful = skip_nonfinite(nk.step(nk.gradient(task), optax.sgd(0.5)))
    >>> state = careful.init(jax.random.key(0), {"x": jnp.ones(1)})
    >>> state, metrics = careful.update(state, {"x": jnp.array([jnp.nan])})
    >>> state.params, state.count, metrics["skipped"].value
    (Array(0., dtype=float32), Array(0, dtype=int32), Array(1., dtype=float32))
    """
    expect("skip_nonfinite", inner, Step)

    def update(state, batch):
        new, metrics = inner.update(state, batch)
        fine = _fine(new, metrics, state) | _spoilt(state)
        kept = _either(fine, trees.plain(new), trees.plain(state))
        metrics = _weigh(metrics, ~fine, 0)
        return trees.keyed(kept, state), {**metrics, "skipped": scalar(~fine)}

    return inner._replace(update=update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolledBack:
    """What `rollback` remembers.

    Attributes:
      inner: the state inside.
      good: a copy of it, at most `every` updates old; typed keys by their data.
      since: [] int32, updates since that copy.
      back: [] int32, how often it was gone back to.
    """

    inner: Any
    good: Any
    since: jax.Array
    back: jax.Array


def rollback(inner: Step, *, every: int = 100, times: int = 3) -> Step:
    """An update that would leave a NaN or infinity anywhere goes back to the last good state.

    A copy of the whole state is taken at the start and after each `every` updates since the last
    copy; all of them were finite. Going back restores it bit by bit, counters and random streams
    included; the data go on. After `times` times the next bad update goes through, with a loss of
    NaN, so that `fit` raises. Identity as long as all is finite. It costs the memory of a second
    state. `skip_nonfinite` loses one update where this loses up to `every`, but only this cures a
    state that is spoilt already.

    Args:
      inner: any Step.
      every: updates between copies, >= 1.
      times: how often it may go back in all, >= 0; 0 goes never back.

    Returns:
      A Step; logs "rolled_back", the share of updates that went back. Their other metrics have
      weight 0.

    Raises:
      ValueError: if every < 1 or times < 0.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> careful = rollback(nk.step(nk.gradient(task), optax.sgd(0.5)), every=2)
    >>> state = careful.init(jax.random.key(0), {"x": jnp.ones(1)})
    >>> for x in (1.0, 2.0, 3.0, jnp.nan):
    ...     state, metrics = careful.update(state, {"x": jnp.array([x])})
    >>> state.inner.params, state.inner.count, metrics["rolled_back"].value
    (Array(2., dtype=float32), Array(2, dtype=int32), Array(1., dtype=float32))
    """
    expect("rollback", inner, Step)
    _whole("rollback", "every", every, 1)
    _whole("rollback", "times", times, 0)

    def init(key, batch):
        state = inner.init(key, batch)
        zero = jnp.zeros((), jnp.int32)
        return RolledBack(state, jax.tree.map(jnp.copy, trees.plain(state)), zero, zero)

    def update(state, batch):
        new, metrics = inner.update(state.inner, batch)
        fine = _fine(new, metrics, state.inner)
        back = ~fine & (state.back < times)
        found = trees.plain(new)
        now = _either(back, state.good, found)
        since = jnp.where(fine, state.since + 1, jnp.zeros_like(state.since))
        due = since >= every
        metrics = _weigh(_weigh(metrics, back, 0), ~fine & ~back, jnp.nan)
        after = RolledBack(
            trees.keyed(now, state.inner),
            _either(due, found, state.good),
            jnp.where(due, jnp.zeros_like(since), since),
            state.back + back.astype(jnp.int32),
        )
        return after, {**metrics, "rolled_back": scalar(back)}

    return Step(init, update, lambda state: inner.weights(state.inner))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replayed:
    """What `replayed` remembers: the state inside, and the number of updates done."""

    inner: Any
    count: jax.Array


def replayed(inner: Step, *, every: int | None) -> Step:
    """Each `every`-th update is computed twice, and the bits of both results are compared.

    A device that computes wrongly, or a program that is not deterministic, gives two results from
    the same state, batch and key; nothing else notices, and `fit` raises. It costs 1 / every of the
    time, and the memory of a second result. Both results come from one piece of compiled program,
    in a loop of one or two rounds that the compiler cannot take apart. every=None is off: the very
    same Step.

    Args:
      inner: any Step.
      every: updates between replays, >= 1: 1 replays all of them; None is off.

    Returns:
      A Step; logs "replay_differs", the share of updates whose replay gave other bits, in the state
      [...] or in a metric.

    Raises:
      ValueError: if every < 1.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> checked = replayed(nk.step(nk.gradient(task), optax.sgd(0.5)), every=1)
    >>> batch = {"x": jnp.ones(2)}
    >>> state, metrics = checked.update(checked.init(jax.random.key(0), batch), batch)
    >>> state.inner.params, metrics["replay_differs"].value
    (Array(1., dtype=float32), Array(0., dtype=float32))
    """
    expect("replayed", inner, Step)
    if every is None:
        return inner
    _whole("replayed", "every", every, 1)

    def update(state, batch):
        given = trees.plain((state.inner, batch))  # a typed key may not enter a loop from outside

        def once(i):
            # tied to the round: the second cannot be taken for the first, nor both moved out
            mine, _ = jax.lax.optimization_barrier((given, i))
            return trees.plain(inner.update(*trees.keyed(mine, (state.inner, batch))))

        def round_(held):
            i, last, differs = held
            now = once(i)
            return i + 1, now, differs | ((i > 0) & _differ(now, last))

        shapes = jax.eval_shape(once, jnp.int32(0))
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        rounds = jnp.where((state.count + 1) % every == 0, jnp.int32(2), jnp.int32(1))
        start = (jnp.int32(0), empty, jnp.zeros((), bool))
        _, (new, metrics), differs = jax.lax.while_loop(lambda h: h[0] < rounds, round_, start)
        after = Replayed(trees.keyed(new, state.inner), state.count + 1)
        return after, {**metrics, "replay_differs": scalar(differs)}

    def init(key, batch):
        return Replayed(inner.init(key, batch), jnp.zeros((), jnp.int32))

    return Step(init, update, lambda state: inner.weights(state.inner))


def _whole(who: str, name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        off = ", or None, which is off" if who == "replayed" else ""
        raise ValueError(f"{who}({name}={value!r}): expected an integer >= {least}{off}")


def _inexact(tree) -> list:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _fine(new, metrics, old):
    """[] bool: no number in the state became NaN or infinite, and no metric is."""
    pairs = zip(_inexact(new), _inexact(old))
    found = [(jnp.isfinite(a) | (a == b)).all() for a, b in pairs]
    found += [jnp.isfinite(x).all() for x in _inexact(metrics)]
    return jnp.stack([jnp.array(True), *found]).all()


def _spoilt(state):
    """[] bool: there is a NaN in the state."""
    found = [jnp.isnan(x).any() for x in _inexact(state)]
    return jnp.stack([jnp.array(False), *found]).any()


def _either(flag, a, b):
    """`a` where the flag [] is true, else `b`: trees of plain arrays [...]."""
    return jax.tree.map(lambda x, y: jnp.where(flag, x, y), a, b)


def _weigh(metrics, flag, value):
    """The metrics, with `value` in place of totals and weights if the flag [] is true."""
    put = lambda m: jnp.where(flag, jnp.asarray(value).astype(m.dtype), m)
    counters = ranges(metrics)  # why an update was left out
    return {n: m if n in counters else jax.tree.map(put, m) for n, m in metrics.items()}


def _differ(a, b):
    """[] bool: is there a bit in which two trees of plain arrays [...] differ?"""
    found = [(x != y).any() for x, y in zip(*(map(_bits, jax.tree.leaves(t)) for t in (a, b)))]
    return jnp.stack([jnp.array(False), *found]).any()


def _bits(x):
    """The bits of an array [...] as integers: NaN equals itself, and 0 is not -0."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, f"uint{jnp.finfo(x.dtype).bits}")
