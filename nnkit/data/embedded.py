"""Two small data sets that come with the package: real digits, and MNIST-1D."""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.sources import Memory

__all__ = ["embedded"]


def embedded(name: str, *, batch_size: int, seed: int = 0) -> tuple[Batches, Batches]:
    """A small data set that needs no download: (train, test).

    "digits": 1,797 handwritten digits, x [b 8 8 1] in 0..1, y [b] of 10 classes. Sorted by label
    (stably), every fifth is a test example: 1,437 and 360, each class in both as in the whole.
    "mnist1d": 4,000 and 1,000 noisy one-dimensional digits, x [b 40] of mean 0 and deviation 1.
    Made by the published recipe from a seed of its own: the set is the same for every `seed`, but
    its random numbers, and so its examples, are not those of the file of the authors.

    Args:
      name: "digits" or "mnist1d".
      batch_size: b; for the test part at most its size.
      seed: decides the order of the training batches; the test part is in order.

    Returns:
      (train, test), two `Batches` of {"x", "y"}.

    Raises:
      ValueError: for another name, or a batch size above the size of the training part.

    >>> train, test = embedded("digits", batch_size=32)
    >>> train.examples, test.examples, train.spec["x"].shape
    (1437, 360, (32, 8, 8, 1))

    Digits: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, doi 10.24432/C50P49, CC BY 4.0. MNIST-1D: Greydanus & Kobak, arXiv:2011.14439.
    """
    makers = {"digits": _digits, "mnist1d": _mnist1d}
    if name not in makers:
        raise ValueError(
            f"name is {name!r}, expected one of {', '.join(makers)}; other sets: data.tfds"
        )
    (x, y, test), scale = makers[name]()
    classes = tuple("0123456789")
    train = Batches(
        Memory({"x": x[~test], "y": y[~test]}, scale),
        batch_size,
        seed=seed,
        classes=classes,
        name=f"{name} train",
    )
    size = min(batch_size, int(test.sum()))
    source = Memory({"x": x[test], "y": y[test]}, scale)
    return train, Batches(
        source, size, shuffle=False, seed=seed, classes=classes, name=f"{name} test"
    )


def _digits():
    with resources.files("nnkit.data").joinpath("digits.npz").open("rb") as file:
        data = np.load(file, allow_pickle=False)
        x, y = data["x"], data["y"]
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[::5]] = True
    return (x[..., None], y.astype(np.int32), test), {"x": 16}


# The templates of the authors: ten strokes of 12 points, one per digit.
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


@functools.cache
def _mnist1d(n: int = 5000, seed: int = 42):
    """n examples of the recipe, the last fifth for testing: ((x [n 40], y [n], test [n]), {})."""
    rng = np.random.default_rng(seed)
    strokes = np.array(_TEMPLATES)
    strokes = (strokes - strokes.mean(1, keepdims=True)) / strokes.std(1, keepdims=True)
    strokes = (strokes - strokes[:, :1]) / 6  # start and end at 0
    labels = np.repeat(np.arange(10), n // 10)
    x = np.stack([_example(rng, strokes[label]) for label in labels])
    mixed = rng.permutation(n)
    x, labels = x[mixed], labels[mixed]
    x = (x - x.mean()) / x.std()
    return (x.astype(np.float32), labels.astype(np.int32), np.arange(n) >= n * 4 // 5), {}


def _example(rng, stroke: np.ndarray) -> np.ndarray:
    """One stroke [12] padded, dilated, scaled, moved, made noisy, sheared, at 40 points."""
    x = np.pad(stroke + 1e-8, (0, rng.integers(36, 61)))  # a stroke has no exact 0; padding has
    x = _resample(x, 72) * (1 + 0.4 * (rng.random() - 0.5))
    x = np.roll(x, rng.integers(48))
    x = np.where(x != 0, x, _smooth(0.25 * rng.standard_normal(72)))
    x = x + 0.02 * rng.standard_normal(72)
    x = x - 0.75 * (rng.random() - 0.5) * np.linspace(-0.5, 0.5, 72)
    return _resample(x, 40)


def _resample(x: np.ndarray, n: int) -> np.ndarray:
    """x [m] read at n evenly spaced places, linearly."""
    return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(x)), x)


def _smooth(x: np.ndarray) -> np.ndarray:
    """x [m] under a Gaussian of deviation 2, mirrored at the ends."""
    kernel = np.exp(-(np.arange(-8, 9) ** 2) / 8)
    return np.convolve(np.pad(x, 8, "symmetric"), kernel / kernel.sum(), "valid")
