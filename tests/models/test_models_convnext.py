"""ConvNeXt: published sizes, identities, and what it refuses."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.models import ConvNeXt

KEY = 5
COUNTS = {"T": 28_589_128, "S": 50_223_688, "B": 88_591_464, "L": 197_767_336}  # torchvision's


def pictures(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def started(model, x):
    """Random variables without compiling an initialiser: variances 1, biases not 0."""
    draw = np.random.default_rng(KEY)
    found = {}
    shapes = jax.eval_shape(model.init, jax.random.key(KEY), x)
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        z = draw.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        near = {"scale": 1 + 0.1 * z, "var": 1 + 0.1 * abs(z), "layer_scale": 1 + 0.1 * z}
        z = near.get(path[-1], z if path[-1] == "kernel" else 0.1 * z)
        found[path] = jnp.asarray(z, leaf.dtype)
    return flax.traverse_util.unflatten_dict(found)


@pytest.mark.parametrize("size", COUNTS)
def test_a_published_size_has_the_published_number_of_parameters(size):
    x, model = jnp.ones((1, 32, 32, 3)), ConvNeXt.from_size(size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert sum(p.size for p in jax.tree.leaves(shapes)) == COUNTS[size]


def test_blocks_start_near_the_identity(optimised):
    model, x = ConvNeXt((1,), (4,), 3), pictures(2, 16, 16, 3)
    (_, inside), _ = jax.jit(lambda k: model.init_with_output(k, x, intermediates=True))(
        jax.random.key(KEY)
    )
    gap = np.abs(inside["block_0_0"] - inside["stem"]).max()
    assert 0 < gap < 1e-5  # LayerScale starts at 1e-6


def test_a_pixel_sees_seven_by_seven_patches_and_nothing_else():
    model, x = ConvNeXt((1,), (4,), 3, scale=1.0), pictures(1, 64, 64, 1)
    variables = started(model, x)

    def seen(x):
        return model.apply(variables, x, intermediates=True)[1]["block_0_0"][0, 8, 8, 0]

    touched = np.asarray(jax.grad(seen)(x))[0, :, :, 0] != 0
    patches = touched.reshape(16, 4, 16, 4).any((1, 3))
    want = np.zeros((16, 16), bool)
    want[5:12, 5:12] = True
    np.testing.assert_array_equal(patches, want)


def test_a_shifted_picture_gives_a_shifted_map_away_from_the_borders():
    model, x = ConvNeXt((1, 1), (4, 6), 3, scale=1.0), pictures(1, 136, 128, 2)
    variables = started(model, x)
    run = jax.jit(lambda x: model.apply(variables, x, intermediates=True)[1]["block_1_0"])
    a, b = run(x[:, :128]), run(x[:, 8:])  # 8 = the stride of the last stage
    np.testing.assert_allclose(a[:, 6:-5, 5:-5], b[:, 5:-6, 5:-5], rtol=1e-5, atol=1e-6)
    assert np.abs(a[:, 1:] - b[:, :-1]).max() > 1e-4


def test_stochastic_depth_drops_a_block_of_an_example_or_doubles_it():
    """Shares 0 and 0.5 for two blocks: each row of the second is x or x + 2 (f(x) - x)."""
    model, x = ConvNeXt((2,), (4,), 3, drop=0.5, scale=1.0), pictures(16, 8, 8, 3)
    variables = started(model, x)
    _, inside = jax.jit(lambda x: model.apply(variables, x, intermediates=True))(x)
    rest = {"train": True, "intermediates": True, "rngs": {"dropout": jax.random.key(1)}}
    _, trained = jax.jit(lambda x: model.apply(variables, x, **rest))(x)
    np.testing.assert_allclose(trained["block_0_0"], inside["block_0_0"], rtol=1e-6)
    before, after = (np.asarray(inside[k]) for k in ("block_0_0", "block_0_1"))
    rows = np.asarray(trained["block_0_1"])
    dropped = np.abs(rows - before).max((1, 2, 3)) == 0
    kept = np.abs(rows - (2 * after - before)).max((1, 2, 3)) < 1e-5
    assert (dropped ^ kept).all()
    assert 2 < dropped.sum() < 14
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda x: model.apply(variables, x, train=True), x)


def test_what_is_inside():
    x = pictures(2, 35, 16, 3)  # a rest of rows is left out
    model = ConvNeXt((1, 2), (4, 6), 3)
    (y, inside), _ = jax.eval_shape(
        lambda k: model.init_with_output(k, x, intermediates=True), jax.random.key(KEY)
    )
    assert y.shape == (2, 3)
    assert {k: v.shape for k, v in inside.items()} == {
        "stem": (2, 8, 4, 4),
        "block_0_0": (2, 8, 4, 4),
        "block_1_0": (2, 4, 2, 6),
        "block_1_1": (2, 4, 2, 6),
        "pooled": (2, 6),
    }


WRONG = {
    "channels first": (ConvNeXt((1,), (4,)), (2, 1, 28, 28), ["looks like [b c h w]", "transpose"]),
    "rank": (ConvNeXt((1,), (4,)), (2, 8), ["ConvNeXt: x has shape (2, 8)", "[b h w c]"]),
    "small": (ConvNeXt.from_size("T"), (2, 28, 28, 3), ["ConvNeXt", "at least 32", "resize"]),
    "stages": (ConvNeXt((1, 1), (4,)), (2, 32, 32, 3), ["depths has 2 stages", "channels 1"]),
    "drop": (ConvNeXt((1,), (4,), drop=1.5), (2, 8, 8, 3), ["ConvNeXt: drop is 1.5", "[0, 1)"]),
    "channels": (ConvNeXt((1,), (-4,)), (2, 8, 8, 3), ["ConvNeXt: channels[0] is -4"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_and_pictures(name):
    model, shape, parts = WRONG[name]
    with pytest.raises(ValueError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_wrong_kinds_and_names():
    with pytest.raises(TypeError, match=r"ConvNeXt: x is int32\[1, 8, 8, 3\], expected floats"):
        ConvNeXt((1,), (4,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.int32))
    with pytest.raises(TypeError, match=r"ConvNeXt: classes is 2.5"):
        ConvNeXt((1,), (4,), 2.5).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(KeyError, match=r"ConvNeXt has no size 'tiny'; there are 'T'"):
        ConvNeXt.from_size("tiny")
