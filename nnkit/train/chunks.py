"""Any number of runs: as many at a time as fit the memory, measured from the compiled program."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nnkit.train import each as ways
from nnkit.train.members import count_of, sweep
from nnkit.train.steps import Step

__all__ = ["Chunked", "chunked", "memory", "rounds"]


class Chunked(NamedTuple):
    """A sweep in chunks that fit, and how that was found.

    Attributes:
      step: the Step of all members.
      size: members side by side on a device.
      members: members of all.
      limit: bytes that one device may use.
      peak: bytes that the compiled update of `step` needs on each device.
      state: bytes of what is kept for one member: state and hyperparameters.
      working: bytes that each member side by side takes beyond what all keep.

    >>> Chunked(None, 4, 10, 2**20, 2**19, 100, 2**16).size
    4
    """

    step: Any
    size: int
    members: int
    limit: int
    peak: int
    state: int
    working: int

    def __str__(self) -> str:
        return (
            f"{self.members} members, {self.size} at a time: {_bytes(self.peak)} of "
            f"{_bytes(self.limit)} (each {_bytes(self.state)} kept, {_bytes(self.working)} to work)"
        )


def chunked(
    recipe: Callable[[Any], Step],
    grid,
    batch,
    *,
    limit_bytes: int | None = None,
    mesh: Mesh | None = None,
    each: Callable = jax.vmap,
) -> Chunked:
    """A sweep of any number of runs, as many side by side as fit the memory of a device.

    The update of the sweep is compiled for real with all members at a time, and if that does not
    fit with the sizes of even chunks (10 members at most 4 at a time are 4, 4, 2), halving what is
    left each time: what the programs need is measured, nothing is extrapolated.

    Args:
      recipe: as `sweep` takes.
      grid: as `sweep` takes, [n ...].
      batch: a batch [b ...] as training has it.
      limit_bytes: what one device may use; None: what it has free (`memory`).
      mesh: with an axis "run" to spread the members over; None keeps them on one device.
      each: how the members of a chunk are mapped: `jax.vmap` or `unrolled`.

    Returns:
      A `Chunked`; train its `step`.

    Raises:
      ValueError: if not even one at a time fits beside the states of all; says how many members
        would, for `rounds`.

    >>> task = nk.objective(lambda key, b: jnp.zeros(4), lambda w, b, key: (b["x"] @ w) ** 2)
    >>> recipe = lambda h: nk.step(nk.gradient(task), optax.sgd(h["learning_rate"]))
    >>> grid, batch = nk.product(learning_rate=[0.1, 0.2, 0.3]), {"x": jnp.ones((8, 4))}
    >>> chunked(recipe, grid, batch, limit_bytes=10**6).size
    3

    The runs that are left over when the size does not divide them are a chunk of their own.
    """
    n = count_of("chunked", grid)
    parts = 1 if mesh is None else mesh.shape["run"]
    if n % parts:
        raise ValueError(f"chunked: {n} members over {parts} devices: {parts} has to divide {n}")
    own = n // parts  # members of one device
    limit = memory(parts) if limit_bytes is None else limit_bytes

    def made(size: int) -> Step:
        way = ways.chunks(size, each=each)
        return sweep(recipe, grid, each=way if mesh is None else ways.spread(mesh, each=way))

    state = _kept(made(1), batch, n)
    needs: dict[int, float] = {}

    def fits(size: int) -> bool:
        needs[size] = _peak(made(size), batch)
        return needs[size] <= limit

    sizes = sorted({_even(own, size) for size in range(1, own + 1)})
    few, many = 0, len(sizes) - 1  # how many of the sizes fit: from, to
    if fits(own):
        few = many = len(sizes)
    while few < many:
        middle = (few + many) // 2
        few, many = (middle + 1, many) if fits(sizes[middle]) else (few, middle)
    if not few:
        least = min(needs.values())
        part = int(own * max(limit, 0) / least) * parts
        remedy = f"sweep it in parts, nk.rounds(grid, {part})" if part else "a smaller model"
        raise ValueError(
            f"chunked: {n} members need {_bytes(least)} or more on each device, even one at a "
            f"time, there are {_bytes(limit)}: each keeps {_bytes(state)}; {remedy}"
        )
    size = sizes[few - 1]
    peak = int(needs[size])
    return Chunked(made(size), size, n, limit, peak, state, max(0, peak - own * state) // size)


def rounds(grid, size: int) -> list:
    """A grid in parts of at most `size` members, as even as can be, to be swept one after another.

    Parts of one length share one compiled program; the last may be shorter, and compiles once more.

    Args:
      grid: a tree of arrays [n ...].
      size: members of a part, >= 1.

    Returns:
      A list of grids.

    Raises:
      ValueError: if size < 1, or the leaves differ in length.

    >>> [part["seed"].tolist() for part in rounds({"seed": jnp.arange(7)}, 3)]
    [[0, 1, 2], [3, 4, 5], [6]]
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"rounds(size={size!r}): expected an integer >= 1, members of a part")
    n = count_of("rounds", grid)
    size = _even(n, min(size, n))
    cut = lambda i: jax.tree.map(lambda x: jnp.asarray(x)[i : i + size], grid)
    return [cut(i) for i in range(0, n, size)]


def memory(parts: int = 1) -> int:
    """Bytes that one of `parts` devices has free: of an accelerator, or this machine's RAM.

    Args:
      parts: devices that share the RAM, on CPU.

    Returns:
      An int.

    Raises:
      ValueError: if neither the device nor the system says.

    >>> memory() > 0
    True
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if stats.get("bytes_limit") and jax.default_backend() != "cpu":
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as file:
            kilo = dict(line.split(":") for line in file)["MemAvailable"].split()[0]
        return int(kilo) * 1024 // parts
    except (OSError, KeyError):
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // parts
    raise ValueError("this system does not say how much memory is free: give limit_bytes=")


def _peak(step: Step, batch) -> float:
    """Bytes on each device while the compiled update runs; inf if the compiler refuses it."""
    state = jax.eval_shape(lambda key: step.init(key, batch), jax.random.key(0))
    program = jax.jit(lambda s, b: step.update(s, b), donate_argnums=0).lower(state, batch)
    try:
        found = program.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # TPUs refuse what they have no room for
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    if found is None:
        raise ValueError("this device does not say what a program needs: use nk.chunks(size)")
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(given + found.temp_size_in_bytes)


def _kept(step: Step, batch, n: int) -> int:
    """Bytes of the state of one of n members."""
    state = jax.eval_shape(lambda key: step.init(key, batch), jax.random.key(0))
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)) // n


def _even(n: int, most: int) -> int:
    """The size of equal chunks of n, at most `most` each: as many chunks, but even."""
    return -(-n // -(-n // most))


def _bytes(x: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if x < 1000 or unit == "GB":
            return f"{x:.3g} {unit}"
        x /= 1000
    return ""
