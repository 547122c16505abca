"""Losses of embeddings against their definitions: loops over pairs, triplets and angles."""

import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from parity import same
from references.weights import part, read
from table import OF_THE_BATCH

import nnkit as nk
from nnkit import losses

B, D, C = 6, 5, 4
rng = np.random.default_rng(0)
X, Y, Z = (rng.normal(size=(B, D)).astype(np.float32) for _ in range(3))
W = rng.normal(size=(D, C)).astype(np.float32)
LABELS, SAME = np.array([0, 1, 3, 2, 1, 0]), np.array([1, 0, 1, 0, 0, 1])


def double():
    """The context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def softmax_loss(row, k):
    return math.log(sum(math.exp(v - row[k]) for v in row))


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def run(f, *args, **knobs):
    """f(*args) as one program: much faster than one for every operation. Values stay known."""
    return jax.jit(lambda: f(*args, **knobs))()


# --- laws of losses of the whole batch ---
@pytest.mark.parametrize("name", list(OF_THE_BATCH))
def test_laws(name):
    f, x, y = OF_THE_BATCH[name]
    eager, f = f(x, y), jax.jit(f)
    assert eager.shape == (8,)
    np.testing.assert_allclose(f(x, y), eager, rtol=1e-5, atol=1e-6)
    stack = lambda a: jnp.stack([a, a[::-1]])
    many = jax.jit(jax.vmap(f))(stack(x), stack(y))
    np.testing.assert_allclose(many[1], f(x[::-1], y[::-1]), rtol=1e-5, atol=1e-6)
    order = np.array([3, 1, 0, 5, 4, 2, 7, 6])
    np.testing.assert_allclose(f(x[order], y[order]), f(x, y)[order], rtol=1e-5, atol=1e-6)
    both = jax.jit(jax.value_and_grad(lambda x: f(x, y).sum()))
    for scale, dtype in ((1, jnp.bfloat16), (1e4, jnp.float32), (0, jnp.float32)):
        a = (x * scale).astype(dtype)
        value, slope = both(a)
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(slope, np.float32)).all()
        assert slope.dtype == dtype
    with double():
        a = jnp.asarray(np.asarray(x, np.float64))
        b = np.asarray(y, np.float64) if jnp.issubdtype(y.dtype, jnp.floating) else np.asarray(y)
        jax.test_util.check_grads(jax.jit(lambda x: f(x, b).sum()), (a,), 1, ["rev"], rtol=1e-6)


# --- InfoNCE ---
def test_info_nce_by_the_definition():
    scores = np.array([[cosine(q, k) / 0.2 for k in Y] for q in X])
    want = [softmax_loss(scores[i], i) for i in range(B)]
    back = [softmax_loss(scores[:, i], i) for i in range(B)]
    np.testing.assert_allclose(run(losses.info_nce, X, Y, temperature=0.2), want, rtol=1e-5)
    both = run(losses.info_nce, X, Y, temperature=0.2, symmetric=True)
    np.testing.assert_allclose(both, (np.array(want) + back) / 2, rtol=1e-5)
    hot = jax.jit(lambda t: losses.info_nce(X, Y, temperature=t))
    np.testing.assert_allclose(hot(0.2), want, rtol=1e-5)
    np.testing.assert_allclose(run(losses.info_nce, 3 * X, Y, temperature=0.2), want, rtol=1e-5)
    np.testing.assert_allclose(run(losses.info_nce, X[:1], Y[:1]), [0], atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_padding_is_no_negative(symmetric):
    mask = np.array([1, 1, 0, 1, 0, 1])
    dirty = np.where(mask[:, None] == 1, X, np.nan)
    f = jax.jit(lambda x, y, m=None: losses.info_nce(x, y, m, symmetric=symmetric))
    want = f(X[mask == 1], Y[mask == 1])
    got, grad = f(dirty, Y, mask), jax.grad(lambda x: f(x, Y, mask).sum())(jnp.asarray(dirty))
    np.testing.assert_allclose(got[mask == 1], want, rtol=1e-5)
    np.testing.assert_array_equal(got[mask == 0], [0, 0])
    assert np.isfinite(grad).all()


# --- pairs and triplets ---
def test_pairs_and_triplets_by_the_definition():
    near, far = (np.linalg.norm(X.astype(np.float64) - other, axis=1) for other in (Y, Z))
    pulled = np.where(SAME == 1, near**2, np.maximum(0, 4 - near) ** 2) / 2
    for together in (SAME, SAME == 1, SAME.astype(np.float32)):
        np.testing.assert_allclose(
            run(losses.contrastive, X, Y, together, margin=4.0), pulled, 1e-5
        )
    got = run(losses.triplet, X, Y, Z, margin=3.0)
    np.testing.assert_allclose(got, np.maximum(0, near**2 - far**2 + 3), rtol=1e-4)
    got = run(losses.triplet, X, Y, Z, margin=3.0, squared=False)
    np.testing.assert_allclose(got, np.maximum(0, near - far + 3), rtol=1e-5)


def test_slopes_are_finite_where_embeddings_meet():
    for f in (
        lambda x: losses.contrastive(x, X, SAME),
        lambda x: losses.triplet(x, X, Z, squared=False),
        lambda x: losses.triplet(x, X, X, squared=False),
        lambda x: losses.semi_hard_triplet(x * 0 + 1, LABELS, squared=False).total,
    ):
        slope = jax.jit(jax.grad(lambda x: f(x).sum()))  # noqa: B023
        assert np.isfinite(slope(jnp.asarray(X))).all()
    got = run(losses.triplet, X, X, X, margin=0.3)
    np.testing.assert_allclose(got, np.full(B, 0.3), rtol=1e-6)


def test_a_traced_pair_that_is_neither_is_nan():
    f = jax.jit(lambda x, y: losses.contrastive(x, Y, y))
    wrong = np.array([1, 0, 2, 0, 0, 1])
    np.testing.assert_array_equal(np.isnan(f(X, wrong)), wrong == 2)
    assert np.isnan(jax.grad(lambda x: f(x, wrong).sum())(X)[2]).all()


def slow_semi_hard(x, labels, margin, squared, keep):
    """(totals, weights) of the definition, by loops."""
    x, keep = np.asarray(x, np.float64), list(keep)
    d = lambda i, j: np.sum((x[i] - x[j]) ** 2) ** (1 if squared else 0.5)
    total, weight = np.zeros(len(x)), np.zeros(len(x))
    for a in keep:
        others = [d(a, n) for n in keep if labels[n] != labels[a]]
        for p in keep:
            if p == a or labels[p] != labels[a] or not others:
                continue
            beyond = [v for v in others if v > d(a, p)]
            total[a] += max(0, d(a, p) - (min(beyond) if beyond else max(others)) + margin)
            weight[a] += 1
    return total, weight


@pytest.mark.parametrize("squared", [True, False])
def test_semi_hard_negatives_by_the_definition(squared):
    f = jax.jit(lambda *a: losses.semi_hard_triplet(*a, margin=2.0, squared=squared))
    for seed in range(5):
        draw = np.random.default_rng(seed)
        x, labels = draw.normal(size=(9, 3)).astype(np.float32), draw.integers(0, 3, 9)
        labels[-1] = 7  # alone
        mask = draw.random(9) < 0.8
        for m in (None, mask):
            keep = np.arange(9) if m is None else np.flatnonzero(m)
            dirty = x if m is None else np.where(m[:, None], x, np.nan)
            want = slow_semi_hard(x, labels, 2.0, squared, keep)
            got = f(dirty, labels, m)
            np.testing.assert_allclose(got.total, want[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(got.weight, want[1])


def test_semi_hard_limits():
    one_class = run(losses.semi_hard_triplet, X, np.zeros(B, int))
    np.testing.assert_array_equal([one_class.total, one_class.weight], np.zeros((2, B)))
    all_apart = run(losses.semi_hard_triplet, X, np.arange(B))
    np.testing.assert_array_equal([all_apart.total, all_apart.weight], np.zeros((2, B)))
    slope = jax.grad(lambda x: losses.semi_hard_triplet(x, np.zeros(B, int)).total.sum())(X)
    np.testing.assert_array_equal(slope, np.zeros((B, D)))


# --- angles ---
def slow_angular(x, w, labels, phi, scale):
    total = []
    for row, k in zip(x, labels):
        cos = [cosine(row, w[:, j]) for j in range(w.shape[1])]
        cos[k] = phi(math.acos(np.clip(cos[k], -1, 1)))
        total.append(softmax_loss([scale * c for c in cos], k))
    return total


def arc(m):
    """cos(angle + m), and beyond pi - m the line of the authors' program."""
    return lambda a: math.cos(a + m) if a < math.pi - m else math.cos(a) - m * math.sin(m)


