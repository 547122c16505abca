"""Labels and ids of the first batches, looked at on the host before the step takes them."""

from __future__ import annotations

import jax
import numpy as np

from nnkit.core.ranges import outside, ranges

__all__ = ["CHECKED", "seen"]

CHECKED = 3  # updates; later ones are counted in the step, and told at the next row


def seen(batch, metrics, i: int) -> None:
    """Raise if a label or id of a batch indexes nothing. Of a global batch, the part that is here.

    Args:
      batch: a mapping of arrays [b ...].
      metrics: those of the update, by name: "y outside 0..9" says what may be in the field "y".
      i: number of the update, for the message.

    Raises:
      ValueError: naming field, range, what is allowed and the first row.

    >>> seen({"y": np.array([0, 3])}, ["y outside 0..2"], 1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: batch['y'] of update 1 runs from 0 to 3, expected 0..2: 1 of 2 values are outside...
    """
    for field, top in ranges(metrics).values():
        if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(batch)):
            return  # of many processes: the counters see all of it
        names = [name for name in batch if name == field or name.endswith("mask")]
        here = jax.device_get({name: batch[name] for name in names})
        bad, rows = outside(here, field, top)
        if not bad.size:
            continue
        x = np.asarray(here[field])
        hint = "255 often marks what to ignore: " if (bad == 255).all() else ""
        raise ValueError(
            f"batch[{field!r}] of update {i} runs from {x.min()} to {x.max()}, expected 0..{top}: "
            f"{bad.size} of {x.size} values are outside, the first, {bad[0]}, in row {rows[0]}; "
            f"subtract the minimum, widen the layer to {int(bad.max()) + 1}, or mask such places "
            f"({hint}put 0 there)"
        )
