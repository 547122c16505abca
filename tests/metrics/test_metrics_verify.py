"""Metrics of verification against loops over thresholds, scikit-learn and scipy."""

import jax
import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from nnkit import metrics

FAST = {
    f: jax.jit(f)
    for f in (metrics.equal_error_rate, metrics.verification_roc, metrics.verification_accuracy)
}


def pairs(seed, n=60, ties=True):
    """Scores [n] of genuine pairs above those of impostors by half a deviation; with ties."""
    rng = np.random.default_rng(seed)
    same = rng.integers(0, 2, n)
    scores = rng.normal(size=n) + same
    return (scores.round(1) if ties else scores).astype(np.float32), same


def slow_tar(scores, same, far):
    """The largest TAR of any threshold t (accept if s > t) among the impostors' scores whose
    FAR is at most `far`."""
    genuine, impostor = scores[same == 1], scores[same == 0]
    allowed = [t for t in impostor if (impostor > t).mean() <= far + 1e-9]
    return (genuine > min(allowed)).mean()


def run(f, *args, **knobs):
    """f(*args) as one program: much faster than one for every operation. Values stay known."""
    return jax.jit(lambda: f(*args, **knobs))()


@pytest.mark.parametrize("far", [0.02, 0.05, 0.1, 0.3])
def test_tar_at_far_by_the_definition(far):
    f = jax.jit(lambda s, y: metrics.tar_at_far(s, y, far=far))
    for seed in range(5):
        scores, same = pairs(seed, 150, ties=seed % 2 == 0)
        np.testing.assert_allclose(f(scores, same), slow_tar(scores, same, far), rtol=1e-6)
    got = run(metrics.tar_at_far, scores, same == 1, far=far)
    np.testing.assert_allclose(got, slow_tar(scores, same, far), rtol=1e-6)


def test_the_threshold_sees_impostors_alone():
    impostors = np.arange(1000, dtype=np.float32)
    for n in (1, 10, 5000):  # 999 is accepted by mistake: one of 1,000
        scores = np.concatenate([impostors, np.full(n, 998.5, np.float32)])
        same = np.concatenate([np.zeros(1000, int), np.ones(n, int)])
        assert run(metrics.tar_at_far, scores, same) == 1
    tied = np.where(impostors >= 990, 990, impostors)  # ten share the top: none may pass
    scores = np.concatenate([tied, np.array([990.0, 991.0], np.float32)])
    same = np.concatenate([np.zeros(1000, int), np.ones(2, int)])
    assert run(metrics.tar_at_far, scores, same) == 0.5


@pytest.mark.parametrize(("far", "n"), [(0.1, 30), (0.29, 100), (0.07, 100), (1e-3, 3000)])
def test_far_times_n_is_counted_exactly(far, n):
    """0.29 * 100 is 28.999999999999996."""
    scores = np.concatenate([np.arange(n), [n - round(far * n) - 0.5]]).astype(np.float32)
    same = np.concatenate([np.zeros(n, int), [1]])
    assert run(metrics.tar_at_far, scores, same, far=far) == 1
    scores[-1] -= 1
    assert run(metrics.tar_at_far, scores, same, far=far) == 0


def test_too_few_impostors():
    scores, same = pairs(0)
    with pytest.raises(
        ValueError, match="needs a genuine pair and at least 1000 impostor pairs for"
    ):
        metrics.tar_at_far(scores, same)
    assert np.isnan(jax.jit(metrics.tar_at_far)(scores, same))
    with pytest.raises(ValueError, match="needs a genuine pair"):
        metrics.tar_at_far(scores, 0 * same, far=0.1)
    for far in (0, 1, 1.5):
        with pytest.raises(ValueError, match=f"far is {far}, expected 0 < far < 1"):
            metrics.tar_at_far(scores, same, far=far)
    with pytest.raises(ValueError, match="verification_roc needs a genuine pair and an impostor"):
        metrics.equal_error_rate(scores, 0 * same)


def test_roc_is_scikit_learns():
    for seed in range(3):
        scores, same = pairs(seed)
        far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
        roc = FAST[metrics.verification_roc](scores, same)
        first = np.unique(roc.threshold, return_index=True)[1][::-1]
        np.testing.assert_allclose(roc.threshold[first], thresholds)
        np.testing.assert_allclose(roc.far[first], far, rtol=1e-6)
        np.testing.assert_allclose(roc.tar[first], tar, rtol=1e-6)
        mask = np.arange(60) < 40
        few = run(metrics.verification_roc, scores[:40], same[:40])
        some = run(metrics.verification_roc, np.where(mask, scores, np.nan), same, mask=mask)
        np.testing.assert_allclose(some.tar[:41], few.tar, rtol=1e-6)
        np.testing.assert_array_equal(some.tar[41:], 1)
        np.testing.assert_array_equal(some.far[41:], 1)


