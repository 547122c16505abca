"""Windows of a time series: a look-back and what follows it, cut when a batch is made."""

from __future__ import annotations

import dataclasses
import operator

import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.fields import clean

__all__ = ["Windows", "windows"]


def windows(
    values,
    *,
    length: int = 336,
    horizon: int = 96,
    stride: int = 1,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
) -> Batches:
    """Batches of windows of a series: `length` steps to look at, and the `horizon` steps after.

    Window i starts at row i stride: x = values[s : s + length], y = values[s + length : s + length
    + horizon], for every s that fits; there are (t - length - horizon) // stride + 1 of them. They
    are cut when a batch is made: the series is kept once.

    Scale the series before, by the numbers of its training part alone. To forecast all of a later
    part, begin its series `length` rows before it: values[border - length : end].

    Args:
      values: [t f] the series, one row per step in the order of time; f numbers per step.
      length: rows of x; 336 is two weeks of hours.
      horizon: rows of y.
      stride: rows between the starts of two windows.
      batch_size: b; the last batch is padded, with a "mask".
      shuffle: a new order of the windows every epoch.
      seed: decides the orders, 0 to 2**32 - 1.

    Returns:
      `Batches` of {"x": [b length f], "y": [b horizon f]}.

    Raises:
      TypeError: if the series is not of real numbers, or a size is no int.
      ValueError: if the series is not [t f], holds NaN, or is shorter than one window; if a size
        is below 1, or the batch size above the number of windows.

    >>> train = windows(np.arange(6.0)[:, None], length=3, horizon=2, batch_size=2, shuffle=False)
    >>> batch = next(iter(train))
    >>> batch["x"][..., 0].tolist(), batch["y"][..., 0].tolist()
    ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0, 4.0], [4.0, 5.0]])

    Zhou et al., arXiv:2012.07436, section 2 (rolling forecasts with a fixed window).
    """
    sizes = {"length": length, "horizon": horizon, "stride": stride}
    for name, size in sizes.items():
        said = f"{name} is {size!r:.60}, expected an integer number of rows >= 1"
        if isinstance(size, bool) or not hasattr(type(size), "__index__"):
            raise TypeError(said)
        if size < 1:
            raise ValueError(said)
    length, horizon, stride = map(operator.index, sizes.values())
    found, notes = clean({"values": values})
    series = found["values"]
    if series.dtype.kind == "c":
        raise TypeError(
            f"values is {series.dtype}, expected real numbers; split it into .real/.imag"
        )
    if series.ndim != 2:
        one = "; a single series needs its axis of features: values[:, None]"
        raise ValueError(
            f"values has shape {series.shape}, expected (t f): one row per step, in the order of "
            f"time{one if series.ndim == 1 else ''}"
        )
    if len(series) < length + horizon:
        raise ValueError(
            f"values has {len(series)} rows, expected at least {length + horizon} for one window: "
            f"length={length} + horizon={horizon}; shorten one of them, or begin the series "
            f"earlier (a later part starts `length` rows before its border)"
        )
    if series.dtype.kind in "iub":
        notes = (*notes, f"values was {series.dtype}, converted to float32")
        series = series.astype(np.float32)
    source = Windows(series, length, horizon, stride)
    return Batches(source, batch_size, shuffle=shuffle, seed=seed, name="windows", notes=notes)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """A source that cuts windows out of a series.

    Attributes:
      values: [t f]; not copied, so it must not change afterwards.
      length: rows of x.
      horizon: rows of y.
      stride: rows between two starts.

    >>> len(Windows(np.zeros((10, 1), np.float32), 3, 2, 2))
    3
    """

    values: np.ndarray
    length: int
    horizon: int
    stride: int

    def __len__(self) -> int:
        return (len(self.values) - self.length - self.horizon) // self.stride + 1

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The windows {"x": [i length f], "y": [i horizon f]}."""
        starts = np.asarray(indices)[:, None] * self.stride
        past = starts + np.arange(self.length)
        future = starts + self.length + np.arange(self.horizon)
        return {"x": self.values.take(past, axis=0), "y": self.values.take(future, axis=0)}
