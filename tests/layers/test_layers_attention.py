"""Attention as a function: against loops, and what masks and forms must leave unchanged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import alibi, attention, attention_weights, blockwise, dot_product

B, T, S = 2, 6, 8


def heads(b, t, h, d=4, *, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(b, t, h, d)).astype(dtype)


def slow(q, k, v, *, seen=None, bias=None, scale=None, softcap=None):
    """The definition, one query and one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (b, t, h, d), (s, g) = q.shape, k.shape[1:3]
    y = np.zeros((b, t, h, v.shape[-1]))
    for n, i, head in np.ndindex(b, t, h):
        keys = [j for j in range(s) if seen is None or seen(n, i, j)]
        if not keys:
            continue
        z = k[n, keys, head * g // h] @ q[n, i, head] * (d**-0.5 if scale is None else scale)
        z = z if softcap is None else softcap * np.tanh(z / softcap)
        z = z if bias is None else z + np.asarray(bias, np.float64)[n, head, i, keys]
        p = np.exp(z - z.max())
        y[n, i, head] = p / p.sum() @ v[n, keys, head * g // h]
    return y


MASK = np.arange(S)[None] < np.array([3, 8])[:, None]
PAIR = np.random.default_rng(3).random((B, T, S)) < 0.4
PAIR[0, 2] = False
SEG_Q, SEG_K = np.array([[0, 0, 1, 1, 2, 9]] * B), np.array([[0, 0, 0, 1, 1, 2, 2, 2]] * B)
BIAS = np.random.default_rng(4).normal(size=(B, 4, T, S)).astype(np.float32)
PLACES = (np.array([[4, 0, 1, 2, 9, 3]]), np.array([[0, 1, 2, -1, 3, 4, 5, 6]]))
CASES = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"seen": lambda n, i, j: j <= i}),
    "offset": ({"causal": True, "offset": 2}, {"seen": lambda n, i, j: j <= i + 2}),
    "before": ({"causal": True, "offset": -2}, {"seen": lambda n, i, j: j <= i - 2}),
    "window": ({"window": 2}, {"seen": lambda n, i, j: abs(i - j) < 2}),
    "sliding": ({"causal": True, "window": 3}, {"seen": lambda n, i, j: i - 3 < j <= i}),
    "far": (
        {"causal": True, "window": 3, "offset": 9},
        {"seen": lambda n, i, j: i + 9 - 3 < j <= i + 9},
    ),
    "mask": ({"mask": MASK}, {"seen": lambda n, i, j: MASK[n, j]}),
    "pair": ({"mask": PAIR.astype(np.int32)}, {"seen": lambda n, i, j: PAIR[n, i, j]}),
    "segments": (
        {"segments": (SEG_Q, SEG_K)},
        {"seen": lambda n, i, j: SEG_Q[n, i] == SEG_K[n, j]},
    ),
    "positions": (
        {"positions": PLACES, "causal": True, "window": 4},
        {"seen": lambda n, i, j: 0 <= PLACES[1][0, j] <= PLACES[0][0, i] < PLACES[1][0, j] + 4},
    ),
    "bias": ({"bias": BIAS, "scale": 0.3}, {"bias": BIAS, "scale": 0.3}),
    "softcap": ({"softcap": 0.7}, {"softcap": 0.7}),
    "all": (
        {"causal": True, "window": 4, "mask": MASK, "bias": BIAS, "softcap": 2.0, "offset": 1},
        {
            "seen": lambda n, i, j: i - 3 < j <= i + 1 and MASK[n, j],
            "bias": BIAS,
            "softcap": 2.0,
        },
    ),
}


@pytest.fixture
def tiny(monkeypatch):
    """Blocks of 3, so that 6 queries and 8 keys make several, one of them ragged."""
    monkeypatch.setattr(blockwise, "BLOCK", 3)


@pytest.mark.parametrize("case", list(CASES))
def test_every_form_is_the_definition(case, tiny):
    options, meant = CASES[case]
    q, k, v = heads(B, T, 4), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)

    @jax.jit
    def found(q, k, v):
        forms = ("plain", "blockwise") if "softcap" in options else ("plain", "blockwise", "xla")
        weights = attention_weights(q, k, **options)
        return weights, [attention(q, k, v, implementation=form, **options) for form in forms]

    expected = slow(q, k, v, **meant)
    weights, forms = jax.device_get(found(q, k, v))
    mixed = np.einsum("bhts,bshe->bthe", weights, np.repeat(v, 2, axis=2))
    for y in (mixed, *forms):
        np.testing.assert_allclose(y, expected, atol=2e-6)


