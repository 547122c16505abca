"""Metrics of classes against loops and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import metrics
from nnkit.core.means import Mean

N, C = 40, 5
NAN = float("nan")


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def inputs(dtype=np.float32, seed=0):
    """Logits on a coarse grid, so that ties occur, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, (N, C)).astype(dtype) / 2, rng.integers(0, C, N)


def soft(z):
    e = np.exp(z.astype(float) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_top_k(z, y, k):
    best = [sorted(range(C), key=lambda j: (-row[j], j))[:k] for row in z]
    return np.array([float(label in guesses) for guesses, label in zip(best, y)])


def slow_confusion(z, y):
    table = np.zeros((len(y), C, C))
    for i, label in enumerate(y):
        table[i, label, max(range(C), key=lambda j: (z[i][j], -j))] = 1
    return table


def slow_calibration(z, y, bins=15):
    table = np.zeros((len(y), bins, 3))
    for i, p in enumerate(soft(z)):
        k = max(range(C), key=lambda j: (z[i][j], -j))
        m = next(m for m in range(bins) if p[k] <= (m + 1) / bins)
        table[i, m] = 1, p[k], float(k == y[i])
    return table


TABLE = {
    "accuracy": (metrics.accuracy, lambda z, y: slow_top_k(z, y, 1)),
    "top_k": (functools.partial(metrics.top_k, k=3), lambda z, y: slow_top_k(z, y, 3)),
    "nll": (metrics.nll, lambda z, y: -np.log(soft(z)[np.arange(len(y)), y])),
    "brier": (metrics.brier, lambda z, y: ((soft(z) - np.eye(C)[y]) ** 2).sum(-1)),
    "confusion": (metrics.confusion, slow_confusion),
    "calibration": (metrics.calibration, slow_calibration),
}
rows = pytest.mark.parametrize(("f", "slow"), TABLE.values(), ids=TABLE)


@rows
def test_definition_jit_vmap_and_float64(f, slow):
    z, y = inputs()
    want = slow(z, y)
    out = f(jnp.asarray(z), y)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    z, y = jnp.asarray(z), jnp.asarray(y)
    np.testing.assert_allclose(jax.jit(f)(z, y), out, rtol=1e-6)
    f = jax.jit(f)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(z, y), out, rtol=1e-6)  # one is [c] and []
    np.testing.assert_allclose(f(z[:1], y[:1]), out[:1], rtol=1e-6)
    tokens = f(z.reshape(4, 10, C), y.reshape(4, 10))
    np.testing.assert_allclose(tokens.reshape(out.shape), out, rtol=1e-6)
    np.testing.assert_allclose(f(z, jax.nn.one_hot(y, C)), out, rtol=1e-6)
    assert jnp.isfinite(f(z.astype(jnp.bfloat16), y.astype(jnp.uint8))).all()
    with double():
        z, y = inputs(np.float64)
        np.testing.assert_allclose(f(z, y), want, rtol=1e-6, atol=1e-7)


@rows
def test_wrong_labels_are_nan_and_masked_ones_nothing(f, slow):
    z, y = map(jnp.asarray, inputs())
    wrong = y.at[3].set(-1).at[5].set(C)
    bad = np.isin(np.arange(N), [3, 5])
    out = np.asarray(jax.jit(f)(z, wrong)).reshape(N, -1)
    assert (np.isnan(out).all(-1) == bad).all()
    assert (np.isnan(out).any(-1) == bad).all()
    masked = Mean.of(jax.jit(f)(z, wrong), ~bad, keep=True).value
    np.testing.assert_allclose(masked, Mean.of(jax.jit(f)(z, y), ~bad, keep=True).value, rtol=1e-6)
    with pytest.raises(ValueError, match=r"labels run from -1 to 5.*5 classes \(0..4\); subtract"):
        f(z, wrong)


@rows
def test_nan_logits(f, slow):
    z, y = inputs()
    for label in range(C):
        z[label, 2], y[label] = NAN, label
    out = np.asarray(jax.jit(f)(z, y)).reshape(N, -1)
    if slow in (TABLE["accuracy"][1], TABLE["top_k"][1]):
        np.testing.assert_array_equal(out[:C], np.zeros((C, 1)))  # wrong, and not class 0
    else:
        assert np.isnan(out[:C]).all()
    assert np.isfinite(out[C:]).all()


@rows
def test_errors_of_labels(f, slow):
    z, y = inputs()
    with pytest.raises(
        ValueError, match=r"\(40, 1\), expected \(40,\).*squeeze with labels\[:, 0\]"
    ):
        f(z, y[:, None])
    with pytest.raises(ValueError, match=r"\(3,\), expected \(40,\)"):
        f(z, y[:3])
    with pytest.raises(ValueError, match=r"labels has shape \(40, 5\).*astype\(jnp.float32\)"):
        f(z, np.zeros((N, C), int))
    with pytest.raises(TypeError, match=r"labels is float32.*\(40,\).*astype\(int\)"):
        f(z, y.astype(np.float32))
    with pytest.raises(TypeError, match=r"logits is int32.*astype\(jnp.float32\)"):
        f(z.astype(np.int32), y)


