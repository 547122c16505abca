"""What rules are made of: tables of patterns over paths, and two rules together."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec

__all__: list[str] = []

SMALL = 1024  # leaves of fewer numbers are not worth splitting, nor are smaller vocabularies


def has(rule: str, axis: str, mesh: Mesh) -> None:
    if axis not in mesh.axis_names:
        raise ValueError(
            f"rules.{rule} splits over the mesh axis {axis!r}, the mesh has the axes "
            f"{mesh.axis_names}; make it with nk.mesh({axis}=...)"
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """Patterns and their specs; with an axis it is one of ours, whose specs fit the last axes."""

    name: str
    table: tuple[tuple[str, PartitionSpec], ...]
    axis: str | None = None
    vocabulary: str = "$^"

    def __call__(self, path: str, leaf, mesh: Mesh) -> PartitionSpec:
        if self.axis is not None:
            has(self.name, self.axis, mesh)
        spec, shape = self.found(path)[1], np.shape(leaf)
        if self.axis is not None and len(shape) < len(spec):
            return PartitionSpec()
        if self.axis is not None and tuple(spec):
            spec = PartitionSpec(*[None] * (len(shape) - len(spec)), *spec)
        single = [n == 1 for n, part in zip(shape, spec) if part]
        if any(single) and not isinstance(leaf, Left):  # in place of a moment
            return PartitionSpec()
        if self.axis is None or not tuple(spec):
            return spec
        if re.search(self.vocabulary, path):
            size = max(shape)
            if shape[tuple(spec).index(self.axis)] != size or size < SMALL:
                return PartitionSpec()
            if size % mesh.shape[self.axis]:
                return PartitionSpec()
        return spec

    def found(self, path: str) -> tuple[str | None, PartitionSpec]:
        """The pattern that decides about a path, and its spec."""
        for pattern, spec in self.table:
            if re.search(pattern, path):
                return pattern, spec
        return None, PartitionSpec()

    def check(self, paths: list[str]) -> None:
        used = {self.found(path)[0] for path in paths} - {None}
        idle = [pattern for pattern, _ in self.table if pattern not in used]
        if not idle or (self.axis is not None and used):
            return
        if self.axis is None:
            near = difflib.get_close_matches(idle[0], paths, n=len(paths), cutoff=0.0)
            raise ValueError(
                f"by_path: pattern {idle[0]!r} decides about no leaf; the nearest of {len(paths)} "
                f"paths are {near[:4]}; a pattern is searched in a path, the first found decides"
            )
        raise ValueError(
            f"rules.{self.name} knows none of the {len(paths)} leaves, such as {paths[:6]}; it "
            f"reads {_READS[self.name]}: write the names of your own model with rules.by_path"
        )


@dataclasses.dataclass(frozen=True)
class Left:
    """What the first of two rules leaves: axes it took have size 1."""

    shape: tuple[int, ...]
    size: int
    dtype: Any
    ndim: int


@dataclasses.dataclass(frozen=True)
class Both:
    first: Callable
    second: Callable

    def __call__(self, path: str, leaf, mesh: Mesh) -> PartitionSpec:
        shape = np.shape(leaf)
        a = padded(self.first(path, leaf, mesh), len(shape))
        taken = {axis for part in a for axis in named(part)}
        left = tuple(1 if part else n for n, part in zip(shape, a))
        size = int(np.prod(shape)) // int(np.prod([mesh.shape[axis] for axis in taken]))
        rest = Left(left, size, getattr(leaf, "dtype", None), len(shape))
        b = padded(self.second(path, rest, mesh), len(shape))
        again = taken & {axis for part in b for axis in named(part)}
        twice = [i for i, pair in enumerate(zip(a, b)) if all(pair)]
        if again or twice:
            what = f"the mesh axis {min(again)!r}" if again else f"axis {twice[0]} of the leaf"
            raise ValueError(
                f"both: the two rules want {PartitionSpec(*a)} and {PartitionSpec(*b)} for "
                f"{path!r} of shape {shape}: both use {what}"
            )
        merged = [x or y for x, y in zip(a, b)]
        return PartitionSpec(*merged) if any(merged) else PartitionSpec()

    def check(self, paths: list[str]) -> None:
        check(self.first, paths)
        check(self.second, paths)


def check(rule: Callable, paths: list[str]) -> None:
    """Raise if a rule made of patterns decides about none of these leaves."""
    if isinstance(rule, Table | Both):
        rule.check(paths)


def named(part) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, a name, or several.

    >>> named(None), named("data"), named(("data", "fsdp"))
    ((), ('data',), ('data', 'fsdp'))
    """
    return part if isinstance(part, tuple) else (part,) if part else ()


def padded(spec: PartitionSpec, ndim: int) -> list:
    parts = list(spec)
    return parts + [None] * (ndim - len(parts))


_COLUMNS, _ROWS = PartitionSpec(None, "tensor"), PartitionSpec("tensor", None)
TENSOR = Table(
    "tensor",
    (
        (r"(attention|cross)/(query|key|value)/kernel$", _COLUMNS),
        (r"(attention|cross)/(query|key|value)/bias$", PartitionSpec("tensor")),
        (r"(attention|cross)/out/kernel$", _ROWS),
        (r"mlp/(up|gate)/kernel$", _COLUMNS),
        (r"mlp/(up|gate)/bias$", PartitionSpec("tensor")),
        (r"mlp/down/kernel$", _ROWS),
        (r"mlp/(up|gate)$", PartitionSpec(None, None, "tensor")),
        (r"mlp/down$", PartitionSpec(None, "tensor", None)),
        (r"(encoder|decoder)/bias/embedding$", _COLUMNS),  # of T5: by heads, as the scores
        (r"(^|/)embed/embedding$", _ROWS),
        (r"(^|/)head/kernel$", _COLUMNS),
    ),
    axis="tensor",
    vocabulary=r"(^|/)(embed/embedding|head/kernel)$",
)
EXPERT = Table(
    "expert", ((r"mlp/(up|gate|down)$", PartitionSpec("expert", None, None)),), axis="expert"
)
_READS = {
    "tensor": "block_0/attention/query/kernel, block_0/mlp/up/kernel and the like, of GPT, BERT, "
    "ViT and EncDec",
    "expert": "block_0/mlp/up, gate and down [experts ...] of layers.MoE",
}
