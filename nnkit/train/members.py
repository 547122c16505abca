"""Many runs as one Step: ensembles and sweeps."""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nnkit.core import checks, trees
from nnkit.train.nouns import expect
from nnkit.train.steps import Step

__all__ = ["ensemble", "in_turn", "product", "spread", "sweep", "unrolled"]


def unrolled(f: Callable) -> Callable:
    """As `jax.vmap(f)`, but one member after another inside one program.

    Faster than vmap where a batched operation is slow (a vmapped convolution is a grouped one:
    slower on CPU); compile time and program grow with the number of members.

    Args:
      f: a function of trees of arrays.

    Returns:
      The function of trees with a leading axis [n ...].

    >>> unrolled(lambda x: x * 2)(jnp.arange(3))
    Array([0, 2, 4], dtype=int32)
    """

    def each(*args):
        n, rows = len(jax.tree.leaves(args)[0]), trees.plain(args)
        members = [jax.tree.map(operator.itemgetter(i), rows) for i in range(n)]
        found = [f(*trees.keyed(one, args)) for one in members]
        stack = jax.tree.map(lambda *x: jnp.stack(x), *map(trees.plain, found))
        return trees.keyed(stack, found[0])

    return each


def in_turn(f: Callable) -> Callable:
    """As `jax.vmap(f)`, but a loop on the device (`jax.lax.map`): one member's memory at a time.

    Args:
      f: a function of trees of arrays.

    Returns:
      The function of trees with a leading axis [n ...].

    >>> in_turn(lambda x: x * 2)(jnp.arange(3))
    Array([0, 2, 4], dtype=int32)
    """
    return lambda *args: jax.lax.map(lambda xs: f(*xs), args)


def spread(mesh: Mesh, axis: str = "run", *, each: Callable = in_turn) -> Callable:
    """As `jax.vmap`, with the members divided over the devices of a mesh axis; no communication.

    With `in_turn` on each device a member is computed by the same program as alone, so the result
    is that of the single run to the last bit, on any number of devices.

    Args:
      mesh: from `nk.mesh`, such as mesh(run=8).
      axis: its axis that the members go over; must divide their number.
      each: how the members of one device are mapped: `in_turn`, `jax.vmap` or `unrolled`.

    Returns:
      A transformation to be given as `each=` to `sweep`, `ensemble` or `stacked`.

    Raises:
      ValueError: if the mesh has no such axis, or (when called) it does not divide the members.

    >>> spread(nk.mesh(run=4))(lambda x: x * 2)(jnp.arange(8)).tolist()
    [0, 2, 4, 6, 8, 10, 12, 14]
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"spread(axis={axis!r}): the mesh has the axes {mesh.axis_names}")

    def mapped(f):
        over = jax.shard_map(
            each(f),
            mesh=mesh,
            in_specs=PartitionSpec(axis),
            out_specs=PartitionSpec(axis),
            check_vma=False,
        )

        def every(*args):
            n, parts = len(jax.tree.leaves(args)[0]), mesh.shape[axis]
            if n % parts:
                raise ValueError(
                    f"spread: {n} members over {parts} devices: use a number of devices that "
                    f"divides {n}"
                )
            return over(*args)

        return every

    return mapped


def ensemble(inner: Step, n: int, *, each: Callable = jax.vmap) -> Step:
    """n members with seeds of their own, trained on the same batches by one program.

    Args:
      inner: any Step.
      n: number of members, >= 1.
      each: how a function is mapped over members: `jax.vmap`, `unrolled`, `in_turn` or
        `spread(mesh)`.

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
        raise ValueError(f"ensemble(n={n!r}): expected an integer >= 1")

    def init(key, batch):
        return each(lambda key: inner.init(key, batch))(jax.random.split(key, n))

    def update(state, batch):
        return each(lambda one: inner.update(one, batch))(state)

    return Step(init, update, jax.vmap(inner.weights))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Swept:
    """What `sweep` remembers: the hyperparameters [n ...] and the states [n ...]."""

    grid: Any
    inner: Any


def sweep(recipe: Callable[[Any], Step], grid, *, each: Callable = jax.vmap) -> Step:
    """One program for a whole grid: member i is recipe(grid[i]).

    Hyperparameters are data: they enter the compiled program as traced values, so another grid of
    the same size compiles nothing.

    Args:
      recipe: hyperparameters of one run (numbers [], traced) -> a Step.
      grid: a tree of arrays [n ...], such as {"learning_rate": jnp.geomspace(1e-5, 1e-1, 16)};
        `product` makes one from lists. A leaf called learning_rate must be > 0.
      each: how a function is mapped over members: `jax.vmap`, `unrolled`, `in_turn` or
        `spread(mesh)`. vmap rounds a batched product differently from a single one (1e-7 of the
        loss per step), which AdamW can amplify in weights; the others equal the single run.

    Returns:
      A Step whose state, weights and metrics have a leading axis [n]. Every member starts from the
      same key: vary seeds by `seeded(step, h["seed"])`. Evaluate it with `stacked`.

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

    def member(h):
        try:
            made = recipe(h)
        except KeyError as error:
            _name_grid(error, h)
            raise
        if not isinstance(made, Step):
            raise TypeError(f"the recipe gave {type(made).__name__}, expected a Step")
        return made

    def init(key, batch):
        own = jax.tree.map(lambda x: jnp.array(x, copy=True), grid)  # the caller keeps the grid
        return Swept(own, each(lambda h: member(h).init(jax.random.clone(key), batch))(own))

    def update(state, batch):
        inner, metrics = each(lambda h, one: member(h).update(one, batch))(state.grid, state.inner)
        return Swept(state.grid, inner), metrics

    def weights(state):
        # picks leaves out of the state, whatever `each` is: eagerly vmap compiles nothing for that
        return jax.vmap(lambda h, one: member(h).weights(one))(state.grid, state.inner)

    return Step(init, update, weights)


def _check_grid(grid):
    leaves = trees.paths(grid)
    if not leaves:
        raise ValueError("sweep: the grid is empty, expected a tree of arrays [n ...]")
    lists = jax.tree.map(_plain_list, grid, is_leaf=_plain_list)
    for path, plain in trees.paths(lists):
        if plain:
            name = path.rsplit("/", 1)[-1] or "name"
            raise TypeError(
                f"sweep: {f'grid[{path!r}]' if path else 'the grid'} is a list: use "
                f"{'jnp.array([...])' if path else '{name: jnp.array([...])}'} or "
                f"nk.product({name}=[...])"
            )
    n = np.shape(leaves[0][1])[:1]
    for path, x in leaves:
        if np.shape(x)[:1] != n or not n or not n[0]:
            raise ValueError(
                f"sweep: grid[{path!r}] has shape {np.shape(x)}, expected a leading axis "
                f"{f'of {n[0]} as in {leaves[0][0]!r}' if n and n[0] else 'of at least 1'}; "
                "nk.product makes every combination of lists"
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

    >>> product(learning_rate=[0.1, 0.2], seed=[0, 1])["seed"]
    Array([0, 1, 0, 1], dtype=int32)
    """
    arrays = {name: np.atleast_1d(np.asarray(x)) for name, x in lists.items()}
    for name, x in arrays.items():
        if not x.size:
            raise ValueError(f"product: {name} is empty, expected at least one value")
    full = np.meshgrid(*arrays.values(), indexing="ij")
    return {
        name: jnp.asarray(x.ravel(), jnp.int32 if x.dtype.kind in "iub" else jnp.float32)
        for name, x in zip(arrays, full)
    }
