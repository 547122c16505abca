"""Published sizes of a model by name, and whether one size divides another."""

from __future__ import annotations

__all__ = ["divides", "pick"]


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
