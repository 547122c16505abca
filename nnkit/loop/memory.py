"""Out of memory, said in the words of whoever chose the batch."""

from __future__ import annotations

import re

import jax
import numpy as np

__all__ = ["explain"]


def explain(error: BaseException, batch) -> None:
    """Add a note to an error of XLA that says that memory ran out; leave others alone.

    Args:
      error: raised by an update.
      batch: the mapping of arrays [b ...] that it was given.

    >>> error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")
    >>> explain(error, {"x": np.zeros((8, 2))})
    >>> error.__notes__[0][:53]
    'batch_size is 8, for which memory ran out (4,096 byte'
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return
    sizes = {np.shape(x)[0] for x in jax.tree.leaves(batch) if np.ndim(x)}
    size = max(sizes, default=1)
    asked = re.search(r"allocat\w+ (?:of )?([\d,]+) bytes", text)
    more = f"{int(asked[1].replace(',', '')):,} bytes more" if asked else "more than there is"
    less = f"use batch_size={size // 2}, " if size > 1 else ""
    error.add_note(
        f"batch_size is {size}, for which memory ran out ({more} were asked for), expected a "
        f"program that fits the device: {less}nk.accumulate(gradient, 2), or a model with "
        "remat=True; nk.plan says beforehand what fits"
    )
