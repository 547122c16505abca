"""Losses of classes against their definitions in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import losses

B, C = 6, 4
INTEGER = [losses.cross_entropy, losses.focal, losses.multiclass_hinge]


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def soft(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_cross_entropy(z, y, smoothing=0.0):
    y = np.eye(z.shape[-1])[y] if y.ndim < z.ndim else y
    y = y * (1 - smoothing) + smoothing / z.shape[-1]
    return np.array([-sum(a * np.log(p)) for a, p in zip(y, soft(z))])


def slow_focal(z, y, gamma=2.0):
    p = soft(z)[np.arange(len(y)), y]
    return -((1 - p) ** gamma) * np.log(p)


def slow_binary(z, y):
    p = 1 / (1 + np.exp(-z))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def slow_multiclass_hinge(z, y):
    return np.array(
        [max(0, 1 + max(np.delete(row, k)) - row[k]) for row, k in zip(z, y, strict=True)]
    )


def slow_kl(z, t):
    p, q = soft(z), soft(t)
    return np.array([sum(b * (np.log(b) - np.log(a))) for a, b in zip(p, q)])


def inputs(kind, dtype=np.float32, seed=0):
    """(outputs, targets) of one kind; the same numbers for the same seed."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(B, C))
    made = {
        "integer": (z, rng.integers(0, C, B)),
        "soft": (z, rng.dirichlet(np.ones(C), B).astype(dtype)),
        "bits": (z[:, 0], rng.integers(0, 2, B)),
        "odds": (z[:, 0], rng.uniform(size=B).astype(dtype)),
        "pair": (z, rng.normal(size=(B, C)).astype(dtype)),
    }
    outputs, targets = made[kind]
    return outputs.astype(dtype), targets


def with_knobs(f, **knobs):
    return lambda a, b: f(a, b, **knobs)


TABLE = {
    "cross_entropy": (losses.cross_entropy, slow_cross_entropy, "integer"),
    "cross_entropy soft": (losses.cross_entropy, slow_cross_entropy, "soft"),
    "cross_entropy smoothed": (
        with_knobs(losses.cross_entropy, smoothing=0.3),
        with_knobs(slow_cross_entropy, smoothing=0.3),
        "integer",
    ),
    "cross_entropy soft smoothed": (
        with_knobs(losses.cross_entropy, smoothing=0.3),
        with_knobs(slow_cross_entropy, smoothing=0.3),
        "soft",
    ),
    "focal": (losses.focal, slow_focal, "integer"),
    "focal half": (
        with_knobs(losses.focal, gamma=0.5),
        with_knobs(slow_focal, gamma=0.5),
        "integer",
    ),
    "binary": (losses.binary, slow_binary, "bits"),
    "binary soft": (losses.binary, slow_binary, "odds"),
    "hinge": (losses.hinge, lambda z, y: np.maximum(0, 1 - (2 * y - 1) * z), "bits"),
    "multiclass_hinge": (losses.multiclass_hinge, slow_multiclass_hinge, "integer"),
    "kl": (losses.kl, slow_kl, "pair"),
}
rows = pytest.mark.parametrize(("f", "slow", "kind"), TABLE.values(), ids=TABLE)


@rows
def test_definition(f, slow, kind):
    for seed in range(3):
        z, y = inputs(kind, seed=seed)
        out = f(jnp.asarray(z), y)
        assert out.shape == (B,)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(
            out, slow(z.astype(np.float64), np.asarray(y)), rtol=1e-5, atol=1e-6
        )


@rows
def test_gradient_is_the_finite_difference(f, slow, kind):
    z, y = inputs(kind, np.float64)
    with double():
        got = jax.jit(jax.grad(lambda x: f(x, y).sum()))(jnp.asarray(z))
        assert got.dtype == jnp.float64
    eps, want = 1e-6, np.zeros_like(z)
    for i in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[i] = eps
        want[i] = (slow(z + step, y).sum() - slow(z - step, y).sum()) / (2 * eps)
    np.testing.assert_allclose(got, want, atol=1e-8)  # the error of the difference is ~1e-9


@rows
def test_jit_vmap_and_float64(f, slow, kind):
    z, y = inputs(kind)
    z, y = jnp.asarray(z), jnp.asarray(y)
    out, f = f(z, y), jax.jit(f)
    np.testing.assert_allclose(f(z, y), out, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(f(z[:1], y[:1]), out[:1], rtol=1e-6, atol=1e-7)
    many = jax.jit(jax.vmap(f))(jnp.stack([z, z[::-1]]), jnp.stack([y, y]))
    np.testing.assert_allclose(many, [out, f(z[::-1], y)], rtol=1e-6, atol=1e-7)
    with double():
        z, y = inputs(kind, np.float64)
        out = f(z, y)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, slow(z, y), rtol=1e-12)


