"""Where a window stands: strides and padding per axis, for convolutions and pooling."""

from __future__ import annotations

import math

import numpy as np

from nnkit.core.checks import sizes

__all__: list[str] = []


def many(value) -> bool:
    """Is it one value per axis, or one for all?"""
    return isinstance(value, list | tuple | np.ndarray)


def each(layer: str, name: str, value, rank: int) -> tuple[int, ...]:
    """One integer >= 1 per axis."""
    all_of = tuple(value) if many(value) else (value,) * rank
    if len(all_of) != rank:
        raise ValueError(
            f"{layer}: {name} is {value!r}, expected one number, or {rank}: one per axis"
        )
    for x in all_of:
        sizes(layer, **{name: x})
    return all_of


def pads_of(layer, padding, space, window, strides, dilation=None):
    """(before, after) per axis for a window that walks over the axes `space`."""
    reach = [d * (k - 1) + 1 for k, d in zip(window, dilation or (1,) * len(window))]
    if padding == "VALID":
        return [(0, 0)] * len(reach)
    if padding == "SAME":
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(space, reach, strides)]
        return [(p // 2, p - p // 2) for p in total]
    if padding == "CAUSAL" and len(reach) == 1:
        return [(reach[0] - 1, 0)]
    if isinstance(padding, str):
        raise ValueError(
            f"{layer}: padding is {padding!r}, expected 'SAME', 'VALID', 'CAUSAL' (sequences "
            "[b t c]), one number, or one number or pair (before, after) per axis"
        )
    return pairs(layer, padding, len(reach))


def pairs(layer: str, padding, rank: int) -> list[tuple[int, int]]:
    """Numbers >= 0 as one pair (before, after) per axis."""
    given = list(padding) if many(padding) else [padding] * rank
    found = [tuple(p) if many(p) else (p, p) for p in given]
    right = all(len(p) == 2 and all(isinstance(q, int) and q >= 0 for q in p) for p in found)
    if not right or len(found) != rank:
        raise ValueError(
            f"{layer}: padding is {padding!r}, expected a name, one number >= 0, or {rank} numbers "
            f"or pairs (before, after), as in {((1, 1),) * rank}"
        )
    return [(a, b) for a, b in found]


def spread(reach: int, stride: int, *, same: bool) -> tuple[int, int]:
    """Padding of the enlarged input: size * stride cells come out, or all that are reached."""
    total = reach + stride - 2 + (0 if same else max(reach - stride, 0))
    if same and stride <= reach - 1:
        before = math.ceil(total / 2)
    else:
        before = reach - 1
    return before, total - before
