"""Rules from the path of a leaf to the axes of a mesh it is split over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh, PartitionSpec

__all__ = ["fsdp", "leading", "replicated"]


def replicated(path: str, leaf, mesh: Mesh) -> PartitionSpec:
    """Every device has the whole leaf [...].

    Args:
      path: name of the leaf, such as "params/Dense_0/kernel".
      leaf: [...] the array.
      mesh: the mesh.

    Returns:
      PartitionSpec().

    >>> replicated("params/w", np.zeros((4, 4)), nk.mesh(data=2)) == PartitionSpec()
    True
    """
    return PartitionSpec()


def fsdp(path: str, leaf, mesh: Mesh) -> PartitionSpec:
    """Split the largest axis that the devices divide: parameters, moments and averages alike.

    Along the mesh axis "fsdp", or "data" where there is none. Leaves under 1,024 numbers stay
    whole: splitting them costs more than it saves.

    Args:
      path: name of the leaf.
      leaf: [...] the array.
      mesh: the mesh.

    Returns:
      A PartitionSpec with at most one axis.

    >>> fsdp("params/kernel", np.zeros((8, 512)), nk.mesh(data=4)) == PartitionSpec(None, "data")
    True

    Rajbhandari et al., arXiv:1910.02054, section 5 (ZeRO).
    """
    axis = "fsdp" if "fsdp" in mesh.axis_names else "data"
    shape = np.shape(leaf)
    fits = [i for i, size in enumerate(shape) if size and size % mesh.shape[axis] == 0]
    if not fits or np.prod(shape) < 1024:
        return PartitionSpec()
    widest = max(fits, key=lambda i: shape[i])
    return PartitionSpec(*[None] * widest, axis)


def leading(axis: str) -> Callable:
    """Split the leading axis [n ...] over a mesh axis: the members of a sweep or ensemble.

    Args:
      axis: name of the mesh axis.

    Returns:
      A rule; leaves whose leading axis the devices do not divide stay whole.

    Raises:
      ValueError: by the rule, if the mesh has no such axis.

    >>> leading("run")("params/w", np.zeros((16, 3)), nk.mesh(run=4)) == PartitionSpec("run")
    True
    """

    def rule(path: str, leaf, mesh: Mesh) -> PartitionSpec:
        if axis not in mesh.axis_names:
            raise ValueError(f"leading({axis!r}): the mesh has the axes {mesh.axis_names}")
        shape = np.shape(leaf)
        return (
            PartitionSpec(axis) if shape and shape[0] % mesh.shape[axis] == 0 else PartitionSpec()
        )

    return rule
