"""Labels and ids: which field of a batch indexes what is known while tracing; what is outside of
its range is counted in the step, for nothing, and told by `fit` at the next row."""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnkit.core.means import Mean

__all__ = ["Watch", "indexed", "kept", "outside", "ranges", "told", "watching"]

MASKS = {"labels": "label_mask", "target": "target_mask"}  # beside "mask", which hides examples
_open: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("ranges", default=None)


class Watch(NamedTuple):
    """The fields of a batch that is being looked at, and what they were found to index.

    Attributes:
      batch: [b ...] arrays by name.
      sizes: {field: n}: its integers were used as 0..n-1.

    >>> Watch({"y": jnp.array([0, 3])}, {"y": 3}).counts()["y outside 0..2"].total
    Array(1., dtype=float32)
    """

    batch: Mapping[str, Any]
    sizes: dict[str, int]

    def counts(self) -> dict[str, Mean]:
        """{"y outside 0..9": how many [] are outside, of how many that no mask hides}."""
        found = {}
        for field, n in self.sizes.items():
            x = jnp.asarray(self.batch[field])
            x = x if x.dtype.itemsize == 8 else x.astype(jnp.int32)
            bad = (x < 0) | (x >= n)
            mask = kept(self.batch, field)
            here = jnp.ones_like(bad) if mask is None else jnp.broadcast_to(mask, bad.shape)
            total, weight = (x.sum(dtype=jnp.float32) for x in (bad & here, here))
            found[f"{field} outside 0..{n - 1}"] = Mean(total, weight)
        return found


@contextlib.contextmanager
def watching(batch) -> Iterator[Watch]:
    """Within, `indexed` notes which fields of the batch are used as indices, and of how many.

    Args:
      batch: a mapping of arrays [b ...], traced or not. Anything else is not watched.

    Returns:
      A context manager that gives a `Watch`.

    >>> y = jnp.array([0, 2])
    >>> with watching({"y": y}) as watch:
    ...     indexed(y, 3)
    >>> watch.sizes
    {'y': 3}
    """
    watch = Watch(batch if isinstance(batch, Mapping) else {}, {})
    token = _open.set(watch)
    try:
        yield watch
    finally:
        _open.reset(token)


def indexed(array, n: int) -> None:
    """Say that the integers of an array [...] index n things. Costs nothing where nobody watches.

    Args:
      array: [...] integers, the very object that is in the batch.
      n: how many there are.

    >>> indexed(jnp.array([1]), 3)
    """
    watch = _open.get()
    if watch is None:
        return
    for field, x in watch.batch.items():
        if x is array:
            watch.sizes[field] = min(n, watch.sizes.get(field, n))


def kept(batch, field: str):
    """The places of a field that a mask does not hide, as bools that broadcast to it; or None.

    Args:
      batch: a mapping of arrays [b ...] with "mask" [b], or none.
      field: name of the field [b ...].

    Returns:
      [b 1 ...] bools (numpy if the mask is), or None if all count.

    >>> kept({"y": np.zeros((2, 3)), "mask": np.array([1, 0])}, "y").shape
    (2, 1)
    """
    rank, found = np.ndim(batch[field]), None
    for name in ("mask", MASKS.get(field)):
        mask = None if name is None else batch.get(name)
        if mask is None or np.ndim(mask) > rank:
            continue
        mask = mask if mask.dtype == bool else mask != 0
        mask = mask.reshape(np.shape(mask) + (1,) * (rank - np.ndim(mask)))
        found = mask if found is None else found & mask
    return found


def ranges(metrics) -> dict[str, tuple[str, int]]:
    """The counters among the names of metrics.

    Args:
      metrics: names.

    Returns:
      {name: (field, highest value allowed)}.

    >>> ranges(["loss", "y outside 0..9"])
    {'y outside 0..9': ('y', 9)}
    """
    found = {name: re.fullmatch(r"(.+) outside 0\.\.(\d+)", name) for name in metrics}
    return {name: (m[1], int(m[2])) for name, m in found.items() if m is not None}


def told(row) -> str:
    """What the counters of a row found, in a sentence; "" if they found nothing.

    Args:
      row: {name: value} as `fit` and `evaluate` give it.

    Returns:
      A text.

    >>> told({"loss": 0.1, "y outside 0..9": 3})
    "batch['y'] was outside 0..9 at 3 places"
    """
    found = ranges(name for name in row if isinstance(name, str))
    parts = [f"{f!r}] was outside 0..{top} at {row[name]}" for name, (f, top) in found.items()]
    return ", ".join(f"batch[{part} places" for part in parts)


def outside(batch, field: str, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of a field of a host batch that are outside 0..top, and their rows.

    >>> [x.tolist() for x in outside({"y": np.array([0, 3, 1, -1])}, "y", 2)]
    [[3, -1], [1, 3]]
    """
    x = np.asarray(batch[field])
    bad = (x < 0) | (x > top)
    masks = {k: np.asarray(v) for k, v in batch.items() if k.endswith("mask")}
    mask = kept(masks | {field: x}, field)
    bad = bad if mask is None else bad & mask
    return x[bad], np.nonzero(bad)[0]
