"""Metrics of regions against loops over pixels; accumulated, never averaged over images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import losses, metrics

B, H, W, C = 4, 3, 5, 4
rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(B, H, W, C)).astype(np.float32)
LABELS = rng.integers(0, C - 1, (B, H, W))  # class 3 is nowhere
MASK = rng.random((B, H, W)) < 0.7


def slow(kind, logits, labels, mask):
    """IoU or Dice of each class by sets of pixels; NaN without any."""
    taken, found = logits.argmax(-1), []
    for k in range(logits.shape[-1]):
        true = {tuple(i) for i in np.argwhere((labels == k) & mask)}
        said = {tuple(i) for i in np.argwhere((taken == k) & mask)}
        both, union = len(true & said), len(true | said)
        if not union:
            found.append(np.nan)
        else:
            found.append(both / union if kind == "iou" else 2 * both / (len(true) + len(said)))
    return np.array(found)


def run(f, *args, **knobs):
    """f(*args) as one program: much faster than one for every operation. Values stay known."""
    return jax.jit(lambda: f(*args, **knobs))()


def test_by_sets_of_pixels():
    void = np.where(MASK, LABELS, 255)
    dirty = np.where(MASK[..., None], LOGITS, np.nan)
    for f in (metrics.pixel_confusion, jax.jit(metrics.pixel_confusion)):
        mean = f(dirty, void, MASK)
        assert mean.total.shape == (B, C, C)
        np.testing.assert_array_equal(mean.weight, MASK.sum((1, 2)))
        np.testing.assert_array_equal(mean.total.sum((1, 2)), MASK.sum((1, 2)))
        for table in (mean.total.sum(0), mean.total.sum(0) / 7):  # counts or frequencies
            for kind in ("iou", "dice"):
                want = slow(kind, LOGITS, LABELS, MASK)
                np.testing.assert_allclose(getattr(metrics, kind)(table), want, rtol=1e-6)
            want = np.nanmean(slow("iou", LOGITS, LABELS, MASK))
            np.testing.assert_allclose(run(metrics.mean_iou, table), want, rtol=1e-6)


def test_accumulated_is_not_averaged_over_images():
    labels = np.zeros((2, 1, 4), int)
    labels[0, 0, :3] = 1
    labels[1, 0, 0] = 1
    taken = np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]]])
    mean = run(metrics.pixel_confusion, 4.0 * np.eye(2, dtype=np.float32)[taken], labels)
    each = [metrics.iou(table)[1] for table in mean.total]
    assert np.mean(each) == 0.5
    np.testing.assert_allclose(run(metrics.iou, mean.total.sum(0))[1], 3 / 5, rtol=1e-6)


def test_one_logit_per_pixel_is_two_classes():
    z, y = LOGITS[..., 0], LABELS % 2
    want = run(metrics.pixel_confusion, np.stack([0 * z, z], -1), y).total
    for labels in (y, y == 1):
        np.testing.assert_array_equal(run(metrics.pixel_confusion, z, labels).total, want)
    assert (
        run(metrics.pixel_confusion, np.float32([[0.0]]), np.array([[1]])).total[0, 1, 0] == 1
    )  # > 0


def test_dice_is_f1_and_a_function_of_iou():
    table = jnp.asarray(rng.integers(1, 9, (C, C)).astype(np.float32))
    i = metrics.iou(table)
    np.testing.assert_allclose(run(metrics.dice, table), 2 * i / (1 + i), rtol=1e-6)
    np.testing.assert_allclose(
        run(metrics.dice, table), run(metrics.f1, table, average=None), rtol=1e-6
    )


def test_absent_classes_and_empty_tables():
    table = jnp.zeros((3, 3)).at[0, 0].set(2.0).at[0, 1].set(2.0)  # 1 predicted only, 2 nowhere
    np.testing.assert_array_equal(run(metrics.iou, table), [0.5, 0, np.nan])
    assert run(metrics.mean_iou, table) == 0.25
    assert np.isnan(metrics.mean_iou(jnp.zeros((3, 3))))
    np.testing.assert_allclose(run(metrics.mean_iou, jnp.stack([table, table])), [0.25, 0.25])
    with pytest.raises(ValueError, match=r"table has shape \(2, 3\), expected"):
        metrics.iou(jnp.zeros((2, 3)))


def test_supervised_accumulates_over_batches():
    task = nk.supervised(nn.Dense(C), losses.dice, y=("y", "void"), table=metrics.pixel_confusion)
    params, carry = None, None
    total = None
    for part in (slice(0, 3), slice(3, 4)):  # a ragged last batch
        batch = {"x": LOGITS[part], "y": LABELS[part], "void": MASK[part]}
        if params is None:
            params, carry = task.init(jax.random.key(0), batch)
        log = task.loss(params, carry, batch, None)[1][1]["table"]
        total = log if total is None else total + log
    out = np.asarray(nn.Dense(C).apply({"params": params}, LOGITS))
    np.testing.assert_allclose(
        run(metrics.iou, total.value), slow("iou", out, LABELS, MASK), rtol=1e-5
    )


def test_bad_labels_and_logits():
    wrong = LABELS.copy()
    wrong[1, 0, 0] = C
    with pytest.raises(ValueError, match="labels run from 0 to 4, but the logits have 4 classes"):
        metrics.pixel_confusion(LOGITS, wrong)
    got = jax.jit(metrics.pixel_confusion)(LOGITS, wrong).total
    np.testing.assert_array_equal(np.isnan(got).any((1, 2)), [False, True, False, False])
    broken = LOGITS.copy()
    broken[2, 0, 0, 0] = np.nan
    got = run(metrics.pixel_confusion, broken, LABELS).total
    np.testing.assert_array_equal(np.isnan(got).any((1, 2)), [False, False, True, False])
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3\), expected \(4, 3, 5\)"):
        metrics.pixel_confusion(LOGITS, LABELS, MASK[..., 0])
    with pytest.raises(ValueError, match=r"expected \(b h w c\) and \(b h w\)"):
        metrics.pixel_confusion(LOGITS, LABELS[:, 0])
