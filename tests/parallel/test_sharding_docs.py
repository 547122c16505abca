"""The code of docs/sharding.md runs as it stands there, one block after another."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import nnkit as nk
from nnkit.parallel import rules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sharding.md"
TEXTS = jax.ShapeDtypeStruct((16, 64), jnp.int32)


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_every_block_runs():
    """Models are described, not compiled, but for the ends: pmap and shard_map train a step."""
    many: dict = {}
    names = {"many": many}
    found = blocks()
    for code in found:
        exec(code.replace("many = ", "many[len(many)] = "), names)
    for step in many.values():  # the state as shapes: rules, axes and sizes are checked
        assert jax.eval_shape(step.init, jax.random.key(0), {"tokens": TEXTS, "labels": TEXTS})
    assert (len(found), len(many)) == (5, 7)
    np.testing.assert_allclose(names["state"].params, [0.2, 0.2, 0.2], rtol=1e-6)
    assert float(names["log"]["loss"].weight) == 32


def test_every_rule_is_on_the_page():
    text = PAGE.read_text()
    for name in rules.__all__:
        if name not in ("check", "replicated"):
            assert f"rules.{name}" in text, name
    for name in ("averaged", "accumulate", "mesh", "shard"):
        assert callable(getattr(nk, name))
        assert f"nk.{name}" in text
