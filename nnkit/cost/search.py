"""The largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["largest"]


def largest(
    peak: Callable[[int], float | None],
    limit: float,
    *,
    start: int,
    granule: int = 1,
    tries: int = 16,
) -> tuple[int, int | None]:
    """The largest multiple of `granule` whose peak is within the limit: (fits, does not fit).

    Memory is nearly a straight line in the batch size, so that a line through the two nearest
    trials says where to try next; trials close in from both sides until nothing is left between.

    Args:
      peak: bytes of a batch size, from a real compile; inf if it is refused without a number.
      limit: bytes there are.
      start: the first batch size to try, rounded down to the granule.
      granule: batch sizes are multiples of it.
      tries: compiles at most.

    Returns:
      (the largest size found to fit, 0 if none; the smallest found not to fit, None if there is
      none). The first is the largest of all if they are one granule apart.

    Raises:
      ValueError: if a number is not >= 1.

    >>> largest(lambda b: 100 + 7.0 * b, 1000, start=8)
    (128, 129)
    >>> largest(lambda b: 100 + 7.0 * b, 1000, start=8, granule=8)
    (128, 136)
    """
    if min(start, granule, tries) < 1:
        raise ValueError(
            f"largest(start={start}, granule={granule}, tries={tries}): expected integers >= 1"
        )
    seen: dict[int, float] = {}
    low, high, now = 0, None, max(1, start // granule)
    for n in range(tries):
        found = peak(now * granule)
        found = float("inf") if found is None else found
        seen[now] = found
        if found <= limit:
            low = max(low, now)
        else:
            high = now if high is None else min(high, now)
        if high is not None and high - low <= 1:
            break
        now = _next(seen, low, high, limit, careful=n > tries // 2)
    return low * granule, None if high is None else high * granule


def _next(seen: dict[int, float], low: int, high: int | None, limit: float, careful: bool) -> int:
    points = sorted((b, p) for b, p in seen.items() if p != float("inf"))
    points = sorted(sorted(points, key=lambda x: abs(x[1] - limit))[:2])
    if careful and high is not None:
        guess = (low + high) // 2
    elif len(points) == 2 and points[1][1] > points[0][1]:
        (a, p), (b, q) = points
        guess = int(a + (limit - p) * (b - a) / (q - p))
    else:
        guess = low * 2 if high is None else (low + high) // 2
    guess = min(guess, max(low, 1) * 64) if high is None else min(guess, high - 1)
    return max(guess, low + 1)
