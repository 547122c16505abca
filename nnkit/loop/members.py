"""What became of the members of a sweep: who diverged, and each one's own checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from nnkit.checkpoint import Checkpoints
from nnkit.core import trees
from nnkit.train import member
from nnkit.train.members import Swept

__all__ = ["diverged", "save_members"]

SHOWN = 4  # members named in a sentence


def diverged(row: Mapping, grid=None, *, metric: str = "loss") -> str:
    """Which members diverged, in a sentence: "3 of 16 diverged: learning_rate=0.1; ...".

    A member diverged if its metric is not finite, or all its updates since the row before were
    skipped by `skip_nonfinite`; one that `halving` stopped did not.

    Args:
      row: the last row of training metrics, with arrays [n].
      grid: the hyperparameters, a tree of arrays [n], to name them; None counts alone.
      metric: that is looked at.

    Returns:
      The sentence, or "" if none diverged, or if it is the row of a single run.

    >>> diverged({"loss": np.array([0.5, np.nan, 0.25])}, {"learning_rate": np.array([1, 9, 2])})
    '1 of 3 diverged: learning_rate=9'
    >>> diverged({"loss": 0.5})
    ''
    """
    loss = np.asarray(row.get(metric, 0.0), np.float64)
    if not loss.ndim:
        return ""
    bad = ~np.isfinite(loss) | (np.asarray(row.get("skipped", np.zeros(loss.shape))) == 1)
    bad &= np.broadcast_to(np.asarray(row.get("alive", 1.0)) > 0, bad.shape)
    which = np.argwhere(bad)
    if not len(which):
        return ""
    said = f"{len(which)} of {loss.size} diverged"
    if grid is None or loss.ndim > 1:
        return said
    leaves = [(path, np.asarray(x)) for path, x in trees.paths(grid)]
    leaves = [(path, x) for path, x in leaves if x.shape[:1] == loss.shape]
    name = lambda i: " ".join(f"{path}={x[i]:.6g}" for path, x in leaves if not x[i].ndim)
    named = list(dict.fromkeys(name(int(i)) for (i,) in which))
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"{said}: {'; '.join(named[:SHOWN])}{more}" if named[0] else said


def grid_of(state):
    """The grid [n ...] of the one sweep in a state, on the host; None if there is none.

    >>> grid_of({"w": np.ones(3)}) is None
    True
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Swept))
    found = [x.grid for x in leaves if isinstance(x, Swept)]
    whole = len(found) == 1 and all(
        getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(found[0])
    )
    return jax.device_get(found[0]) if whole else None


def save_members(folder, state, step: int) -> list[Path]:
    """A checkpoint for each member by itself: what the single run would have saved.

    folder/0000 is read by `nk.Checkpoints(folder / "0000")`, into the state that
    nk.init(recipe(h), ...) makes.

    Args:
      folder: of the members.
      state: of a `sweep` or an `ensemble` [n ...].
      step: updates done.

    Returns:
      The folders, by member.

    Raises:
      ValueError: if the state has no axis of members.

    >>> import tempfile
    >>> [path.name for path in save_members(tempfile.mkdtemp(), {"w": np.ones((2, 3))}, 10)]
    ['0000', '0001']
    """
    folder, n, paths = Path(os.fspath(folder)), len(jax.tree.leaves(state)[0]), []
    for i in range(n):
        paths.append(folder / f"{i:04d}")
        with Checkpoints(paths[-1]) as saver:
            saver.save(step, member(state, i), position=step)
    return paths
