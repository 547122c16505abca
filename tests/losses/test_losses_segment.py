"""Losses of regions against their definitions: loops over pixels, the set function itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import losses

B, H, W, C = 3, 3, 4, 3
BOTH = [losses.dice, losses.soft_iou]
ALL = [*BOTH, losses.lovasz_hinge, losses.lovasz_softmax]
FAST = {f: jax.jit(f) for f in ALL}


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def maps(classes, dtype=np.float32, seed=0):
    """Logits [b h w] or [b h w c], labels [b h w], mask [b h w]."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(B, H, W, classes)).astype(dtype)
    y, mask = rng.integers(0, max(classes, 2), (B, H, W)), rng.random((B, H, W)) < 0.7
    y[2] = 0  # a class that is absent
    return (z[..., 0] if classes == 1 else z), y, mask


def chances(z):
    """Probabilities [n c] (one column for one logit) of an image."""
    z = np.asarray(z, np.float64)
    if z.ndim == 2:
        return 1 / (1 + np.exp(-z.reshape(-1, 1)))
    e = np.exp(z.reshape(-1, z.shape[-1]))
    return e / e.sum(-1, keepdims=True)


def columns(y, p):
    """One-hot labels [n c]; for one column the labels themselves."""
    y = y.reshape(-1)
    return y[:, None] if p.shape[1] == 1 else np.eye(p.shape[1])[y]


def slow_overlap(z, y, mask, smooth, kind):
    found = []
    for image in range(len(z)):
        p = chances(z[image])
        t, keep, each = columns(y[image], p), mask[image].reshape(-1), []
        for k in range(p.shape[1]):
            both = sum(p[i, k] * t[i, k] for i in np.flatnonzero(keep))
            either = sum(p[i, k] + t[i, k] for i in np.flatnonzero(keep))
            above, below = (2 * both, either) if kind is losses.dice else (both, either - both)
            each.append(1 - (above + smooth) / (below + smooth) if below + smooth else 0.0)
        found.append(np.mean(each))
    return found


def jaccard_loss(wrong, region):
    """1 - IoU when the pixels `wrong` (a set) are mistaken and the region (a set) is true."""
    union = region | wrong
    return len(wrong) / len(union) if union else 0.0


def extension(errors, region):
    """The Lovasz extension by its definition: the set function along the sorted errors."""
    order, total, wrong = sorted(errors, key=lambda i: -errors[i]), 0.0, frozenset()
    for i in order:
        grown = wrong | {i}
        total += errors[i] * (jaccard_loss(grown, region) - jaccard_loss(wrong, region))
        wrong = grown
    return total


def slow_lovasz(z, y, mask):
    found = []
    for image in range(len(z)):
        keep, t = np.flatnonzero(mask[image]), y[image].reshape(-1)
        if z[image].ndim == 2:
            flat = z[image].reshape(-1).astype(np.float64)
            errors = {i: max(0.0, 1 - flat[i] * (2 * t[i] - 1)) for i in keep}
            found.append(extension(errors, frozenset(i for i in keep if t[i] == 1)))
            continue
        p, each = chances(z[image]), []
        for k in sorted({t[i] for i in keep}):
            region = frozenset(i for i in keep if t[i] == k)
            each.append(extension({i: abs((t[i] == k) - p[i, k]) for i in keep}, region))
        found.append(np.mean(each) if each else 0.0)
    return found


def fit(f):
    """How many logits a pixel has for this loss: its cases."""
    return {losses.lovasz_hinge: [1], losses.lovasz_softmax: [C]}.get(f, [1, C])


CASES = [pytest.param(f, c, id=f"{f.__name__}-{c}") for f in ALL for c in fit(f)]


@pytest.mark.parametrize(("f", "classes"), CASES)
def test_by_the_definition(f, classes):
    for seed in range(3):
        z, y, mask = maps(classes, seed=seed)
        void = np.where(mask, y, 255)
        dirty = np.where(mask if classes == 1 else mask[..., None], z, np.nan)
        for m, labels, logits in ((np.ones_like(mask), y, z), (mask, void, dirty)):
            if f in BOTH:
                want = slow_overlap(z, y, m, 1.0, f)
                sharp = FAST[f](logits, labels, m, smooth=0.0)
                np.testing.assert_allclose(sharp, slow_overlap(z, y, m, 0.0, f), rtol=1e-5)
            else:
                want = slow_lovasz(z, y, m)
            got = FAST[f](logits, labels, m)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f(logits, labels, m), got, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(FAST[f](z, y), FAST[f](z, y, np.ones_like(m)), rtol=1e-6)


