"""From a step to hours, energy, carbon and money, with every assumption in one place."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from nnkit.cost.chips import Chip

__all__ = ["Assumptions", "Budget", "Roofline", "budget", "roofline"]


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan cannot know. Replace what you know better: `nk.plan(..., assume={"price": 2.0})`.

    Attributes:
      efficiency: share of the roofline that is reached; 0.46 is what PaLM reached of its peak.
      usable: share of a chip's memory that a program gets; None: that of its kind in `USABLE`.
      watts: power of one chip under load, W; None: that of its data sheet, if there is one.
      overhead: power of the whole site over that of the chips; 1.56 is the mean of data centres.
        Hosts and switches are in it only as far as you put them there.
      carbon: kg of CO2 equivalent per kWh; 0.445 is the mean of the world's electricity of 2024.
      price: of one chip for an hour, in your currency; None: unknown. Lists change too often to be
        copied here.

    >>> Assumptions(efficiency=0.3).overhead
    1.56

    efficiency: Chowdhery et al., arXiv:2204.02311, section 4.1; overhead: Uptime Institute, Global
    Data Center Survey 2024; carbon: IEA, Electricity 2025.
    """

    efficiency: float = 0.46
    usable: float | None = None
    watts: float | None = None
    overhead: float = 1.56
    carbon: float = 0.445
    price: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            x = getattr(self, field.name)
            if x is None:
                continue
            fine = not isinstance(x, bool) and isinstance(x, int | float) and math.isfinite(x)
            if not fine or x < 0 or (x == 0 and field.name not in ("carbon", "price", "watts")):
                raise ValueError(f"assume {field.name}={x!r}: expected a finite number > 0")
        for name in ("efficiency", "usable"):
            if (getattr(self, name) or 0) > 1:
                raise ValueError(f"assume {name}={getattr(self, name)}: a share, at most 1")
        if self.overhead < 1:
            raise ValueError(f"assume overhead={self.overhead}: the site takes at least its chips")


USABLE = {
    "tpu": (15.75 / 16, "what libtpu reports of a v5e"),
    "gpu": (0.75, "what JAX takes of a GPU beforehand; XLA_PYTHON_CLIENT_MEM_FRACTION changes it"),
    "cpu": (1.0, "all of this machine's memory"),
}


class Roofline(NamedTuple):
    """The least seconds of a step, if one thing alone had to be done at its peak.

    Attributes:
      compute: matrix products at the dense peak of their width; None where that is unknown.
      memory: bytes of main memory at its bandwidth; likewise.
      network: bytes sent at the speed of the links; likewise.
      bound: the name of the largest; "unknown" if a figure is missing.
      missing: figures of the chip that are needed and unknown, by their names in `Chip`.

    >>> Roofline(1.0, 2.0, 0.5, "memory").seconds
    2.0
    """

    compute: float | None
    memory: float | None
    network: float | None
    bound: str
    missing: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """The largest: nothing can be faster, whatever overlaps. None if a figure is missing."""
        times = [x for x in (self.compute, self.memory, self.network) if x is not None]
        return None if self.missing else max(times)


def roofline(
    products: dict[str, float],
    traffic: float,
    moved: float,
    devices: int,
    chip: Chip,
    per_chip: int,
) -> Roofline:
    """The roofline of one step.

    Args:
      products: operations of all devices together, by dtype.
      traffic: bytes of main memory of one device.
      moved: bytes sent by one device.
      devices: how many.
      chip: its data sheet.
      per_chip: devices to a chip.

    Returns:
      A `Roofline`; None where the data sheet is silent about a figure that is needed.

    >>> from nnkit.cost import chip
    >>> roofline({"bfloat16": 197e12}, 819e9 / 2, 0.0, 1, chip("v5e"), 1)[:3]
    (1.0, 0.5, 0.0)
    >>> roofline({"float32": 1e12}, 0.0, 0.0, 1, chip("cpu", peak=1e12), 1).missing
    ('peak32',)

    Williams et al. 2009, doi:10.1145/1498765.1498785.
    """
    narrow = sum(n for dtype, n in products.items() if dtype in ("bfloat16", "float16"))
    wide = sum(products.values()) - narrow
    link = "outside" if chip.host and devices > chip.host * per_chip else "link"
    work = {"peak": narrow / devices, "peak32": wide / devices, "bandwidth": traffic, link: moved}
    missing = tuple(name for name, n in work.items() if n and math.isnan(getattr(chip, name)))

    def seconds(*names: str) -> float | None:
        if set(names) & set(missing):
            return None
        return sum((work[x] * per_chip / getattr(chip, x) for x in names if work[x]), 0.0)

    compute, memory, network = seconds("peak", "peak32"), seconds("bandwidth"), seconds(link)
    times = {"compute": compute or 0.0, "memory": memory or 0.0, "network": network or 0.0}
    bound = "unknown" if missing else max(times, key=lambda name: times[name])
    return Roofline(compute, memory, network, bound, missing)


class Budget(NamedTuple):
    """What a whole training takes; None where an assumption is missing.

    Attributes:
      amount: tokens or examples of the whole training.
      steps: updates.
      step_seconds: of one, the roofline over the efficiency; None without a roofline.
      hours: of all; likewise.
      kwh: energy of the site.
      kg: of CO2 equivalent.
      cost: price of the chips.

    >>> Budget(1e9, 10, 1.0, 0.1, None, None, None).steps
    10
    """

    amount: float
    steps: int
    step_seconds: float | None
    hours: float | None
    kwh: float | None
    kg: float | None
    cost: float | None


def budget(
    amount: float, each: int, fastest: float | None, chips: float, chip: Chip, assume: Assumptions
) -> Budget:
    """Hours, energy, carbon and cost of a training.

    Args:
      amount: tokens or examples of the whole training.
      each: those of one step.
      fastest: seconds of the roofline of a step; None if unknown.
      chips: how many.
      chip: its data sheet.
      assume: what is assumed.

    Returns:
      A `Budget`.

    >>> from nnkit.cost import chip
    >>> found = budget(1e9, 1000, 0.46, 4, chip("v4"), Assumptions(price=3.0))
    >>> round(found.hours), round(found.kwh), round(found.cost)
    (278, 333, 3333)
    """
    steps = math.ceil(amount / each)
    if fastest is None:
        return Budget(amount, steps, None, None, None, None, None)
    step_seconds = fastest / assume.efficiency
    hours = steps * step_seconds / 3600
    watts = assume.watts if assume.watts is not None else chip.watts
    kwh = None if watts is None else watts * chips * assume.overhead * hours / 1000
    kg = None if kwh is None else kwh * assume.carbon
    cost = None if assume.price is None else assume.price * chips * hours
    return Budget(amount, steps, step_seconds, hours, kwh, kg, cost)
