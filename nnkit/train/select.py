"""Which members go on: successive halving and population based training, Step -> Step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core import keys, trees
from nnkit.core.means import Mean
from nnkit.train.each import devices_taken, free, placed
from nnkit.train.members import Swept, count_of
from nnkit.train.nouns import expect
from nnkit.train.steps import Step

__all__ = ["halving", "population"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halved:
    """What `halving` remembers.

    Attributes:
      inner: the states of all members [n ...]; those that stopped stay as they were.
      order: [n] int32, members by rank: those in the running first, the best of them first.
      score: a `Mean` [n] of the metric since the last cut.
      count: [] int32, updates done.
    """

    OF_MEMBERS = True  # `member` looks into inner
    inner: Any
    order: jax.Array
    score: Mean
    count: jax.Array


def halving(
    inner: Step, *, every: int, keep: float = 0.5, metric: str = "loss", mode: str = "min"
) -> Step:
    """Successive halving: after each rung only the best members go on, and the others cost nothing.

    n_0 = n, n_{k+1} = floor(keep n_k), at least 1; rung k lasts floor(every n / n_k) updates, so
    that every rung costs the same. A rung is ranked by the mean of the metric over its updates;
    what is not finite ranks last. The program has one branch for each rung, which computes n_k
    members. keep = 1 is the identity, and so is a run that ends before the first cut.

    Args:
      inner: a Step of members: `sweep` or `ensemble`, or one wrapped round them.
      every: updates of the first rung.
      keep: share that goes on, in (0, 1].
      metric: of the metrics of the update.
      mode: "min" or "max": what is good.

    Returns:
      A Step. Members that stopped keep their state. Their metrics have weight 0, so that rows show
      NaN for them; "alive" [n] is 1 for those in the running.

    Raises:
      ValueError: if a number is off, or the state has no axis of members.
      KeyError: if there is no such metric.

    >>> start = lambda key, batch: jax.random.normal(key)
    >>> task = nk.objective(start, lambda w, batch, key: (w - batch["x"]) ** 2)
    >>> four = halving(nk.ensemble(nk.step(nk.gradient(task), optax.sgd(0.1)), 4), every=1)
    >>> batch = {"x": jnp.ones(3)}
    >>> state = four.init(jax.random.key(0), batch)
    >>> for _ in range(2): state, metrics = four.update(state, batch)
    >>> int(metrics["alive"].total.sum())
    2

    Jamieson & Talwalkar, arXiv:1502.07943, figure 3.
    """
    expect("halving", inner, Step)
    _whole("halving", every=every)
    _mode("halving", mode)
    if not 0 < keep <= 1:
        raise ValueError(f"halving(keep={keep}): expected a share in (0, 1]; 1/2 halves, 1 is off")

    def init(key, batch):
        with placed() as along:
            state = inner.init(key, batch)
        n = count_of("halving", state)
        order = jnp.arange(n, dtype=jnp.int32)
        return Halved(state, along(order), along(_zero(n)), jnp.zeros((), jnp.int32))

    def update(state, batch):
        n = count_of("halving", state.inner)
        sizes, ends = rungs(n, every, keep)
        rung = sum(((state.count >= end).astype(jnp.int32) for end in ends), jnp.int32(0))
        parts = free(n)
        branches = [functools.partial(_some, inner, n, size, parts) for size in sizes]
        with placed() as along:
            if len(branches) == 1:
                new, metrics, alive = branches[0](state.inner, state.order, batch)
            else:
                found = jax.lax.switch(rung, branches, state.inner, state.order, batch)
                new, metrics, alive = found
        score = _add(state.score, _metric("halving", metrics, metric))
        count = state.count + 1
        order = state.order
        if ends:
            cut = functools.reduce(jnp.logical_or, [count == end for end in ends])
            order = jnp.where(cut, _ranked(score, order, alive, mode), order)
            score = jax.tree.map(lambda x: jnp.where(cut, jnp.zeros_like(x), x), score)
        shown = {**metrics, "alive": Mean(alive, jnp.ones_like(alive))}
        return Halved(new, along(order), along(score), count), shown

    return Step(init, update, lambda state: inner.weights(state.inner))


def rungs(n: int, every: int, keep: float) -> tuple[list[int], list[int]]:
    """(members of each rung, the update after which each rung but the last ends).

    >>> rungs(8, 10, 0.5)
    ([8, 4, 2, 1], [10, 30, 70])
    """
    sizes, ends = [n], []
    while keep < 1 and sizes[-1] > 1:
        ends.append((ends[-1] if ends else 0) + every * n // sizes[-1])
        sizes.append(max(1, math.floor(sizes[-1] * keep + 1e-9)))
    return sizes, ends


def _some(inner: Step, n: int, size: int, parts: int, state, order, batch):
    """(state, metrics [n ...], alive [n]): the first `size` of the order updated, others as is."""
    if size == n:
        new, metrics = inner.update(state, batch)
        return new, metrics, jnp.ones(n, jnp.float32)
    chosen, rows = jnp.sort(order[:size]), trees.plain(state)
    few = trees.keyed(jax.tree.map(lambda x: x[chosen], rows), state)
    with devices_taken(parts):  # the branches of one program share its devices
        new, metrics = inner.update(few, batch)
    put = lambda x, y: x.at[chosen].set(y)
    whole = trees.keyed(jax.tree.map(put, rows, trees.plain(new)), state)
    wide = lambda y: put(jnp.zeros((n, *y.shape[1:]), y.dtype), y)
    return whole, jax.tree.map(wide, metrics), wide(jnp.ones(size, jnp.float32))


def _ranked(score: Mean, order, alive, mode: str):
    """Members by rank [n]: the living by score, then those that stopped, in their old order."""
    n = len(order)
    place = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    stopped = (alive == 0).astype(jnp.int32)
    key = jnp.where(alive > 0, _cost(score, mode), place.astype(jnp.float32))
    return jnp.lexsort((jnp.arange(n), key, stopped)).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Population:
    """What `population` remembers.

    Attributes:
      inner: the states of the members [n ...].
      key: [] the base key; never advanced.
      score: a `Mean` [n] of the metric since the last selection.
      count: [] int32, updates done.
    """

    OF_MEMBERS = True  # `member` looks into inner
    inner: Any
    key: jax.Array
    score: Mean
    count: jax.Array


def population(
    inner: Step,
    *,
    every: int,
    perturb: Mapping[str, Any],
    share: float = 0.2,
    metric: str = "loss",
    mode: str = "min",
) -> Step:
    """Population based training: the worst members go on from the best, with other settings.

    After each `every` updates the members are ranked by the mean of the metric since the last
    time; what is not finite ranks last. Each of the worst k = floor(share n) becomes a copy, state
    and hyperparameters, of one drawn from the best k; then each hyperparameter named in `perturb`
    is multiplied by one of its factors, drawn. share = 0 is the identity.

    Args:
      inner: a Step of members, such as a `sweep`.
      every: updates between selections.
      perturb: {name in the grid: factors}, such as {"learning_rate": (0.8, 1.2)}; or a function
        (key, values [k]) -> values [k]. Nothing keeps a value in bounds: sweep 1 - momentum, say,
        or give a function.
      share: of the members, in [0, 1/2].
      metric: of the metrics of the update.
      mode: "min" or "max": what is good.

    Returns:
      A Step. What is perturbed is logged as "grid/name" [n]. A copy has the random stream (dropout)
      of the member that it is a copy of.

    Raises:
      ValueError: if a number is off, or the state has no axis of members, or no single grid.
      KeyError: if there is no such metric, or no such name in the grid.
      TypeError: if `perturb` is no mapping, or integers are to be perturbed by factors.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> recipe = lambda h: nk.step(nk.gradient(task), optax.sgd(h["learning_rate"]))
    >>> runs = nk.sweep(recipe, nk.product(learning_rate=[1e-4, 0.1]))
    >>> step = population(runs, every=2, perturb={"learning_rate": (0.8, 1.2)}, share=0.5)
    >>> batch = {"x": jnp.ones(3)}
    >>> state = step.init(jax.random.key(0), batch)
    >>> for _ in range(2): state, metrics = step.update(state, batch)
    >>> bool(state.inner.grid["learning_rate"][0] > 0.05)
    True

    Jaderberg et al., arXiv:1711.09846, algorithm 1 (truncation selection, perturb).
    """
    expect("population", inner, Step)
    _whole("population", every=every)
    _mode("population", mode)
    if not 0 <= share <= 0.5:
        raise ValueError(f"population(share={share}): expected 0 (off) to 1/2; 0.2 in the paper")
    _factors(perturb)

    def init(key, batch):
        own = keys.fold(jax.random.clone(key), "population")
        with placed() as along:
            state = inner.init(key, batch)
        _perturbed(state, perturb, None, None)
        n = count_of("population", state)
        return Population(state, own, along(_zero(n)), jnp.zeros((), jnp.int32))

    def update(state, batch):
        with placed() as along:
            new, metrics = inner.update(state.inner, batch)
        n = count_of("population", new)
        score = _add(state.score, _metric("population", metrics, metric))
        count, few = state.count + 1, math.floor(share * n + 1e-9)
        due = count % every == 0
        if few:
            key = keys.fold(state.key, count)
            renew = functools.partial(_renewed, few=few, mode=mode, perturb=perturb, like=new)
            rows = jax.lax.cond(
                due, renew, lambda rows, score, key: rows, trees.plain(new), score, key
            )
            new = trees.keyed(rows, new)
        score = jax.tree.map(lambda x: jnp.where(due, jnp.zeros_like(x), x), score)
        shown = {**metrics, **_shown(new, perturb)}
        return Population(new, state.key, along(score), count), shown

    return Step(init, update, lambda state: inner.weights(state.inner))


def _renewed(rows, score: Mean, key, *, few: int, mode: str, perturb, like):
    """The rows [n ...] with the worst replaced by copies of the best, then perturbed."""
    n = len(score.weight)
    order = jnp.argsort(_cost(score, mode), stable=True)
    picked = jax.random.randint(keys.fold(key, "source"), (few,), 0, few)
    source = jnp.arange(n).at[order[n - few :]].set(order[picked])
    copied = jax.tree.map(lambda x: x[source], rows)
    changed = _perturbed(
        trees.keyed(copied, like), perturb, keys.fold(key, "perturb"), order[-few:]
    )
    return trees.plain(changed)


def _perturbed(state, perturb: Mapping[str, Any], key, which):
    """The state with the named leaves of its grid changed for the members `which` [k]."""
    grids = [x.grid for x in _swept(state)]
    if not perturb:
        return state
    if len(grids) != 1:
        raise ValueError(
            f"population: the state has {len(grids)} grids, expected that of one nk.sweep to "
            f"perturb {next(iter(perturb))!r} in; perturb={{}} copies alone"
        )
    known = dict(trees.paths(grids[0]))
    for name, way in perturb.items():
        if name not in known:
            raise KeyError(f"population: perturb names {name!r}, the grid has {list(known)}")
        if not callable(way) and not jnp.issubdtype(known[name].dtype, jnp.floating):
            raise TypeError(
                f"population: {name!r} is {trees.describe(known[name])}, and factors are for "
                "floats: give a function (key, values) -> values"
            )
    if key is None:
        return state

    def change(path, x):
        way = perturb.get(trees.path_name(path))
        if way is None:
            return x
        own = keys.fold(key, trees.path_name(path))
        if callable(way):
            return x.at[which].set(way(own, x[which]))
        drawn = jax.random.choice(own, jnp.asarray(way, x.dtype), which.shape)
        return x.at[which].mul(drawn.reshape(-1, *(1,) * (x.ndim - 1)))

    def open_up(x):
        grid = jax.tree_util.tree_map_with_path(change, x.grid) if isinstance(x, Swept) else None
        return dataclasses.replace(x, grid=grid) if isinstance(x, Swept) else x

    return jax.tree.map(open_up, state, is_leaf=lambda x: isinstance(x, Swept))


def _factors(perturb) -> None:
    """Raise if what is given to perturb is neither factors nor a function."""
    like = "{'learning_rate': (0.8, 1.2)}"
    if not isinstance(perturb, Mapping):
        raise TypeError(f"population(perturb={perturb!r:.60}): expected {{name: factors}}: {like}")
    for name, way in perturb.items():
        try:
            x = np.ones(1) if callable(way) else np.asarray(way, np.float64)
        except (TypeError, ValueError):
            x = np.zeros(1)
        if x.ndim != 1 or not x.size or not ((x > 0) & np.isfinite(x)).all():
            raise ValueError(
                f"population: the factors of {name!r} are {way!r:.60}, expected several finite "
                f"numbers > 0 to draw from, such as {like}, or a function (key, values) -> values"
            )


def _swept(state) -> list[Swept]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Swept))
    return [x for x in leaves if isinstance(x, Swept)]


def _shown(state, perturb) -> dict[str, Mean]:
    """What is perturbed, as metrics [n]."""
    known = {path: x for one in _swept(state) for path, x in trees.paths(one.grid)}
    wide = lambda x: jnp.asarray(x).astype(jnp.float32)
    return {f"grid/{p}": Mean(wide(known[p]), jnp.ones_like(wide(known[p]))) for p in perturb}


def _cost(score: Mean, mode: str):
    """[n] float32: the mean, or its negative, and infinity where it is not finite."""
    value = score.value.astype(jnp.float32) * (1.0 if mode == "min" else -1.0)
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _metric(who: str, metrics: Mapping[str, Mean], name: str) -> Mean:
    if name not in metrics:
        raise KeyError(f"{who}: the update has the metrics {sorted(metrics)}, not {name!r}")
    found = metrics[name]
    if jnp.ndim(found.total) != 1 or jnp.shape(found.total) != jnp.shape(found.weight):
        raise ValueError(
            f"{who}: the metric {name!r} has shape {jnp.shape(found.total)}, expected one number "
            "per member [n]"
        )
    return found


def _zero(n: int) -> Mean:
    return Mean(jnp.zeros(n, jnp.float32), jnp.zeros(n, jnp.float32))


def _add(score: Mean, more: Mean) -> Mean:
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), more)
    return score + wide


def _whole(who: str, **fields: Any) -> None:
    for name, x in fields.items():
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            raise ValueError(f"{who}({name}={x!r}): expected an integer >= 1, a number of updates")


def _mode(who: str, mode: str) -> None:
    if mode not in ("min", "max"):
        raise ValueError(f"{who}(mode={mode!r}): expected 'min' or 'max'")
