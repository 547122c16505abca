"""Losses of sequences against their definitions: loops over tokens, all alignments one by one."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from parity import same
from references.weights import part, read

import nnkit as nk
from nnkit import losses

B, T, V = 4, 6, 5
INF = float("inf")


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def tokens(seed=0, dtype=np.float32):
    """Logits [b t v], labels [b t] with -100 at masked places, mask [b t]: lengths 6, 3, 1, 0."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(B, T, V)).astype(dtype)
    y = rng.integers(0, V, (B, T))
    mask = np.arange(T)[None] < np.array([6, 3, 1, 0])[:, None]
    return z, np.where(mask, y, -100), mask


def slow_tokens(z, y, mask, smoothing=0.0, z_loss=0.0):
    total = np.zeros(len(z))
    for i, t in np.argwhere(mask):
        log_p, log_z = log_softmax(z[i, t]), np.log(np.exp(z[i, t]).sum())
        soft = (1 - smoothing) * np.eye(V)[y[i, t]] + smoothing / V
        total[i] += -(soft * log_p).sum() + z_loss * log_z**2
    return total


def run(f, *args, **knobs):
    """f(*args) as one program: much faster than one for every operation. Values stay known."""
    return jax.jit(lambda: f(*args, **knobs))()


@pytest.mark.parametrize("knobs", [{}, {"smoothing": 0.2}, {"z_loss": 0.1, "smoothing": 0.1}])
def test_tokens_by_the_definition(knobs):
    z, y, mask = tokens()
    want = slow_tokens(z.astype(np.float64), y, mask, **knobs)
    f = losses.sequence_cross_entropy
    for mean in (run(f, z, y, mask, **knobs), jax.jit(f)(z, y, mask, **knobs)):  # traced: knobs too
        np.testing.assert_allclose(mean.total, want, rtol=1e-5)
        np.testing.assert_array_equal(mean.weight, [6, 3, 1, 0])
    with double():
        z, y, mask = tokens(dtype=np.float64)
        total = jax.jit(lambda z: losses.sequence_cross_entropy(z, y, mask, **knobs).total)
        np.testing.assert_allclose(total(jnp.asarray(z)), slow_tokens(z, y, mask, **knobs), 1e-12)
        grad = jax.grad(lambda z: total(z).sum())(jnp.asarray(z))
        jax.test_util.check_grads(jax.jit(lambda z: total(z).sum()), (z,), 1, ["rev"], rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(grad)[~mask], 0)


def test_what_stands_in_masked_places_does_not_matter():
    z, y, mask = tokens()
    dirty = np.where(mask[..., None], z, np.nan)
    f = lambda z, y: losses.sequence_cross_entropy(z, y, mask, z_loss=0.1).total.sum()
    g = jax.jit(jax.value_and_grad(f))
    assert nk.digest(g(z, np.where(mask, y, 0))) == nk.digest(g(dirty, np.where(mask, y, 10**6)))
    known = lambda y: jax.jit(jax.value_and_grad(lambda z: f(z, y)))
    a, b = known(np.where(mask, y, 0))(z), known(np.where(mask, y, 10**6))(dirty)
    assert nk.digest(a) == nk.digest(b)


