"""The same Step on many devices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnkit.core import trees
from nnkit.parallel import rules
from nnkit.parallel.patterns import named
from nnkit.train.each import alone
from nnkit.train.nouns import expect
from nnkit.train.steps import Step

__all__ = ["shard"]

SEEN = ("sequence", "expert")  # axes that layers themselves split their work over
ROWS = ("data", "fsdp")  # axes that rows go over: where weights do too, layers say which travels


def shard(
    inner: Step,
    mesh: Mesh,
    *,
    batch: PartitionSpec | Callable = PartitionSpec(),  # noqa: B008  (a value, never changed)
    state: Callable = rules.replicated,
) -> Step:
    """The same numbers, spread over the devices of a mesh.

    shard(step, mesh(data=8), batch=P("data")) is data parallel; state=rules.fsdp splits parameters,
    moments and averages too; rules.tensor the matrices of a Transformer, rules.expert its experts,
    rules.both two of them; rules.leading("run") spreads the members of a sweep; rules.by_path is
    for your own. batch=P("data", "sequence") splits sequences, and with them the activations: each
    device attends from its part of the tokens to all of them. On one device it is the identity.
    Batch statistics are those of the whole batch.

    Args:
      inner: any Step.
      mesh: from `nk.mesh`. Layers split their own work over its axes "sequence" and "expert".
      batch: which axes of every leaf [b ...] of a batch go along which axes of the mesh; what a
        leaf has fewer axes for does not concern it. Or a rule (path, leaf, mesh) -> PartitionSpec.
      state: rule (path, leaf, mesh) -> PartitionSpec for the leaves [...] of the state.

    Returns:
      A Step.

    Raises:
      TypeError: if state is no rule.
      ValueError: if neither batch nor state is split, an axis is not of this mesh, or does not
        divide what it splits (names sizes that do), or a rule made of patterns matches nothing.

    >>> from jax.sharding import PartitionSpec as P
    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> four = shard(nk.step(nk.gradient(task), optax.sgd(0.5)), nk.mesh(data=4), batch=P("data"))
    >>> many = {"x": jnp.arange(8.0)}
    >>> state, metrics = jax.jit(four.update)(jax.jit(four.init)(jax.random.key(0), many), many)
    >>> float(state.params), len(state.params.sharding.device_set)
    (3.5, 4)

    Xu et al., arXiv:2105.04663 (the compiler's part of it).
    """
    expect("shard", inner, Step)
    if isinstance(state, PartitionSpec) or not callable(state):
        raise TypeError(
            f"shard(state={state!r:.60}): expected a rule (path, leaf, mesh) -> PartitionSpec, "
            f"such as rules.fsdp, or rules.by_path({{'kernel': {state!r:.60}}})"
        )
    if isinstance(batch, PartitionSpec):
        _known("batch", batch, mesh)
        if state is rules.replicated and not any(batch) and mesh.size > 1:
            raise ValueError(
                f"shard: neither batch= nor state= names an axis of {dict(mesh.shape)}, so that "
                f"{mesh.size} devices would all do the same work; split the batch, such as "
                f"batch=P({mesh.axis_names[0]!r}), or the state, such as state=rules.fsdp"
            )

    def rows(path, x):
        spec = batch if isinstance(batch, PartitionSpec) else batch(path, x, mesh)
        _known(f"batch[{path!r}]", spec, mesh)
        spec = PartitionSpec(*tuple(spec)[: np.ndim(x)])
        _divides_batch(path, x, spec, mesh)
        return spec

    def spread(tree):
        return _constrained(tree, lambda path, x: NamedSharding(mesh, rows(path, x)))

    def split(path, x):
        spec = state(path, x, mesh)
        _divides_state(path, x, spec, mesh)
        return NamedSharding(mesh, spec)

    def place(tree):
        rules.check(state, [path for path, _ in trees.paths(tree)])
        return _constrained(tree, split)

    def seen(tree) -> bool:
        """Must layers see the mesh?"""
        if any(mesh.shape.get(name, 1) > 1 for name in SEEN):
            return True
        specs = [state(path, x, mesh) for path, x in trees.paths(tree)]
        return any(axis in ROWS for spec in specs for part in spec for axis in named(part))

    start, move = alone(inner.init), alone(inner.update)

    @jax.jit  # the mesh is visible inside of jit only
    def move_seen(old, now):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return move(old, now)

    def init(key, first):
        for path, x in trees.paths(first):
            rows(path, x)
        return place(start(key, first))

    def update(old, now):
        new, metrics = (move_seen if seen(old) else move)(old, spread(now))
        return place(new), metrics

    return Step(init, update, inner.weights)


def _constrained(tree, sharding: Callable):
    """Every leaf [...] where (path, leaf) -> sharding says."""

    def put(path, x, data):  # typed keys by their data, whose leading axes are those of x
        return jax.lax.with_sharding_constraint(data, sharding(trees.path_name(path), x))

    placed = jax.tree_util.tree_map_with_path(put, tree, trees.plain(tree))
    return trees.keyed(placed, tree)


def _known(what: str, spec: PartitionSpec, mesh: Mesh) -> None:
    unknown = [a for part in spec for a in named(part) if a not in mesh.axis_names]
    if unknown:
        raise ValueError(
            f"{what}={spec} names {unknown[0]!r}, the mesh has axes {mesh.axis_names}; name one of "
            f"them, or make the mesh with it: nk.mesh({unknown[0]}=...)"
        )


def _pieces(part, mesh: Mesh) -> int:
    return int(np.prod([mesh.shape[a] for a in named(part)], dtype=int))


def _near(size: int, n: int) -> str:
    return " or ".join(str(k * n) for k in (size // n, size // n + 1) if k)


def _divides_batch(path: str, x, spec: PartitionSpec, mesh: Mesh) -> None:
    for axis, part in enumerate(spec):
        n, size = _pieces(part, mesh), np.shape(x)[axis]
        if size % n:
            what, remedy = f"{size} rows", "a batch size"
            if axis:
                what = f"shape {np.shape(x)}: {size} along axis {axis}, {part!r},"
                remedy = "a size"
            raise ValueError(
                f"batch[{path!r}] has {what} over {n} devices, expected a multiple of {n}: use "
                f"{remedy} of {_near(size, n)}"
            )


def _divides_state(path: str, x, spec: PartitionSpec, mesh: Mesh) -> None:
    _known(f"state rule: {path!r} -> spec", spec, mesh)
    shape = np.shape(x)
    if len(spec) > len(shape):
        raise ValueError(
            f"state rule: {path!r} has shape {shape}, the rule gave {spec}, which has more entries "
            "than it has axes"
        )
    for axis, part in enumerate(spec):
        n = _pieces(part, mesh)
        if shape[axis] % n:
            raise ValueError(
                f"state[{path!r}] has shape {shape}, and {part!r} splits its axis {axis} over {n} "
                f"devices, which do not divide {shape[axis]}: use a size of "
                f"{_near(shape[axis], n)}, or another mesh"
            )
