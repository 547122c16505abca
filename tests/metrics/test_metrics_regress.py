"""The coefficient of determination against loops and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import metrics


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def inputs(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    y = rng.normal(size=shape) + 5
    return (y + 0.3 * rng.normal(size=shape)).astype(dtype), y.astype(dtype)


def slow(x, y):
    x, y = (a.astype(float).reshape(len(a), -1).T for a in (x, y))
    return np.mean([1 - sum((b - a) ** 2) / sum((b - sum(b) / len(b)) ** 2) for a, b in zip(x, y)])


@pytest.mark.parametrize("shape", [(20,), (20, 3)])
def test_definition_mask_jit_and_sklearn(shape):
    x, y = inputs(shape)
    out = metrics.r2(jnp.asarray(x), y)
    assert out.shape == ()
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, slow(x, y), rtol=1e-5)
    np.testing.assert_allclose(out, pytest.importorskip("sklearn.metrics").r2_score(y, x), 1e-5)
    np.testing.assert_allclose(jax.jit(metrics.r2)(x, y), out, rtol=1e-5)
    padded = [np.concatenate([a, np.full_like(a[:2], np.nan)]) for a in (x, y)]
    mask = np.arange(len(x) + 2) < len(x)
    for f in (metrics.r2, jax.jit(metrics.r2)):
        np.testing.assert_allclose(f(*padded, mask=mask), out, rtol=1e-5)
    many = jax.jit(jax.vmap(metrics.r2))(jnp.stack([x, x + 1]), jnp.stack([y, y]))
    np.testing.assert_allclose(many, [out, jax.jit(metrics.r2)(x + 1, y)], rtol=1e-4)
    with double():
        x, y = inputs(shape, np.float64)
        np.testing.assert_allclose(jax.jit(metrics.r2)(x, y), slow(x, y), rtol=1e-10)


def test_weights_and_limits():
    x, y = inputs((20,))
    w = np.random.default_rng(1).integers(0, 4, 20)
    np.testing.assert_allclose(metrics.r2(x, y, mask=w), slow(x.repeat(w), y.repeat(w)), rtol=1e-5)
    assert metrics.r2(y, y) == 1
    np.testing.assert_allclose(metrics.r2(np.full_like(y, y.mean()), y), 0, atol=1e-6)
    assert jnp.isfinite(metrics.r2(jnp.asarray(x).astype(jnp.bfloat16), y))
    large = y + np.float32(1e4)  # the mean is subtracted before squaring
    assert metrics.r2(large, large) == 1
    np.testing.assert_allclose(
        metrics.r2(x, (10 * y).astype(np.int32)), slow(x, (10 * y).astype(np.int32)), rtol=1e-5
    )


def test_constant_targets():
    x, y = inputs((20, 2))
    y[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"targets of output 1 are all 0.1.*\(20 ex.*whole set"):
        metrics.r2(x, y)
    assert jnp.isnan(jax.jit(metrics.r2)(x, y))
    with pytest.raises(ValueError, match=r"are none \(0 examples\)"):
        metrics.r2(x, y, mask=np.zeros(20))
    assert jnp.isnan(jax.jit(metrics.r2)(x, y, mask=np.zeros(20)))
    with pytest.raises(ValueError, match=r"\(1 examples\), expected at least two"):
        metrics.r2(x[:1], y[:1])


def test_errors():
    x, y = inputs((20,))
    with pytest.raises(ValueError, match=r"\(20, 1\).*\(20,\).*squeeze with predictions\[:, 0\]"):
        metrics.r2(x[:, None], y)
    with pytest.raises(ValueError, match=r"\(5, 2, 2\), expected \(n\) or \(n d\); reshape"):
        metrics.r2(x.reshape(5, 2, 2), y.reshape(5, 2, 2))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(20,\)"):
        metrics.r2(x, y, mask=np.ones(3))
    with pytest.raises(TypeError, match="predictions is int32"):
        metrics.r2(x.astype(np.int32), y)
