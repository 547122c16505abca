"""What chips can do, as their makers say: memory, bandwidth, dense peak, links, power."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

__all__ = ["CHIPS", "Chip", "chip"]

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The data sheet of one chip. A figure that its maker does not publish is None.

    Attributes:
      name: such as "v5e".
      kind: cpu, gpu or tpu.
      memory: bytes of its main memory.
      bandwidth: bytes per second of that memory.
      peak: operations per second of dense bfloat16 products (2 per multiply and add).
      peak32: the same for float32 products as JAX multiplies them by default: TPUs in bfloat16,
        GPUs in TF32.
      link: bytes per second that one chip can send to its neighbours, over all links together.
      outside: bytes per second to chips beyond the host, where that is another network; else 0.
      host: chips of one host within which `link` holds; 0: `link` goes beyond the host.
      watts: power of the chip under load.
      source: where the figures are from.
      about: text for the compiler (GPUs): what the chip is made of.

    >>> chip("v5e").memory // 2**30
    16
    """

    name: str
    kind: str
    memory: int
    bandwidth: float
    peak: float
    peak32: float
    link: float
    outside: float
    host: int
    watts: float | None
    source: str
    about: str = ""


def _tpu(name, gib, bandwidth, peak, link, watts, source):
    tera, giga = 1e12, 1e9
    peaks = (peak * tera, peak * tera)  # float32 is multiplied in bfloat16 unless asked otherwise
    return Chip(name, "tpu", gib * GIB, bandwidth * giga, *peaks, link * giga, 0, 0, watts, source)


_JOUPPI = (
    "docs.cloud.google.com/tpu/docs/{0} (watts: the largest measured); links: arXiv:2304.01433"
)
_GOOGLE = "docs.cloud.google.com/tpu/docs/{} (link: half of the bidirectional figure); no power"

# what XLA is told of a GPU: multiprocessors, units of each, bytes of L2, GHz, shared memory, and
# the compute capability; the figures are those the driver of such a card reports
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {most}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{title}"
"""


def _gpu(name, title, memory, bandwidth, peak, peak32, link, outside, watts, source, **more):
    about = _GPU.format(title=title, memory=memory, bandwidth=int(bandwidth * 1e9), **more)
    peaks = (peak * 1e12, peak32 * 1e12)
    net = (link * 1e9, outside * 1e9, 8)
    return Chip(name, "gpu", memory, bandwidth * 1e9, *peaks, *net, watts, source, about)


_HOPPER = {
    "shared": 233472,
    "most": 232448,
    "cores": 132,
    "units": 128,
    "cache": 52428800,
    "clock": 1.98,
    "major": 9,
}
_NVIDIA = "NVIDIA {} data sheet, dense (half of the figures with sparsity); link one way; outside: "

CHIPS = {
    c.name: c
    for c in (
        _tpu("v3", 32, 900, 123, 280, 262, _JOUPPI.format("v3")),
        _tpu("v4", 32, 1200, 275, 300, 192, _JOUPPI.format("v4")),
        _tpu("v5e", 16, 819, 197, 200, None, _GOOGLE.format("v5e")),
        _tpu("v5p", 95, 2765, 459, 600, None, _GOOGLE.format("v5p")),
        _tpu("v6e", 32, 1638, 918, 400, None, _GOOGLE.format("v6e")),
        _tpu("tpu7x", 192, 7380, 2307, 600, None, _GOOGLE.format("tpu7x")),
        _gpu(
            "a100", "NVIDIA A100-SXM4-80GB", 85100068864, 2039, 312, 156, 300, 25, 400,
            _NVIDIA.format("A100 80GB SXM") + "200 Gb/s each (DGX A100)",
            shared=167936, most=166912, cores=108, units=64, cache=41943040, clock=1.41, major=8,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", 84929347584, 3352, 989, 494, 450, 50, 700,
            _NVIDIA.format("H100 SXM") + "400 Gb/s each (DGX H100)", **_HOPPER,
        ),
        _gpu(
            "h200", "NVIDIA H200 141GB HBM3e", 151397597184, 4800, 989, 494, 450, 50, 700,
            _NVIDIA.format("H200 SXM") + "400 Gb/s each (DGX H200)", **_HOPPER,
        ),
        _gpu(
            "b200", "NVIDIA B200", 191514411008, 7672, 2250, 1125, 900, 50, 1000,
            _NVIDIA.format("DGX B200") + "400 Gb/s each (DGX B200)",
            **_HOPPER | {"cores": 148, "cache": 132644864, "clock": 1.965, "major": 10},
        ),
    )
}  # fmt: skip


def chip(name: str, **changes) -> Chip:
    """The chip of that name, with figures of your own where you have better ones.

    Args:
      name: v3, v4, v5e, v5p, v6e, tpu7x, a100, h100, h200, b200; "cpu" is the machine it runs on,
        whose speed nobody knows beforehand.
      **changes: attributes of `Chip`, such as watts=200.0.

    Returns:
      A `Chip`.

    Raises:
      ValueError: if there is no such chip.
      TypeError: if a change is no attribute of a chip.

    >>> chip("h100").watts, chip("h100", watts=500.0).watts
    (700, 500.0)
    """
    if name == "cpu":
        no = math.nan
        found = Chip("cpu", "cpu", _installed(), no, no, no, no, 0, 0, None, "this machine")
    elif name in CHIPS:
        found = CHIPS[name]
    else:
        near = difflib.get_close_matches(name, [*CHIPS, "cpu"], n=1, cutoff=0.5)
        hint = f"; perhaps you meant {near[0]!r}" if near else ""
        raise ValueError(
            f"there is no chip {name!r}, expected one of cpu, {', '.join(CHIPS)}{hint}"
        )
    fields = [field.name for field in dataclasses.fields(Chip)]
    for field in changes:
        if field not in fields:
            raise TypeError(f"a chip has no {field!r}, it has {', '.join(fields)}")
    return dataclasses.replace(found, **changes)


def of_device(device) -> Chip:
    """The chip of an attached device; that of a CPU where it is none of the table.

    >>> of_device(jax.devices()[0]).name
    'cpu'
    """
    kind = str(getattr(device, "device_kind", "")).lower()
    words = {
        "v3": r"tpu v3", "v4": r"tpu v4", "v5e": r"tpu v5 ?(lite|e)", "v5p": r"tpu v5(p|$)",
        "v6e": r"tpu v6", "tpu7x": r"tpu ?(v?7)", "a100": r"a100.*80", "h200": r"h200",
        "h100": r"h100 80", "b200": r"\bb200",
    }  # fmt: skip
    for name, pattern in words.items():
        if re.search(pattern, kind):
            return chip(name)
    platform = getattr(device, "platform", "cpu")
    if platform == "cpu":
        return chip("cpu")
    limit = (device.memory_stats() or {}).get("bytes_limit") or 0
    about = {"name": kind, "kind": platform, "memory": limit, "source": "the attached device"}
    return dataclasses.replace(chip("cpu"), **about)


def _installed() -> int:
    """Bytes of memory of this machine, 0 where the system does not say."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