def test_accuracy_of_binary_logits():
    z, y = jnp.array([1.0, -1.0, 0.0, NAN, 2.0]), jnp.array([1, 0, 0, 0, 0])
    for labels in (y, y == 1, y.astype(jnp.float32)):
        np.testing.assert_array_equal(metrics.accuracy(z, labels), [1, 1, 1, 0, 0])
    assert jnp.isnan(jax.jit(metrics.accuracy)(z, y + 1)[0])
    with pytest.raises(ValueError, match=r"labels run from 1 to 2, expected 0 and 1.*\[b c\]"):
        metrics.accuracy(z, y + 1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\).*squeeze with labels\[:, 0\]"):
        metrics.accuracy(z, y[:, None])


def test_top_k_limits_and_errors():
    z, y = inputs()
    np.testing.assert_array_equal(metrics.top_k(z, y, k=C), np.ones(N))
    np.testing.assert_array_equal(metrics.top_k(z, y, k=1), metrics.accuracy(z, y))
    same = np.zeros((2, C), np.float32)  # a constant model is right for the lowest classes only
    np.testing.assert_array_equal(metrics.top_k(same, np.array([1, 2]), k=2), [1, 0])
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"k is {k}, expected 1 to 5.*k=1 is accuracy"):
            metrics.top_k(z, y, k=k)
    with pytest.raises(TypeError):
        metrics.top_k(z, y, k=1.5)


def test_top_k_is_sklearn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(N, C)).astype(np.float32), rng.integers(0, C, N)
    for k in (1, 2, 4):
        want = sk.top_k_accuracy_score(y, z, k=k, labels=range(C))
        np.testing.assert_allclose(metrics.top_k(z, y, k=k).mean(), want, rtol=1e-6)


def test_nll_where_a_class_is_ruled_out():
    z = jnp.array([[0.0, 0.0, -jnp.inf]])
    np.testing.assert_allclose(metrics.nll(z, jnp.array([0])), [np.log(2)], rtol=1e-6)
    assert metrics.nll(z, jnp.array([2]))[0] == jnp.inf


def test_confusion_matrix_is_the_sum_of_confusion_and_sklearn():
    sk = pytest.importorskip("sklearn.metrics")
    z, y = inputs()
    table = metrics.confusion_matrix(z, y)
    np.testing.assert_array_equal(table, metrics.confusion(z, y).sum(0))
    np.testing.assert_array_equal(table, sk.confusion_matrix(y, z.argmax(-1), labels=range(C)))
    mask = np.arange(N) % 3 > 0
    part = metrics.confusion_matrix(z[mask], y[mask])
    z[~mask], wrong = NAN, np.where(mask, y, -100)
    for f in (metrics.confusion_matrix, jax.jit(metrics.confusion_matrix)):
        np.testing.assert_array_equal(f(z, wrong, mask=mask), part)
    np.testing.assert_array_equal(metrics.confusion_matrix(z, y, mask=mask * 0), np.zeros((C, C)))
    assert jnp.isnan(metrics.confusion_matrix(z, y)).all()
    assert jnp.isnan(jax.jit(metrics.confusion_matrix)(z, wrong)).all()
    with double():
        np.testing.assert_array_equal(metrics.confusion_matrix(z, jnp.asarray(y), mask=mask), part)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(40,\)"):
        metrics.confusion_matrix(z, y, mask=mask[:3])
    with pytest.raises(ValueError, match=r"logits has shape \(40,\), expected \(b c\)"):
        metrics.confusion_matrix(z[:, 0], y)


@pytest.mark.parametrize("average", [None, "macro", "micro", "weighted"])
@pytest.mark.parametrize("absent", [False, True])
def test_scores_of_a_table_are_sklearn(average, absent):
    sk = pytest.importorskip("sklearn.metrics")
    z, y = inputs()
    if absent:  # class 1 never occurs, class 2 is never predicted, class 3 is neither
        z[:, 2:4] = -9
        y[(y == 1) | (y == 3)] = 0
    table = metrics.confusion_matrix(z, y)
    names = {metrics.precision: "precision", metrics.recall: "recall", metrics.f1: "f1"}
    frequencies = Mean.of(metrics.confusion(z, y), keep=True).value
    for f, name in names.items():
        want = getattr(sk, f"{name}_score")(
            y, z.argmax(-1), labels=range(C), average=average, zero_division=0
        )
        np.testing.assert_allclose(f(table, average=average), want, rtol=1e-6)
        f = jax.jit(functools.partial(f, average=average))
        for same in (frequencies, table.astype(int)):
            np.testing.assert_allclose(f(same), want, rtol=1e-5)
        many = f(jnp.stack([table, table.T]))
        np.testing.assert_allclose(many, [want, f(table.T)], rtol=1e-6)


@pytest.mark.parametrize("f", [metrics.precision, metrics.recall, metrics.f1])
def test_tables_at_the_limits(f):
    assert f(jnp.zeros((2, 2))) == 0
    assert f(jnp.eye(3)) == 1
    assert jnp.isnan(f(jnp.full((2, 2), jnp.nan)))  # nothing hides a NaN
    with pytest.raises(ValueError, match=r"table has shape \(2, 3\).*c = 2 taken from|expected"):
        f(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r'average is \'mean\', expected None, "macro", "micro"'):
        f(jnp.eye(2), average="mean")
