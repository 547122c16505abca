"""Activations: formulas, finite far away, simplex projections against brute force, masks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from nnkit import layers

double = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
ELEMENTWISE = (
    "celu elu gelu gelu_tanh hard_sigmoid hard_swish hard_tanh identity leaky_relu log_sigmoid "
    "mish relu relu2 relu6 selu sigmoid silu softplus softsign swish tanh"
).split()
SIMPLEX = ("softmax", "sparsemax", "entmax15")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_value_and_slope_are_finite_far_away(name):
    f = getattr(layers, name)
    x = jnp.array([0.0, 1.0, 30.0, 100.0, 1e4, 1e18])
    x = jnp.concatenate([x, -x])
    y, slope = jax.jit(jax.vmap(jax.value_and_grad(f)))(x)
    assert np.isfinite(y).all()
    assert np.isfinite(slope).all()
    low = jax.jit(f)(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(low, np.float32)).all()


FORMULAS = {
    "gelu": lambda x: x * (1 + special.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_formulas(name):
    x = np.linspace(-6, 6, 97)
    y = getattr(layers, name)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, FORMULAS[name](x), rtol=1e-5, atol=2e-6)


def test_the_two_gelus_differ():
    x = jnp.linspace(-5, 5, 1001)
    gap = float(jnp.abs(layers.gelu(x) - layers.gelu_tanh(x)).max())
    assert 1e-4 < gap < 5e-4


def test_gates_multiply_and_their_order_counts():
    gate, up = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])
    for name, f in {"glu": "sigmoid", "geglu": "gelu", "swiglu": "silu", "reglu": "relu"}.items():
        y = getattr(layers, name)(gate, up)
        np.testing.assert_allclose(y, getattr(layers, f)(gate) * up, rtol=1e-6)
        assert (np.asarray(y) != np.asarray(getattr(layers, name)(up, gate))).any()
        with pytest.raises(ValueError, match=r"gate has shape \(2,\) and up has shape \(1,\)"):
            getattr(layers, name)(gate, up[:1])


def test_prelu():
    x = jnp.array([[-2.0, -2.0, 3.0]])
    np.testing.assert_allclose(layers.prelu(x, jnp.array([0.5, 0.1, 9.0])), [[-1, -0.2, 3]])
    for per_channel, shape in ((False, (1,)), (True, (3,))):
        layer = layers.PReLU(per_channel=per_channel)
        variables = layer.init(jax.random.key(0), x)
        assert variables["params"]["slope"].shape == shape
        np.testing.assert_array_equal(layer.apply(variables, x), [[-0.5, -0.5, 3.0]])
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\), expected 3 features"):
        layer.apply(variables, x[:, :2])
    with pytest.raises(ValueError, match=r"slope has shape \(2,\), expected \(\) or the channels"):
        layers.prelu(x, jnp.ones(2))
    with pytest.raises(TypeError, match="PReLU: x is int32"):
        layer.apply(variables, x.astype(jnp.int32))


def test_maxout():
    x = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(layers.maxout(x, 3), [[2, 5], [8, 11]])
    np.testing.assert_array_equal(layers.maxout(x, 1), x)
    # two pieces x and -x: the absolute value
    y = layers.maxout(jnp.stack([x, -x], -1).reshape(2, 12), 2)
    np.testing.assert_array_equal(y, jnp.abs(x))
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 6\), expected a last axis divisible by"
    ):
        layers.maxout(x, 4)
    with pytest.raises(ValueError, match="maxout: pieces is 0, expected an integer >= 1"):
        layers.maxout(x, 0)


def by_bisection(z, alpha):
    """max(0, (alpha - 1) z - tau)^(1/(alpha - 1)), tau found by bisection: the definition."""
    z = (alpha - 1) * np.asarray(z, np.float64)
    power = lambda tau: np.maximum(z - tau, 0) ** (1 / (alpha - 1))
    return power(optimize.brentq(lambda tau: power(tau).sum() - 1, z.max() - 1, z.max()))


@pytest.mark.parametrize(("name", "alpha"), [("sparsemax", 2.0), ("entmax15", 1.5)])
def test_sparse_maps_are_their_definition(name, alpha):
    z = np.random.default_rng(0).normal(size=(30, 7)) * np.repeat([[0.1], [1.0], [10.0]], 10, 0)
    with double(True):
        p = jax.jit(getattr(layers, name))(jnp.asarray(z))
        np.testing.assert_allclose(p, [by_bisection(row, alpha) for row in z], atol=1e-9)


def test_sparsemax_is_the_nearest_point():
    z = np.random.default_rng(1).normal(size=5)
    p = np.asarray(layers.sparsemax(jnp.asarray(z, jnp.float32)))
    others = np.random.default_rng(2).dirichlet(np.ones(5) / 2, 20_000)
    assert ((z - p) ** 2).sum() <= ((z - others) ** 2).sum(1).min() + 1e-6


@pytest.mark.parametrize(("name", "q"), [("sparsemax", 0.0), ("entmax15", 0.5), ("softmax", 1.0)])
def test_their_jacobians_are_the_published_ones(name, q):
    """diag(s) - s s' / sum(s), s = p^(2 - alpha) (Peters et al., prop. 2); finite differences."""
    with double(True):
        z = jnp.asarray([1.0, 0.7, 0.1, -0.4, -3.0])
        f = jax.jit(getattr(layers, name))
        p = np.asarray(f(z))
        s = np.where(p > 0, p**q, 0)
        want = np.diag(s) - np.outer(s, s) / s.sum()
        for jacobian in (jax.jacrev(f)(z), jax.jacfwd(f)(z)):
            np.testing.assert_allclose(jacobian, want, atol=1e-12)
        way = jnp.cos(z)
        moved = (f(z + 1e-6 * way) - f(z - 1e-6 * way)) / 2e-6
        np.testing.assert_allclose(jax.jacrev(f)(z) @ way, moved, atol=1e-8)