def test_equal_error_rate_is_the_crossing_of_the_interpolated_roc():
    for seed in range(6):
        scores, same = pairs(seed, ties=seed % 2 == 0)
        far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
        line = interp1d(far, tar)
        want = brentq(lambda x: 1 - x - line(x), 0, 1)  # noqa: B023
        got = FAST[metrics.equal_error_rate](scores, same)
        if np.sum(np.isclose(far, want)) < 2:  # on a vertical piece interp1d is not defined
            np.testing.assert_allclose(got, want, atol=1e-6)
        other = FAST[metrics.equal_error_rate](-scores, 1 - same)  # the roles exchanged
        np.testing.assert_allclose(other, got, atol=1e-6)
    f = metrics.equal_error_rate
    same = np.array([1, 1, 0, 0])
    assert f(np.float32([4, 3, 2, 1]), same) == 0
    assert f(np.float32([1, 2, 3, 4]), same) == 1
    assert f(np.float32([5, 5, 5, 5]), same) == 0.5


def slow_accuracy(scores, same, fold):
    """The best threshold of the other folds by trying all, and its accuracy on the fold."""
    train = np.unique(scores[fold == 0])  # float32: a score may lie exactly on a threshold
    middle = list((train[1:] + train[:-1]) / 2)
    tries = [np.inf, *middle[::-1], -np.inf]
    right = [((scores > t) == same)[fold == 0].sum() for t in tries]
    best = tries[int(np.argmax(right))]
    return ((scores > best) == same)[fold == 1].mean()


def test_accuracy_at_the_threshold_of_the_other_folds():
    for seed in range(6):
        scores, same = pairs(seed)
        folds = np.arange(60) % 5
        each = [slow_accuracy(scores, same, (folds == k).astype(int)) for k in range(5)]
        f = FAST[metrics.verification_accuracy]
        got = [f(scores, same, folds == k) for k in range(5)]
        np.testing.assert_allclose(got, each, rtol=1e-6)
    many = jax.vmap(f, in_axes=(None, None, 0))(scores, same, folds == np.arange(5)[:, None])
    np.testing.assert_allclose(many, each, rtol=1e-6)
    np.testing.assert_allclose(
        metrics.verification_accuracy(scores, same, folds == 0), each[0], rtol=1e-6
    )


def test_the_fold_does_not_choose():
    scores, same = np.float32([1, 2, 3, 4, 10, 11]), np.array([0, 0, 1, 1, 0, 0])
    fold = np.array([0, 0, 0, 0, 1, 1])
    assert run(metrics.verification_accuracy, scores, same, fold) == 0  # its own best is 1
    nothing = run(metrics.verification_accuracy, scores, 0 * same, fold)
    assert nothing == 1  # all impostors: none accepted, by an infinite threshold
    assert run(metrics.verification_accuracy, scores, 0 * same + 1, fold) == 1


def test_wrong_input():
    scores, same = pairs(0)
    with pytest.raises(ValueError, match=r"fold has shape \(3,\), expected \(60,\)"):
        metrics.verification_accuracy(scores, same, np.ones(3))
    for fold in (np.zeros(60), np.ones(60)):
        with pytest.raises(ValueError, match="of 60 pairs, expected some in it to test"):
            metrics.verification_accuracy(scores, same, fold)
    with pytest.raises(ValueError, match="labels run from -1 to 1"):
        metrics.equal_error_rate(scores, 2 * same - 1)
    with pytest.raises(TypeError, match="scores is int"):
        metrics.equal_error_rate(same, same)
    broken = np.where(np.arange(60) == 3, np.nan, scores).astype(np.float32)
    for f in (
        metrics.equal_error_rate,
        lambda s, y, mask=None: metrics.tar_at_far(s, y, far=0.2, mask=mask),
        lambda s, y, mask=None: metrics.verification_accuracy(s, y, np.arange(60) < 9, mask=mask),
    ):
        assert np.isnan(f(broken, same))
        assert np.isfinite(f(broken, same, mask=np.arange(60) != 3))
