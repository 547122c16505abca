"""Learning curves of settings: the mean over seeds, with a band."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.loop.tables import interval

__all__ = ["curves", "write_csv"]


def curves(
    settings: Mapping[str, tuple[Sequence, Any]], *, metric: str = "loss", title: str = ""
) -> Any:
    """A figure of learning curves: for each setting the mean over seeds and its 95 % t-band.

    Args:
      settings: {label: (steps [k], values [k n])}, n numbers per step, one per seed. What is not
        finite is left out; a step with one number has no band.
      metric: label of the vertical axis.
      title: above.

    Returns:
      A matplotlib Figure, which no window shows; `figure.savefig(path)` writes it.

    Raises:
      ValueError: if there is no setting, or steps and values differ in length.

    >>> figure = curves({"rate 0.1": ([1, 2], np.array([[1.0, 1.2], [0.5, 0.4]]))})
    >>> len(figure.axes[0].lines)
    1

    Student 1908, doi:10.1093/biomet/6.1.1 (the bands).
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if not settings:
        raise ValueError("curves: there is no setting to draw, expected {label: (steps, values)}")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0.0, 0.88, len(settings)))
    for (label, (steps, values)), colour in zip(settings.items(), colours):
        x, y = np.asarray(steps), np.asarray(values, np.float64)
        if y.ndim != 2 or len(x) != len(y):
            raise ValueError(f"curves: {label!r} has {x.shape} steps, values {y.shape}; want [k n]")
        spans = [interval(row[np.isfinite(row)]) for row in y if np.isfinite(row).any()]
        x = x[np.isfinite(y).any(1)]
        mean, half = np.array(spans).T if spans else (np.zeros(0), np.zeros(0))
        half = np.nan_to_num(half)
        axes.plot(x, mean, color=colour, label=label, marker="." if len(x) < 30 else "")
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    seeds = {np.shape(values)[1] for _, values in settings.values()}
    band = f" (mean, 95 % interval of {max(seeds)} seeds)" if max(seeds) > 1 else ""
    axes.set_xlabel("step")
    axes.set_ylabel(f"{metric}{band}")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def write_csv(path, rows: Sequence[Mapping]) -> None:
    """Rows with the same keys as a file of comma-separated values.

    Args:
      path: of the file.
      rows: mappings of names to numbers or text.

    Raises:
      ValueError: if there is no row, or one has other keys.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.csv"
    >>> write_csv(path, [{"seed": 0, "loss": 0.5}])
    >>> print(Path(path).read_text().strip())
    seed,loss
    0,0.5
    """
    if not rows:
        raise ValueError("write_csv: there is no row")
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
