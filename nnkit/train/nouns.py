"""The check that a technique was given the noun it wraps."""

from __future__ import annotations

__all__ = ["expect"]

# what to write to get one
MADE_BY = {
    "Objective": "nk.supervised(model, loss) or nk.objective(init, loss)",
    "Gradient": "nk.gradient(objective)",
    "Step": "nk.step(gradient, tx)",
}


def expect(who: str, x, kind: type) -> None:
    """Raise a TypeError unless `x` is of the kind that `who` takes.

    >>> expect("ema", 0.5, nk.Step)
    Traceback (most recent call last):
        ...
    TypeError: ema got float, expected a Step: nk.step(gradient, tx)
    """
    if not isinstance(x, kind):
        name = kind.__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise TypeError(f"{who} got {type(x).__name__}, expected {article} {name}: {MADE_BY[name]}")