def test_without_a_mask_every_token_counts_and_weights_may_be_fractions():
    z, y, mask = tokens()
    y = np.where(mask, y, 1)
    plain = run(losses.sequence_cross_entropy, z, y)
    np.testing.assert_allclose(plain.total, run(losses.cross_entropy, z, y).sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(plain.weight, [T] * B)
    half = run(losses.sequence_cross_entropy, z, y, np.full((B, T), 0.5, np.float32))
    np.testing.assert_allclose(half.total, plain.total / 2, rtol=1e-6)
    none = run(losses.sequence_cross_entropy, z[:, :0], y[:, :0])
    np.testing.assert_array_equal([none.total, none.weight], np.zeros((2, B)))


def test_supervised_counts_every_token_the_same():
    z, y, mask = tokens()
    task = nk.supervised(
        nn.Dense(V), losses.sequence_cross_entropy, x="z", y=("labels", "label_mask")
    )
    batch = {"z": jnp.asarray(z), "labels": jnp.asarray(y), "label_mask": jnp.asarray(mask)}
    params, carry = task.init(jax.random.key(0), batch)
    mean, _ = task.loss(params, carry, batch, None)
    out = np.asarray(nn.Dense(V).apply({"params": params}, z), np.float64)
    np.testing.assert_allclose(mean.value, slow_tokens(out, y, mask).sum() / mask.sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="labels run from 0 to 9, but the logits have 5 classes"):
        task.init(jax.random.key(0), batch | {"labels": jnp.full((B, T), 9).at[1].set(0)})


def test_a_traced_id_outside_the_vocabulary_is_nan_where_it_counts():
    z, y, mask = tokens()
    y = np.where(mask, y, 0)
    y[1, 0] = V
    f = jax.jit(lambda z, y: losses.sequence_cross_entropy(z, y, mask).total)
    total, grad = f(z, y), jax.grad(lambda z: f(z, y).sum())(jnp.asarray(z))
    np.testing.assert_array_equal(np.isnan(total), [False, True, False, False])
    assert np.isnan(grad[1, 0]).all()
    assert np.isfinite(np.delete(grad, 1, 0)).all()


def test_z_loss_by_the_definition():
    z = tokens()[0]
    want = np.log(np.exp(z.astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(run(losses.z_loss, z), want, rtol=1e-5)
    assert np.isfinite(losses.z_loss(1e4 * z)).all()
    with pytest.raises(ValueError, match=r"logits has shape \(\)"):
        losses.z_loss(jnp.float32(1))


# --- CTC ---
def alignments(z, labels, blank):
    """log-probability of every string that merges to the labels."""
    log_p = log_softmax(np.asarray(z, np.float64))
    for path in itertools.product(range(z.shape[-1]), repeat=len(z)):
        merged = [k for k, _ in itertools.groupby(path)]
        if [k for k in merged if k != blank] == list(labels):
            yield sum(log_p[t, k] for t, k in enumerate(path))


def slow_ctc(z, labels, blank=0):
    terms = list(alignments(z, labels, blank))
    return -np.logaddexp.reduce(terms) if terms else INF


CASES = [[], [1], [2, 2], [1, 2], [1, 2, 1], [2, 2, 2], [1, 1, 2]]


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_is_the_sum_over_all_alignments(blank):
    rng = np.random.default_rng(1)
    swap = {0: blank, blank: 0, 1: 1}
    cases = [[swap.get(k, k) for k in case] for case in CASES]
    z = 2 * rng.normal(size=(len(cases), 5, 3)).astype(np.float32)
    want = [slow_ctc(row, case, blank) for row, case in zip(z, cases)]
    labels, kept = padded(cases)
    got = run(losses.ctc, z, labels, None, kept, blank=blank)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    again = jax.jit(lambda *a: losses.ctc(*a, blank=blank))(z, labels, np.ones((7, 5)), kept)
    np.testing.assert_allclose(again, want, rtol=2e-6)


def padded(cases, width=3):
    """Labels [b l] with rubbish where they end, and the mask."""
    labels, kept = np.full((len(cases), width), -100), np.zeros((len(cases), width), bool)
    for i, case in enumerate(cases):
        labels[i, : len(case)], kept[i, : len(case)] = case, True
    return labels, kept


def test_ctc_sees_no_masked_frame_wherever_it_stands():
    rng = np.random.default_rng(2)
    z, labels = rng.normal(size=(2, 6, 3)).astype(np.float32), np.array([[1, 2], [2, 2]])
    frames = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]])
    want = [slow_ctc(z[i][frames[i] == 1], labels[i]) for i in range(2)]
    dirty = np.where(frames[..., None] == 1, z, np.nan)
    f = jax.jit(lambda z: losses.ctc(z, labels, frames))
    np.testing.assert_allclose(f(dirty), want, rtol=2e-6)
    grad = jax.grad(lambda z: f(z).sum())(jnp.asarray(dirty))
    np.testing.assert_array_equal(np.asarray(grad)[frames == 0], 0)
    assert np.isfinite(grad).all()
    empty = run(losses.ctc, z, labels, np.zeros((2, 6)), np.zeros((2, 2)))
    np.testing.assert_array_equal(empty, [0, 0])  # nothing said, nothing heard


