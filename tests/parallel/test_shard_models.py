"""The other Transformers by the same rules: BERT, ViT and the encoder-decoder."""

from __future__ import annotations

import collections
import functools
import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import losses, models
from nnkit.parallel import rules

pytestmark = pytest.mark.usefixtures("optimised")

B, T, STEPS = 16, 16, 10
SIZE = {"width": 32, "depth": 1, "heads": 4}
KINDS = r"= (.*) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
BERT = models.BERT(11, classes=3, **SIZE, hidden=128, length=T, dropout=0.0)
VIT = models.ViT(3, **SIZE, hidden=128, patch=4, image=16)
T5 = models.EncDec(11, **SIZE, head_dim=8, hidden=128, dropout=0.0)
TASKS = {
    "BERT": nk.supervised(BERT, losses.cross_entropy),
    "ViT": nk.supervised(VIT, losses.cross_entropy),
    "EncDec": nk.seq2seq(T5),
}
WAYS = {
    "tensor": ({"data": 2, "tensor": 4}, P("data"), rules.tensor),
    "fsdp": ({"fsdp": 8}, P("fsdp"), rules.fsdp),
    "sequence": ({"data": 2, "sequence": 4}, P("data", "sequence"), rules.replicated),
    "sweep": ({"run": 2, "fsdp": 4}, P("fsdp"), rules.both(rules.leading("run"), rules.fsdp)),
}
BLOCKS = {"BERT": 2, "ViT": 2, "EncDec": 2 + 3}  # branches of all blocks: attention, MLP, cross


def batch(name, i):
    draw = np.random.default_rng(i)
    tokens = lambda: draw.integers(1, 11, (B, T)).astype(np.int32)
    if name == "EncDec":
        return {"source": tokens(), "target": tokens()}
    x = tokens() if name == "BERT" else draw.normal(size=(B, 16, 16, 3)).astype(np.float32)
    return {"x": x, "y": draw.integers(0, 3, B).astype(np.int32)}


def plain(name, way):
    step = nk.step(nk.gradient(TASKS[name]), optax.adamw(1e-3))
    return nk.ensemble(step, 2, each=jax.vmap) if way == "sweep" else step


def trained(name, step):
    state = jax.jit(step.init)(jax.random.key(0), batch(name, 0))
    update = jax.jit(step.update).lower(state, batch(name, 0)).compile()
    found = []
    for i in range(STEPS):
        state, log = update(state, batch(name, i))
        found.append(np.asarray(log["loss"].value))
    return np.stack(found), update.as_text()


@functools.cache
def alone(name, many):
    return trained(name, plain(name, "sweep" if many else ""))[0]


CASES = [
    ("BERT", "tensor"),
    *[
        pytest.param(name, way, marks=pytest.mark.nightly)
        for name in TASKS
        for way in WAYS
        if (name, way) not in (("BERT", "tensor"), ("ViT", "sequence"))
    ],
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_shard_is_the_step_for_every_transformer(name, way):
    axes, rows, state = WAYS[way]
    step = nk.shard(plain(name, way), nk.mesh(**axes), batch=rows, state=state)
    found, text = trained(name, step)
    np.testing.assert_allclose(found, alone(name, way == "sweep"), rtol=2e-6, atol=0)
    kinds = collections.Counter(
        kind for shapes, kind in re.findall(KINDS, text) if re.search(r"\[\d+,\d+", shapes)
    )
    if way == "tensor":  # one per branch and direction, and one over data: the gradient
        assert set(kinds) == {"all-reduce"}
        assert 2 * BLOCKS[name] <= kinds["all-reduce"] <= 2 * BLOCKS[name] + 1
    if way == "fsdp":  # the weights; how the one row of a class travels is up to the compiler
        assert kinds["all-gather"] >= 6 * (2 if name == "EncDec" else 1)
