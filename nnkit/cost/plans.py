"""A plan: all figures of a training step on chips that need not be there, and its table."""

from __future__ import annotations

import dataclasses
import math

from nnkit.cost.budget import USABLE, Assumptions, Budget, Roofline
from nnkit.cost.chips import Chip
from nnkit.cost.counting import Flops
from nnkit.cost.programs import Collective

__all__ = ["Memory", "Plan"]

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      parameters: of the weights, by arithmetic from shapes and rules.
      state: of the whole state (weights, moments, averages, keys), likewise.
      batch: of the batch, likewise.
      arguments: state and batch as the compiler lays them out.
      outputs: the new state and the metrics.
      aliased: outputs that take the place of arguments.
      temporaries: activations, gradients and all else in between.
      peak: arguments + outputs - aliased + temporaries.
      limit: what there is of it.

    >>> Memory(1, 3, 1, 4, 3, 3, 10, 14, 20).peak
    14
    """

    parameters: int
    state: int
    batch: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int
    limit: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step will take. `print(plan)` shows it as a table.

    Attributes:
      topology: as it was asked for.
      chip: the data sheet.
      devices: how many, as JAX counts; per_chip of them to a chip.
      per_chip: devices to a chip.
      mesh: sizes of the axes by name; {} for a single device.
      batch_size: examples of a step.
      amount: tokens, or examples, of a step: units.
      units: "tokens" or "examples".
      parameters: number of weights.
      memory: bytes of one device; None if the compiler refused without saying how many.
      refused: the compiler's words if the program does not fit, else "".
      flops: operations of a step on all devices together.
      formula: 6 N D, and attention if the model was given; what it is is in formula_of.
      formula_of: the formula in words.
      xla_flops: XLA's own count for one device, a loop's body once; None where it has none.
      traffic: bytes of main memory that one device reads and writes; None, and no collectives, if
        the compiled program could not be read.
      collectives: what is sent, by kind.
      roofline: the least seconds of a step; None if it was refused.
      assume: what is assumed.
      budget: hours, energy, carbon, cost; None if no budget was given.
      largest: (largest batch that fits, smallest that does not), None if it was not searched.
      notes: what is not known about these figures.
      compile_seconds: how long the compiler took; when it ran, if cached.
      cached: the figures were kept from an earlier plan of the same program.
      versions: of jax and the compiler.

    >>> task = nk.objective(lambda key, b: jnp.zeros(4), lambda w, b, key: (b["x"] @ w) ** 2)
    >>> step = nk.step(nk.gradient(task), optax.adam(1e-3))
    >>> found = nk.plan(step, {"x": jnp.ones((8, 4))}, "cpu:1", say=lambda line: None)
    >>> found.parameters, found.fits, found.memory.parameters
    (4, True, 16)
    """

    topology: str
    chip: Chip
    devices: int
    per_chip: int
    mesh: dict[str, int]
    batch_size: int
    amount: int
    units: str
    parameters: int
    memory: Memory
    refused: str
    flops: Flops
    formula: float
    formula_of: str
    xla_flops: float | None
    traffic: float | None
    collectives: tuple[Collective, ...]
    roofline: Roofline | None
    assume: Assumptions
    budget: Budget | None
    largest: tuple[int, int | None] | None
    notes: tuple[str, ...]
    compile_seconds: float
    cached: bool
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether the peak of one device is within its memory, and the compiler agrees."""
        return not self.refused and self.memory.peak <= self.memory.limit

    @property
    def moved(self) -> float:
        """Bytes that one device sends in a step."""
        return sum(c.moved for c in self.collectives)

    def __str__(self) -> str:
        rows = [*_head(self), *_memory(self), *_work(self), *_time(self), *_assumed(self)]
        wide = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{wide}}  {text}".rstrip() for name, text in rows)


def _head(p: Plan):
    shape = " ".join(f"{a}={n}" for a, n in p.mesh.items()) or "no mesh"
    devices = "1 device" if p.devices == 1 else f"{p.devices} devices"
    one = "" if p.per_chip == 1 else f" ({p.per_chip} devices to a chip)"
    yield "plan", f"{p.topology}: {devices}{one}, {shape}"
    each = "" if p.units == "examples" else f" = {p.amount:,} {p.units}"
    yield "batch", f"{p.batch_size:,} examples{each} a step"
    yield "parameters", f"{p.parameters:,}"


def _memory(p: Plan):
    m = p.memory
    yield "bytes of one device", ""
    yield "  parameters", size(m.parameters)
    yield "  whole state", f"{size(m.state)}, by arithmetic"
    if m.arguments:
        yield "  arguments", f"{size(m.arguments)}, as the compiler lays out state and batch"
        yield "  outputs", f"{size(m.outputs)}, of which {size(m.aliased)} in the arguments' place"
        yield "  temporaries", size(m.temporaries)
    if m.peak:
        many = p.devices if p.chip.kind == "cpu" else p.per_chip
        shared = "" if many == 1 else f" ({many} devices share {size(p.chip.memory)})"
        yield "  peak", f"{size(m.peak)} of {size(m.limit)}{shared}: {m.peak / m.limit:.1%}"
    said = "yes" if p.fits else "NO"
    if p.refused:
        said += f"; the compiler says: {p.refused}"
    yield "fits", said
    if p.largest is not None:
        low, high = p.largest
        if not low:
            text = f"none: even {high:,} examples do not fit"
        elif high is None:
            text = f"at least {low:,} examples"
        else:
            text = f"{low:,} examples ({high:,} do not fit)"
        yield "largest batch", text


def _work(p: Plan):
    f = p.flops
    yield "operations of a step", f"{f.total:.4g}, counted in the program"
    share = f.recomputed / f.total if f.total else 0.0
    yield "  recomputed", f"{f.recomputed:.4g} ({share:.1%})"
    by = ", ".join(f"{n:.4g} {dtype}" for dtype, n in sorted(f.products_by.items()))
    yield "  in products", by or "none"
    if p.formula:
        ratio = f.needed / p.formula
        yield "  formula", f"{p.formula:.4g} ({p.formula_of}): counted / formula {ratio:.3f}"
    if p.xla_flops:
        all_ = p.xla_flops * p.devices
        yield "  XLA's own", f"{all_:.4g} on all devices, a loop's body counted once"
    if p.traffic is not None:
        yield "memory traffic", f"{size(p.traffic)} of one device (an estimate from the program)"
    if p.devices > 1 and p.traffic is not None:
        yield "sent by one device", size(p.moved)
        for c in p.collectives:
            text = f"{c.count:g} over {c.group} devices, {size(c.moved)}"
            yield f"  {c.kind}", text


def _time(p: Plan):
    r = p.roofline
    least = None if r is None else r.seconds
    if r is not None and least is None:
        text = f"unknown: nobody publishes {', '.join(r.missing)} of this {p.chip.name}"
        yield "roofline", f"{text}; nk.plan(chip={{...}}) takes what you know"
    elif least is not None and p.traffic is None:
        yield "roofline", f"at least {ms(least)} a step, for compute alone; the rest is unknown"
    elif r is not None and least is not None:
        compute, memory, network = (x or 0.0 for x in r[:3])
        parts = f"compute {ms(compute)}, memory {ms(memory)}, network {ms(network)}"
        yield "roofline", f"{ms(least)} a step, bound by {r.bound} ({parts})"
        peak = sum(p.flops.products_by.values())
        made = p.flops.needed / peak if peak else 0.0
        share = compute / least * p.assume.efficiency * min(made, 1.0)
        yield "  assumed", f"{ms(least / p.assume.efficiency)} a step: {share:.0%} of the peak"
    b = p.budget
    if b is None:
        return
    yield "budget", f"{b.amount:.4g} {p.units}: {b.steps:,} steps"
    if b.hours is None:
        yield "  time", "unknown"
        return
    yield "  time", f"{b.hours:,.4g} hours"
    watts = f"unknown: {p.chip.name} has no published power; assume watts=..."
    yield "  energy", watts if b.kwh is None else f"{b.kwh:,.4g} kWh"
    yield "  carbon", "unknown" if b.kg is None else f"{b.kg:,.4g} kg CO2e"
    yield "  cost", "unknown: assume price=..." if b.cost is None else f"{b.cost:,.4g}"


def _assumed(p: Plan):
    a, c = p.assume, p.chip
    yield "assumed", ""
    if not all(map(math.isnan, (c.peak, c.peak32, c.bandwidth, c.link))):
        speed = f"{per(c.peak, 1e12)} TFLOP/s bfloat16, {per(c.peak32, 1e12)} float32"
        yield f"  {c.name}", f"{c.memory / GIB:.4g} GiB, {per(c.bandwidth, 1e9)} GB/s, {speed}"
        link = f"{per(c.link, 1e9)} GB/s between chips"
        yield "", link + (f", {per(c.outside, 1e9)} beyond {c.host}" if c.host else "")
        yield "", f"source: {c.source}"
        yield "  efficiency", f"{a.efficiency:g} of the roofline"
    usable, why = USABLE[c.kind] if a.usable is None else (a.usable, "given")
    yield "  usable memory", f"{usable:.4g} ({why})"
    if p.budget is not None and p.budget.hours is not None:
        watts, why = (c.watts, "data sheet") if a.watts is None else (a.watts, "given")
        yield "  power", f"{watts:g} W a chip ({why})" if watts is not None else "unknown"
        yield "  site", f"{a.overhead:g} times the chips' power"
        yield "  carbon", f"{a.carbon:g} kg CO2e per kWh"
        yield "  price", "unknown" if a.price is None else f"{a.price:g} a chip and hour"
    for note in p.notes:
        yield "note", note
    made = ", ".join(f"{name} {v}" for name, v in p.versions.items())
    kept = "from the cache; it took" if p.cached else "in"
    yield "compiled", f"{kept} {p.compile_seconds:g} s with {made}"


def size(n: float) -> str:
    """Bytes as people say them, and exactly where few.

    >>> size(3 * 2**30), size(100)
    ('3.00 GiB', '100 B')
    """
    for unit, of in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= of:
            return f"{n / of:.2f} {unit}"
    return f"{n:g} B"


def per(n: float, unit: float) -> str:
    """A figure of a data sheet in units, or "unknown".

    >>> per(8e11, 1e9), per(math.nan, 1e9)
    ('800', 'unknown')
    """
    return "unknown" if math.isnan(n) else f"{n / unit:g}"


def ms(seconds: float) -> str:
    """A time as people say it.

    >>> ms(0.0123), ms(2.0)
    ('12.3 ms', '2 s')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