def test_ctc_gradient_is_the_finite_difference():
    with double():
        z = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 3)))
        labels = np.array([[1, 1], [2, 1]])
        f = jax.jit(lambda z: losses.ctc(z, labels).sum())
        assert f(z).dtype == jnp.float64
        jax.test_util.check_grads(f, (z,), 1, ["rev"], rtol=1e-6)
        hessian = jax.jit(jax.hessian(lambda z: f(z)))(z).reshape(z.size, z.size)
        step = 1e-5 * np.eye(z.size).reshape(z.size, *z.shape)
        slope = jax.jit(jax.vmap(jax.grad(f)))
        want = (slope(z[None] + step) - slope(z[None] - step)) / 2e-5
        np.testing.assert_allclose(hessian, want.reshape(z.size, z.size), atol=1e-8)


def test_ctc_is_optax_where_that_is_exact_and_right_where_it_is_not():
    rng = np.random.default_rng(4)
    z, labels = rng.normal(size=(3, 5, 3)).astype(np.float32), np.array([[1, 2], [2, 2], [1, 1]])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = run(optax.ctc_loss, z, np.zeros((3, 5)), labels, np.zeros((3, 2)))
        far = run(optax.ctc_loss, 1e5 * z, np.zeros((3, 5)), labels, np.zeros((3, 2)))
    np.testing.assert_allclose(run(losses.ctc, z, labels), theirs, rtol=1e-5)
    want = [-max(alignments(1e5 * row, case, 0)) for row, case in zip(z, labels)]
    np.testing.assert_allclose(run(losses.ctc, 1e5 * z, labels), want, rtol=1e-6)
    assert np.abs(np.asarray(far) - want).max() > 1e3  # -1e5 stands for log 0 there


def test_ctc_with_classes_ruled_out_by_minus_infinity():
    z = np.random.default_rng(5).normal(size=(1, 4, 3)).astype(np.float32)
    z[..., 2] = -INF
    f = jax.jit(jax.value_and_grad(lambda z: losses.ctc(z, np.array([[1]]))[0]))
    value, grad = f(z)
    np.testing.assert_allclose(value, slow_ctc(z[0, :, :2], [1]), rtol=1e-6)
    assert np.isfinite(grad).all()


