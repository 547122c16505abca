"""What `nnkit sweep` reports: the rows of all settings as tables and curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnkit.cli.settings import label

__all__ = ["Report"]


class Report:
    """The rows of every setting, values [seeds], and what is read off them.

    Args:
      logs: {label: rows}, rows as `fit` gives them.
      settings: [{field: value}] in the same order.
      seeds: runs per setting.

    >>> rows = [{"step": 9, "split": "test", "loss": np.array([0.5, 0.7])}]
    >>> Report({"rate=0.1": rows}, [{"rate": 0.1}], 2).last("test", "loss")
    {'rate=0.1': array([0.5, 0.7])}
    """

    def __init__(self, logs: dict[str, list[dict]], settings: list[dict], seeds: int):
        self.logs, self.settings, self.seeds = logs, settings, seeds

    def chosen(self, split: str | None, metric: str | None) -> tuple[str, str]:
        """The split and the metric that count: those asked for, or the usual ones."""
        rows = [row for log in self.logs.values() for row in log if "split" in row]
        if not rows:
            raise ValueError("no setting was evaluated: every one diverged before")
        splits = list(dict.fromkeys(row["split"] for row in rows))
        split = split or ("validation" if "validation" in splits else splits[0])
        here = next((row for row in rows if row["split"] == split), None)
        if here is None:
            raise ValueError(f"--metric {split}/...: the evaluations are of {splits}")
        metric = metric or ("accuracy" if "accuracy" in here else "loss")
        if metric not in here:
            known = sorted(set(here) - {"step", "time", "split"})
            raise ValueError(f"--metric {metric}: the evaluations give {known}")
        return split, metric

    def series(self, split: str, metric: str) -> dict[str, tuple[list, Any]]:
        """{label: (steps [k], values [k seeds])} for learning curves."""
        found = {}
        for name, log in self.logs.items():
            rows = [r for r in log if r.get("split") == split and metric in r]
            values = [self._wide(r[metric]) for r in rows]
            found[name] = ([r["step"] for r in rows], np.reshape(values, (-1, self.seeds)))
        return found

    def last(self, split: str, metric: str) -> dict[str, np.ndarray]:
        """{label: [seeds]} at the last evaluation; NaN for a setting that has none."""
        found = {}
        for name, (_, values) in self.series(split, metric).items():
            none = np.full(self.seeds, np.nan)
            found[name] = np.where(self._lost(name), np.nan, values[-1]) if len(values) else none
        return found

    def table(self, split: str, metric: str, best: str | None) -> list[dict]:
        """One row per setting: fields, seeds, mean ± 95 % CI, who diverged, the best."""
        from nnkit.loop import number

        last, rows = self.last(split, metric), []
        for name, setting in zip(self.logs, self.settings):
            fine = last[name][np.isfinite(last[name])]
            row = {field: label({field: v}).partition("=")[2] for field, v in setting.items()}
            row[f"{split} {metric}"] = number(fine) if len(fine) else "-"
            row["seeds"] = f"{len(fine)} of {self.seeds}"
            row[""] = "<- best mean" if name == best else ""
            row["values"] = last[name].tolist()
            rows.append(row)
        return rows

    def diverged(self) -> str:
        """ "3 of 16 diverged: learning_rate=0.1; ...", or ""."""
        lost = {name: int(self._lost(name).sum()) for name in self.logs}
        gone = {name: k for name, k in lost.items() if k}
        if not gone:
            return ""
        named = "; ".join(f"{name} ({k} of {self.seeds})" for name, k in gone.items())
        return f"{sum(gone.values())} of {len(self.logs) * self.seeds} diverged: {named}"

    def long(self) -> list[dict]:
        """Every number of every evaluation: a row for each setting, seed, step, split, metric."""
        found = []
        for (_, log), setting in zip(self.logs.items(), self.settings):
            own = {field: label({field: v}).partition("=")[2] for field, v in setting.items()}
            for row in log:
                for metric, values in row.items():
                    if metric in ("step", "time", "split") or isinstance(values, str):
                        continue
                    x = np.asarray(values)
                    if x.dtype.kind not in "fiu" or x.size not in (1, self.seeds):
                        continue  # a table of every class
                    for seed, value in enumerate(self._wide(x)):
                        place = {"step": row["step"], "split": row.get("split", "train")}
                        number = {"metric": metric, "value": float(value)}
                        found.append({**own, "seed": seed, **place, **number})
        return found

    def _wide(self, values) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, np.float64).ravel(), (self.seeds,))

    def _lost(self, name: str) -> np.ndarray:
        """[seeds] bool: is the last training loss not finite, or was every update skipped?"""
        rows = [row for row in self.logs[name] if "split" not in row and "loss" in row]
        if not rows:
            return np.zeros(self.seeds, bool)
        skipped = self._wide(rows[-1].get("skipped", 0.0)) == 1
        return ~np.isfinite(self._wide(rows[-1]["loss"])) | skipped
