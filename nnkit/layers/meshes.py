"""The mesh that a program is traced for, for layers that split their own work over an axis of it.

`nk.shard` makes it visible (jax's abstract mesh); without it nothing here does anything.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__: list[str] = []

VOCABULARY = 1024  # a smaller one is not split over "tensor": as in `parallel.rules.tensor`
BATCH = ("data", "fsdp", "expert")  # axes that rows of a batch may go over, outermost first


def along(axis: str):
    """The mesh, if the compiler splits work over this axis of more than one device, else None."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types))
    return mesh if kinds.get(axis) == AxisType.Auto and mesh.shape[axis] > 1 else None


def rows(mesh, n: int):
    """The axes of the mesh that n rows of a batch go over: those there are, as far as they divide.

    >>> rows(nk.mesh(data=2, expert=4), 16), rows(nk.mesh(data=2, expert=4), 2)
    (('data', 'expert'), ('data',))
    """
    found, pieces = (), 1
    for name in BATCH:
        if name in mesh.axis_names and n % (pieces * mesh.shape[name]) == 0:
            found, pieces = (*found, name), pieces * mesh.shape[name]
    return found


def batchwise(x):
    """x [b ...] told to be split by rows, if there is a visible mesh: then weights travel to rows.

    Where both rows and weights are split over the same devices, the compiler may as well move the
    rows; with large batches that is the worse choice. Other axes of x are left to it.
    """
    mesh = _visible()
    found = rows(mesh, x.shape[0]) if mesh is not None and x.ndim > 1 else ()
    return split(x, found, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)) if found else x


def gathered(x, *, vocabulary=False):
    """A table [n d] of which rows are read, told to be whole, but for a vocabulary over "tensor".

    A table split by rows over the devices that the reading rows are split over as well would be
    read in parts by all of them.
    """
    mesh = _visible()
    if mesh is None or not any(mesh.shape.get(name, 1) > 1 for name in BATCH):
        return x
    pieces = mesh.shape.get("tensor", 1) if vocabulary else 1
    wide = pieces > 1 and x.shape[0] >= VOCABULARY and x.shape[0] % pieces == 0
    return split(x, "tensor" if wide else None, None)


def _visible():
    """The mesh that `nk.shard` made visible, outside of any shard_map, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if auto and not mesh.empty else None


def split(x, *parts):
    """x [...] with the compiler told over which axes of the visible mesh each of its axes goes."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*parts)))