def test_too_few_frames_are_an_error_or_infinite_never_a_number():
    z, labels = jnp.zeros((2, 3, 3)), np.array([[1, 2], [2, 2]])
    np.testing.assert_allclose(
        run(losses.ctc, z, labels), [slow_ctc(z[0], y) for y in labels], 1e-6
    )
    with pytest.raises(ValueError, match="example 1 has 2 frames for 2 labels with 1 repeats, exp"):
        losses.ctc(z[:, :2], labels)
    f = jax.jit(lambda z, y: losses.ctc(z, y))
    np.testing.assert_array_equal(f(z[:, :2], labels), [f(z[:1, :2], labels[:1])[0], INF])
    grad = jax.grad(lambda z: f(z, labels).sum())(z[:, :2])
    assert np.isfinite(grad[0]).all()
    assert np.isnan(grad[1]).all()
    masked = lambda z: nk.Mean.of(f(z, labels), jnp.array([1, 0])).total
    value, grad = jax.value_and_grad(masked)(z[:, :2])
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_ctc_labels_that_are_none():
    z, labels = jnp.zeros((1, 5, 3)), np.array([[1, 2]])
    for wrong in ([[1, 3]], [[1, -1]]):
        with pytest.raises(ValueError, match=r"labels run from .* but the logits have 3 classes"):
            losses.ctc(z, np.array(wrong))
    with pytest.raises(ValueError, match="labels hold 0, which is the blank"):
        losses.ctc(z, np.array([[1, 0]]))
    with pytest.raises(ValueError, match="label_mask has a hole"):
        losses.ctc(z, labels, None, np.array([[0, 1]]))
    with pytest.raises(ValueError, match="blank is 3, but the logits have 3 classes"):
        losses.ctc(z, labels, blank=3)
    with pytest.raises(TypeError, match="labels is float32, expected integers"):
        losses.ctc(z, labels.astype(np.float32))
    f = jax.jit(lambda y, kept: losses.ctc(z, y, None, kept))
    for y, kept in (([[1, 3]], [[1, 1]]), ([[1, 0]], [[1, 1]]), ([[1, 2]], [[0, 1]])):
        assert np.isnan(f(np.array(y), np.array(kept))).all()
    assert np.isfinite(f(np.array([[1, 0]]), np.array([[1, 0]]))).all()


def test_wrong_shapes():
    z, y, _ = tokens()
    with pytest.raises(ValueError, match=r"labels has shape \(4, 5\), expected \(b t\) with t = 6"):
        losses.sequence_cross_entropy(z, y[:, 1:])
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), expected \(b t\)"):
        losses.sequence_cross_entropy(z, y, np.ones(4))
    with pytest.raises(ValueError, match="z_loss is -1, expected 0 <= z_loss"):
        losses.sequence_cross_entropy(z, y, y != -100, z_loss=-1)
    with pytest.raises(ValueError, match=r"label_mask has shape \(4, 5\)"):
        losses.ctc(z, np.ones((4, 2), int), None, np.ones((4, 5)))


# --- parity ---
def test_parity_with_torch():
    def total(z, y, smoothing):
        return losses.sequence_cross_entropy(z, y, y != -100, smoothing=smoothing).total

    about, given = read("torch_losses_more")
    reference = f"torch {about['torch']}"
    z, y = given["ctc/logits"], given["tokens/labels"]
    for name, smoothing in {"tokens": 0.0, "tokens_smoothed": 0.1}.items():
        ours = {"slope": {"logits": jax.grad(lambda z: total(z, y, smoothing).sum())(z)}}  # noqa: B023
        ours["value"] = total(z, y, smoothing)
        said = f"{reference} functional.cross_entropy(ignore_index)"
        same("losses.sequence_cross_entropy", said, ours, wanted(given, name))
    frames = np.arange(z.shape[1])[None] < given["ctc/frames"][:, None]
    kept = np.arange(4)[None] < given["ctc/lengths"][:, None]
    f = jax.jit(lambda z, y, kept: losses.ctc(z, y, frames, kept))
    value = f(z, given["ctc/labels"], kept)
    assert value[4] == given["ctc/value"][4] == INF
    slope = jax.grad(lambda z: f(z, given["ctc/labels"], kept)[:4].sum())(z)
    want = {"value": given["ctc/value"][:4], "slope": given["ctc/slope/logits"][:4]}
    same("losses.ctc", f"{reference} CTCLoss", {"value": value[:4], "slope": slope[:4]}, want)


def wanted(given, name):
    """Value and slopes of a loss in the file."""
    return {"value": given[f"{name}/value"], "slope": part(given, f"{name}/slope/")}


def test_labels_of_minus_100_without_a_mask_name_the_mask():
    with pytest.raises(ValueError, match=r"from -100 to 2 and there is no mask; .*labels != -100"):
        losses.sequence_cross_entropy(jnp.zeros((1, 3, 5)), jnp.asarray([[1, 2, -100]]))
