"""Ranking metrics against all pairs, all thresholds and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import metrics

BOTH = pytest.mark.parametrize("f", [metrics.roc_auc, metrics.average_precision])


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def inputs(n=60, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    s = rng.normal(size=n).astype(np.float32)
    return (np.round(s * 2) / 2 if ties else s), rng.integers(0, 2, n)


def slow_auc(s, y):
    up, down = s[y == 1], s[y == 0]
    return np.mean([(a > b) + 0.5 * (a == b) for a in up for b in down])


def slow_average_precision(s, y):
    total, before = 0.0, 0.0
    for t in sorted(set(s.tolist()), reverse=True):
        taken = s >= t
        recall = y[taken].sum() / y.sum()
        total += (recall - before) * y[taken].mean()
        before = recall
    return total


PAIRS = {"roc_auc": slow_auc, "average_precision": slow_average_precision}


@BOTH
@pytest.mark.parametrize("ties", [True, False])
def test_definition_and_sklearn(f, ties):
    sk = pytest.importorskip("sklearn.metrics")
    oracle = {"roc_auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}
    name, f = f.__name__, jax.jit(f)
    for seed in range(5):
        s, y = inputs(seed=seed, ties=ties)
        out = f(s, y)
        assert out.shape == ()
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, PAIRS[name](s, y), rtol=1e-6)
        np.testing.assert_allclose(out, oracle[name](y, s), rtol=1e-6)
        w = np.random.default_rng(seed).integers(1, 4, len(s)).astype(np.float32)
        np.testing.assert_allclose(f(s, y, mask=w), oracle[name](y, s, sample_weight=w), rtol=1e-5)


@BOTH
def test_many_examples(f):
    sk = pytest.importorskip("sklearn.metrics")
    oracle = {"roc_auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}
    s, y = inputs(n=200_000, ties=False)
    np.testing.assert_allclose(f(s, y), oracle[f.__name__](y, s), rtol=1e-5)


@BOTH
def test_masked_rows_do_not_matter(f):
    s, y = inputs()
    mask = np.arange(60) % 4 > 0
    want = f(s[mask], y[mask])
    s = np.where(mask, s, np.where(np.arange(60) % 8 > 0, np.nan, 1e9)).astype(np.float32)
    y = np.where(mask, y, -100)
    np.testing.assert_allclose(f(s, y, mask=mask), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(f)(s, y, mask=mask), want, rtol=1e-6)
    assert jnp.isnan(jax.jit(f)(s, np.abs(y) % 2))  # a NaN that counts
    assert jnp.isnan(jax.jit(f)(np.nan_to_num(s), y))  # so does a label that is none
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(60,\)"):
        f(s, y, mask=mask[:3])


@BOTH
def test_jit_vmap_dtypes_and_zeros(f):
    s, y = inputs()
    want = f(s, y)
    for labels in (y == 1, y.astype(np.float32), y.astype(np.uint8)):
        np.testing.assert_array_equal(f(s, labels), want)
    f = jax.jit(f)
    np.testing.assert_allclose(f(s, y), want, rtol=1e-6)
    many = jax.jit(jax.vmap(f))(jnp.stack([s, -s]), jnp.stack([y, y]))
    np.testing.assert_allclose(many, [want, f(-s, y)], rtol=1e-6)
    np.testing.assert_allclose(f(jnp.asarray(s).astype(jnp.bfloat16), y), want, rtol=1e-6)
    zeros = np.array([0.0, -0.0, 0.0, -0.0], np.float32)  # equal, whatever the sign
    np.testing.assert_allclose(f(zeros, np.array([0, 1, 1, 0])), 0.5, rtol=1e-6)
    infinite = np.array([-np.inf, 0.0, 1.0, np.inf], np.float32)
    np.testing.assert_allclose(f(infinite, np.array([0, 0, 1, 1])), 1, rtol=1e-6)
    with double():
        out = f(jnp.asarray(s.astype(np.float64)), jnp.asarray(y))
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, PAIRS[f.__name__](s, y), rtol=1e-12)


def test_one_class():
    s, ones = inputs()[0], np.ones(60, int)
    for y, absent in ((ones, 0), (ones * 0, 1)):
        with pytest.raises(
            ValueError, match=rf"roc_auc needs an example of label {absent}, got 60"
        ):
            metrics.roc_auc(s, y)
        assert jnp.isnan(jax.jit(metrics.roc_auc)(s, y))
    assert metrics.average_precision(s, ones) == 1
    with pytest.raises(ValueError, match=r"needs an example of label 1.*\[0\].*the whole set"):
        metrics.average_precision(s, ones * 0)
    assert jnp.isnan(jax.jit(metrics.average_precision)(s, ones * 0))
    for f in (metrics.roc_auc, metrics.average_precision):
        with pytest.raises(ValueError, match="got 0 examples"):
            f(s, ones, mask=ones * 0)
        assert jnp.isnan(jax.jit(f)(s, ones, mask=ones * 0))


@BOTH
def test_errors(f):
    s, y = inputs()
    with pytest.raises(ValueError, match=r"\(60, 1\).*\(60,\).*squeeze with scores\[:, 0\]"):
        f(s[:, None], y)
    with pytest.raises(ValueError, match=r"scores has shape \(30, 2\), expected \(n\)"):
        f(s.reshape(30, 2), y.reshape(30, 2))
    with pytest.raises(
        ValueError, match=r"labels run from -1 to 1, expected 0 and 1.*\(labels \+ 1"
    ):
        f(s, 2 * y - 1)
    with pytest.raises(TypeError, match="scores is int"):
        f(y, y)
