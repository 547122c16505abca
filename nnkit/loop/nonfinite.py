"""What `fit` does about numbers that cannot be right: it stops, says where, and saves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from nnkit.core import trees
from nnkit.core.ranges import told
from nnkit.parallel import hosts
from nnkit.train import Step

__all__ = ["inspect_update", "spoilt"]

DUMP = "nonfinite.json"


def inspect_update(i: int, row: Mapping, state, step: Step, *, saves: bool, rows=(), run=None):
    """Raise if the updates up to step i gave a loss, or a state to be kept, that is not finite.

    Args:
      i: updates done.
      row: the training metrics since the row before: floats, or arrays [n] of members, of which
        one finite loss is enough.
      state: after step i.
      step: whose state it is.
      saves: is the state kept as it is, in a checkpoint or at the end? Then it is looked at too:
        a gradient of NaN leaves a finite loss behind for one more update.
      rows: logged before, the last of which says since when.
      run: the `Run`, if any; its folder gets nonfinite.json: every leaf that is spoilt.

    Raises:
      FloatingPointError: if so; names the first leaf, and what to do.
      RuntimeError: if a replay of an update (`nk.replayed`) gave other bits.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> descent = nk.step(nk.gradient(task), optax.sgd(0.5))
    >>> state = nk.init(descent, jax.random.key(0), {"x": jnp.ones(2)})
    >>> inspect_update(4, {"loss": 0.5}, state, descent, saves=True)
    """
    loss = row.get("loss", 0.0)
    before = next((r["step"] for r in reversed(rows) if "split" not in r), 0)
    _same_bits(i, row, before)
    finite = bool(np.isfinite(loss).any())
    if finite and (not saves or np.ndim(loss)):  # one member may diverge
        return
    bad = spoilt(state, step if finite else None)
    if finite and not bad:
        return
    where = f"first in the state at {bad[0]['path']!r}" if bad else "the state itself is finite"
    said = f"the loss is {loss} at step {i} ({where})"
    if finite:
        said = f"the state after step {i} is not finite ({where}), though the loss is {loss}"
    often = "nk.rollback has gone back as often as it may; " if "rolled_back" in row else ""
    kept = _dump(run, {"step": i, "before": before, "loss": str(loss), "leaves": bad})
    outside = f"{told(row)}; or else " if told(row) else ""
    raise FloatingPointError(
        f"{said}, not so at step {before}, expected finite numbers: {outside}a learning rate too "
        "high, labels outside the model's classes, token ids outside its vocabulary, or NaN in the "
        f"inputs; {often}lower the rate, or "
        f"nk.skip_nonfinite(step) skips such batches{kept}"
    )


def spoilt(state, step: Step | None = None) -> list[dict]:
    """The leaves of a state that hold a NaN or an infinity.

    Args:
      state: of the step.
      step: whose infinities count only where they are weights: optimizers keep some for good
        reasons (the best loss so far, before there is one). None counts all.

    Returns:
      [{"path", "shape", "nan", "inf"}] with counts, on this process' devices.

    >>> task = nk.objective(lambda key, b: jnp.zeros(2), lambda w, b, key: (w.sum() - b["x"]) ** 2)
    >>> descent = nk.step(nk.gradient(task), optax.sgd(0.5))
    >>> state = nk.init(descent, jax.random.key(0), {"x": jnp.ones(2)})
    >>> import dataclasses
    >>> bad = dataclasses.replace(state, params=jnp.array([1.0, jnp.nan]))
    >>> spoilt(bad)
    [{'path': 'params', 'shape': [2], 'nan': 1, 'inf': 0}]
    """
    weights = state if step is None else step.weights(state)
    mine = {id(x) for x in jax.tree.leaves(weights)}
    found = []
    for path, x in trees.paths(state):
        if not jax.numpy.issubdtype(x.dtype, np.inexact):
            continue
        parts = [np.asarray(part) for part in jax.device_get(_parts(x))]
        nan, inf = (sum(int(f(part).sum()) for part in parts) for f in (np.isnan, np.isinf))
        if nan or (inf and id(x) in mine):
            found.append({"path": path, "shape": list(x.shape), "nan": nan, "inf": inf})
    return found


def _parts(x) -> list:
    """The different pieces of an array [...] on the devices of this process."""
    return list({str(s.index): s.data for s in x.addressable_shards}.values())


def _same_bits(i: int, row: Mapping, before: int) -> None:
    share = np.max(row.get("replay_differs", 0.0))
    if share > 0:
        n = round(float(share) * (i - before)) or 1
        raise RuntimeError(
            f"{n} of the updates from step {before + 1} to {i} gave other bits when they were "
            "computed again from the same state and batch, expected the same ones (nk.replayed): "
            "this device computes wrongly, or an operation is not deterministic (on GPUs set "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true); go on from the last checkpoint, on "
            "another machine"
        )


def _dump(run, found: dict) -> str:
    """Write what was found to the folder of the run; where it is, for the message."""
    if run is None:
        return ""
    path = Path(run.folder) / DUMP
    if hosts.first():
        temporary = path.with_name(f".{DUMP}.{os.getpid()}")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(temporary, path)
    return f"; every such leaf is listed in {path}"
