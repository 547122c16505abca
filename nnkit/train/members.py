"""Many runs as one Step: ensembles and sweeps."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core import checks, trees
from nnkit.train import each as ways
from nnkit.train.nouns import expect
from nnkit.train.reads import reads
from nnkit.train.steps import Step

__all__ = ["Swept", "best", "ensemble", "member", "product", "sweep"]


def ensemble(inner: Step, n: int, *, each: Callable | None = None) -> Step:
    """n members with seeds of their own, trained on the same batches by one program.

    Args:
      inner: any Step.
      n: number of members, >= 1.
      each: how a function is mapped over members; None chooses, as in `sweep`.

    Returns:
      A Step whose state, weights and metrics have a leading axis [n]. Evaluate it with `stacked`.

    Raises:
      ValueError: if n < 1.

    >>> start = lambda key, batch: jax.random.normal(key)
    >>> task = nk.objective(start, lambda w, batch, key: (w - batch["x"]) ** 2)
    >>> five = ensemble(nk.step(nk.gradient(task), optax.sgd(0.1)), 5)
    >>> batch = {"x": jnp.ones(3)}
    >>> state, metrics = five.update(five.init(jax.random.key(0), batch), batch)
    >>> metrics["loss"].value.shape
    (5,)

    Lakshminarayanan et al., arXiv:1612.01474, algorithm 1.
    """
    expect("ensemble", inner, Step)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"ensemble(n={n!r}): expected an integer >= 1, such as n=5")
    way = _chooser(each, lambda _, one, batch: inner.update(one, batch))

    def init(key, batch):
        def start(key):
            return inner.init(key, batch)

        found = way((), jax.eval_shape(start, key), batch, n)
        return ways.over(each, found, start, jax.random.split(key, n))

    def update(state, batch):
        n = len(jax.tree.leaves(state)[0])
        found = way((), ways.member_of(state), batch, n)
        return ways.over(each, found, lambda one: inner.update(one, batch), state)

    return Step(init, update, jax.vmap(inner.weights))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Swept:
    """What `sweep` remembers: the hyperparameters [n ...] and the states [n ...].

    Attributes:
      grid: the hyperparameters, a tree of arrays [n ...]; `population` changes them on the way.
      inner: the states of the runs [n ...].

    >>> Swept({"learning_rate": jnp.ones(3)}, {}).grid["learning_rate"].shape
    (3,)
    """

    grid: Any
    inner: Any


def sweep(recipe: Callable[[Any], Step], grid, *, each: Callable | None = None) -> Step:
    """One program for a whole grid: member i is recipe(grid[i]).

    Hyperparameters are data: they enter the compiled program as traced values, so that neither a
    member nor another sweep by the same recipe over a grid of the same shape compiles anything.
    (A recipe that reads lists, dicts or arrays of numpy from outside is compiled anew each time,
    since they may have changed.)

    `each=None` chooses: on CPU, members with large convolutions are unrolled, up to 16 of them;
    otherwise vmap, on as many devices of this process as divide the members, unless `shard` or an
    outer sweep has the devices. `nk.train.chosen(step, batch)` says what was chosen, docs/sweeps.md
    how it was measured.

    Args:
      recipe: hyperparameters of one run (numbers [], traced) -> a Step.
      grid: a tree of arrays [n ...], such as {"learning_rate": jnp.geomspace(1e-5, 1e-1, 16)};
        `product` makes one from lists. A leaf called learning_rate must be > 0.
      each: how a function is mapped over members: `jax.vmap`, `unrolled`, `in_turn`,
        `chunks(size)`, `spread(mesh)`, or None. vmap rounds a batched product differently from a
        single one (1e-7 of the loss per step), which AdamW can amplify in weights; `unrolled`,
        `in_turn` and `spread` of them equal the single run.

    Returns:
      A Step whose state, weights and metrics have a leading axis [n]. Every member starts from the
      same key: vary seeds by `seeded(step, h["seed"])`. Evaluate it with `stacked`. A member that
      diverges does not touch the others.

    Raises:
      ValueError: if the leaves differ in length, are empty or not finite, or a rate is not > 0.
      TypeError: if the recipe gives no Step, or a leaf is a plain list.
      KeyError: if the recipe asks for a name that the grid does not have; says which it has.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> def recipe(h):
    ...     return nk.step(nk.gradient(task), optax.sgd(h["learning_rate"]))
    >>> runs = sweep(recipe, {"learning_rate": jnp.array([0.25, 0.5])})
    >>> batch = {"x": jnp.ones(3)}
    >>> state, metrics = runs.update(runs.init(jax.random.key(0), batch), batch)
    >>> runs.weights(state)[0]
    Array([0.5, 1. ], dtype=float32)
    """
    _check_grid(grid)
    seen = reads(recipe)
    if seen is None:
        start, update, weights = _functions(recipe, each)
        return Step(functools.partial(start, grid), update, weights)
    start, update, weights = _shared(_Recipe(recipe, seen), each)
    return Step(jax.tree_util.Partial(start, grid), update, weights)


class _Recipe:
    """A recipe that equals another one with the same code and the same surroundings."""

    def __init__(self, make: Callable, seen: tuple):
        self.make, self.seen = make, seen

    def __eq__(self, other) -> bool:
        return isinstance(other, _Recipe) and self.seen == other.seen

    def __hash__(self) -> int:
        return hash(self.seen)


@functools.lru_cache(maxsize=64)
def _shared(recipe: _Recipe, each):
    """The functions of `sweep`, the same ones for every grid: `jax.jit` knows them again."""
    return _functions(recipe.make, each)


def _functions(recipe: Callable, each):
    """(start(grid, key, batch), update, weights) of a sweep over any grid."""

    def made(h) -> Step:
        try:
            found = recipe(h)
        except KeyError as error:
            _name_grid(error, h)
            raise
        if not isinstance(found, Step):
            raise TypeError(
                f"the recipe gave {type(found).__name__}, expected a Step: nk.step(gradient, tx)"
            )
        return found

    way = _chooser(each, lambda h, one, batch: made(h).update(one, batch))

    def start(grid, key, batch):
        own = jax.tree.map(lambda x: jnp.array(x, copy=True), grid)  # the caller keeps the grid

        def begin(h):
            return made(h).init(jax.random.clone(key), batch)

        h = ways.member_of(own)
        found = way(h, jax.eval_shape(begin, h), batch, len(jax.tree.leaves(own)[0]))
        with ways.placed() as along:
            inner = ways.over(each, found, begin, own)
        return Swept(along(own), inner)

    def update(state, batch):
        n = len(jax.tree.leaves(state.grid)[0])
        h, one = ways.member_of((state.grid, state.inner))
        found = way(h, one, batch, n)
        move = lambda h, one: made(h).update(one, batch)
        with ways.placed() as along:
            inner, metrics = ways.over(each, found, move, state.grid, state.inner)
        return Swept(along(state.grid), inner), metrics

    def weights(state):
        # picks leaves out of the state, whatever `each` is: eagerly vmap compiles nothing for that
        return jax.vmap(lambda h, one: made(h).weights(one))(state.grid, state.inner)

    return start, update, weights


def _chooser(each, update: Callable) -> Callable:
    """(h, one, batch, n) -> the `Way` for n members; None if `each` is given. Remembers shapes."""
    known: dict = {}

    def way(h, one, batch, n: int):
        if each is not None:
            return None
        shapes = jax.tree.map(lambda x: (np.shape(x), str(x.dtype)), (h, one, batch))
        leaves, form = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple) and not x)
        mark = (n, ways.free(n), tuple(map(str, leaves)), form)
        if mark not in known:
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), batch)

            def program():
                with ways.devices_taken():
                    return jax.make_jaxpr(update)(h, one, abstract)

            known[mark] = ways.choose(n, program)
        return known[mark]

    return way


class Best(NamedTuple):
    """The best member of a sweep or an ensemble.

    Attributes:
      index: which one it is.
      params: its parameters.
      carry: its carry.

    >>> Best(2, {}, {}).index
    2
    """

    index: int
    params: Any
    carry: Any


def best(step: Step, state, scores, *, mode: str = "min") -> Best:
    """The weights of the member with the best score, as a single run has them.

    Args:
      step: a Step of members.
      state: its state.
      scores: [n] one number per member, such as a column of an evaluation: row["accuracy"].
      mode: "min" or "max". What is not finite never wins.

    Returns:
      (index, params, carry).

    Raises:
      ValueError: if no score is finite, there are not as many as members, or mode is off.
      TypeError: if scores is a whole row.

    >>> start = lambda key, batch: jax.random.normal(key)
    >>> task = nk.objective(start, lambda w, batch, key: (w - batch["x"]) ** 2)
    >>> three = nk.ensemble(nk.step(nk.gradient(task), optax.sgd(0.1)), 3)
    >>> state = three.init(jax.random.key(0), {"x": jnp.ones(3)})
    >>> best(three, state, [0.5, jnp.nan, 0.25]).index
    2
    """
    expect("best", step, Step)
    if mode not in ("min", "max"):
        raise ValueError(f"best(mode={mode!r}): expected 'min' or 'max'")
    if isinstance(scores, Mapping):
        raise TypeError(
            f"best: scores is a row with {sorted(scores)}, expected one of its columns [n], such "
            'as row["loss"]'
        )
    x = np.asarray(scores, np.float64)
    weights = step.weights(state)
    n = len(jax.tree.leaves(weights)[0])
    if x.shape != (n,):
        raise ValueError(f"best: scores have shape {x.shape}, expected ({n},), one per member")
    if not np.isfinite(x).any():
        raise ValueError(f"best: no score of {n} is finite: every member diverged")
    worst = np.inf if mode == "min" else -np.inf
    ranked = np.where(np.isfinite(x), x, worst)
    index = int(ranked.argmin() if mode == "min" else ranked.argmax())
    return Best(index, *member(weights, index))


def member(tree, index: int):
    """One member of a tree [n ...]: of weights, of metrics, or the state of a single run.

    A state of `sweep` gives the state of recipe(grid[index]): saved, it is the checkpoint of that
    run alone, which goes on, or is evaluated, without the others.

    Args:
      tree: a tree of arrays [n ...]; a `Swept` at its top is opened, also inside of the state of
        `halving` or `population`.
      index: which member, 0 to n - 1.

    Returns:
      The tree of arrays [...], copied.

    Raises:
      IndexError: if there is no such member.
      ValueError: if a leaf has no axis of members.

    >>> member({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, 1)
    {'w': Array([3., 4.], dtype=float32)}
    """
    while getattr(tree, "OF_MEMBERS", False):  # what halving and population remember of all members
        tree = tree.inner
    n = count_of("member", tree)
    if not 0 <= index < n:
        raise IndexError(f"member {index} of {n}: expected 0 to {n - 1}")
    tree = tree.inner if isinstance(tree, Swept) else tree
    return trees.keyed(jax.tree.map(lambda x: jnp.copy(x[index]), trees.plain(tree)), tree)


def count_of(who: str, tree) -> int:
    """The number of members n of a tree whose every leaf is [n ...].

    >>> count_of("best", {"w": jnp.ones((3, 2)), "b": jnp.ones(3)})
    3
    """
    sizes = [(path, np.shape(x)) for path, x in trees.paths(tree)]
    if not sizes:
        raise ValueError(f"{who}: the tree is empty, expected arrays with an axis of members")
    n = sizes[0][1][:1]
    for path, shape in sizes:
        if not shape or shape[:1] != n:
            raise ValueError(
                f"{who}: {path!r} has shape {shape}, expected a leading axis of members"
                f"{f' of {n[0]} as in {sizes[0][0]!r}' if n else ''}, which nk.sweep and "
                "nk.ensemble give: put the technique round them"
            )
    return n[0]


def _check_grid(grid):
    leaves = trees.paths(grid)
    if not leaves:
        raise ValueError(
            "sweep: the grid is empty, expected a tree of arrays [n ...], such as "
            "nk.product(seed=[0, 1])"
        )
    lists = jax.tree.map(_plain_list, grid, is_leaf=_plain_list)
    for path, plain in trees.paths(lists):
        if plain:
            name = path.rsplit("/", 1)[-1] or "name"
            raise TypeError(
                f"sweep: {f'grid[{path!r}]' if path else 'the grid'} is a list, expected an array: "
                f"use {'jnp.array([...])' if path else '{name: jnp.array([...])}'} or "
                f"nk.product({name}=[...])"
            )
    n = np.shape(leaves[0][1])[:1]
    for path, x in leaves:
        if np.shape(x)[:1] != n or not n or not n[0]:
            raise ValueError(
                f"sweep: grid[{path!r}] has shape {np.shape(x)}, expected a leading axis "
                f"{f'of {n[0]} as in {leaves[0][0]!r}' if n and n[0] else 'of at least 1'}; "
                "give arrays of one length, or lists to nk.product(...)"
            )
        if path.rsplit("/", 1)[-1] == "learning_rate":
            checks.positive(**{path: x})
        known = checks.concrete(x)
        if known is not None and known.dtype.kind == "f" and not np.isfinite(known).all():
            raise ValueError(f"sweep: grid[{path!r}] holds {known[~np.isfinite(known)][0]}")


def _plain_list(x) -> bool:
    return type(x) in (list, tuple) and all(np.ndim(one) == 0 for one in x)


def _name_grid(error: KeyError, h) -> None:
    """Add the names of the grid to a KeyError that may have come from h[name]."""
    name = error.args[0] if error.args else None
    if not isinstance(h, Mapping) or name in h:
        return
    near = difflib.get_close_matches(str(name), [str(k) for k in h], n=1)
    hint = f"; perhaps you meant h[{near[0]!r}]" if near else ""
    error.add_note(f"the recipe of a sweep asks for {name!r}, the grid has {list(h)}{hint}")


def product(**lists) -> dict[str, jax.Array]:
    """Every combination of lists, as the grid of a sweep; the last list varies fastest.

    Args:
      **lists: [k] numbers by name.

    Returns:
      {name: [n]} with n the product of the lengths; integers stay int32 and floats float32.

    Raises:
      ValueError: if a list is empty.
      TypeError: if a value is no number.

    >>> product(learning_rate=[0.1, 0.2], seed=[0, 1])["seed"]
    Array([0, 1, 0, 1], dtype=int32)
    """
    arrays = {name: np.atleast_1d(np.asarray(x)) for name, x in lists.items()}
    for name, x in arrays.items():
        if not x.size:
            raise ValueError(f"product: {name} is empty, expected at least one value")
        if x.dtype.kind not in "biuf":
            raise TypeError(f"product: {name} is {x.tolist()}, expected numbers; words are recipes")
    full = np.meshgrid(*arrays.values(), indexing="ij")
    return {
        name: jnp.asarray(x.ravel(), jnp.int32 if x.dtype.kind in "iub" else jnp.float32)
        for name, x in zip(arrays, full)
    }
