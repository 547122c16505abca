"""Plans for chips that are not here, where their compilers are installed (extra `plan`)."""

import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest

import nnkit as nk

pytestmark = pytest.mark.usefixtures("optimised")
tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra plan)"
)
cuda = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="the CUDA plugin of JAX is not installed (extra plan)",
)
N = 256 * 1024 + 1024 + 1024 * 8 + 8  # weights


def planned(topology, b=256, **options):
    task = nk.half(nk.supervised(nk.models.MLP((1024, 8)), nk.losses.cross_entropy))
    step = nk.step(nk.gradient(task), optax.adam(1e-3))
    batch = {
        "x": jax.ShapeDtypeStruct((b, 256), jnp.float32),
        "y": jax.ShapeDtypeStruct((b,), jnp.int32),
    }
    return nk.plan(step, batch, topology, say=lambda line: None, **options)


def gpt2(topology, b, **options):
    model = nk.models.GPT.from_size("gpt2")
    step = nk.step(nk.gradient(nk.half(nk.causal_lm(model))), optax.adamw(3e-4))
    tokens = jax.ShapeDtypeStruct((b, 1024), jnp.int32)
    return nk.plan(step, {"tokens": tokens, "labels": tokens}, topology, model=model, **options)


@tpu
def test_a_tpu_is_planned_without_one(tmp_path):
    found = planned("v5e:2x2", mesh={"fsdp": 4}, folder=tmp_path, tokens=1e9)
    own = (256 * 1024 + 1024 + 1024 * 8) // 4 + 8  # the last bias is small and stays whole
    assert found.devices == 4
    assert found.memory.parameters == 4 * own
    assert found.memory.state == 3 * 4 * own + 16
    assert found.memory.arguments >= found.memory.state  # tiles may pad
    assert {c.kind for c in found.collectives} & {"all-gather", "all-reduce", "reduce-scatter"}
    assert found.fits
    assert found.roofline.bound in ("compute", "memory", "network")
    assert found.budget.hours > 0
    assert set(found.flops.products_by) == {"bfloat16"}
    assert "libtpu" in found.versions


@tpu
def test_a_batch_too_large_for_a_tpu_is_refused_by_its_own_compiler(tmp_path):
    found = planned("v5e:1x1", b=2**24, folder=tmp_path, search=False)
    assert not found.fits
    assert found.refused
    assert found.memory.peak > found.memory.limit == int(15.75 * 2**30)


@tpu
@pytest.mark.nightly
def test_the_largest_batch_of_a_tpu_is_found(tmp_path):
    found = planned("v5e:1x1", b=2**24, folder=tmp_path)
    low, high = found.largest
    assert 0 < high - low <= low * 1e-4  # 16 trials at most
    assert planned("v5e:1x1", b=low, folder=tmp_path).fits
    assert not planned("v5e:1x1", b=high, folder=tmp_path, search=False).fits


@tpu
def test_a_shape_that_no_tpu_has_is_refused():
    with pytest.raises(ValueError, match=r"topology 'v5e:3x5' is refused by its compiler"):
        planned("v5e:3x5")


@cuda
def test_a_gpu_is_planned_without_one(tmp_path):
    found = planned("h100:8", mesh={"fsdp": 8}, folder=tmp_path)
    own = (256 * 1024 + 1024 + 1024 * 8) // 8 + 8
    assert found.devices == 8
    assert found.memory.state == 3 * 4 * own + 16
    assert found.memory.arguments >= found.memory.state
    assert found.fits
    assert found.collectives


@tpu
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("topology", "mesh", "b"),
    [("v5e:2x2", {"fsdp": 4}, 4), ("v5e:4x4", {"fsdp": 16}, 16), ("v5p:2x2x1", {"fsdp": 4}, 8)],
)
def test_gpt2(topology, mesh, b):
    """Bytes by arithmetic, operations within 5 % of the formula, 1/n of the bytes with fsdp."""
    found = gpt2(topology, b, mesh=mesh)
    n = mesh["fsdp"]
    assert found.parameters == 124_439_808
    whole = (12 * 9 + 2) * 768  # biases and norms of 768 numbers are not split
    own = (124_439_808 - whole) // n + whole
    assert found.memory.parameters == 4 * own
    assert found.memory.state == 3 * 4 * own + 16  # two moments; two counts and a key
    assert found.memory.arguments >= found.memory.state
    assert found.flops.needed == pytest.approx(found.formula, rel=0.05)
    assert found.fits
