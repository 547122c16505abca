"""Rules from the path of a leaf to the axes of a mesh it is split over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nnkit.parallel import patterns

__all__ = ["both", "by_path", "check", "expert", "fsdp", "leading", "replicated", "tensor"]


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

    Along the mesh axis "fsdp", or "data" where there is none. Leaves under 1,024 numbers, and
    those of which the devices divide no axis, stay whole: splitting them costs more than it saves.

    Args:
      path: name of the leaf.
      leaf: [...] the array.
      mesh: the mesh.

    Returns:
      A PartitionSpec with at most one axis.

    Raises:
      ValueError: if the mesh has neither axis.

    >>> fsdp("params/kernel", np.zeros((8, 512)), nk.mesh(data=4)) == PartitionSpec(None, "data")
    True

    Rajbhandari et al., arXiv:1910.02054, section 5 (ZeRO).
    """
    axis = "fsdp" if "fsdp" in mesh.axis_names else "data"
    patterns.has("fsdp", axis, mesh)
    shape, size = np.shape(leaf), getattr(leaf, "size", np.size(leaf))
    fits = [i for i, n in enumerate(shape) if n and n % mesh.shape[axis] == 0]
    if not fits or size < patterns.SMALL:
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


def tensor(path: str, leaf, mesh: Mesh) -> PartitionSpec:
    """Split the matrices of a Transformer over the mesh axis "tensor", as Megatron does.

    Query, key, value, up and gate by columns, out and down by rows: what lies between them stays
    on its device, and a block has two all-reduces forward and two backward. It reads the names of
    `GPT`, `BERT`, `ViT` and `EncDec`, experts included; norms and all else stay whole. A table of
    tokens and a head are split by the vocabulary, if it has 1,024 tokens or more and the devices
    divide it (GPT-2: make it 50,304 rather than 50,257). The devices should divide the heads, of
    keys and values too: a split inside of a head is computed right, with more communication.

    Args:
      path: name of the leaf, such as "params/block_0/attention/query/kernel".
      leaf: [...] the array; further leading axes, those of a sweep, stay whole.
      mesh: the mesh.

    Returns:
      A PartitionSpec with at most one axis.

    Raises:
      ValueError: if the mesh has no axis "tensor"; by `shard`, if no leaf has such a name, or the
        devices do not divide a matrix.

    >>> up = np.zeros((8, 32))
    >>> tensor("params/block_0/mlp/up/kernel", up, nk.mesh(tensor=4)) == PartitionSpec(
    ...     None, "tensor")
    True

    Shoeybi et al., arXiv:1909.08053, section 3.
    """
    return patterns.TENSOR(path, leaf, mesh)


def expert(path: str, leaf, mesh: Mesh) -> PartitionSpec:
    """Split the experts of `layers.MoE` over the mesh axis "expert"; all else stays whole.

    The batch goes over the same axis, batch=P("expert") or P(("data", "expert")), and the model has
    as many `groups` as devices share the batch: tokens then travel to their experts and back by
    all-to-all.

    Args:
      path: name of the leaf, such as "params/block_0/mlp/up".
      leaf: [...] the array; further leading axes, those of a sweep, stay whole.
      mesh: the mesh.

    Returns:
      A PartitionSpec with at most one axis.

    Raises:
      ValueError: if the mesh has no axis "expert"; by `shard`, if there is no expert, or the
        devices do not divide their number.

    >>> rule, up = expert, np.zeros((4, 8, 32))
    >>> rule("params/block_0/mlp/up", up, nk.mesh(expert=4)) == PartitionSpec("expert", None, None)
    True

    Lepikhin et al., arXiv:2006.16668, section 3.
    """
    return patterns.EXPERT(path, leaf, mesh)


def by_path(table: Mapping[str, PartitionSpec]) -> Callable:
    """A rule from patterns over paths: by_path({"mlp/up/kernel$": P(None, "tensor")}).

    The first pattern found in a path (`re.search`) decides; leaves that none matches stay whole,
    and so do those whose axis to be split has size 1.
    The state of a Step holds parameters and moments under similar names, "params/w" and
    "opt/0/mu/w": a pattern without "params" splits them alike.

    Args:
      table: {pattern: PartitionSpec}.

    Returns:
      A rule.

    Raises:
      TypeError: if a value is no PartitionSpec.
      ValueError: if there is no pattern or one is no regular expression; by `shard`, if a pattern
        decides about no leaf; the message names the paths there are, the nearest first.

    >>> rule = by_path({"kernel$": PartitionSpec(None, "tensor")})
    >>> rule("params/kernel", np.zeros((2, 4)), nk.mesh(tensor=4)) == PartitionSpec(None, "tensor")
    True
    """
    if not table:
        raise ValueError(
            "by_path({}) has no pattern; to keep every leaf whole use rules.replicated"
        )
    for pattern, spec in table.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"by_path: {pattern!r} is no regular expression: {error}") from error
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"by_path: {pattern!r} leads to {spec!r:.60}, expected a PartitionSpec such as "
                'P(None, "tensor")'
            )
    return patterns.Table("by_path", tuple(table.items()))


def both(first: Callable, second: Callable) -> Callable:
    """Two rules on one mesh: the first decides, the second splits an axis the first left whole.

    both(tensor, fsdp) on mesh(fsdp=4, tensor=2) holds an eighth of every matrix on each device.
    The second rule sees the leaf as the first leaves it to a device, with axes of size 1 where the
    first split. Three rules: both(both(expert, tensor), fsdp).

    Args:
      first: a rule.
      second: a rule over other axes of the mesh.

    Returns:
      A rule.

    Raises:
      ValueError: by the rule, if both want to split the same axis, or use the same mesh axis.

    >>> rule = both(tensor, fsdp)
    >>> tuple(rule("params/mlp/up/kernel", np.zeros((64, 64)), nk.mesh(fsdp=4, tensor=2)))
    ('fsdp', 'tensor')
    """
    return patterns.Both(_plain(first), _plain(second))


def check(rule: Callable, paths: Iterable[str]) -> None:
    """A rule made of patterns must decide about some leaf; any other rule passes.

    Args:
      rule: any rule.
      paths: names of the leaves there are.

    Raises:
      ValueError: if a pattern of `by_path` decides about none of them, or none of them has a name
        that `tensor` or `expert` reads.

    >>> check(by_path({"kernal": PartitionSpec("data")}), ["params/kernel", "params/bias"])
    Traceback (most recent call last):
        ...
    ValueError: by_path: pattern 'kernal' decides about no leaf; the nearest of 2 paths are...
    """
    patterns.check(_plain(rule), list(paths))


def _plain(rule: Callable) -> Callable:
    """The table behind `tensor` and `expert`; any other rule as it is."""
    return {tensor: patterns.TENSOR, expert: patterns.EXPERT}.get(rule, rule)
