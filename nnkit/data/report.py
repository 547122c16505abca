"""What a set of batches looks like: ranges, label counts, a fingerprint."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnkit.core.trees import digest

__all__ = ["corners", "fingerprint", "report", "text"]

_BYTES = 2**26  # a sample is at most this large


def _sample(batches, at_most: int) -> np.ndarray:
    """Row numbers [m], evenly spaced, first and last included."""
    n = batches.examples
    row = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in batches._rows.values())
    m = max(2, min(n, at_most, _BYTES // max(row, 1)))
    return np.unique(np.linspace(0, n - 1, m).astype(np.int64))


def _whole(batches, name: str) -> np.ndarray | None:
    """A field [n ...] where the source gives it cheaply."""
    column = getattr(batches.source, "column", None)
    return None if column is None else column(name)


def report(batches) -> dict[str, dict[str, Any]]:
    """Per field: dtype, shape, min, max, rows looked at; of integer labels the classes.

    Args:
      batches: a `Batches`.

    Returns:
      A dict by field.

    >>> from nnkit.data.arrays import arrays
    >>> report(arrays(np.float32([1, 2, 4]), [0, 0, 5], batch_size=1))["y"]["rarest"]
    0.3333333333333333
    """
    rows = _sample(batches, 1000)
    sample = None
    out = {}
    for name, spec in batches._rows.items():
        values = _whole(batches, name)
        if values is None:
            sample = batches.look(rows) if sample is None else sample
            values = sample[name]
        one = {"dtype": str(spec.dtype), "shape": tuple(spec.shape), "rows": len(values)}
        if values.size and spec.dtype.kind != "c":
            one |= {"min": values.min().item(), "max": values.max().item()}
        if name == "y" and spec.dtype.kind in "iu" and values.size <= 10**7:
            counts = np.unique(values, return_counts=True)[1]
            one |= {"classes": len(counts), "rarest": counts.min().item() / values.size}
        out[name] = one
    return out


def text(batches) -> str:
    """The report in a few lines.

    Args:
      batches: a `Batches`.

    Returns:
      The text that `print(batches)` shows.

    >>> from nnkit.data.arrays import arrays
    >>> print(text(arrays(np.float32([1, 2, 4]), [0, 0, 5], batch_size=2, shuffle=False)))
    data: 3 examples, 2 batches of 2 (the last holds 1, with a mask), in order
      x  float32 []  1..4
      y  int32 []  0..5, 2 classes, rarest 33.33 %
      note: y was int64, converted to int32
    """
    n, b = batches.examples, batches.batch_size
    end = f" (the last holds {n % b}, with a mask)" if n % b else ""
    how = f"shuffled by seed {batches.seed}" if batches.shuffle else "in order"
    many = "batch" if len(batches) == 1 else "batches"
    lines = [f"{batches.name}: {n} examples, {len(batches)} {many} of {b}{end}, {how}"]
    wide = max(map(len, batches.report))
    for name, one in batches.report.items():
        line = f"  {name:<{wide}}  {one['dtype']} [{' '.join(map(str, one['shape']))}]"
        if "min" in one:
            line += f"  {one['min']:.6g}..{one['max']:.6g}"
        if "classes" in one:
            line += f", {one['classes']} classes, rarest {100 * one['rarest']:.2f} %"
            if one["classes"] == 1:
                line += " (all labels are equal: nothing to learn)"
        if one["rows"] < n:
            line += f"  ({one['rows']} examples looked at)"
        lines.append(line)
    return "\n".join(lines + [f"  note: {note}" for note in batches.notes])


def fingerprint(batches) -> dict[str, Any]:
    """Counts, seed, order, fields, and SHA-256 over up to 64 evenly spaced examples.

    Args:
      batches: a `Batches`.

    Returns:
      A dict of JSON values: equal for equal data read in the equal order.

    >>> from nnkit.data.arrays import arrays
    >>> fingerprint(arrays(np.float32([1, 2]), batch_size=1))["fields"]
    {'x': 'float32[]'}
    """
    fields = {
        name: f"{spec.dtype}[{','.join(map(str, spec.shape))}]"
        for name, spec in sorted(batches._rows.items())
    }
    return {
        "n": batches.examples,
        "batch_size": int(batches.batch_size),
        "seed": int(batches.seed),
        "shuffle": batches.shuffle,
        "fields": fields,
        "sha256": digest(batches.look(_sample(batches, 64))),
    }


def corners(batches) -> np.ndarray | None:
    """The rows [2] with the lowest and the highest label; None without integer labels "y".

    Args:
      batches: a `Batches`.

    Returns:
      Row numbers [2], or None.

    >>> from nnkit.data.arrays import arrays
    >>> corners(arrays(np.float32([1, 2, 3]), [4, 9, 1], batch_size=1))
    array([2, 1])
    """
    if "y" not in batches._rows or batches._rows["y"].dtype.kind not in "iu":
        return None
    labels, rows = _whole(batches, "y"), np.arange(batches.examples)
    if labels is None:
        rows = _sample(batches, 1000)
        labels = batches.look(rows)["y"]
    flat = labels.reshape(len(labels), -1)
    return rows[[flat.min(axis=1).argmin(), flat.max(axis=1).argmax()]]
