"""Progress that suits where it is shown: a terminal, a notebook, or a pipe.

Terminal: one line that rewrites itself (rich). Notebook: one display that is updated, so that a
saved notebook shows the last state to any viewer. Anything else (CI, `> log.txt`): whole lines at
steps 1, 2, 4, 8, ... and once a minute; never a carriage return into a pipe.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import numpy as np

__all__ = ["Progress"]


def shown(row: Mapping) -> str:
    """A row of the log as text: numbers short, members [n] as their range.

    >>> shown({"step": 3, "time": 0.1, "loss": 0.25, "accuracy": np.array([0.5, 0.75])})
    'loss 0.25  accuracy 0.5..0.75'
    """
    parts = []
    for name, x in row.items():
        if name in ("step", "time"):
            continue
        if isinstance(x, str):
            parts.append(x)
        elif np.ndim(x) == 0:
            parts.append(f"{name} {x:.4g}")
        elif np.ndim(x) == 1:
            low, high = f"{np.nanmin(x):.4g}", f"{np.nanmax(x):.4g}"
            parts.append(f"{name} {low}" if np.size(x) == 1 else f"{name} {low}..{high}")
    return "  ".join(parts)


def kind() -> str:
    """Where output goes: "terminal", "notebook" or "lines".

    >>> kind() in ("terminal", "notebook", "lines")
    True
    """
    shell = sys.modules.get("IPython")
    if shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None:
        return "notebook"
    return "terminal" if sys.stdout.isatty() else "lines"


class Progress:
    """Shows how far a loop is. `show=False` is silent.

    Args:
      start: steps done already.
      steps: steps to do in all.
      show: False for silence, None or True to choose by `kind`.

    >>> with Progress(0, 2, show=False) as progress:
    ...     progress.update(1)
    """

    def __init__(self, start: int, steps: int, *, show: bool | None = None):
        self.steps, self.start = steps, start
        self.began = self.last = time.monotonic()
        self.text = ""
        self.kind = "silent" if show is False else kind()
        self.handle = self.bar = self.task = None

    def __enter__(self) -> Progress:
        if self.kind == "notebook":
            from IPython.display import display  # pyright: ignore[reportMissingImports]

            self.handle = display({"text/plain": ""}, raw=True, display_id=True)
        elif self.kind == "terminal":
            from rich import progress

            self.bar = progress.Progress(
                progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                progress.BarColumn(bar_width=20),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}", markup=False),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.steps, completed=self.start)
        return self

    def __exit__(self, *exc) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, row: Mapping | None = None) -> None:
        """Tell that `step` is done, with the row just logged if there is one."""
        if self.kind == "silent":
            return
        if row is not None:
            self.text = shown(row)
        now = time.monotonic()
        final = step >= self.steps
        if self.kind == "lines":
            if row is None and now - self.last < 60:
                return
            doubling = step & (step - 1) == 0
            if doubling or final or "split" in (row or {}) or now - self.last >= 60:
                self.last = now
                print(f"step {step:,}/{self.steps:,}  {self.text}", flush=True)
        elif final or row is not None or now - self.last > 0.2:
            self.last = now
            self._paint(step, now)

    def _paint(self, step: int, now: float) -> None:
        rate = (step - self.start) / max(now - self.began, 1e-9)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, description=f"{rate:,.0f}/s  {self.text}")
        elif self.handle is not None:
            text = f"step {step:,}/{self.steps:,}  {rate:,.0f}/s  {self.text}"
            self.handle.update({"text/plain": text}, raw=True)