@rows
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_at_extremes(f, slow, kind, dtype):
    z, y = inputs(kind)
    ends = np.array([[0, 0], [1e4, 1e4], [-1e4, -1e4], [1e4, 0], [-1e4, 0], [1e4, -1e4]])
    z = jnp.asarray(np.tile(ends, C // 2) if z.ndim == 2 else ends.T.reshape(-1)[:B]).astype(dtype)
    f = jax.jit(lambda z, y, f=f: (f(z, y), jax.grad(lambda z: f(z, y).sum())(z)))
    for labels in (y, y[::-1], np.zeros_like(y), z[::-1] if kind == "pair" else y):
        out, grad = f(z, jnp.asarray(labels))
        assert out.dtype == jnp.float32
        assert jnp.isfinite(out).all()
        assert jnp.isfinite(grad).all()


def test_token_losses_are_the_flattened_ones():
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, 5, C)).astype(np.float32))
    y = jnp.asarray(rng.integers(0, C, (2, 5)))
    for f in INTEGER:
        flat = jax.jit(f)(z.reshape(10, C), y.reshape(10))
        np.testing.assert_allclose(jax.jit(f)(z, y), flat.reshape(2, 5), rtol=1e-6)
    np.testing.assert_allclose(
        losses.kl(z, 2 * z), losses.kl(z.reshape(10, C), 2 * z.reshape(10, C)).reshape(2, 5)
    )


def test_limits():
    z, y = inputs("integer")
    z = jnp.asarray(z)
    plain = losses.cross_entropy(z, y)
    np.testing.assert_allclose(losses.focal(z, y, gamma=0.0), plain, rtol=1e-6)
    np.testing.assert_array_equal(losses.cross_entropy(z, y, smoothing=0), plain)
    one_hot = losses.cross_entropy(z, np.eye(C, dtype=np.float32)[y])
    np.testing.assert_allclose(one_hot, plain, rtol=1e-6)
    np.testing.assert_allclose(losses.kl(z, z), np.zeros(B), atol=1e-7)
    np.testing.assert_array_equal(losses.cross_entropy(z[:, :1], y * 0), np.zeros(B))
    assert losses.cross_entropy(z[:0], y[:0]).shape == (0,)
    two = jnp.stack([jnp.zeros(B), z[:, 0]], -1)
    np.testing.assert_allclose(
        losses.binary(z[:, 0], y % 2), losses.cross_entropy(two, y % 2), 1e-5
    )
    np.testing.assert_array_equal(losses.binary(z[:, 0], y % 2 == 1), losses.binary(z[:, 0], y % 2))
    smoothed = jax.jit(lambda s: losses.cross_entropy(z, y, smoothing=s))  # a knob may be traced
    np.testing.assert_allclose(smoothed(0.1), losses.cross_entropy(z, y, smoothing=0.1), rtol=1e-6)
    fading = jax.jit(lambda g: losses.focal(z, y, gamma=g))
    np.testing.assert_allclose(fading(2.0), losses.focal(z, y), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_at_certainty(gamma):
    z = jnp.array([[200.0, 0.0], [0.0, 200.0], [20.0, 0.0]])
    grad = jax.jit(jax.grad(lambda z: losses.focal(z, jnp.zeros(3, int), gamma=gamma).sum()))(z)
    assert jnp.isfinite(grad).all()
    np.testing.assert_array_equal(grad[0], [0, 0])


def test_classes_ruled_out_by_minus_infinity():
    z, inf = jnp.array([[1.0, 2.0, -jnp.inf]]), float("inf")
    want = losses.cross_entropy(z[:, :2], jnp.array([0]))
    for y in (jnp.array([0]), jnp.array([[1.0, 0.0, 0.0]])):
        value, grad = jax.value_and_grad(lambda z: losses.cross_entropy(z, y)[0])(z)  # noqa: B023
        np.testing.assert_allclose(value, want[0], rtol=1e-6)
        assert jnp.isfinite(grad).all()
    assert losses.cross_entropy(z, jnp.array([2]))[0] == inf
    grad = jax.grad(lambda z: losses.kl(z, z[:, ::1])[0])(z)
    assert jnp.isfinite(grad).all()
    assert losses.kl(z, jnp.zeros((1, 3)))[0] == inf


def test_soft_labels_have_the_right_gradient_at_zero():
    z, y = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])
    grad = jax.grad(lambda y: losses.cross_entropy(z, y)[0])(y)
    np.testing.assert_allclose(grad, -jax.nn.log_softmax(z), rtol=1e-6)
