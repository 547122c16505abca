"""What the compiler for TPU makes of the layouts; it needs no TPU, but the package libtpu."""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import models
from nnkit.parallel import rules

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("optimised")]


@pytest.fixture(scope="module")
def chips():
    """The four chips of a v5e:2x2 that is not there."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'nnkit-jax[plan]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        from jax.experimental import topologies

        yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def compiled(mesh, rows, rule, **fields):
    size = {"vocabulary": 512, "length": 128, "width": 256, "depth": 2, "heads": 4} | fields
    inner = nk.step(nk.gradient(nk.causal_lm(models.GPT(**size))), optax.adamw(1e-3))
    step = nk.shard(inner, mesh, batch=rows, state=rule)
    tokens = jax.ShapeDtypeStruct((16, 128), jnp.int32, sharding=NamedSharding(mesh, rows))
    batch = {"tokens": tokens, "labels": tokens}

    def placed(path, x):
        spec = rule(nk.trees.path_name(path), x, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    state = jax.eval_shape(inner.init, jax.random.key(0), batch)
    state = jax.tree_util.tree_map_with_path(placed, state)
    return jax.jit(step.update, donate_argnums=0).lower(state, batch).compile()


def test_fsdp_scatters_the_gradient(chips):
    """The all-reduce and the slice of a CPU are one reduce-scatter here."""
    text = compiled(nk.mesh(fsdp=4, devices=chips), P("fsdp"), rules.fsdp).as_text()
    assert re.search(r"reduce-scatter", text)
    assert " all-to-all(" not in text


def test_tensor_parallel_has_two_all_reduces_per_block_and_direction(chips):
    mesh = nk.mesh(data=2, tensor=2, devices=chips)
    text = compiled(mesh, P("data"), rules.tensor).as_text()
    kinds = collections.Counter(
        re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter)(?:-start)?\(", text)
    )
    assert set(kinds) == {"all-reduce"}
    assert 2 * 2 * 2 + 1 <= kinds["all-reduce"] <= 2 * 2 * 2 + 2  # the gradient in one or two
