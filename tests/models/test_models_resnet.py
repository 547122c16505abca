"""ResNet and WideResNet: published sizes, identities, and what they refuse."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.models import ResNet, WideResNet

KEY = 5
COUNTS = {  # exact, as PyTorch's own or the usual implementations have them
    "20": 269_722,
    "32": 464_154,
    "44": 658_586,
    "56": 853_018,
    "110": 1_727_962,
    "18": 11_689_512,
    "34": 21_797_672,
    "50": 25_557_032,
    "101": 44_549_160,
    "152": 60_192_808,
}
MILLIONS = {  # Zagoruyko & Komodakis, tables 4 and 6
    "16-4": 2.7,
    "16-8": 11.0,
    "22-8": 17.2,
    "28-10": 36.5,
    "28-12": 52.5,
    "40-1": 0.6,
    "40-2": 2.2,
    "40-4": 8.9,
}
SMALL = {"depths": (1, 1), "channels": (4, 6), "small": True, "classes": 3}


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    return sum(p.size for p in jax.tree.leaves(shapes))


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


def scales(params):
    return {k: v for k, v in flax.traverse_util.flatten_dict(params).items() if k[-1] == "scale"}


def positive(variables):
    """Weights above 0: with inputs above 0 no relu is ever shut, and no gradient cancels."""
    return jax.tree.map(lambda x: abs(x) + 0.01, variables)


@pytest.mark.parametrize("size", COUNTS)
def test_a_published_resnet_has_the_published_number_of_parameters(size):
    assert count(ResNet.from_size(size)) == COUNTS[size]


@pytest.mark.parametrize("size", MILLIONS)
def test_a_published_wide_resnet_has_the_published_number_of_parameters(size):
    assert round(count(WideResNet.from_size(size)) / 1e6, 1) == MILLIONS[size]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_blocks_that_start_at_zero_are_their_shortcuts(bottleneck):
    """With option A the whole network is then subsampling and zeros."""
    wide = 4 if bottleneck else 1
    model = ResNet(
        (2, 1), (4, 6), 3, bottleneck=bottleneck, small=True, project=False, zero_init=True
    )
    x = pictures(2, 8, 8, 3)
    key, variables = jax.random.key(KEY), started(model, x)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    flat |= jax.jit(lambda k: scales(model.init(k, x)["params"]))(key)
    flat |= {k: jnp.zeros_like(v) for k, v in flat.items() if k[-1] == "bias"}
    variables["params"] = flax.traverse_util.unflatten_dict(flat)
    inside = jax.jit(lambda x: model.apply(variables, x, intermediates=True)[1])(x)
    stem = np.asarray(inside["stem"])
    want = np.pad(stem, ((0, 0), (0, 0), (0, 0), (0, 4 * wide - 4)))
    np.testing.assert_array_equal(inside["block_0_0"], want)
    np.testing.assert_array_equal(inside["block_0_1"], want)
    want = np.pad(want[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 2 * wide)))
    np.testing.assert_array_equal(inside["block_1_0"], want)
    np.testing.assert_allclose(inside["pooled"], want.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("depths", "reach"),
    [
        ((1,), 1 + 2 * (1 + 2)),  # the stem and two convolutions
        ((2,), 1 + 2 * (1 + 4)),
        ((1, 1), 1 + 2 * (1 + 2) + 2 + 4),  # stride 2: one more by 1 pixel, one more by 2 a side
    ],
)
def test_a_pixel_sees_its_receptive_field_and_nothing_else(depths, reach):
    model = ResNet(depths, (4, 6)[: len(depths)], 3, small=True)
    x = abs(pictures(1, 32, 32, 1)) + 1
    variables = positive(started(model, x))
    last = f"block_{len(depths) - 1}_{depths[-1] - 1}"
    at = 16 // 2 ** (len(depths) - 1)

    def seen(x):
        return model.apply(variables, x, intermediates=True)[1][last][0, at, at].sum()

    touched = np.asarray(jax.grad(seen)(x))[0, :, :, 0] != 0
    rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    assert touched.sum() == reach**2
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (16 - reach // 2, 16 + reach // 2)


@pytest.mark.parametrize("wide", [False, True])
def test_a_shifted_picture_gives_a_shifted_map_away_from_the_borders(wide):
    model = (
        WideResNet(10, 1, channels=(4, 4, 6))
        if wide
        else ResNet((1, 1, 1), (4, 4, 6), 3, small=True)
    )
    x = pictures(1, 52, 48, 2)
    variables = started(model, x)
    run = jax.jit(lambda x: model.apply(variables, x, intermediates=True)[1]["block_2_0"])
    a, b = run(x[:, :48]), run(x[:, 4:])  # 4 = the stride of the last stage
    np.testing.assert_allclose(a[:, 5:-4, 4:-4], b[:, 4:-5, 4:-4], rtol=1e-4, atol=1e-5)
    assert np.abs(a[:, 1:] - b[:, :-1]).max() > 1e-3  # padding is felt at the borders


def test_dropout_acts_while_training_alone():
    model, x = WideResNet(10, 1, dropout=0.5, channels=(4, 4, 4)), pictures(2, 8, 8, 3)
    variables = started(model, x)
    plain = jax.jit(lambda model: model.apply(variables, x), static_argnums=0)
    np.testing.assert_array_equal(plain(model), plain(WideResNet(10, 1, channels=(4, 4, 4))))
    rest = {"train": True, "mutable": ["batch_stats"]}
    run = jax.jit(lambda key: model.apply(variables, x, rngs={"dropout": key}, **rest)[0])
    trained = [run(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.abs(trained[0] - trained[2]).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda x: model.apply(variables, x, **rest), x)


def test_what_is_inside():
    x = pictures(2, 64, 32, 3)
    model = ResNet((1, 2), (4, 6), 3, bottleneck=True)
    (y, inside), _ = jax.eval_shape(
        lambda k: model.init_with_output(k, x, intermediates=True), jax.random.key(KEY)
    )
    shapes = {k: v.shape for k, v in inside.items()}
    assert y.shape == (2, 3)
    assert shapes == {
        "stem": (2, 16, 8, 4),
        "block_0_0": (2, 16, 8, 16),
        "block_1_0": (2, 8, 4, 24),
        "block_1_1": (2, 8, 4, 24),
        "pooled": (2, 24),
    }


WRONG = {
    "channels first": (ResNet(**SMALL), (2, 3, 32, 32), ["looks like [b c h w]", "[b h w c]"]),
    "one picture": (ResNet(**SMALL), (32, 32, 3), ["(32, 32, 3)", "[b h w c]", "x[None]"]),
    "small": (ResNet.from_size("18"), (2, 28, 28, 3), ["ResNet", "(2, 28, 28, 3)", "32", "resize"]),
    "small stem": (ResNet(**SMALL), (2, 1, 8, 3), ["at least 2", "resize or pad"]),
    "stages": (
        ResNet((1, 1), (4,)),
        (2, 32, 32, 3),
        ["depths has 2 stages and channels 1", "one number of blocks"],
    ),
    "no blocks": (ResNet((0, 1), (4, 4)), (2, 32, 32, 3), ["ResNet: depths[0] is 0"]),
    "classes": (ResNet(**{**SMALL, "classes": 0}), (2, 8, 8, 3), ["ResNet: classes is 0"]),
    "option A": (
        ResNet((1, 1), (6, 4), small=True, project=False),
        (2, 8, 8, 3),
        ["a stage of 4 channels follows one of 6", "project=True"],
    ),
    "depth 27": (WideResNet(27), (2, 8, 8, 3), ["depth is 27", "6 n + 4", "use 22 or 28"]),
    "depth 4": (WideResNet(4), (2, 8, 8, 3), ["depth is 4", "6 n + 4", "use 10"]),
    "dropout": (WideResNet(10, dropout=1.0), (2, 8, 8, 3), ["dropout is 1.0", "[0, 1)"]),
    "width": (WideResNet(10, 0), (2, 8, 8, 3), ["WideResNet: width is 0"]),
    "grey wide": (WideResNet(10, 1), (2, 28, 28), ["WideResNet", "x[..., None]"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_and_pictures(name):
    model, shape, parts = WRONG[name]
    with pytest.raises(ValueError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_wrong_kinds_and_names():
    with pytest.raises(TypeError, match=r"ResNet: x is uint8\[1, 8, 8, 3\].*/ 255"):
        ResNet(**SMALL).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(TypeError, match=r"ResNet: depths is 2.*depths=\(2,\)"):
        ResNet(2, (4,)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(KeyError, match=r"ResNet has no size '19'; there are '20'"):
        ResNet.from_size("19")
    with pytest.raises(KeyError, match=r"WideResNet has no size '28x10'; there are '16-4'"):
        WideResNet.from_size("28x10")


def test_other_channels_than_the_parameters_were_made_for():
    model = ResNet(**SMALL)
    variables = started(model, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"stem: x has shape \(1, 8, 8, 1\), expected 3"):
        model.apply(variables, jnp.zeros((1, 8, 8, 1)))
