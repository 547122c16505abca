"""Are the fields of a model possible? Asked when it is first used, before JAX sees them."""

from __future__ import annotations

import operator

import numpy as np

from nnkit.core.checks import concrete

__all__ = ["divides", "pick", "shares", "sizes"]


def sizes(model: str, *, many: bool = False, **fields) -> None:
    """Every field must be an integer >= 1, or (many) a list of at least one of them.

    Args:
      model: its name, for the message.
      many: are the fields lists?
      **fields: values by name.

    Raises:
      TypeError: if a field is of another kind.
      ValueError: if a list is empty, or a size is not >= 1.

    >>> sizes("MLP", many=True, widths=3)
    Traceback (most recent call last):
        ...
    TypeError: MLP: widths is 3, expected integers >= 1 in a list or tuple; write widths=(3,)
    """
    for name, value in fields.items():
        said = f"{model}: {name} is {value!r:.60}, expected"
        if not many:
            _size(value, said + f" an integer >= 1; write {name}=10 for 10")
            continue
        if not isinstance(value, list | tuple | range | np.ndarray):
            one = f"({value},)" if _whole(value) else "(64, 10)"
            raise TypeError(f"{said} integers >= 1 in a list or tuple; write {name}={one}")
        if not len(value):
            raise ValueError(f"{said} at least one integer >= 1, such as {name}=(64, 10)")
        for i, x in enumerate(value):
            where = f"{model}: {name}[{i}] is {x!r:.60} in {value!r:.60}, expected"
            _size(x, f"{where} an integer >= 1, as in {name}=(64, 10)")


def shares(model: str, **fields) -> None:
    """Every field must be a number in [0, 1): the share that is dropped.

    Args:
      model: its name, for the message.
      **fields: values [] by name; traced ones pass.

    Raises:
      TypeError: if one is no number.
      ValueError: if one is not in [0, 1).

    >>> shares("MLP", dropout=50)
    Traceback (most recent call last):
        ...
    ValueError: MLP: dropout is 50, expected a share in [0, 1): 0 drops nothing, 0.5 one half
    """
    for name, value in fields.items():
        said = f"{model}: {name} is {value!r:.60}, expected a share in [0, 1): 0 drops nothing, "
        known = concrete(value)
        if known is None:
            continue
        if known.ndim or known.dtype.kind not in "fiu":
            raise TypeError(f"{said}0.5 one half")
        if not 0 <= known < 1:
            raise ValueError(f"{said}0.5 one half")


def pick(model: str, table: dict, size: str) -> dict:
    """The fields of a published size, from the table of a model.

    Args:
      model: its name, for the message.
      table: {name: {field: value}}.
      size: one of the names.

    Returns:
      A dict of fields, its own copy.

    Raises:
      KeyError: if there is no such size; the message lists those there are.

    >>> pick("ViT", {"S/16": {"width": 384}}, "S16")
    Traceback (most recent call last):
        ...
    KeyError: "ViT has no size 'S16'; there are 'S/16'; other sizes: ViT(...) with its fields"
    """
    if size not in table:
        there = ", ".join(repr(name) for name in table)
        raise KeyError(
            f"{model} has no size {size!r}; there are {there}; other sizes: {model}(...) "
            "with its fields"
        )
    return dict(table[size])


def divides(model: str, **fields) -> None:
    """The second field must divide the first, as heads divide a width.

    Args:
      model: its name, for the message.
      **fields: two integers >= 1 by name.

    Raises:
      ValueError: if it does not; the message names the nearest widths that fit.

    >>> divides("GPT", width=100, heads=6)
    Traceback (most recent call last):
        ...
    ValueError: GPT: width=100 is not divisible by heads=6; use width=96 or 102, or other heads
    """
    (a, n), (b, k) = fields.items()
    if n % k:
        near = f"{n // k * k} or {(n // k + 1) * k}" if n >= k else f"{k}"
        raise ValueError(
            f"{model}: {a}={n} is not divisible by {b}={k}; use {a}={near}, or other {b}"
        )


def _size(x, said: str) -> None:
    if not _whole(x):
        raise TypeError(said)
    if operator.index(x) < 1:
        raise ValueError(said)


def _whole(x) -> bool:
    try:
        operator.index(x)
    except TypeError:
        return False
    return not isinstance(x, bool | np.bool_)
