"""Labels that no class has: an error where they are known, NaN where they are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import losses
from nnkit.core.means import Mean

B, C = 6, 4
INTEGER = [losses.cross_entropy, losses.focal, losses.multiclass_hinge]


def scores():
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, C)).astype(np.float32))


@pytest.mark.parametrize("f", INTEGER)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_wrong_labels_are_nan_in_value_and_gradient(f, dtype):
    z = scores()
    wrong = [C, 100] if dtype == jnp.uint8 else [C, -1, -100]
    y = jnp.array([0, 1, *wrong] + [3] * (B - 2 - len(wrong)), dtype)
    bad = jnp.array([i in range(2, 2 + len(wrong)) for i in range(B)])
    value = jax.jit(f)(z, y)
    grad = jax.jit(jax.grad(lambda z, y: f(z, y).sum()))(z, y)
    assert (jnp.isnan(value) == bad).all()
    assert (jnp.isnan(grad) == bad[:, None]).all()
    right = jax.jit(f)(z, jnp.where(bad, 0, y.astype(jnp.int32)))
    np.testing.assert_array_equal(value[~bad], right[~bad])


@pytest.mark.parametrize("f", INTEGER)
def test_a_mask_hides_wrong_labels_from_value_and_gradient(f):
    z, mask = scores(), jnp.array([1, 1, 0, 1, 0, 1])

    def loss(z, y):
        return Mean.of(f(z, y), mask).value

    y = jnp.array([0, 1, 2, 3, 0, 1])
    wrong = jnp.array([0, 1, -100, 3, C, 1])
    a, b = (jax.jit(jax.value_and_grad(loss))(z, labels) for labels in (y, wrong))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    assert jnp.isnan(jax.jit(loss)(z, wrong.at[0].set(-1)))


@pytest.mark.parametrize("f", [losses.binary, losses.hinge])
@pytest.mark.parametrize("wrong", [-1.0, 2.0, np.nan])
def test_wrong_binary_labels_are_nan(f, wrong):
    z = jnp.array([0.5, 0.0, 3.0, -3.0, 0.5])
    y = jnp.array([0.0, wrong, wrong, wrong, 1.0])
    bad = jnp.array([False, True, True, True, False])
    grad = jax.jit(jax.grad(lambda z, y: f(z, y).sum()))(z, y)
    assert (jnp.isnan(jax.jit(f)(z, y)) == bad).all()
    assert (jnp.isnan(grad) == bad).all()
    masked = jax.jit(jax.grad(lambda z, y: Mean.of(f(z, y), ~bad).value))(z, y)
    assert jnp.isfinite(masked).all()


Z = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize("f", INTEGER)
def test_errors_of_integer_labels(f):
    y = np.array([0, 1, 2, 1])
    with pytest.raises(
        ValueError, match=r"labels run from 1 to 3, .* 3 classes \(0..2\); subtract"
    ):
        f(Z, y + 1)
    with pytest.raises(ValueError, match=r"labels run from -1 to 1.*widen the last layer"):
        f(Z, jnp.asarray(y - 1))
    with pytest.raises(ValueError, match=r"\(4, 1\), expected \(4,\).*\(4, 3\).*labels\[:, 0\]"):
        f(Z, y[:, None])
    with pytest.raises(ValueError, match=r"\(2,\), expected \(4,\).*\(4, 3\)"):
        f(Z, y[:2])
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\).*astype\(jnp.float32\)"):
        f(Z, np.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"\(4,\), expected \(\).*losses.binary"):
        f(Z[:, 0], y)
    with pytest.raises(TypeError, match=r"labels is float32 .*\(4,\).*integers.*astype\(int\)"):
        f(Z, y.astype(np.float32))
    with pytest.raises(TypeError, match=r"labels is bool"):
        f(Z, y > 0)
    with pytest.raises(TypeError, match=r"logits is int32.*astype\(jnp.float32\)"):
        f(Z.astype(np.int32), y)


def test_errors_of_soft_labels_and_knobs():
    y = np.zeros(4, int)
    with pytest.raises(TypeError, match=r"soft floats \(4, 3\).*one_hot.*losses.mse"):
        losses.cross_entropy(Z, y.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(4, 2\), but logits has shape \(4, 3\).*same shape"):
        losses.cross_entropy(Z, Z[:, :2])
    with pytest.raises(ValueError, match=r"\(4, 1\).*labels\[:, 0\].astype\(int\)"):
        losses.cross_entropy(Z, Z[:, :1])
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"smoothing is {wrong}, expected 0 <= smoothing < 1"):
            losses.cross_entropy(Z, y, smoothing=wrong)
    with pytest.raises(ValueError, match=r"gamma is -1, expected 0 <= gamma.*0 switches it off"):
        losses.focal(Z, y, gamma=-1)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\).*same shape"):
        losses.kl(Z, Z[:, :2])
    with pytest.raises(ValueError, match=r"logits has shape \(\)"):
        losses.kl(np.float32(0), np.float32(0))
    with pytest.raises(TypeError, match=r"target_logits is int"):
        losses.kl(Z, y)


@pytest.mark.parametrize(("f", "name"), [(losses.binary, "logits"), (losses.hinge, "scores")])
def test_errors_of_binary_labels(f, name):
    z, y = Z[:, 0], np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=rf"{name}.*\(4, 1\).*\(4,\).*squeeze with {name}\[:, 0\]"):
        f(z[:, None], y)
    with pytest.raises(ValueError, match=r"\(4,\).*\(4, 1\).*squeeze with labels\[:, 0\]"):
        f(z, y[:, None])
    with pytest.raises(ValueError, match=r"labels run from -1 to 1, expected.*\(labels \+ 1\)"):
        f(z, 2 * y - 1)
    with pytest.raises(ValueError, match=r"labels run from 0.0 to 1.5"):
        f(z, y * 1.5)
    with pytest.raises(TypeError, match=rf"{name} is int"):
        f(y, y)
