"""How a plan splits state and batch over the devices of a topology."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from nnkit.cost.counting import programs_of
from nnkit.cost.targets import Target
from nnkit.parallel import mesh as make_mesh
from nnkit.parallel import rules
from nnkit.parallel.patterns import named

__all__ = ["Layout", "check", "layout"]

AXES = {
    "data": "the batch",
    "fsdp": "state and batch",
    "tensor": "the matrices of a Transformer",
    "sequence": "the second axis of a batch",
    "expert": "the experts of layers.MoE",
    "run": "the members of a sweep or an ensemble, if it divides them",
}  # what the rules of a plan split over an axis of that name


class Layout(NamedTuple):
    """The mesh, the rule of the state and the split of the batch; mesh None: one device.

    >>> Layout(None, rules.replicated, PartitionSpec(), None).pieces
    1
    """

    mesh: Mesh | None
    state: Callable
    split: PartitionSpec
    device: Any

    def place(self, path, leaf):
        """The sharding of a leaf of the state."""
        if self.mesh is None:
            return SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, self.state(path, leaf, self.mesh))

    def place_batch(self, leaf):
        """The sharding of a leaf of a batch."""
        if self.mesh is None:
            return SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, PartitionSpec(*tuple(self.split)[: len(leaf.shape)]))

    @property
    def pieces(self) -> int:
        """Into how many pieces the examples of a batch are split."""
        parts = tuple(self.split)
        if self.mesh is None or not parts:
            return 1
        return math.prod(self.mesh.shape[a] for a in named(parts[0]))


def layout(aims: Target, mesh, state, split) -> Layout:
    """The layout for the devices of a topology, by the names of the axes where nothing is given.

    Args:
      aims: the devices.
      mesh: sizes by axis, or a mesh, whose devices do not count; None: {"data": n}.
      state: rule (path, leaf, mesh) -> PartitionSpec, or None.
      split: PartitionSpec of the batch, or None.

    Returns:
      A `Layout`.

    Raises:
      TypeError: if the mesh is neither.
      ValueError: if it does not multiply out to the devices, or nothing is to be split over it.

    >>> from nnkit.cost import target
    >>> layout(target("cpu:4"), {"fsdp": 4}, None, None).split == PartitionSpec(("fsdp",))
    True
    """
    n = len(aims.devices)
    if mesh is None and n == 1:
        return Layout(None, rules.replicated, PartitionSpec(), aims.devices[0])
    axes = _sizes(mesh, aims)
    made = make_mesh(devices=aims.devices, **axes)
    if state is None:
        known = {"expert": rules.expert, "tensor": rules.tensor, "fsdp": rules.fsdp}
        chosen = [rule for axis, rule in known.items() if axis in axes]
        chosen += [rules.leading("run")] if "run" in axes else []
        state = functools.reduce(rules.both, chosen) if chosen else rules.replicated
    if split is None:
        first = tuple(a for a in ("data", "fsdp", "expert") if a in axes)
        second = ("sequence",) if "sequence" in axes else ()
        split = PartitionSpec(first or None, *second) if first or second else PartitionSpec()
    if state is rules.replicated and not any(split) and made.size > 1:
        raise _idle(max(axes, key=lambda axis: axes[axis]), made)
    return Layout(made, state, split, None)


def _sizes(mesh, aims: Target) -> dict[str, int]:
    n = len(aims.devices)
    mesh = {"data": n} if mesh is None else mesh.shape if isinstance(mesh, Mesh) else mesh
    if not isinstance(mesh, Mapping):
        raise TypeError(
            f"plan: mesh is {mesh!r}, expected the sizes of its axes, such as mesh={{'fsdp': {n}}}"
        )
    need = math.prod(mesh.values()) if all(type(k) is int for k in mesh.values()) else n
    if need != n and need > 0:
        said = ", ".join(f"{axis}={k}" for axis, k in mesh.items())
        raise ValueError(
            f"plan: mesh({said}) needs {need} devices, the topology {aims.name} has {n}: give "
            f"sizes that multiply to {n}, or another topology"
        )
    return dict(mesh)


def check(layout: Layout, placed, program) -> None:
    """Raise if nothing is split over an axis of the mesh: its devices would all do the same.

    Args:
      layout: where state and batch go.
      placed: leaves [...] of state and batch with their shardings.
      program: the jaxpr of the update, which may name axes by itself.

    Raises:
      ValueError: names the axis, the nearest that the rules know, and what they split over it.

    >>> check(Layout(None, rules.replicated, PartitionSpec(), None), {}, None)
    """
    many = [] if layout.mesh is None else [a for a, n in layout.mesh.shape.items() if n > 1]
    specs = [x.sharding.spec for x in jax.tree.leaves(placed)] if many else []
    idle = set(many) - {axis for spec in specs for part in spec for axis in named(part)}
    idle -= _named_in(program) if idle else set()
    if idle:
        raise _idle(min(idle), layout.mesh)


def _idle(axis: str, mesh) -> ValueError:
    """The error for an axis that nothing is split over."""
    near = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.5)
    hint = f"the axes that are known are {', '.join(AXES)}"
    if axis in AXES:
        hint = f"{axis!r} is for {AXES[axis]}: there is none here, or it is not to be split"
    elif near:
        hint = f"perhaps you meant {near[0]!r}, which is for {AXES[near[0]]}"
    return ValueError(
        f"plan: nothing is split over the axis {axis!r} of the mesh, so that each of its "
        f"{mesh.shape[axis]} devices would do all the work; {hint}; or name {axis!r} in state= or "
        "split="
    )


def _named_in(program) -> set[str]:
    """The mesh axes in the PartitionSpecs of a program: its constraints and shard_maps."""
    found: set[str] = set()
    for eqn in getattr(program, "jaxpr", program).eqns:
        leaf = lambda x: isinstance(x, PartitionSpec)
        for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=leaf):
            spec = getattr(x, "spec", x)
            if isinstance(spec, PartitionSpec):
                found |= {axis for part in spec if part for axis in named(part)}
        for inner in programs_of(eqn.params):
            found |= _named_in(inner)
    return found