def test_angular_losses_by_the_definition():
    x = X.copy()
    x[0], x[1] = -W[:, LABELS[0]] + 0.02 * x[0], W[:, LABELS[1]] + 0.02 * x[1]  # both ends
    for m in (0.1, 0.5, 1.2):
        want = slow_angular(x, W, LABELS, arc(m), 8.0)
        np.testing.assert_allclose(
            run(losses.arcface, x, W, LABELS, margin=m, scale=8.0), want, 1e-4
        )
    want = slow_angular(x, W, LABELS, lambda a: math.cos(a) - 0.35, 64.0)
    np.testing.assert_allclose(run(losses.cosface, x, W, LABELS), want, rtol=1e-4, atol=1e-5)
    want = slow_angular(x, W, LABELS, math.cos, 64.0)
    np.testing.assert_allclose(
        run(losses.normalised_softmax, x, W, LABELS), want, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(run(losses.cosines, x, W)[2, 1], cosine(x[2], W[:, 1]), rtol=1e-5)


def test_without_a_margin_all_are_the_normalised_softmax():
    plain = run(losses.normalised_softmax, X, W, LABELS)
    for f in (losses.arcface, losses.cosface):
        np.testing.assert_allclose(f(X, W, LABELS, margin=0.0), plain, rtol=2e-5, atol=1e-5)
    traced = jax.jit(lambda m, s: losses.arcface(X, W, LABELS, margin=m, scale=s))
    np.testing.assert_allclose(traced(0.5, 64.0), run(losses.arcface, X, W, LABELS), rtol=1e-5)
    np.testing.assert_allclose(
        losses.arcface(9 * X, 0.1 * W, LABELS), run(losses.arcface, X, W, LABELS), 1e-5
    )


def test_arcface_falls_with_the_cosine_everywhere():
    angle = jnp.linspace(0.0, jnp.pi, 500)
    x = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    w = jnp.array([[1.0, 0.0], [0.0, 0.0]])  # the other centre has cosine 0
    loss = run(losses.arcface, x, w, jnp.zeros(500, int), scale=2.0)
    assert (np.diff(loss) > -1e-6).all()


def test_arcface_slopes_at_the_ends():
    """Along and against the centre exactly, next to it, and for a vector of length 0."""
    w = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    f = lambda x, w: losses.arcface(x[None], w, jnp.array([0]), scale=4.0)[0]
    f = jax.jit(jax.grad(f, (0, 1)))
    for x in ([1, 0], [-1, 0], [1, 1e-4], [1, 1e-20], [-1, 1e-7], [0, 0], [1e4, 0]):
        slopes = f(jnp.array(x, jnp.float32), w)
        assert all(np.isfinite(g).all() for g in slopes)
        assert max(np.abs(g).max() for g in slopes) < 10
    slope = jax.grad(lambda x: losses.arcface(x[None], w, jnp.array([0]), scale=1.0)[0])
    near = slope(jnp.array([1.0, 1e-3]))  # d cos(angle + m) = -sin(angle + m), not -sin(m) / 0
    p = 1 / (1 + math.exp(math.cos(0.501) - 0.001))
    np.testing.assert_allclose(near[1], p * (math.sin(0.501) + 1), rtol=1e-3)


def test_traced_classes_that_are_none_are_nan():
    wrong = np.array([0, 1, C, 2, -1, 0])
    for f in (losses.arcface, losses.cosface, losses.normalised_softmax):
        got = jax.jit(f)(X, W, wrong)
        np.testing.assert_array_equal(np.isnan(got), (wrong == C) | (wrong == -1))
        with pytest.raises(ValueError, match="labels run from -1 to 4, but the logits have 4"):
            f(X, W, wrong)


# --- errors ---
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: losses.info_nce(X, Y[:4]), "queries has shape (6, 5) and keys has shape (4, 5)"),
        (lambda: losses.info_nce(X, Y, temperature=0.0), "temperature is 0.0, expected a finite"),
        (lambda: losses.info_nce(X, Y, np.ones(4)), "mask has shape (4,), expected (b) with b = 6"),
        (lambda: losses.contrastive(X, Y, SAME[:4]), "together has shape (4,), expected (b) with"),
        (lambda: losses.contrastive(X, Y, 2 * SAME - 1), "together runs from -1 to 1, expected 0"),
        (lambda: losses.contrastive(X, Y, SAME, margin=0), "margin is 0, expected a finite number"),
        (lambda: losses.triplet(X, Y, Z[:, :2]), "negative has shape (6, 2), expected the same"),
        (lambda: losses.triplet(X, Y, Z, margin=-1), "margin is -1, expected 0 <= margin < inf"),
        (lambda: losses.semi_hard_triplet(X, LABELS[:4]), "labels has shape (4,), expected (b)"),
        (lambda: losses.cosines(X, W.T), "weights has shape (4, 5), expected (d c) with d = 5"),
        (lambda: losses.arcface(X, W, LABELS, margin=2.0), "margin is 2.0, expected 0 <= margin"),
        (lambda: losses.cosface(X, W, LABELS, margin=-0.1), "margin is -0.1, expected 0 <= margin"),
        (lambda: losses.arcface(X, W, LABELS, scale=0), "scale is 0, expected a finite number > 0"),
    ],
)
def test_wrong_values(call, match):
    with pytest.raises(ValueError) as error:
        call()
    assert match in str(error.value)


