"""Meshes of devices with names for their axes."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh

__all__ = ["mesh"]


def mesh(**axes: int) -> Mesh:
    """The first devices of this process as a grid: mesh(data=8), mesh(data=2, fsdp=4).

    The axes are of type Auto on every version of jax: the compiler splits the work, and a Step
    needs no change. (`jax.make_mesh` made Explicit axes the default in jax 0.9.)

    Args:
      **axes: size of each named axis, >= 1.

    Returns:
      A `jax.sharding.Mesh`.

    Raises:
      ValueError: if no axis is given, a size is not >= 1, or there are too few devices.

    >>> dict(mesh(data=2, fsdp=2).shape)
    {'data': 2, 'fsdp': 2}
    """
    if not axes or any(
        isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in axes.values()
    ):
        raise ValueError(f"mesh({axes}): expected named sizes >= 1, such as mesh(data=8)")
    need, devices = math.prod(axes.values()), jax.devices()
    if need > len(devices):
        raise ValueError(
            f"mesh({', '.join(f'{k}={v}' for k, v in axes.items())}) needs {need} devices, this "
            f"process has {len(devices)} ({devices[0].platform}); to rehearse on CPU call "
            f"jax.config.update('jax_num_cpu_devices', {need}) before anything else, or start the "
            f"program with JAX_NUM_CPU_DEVICES={need}"
        )
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=devices[:need],
    )
