"""The sets that come with the package: the digits are the real ones, MNIST-1D is the recipe."""

import numpy as np
import pytest
import scipy.ndimage

from nnkit.data import embedded
from nnkit.data.embedded import _TEMPLATES, _digits, _mnist1d, _resample, _smooth


def test_digits_are_the_real_ones():
    (x, y, _), scale = _digits()
    assert (x.shape, scale) == ((1797, 8, 8, 1), {"x": 16})
    assert y[:10].tolist() == list(range(10))
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert int(x.astype(np.int64).sum()) == 561718
    oracle = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(x[..., 0], oracle.images)
    assert np.array_equal(y, oracle.target)


def test_digits_split_follows_the_documented_rule():
    (_, y, test), _ = _digits()
    ranked = sorted(range(len(y)), key=lambda i: (y[i], i))
    assert sorted(ranked[::5]) == np.flatnonzero(test).tolist()
    shares = np.bincount(y[test]) / np.bincount(y)
    assert (abs(shares - 0.2) < 0.005).all()


@pytest.mark.parametrize(
    ("name", "counts", "shape"),
    [("digits", (1437, 360), (8, 8, 1)), ("mnist1d", (4000, 1000), (40,))],
)
def test_embedded_batches(name, counts, shape):
    train, test = embedded(name, batch_size=500, seed=3)
    assert (train.examples, test.examples) == counts
    assert (train.shuffle, test.shuffle) == (True, False)
    assert test.batch_size == min(500, counts[1])
    assert train.spec["x"].shape == (500, *shape)
    assert (train.spec["x"].dtype, train.spec["y"].dtype) == (np.float32, np.int32)
    assert len(train.classes) == train.report["y"]["classes"] == 10
    again = embedded(name, batch_size=500, seed=3)
    assert [a.fingerprint for a in again] == [train.fingerprint, test.fingerprint]


def test_mnist1d_scale_and_balance():
    (x, y, test), _ = _mnist1d()
    assert np.bincount(y).tolist() == [500] * 10
    assert x.astype(np.float64).mean() == pytest.approx(0, abs=1e-5)
    assert x.astype(np.float64).std() == pytest.approx(1, abs=1e-5)
    assert test.sum() == 1000
    assert np.shape(_TEMPLATES) == (10, 12)


def test_mnist1d_can_be_learned_but_not_by_a_line():
    """A linear classifier is far above chance and far below a network."""
    linear = pytest.importorskip("sklearn.discriminant_analysis")
    (x, y, test), _ = _mnist1d()
    model = linear.LinearDiscriminantAnalysis().fit(x[~test], y[~test])
    assert 0.2 < model.score(x[test], y[test]) < 0.45


def test_the_small_filters_are_those_of_scipy():
    x = np.random.default_rng(0).standard_normal(72)
    np.testing.assert_allclose(_smooth(x), scipy.ndimage.gaussian_filter(x, 2), atol=1e-12)
    np.testing.assert_allclose(_resample(np.array([0.0, 1, 4]), 5), [0, 0.5, 1, 2.5, 4])
    assert np.array_equal(_resample(x, 72), x)


def test_unknown_names_and_large_batches():
    with pytest.raises(ValueError, match="name is 'digit', expected one of digits, mnist1d; other"):
        embedded("digit", batch_size=32)
    with pytest.raises(ValueError, match=r"batch_size is 2000, but digits train has only 1437"):
        embedded("digits", batch_size=2000)
    with pytest.raises(TypeError, match="batch_size is 'a', expected an int"):
        embedded("digits", batch_size="a")
