"""Is ours the reference's? Compares trees of arrays, and keeps the largest error for the docs.

The error of an array is max |ours - theirs| / max |theirs|. `NNKIT_PARITY_TABLE=docs/parity.md
pytest -n 0 tests -k parity` writes what was seen as a table.
"""

from __future__ import annotations

import importlib
import inspect

import jax
import numpy as np

SEEN: dict[tuple[str, str], float] = {}


def same(name, reference, ours, theirs, *, tolerance=1e-5):
    """Assert that two trees of arrays agree, and return the largest error.

    Args:
      name: "layers.LSTM", "models.GPT": the public name, as it stands in the table of the docs.
      reference: what it is compared with, version included: "torch 2.13.0 nn.LSTM".
      ours: tree of arrays (or dict by name); theirs: the same tree.
      tolerance: on the error of each array.
    """
    a, b = jax.tree_util.tree_leaves_with_path(ours), jax.tree_util.tree_leaves_with_path(theirs)
    assert [p for p, _ in a] == [p for p, _ in b], (
        f"{name}: {[jax.tree_util.keystr(p) for p, _ in a]} and "
        f"{[jax.tree_util.keystr(p) for p, _ in b]}"
    )
    worst = 0.0
    for (path, x), (_, y) in zip(a, b):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        where = f"{name}{jax.tree_util.keystr(path)}"
        assert x.shape == y.shape, f"{where}: {x.shape} and {y.shape}"
        assert np.isfinite(x).all(), f"{where} is not finite"
        error = float(np.abs(x - y).max(initial=0) / max(np.abs(y).max(initial=0), 1e-12))
        assert error <= tolerance, f"{where}: error {error:.2e}, allowed {tolerance:.0e}"
        worst = max(worst, error)
    SEEN[name, reference] = max(worst, SEEN.get((name, reference), 0.0))
    return worst


HEAD = """# Parity: equal to whom, and how closely

Every layer and every architecture against a reference: same weights, same inputs, float32 unless
the row says otherwise. The error of an array is max |ours - theirs| / max |theirs|; the table has
the largest one over outputs, loss, all gradients and, where there are any, batch statistics. The
references ran once ([tests/references](../tests/references)); the suite never imports them.

Written by `NNKIT_PARITY_TABLE=docs/parity.md pytest -n 0 tests -k parity` with jax {jax} on CPU.
The allowed error is 1e-5; a row above it says why in its test.

| ours | reference | largest error |
|---|---|---|
"""
ALONE = """
## Without a counterpart

These are verified by their definition alone (loops, enumeration, float64, identities), in
`tests/layers` and `tests/models`, beside the laws that hold for all:

"""


def table():
    """The markdown of `docs/parity.md` from what was compared in this process."""
    lines = [HEAD.format(jax=jax.__version__)]
    for (name, reference), error in sorted(SEEN.items()):
        lines.append(f"| `{name}` | {reference} | {error:.1e} |\n")
    seen = {name for name, _ in SEEN}
    alone = [name for name in named() if name not in seen]
    return "".join(lines) + ALONE + ", ".join(f"`{name}`" for name in alone) + "\n"


def named():
    """Every public layer, function of layers and model of ours, as "layers.Dense"."""
    for package in ("layers", "models"):
        module = importlib.import_module(f"nnkit.{package}")
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            ours = callable(thing) and getattr(thing, "__module__", "").startswith("nnkit")
            if ours and (inspect.isclass(thing) or package == "layers"):
                yield f"{package}.{name}"
