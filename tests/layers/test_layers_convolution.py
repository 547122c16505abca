"""Convolutions and pooling against loops; the gradient in pieces; shapes; wrong input."""

from __future__ import annotations

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import layers
from nnkit.layers import convolution

double = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slowly(x, w, strides, pads, dilation, groups):
    """The definition: one output cell after the other, in float64."""
    x, w = np.pad(np.asarray(x, np.float64), [(0, 0), *pads, (0, 0)]), np.asarray(w, np.float64)
    window, (per, out) = w.shape[:-2], w.shape[-2:]
    reach = [d * (k - 1) + 1 for k, d in zip(window, dilation)]
    space = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, strides)]
    y = np.zeros((x.shape[0], *space, out))
    for p in itertools.product(*map(range, space)):
        for q in itertools.product(*map(range, window)):
            at = tuple(i * s + j * d for i, s, j, d in zip(p, strides, q, dilation))
            for o in range(out):
                group = o // (out // groups)
                seen = x[(slice(None), *at)][:, group * per : (group + 1) * per]  # [b i/g]
                y[(slice(None), *p, o)] += seen @ w[(*q, slice(None), o)]
    return y


CASES = {
    "same": ((2, 7, 6, 3), {"kernel_size": (3, 2)}, [(1, 1), (0, 1)]),
    "valid": ((2, 7, 6, 3), {"kernel_size": (3, 3), "padding": "VALID"}, [(0, 0)] * 2),
    "stride, odd size": ((1, 7, 6, 3), {"kernel_size": (3, 3), "strides": 2}, [(1, 1), (0, 1)]),
    "strides": ((1, 7, 6, 2), {"kernel_size": (3, 3), "strides": (3, 1)}, [(1, 1), (1, 1)]),
    "dilation": (
        (1, 7, 8, 2),
        {"kernel_size": (3, 3), "kernel_dilation": (2, 1)},
        [(2, 2), (1, 1)],
    ),
    "groups": ((2, 5, 4, 4), {"kernel_size": (3, 3), "feature_group_count": 2}, [(1, 1)] * 2),
    "depthwise": ((2, 5, 4, 2), {"kernel_size": (3, 3), "feature_group_count": 2}, [(1, 1)] * 2),
    "causal": ((2, 8, 3), {"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2}, [(4, 0)]),
    "pairs": ((2, 8, 3), {"kernel_size": (3,), "padding": ((0, 3),)}, [(0, 3)]),
    "one by one": ((2, 3, 3, 5), {"kernel_size": (1, 1)}, [(0, 0)] * 2),
    "volume": ((1, 3, 4, 3, 2), {"kernel_size": (2, 3, 2)}, [(0, 1), (1, 1), (0, 1)]),
    "in pieces": ((32, 4, 3, 2), {"kernel_size": (3, 3)}, [(1, 1)] * 2),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_convolution_is_its_definition(name):
    shape, fields, pads = CASES[name]
    layer, x = layers.Conv(4, **fields, bias_init=nn.initializers.normal()), draw(*shape)
    variables = layer.init(KEY, x)
    rank = len(shape) - 2
    per = lambda v: (v,) * rank if isinstance(v, int) else v
    w, b = variables["params"]["kernel"], variables["params"]["bias"]
    strides, dilation = per(fields.get("strides", 1)), per(fields.get("kernel_dilation", 1))
    want = slowly(x, w, strides, pads, dilation, fields.get("feature_group_count", 1))
    y = layer.apply(variables, x)
    np.testing.assert_allclose(y, want + np.asarray(b), rtol=2e-5, atol=2e-5)
    if "padding" not in fields or isinstance(fields["padding"], str):
        theirs = nn.Conv(4, **{**fields, "kernel_size": per(fields["kernel_size"])})
        np.testing.assert_allclose(y, theirs.apply(variables, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("b", "fields"), [(48, {"strides": 2}), (32, {"feature_group_count": 2})])
def test_the_gradient_in_pieces_is_plain_in_every_mode(b, fields):
    """At first and second order, forward and reverse, mapped, against lax.conv in float64."""
    assert convolution._pieces(b) == b // 16
    with double(True):
        x, w = jnp.asarray(draw(b, 4, 3, 2), jnp.float64), None
        layer = layers.Conv(4, (3, 3), use_bias=False, **fields)
        plain = nn.Conv(4, (3, 3), use_bias=False, param_dtype=jnp.float64, **fields)
        w = plain.init(KEY, x)["params"]["kernel"]
        dx, dw = jnp.cos(3 * x), jnp.cos(w)

        def modes(layer, x, w, dx, dw):
            def f(x, w):
                return jnp.sin(layer.apply({"params": {"kernel": w}}, jnp.tanh(x))).mean()

            gradient = jax.grad(f, (0, 1))
            along = lambda w: jnp.vdot(gradient(x, w)[1], dw)
            return {
                "jvp": jax.jvp(f, (x, w), (dx, dw)),
                "jvp by w": jax.jvp(lambda w: f(x, w), (w,), (dw,)),
                "vjp": gradient(x, w),
                "vjp by w": jax.grad(f, 1)(x, w),
                "forward over reverse": jax.jvp(gradient, (x, w), (dx, dw)),
                "reverse over reverse": jax.grad(along)(w),
                "mapped over w": jax.vmap(gradient, (None, 0))(x, jnp.stack([w, dw])),
                "remat": jax.grad(jax.checkpoint(f), 1)(x, w),
            }

        # As arguments: XLA of jax 0.7.2 folds a strided convolution of constants wrongly.
        run = jax.jit(modes, static_argnums=0)
        mine, theirs = run(layer, x, w, dx, dw), run(plain, x, w, dx, dw)
        for name in mine:
            for a, b in zip(jax.tree.leaves(mine[name]), jax.tree.leaves(theirs[name])):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


def test_pieces_are_of_sixteen_at_most_eight_and_even():
    want = {1: 1, 16: 1, 31: 1, 32: 2, 33: 1, 50: 2, 64: 4, 96: 6, 128: 8, 512: 8, 127: 1}
    assert {b: convolution._pieces(b) for b in want} == want


def test_a_split_batch_stays_on_its_devices():
    """No data moves between devices for the pieces: only the sum of the gradients does."""
    mesh = jax.make_mesh((2,), ("data",))
    spec = lambda *p: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p))
    layer, x = layers.Conv(4, (3, 3)), draw(64, 6, 6, 2)
    variables = layer.init(KEY, x)
    gradient = jax.jit(jax.grad(lambda v, x: jnp.square(layer.apply(v, x)).sum()))
    alone = gradient(variables, x)
    both = jax.device_put(variables, spec()), jax.device_put(x, spec("data"))
    text = gradient.lower(*both).compile().as_text()
    for moved in ("all-gather(", "collective-permute(", "all-to-all("):
        assert moved not in text
    for a, b in zip(jax.tree.leaves(gradient(*both)), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_what_is_near_the_border_alone_sees_it():
    """Equivariance: a shifted picture gives the shifted answer, away from the border."""
    layer, x = layers.Conv(3, (3, 3)), draw(1, 10, 10, 2)
    variables = layer.init(KEY, x)
    y, moved = (layer.apply(variables, v) for v in (x, np.roll(x, (1, 2), (1, 2))))
    np.testing.assert_allclose(moved[:, 3:8, 4:8], np.roll(y, (1, 2), (1, 2))[:, 3:8, 4:8], 1e-5)


def test_causal_sees_no_future():
    layer, x = layers.Conv(3, 3, padding="CAUSAL", kernel_dilation=2), jnp.asarray(draw(1, 9, 2))
    variables = layer.init(KEY, x)
    slope = jax.jacobian(lambda x: layer.apply(variables, x).sum((0, 2)))(x)[:, 0]  # [t s c]
    seen = jnp.abs(slope).sum(-1) > 0
    want = {(t, t - d) for t in range(9) for d in (0, 2, 4) if t >= d}
    assert {(int(t), int(s)) for t, s in zip(*np.nonzero(seen))} == want


UP = [
    ((2, 4, 3, 2), {"kernel_size": (2, 2), "strides": 2}),
    ((2, 4, 3, 2), {"kernel_size": (3, 3), "strides": (2, 1)}),
    ((2, 4, 3, 2), {"kernel_size": (2, 3), "strides": (3, 2), "padding": "VALID"}),
    ((2, 5, 2), {"kernel_size": (4,), "strides": 2, "kernel_dilation": 2}),
    ((2, 5, 2), {"kernel_size": (3,), "strides": 2, "padding": ((1, 2),)}),
]


@pytest.mark.parametrize(("shape", "fields"), UP)
def test_transposed_is_flax_s(shape, fields):
    rank, x = len(shape) - 2, draw(*shape)
    layer = layers.ConvTranspose(3, **fields)
    variables = layer.init(KEY, x)
    per = {k: (v,) * rank if isinstance(v, int) else v for k, v in fields.items()}
    theirs = nn.ConvTranspose(3, **per).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), theirs, rtol=1e-5, atol=1e-6)


def test_transposed_is_the_gradient_of_a_convolution_by_its_input():
    """<y, conv(x)> = <transposed(y), x>, its kernel flipped and its channels exchanged."""
    x, y = draw(1, 9, 7, 2), draw(1, 4, 3, 3, seed=1)
    down = layers.Conv(3, (3, 3), strides=2, padding="VALID", use_bias=False)
    w = down.init(KEY, x)["params"]["kernel"]
    up = layers.ConvTranspose(2, (3, 3), strides=2, padding="VALID", use_bias=False)
    flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
    back = up.apply({"params": {"kernel": flipped}}, y)
    forth = down.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose((back * x).sum(), (forth * y).sum(), rtol=1e-4)


def test_wrong_convolutions():
    def fails(layer, x, message, error=ValueError):
        with pytest.raises(error, match=message):
            layer.init(KEY, x)

    picture, conv = jnp.ones((2, 8, 8, 3)), layers.Conv
    fails(
        conv(4, 3), picture, r"expected \[b t c\] for kernel_size=\(3,\); write kernel_size=\(3, 3"
    )
    fails(conv(4, (3, 3)), picture[0], r"x has shape \(8, 8, 3\), expected \[b h w c\].*x\[None\]")
    fails(conv(4, (3,) * 4), picture, r"kernel_size is \(3, 3, 3, 3\), expected 1 to 3 numbers")
    fails(conv(4, (3, 0)), picture, "kernel_size is 0, expected an integer >= 1")
    fails(conv(4, (3, 3), strides=(2,)), picture, r"strides is \(2,\), expected one number, or 2")
    fails(conv(4, (3, 3), strides=1.5), picture, "strides is 1.5, expected an integer", TypeError)
    fails(conv(0, (3, 3)), picture, "Conv: features is 0, expected an integer >= 1")
    fails(
        conv(4, (3, 3), feature_group_count=2),
        picture,
        r"feature_group_count=2 does not divide the 3 input channels; x has shape \(2, 8, 8, 3\)",
    )
    fails(conv(4, (3, 3), feature_group_count=3), picture, "does not divide the 4 features")
    fails(conv(4, (3, 3), padding="CAUSAL"), picture, "padding is 'CAUSAL', expected 'SAME'")
    fails(conv(4, (3, 3), padding=((1, 1),)), picture, "expected a name, one number >= 0, or 2 n")
    fails(conv(4, (3, 3), padding=-1), picture, "padding is -1, expected a name, one number >= 0")
    fails(
        conv(4, (9, 9), padding="VALID"), picture, "smaller than the filter .* use padding='SAME'"
    )
    fails(conv(4, (3, 3)), picture.astype(jnp.uint8), r"x is uint8.*/ 255", TypeError)
    up = layers.ConvTranspose
    fails(up(4, (3, 3), padding="CAUSAL"), picture, "ConvTranspose: padding is 'CAUSAL'")
    made = conv(4, (3, 3)).init(KEY, picture)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\), expected 3 features on the last"):
        conv(4, (3, 3)).apply(made, jnp.ones((2, 3, 8, 8)))


