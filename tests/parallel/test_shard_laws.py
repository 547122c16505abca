"""shard(step) = step on every mesh and by every strategy, and the compiled program says how.

A strategy is compiled once: 20 losses of it are compared with those of the Step on one device, and
the collectives in its compiled text are counted.
"""

from __future__ import annotations

import collections
import functools
import re

import jax
import numpy as np
import optax
import pytest
from compiles import counted
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import layers, models
from nnkit.parallel import rules

pytestmark = pytest.mark.usefixtures("optimised")

STEPS, B, T = 20, 16, 16
GPT = {"vocabulary": 11, "length": T, "width": 32, "depth": 1, "heads": 8, "hidden": 128}
EXPERTS = {"experts": 8, "groups": 8, "capacity": 1.5, "with_aux": True}
MODERN = {
    "norm": layers.RMSNorm,
    "learned": False,
    "rope": 100.0,
    "activation": layers.silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
COLLECTIVE = re.compile(
    r"= (.*) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
FEW = 64  # numbers: what statistics and metrics send, of no concern beside tensors
ALL = rules.both(rules.tensor, rules.fsdp)

# name -> (axes of the mesh, how the batch goes over them, how the state does, fields of the model)
STRATEGIES = {
    "data": ({"data": 8}, P("data"), rules.replicated, {}),
    "fsdp": ({"fsdp": 8}, P("fsdp"), rules.fsdp, {}),
    "tensor": ({"data": 2, "tensor": 4}, P("data"), rules.tensor, {}),
    "sequence": ({"data": 2, "sequence": 4}, P("data", "sequence"), rules.replicated, {}),
    "expert": ({"expert": 8}, P("expert"), rules.expert, EXPERTS),
    "all": ({"data": 2, "fsdp": 2, "tensor": 2}, P(("data", "fsdp")), ALL, {}),
}
OTHERS = {  # the axis beside "data" -> batch, state, fields
    "fsdp": (P(("data", "fsdp")), rules.fsdp, {}),
    "tensor": (P("data"), rules.tensor, {}),
    "sequence": (P("data", "sequence"), rules.replicated, {}),
    "expert": (P(("data", "expert")), rules.expert, EXPERTS),
}
NIGHTLY = {
    f"{8 // n}x{n}_{axis}": ({"data": 8 // n, axis: n}, *how)
    for axis, how in OTHERS.items()
    for n in (1, 2, 4, 8)
} | {
    "2x2x2_sequence_tensor": (
        {"data": 2, "sequence": 2, "tensor": 2},
        P("data", "sequence"),
        rules.tensor,
        {},
    ),
    "2x2x2_expert_tensor": (
        {"data": 2, "expert": 2, "tensor": 2},
        P(("data", "expert")),
        rules.both(rules.expert, rules.tensor),
        EXPERTS,
    ),
    "2x2x2_expert_fsdp": (
        {"data": 2, "fsdp": 2, "expert": 2},
        P(("data", "fsdp", "expert")),
        rules.both(rules.expert, rules.fsdp),
        EXPERTS,
    ),
    "2x2x2_fsdp_sequence": (
        {"data": 2, "fsdp": 2, "sequence": 2},
        P(("data", "fsdp"), "sequence"),
        rules.fsdp,
        {},
    ),
    "dropless": (
        {"data": 2, "expert": 4},
        P(("data", "expert")),
        rules.expert,
        EXPERTS | {"capacity": None},
    ),
    "fsdp_dropout": ({"fsdp": 8}, P("fsdp"), rules.fsdp, {"dropout": 0.1}),
    "sequence_dropout": (
        {"data": 2, "sequence": 4},
        P("data", "sequence"),
        rules.replicated,
        {"dropout": 0.1},
    ),
    "all_modern": (*STRATEGIES["all"][:3], MODERN | {"kv_heads": 4, "vocabulary": 1024}),
    "tensor_vocabulary": (*STRATEGIES["tensor"][:3], {"vocabulary": 1024}),
}


def batch(i: int, vocabulary: int = 11) -> dict:
    """Batch number i: each token is the one before it times 3 plus a bit of noise."""
    rng = np.random.default_rng(i)
    ids = rng.integers(0, vocabulary, (B, T + 1)).astype(np.int32)
    for t in range(T):
        ids[:, t + 1] = (3 * ids[:, t] + (rng.random(B) < 0.1)) % vocabulary
    return {"tokens": ids[:, :-1], "labels": ids[:, 1:]}


def plain(**fields) -> nk.Step:
    task = nk.causal_lm(models.GPT(**GPT | fields))
    return nk.step(nk.gradient(task), optax.adamw(1e-3))


def numbers(shapes: str) -> int:
    """How many numbers "(f32[8]{0}, f32[2,3]{1,0})" has: 14."""
    sizes = re.findall(r"\w+\[([\d,]*)\]", shapes)
    return sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)


def losses(update, state, vocabulary: int):
    found = []
    for i in range(STEPS):
        state, log = update(state, batch(i, vocabulary))
        found.append(float(log["loss"].value))
    return np.asarray(found), state


def frozen(fields: dict):
    return tuple(sorted(fields.items(), key=lambda item: item[0]))


@functools.cache
def alone(fields):
    """The losses of the Step on one device."""
    step, vocabulary = plain(**dict(fields)), dict(fields).get("vocabulary", 11)
    state = jax.jit(step.init)(jax.random.key(0), batch(0, vocabulary))
    return losses(jax.jit(step.update), state, vocabulary)[0]


@functools.cache
def spread(name):
    """(losses, state after them, {kind of collective: how many} in the compiled program).

    Those of a few numbers alone are counted as "few".
    """
    axes, rows, state, fields = (STRATEGIES | NIGHTLY)[name]
    step = nk.shard(plain(**fields), nk.mesh(**axes), batch=rows, state=state)
    vocabulary = fields.get("vocabulary", 11)
    start = jax.jit(step.init)(jax.random.key(0), batch(0, vocabulary))
    one = jax.jit(step.update).lower(start, batch(0, vocabulary)).compile()
    sent = COLLECTIVE.findall(one.as_text())
    kinds = collections.Counter(kind if numbers(shapes) > FEW else "few" for shapes, kind in sent)
    found, last = losses(one, start, vocabulary)
    return found, last, dict(kinds)


def split(state) -> dict:
    """{path: spec} of the leaves that devices share, of the parameters."""
    specs = {path: tuple(x.sharding.spec) for path, x in nk.trees.paths(state.params)}
    return {path: spec for path, spec in specs.items() if any(spec)}


@pytest.mark.parametrize(
    "name", [*STRATEGIES, *[pytest.param(n, marks=pytest.mark.nightly) for n in NIGHTLY]]
)
def test_shard_is_the_step_at_each_of_20_steps(name):
    fields = frozen((STRATEGIES | NIGHTLY)[name][3])
    want, got = alone(fields), spread(name)[0]
    assert want[-1] < want[0] - 0.05  # it learns: equal losses of a standing model say nothing
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)


def test_data_parallel_sums_the_gradient_once():
    assert spread("data")[2] == {"all-reduce": 1}


def test_fsdp_gathers_each_weight_once_and_sums_the_gradient_once():
    """The sum is followed by a slice, which GPU and TPU make one reduce-scatter."""
    _, state, kinds = spread("fsdp")
    weights = split(state)
    assert len(weights) == 6
    assert kinds == {"all-gather": len(weights), "all-reduce": 1}


def test_fsdp_holds_an_eighth_of_parameters_and_moments():
    _, state, _ = spread("fsdp")
    for tree in (state.params, state.opt):
        for path, x in nk.trees.paths(tree):
            held = np.prod(x.sharding.shard_shape(x.shape))
            assert held == (x.size // 8 if x.size >= 1024 else x.size), path


def test_tensor_parallel_has_two_all_reduces_per_block_and_direction():
    _, state, kinds = spread("tensor")
    assert len(split(state)) == 10
    assert kinds == {"all-reduce": 2 * 2 * GPT["depth"] + 1}  # and one over data: the gradient


def test_sequence_parallel_gathers_keys_and_values_and_scatters_their_gradients():
    kinds = spread("sequence")[2]
    depth = GPT["depth"]
    # the gradient of what every device has is summed over time, then over data
    assert kinds == {"all-gather": 2 * depth, "reduce-scatter": 2 * depth, "all-reduce": 2}


def test_expert_parallel_goes_there_and_back_in_both_directions():
    _, state, kinds = spread("expert")
    assert {path: spec[0] for path, spec in split(state).items()} == {
        "block_0/mlp/down": "expert",
        "block_0/mlp/up": "expert",
    }
    # few: how the experts are used, which the loss asks for, and the totals of the metrics
    assert kinds == {"all-to-all": 2 * 2 * GPT["depth"], "all-reduce": 1, "few": 3}


def test_all_together_split_what_each_splits():
    _, state, kinds = spread("all")
    specs = split(state)
    assert specs["block_0/mlp/up/kernel"] == ("fsdp", "tensor")
    assert specs["block_0/mlp/down/kernel"] == ("tensor", "fsdp")
    assert set(kinds) == {"all-gather", "all-reduce"}


def test_accumulate_and_remat_compose_with_sharding():
    """Slices under fsdp, blocks computed again: the same losses as the plain Step."""
    task = nk.causal_lm(models.GPT(**GPT, remat="nothing"))
    inner = nk.step(nk.accumulate(nk.gradient(task), 2), optax.adamw(1e-3))
    step = nk.shard(nk.ema(inner, 0.9), nk.mesh(fsdp=8), batch=P("fsdp"), state=rules.fsdp)
    state = jax.jit(step.init)(jax.random.key(0), batch(0))
    got, state = losses(jax.jit(step.update), state, 11)
    np.testing.assert_allclose(got, alone(()), rtol=1e-6, atol=0)
    kernel = state.average["block_0"]["mlp"]["up"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp")


def test_a_state_keeps_its_sharding_and_nothing_compiles_twice():
    axes, rows, rule, fields = STRATEGIES["all"]
    step = nk.shard(plain(**fields), nk.mesh(**axes), batch=rows, state=rule)
    update = jax.jit(step.update, donate_argnums=0)
    state = jax.jit(step.init)(jax.random.key(0), batch(0))
    before = jax.tree.map(lambda x: x.sharding, state)
    state, _ = update(state, batch(0))
    same = jax.tree.map(lambda a, x: a.is_equivalent_to(x.sharding, x.ndim), before, state)
    assert all(jax.tree.leaves(same))
    with counted() as programs:
        update(state, batch(1))
    assert programs.count == 0
