"""U-Net: sizes, what a pixel sees, tiles, weights of borders, and what is refused."""

import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.models import UNet, border_weights, tiled

KEY = 5


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


def test_the_network_of_the_paper_has_its_sizes():
    """Figure 1: 572 -> 388, 28 pixels at the bottom; the parameters counted layer by layer."""
    x, model = jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32), UNet.from_size("paper")
    (y, inside), variables = jax.eval_shape(
        lambda k, x: model.init_with_output(k, x, intermediates=True), jax.random.key(0), x
    )
    assert y.shape == (1, 388, 388, 2)
    assert inside["down_0"].shape == (1, 568, 568, 64)
    assert inside["down_4"].shape == (1, 28, 28, 1024)
    assert inside["up_3"].shape == (1, 52, 52, 512)
    conv = lambda k, i, o: k * k * i * o + o
    d, want = 1, conv(1, 64, 2)
    for width in (64, 128, 256, 512, 1024):
        want += conv(3, d, width) + conv(3, width, width)
        d = width
    for width in (512, 256, 128, 64):
        want += conv(2, 2 * width, width) + conv(3, 2 * width, width) + conv(3, width, width)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == want == 31_030_658


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("norm", [{}, {"norm": True}, {"groups": 2}])
def test_sizes_out_are_the_arithmetic_of_the_layers(valid, resize, norm):
    model = UNet((4, 6, 8), 3, valid=valid, resize=resize, **norm)
    accepted = []
    for n in range(40, 54):
        try:
            x = jax.ShapeDtypeStruct((1, n, 44 if valid else 32, 1), jnp.float32)
            (y, inside), variables = jax.eval_shape(
                lambda k, x: model.init_with_output(k, x, intermediates=True), jax.random.key(0), x
            )
        except ValueError:
            continue
        accepted.append(n)
        out = n
        if valid:
            out = ((n - 4) // 2 - 4) // 2 - 4
            for _ in range(2):
                out = 2 * out - 4 - (2 if resize else 0)
        assert y.shape[1] == out
        assert sorted(inside) == ["down_0", "down_1", "down_2", "up_0", "up_1"]
        assert ("batch_stats" in variables) == ("norm" in norm)
    if not valid:
        assert accepted == [40, 44, 48, 52]
    elif not resize:
        assert accepted == [44, 48, 52]


def interval(n, deep):
    """What output pixels [a, b] of a valid, transposed network see, backwards through the layers.

    A 3x3 convolution sees 2 more pixels after, a pooling two per pixel, a transposed 2x2 one per
    two; what came down is cut by an equal part on both sides.
    """
    down, size = [], n
    for _ in range(deep):
        size -= 4
        down.append(size)
        size //= 2
    up, size = [], size - 4
    for _ in range(deep):
        up.append(2 * size)
        size = 2 * size - 4
    crops = [(d - u) // 2 for d, u in zip(down, reversed(up))]  # by level from the top
    pair = lambda a, b: (a, b + 4)

    def contracted(level, a, b):  # the output of pair `level` on the way down
        a, b = pair(a, b)
        return (a, b) if level == 0 else contracted(level - 1, 2 * a, 2 * b + 1)

    def expanded(level, a, b):
        a, b = pair(a, b)
        low = (a // 2, b // 2)
        below = contracted(deep, *low) if level == deep - 1 else expanded(level + 1, *low)
        across = contracted(level, a + crops[level], b + crops[level])
        return min(below[0], across[0]), max(below[1], across[1])

    return size, lambda i: expanded(0, i, i)


@pytest.mark.parametrize(("n", "deep"), [(24, 1), (60, 2)])
def test_a_pixel_sees_its_receptive_field_and_nothing_else(n, deep):
    """Weights and inputs above 0, so that no relu is shut; max-pooling made an average by ties."""
    model, x = UNet((2, 2, 2)[: deep + 1], 1, valid=True), jnp.ones((1, n, n, 1))
    variables = jax.tree.map(abs, started(model, x))
    size, window = interval(n, deep)
    run = jax.jit(lambda x: model.apply(variables, x)[0, :, :, 0])
    base = run(x)
    assert base.shape == (size, size)
    for i in (0, 3, size // 2, size - 1):
        a, b = window(i)
        assert a >= 0 and b < n
        changed = [
            k
            for k in range(n)
            if abs(float(run(x.at[0, k].add(5.0))[i, size // 2] - base[i, size // 2])) > 1e-6
        ]
        assert changed == list(range(a, b + 1))


@pytest.mark.parametrize("fields", [{}, {"resize": True}, {"valid": True}])
def test_a_shifted_picture_gives_shifted_classes_away_from_the_borders(fields):
    model, x = UNet((3, 4, 4), 2, **fields), pictures(1, 80, 76, 1)
    variables = started(model, x[:, :76])
    run = jax.jit(lambda x: model.apply(variables, x))
    a, b = run(x[:, :76]), run(x[:, 4:])
    edge = 0 if "valid" in fields else 28
    kept = slice(edge, a.shape[1] - 4 - edge)
    np.testing.assert_allclose(a[:, 4:][:, kept], b[:, :-4][:, kept], rtol=1e-4, atol=1e-5)


def test_dropout_acts_while_training_alone():
    model, x = UNet((3, 4), 2, dropout=0.5), pictures(1, 8, 8, 1)
    variables = started(model, x)
    plain = jax.jit(lambda model: model.apply(variables, x), static_argnums=0)
    np.testing.assert_array_equal(plain(model), plain(UNet((3, 4), 2)))
    run = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    a, b = (run(jax.random.key(i)) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda x: model.apply(variables, x, train=True), x)


@pytest.mark.parametrize(("h", "w"), [(16, 24), (13, 30), (40, 3)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (16, 4), (9, 4), (64, 20)])
def test_tiles_of_the_identity_are_the_picture(h, w, tile, overlap):
    x = pictures(2, h, w, 3)
    np.testing.assert_array_equal(tiled(lambda x: x, x, tile=tile, overlap=overlap), x)
    if overlap > 1:
        cut = tiled(lambda x: x[:, 2:-2, 2:-2], x, tile=tile, overlap=overlap)
        np.testing.assert_array_equal(cut, x)


def test_tiles_of_a_network_without_padding_are_the_whole_mirrored_picture():
    model, x = UNet((3, 4, 4), 2, valid=True), pictures(1, 24, 16, 1)
    variables = started(model, pictures(1, 44, 44, 1))
    run = jax.jit(lambda x: model.apply(variables, x))
    whole = run(jnp.pad(x, ((0, 0), (20, 20), (20, 20), (0, 0)), mode="reflect"))
    assert whole.shape == (1, 24, 16, 2)
    for tile in (44, 48):  # 4 and 8 pixels are kept of each
        tiles = tiled(run, x, tile=tile, overlap=20)
        np.testing.assert_allclose(tiles, whole, rtol=1e-5, atol=1e-6)


def test_tiles_of_a_padded_network_are_the_whole_picture_away_from_its_edges():
    model, x = UNet((3, 4), 2), pictures(1, 48, 40, 1)
    variables = started(model, x)
    run = jax.jit(lambda x: model.apply(variables, x))
    whole, tiles = run(x), tiled(run, x, tile=32, overlap=10)
    inner = (slice(None), slice(10, -10), slice(10, -10))
    np.testing.assert_allclose(tiles[inner], whole[inner], rtol=1e-5, atol=1e-6)
    few = tiled(run, x, tile=32, overlap=2)  # less than a pixel sees
    assert np.abs(few[inner] - whole[inner]).max() > 1e-3


def test_border_weights_are_their_definition():
    labels = np.zeros((11, 13), int)
    labels[1:4, 1:5], labels[1:5, 7:12], labels[7:10, 3:8] = 1, 2, 7
    h, w = labels.shape
    want, share = np.zeros((h, w)), (labels > 0).mean()
    cells = [
        [p for p in itertools.product(range(h), range(w)) if labels[p] == k] for k in (1, 2, 7)
    ]
    for i, j in itertools.product(range(h), range(w)):
        if labels[i, j]:
            want[i, j] = 0.5 / share
            continue
        d = sorted(min(np.hypot(i - a, j - b) for a, b in cell) for cell in cells)
        want[i, j] = 0.5 / (1 - share) + 7.0 * np.exp(-((d[0] + d[1]) ** 2) / (2 * 3.0**2))
    found = border_weights(labels, strength=7.0, sigma=3.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_array_equal(border_weights(labels > 0), border_weights(labels))


@pytest.mark.parametrize("labels", [np.zeros((4, 5), bool), np.ones((4, 5), bool), np.eye(1, 5)])
def test_border_weights_with_fewer_than_two_cells_balance_alone(labels):
    found = border_weights(labels.astype(bool))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.mean(), 1, rtol=1e-6)


WRONG = {
    "channels first": (UNet((2, 2)), (2, 1, 32, 32), ["UNet", "looks like [b c h w]"]),
    "odd": (
        UNet((2, 2, 2)),
        (1, 30, 32, 1),
        ["(1, 30, 32, 1)", "30 pixels", "2 poolings", "pad to 32, or cut to 28", "tiled"],
    ),
    "paper": (
        UNet.from_size("paper"),
        (1, 512, 512, 1),
        ["512 pixels", "4 poolings without padding", "pad to 524, or cut to 508"],
    ),
    "small": (UNet((2, 2), valid=True), (1, 8, 8, 1), ["8 pixels", "pad to 18"]),
    "norms": (UNet((2, 2), norm=True, groups=2), (1, 8, 8, 1), ["norm=True and groups=2"]),
    "groups": (UNet((4, 6), groups=4), (1, 8, 8, 1), ["channels=6", "groups=4"]),
    "dropout": (UNet((4, 6), dropout=-1), (1, 8, 8, 1), ["UNet: dropout is -1"]),
    "classes": (UNet((4, 6), 0), (1, 8, 8, 1), ["UNet: classes is 0"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_and_pictures(name):
    model, shape, parts = WRONG[name]
    with pytest.raises(ValueError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        (
            lambda: tiled(lambda x: x, jnp.ones((8, 8, 1)), tile=4, overlap=0),
            ValueError,
            ["(8, 8, 1)", "[b h w c]", "x[None]"],
        ),
        (
            lambda: tiled(lambda x: x, jnp.ones((1, 8, 8, 1)), tile=8, overlap=4),
            ValueError,
            ["tile=8 and overlap=4 leave 0 pixels", "larger tile"],
        ),
        (
            lambda: tiled(lambda x: x[:, 3:-3, 3:-3], jnp.ones((1, 8, 8, 1)), tile=8, overlap=2),
            ValueError,
            ["2 of 8 pixels", "cuts off 3 on each side", "overlap is 2", "use overlap=3"],
        ),
        (
            lambda: tiled(lambda x: x[:, 1:, 1:], jnp.ones((1, 8, 8, 1)), tile=8, overlap=2),
            ValueError,
            ["(1, 7, 7, 1) for a tile of 8x8", "even number"],
        ),
        (
            lambda: border_weights(np.zeros((2, 4, 4), int)),
            ValueError,
            ["(2, 4, 4)", "[h w]", "np.stack"],
        ),
        (lambda: border_weights(np.zeros((4, 4))), TypeError, ["float64", "integers", "> 0.5"]),
        (lambda: border_weights(np.eye(4, dtype=int), sigma=0), ValueError, ["sigma is 0"]),
        (lambda: UNet.from_size("big"), KeyError, ["UNet has no size 'big'", "'paper'"]),
    ],
)
def test_wrong_calls(call, kind, parts):
    with pytest.raises(kind) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
