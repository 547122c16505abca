"""Batches for a program on many processes: each reads its rows, together they are one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnkit.core import trees
from nnkit.data import Grouped, prefetch
from nnkit.loop.start import compiled, inspect_batch
from nnkit.parallel import hosts
from nnkit.train import Step

__all__ = ["Feed", "evaluated", "spanning", "trained", "whole"]

EXAMPLES = ("data", "fsdp")  # the axes of a mesh along which examples are split in evaluation


class Feed(NamedTuple):
    """Where each leaf of a batch goes, and which of its rows this process needs for that.

    Attributes:
      shardings: one per leaf, in the order of `jax.tree.leaves`.
      shapes: one per leaf, of the whole batch.
      axis: the axis of the examples, 0, or 1 under an axis of steps.
      rows: [m] the positions along it that the devices of this process hold, ascending.

    >>> place = NamedSharding(nk.mesh(data=2), PartitionSpec("data"))
    >>> feed = Feed([place], [(4,)], 0, np.arange(4))
    >>> feed.place({"x": np.arange(4)})["x"].sharding == place
    True
    """

    shardings: list
    shapes: list
    axis: int
    rows: np.ndarray

    def place(self, batch):
        """The global arrays of which `batch` holds the rows of this process."""
        leaves, form = jax.tree.flatten(batch)
        return jax.tree.unflatten(
            form, [self._one(x, *to) for x, *to in zip(leaves, self.shardings, self.shapes)]
        )

    def _one(self, x, sharding, shape):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x  # global already
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))  # a copy: the source may reuse it

        def piece(index):
            start, stop, _ = index[self.axis].indices(shape[self.axis])
            first = int(np.searchsorted(self.rows, start))
            here = (*index[: self.axis], slice(first, first + stop - start))
            return x[(*here, *index[self.axis + 1 :])]

        return jax.make_array_from_callback(tuple(shape), sharding, piece)


def whole(tree, place: NamedSharding | None):
    """Host arrays [...], equal in all processes, as arrays on every device of a mesh.

    Args:
      tree: numpy arrays.
      place: a sharding that splits nothing, or None for the first device.

    Returns:
      The tree of jax arrays.

    >>> whole({"n": np.zeros(2, np.float32)}, None)
    {'n': Array([0., 0.], dtype=float32)}
    """
    if hosts.count() == 1 or place is None:
        return jax.device_put(tree, place)
    put = lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index])
    return jax.tree.map(put, tree)


def spanning(tree) -> Mesh | None:
    """The mesh of the first leaf [...] that has devices of other processes; None if none has.

    Args:
      tree: a tree of arrays.

    Returns:
      A mesh or None.

    >>> spanning({"w": jnp.zeros(3)}) is None
    True
    """
    for x in jax.tree.leaves(tree):
        place = getattr(x, "sharding", None)
        if not isinstance(place, NamedSharding) or x.is_fully_addressable:
            continue
        if isinstance(place.mesh, Mesh):
            return place.mesh
    return None


def trained(step: Step, state, batches, start: int) -> Iterator[Any]:
    """The batches from number `start` on for `step.update`, read and placed ahead of time.

    Each field goes where the program first puts it, which the text of the program says: with
    shard(..., batch=P("data")) the rows of a process are those of its devices. The first batch is
    looked at in every process before any goes on.

    Args:
      step: the Step.
      state: its state [...], on the devices of all processes.
      batches: a `Batches`, of which only the rows of this process are read; or an iterable that
        gives the same whole batches in every process.
      start: number of the first batch.

    Returns:
      An iterator of global arrays.

    Raises:
      ValueError: if the processes were given different batches, or a batch cannot be right.
      RuntimeError: if reading failed in another process; names it.
    """
    if hasattr(batches, "share"):
        axis = 1 if isinstance(batches, Grouped) else 0
        feed = _feed(batches.spec, _wanted(step, state, batches.spec), axis)
        stream = batches.share(feed.rows).stream(start)
        first = hosts.unanimous(lambda: _checked(next(stream)))
    else:
        stream = _unending(batches, start)
        first = hosts.unanimous(lambda: _checked(next(stream, None)))
        if spanning(first) is None:
            same = "; give every process the whole batch, fit takes its rows"
            hosts.agree({"first batch": trees.digest(first)}, f"the data{same}")
        feed = _feed(first, _wanted(step, state, first), 0, everything=True)
    timeout = getattr(batches, "timeout", None)
    return prefetch(itertools.chain([first], stream), place=feed.place, timeout=timeout)


def evaluated(batches, mesh: Mesh) -> Iterator[Any]:
    """One pass over batches as global arrays, examples split along the axes data and fsdp.

    Args:
      batches: a `Batches`, or an iterable that gives the same whole batches in every process.
      mesh: that of the weights.

    Returns:
      An iterator of global arrays.
    """
    axes = tuple(a for a in EXAMPLES if a in mesh.axis_names)
    pieces = int(np.prod([mesh.shape[a] for a in axes], dtype=int))

    def shardings(batch):
        fits = [bool(axes) and np.shape(x)[0] % pieces == 0 for x in jax.tree.leaves(batch)]
        return [NamedSharding(mesh, PartitionSpec(axes) if ok else PartitionSpec()) for ok in fits]

    if hasattr(batches, "share") and not isinstance(batches, Grouped):
        feed = _feed(batches.spec, shardings(batches.spec), 0)
        return prefetch(iter(batches.share(feed.rows)), place=feed.place)

    def place(batch):
        return _feed(batch, shardings(batch), 0, everything=True).place(batch)

    return prefetch(iter(batches), place=place)


def _feed(batch, shardings, axis: int, everything: bool = False) -> Feed:
    """The Feed of a batch of arrays or shapes [b ...]; `everything`: its source gives all rows."""
    shapes = [tuple(np.shape(x)) for x in jax.tree.leaves(batch)]
    size = shapes[0][axis]
    needed = np.full(size, everything)
    for shape, sharding in zip(shapes, shardings):
        for index in sharding.addressable_devices_indices_map(shape).values():
            needed[index[axis]] = True
    return Feed(shardings, shapes, axis, np.flatnonzero(needed))


def _wanted(step: Step, state, batch) -> list[NamedSharding]:
    """Where the program first constrains each leaf [b ...] of a batch; whole if it does not."""
    mesh = spanning(state)
    assert mesh is not None
    leaves = jax.tree.leaves(batch)
    jaxpr = compiled(step).trace(state, batch).jaxpr.jaxpr
    found = [_constraint(jaxpr, var) for var in jaxpr.invars[len(jaxpr.invars) - len(leaves) :]]
    specs = [PartitionSpec() if one is None else one.spec for one in found]
    return [NamedSharding(mesh, spec) for spec in specs]


def _constraint(jaxpr, var):
    """The NamedSharding that a program first puts one of its inputs under, or None."""
    for eqn in jaxpr.eqns:
        places = [i for i, x in enumerate(eqn.invars) if x is var]
        if not places:
            continue
        if eqn.primitive.name == "sharding_constraint":
            found = eqn.params["sharding"]
            return found if isinstance(found, NamedSharding) else None
        inner = eqn.params.get("jaxpr")
        if eqn.primitive.name in ("jit", "pjit") and inner is not None:
            return _constraint(inner.jaxpr, inner.jaxpr.invars[places[0]])
    return None


def _checked(batch):
    """A batch, or the rows of this process, looked at; all rows here may be padding.

    None is the end of the data.
    """
    if batch is None:
        raise ValueError(
            "the data gave no batch, expected one; check the path, or whether they were used up"
        )
    if spanning(batch) is None:
        padding = isinstance(batch, Mapping) and len(batch) > 1 and not np.any(batch.get("mask", 1))
        inspect_batch({k: v for k, v in batch.items() if k != "mask"} if padding else batch)
    return batch


def _unending(batches, start: int) -> Iterator[Any]:
    """Endless batches from number `start`, from whatever gives them."""
    if hasattr(batches, "stream"):
        return iter(batches.stream(start))
    if iter(batches) is batches:
        return itertools.islice(batches, start, None)
    return itertools.islice(itertools.cycle(list(batches)), start, None)
