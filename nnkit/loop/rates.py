"""Does the learning rate fall to 0 before the run ends? Asked of the schedules in a step."""

from __future__ import annotations

import functools
import types
from typing import Any

from nnkit.core.checks import concrete

__all__ = ["lasting"]

HOME = "nnkit.optim.schedules"


def lasting(update, steps: int) -> None:
    """Raise if a schedule of `nnkit.optim` that the update reads is at 0 before the last step.

    Args:
      update: of a Step.
      steps: of the run.

    Raises:
      ValueError: naming the schedule, its length and the run's.

    >>> tx = optax.sgd(nk.optim.linear(0.1, steps=10))
    >>> lasting(tx.update, 10)
    >>> lasting(tx.update, 20)
    Traceback (most recent call last):
        ...
    ValueError: linear(steps=10) ends at rate 0, expected at least the 20 steps of the run: give...
    """
    for schedule in _schedules(update):
        around = dict(zip(schedule.__code__.co_freevars, schedule.__closure__ or ()))
        known = [concrete(around[n].cell_contents) for n in ("steps", "final") if n in around]
        if len(known) < 2 or any(x is None for x in known):
            continue
        length, final = (float(x) for x in known)  # pyright: ignore[reportArgumentType]
        if final == 0 and length < steps:
            name = schedule.__qualname__.partition(".")[0]
            raise ValueError(
                f"{name}(steps={length:g}) ends at rate 0, expected at least the {steps} steps of "
                f"the run: give it steps={steps}, or a final rate above 0"
            )


def _schedules(f) -> list[types.FunctionType]:
    """The functions of `nnkit.optim.schedules` within a function, through what it holds."""
    found, seen, ahead = [], set(), [f]
    while ahead:
        x: Any = ahead.pop()
        if id(x) in seen or len(seen) > 10_000:
            continue
        seen.add(id(x))
        if isinstance(x, functools.partial):
            ahead += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, tuple | list):
            ahead += x
        elif isinstance(x, dict):
            ahead += x.values()
        elif isinstance(x, types.FunctionType):
            if x.__module__ == HOME and x.__qualname__.endswith("<locals>.rate"):
                found.append(x)
                continue
            for cell in x.__closure__ or ():
                try:
                    ahead.append(cell.cell_contents)
                except ValueError:  # no value yet
                    continue
    return found
