"""Meshes of devices with names for their axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

__all__ = ["mesh"]


def mesh(*, devices: Sequence | None = None, **axes: int) -> Mesh:
    """Devices as a grid with named axes: mesh(data=8), mesh(data=2, fsdp=4).

    The first devices of all processes, or those given. The last axis varies fastest: its devices
    are neighbours, so put the axis that talks most there, tensor before fsdp before data. The axes
    are of type Auto on every version of jax: the compiler splits the work, and a Step needs no
    change. (`jax.make_mesh` made Explicit axes the default in jax 0.9.)

    Args:
      devices: [n] devices in order, such as those of a topology that is only compiled for; None:
        `jax.devices()`, in the order that suits how they are wired.
      **axes: size of each named axis, >= 1.

    Returns:
      A `jax.sharding.Mesh`.

    Raises:
      ValueError: if no axis is given, a size is not >= 1, there are too few devices, or those
        given are not as many as the axes multiply to.

    >>> dict(mesh(data=2, fsdp=2).shape)
    {'data': 2, 'fsdp': 2}
    >>> [d.id for d in mesh(data=2, devices=jax.devices()[4:6]).devices]
    [4, 5]
    """
    if not axes or any(
        isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in axes.values()
    ):
        raise ValueError(f"mesh({axes}): expected named sizes >= 1, such as mesh(data=8)")
    names, sizes, need = tuple(axes), tuple(axes.values()), math.prod(axes.values())
    said = f"mesh({', '.join(f'{k}={v}' for k, v in axes.items())}) needs {need} devices"
    kinds = (AxisType.Auto,) * len(axes)
    if devices is not None:
        if len(devices) != need:
            raise ValueError(
                f"{said}, devices has {len(devices)}: give exactly {need}, or other sizes"
            )
        return Mesh(np.array(devices).reshape(sizes), names, axis_types=kinds)
    there = jax.devices()
    if need > len(there):
        raise ValueError(
            f"{said}, {_who()} has {len(there)} ({there[0].platform}); to rehearse on CPU call "
            f"jax.config.update('jax_num_cpu_devices', {need}) before anything else, or start the "
            f"program with JAX_NUM_CPU_DEVICES={need}"
        )
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=there[:need])


def _who() -> str:
    """Whose devices were counted."""
    n = jax.process_count()
    return "this process" if n == 1 else f"the program of {n} processes"