def test_causal_chunks_are_the_definition(monkeypatch):
    t = 70  # two chunks of 64 queries at least
    q, k, v = heads(1, t, 2), heads(1, t, 1, seed=1), heads(1, t, 1, seed=2)
    for window in (None, 5):
        seen = lambda n, i, j, w=window: j <= i and (w is None or i - j < w)
        y = jax.jit(lambda *a, w=window: attention(*a, causal=True, window=w))(q, k, v)
        np.testing.assert_allclose(y, slow(q, k, v, seen=seen), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "case"),
    [(f, c) for f in ("plain", "blockwise") for c in ("causal", "pair")]
    + [("plain", "sliding"), ("plain", "segments")],
)
def test_nothing_leaks_by_gradient(form, case, tiny):
    """d y_i / d (k_j, v_j) is exactly 0 where i does not see j, and not elsewhere."""
    options, meant = CASES[case]
    q, k, v = heads(B, T, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    run = lambda kv: attention(q, *kv, implementation=form, **options).sum((-1, -2))  # [b t]
    dk, dv = jax.device_get(jax.jit(jax.jacrev(run))((k, v)))  # [b t b s h d]
    for n, i, j in np.ndindex(B, T, S):
        a, b = dk[n, i, n, j], dv[n, i, n, j]
        if meant["seen"](n, i, j):
            assert np.all(b != 0), (n, i, j)
        else:
            assert np.all(a == 0) and np.all(b == 0), (n, i, j)
    assert np.all(dk[0, :, 1] == 0)


def test_forms_agree_to_second_order_in_float64(tiny):
    """Value, gradient, Hessian-vector product (both ways) and forward mode."""
    options = {"causal": True, "mask": MASK[:, :T], "softcap": 3.0}
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with switch(True):
        xs = tuple(heads(B, T, 2 - (n > 0), seed=n, dtype=np.float64) for n in range(3))
        way = tuple(heads(B, T, 2 - (n > 0), seed=9 + n, dtype=np.float64) for n in range(3))

        def found(form):
            f = lambda *xs: jnp.sin(attention(*xs, implementation=form, **options)).sum()
            grad = jax.grad(f, (0, 1, 2))
            dot = lambda *xs: sum(jnp.vdot(a, b) for a, b in zip(grad(*xs), way))
            return jax.jit(
                lambda *xs: {
                    "value": f(*xs),
                    "gradient": grad(*xs),
                    "forward": jax.jvp(f, xs, way)[1],
                    "reverse over reverse": jax.grad(dot, (0, 1, 2))(*xs),
                    "forward over reverse": jax.jvp(grad, xs, way)[1],
                }
            )(*xs)

        plain, block = found("plain"), found("blockwise")
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(block)):
            np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12)
        both = plain["reverse over reverse"], plain["forward over reverse"]
        for a, b in zip(*both):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("form", ["plain", "blockwise"])