def test_wrong_kinds():
    with pytest.raises(TypeError, match="labels is float32, expected integers"):
        losses.semi_hard_triplet(X, LABELS.astype(np.float32))
    with pytest.raises(TypeError, match="queries is int"):
        losses.info_nce(LABELS[:, None], LABELS[:, None])
    with pytest.raises(TypeError, match="labels is float32"):
        losses.arcface(X, W, LABELS.astype(np.float32))


# --- parity ---
def parity():
    """name in the file: (our loss, its inputs)."""
    given = read("torch_losses_more")[1]
    together, k = given["same"], given["classes"]
    tri = lambda m: lambda x, y, z: losses.triplet(x, y, z, margin=m, squared=False)
    face = lambda f, **knobs: lambda x, w: f(x, w, k, scale=16.0, **knobs)
    return {
        "triplet": (tri(1.0), "xyz", "TripletMarginLoss(margin=1)"),
        "triplet_wide": (tri(3.0), "xyz", "TripletMarginLoss(margin=3)"),
        "contrastive": (lambda x, y: losses.contrastive(x, y, together, margin=4.0), "xy", ""),
        "info_nce": (lambda x, y: losses.info_nce(x, y, temperature=0.2), "xy", ""),
        "clip": (lambda x, y: losses.info_nce(x, y, temperature=0.2, symmetric=True), "xy", ""),
        "arcface": (face(losses.arcface), "xw", ""),
        "cosface": (face(losses.cosface), "xw", ""),
        "normalised_softmax": (face(losses.normalised_softmax), "xw", ""),
    }


