"""The same Step on many devices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnkit.core import trees
from nnkit.parallel import rules
from nnkit.train.nouns import expect
from nnkit.train.steps import Step

__all__ = ["shard"]


def shard(
    inner: Step,
    mesh: Mesh,
    *,
    batch: PartitionSpec = PartitionSpec(),  # noqa: B008  (a value, never changed)
    state: Callable = rules.replicated,
) -> Step:
    """The same numbers, spread over the devices of a mesh.

    shard(step, mesh(data=8), batch=P("data")) is data parallel; with state=rules.fsdp parameters
    and moments are split too; with state=rules.leading("run") the members of a sweep are spread.
    On one device it is the identity. Batch statistics are those of the whole batch.

    Args:
      inner: any Step.
      mesh: from `nk.mesh`.
      batch: which axes of every leaf [b ...] of a batch go along which axes of the mesh.
      state: rule (path, leaf, mesh) -> PartitionSpec for the leaves [...] of the state.

    Returns:
      A Step.

    Raises:
      ValueError: if an axis is not of this mesh, or does not divide the batch; names sizes that do.

    >>> from jax.sharding import PartitionSpec as P
    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> four = shard(nk.step(nk.gradient(task), optax.sgd(0.5)), nk.mesh(data=4), batch=P("data"))
    >>> many = {"x": jnp.arange(8.0)}
    >>> state, metrics = jax.jit(four.update)(jax.jit(four.init)(jax.random.key(0), many), many)
    >>> float(state.params), len(state.params.sharding.device_set)
    (3.5, 4)
    """
    expect("shard", inner, Step)
    named = [a for part in batch if part for a in (part if isinstance(part, tuple) else (part,))]
    unknown = [a for a in named if a not in mesh.axis_names]
    if unknown:
        raise ValueError(f"batch={batch} names {unknown[0]!r}, the mesh has axes {mesh.axis_names}")

    def pieces(part) -> int:
        parts = part if isinstance(part, tuple) else (part,) if part else ()
        return int(np.prod([mesh.shape[a] for a in parts], dtype=int))

    def check(tree):
        for path, x in trees.paths(tree):
            for axis, part in enumerate(batch):
                n, size = pieces(part), np.shape(x)[axis] if np.ndim(x) > axis else 1
                if size % n:
                    near = " or ".join(str(k * n) for k in (size // n, size // n + 1) if k)
                    raise ValueError(
                        f"batch[{path!r}] has {size} rows over {n} devices: use a batch size of "
                        f"{near}"
                    )

    def place(tree):
        def put(path, x, data):  # typed keys by their data, whose leading axes are those of x
            spec = state(trees.path_name(path), x, mesh)
            return jax.lax.with_sharding_constraint(data, NamedSharding(mesh, spec))

        placed = jax.tree_util.tree_map_with_path(put, tree, trees.plain(tree))
        return trees.keyed(placed, tree)

    def init(key, first):
        check(first)
        return place(inner.init(key, first))

    def update(old, now):
        check(now)
        spread = NamedSharding(mesh, batch)
        now = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spread), now)
        new, metrics = inner.update(old, now)
        return place(new), metrics

    return Step(init, update, inner.weights)
