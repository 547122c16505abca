"""Losses of numbers against their definitions in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import losses


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def slow(one):
    """The loss per example from the loss of one number, in loops."""
    return lambda x, y: np.array(
        [np.mean([one(a - b) for a, b in zip(np.ravel(p), np.ravel(t))]) for p, t in zip(x, y)]
    )


TABLE = {
    "mse": (losses.mse, slow(lambda e: e * e)),
    "mae": (losses.mae, slow(abs)),
    "huber": (losses.huber, slow(lambda e: e * e / 2 if abs(e) <= 1 else abs(e) - 0.5)),
    "huber 0.3": (
        lambda x, y: losses.huber(x, y, delta=0.3),
        slow(lambda e: e * e / 2 if abs(e) <= 0.3 else 0.3 * (abs(e) - 0.15)),
    ),
}
rows = pytest.mark.parametrize(("f", "slow"), TABLE.values(), ids=TABLE)


def inputs(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)


@rows
@pytest.mark.parametrize("shape", [(5,), (1, 2), (2, 3, 4)])
def test_definition_jit_and_vmap(f, slow, shape):
    x, y = inputs(shape)
    out = f(jnp.asarray(x), y)
    assert out.shape == shape[:1]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, slow(x.astype(float), y.astype(float)), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(f)(x, y), out, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(f))(x[None].repeat(2, 0), np.stack([y, -y])), [out, f(x, -y)], rtol=1e-6
    )


@rows
def test_gradient_is_the_finite_difference(f, slow):
    x, y = inputs((4, 3), np.float64)
    with double():
        assert f(jnp.asarray(x), y).dtype == jnp.float64
        got = jax.jit(jax.grad(lambda x: f(x, y).sum()))(jnp.asarray(x))
    want, eps = np.zeros_like(x), 1e-6
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = eps
        want[i] = (slow(x + step, y).sum() - slow(x - step, y).sum()) / (2 * eps)
    np.testing.assert_allclose(got, want, atol=1e-8)  # the error of the difference is ~1e-9


@rows
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_and_flat_where_equal(f, slow, dtype):
    x = jnp.array([0.0, 1e4, -1e4]).astype(dtype)
    assert f(x, -x).dtype == jnp.float32
    assert jnp.isfinite(f(x, -x)).all()
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda a: f(a, x).sum()))(x), np.zeros(3))


def test_limits():
    x, y = inputs((5, 2))
    np.testing.assert_allclose(
        losses.huber(x, y, delta=float("inf")), losses.mse(x, y) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(losses.huber(x, y, delta=100), losses.mse(x, y) / 2, rtol=1e-6)
    traced = jax.jit(lambda d: losses.huber(x, y, delta=d))(0.5)
    np.testing.assert_allclose(traced, losses.huber(x, y, delta=0.5), rtol=1e-6)
    labels = np.array([0, 255], np.uint8)  # no arithmetic modulo 256
    np.testing.assert_array_equal(losses.mse(jnp.array([1.0, 0.0]), labels), [1, 255**2])


@rows
def test_errors(f, slow):
    x, y = inputs((4,))
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\).*squeeze with predictions\[:, 0\]"):
        f(x[:, None], y)
    with pytest.raises(ValueError, match=r"\(4,\).*\(4, 1\).*squeeze with targets\[:, 0\]"):
        f(x, y[:, None])
    with pytest.raises(ValueError, match=r"\(2, 2, 1\).*\(2, 2\).*predictions\[..., 0\]"):
        f(x.reshape(2, 2, 1), y.reshape(2, 2))
    with pytest.raises(
        ValueError, match=r"predictions has shape \(4,\) and targets has shape \(3,"
    ):
        f(x, y[:3])
    with pytest.raises(ValueError, match=r"predictions has shape \(\).*x\[None\]"):
        f(x[0], y[0])
    with pytest.raises(TypeError, match=r"predictions is int32.*astype\(jnp.float32\)"):
        f(np.zeros(4, np.int32), y)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary", "hinge"])
def test_a_column_against_a_vector_shows_the_line_to_write(name):
    x, f = np.zeros((4, 1), np.float32), getattr(losses, name)
    for outputs, y, call in (
        (x, x[:, 0], "outputs[:, 0], y"),
        (x[:, 0], x, "outputs, y[:, 0]"),
        (x[None], x[None, :, 0], "outputs[..., 0], y"),
    ):
        with pytest.raises(ValueError) as caught:
            f(outputs, y)
        line = f"nk.supervised(model, lambda outputs, y: losses.{name}({call}))"
        assert str(caught.value).endswith(line)
    with pytest.raises(ValueError, match=r"expected the same shape$"):
        f(x[:, 0], x[:3, 0])


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_delta_must_be_positive(delta):
    with pytest.raises(ValueError, match=rf"delta is {delta}, expected a finite number > 0"):
        losses.huber(np.zeros(2, np.float32), np.zeros(2, np.float32), delta=delta)