@pytest.mark.parametrize("name", list(parity()))
def test_parity_with_torch(name):
    """In float64: in float32 a slope that nearly cancels is rounded by more than 1e-5."""
    (f, names, said), (about, given) = parity()[name], read("torch_losses_more")
    want = {"value": given[f"{name}/value"], "slope": part(given, f"{name}/slope/")}
    ours = {"clip": "info_nce", "triplet_wide": "triplet"}.get(name, name)
    said = f"torch {about['torch']} {said or 'functional, from the paper'}"
    np.testing.assert_allclose(
        jax.jit(f)(*(given[k] for k in names)), want["value"], rtol=2e-5, atol=1e-6
    )
    with double():
        at = tuple(jnp.asarray(given[k].astype(np.float64)) for k in names)
        slope = jax.jit(jax.grad(lambda *a: f(*a).sum(), tuple(range(len(at)))))(*at)
        found = {"value": jax.jit(f)(*at), "slope": dict(zip(names, slope))}
        assert same(f"losses.{ours}", said, found, want) < 1e-9


def test_digest_of_masked_rows_is_that_without_them():
    mask = np.array([1, 1, 1, 1, 0, 0])
    a = run(losses.semi_hard_triplet, X, LABELS, mask, margin=9.0)
    b = run(losses.semi_hard_triplet, X[:4], LABELS[:4], margin=9.0)
    np.testing.assert_allclose(a.total[:4], b.total, rtol=1e-6)
    assert isinstance(a, nk.Mean)