def test_gradients_agree_in_float32(form, tiny):
    xs = heads(B, T, 4), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    f = lambda form: jax.jit(
        jax.grad(lambda xs: jnp.sin(attention(*xs, implementation=form, window=3)).sum())
    )
    for a, b in zip(f(form)(xs), f("xla")(xs)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_grouped_queries_are_repeated_keys():
    q, k, v = heads(B, T, 6), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    run = jax.jit(attention)
    repeated = run(q, np.repeat(k, 3, axis=2), np.repeat(v, 3, axis=2))
    np.testing.assert_allclose(run(q, k, v), repeated, atol=1e-6)


@pytest.mark.parametrize("form", ["plain", "blockwise", "xla"])
def test_padded_keys_change_nothing_whatever_they_are(form, tiny):
    q, k, v = heads(B, T, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    junk = np.full((B, 3, 2, 4), np.nan, np.float32)
    junk[:, 1] = np.inf
    mask = np.arange(S + 3)[None] < np.full((B, 1), S)

    def longer(junk):
        keys, values = (jnp.concatenate([x, junk], 1) for x in (k, v))
        y = attention(q, keys, values, mask=mask, implementation=form)
        return y.sum(), y

    (_, y), grad = jax.jit(jax.value_and_grad(longer, has_aux=True))(junk)
    np.testing.assert_allclose(y, slow(q, k, v), atol=1e-6)
    assert np.all(np.asarray(grad) == 0)


@pytest.mark.parametrize("form", ["plain", "blockwise", "xla"])
def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients(form, tiny):
    xs = heads(B, T, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    mask = np.array([[False] * S, [True] * S])

    def run(xs):
        y = attention(*xs, mask=mask, implementation=form)
        return jnp.sin(y).sum(), (y, attention_weights(*xs[:2], mask=mask))

    (_, (y, p)), grads = jax.device_get(jax.jit(jax.value_and_grad(run, has_aux=True))(xs))
    assert np.all(y[0] == 0) and np.all(y[1] != 0) and np.all(p[0] == 0)
    for g in grads:
        assert np.isfinite(g).all() and np.all(g[0] == 0)


def test_alibi_is_an_explicit_bias():
    q, k, v = heads(1, T, 4), heads(1, T, 4, seed=1), heads(1, T, 4, seed=2)
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    slopes = np.asarray(alibi(4))[:, None, None]
    run = jax.jit(lambda bias: attention(q, k, v, causal=True, bias=bias))
    bias = -slopes * np.abs(i - j).astype(np.float32)
    y = run(bias)
    expected = slow(q, k, v, bias=bias[None], seen=lambda n, i, j: j <= i)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(run(bias + slopes * i.astype(np.float32)), y, atol=1e-6)  # BLOOM


def test_a_bias_of_minus_infinity_is_a_mask_by_head(tiny):
    q, k, v = heads(B, T, 4), heads(B, S, 4, seed=1), heads(B, S, 4, seed=2)
    bias = np.where(np.arange(S) < 3, 0, -np.inf).astype(np.float32)
    for form in ("plain", "blockwise"):
        y = jax.jit(lambda *a, f=form: attention(*a, bias=bias, implementation=f))(q, k, v)
        np.testing.assert_allclose(y, slow(q, k[:, :3], v[:, :3]), atol=1e-6)


def test_tokens_without_positions_may_change_places():
    q, k, v = heads(B, S, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    order, run = np.random.default_rng(0).permutation(S), jax.jit(attention)
    y = np.asarray(run(q, k, v))
    np.testing.assert_allclose(run(q[:, order], k[:, order], v[:, order]), y[:, order], atol=1e-6)


def test_offsets_may_be_traced():
    q, k, v = heads(B, T, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    for form in ("plain", "blockwise"):
        run = lambda n, form=form: attention(
            q, k, v, causal=True, window=3, offset=n, implementation=form
        )
        expected = slow(q, k, v, seen=lambda n, i, j: i + 2 - 3 < j <= i + 2)
        np.testing.assert_allclose(jax.jit(run)(2), expected, atol=1e-6)


def test_large_scores_do_not_overflow(tiny):
    q, k, v = np.float32(1e4) * heads(B, T, 2), heads(B, S, 2, seed=1), heads(B, S, 2, seed=2)
    for form in ("plain", "blockwise"):
        y = jax.jit(lambda *a, f=form: attention(*a, implementation=f))(q, k, v)
        np.testing.assert_allclose(y, slow(q, k, v), atol=2e-2)  # scores of 1e4 in float32


def test_blockwise_does_not_hold_queries_times_keys():
    """Temporary memory of value and gradient at t = 2048, where one table is 16 MiB per head."""
    x = jax.ShapeDtypeStruct((1, 2048, 1, 16), jnp.float32)

    def temporary(form):
        f = lambda *xs: attention(*xs, causal=True, implementation=form).sum()
        compiled = jax.jit(jax.grad(f, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    assert temporary("blockwise") < 10  # measured: 7.8; 20 at t = 8192, where plain takes 466
    assert temporary("plain") > 16
    assert dot_product._form(*(jnp.zeros(x.shape),) * 3, None) == "blockwise"


Q, K = np.zeros((2, 3, 4, 6), np.float32), np.zeros((2, 5, 2, 6), np.float32)
INT = np.zeros((2, 5), np.int32)
WRONG = {
    "rank": ((Q[0], K, K), {}, r"q \(3, 4, 6\).*expected q \(b t h d\)"),
    "batch": ((Q[:1], K, K), {}, "expected the same b everywhere"),
    "length": ((Q, K, K[:, :4]), {}, "s and g of k and v the same"),
    "size": ((Q, K[..., :5], K), {}, "heads of q have size 6, those of k 5"),
    "groups": ((Q[:, :, :3], K, K), {}, "3 heads of q cannot share 2 heads of k and v evenly"),
    "empty": ((Q[:, :0], K, K), {}, "expected every size >= 1"),
    "dtype": ((Q, K.astype(jnp.bfloat16), K), {}, "q is float32, k bfloat16, v float32"),
    "integers": ((Q.astype(int), K.astype(int), K.astype(int)), {}, "expected one float dtype"),
    "window": ((Q, K, K), {"window": 0}, "window is 0, expected an integer >= 1"),
    "scale": ((Q, K, K), {"scale": -1.0}, "scale is -1.0, expected a finite number > 0"),
    "softcap": ((Q, K, K), {"softcap": 0.0}, "softcap is 0.0"),
    "mask": ((Q, K, K), {"mask": INT[:, :4]}, r"mask has shape \(2, 4\), expected \(2, 5\)"),
    "float mask": ((Q, K, K), {"mask": np.ones((2, 5))}, "mask is float32.*write mask > 0"),
    "one segment": ((Q, K, K), {"segments": INT}, r"segments of q are int32 of shape \(2, 5\)"),
    "positions": ((Q, K, K), {"positions": INT}, "positions is ndarray, expected a pair"),
    "bias": ((Q, K, K), {"bias": np.zeros((3, 3, 5), np.float32)}, r"= \(2, 4, 3, 5\)"),
    "bool bias": ((Q, K, K), {"bias": np.zeros((3, 5), bool)}, "bias is bool.*expected floats"),
    "form": ((Q, K, K), {"implementation": "flash"}, "'flash', expected None or one of"),
    "xla": ((Q, K, K), {"implementation": "xla", "softcap": 1.0}, "has no softcap"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_input_says_what_to_do(name):
    inputs, options, said = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=said):
        attention(*inputs, **options)


def test_weights_know_their_options():
    with pytest.raises(TypeError, match=r"has no \['dropout'\]"):
        attention_weights(Q, K, dropout=0.1)
