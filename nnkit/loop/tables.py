"""Results over seeds: means with confidence intervals, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["interval", "number", "percent", "print_table"]


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its confidence interval by Student's t.

    mean ± t_{n-1} s / sqrt(n), with s the sample deviation (n - 1).

    Args:
      values: [n] one number per seed.
      confidence: in (0, 1).

    Returns:
      (mean, half width); the half width of one value is NaN: nothing is known about the spread.

    Raises:
      ValueError: if there is no value, or the confidence is outside (0, 1).

    >>> mean, half = interval([0.97, 0.98, 0.99])
    >>> round(mean, 3), round(half, 4)
    (0.98, 0.0248)

    Student 1908, doi:10.1093/biomet/6.1.1.
    """
    from scipy import stats

    x = np.asarray(values, np.float64).ravel()
    if not x.size or not 0 < confidence < 1:
        raise ValueError(
            f"interval of {x.size} values at confidence {confidence}: need >= 1 value, and a "
            "confidence between 0 and 1 such as 0.95"
        )
    if x.size == 1:
        return float(x[0]), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return float(x.mean()), float(half)


def percent(values, confidence: float = 0.95) -> str:
    """Shares as "98.12 ± 0.30 %": mean and confidence interval over seeds (see `interval`).

    Args:
      values: [n] shares in [0, 1], one per seed.
      confidence: in (0, 1).

    Returns:
      The text; without ± for one value.

    >>> percent([0.97, 0.98, 0.99]), percent([0.5])
    ('98.00 ± 2.48 %', '50.00 %')
    """
    mean, half = interval(values, confidence)
    return f"{100 * mean:.2f} %" if np.isnan(half) else f"{100 * mean:.2f} ± {100 * half:.2f} %"


def number(values, digits: int = 4, confidence: float = 0.95) -> str:
    """Numbers as "1.7717 ± 0.0102": mean and confidence interval over seeds (see `interval`).

    Args:
      values: [n] one number per seed.
      digits: behind the point.
      confidence: in (0, 1).

    Returns:
      The text; without ± for one value.

    >>> number([0.97, 0.98, 0.99], 2), number([0.5])
    ('0.98 ± 0.02', '0.5000')
    """
    mean, half = interval(values, confidence)
    spread = "" if np.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def print_table(rows: Sequence[Mapping], title: str = "") -> None:
    """Print rows with the same keys as a table; lists in a row are left out.

    Args:
      rows: mappings of names to text, numbers or lists.
      title: a line above.

    >>> print_table([{"a": 1, "b": "x"}], title="two columns")  # doctest: +ELLIPSIS
    two columns...
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    names = [name for name, x in rows[0].items() if not isinstance(x, list)] if rows else []
    for name in names:
        text = isinstance(rows[0][name], str)
        table.add_column(str(name), justify="left" if text else "right", overflow="fold")
    for row in rows:
        cells = [row[name] for name in names]
        table.add_row(*(x if isinstance(x, str) else f"{x:.6g}" for x in cells))
    console = Console(width=None if _wide() else 110, markup=False, highlight=False)
    if title:
        console.print(title, soft_wrap=True)
    console.print(table)


def _wide() -> bool:
    import sys

    return sys.stdout.isatty()
