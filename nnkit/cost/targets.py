"""What a plan is made for: devices that need not be here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from nnkit.cost.chips import CHIPS, Chip, chip, of_device

__all__ = ["Target", "target"]


class Target(NamedTuple):
    """Chips to compile for.

    Attributes:
      name: as it was asked for, such as "v5e:4x4".
      chip: their data sheet.
      devices: what JAX calls devices: one or two to a chip.
      per_chip: devices to a chip.

    >>> target("cpu:2").per_chip
    1
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    per_chip: int


def target(topology: str | None = None, **changes) -> Target:
    """The devices of a topology, attached or not.

    None: those attached. "cpu:8": 8 devices of the CPU, as JAX counts them. "v5e:4x4": TPUs,
    through libtpu. "h100:8": GPUs, through the CUDA plugin of JAX, in hosts of 8. Neither needs the
    chip.

    Args:
      topology: chip and shape, or None.
      **changes: figures of the chip to replace, such as watts=200.0; see `Chip`.

    Returns:
      A `Target`.

    Raises:
      ValueError: if there is no such chip, the shape is none, or the compiler refuses it.
      ImportError: if the compiler of that chip is not installed.

    >>> len(target("cpu:4").devices)
    4
    >>> target("v5:4x4")
    Traceback (most recent call last):
        ...
    ValueError: there is no chip 'v5', expected one of cpu, v3, v4, v5e, ...
    """
    if topology is None:
        found = jax.devices()
        kind = of_device(found[0])
        kind = chip(kind.name, **changes) if changes and kind.name in CHIPS else kind
        return Target(kind.name, kind, found, 1)
    name, _, shape = topology.partition(":")
    found = chip(name, **changes)
    if not re.fullmatch(r"\d+(x\d+)*", shape) or 0 in map(int, shape.split("x")):
        example = {"tpu": "4x4"}.get(found.kind, "8")
        raise ValueError(
            f"topology is {topology!r}, expected a chip and how many of it, such as "
            f"'{name}:{example}'"
        )
    make = {"cpu": _cpus, "tpu": _tpus, "gpu": _gpus}[found.kind]
    devices = make(topology, found, shape)
    chips = math.prod(int(n) for n in shape.split("x"))
    return Target(topology, found, devices, max(1, len(devices) // chips))


def _cpus(topology: str, found: Chip, shape: str) -> Sequence[Any]:
    n, there = math.prod(int(k) for k in shape.split("x")), jax.devices("cpu")
    if n > len(there):
        raise ValueError(
            f"topology {topology!r}: this process has {len(there)} CPU devices; call "
            f"jax.config.update('jax_num_cpu_devices', {n}) before anything else, or start it with "
            f"JAX_NUM_CPU_DEVICES={n}"
        )
    return there[:n]


def _tpus(topology: str, found: Chip, shape: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"topology {topology!r} is compiled by libtpu, which is not installed: "
            "pip install 'nnkit-jax[plan]' (no TPU is needed)"
        )
    # do not ask a cloud what this machine is; several plans at a time are no conflict
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in {**alone, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    sizes = [int(n) for n in shape.split("x")]
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return _described(topology, "tpu", topology_name=topology, **options)


def _gpus(topology: str, found: Chip, shape: str) -> Sequence[Any]:
    plugins = [n for n in (13, 12) if importlib.util.find_spec(f"jax_cuda{n}_plugin")]
    if not plugins:
        raise ImportError(
            f"topology {topology!r} is compiled by the CUDA plugin of JAX, which is not installed: "
            "pip install 'nnkit-jax[plan]' (no GPU is needed)"
        )
    _fitting(topology, f"jax-cuda{plugins[0]}-plugin")
    n = math.prod(int(k) for k in shape.split("x"))
    if n > found.host and n % found.host:
        raise ValueError(
            f"topology {topology!r}: a host has {found.host} {found.name}, so give at most "
            f"{found.host}, or a multiple of it"
        )
    hosts, each = max(1, n // found.host), min(n, found.host)
    return _described(topology, "cuda", topology=f"1x{hosts}x{each}", target_config=found.about)


def _fitting(topology: str, plugin: str) -> None:
    """Raise if the plugin is of another release than jaxlib: JAX would leave it out in silence."""
    there, wanted = map(importlib.metadata.version, (plugin, "jaxlib"))
    if there != wanted:
        pjrt = plugin.replace("plugin", "pjrt")
        raise ImportError(
            f"topology {topology!r}: {plugin} is {there} and jaxlib is {wanted}, expected the same "
            f"release: pip install '{plugin}=={wanted}' '{pjrt}=={wanted}'"
        )


def _described(asked: str, platform: str, /, **options) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform=platform, **options).devices)
    except Exception as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"topology {asked!r} is refused by its compiler: {said}; shapes that exist are "
            "those of the cloud: v5e and v6e 2x2 to 16x16, v4 and v5p 2x2x1 to 8x8x8"
        ) from error