@pytest.mark.parametrize(("f", "classes"), CASES)
def test_gradient_is_the_finite_difference_and_void_has_none(f, classes):
    with double():
        z, y, mask = maps(classes, np.float64)
        z = jnp.asarray(z)
        g = jax.jit(lambda z, m: f(z, y, m).sum())
        slope = jax.jit(jax.grad(g))
        along = np.random.default_rng(9).normal(size=z.shape)
        rise = (g(z + 1e-6 * along, mask) - g(z - 1e-6 * along, mask)) / 2e-6
        np.testing.assert_allclose((slope(z, mask) * along).sum(), rise, rtol=1e-7)
        np.testing.assert_array_equal(np.asarray(slope(z, mask))[~mask], 0)
        void = np.zeros_like(mask)
        assert g(z, void) == 0
        np.testing.assert_array_equal(slope(z, void), np.zeros(z.shape))


@pytest.mark.parametrize(("f", "classes"), CASES)
def test_right_and_wrong_to_the_end(f, classes):
    y = np.array([[[0, 1], [1, 0]]])
    sure = 50.0 * (2 * y - 1) if classes == 1 else 50.0 * np.eye(C)[y]
    np.testing.assert_allclose(FAST[f](sure.astype(np.float32), y), [0], atol=1e-6)
    flipped = FAST[f](-sure.astype(np.float32), y)
    assert flipped[0] > (0.5 if f in BOTH else 0.9)
    line = sure.reshape((1, 4) if classes == 1 else (1, 4, C))
    np.testing.assert_allclose(FAST[f](line.astype(np.float32), y.reshape(1, 4)), [0], atol=1e-6)


def test_a_convex_extension_equals_the_set_function_on_sets():
    for wrong in np.ndindex(2, 2, 2, 2):
        y, wrong = np.array([1, 1, 0, 0]), np.array(wrong)
        p = np.where(wrong == 1, 1 - y, y)  # certain, and wrong on a set
        z = (100.0 * np.stack([1 - p, p], -1))[None].astype(np.float32)
        sets = [frozenset(np.flatnonzero(y == k)) for k in (0, 1)]
        want = np.mean([jaccard_loss(frozenset(np.flatnonzero(wrong)), one) for one in sets])
        np.testing.assert_allclose(FAST[losses.lovasz_softmax](z, y[None])[0], want, atol=1e-6)


@pytest.mark.parametrize(("f", "classes"), CASES)
def test_a_traced_label_that_is_none_spoils_its_image(f, classes):
    z, y, mask = maps(classes)
    y[1, 0, 0], mask[1, 0, 0] = 9, True
    got = FAST[f](z, y)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])
    grad = jax.grad(lambda z: nk.Mean.of(FAST[f](z, y), jnp.array([1, 0, 1])).total)(z)
    assert np.isfinite(grad).all()
    with pytest.raises(ValueError, match="labels run from 0 to 9"):
        f(z, y)
    y[1, 0, 0] = 0
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3\), expected \(3, 3, 4\)"):
        f(z, y, mask[..., 0])
    with pytest.raises(ValueError, match=r"logits has shape .* expected .*\(b h w\)"):
        f(z, y[:, 0])


def test_wrong_knobs():
    z, y, _ = maps(1)
    for f in BOTH:
        with pytest.raises(ValueError, match="smooth is -1, expected 0 <= smooth"):
            f(z, y, smooth=-1)
    with pytest.raises(ValueError, match="for \\[b h w c\\] use lovasz_softmax"):
        losses.lovasz_hinge(maps(C)[0], y)
    with pytest.raises(ValueError, match="for one logit per pixel use lovasz_hinge"):
        losses.lovasz_softmax(z, y)
    with pytest.raises(TypeError, match="labels is float32"):
        losses.lovasz_softmax(maps(C)[0], y.astype(np.float32))