@pytest.mark.parametrize("name", SIMPLEX)
def test_sums_shifts_axes_ties_and_far_away(name):
    f = getattr(layers, name)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    far, never = jnp.array([1e18, -1e18, 1e18 / 2, 0.0]), jnp.array([0.0, -jnp.inf, 0.0])
    slope = jax.grad(lambda z: (f(z) * jnp.cos(jnp.arange(z.size, dtype=z.dtype))).sum())

    @jax.jit
    def every(z, far, never):
        shifted = {"shifted": f(z + 5), "first": f(z, axis=0).T, "turned": f(z.T)}
        same = {"ties": f(jnp.zeros(4)), "one": f(jnp.ones(1)), "low": f(z.astype(jnp.bfloat16))}
        edges = {"far": f(far), "never": f(never), "slopes": (slope(far), slope(never))}
        return {"z": f(z), **shifted, **same, **edges}

    p = every(z, far, never)
    np.testing.assert_allclose(np.sum(p["z"], -1), np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(p["shifted"], p["z"], atol=1e-5)
    np.testing.assert_allclose(p["first"], p["turned"], atol=1e-6)
    np.testing.assert_allclose(p["ties"], np.full(4, 0.25), atol=1e-6)
    np.testing.assert_allclose(p["one"], [1.0])
    np.testing.assert_allclose(p["far"], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(p["never"], [0.5, 0, 0.5], atol=1e-6)
    assert all(np.isfinite(v).all() for v in p["slopes"])
    assert p["low"].dtype == jnp.bfloat16


def test_softmax_under_a_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    x = jnp.where(mask, x, jnp.nan)
    p = layers.softmax(x, mask)
    np.testing.assert_allclose(p[0, :2], jax.nn.softmax(x[0, :2]), rtol=1e-6)
    np.testing.assert_array_equal(p[1], np.zeros(4))
    np.testing.assert_allclose(p[2], jax.nn.softmax(x[2]), rtol=1e-6)
    slope = jax.grad(lambda x: jnp.sin(layers.softmax(x, mask)).sum())(x)
    assert np.isfinite(slope).all()
    assert float(jnp.abs(slope[1]).max()) == 0
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), expected the rank of x"):
        layers.softmax(x, mask[0])
