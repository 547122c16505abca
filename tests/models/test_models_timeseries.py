"""Forecasting models: identities, what may see what, the closed form, and the messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import losses, models
from nnkit.models.timeseries import moving_average

TINY = {"length": 24, "patch": 6, "stride": 3, "width": 8, "heads": 2, "hidden": 12, "layers": 2}


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def series(b=2, t=24, f=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(b, t, f)).cumsum(1)
    return jnp.asarray(x.astype(np.float32))


def fitted(model, x, seed=1):
    """f(x) with random weights, in evaluation."""
    variables = model.init(jax.random.key(seed), x)
    return jax.jit(lambda x: model.apply(variables, x))


def test_repeat_is_right_for_a_constant_and_seasonal_for_a_period():
    constant = jnp.full((2, 9, 3), 4.0)
    np.testing.assert_array_equal(models.Repeat(5).apply({}, constant), constant[:, :5])
    t = np.arange(40)
    wave = jnp.asarray((t % 7 * 1.0 + 3).astype(np.float32))[None, :, None]
    y = models.SeasonalNaive(16, period=7).apply({}, wave[:, :24])
    np.testing.assert_array_equal(y, wave[:, 24:40])
    x = series()
    np.testing.assert_array_equal(
        models.SeasonalNaive(5, period=1).apply({}, x), models.Repeat(5).apply({}, x)
    )
    y, inside = models.Repeat(2).apply({}, x, intermediates=True)
    assert inside == {}


@pytest.mark.parametrize("window", [1, 3, 25])
def test_moving_average_repeats_the_ends(window):
    x = np.asarray(series(t=11))
    half = window // 2
    slow = [
        np.mean([x[:, min(max(s, 0), 10)] for s in range(t - half, t + half + 1)], 0)
        for t in range(11)
    ]
    np.testing.assert_allclose(
        moving_average(jnp.asarray(x), window), np.stack(slow, 1), rtol=1e-5, atol=1e-6
    )


MODELS = {
    "NLinear": models.NLinear(5, length=24),
    "NLinear individual": models.NLinear(5, length=24, individual=True),
    "DLinear": models.DLinear(5, length=24, window=7),
    "DLinear individual": models.DLinear(5, length=24, window=7, individual=True),
    "RevIN": models.RevIN(models.DLinear(5, length=24, window=7)),
    "PatchTST": models.PatchTST(5, **TINY),
    "PatchTST affine": models.PatchTST(5, **TINY, affine=True, individual=True),
}
rows = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@rows
def test_a_series_of_a_window_sees_itself_alone(model):
    x = series()
    f = fitted(model, x)
    slopes = jax.jit(jax.grad(lambda x, chosen: (f(x)[0] ** 2 * chosen[None]).sum()))
    for i in range(3):
        seen = np.abs(slopes(x, jnp.eye(3)[i])).sum(1)  # [b f]
        assert seen[0, i] > 0
        seen[0, i] = 0
        assert (seen == 0).all()


@rows
def test_every_step_of_the_look_back_is_seen(model):
    x = series(b=1)
    f = fitted(model, x)
    weights = jnp.arange(1.0, 6.0)
    slope = jax.jit(jax.grad(lambda x: f(x)[0, :, 0] @ weights))(x)
    assert (np.abs(slope[0, :, 0]) > 0).all()


def test_a_dlinear_map_sees_half_a_window_further():
    x = series(b=1, f=1)
    kernel = np.zeros((24, 1), np.float32)
    kernel[12] = 1
    zero = {"kernel": jnp.zeros((24, 1)), "bias": jnp.zeros(1)}
    one = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(1)}
    model = models.DLinear(1, length=24, window=7)
    f = lambda x: model.apply({"params": {"trend": one, "seasonal": zero}}, x)[0, 0, 0]
    assert np.flatnonzero(jax.grad(f)(x)[0, :, 0]).tolist() == list(range(9, 16))


@rows
def test_the_level_moves_the_forecast_along_and_revin_the_unit_too(model):
    x = series()
    f = fitted(model, x)
    moves = not isinstance(model, models.DLinear)  # a plain DLinear has no such law
    if moves:
        np.testing.assert_allclose(f(x + 7), f(x) + 7, rtol=1e-3, atol=1e-3)
    if isinstance(model, models.RevIN | models.PatchTST):
        np.testing.assert_allclose(f(100 * x - 3), 100 * f(x) - 3, rtol=1e-3, atol=1e-1)


def test_revin_gives_back_what_it_took_and_survives_a_constant():
    class Same(models.Repeat):
        def __call__(self, x):
            return x

    x = series() * 50 + 9
    for options in ({}, {"affine": True}, {"last": True}, {"affine": True, "last": True}):
        module = models.RevIN(Same(1), **options)
        given = {"scale": jnp.array([2.0, 0.5, 1.0]), "bias": jnp.array([1.0, 0.0, -2.0])}
        variables = {"params": given} if "affine" in options else {}
        y, inside = module.apply(variables, x, intermediates=True)
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-4)
        assert {k: v.shape for k, v in inside.items()} == {"mean": (2, 3), "deviation": (2, 3)}
    constant = jnp.full((1, 24, 1), 5.0)
    module = models.RevIN(models.NLinear(5, length=24))
    np.testing.assert_allclose(fitted(module, constant)(constant), 5.0, rtol=1e-6)


def test_windows_run_backwards_are_read_backwards():
    x, model = series(), models.NLinear(5, length=24)
    params = model.init(jax.random.key(0), x)
    kernel = params["params"]["head"]["kernel"]
    turned = {"params": {"head": {**params["params"]["head"], "kernel": kernel[::-1]}}}
    shift = x[:, -1:] - x[:, :1]  # NLinear centres on the last step, which is now the first
    total = kernel.sum(0)[None, :, None]
    expected = model.apply(params, x) - shift + total * shift
    np.testing.assert_allclose(model.apply(turned, x[:, ::-1]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-3, 10.0])
def test_ridge_solves_the_normal_equations(penalty):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8, 2)), rng.normal(size=(60, 3, 2))
    kernel = np.asarray(models.ridge(x, y, penalty)["head"]["kernel"], np.float64)
    a = (x - x[:, -1:]).transpose(0, 2, 1).reshape(-1, 8)
    b = (y - x[:, -1:]).transpose(0, 2, 1).reshape(-1, 3)
    rows_of = np.concatenate([a, np.sqrt(penalty) * np.eye(8)])
    exact = np.linalg.lstsq(rows_of, np.concatenate([b, np.zeros((8, 3))]), rcond=None)[0]
    np.testing.assert_allclose(kernel, exact, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose((a.T @ a + penalty * np.eye(8)) @ kernel, a.T @ b, atol=1e-3)


def test_ridge_weights_are_those_of_nlinear_and_of_stacked_members():
    x, y = series(b=50), series(b=50, t=5, seed=3)
    params = models.ridge(x, y, [0.1, 1e9])
    model = models.NLinear(5, length=24)
    fresh = model.init(jax.random.key(0), x)["params"]
    one = jax.tree.map(lambda p: p[0], params)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, fresh)
    task = nk.supervised(model, losses.mse)
    batch = {"x": x, "y": y}
    both = nk.stacked(task).loss(params, {}, batch, None)[0].value
    single = task.loss(one, {}, batch, None)[0].value
    np.testing.assert_allclose(both[0], single, rtol=1e-5)
    repeated = losses.mse(models.Repeat(5).apply({}, x), y).mean()  # an endless penalty
    np.testing.assert_allclose(both[1], repeated, rtol=1e-4)
    flat = models.ridge(x[..., 0], y[..., 0], 1.0)["head"]["kernel"]
    np.testing.assert_array_equal(flat, models.ridge(x[..., :1], y[..., :1], 1.0)["head"]["kernel"])


def test_patchtst_has_the_published_sizes():
    x = jax.ShapeDtypeStruct((1, 336, 7), jnp.float32)
    count = lambda size, x: sum(
        p.size
        for p in jax.tree.leaves(
            jax.eval_shape(models.PatchTST.from_size(size, horizon=96).init, jax.random.key(0), x)[
                "params"
            ]
        )
    )
    assert count("small/42", x) == 81_728
    longer = jax.ShapeDtypeStruct((1, 512, 7), jnp.float32)
    assert count("small/64", longer) == 81_728 + (64 - 42) * 16 * 97
    layer = 4 * (128 * 128 + 128) + 2 * 128 * 256 + 256 + 128 + 4 * 128
    head = 64 * 128 * 96 + 96
    assert count("large/64", longer) == 17 * 128 + 64 * 128 + 3 * layer + head
    assert models.PatchTST.from_size("small/42", horizon=5, width=8).width == 8


def test_patchtst_shows_its_inside_and_attention_sums_to_one():
    x = series()
    y, inside = models.PatchTST(5, **TINY).init_with_output(
        jax.random.key(0), x, intermediates=True
    )[0]
    assert y.shape == (2, 5, 3)
    shapes = {"tokens": (2, 3, 8, 8), "layer_1": (2, 3, 8, 8), "attention_1": (2, 3, 2, 8, 8)}
    assert {k: inside[k].shape for k in shapes} == shapes
    np.testing.assert_allclose(inside["attention_0"].sum(-1), 1, rtol=1e-5)


def test_masked_windows_leave_batch_statistics_alone():
    x = series(b=4)
    model = models.PatchTST(5, **TINY, dropout=0.0)
    variables = model.init(jax.random.key(0), x)
    few, after = model.apply(variables, x[:2], train=True, mutable=["batch_stats"])
    junk = x.at[2:].set(1e3)
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])
    many, masked = model.apply(variables, junk, mask, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(many[:2], few, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), masked, after)


def test_patchtst_drops_while_training_only():
    x = series()
    model = models.PatchTST(5, **TINY, dropout=0.5)
    f = fitted(model, x)
    np.testing.assert_array_equal(f(x), f(x))
    variables = model.init(jax.random.key(0), x)
    one, two = (
        model.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(k)}, mutable=["batch_stats"]
        )[0]
        for k in range(2)
    )
    assert float(jnp.abs(one - two).max()) > 1e-3


def test_gradients_are_finite_differences():
    with double():
        x = series().astype(jnp.float64)
        y = series(t=5, seed=4).astype(jnp.float64)
        model = models.PatchTST(5, **{**TINY, "layers": 1}, dropout=0.0, affine=True)
        task = nk.supervised(model, losses.mse)
        batch = {"x": x, "y": y}
        params, carry = task.init(jax.random.key(0), batch)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        loss = jax.jit(lambda p: task.loss(p, carry, batch, jax.random.key(1))[0].value)
        slope = jax.jit(jax.grad(loss))(params)
        way = jax.tree.map(
            lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), params
        )
        along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), slope, way)))
        move = lambda e: loss(jax.tree.map(lambda p, w: p + e * w, params, way))
        near = (move(1e-6) - move(-1e-6)) / 2e-6
        assert float(along) == pytest.approx(float(near), rel=1e-6)


X = jnp.ones((2, 24, 3))


@pytest.mark.parametrize(
    ("model", "x", "error", "said"),
    [
        (models.NLinear(5), X, ValueError,
         r"x has 24 steps \(shape \(2, 24, 3\)\), but NLinear has length=336; cut windows"),
        (models.DLinear(5, length=24), X[0], ValueError,
         r"x has shape \(24, 3\), expected \[b t f\] for DLinear.*x\[\.\.\., None\]"),
        (models.Repeat(5), X.astype(int), TypeError, "x is int32, expected floats for Repeat"),
        (models.Repeat(0), X, ValueError, "Repeat: horizon is 0, expected an integer >= 1"),
        (models.Repeat(2.0), X, TypeError, r"Repeat: horizon is 2\.0, expected an integer"),
        (models.SeasonalNaive(5, period=30), X, ValueError,
         r"x has 24 steps, expected at least period=30 \(SeasonalNaive\)"),
        (models.DLinear(5, length=24, window=8), X, ValueError,
         "DLinear: window is 8, expected an odd number .* use 9"),
        (models.PatchTST(5, **{**TINY, "heads": 3}), X, ValueError,
         "PatchTST: width=8 is not divisible by heads=3"),
        (models.PatchTST(5, **{**TINY, "patch": 30}), X, ValueError,
         "PatchTST: patch=30 is longer than length=24"),
        (models.PatchTST(5, **TINY, dropout=1.0), X, ValueError, "PatchTST: dropout is 1.0"),
        (models.PatchTST(5, **TINY), X[:, 1:], ValueError, "x has 23 steps .* PatchTST has"),
        (models.RevIN(models.Repeat(5), epsilon=0.0), X, ValueError, "epsilon is 0.0, expected a"),
    ],
)  # fmt: skip
def test_messages(model, x, error, said):
    with pytest.raises(error, match=said):
        model.init(jax.random.key(0), x)


def test_messages_of_functions():
    with pytest.raises(KeyError, match=r"PatchTST has no size '42'; there are 'small/42'"):
        models.PatchTST.from_size("42", horizon=96)
    with pytest.raises(ValueError, match=r"x has shape \(3, 8, 2\) and y has shape \(4, 3, 2\)"):
        models.ridge(np.zeros((3, 8, 2)), np.zeros((4, 3, 2)), 1.0)
    with pytest.raises(ValueError, match="penalty is 0, expected a finite number > 0"):
        models.ridge(np.zeros((3, 8, 2)), np.zeros((3, 3, 2)), 0)
    with pytest.raises(TypeError, match="penalty is the string '1'"):
        models.ridge(np.zeros((3, 8, 2)), np.zeros((3, 3, 2)), "1")
