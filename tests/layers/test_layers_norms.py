"""Norms against their definitions, under masks and half precision; statistics; wrong input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import layers

KEY = jax.random.key(0)


def draw(*shape, seed=0, scale=1.0, shift=0.0):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(scale * x + shift, jnp.float32)


def trained(norm, x, variables=None, mask=None):
    """(y, variables after it)."""
    return _trained(norm, x, norm.init(KEY, x) if variables is None else variables, mask)


@functools.partial(jax.jit, static_argnums=0)
def _trained(norm, x, variables, mask):
    y, new = norm.apply(variables, x, mask, train=True, mutable="batch_stats")
    return y, {**variables, **new}


def standard(x, axes, epsilon=1e-5):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_definitions():
    x = draw(3, 4, 5, 6, scale=2, shift=3)
    run = lambda norm: jax.jit(lambda x: norm.init_with_output(KEY, x)[0])(x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(trained(layers.BatchNorm(), x)[0], standard(x, (0, 1, 2)))
    close(run(layers.LayerNorm()), standard(x, -1))
    close(run(layers.InstanceNorm()), standard(x, (1, 2)))
    close(run(layers.GroupNorm(6)), standard(x, (1, 2)))
    grouped = standard(x.reshape(3, 4, 5, 2, 3), (1, 2, 4)).reshape(x.shape)
    close(run(layers.GroupNorm(2)), grouped)
    close(run(layers.GroupNorm(1)), standard(x, (1, 2, 3)))
    wide = np.asarray(x, np.float64)
    close(run(layers.ShiftedRMSNorm()), wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6))
    close(run(layers.RMSNorm()), wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6))


def test_layer_norm_forgets_shift_and_scale():
    x, norm = draw(4, 16), layers.LayerNorm()
    variables = norm.init(KEY, x)
    y = norm.apply(variables, x)
    np.testing.assert_allclose(norm.apply(variables, 7 * x + 3), y, atol=1e-4)
    scale = layers.RMSNorm(epsilon=1e-12).init_with_output(KEY, 7 * x)[0]
    np.testing.assert_allclose(
        scale, layers.RMSNorm(epsilon=1e-12).init_with_output(KEY, x)[0], 1e-5
    )


def test_far_from_zero_the_variance_stays_exact():
    """In one pass the squares of 4096 would leave nothing of a variance of 1."""
    x = draw(1024, 2, shift=4096.0)
    y, after = trained(layers.BatchNorm(momentum=0.0), x)
    np.testing.assert_allclose(y, standard(x, 0), atol=1e-3)
    np.testing.assert_allclose(after["batch_stats"]["var"], np.var(x, 0, ddof=1, dtype=float), 1e-4)


def test_running_statistics_and_what_evaluation_reads():
    a, b = np.asarray(draw(8, 3)), np.asarray(draw(8, 3, seed=1, scale=2, shift=1))
    norm = layers.BatchNorm(momentum=0.8)
    _, after = trained(norm, a)
    _, after = trained(norm, b, after)
    mean = 0.2 * (0.8 * a.mean(0) + b.mean(0))
    var = 0.8 * (0.8 + 0.2 * np.var(a, 0, ddof=1)) + 0.2 * np.var(b, 0, ddof=1)
    np.testing.assert_allclose(after["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["var"], var, rtol=1e-5)
    y, same = norm.apply(after, a, mutable="batch_stats")  # evaluation: reads, and leaves alone
    np.testing.assert_allclose(y, (a - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, same["batch_stats"], after["batch_stats"]))
    alone = norm.apply(after, a[:1])  # nor does one example depend on the others
    np.testing.assert_allclose(alone, y[:1], rtol=1e-6)
    _, biased = trained(layers.BatchNorm(momentum=0.0, unbiased=False), a)
    np.testing.assert_allclose(biased["batch_stats"]["var"], np.var(a, 0), rtol=1e-5)


@pytest.mark.parametrize("per_position", [False, True])
def test_a_mask_leaves_out_exactly_what_it_masks(per_position):
    real, rest = draw(5, 4, 3), jnp.full((2, 4, 3), jnp.nan)
    norm, x = layers.BatchNorm(), jnp.concatenate([real, rest])
    mask = jnp.arange(7) < 5
    mask = jnp.broadcast_to(mask[:, None], (7, 4)) if per_position else mask
    want, alone = trained(norm, real)
    y, padded = trained(norm, x, mask=mask, variables=norm.init(KEY, real))
    np.testing.assert_allclose(y[:5], want, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def loss(x, mask):
        return jnp.sin(trained(norm, x, alone, mask)[0][:5]).sum()

    slope = jax.grad(loss)(jnp.concatenate([real, jnp.zeros_like(rest)]), mask)
    np.testing.assert_allclose(slope[:5], jax.grad(loss)(real, None), rtol=1e-3, atol=1e-5)
    assert float(jnp.abs(slope[5:]).max()) == 0
    every = jax.tree.leaves(trained(norm, real, alone, jnp.ones(5))[1])
    for a, b in zip(every, jax.tree.leaves(trained(norm, real, alone)[1])):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_batch_masked_altogether_changes_nothing():
    x, norm = draw(4, 3), layers.BatchNorm()
    _, before = trained(norm, x)
    y, after = trained(norm, x, before, jnp.zeros(4))
    assert np.isfinite(y).all()
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    _, one = trained(norm, x, before, jnp.array([1, 0, 0, 0]))  # n - 1 = 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


def test_under_half_the_statistics_stay_float32():
    x = draw(16, 6, scale=3, shift=100.0)
    task = nk.half(nk.supervised(layers.BatchNorm(), lambda out, y: jnp.square(out).sum(-1)))
    step = nk.step(nk.gradient(task), optax.sgd(0.1))
    batch = {"x": x, "y": jnp.zeros(16)}
    state = nk.init(step, KEY, batch)
    carry = [v for v in jax.tree.leaves(state) if getattr(v, "shape", None) == (6,)]
    assert {v.dtype for v in carry} == {jnp.dtype(jnp.float32)}
    after, _ = jax.jit(step.update)(state, batch)
    kinds = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), tree)
    assert kinds(after) == kinds(state)
    for norm in (layers.LayerNorm(), layers.RMSNorm(), layers.GroupNorm(2)):
        low = jax.tree.map(lambda v: v.astype(jnp.bfloat16), norm.init(KEY, x))
        y = norm.apply(low, x.astype(jnp.bfloat16))
        assert y.dtype == jnp.bfloat16
        want = norm.init_with_output(KEY, x.astype(jnp.bfloat16).astype(jnp.float32))[0]
        np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.02)


def test_moments_and_normalise():
    x, mask = draw(4, 5), jnp.arange(4)[:, None] < 3
    mean, var, n = layers.moments(x, 0, mask)
    np.testing.assert_allclose(mean[0], x[:3].mean(0), rtol=1e-5)
    np.testing.assert_allclose(var[0], x[:3].var(0), rtol=1e-5)
    assert float(n.max()) == 3
    y = layers.normalise(x, *layers.moments(x, 0)[:2], epsilon=0.0, scale=jnp.full((1, 5), 2.0))
    np.testing.assert_allclose(y, 2 * standard(x, 0, 0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), expected the rank of x"):
        layers.moments(x, 0, jnp.ones(4))


@pytest.mark.parametrize("wrapped", [layers.Dense(4), layers.Conv(4, (3, 3))])
def test_weight_norm(wrapped):
    x = draw(2, 5, 5, 3)
    norm = layers.WeightNorm(wrapped)
    variables = norm.init(KEY, x)
    params = variables["params"]
    plain = {k: v for k, v in params.items() if k != "scale"}
    y = norm.apply(variables, x)
    np.testing.assert_allclose(y, wrapped.apply({"params": plain}, x), rtol=1e-5, atol=1e-6)
    longer = {**params, "kernel": 5 * params["kernel"]}  # only the direction of v counts
    np.testing.assert_allclose(norm.apply({"params": longer}, x), y, rtol=1e-5, atol=1e-6)
    double = {**params, "scale": 2 * params["scale"]}
    np.testing.assert_allclose(norm.apply({"params": double}, x), 2 * y, rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.grad(lambda p: jnp.sin(norm.apply({"params": p}, x)).sum()))(params)
    along = (slope["kernel"] * params["kernel"]).sum(range(params["kernel"].ndim - 1))
    np.testing.assert_allclose(along, np.zeros(4), atol=1e-4)  # orthogonal to v: Salimans, eq. 4
    none = {**params, "kernel": jnp.zeros_like(params["kernel"])}
    assert np.isfinite(norm.apply({"params": none}, x)).all()


def test_spectral_norm_divides_by_the_largest_singular_value():
    x, norm = draw(4, 6), layers.SpectralNorm(layers.Dense(5, use_bias=False))
    variables = norm.init(KEY, x)
    step = jax.jit(lambda variables: norm.apply(variables, x, train=True, mutable="batch_stats"))
    for _ in range(40):
        _, new = step(variables)
        variables = {**variables, **new}
    w = variables["params"]["kernel"]
    top = np.linalg.norm(np.asarray(w), 2)
    np.testing.assert_allclose(new["batch_stats"]["sigma"], top, rtol=1e-4)
    y, same = norm.apply(variables, x, mutable="batch_stats")
    np.testing.assert_allclose(y, x @ w / top, rtol=1e-3, atol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, same["batch_stats"], new["batch_stats"]))


def test_wrong_input():
    def fails(norm, x, message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            norm.init_with_output(KEY, x, **options)

    x = jnp.ones((4, 3))
    fails(layers.LayerNorm(epsilon=0.0), x, "epsilon is 0.0, expected a finite number > 0")
    fails(layers.LayerNorm(), x.astype(jnp.int32), "LayerNorm: x is int32", TypeError)
    fails(layers.LayerNorm(), jnp.ones(()), r"LayerNorm: x has shape \(\), expected \[\.\.\. d\]")
    fails(layers.BatchNorm(), jnp.ones(3), r"x has shape \(3,\), expected \[b \.\.\. c\]")
    fails(layers.BatchNorm(momentum=1.5), x, r"momentum is 1.5, expected the share in \[0, 1\]")
    fails(layers.GroupNorm(2), x, r"groups=2 does not divide the 3 channels of x, which has shape")
    fails(layers.GroupNorm(0), x, "groups is 0, expected an integer >= 1")
    fails(layers.InstanceNorm(), x, r"expected \[b \.\.\. c\] with at least two positions")
    fails(layers.InstanceNorm(), x[:, None], "one position per channel, expected at least 2")
    norm = layers.BatchNorm()
    made = norm.init(KEY, x)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\), one value per channel"):
        trained(norm, x[:1], made)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected the leading axes of x"):
        trained(norm, x, made, jnp.ones(3))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3\), expected the leading axes"):
        trained(norm, x, made, jnp.ones((4, 3)))
    for norm in (layers.BatchNorm(), layers.RMSNorm(), layers.ShiftedRMSNorm()):
        made = norm.init(KEY, x)
        with pytest.raises(ValueError, match=r"x has shape \(4, 5\), expected 3 features"):
            norm.apply(made, jnp.ones((4, 5)))
    for wrap in (layers.WeightNorm, layers.SpectralNorm):
        fails(wrap("dense"), x, f"{wrap.__name__}: layer is 'dense', expected a layer", TypeError)
        fails(wrap(layers.LayerNorm()), x, "LayerNorm has 'scale', 'bias', expected a param 'kern")
        fails(wrap(layers.Dense(2)), x.astype(jnp.int32), "x is int32, expected floats", TypeError)
    fails(layers.SpectralNorm(layers.Dense(2), steps=0), x, "steps is 0, expected an integer >= 1")