def pooled(x, window, strides, pads, reduce):
    """The definition: one window after the other; padding is NaN."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0), *pads, (0, 0)], constant_values=np.nan)
    space = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides)]
    y = np.zeros((x.shape[0], *space, x.shape[-1]))
    axes = tuple(range(1, x.ndim - 1))
    for p in itertools.product(*map(range, space)):
        here = tuple(slice(i * s, i * s + k) for i, s, k in zip(p, strides, window))
        y[(slice(None), *p)] = reduce(x[(slice(None), *here)], axes)
    return y


POOLS = [
    ((2, 7, 6, 3), (2, 2), None, "VALID", [(0, 0)] * 2),
    ((2, 7, 6, 3), (3, 3), (2, 2), "SAME", [(1, 1), (0, 1)]),
    ((2, 7, 6, 3), (3, 2), (1, 3), ((1, 0), (0, 1)), [(1, 0), (0, 1)]),
    ((2, 9, 3), (3,), (2,), 1, [(1, 1)]),
    ((1, 4, 5, 4, 2), (2, 2, 2), None, "VALID", [(0, 0)] * 3),
    ((2, 5, 3), (1,), (2,), "VALID", [(0, 0)]),
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding", "pads"), POOLS)
def test_pooling_is_its_definition(shape, window, strides, padding, pads):
    x, steps = draw(*shape), strides or window
    want = pooled(x, window, steps, pads, np.nanmax)
    np.testing.assert_array_equal(layers.max_pool(x, window, strides, padding), want)
    want = pooled(x, window, steps, pads, np.nanmean)
    y = layers.avg_pool(x, window, strides, padding, count_include_pad=False)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    want = pooled(x, window, steps, pads, np.nansum) / np.prod(window)
    np.testing.assert_allclose(
        layers.avg_pool(x, window, strides, padding), want, rtol=1e-5, atol=1e-6
    )


def test_equal_maxima_share_the_slope_and_it_adds_up():
    for strides, windows in ((2, 4), (1, 9)):
        total = functools.partial(lambda s, x: layers.max_pool(x, 2, s).sum(), strides)
        assert float(jax.grad(total)(jnp.zeros((1, 4, 4, 1))).sum()) == windows
    slope = jax.grad(lambda x: layers.max_pool(x, 2).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(slope, np.full((1, 2, 2, 1), 0.25))


def test_a_mean_over_everything_leaves_out_what_is_masked():
    x = jnp.asarray(draw(2, 5, 3)).at[:, 3:].set(jnp.nan)
    mask = jnp.arange(5)[None] < jnp.array([[3], [0]])
    y, slope = jax.value_and_grad(lambda x: layers.global_avg_pool(x, mask).sum())(x)
    np.testing.assert_allclose(layers.global_avg_pool(x, mask)[0], x[0, :3].mean(0), rtol=1e-6)
    assert np.isfinite(y)
    assert float(jnp.abs(layers.global_avg_pool(x, mask)[1]).max()) == 0
    np.testing.assert_allclose(slope[0, :, 0], [1 / 3] * 3 + [0, 0], rtol=1e-6)
    everything = layers.global_avg_pool(x[:, :3], jnp.ones((2, 3), bool))
    np.testing.assert_allclose(everything, layers.global_avg_pool(x[:, :3]), rtol=1e-6)


def test_wrong_pooling():
    x = jnp.ones((2, 8, 8, 3))
    for pool in (layers.max_pool, layers.avg_pool):
        with pytest.raises(ValueError, match=r"smaller than the window \(9, 9\); use a smaller"):
            pool(x, 9)
        with pytest.raises(ValueError, match="expected it smaller than the window"):
            pool(x, 2, 2, 2)
        with pytest.raises(ValueError, match=r"x has shape \(8, 3\), expected \[b t c\], "):
            pool(x[0, 0], 2)
        with pytest.raises(ValueError, match="window is 0, expected an integer >= 1"):
            pool(x, 0)
        with pytest.raises(ValueError, match=r"strides is \(1, 2, 3\), expected one number, or 2"):
            pool(x, 2, (1, 2, 3))
        with pytest.raises(TypeError, match="x is int32, expected floats"):
            pool(x.astype(jnp.int32), 2)
    with pytest.raises(ValueError, match=r"expected \[b \.\.\. c\] with axes in between"):
        layers.global_avg_pool(x[0, 0])
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3\), expected \(2, 8, 8\)"):
        layers.global_avg_pool(x, jnp.ones((2, 3)))
