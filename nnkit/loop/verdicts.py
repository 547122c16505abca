"""Settings compared on equal seeds: differences, intervals, and whether a winner can be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nnkit.loop.tables import interval

__all__ = ["Difference", "Verdict", "paired", "verdict"]


class Difference(NamedTuple):
    """The mean difference of two settings over the same seeds.

    Attributes:
      mean: of a - b.
      half: half width of its confidence interval; NaN for one seed.
      p: of a two-sided paired t-test; NaN for one seed.

    >>> Difference(0.25, 0.5, 0.2).p
    0.2
    """

    mean: float
    half: float
    p: float


def paired(a, b, confidence: float = 0.95) -> Difference:
    """Two settings on equal seeds: the paired t-test, and the interval of the mean difference.

    d_i = a_i - b_i; mean(d) ± t_{n-1} s / sqrt(n); p from t = mean(d) sqrt(n) / s.

    Args:
      a: [n] one number per seed.
      b: [n] the other setting's, of the same seeds in the same order.
      confidence: of the interval, in (0, 1).

    Returns:
      A `Difference`. If all d_i are equal the interval is a point.

    Raises:
      ValueError: if the lengths differ.

    >>> found = paired([0.9, 0.8, 0.85], [0.7, 0.75, 0.7])
    >>> round(found.mean, 4), round(found.half, 4), round(found.p, 4)
    (0.1333, 0.1897, 0.0942)

    Student 1908, doi:10.1093/biomet/6.1.1.
    """
    from scipy import stats

    x, y = (np.asarray(v, np.float64).ravel() for v in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"paired: {x.size} values and {y.size}, expected one each per seed")
    d = x - y
    mean, half = interval(d, confidence)
    if d.size == 1:
        return Difference(mean, half, float("nan"))
    error = d.std(ddof=1) / np.sqrt(d.size)
    if error == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    return Difference(mean, half, float(2 * stats.t.sf(abs(mean) / error, d.size - 1)))


class Verdict(NamedTuple):
    """What a comparison of settings comes to.

    Attributes:
      best: the setting with the best mean; None if none is finite.
      winner: the same, if it can be named; else None.
      said: a sentence.
      against: {setting: `Difference` best - setting} of the others.

    >>> Verdict("a", None, "no winner can be named", {}).winner is None
    True
    """

    best: str | None
    winner: str | None
    said: str
    against: dict[str, Difference]


def verdict(
    values: Mapping[str, object], *, mode: str = "max", confidence: float = 0.95
) -> Verdict:
    """Which setting is best, and whether that can be said: paired tests against each other one.

    A winner is named if the interval of its difference to every other setting, each at confidence
    1 - (1 - confidence) / (settings - 1), lies on one side of 0. Settings with a seed that is not
    finite cannot win; they are compared on nothing.

    Args:
      values: {setting: [n] one number per seed}, seeds in the same order.
      mode: "max" or "min": what is good.
      confidence: of all the intervals together, in (0, 1).

    Returns:
      A `Verdict`.

    Raises:
      ValueError: if there is no setting, the numbers of seeds differ, or mode is off.

    >>> print(verdict({"a": [0.9, 0.8, 0.85], "b": [0.7, 0.75, 0.7]}).said)
    no winner can be named: a - b = +0.1333 (-0.0564 to +0.3231, p = 0.094, n = 3 seeds) holds 0

    Dunn 1961, doi:10.1080/01621459.1961.10482090 (the intervals of several comparisons).
    """
    if mode not in ("max", "min"):
        raise ValueError(f"verdict(mode={mode!r}): expected 'max' or 'min'")
    table = {name: np.asarray(x, np.float64).ravel() for name, x in values.items()}
    if len({x.size for x in table.values()}) != 1:
        sizes = {name: x.size for name, x in table.items()}
        raise ValueError(f"verdict: seeds per setting {sizes}, expected the same number >= 1")
    seeds = len(next(iter(table.values())))
    whole = {name: x for name, x in table.items() if np.isfinite(x).all()}
    if not whole:
        return Verdict(None, None, "no winner can be named: every setting diverged", {})
    sign = 1 if mode == "max" else -1
    best = max(whole, key=lambda name: sign * whole[name].mean())
    others = [name for name in whole if name != best]
    if len(table) == 1:
        return Verdict(best, None, "one setting: there is nothing to compare it with", {})
    if not others:
        return Verdict(best, best, f"{best} wins: every other setting diverged", {})
    if seeds == 1:
        return Verdict(
            best, None, "no winner can be named: one seed says nothing of the spread", {}
        )
    level = 1 - (1 - confidence) / len(others)
    against = {name: paired(whole[best], whole[name], level) for name in others}
    name = min(others, key=lambda o: sign * against[o].mean - against[o].half)
    found = against[name]
    text = (
        f"{best} - {name} = {found.mean:+.4g} ({found.mean - found.half:+.4g} to "
        f"{found.mean + found.half:+.4g}, p = {found.p:.2g}, n = {seeds} seeds)"
    )
    if abs(found.mean) > found.half:
        more = f"; the closest of {len(others)}" if len(others) > 1 else ""
        return Verdict(best, best, f"{best} wins: {text}{more}", against)
    return Verdict(best, None, f"no winner can be named: {text} holds 0", against)
