"""Positions: what rotations, tables, slopes and buckets must do by definition."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import LearnedPositions, RelativeBias, alibi, rope, sinusoidal, sinusoidal_2d
from nnkit.layers.positions import relative_bucket

KEYS = jax.random.split(jax.random.key(0), 2)
Q, K = (jax.random.normal(key, (1, 1, 1, 8)) for key in KEYS)


def score(m, n, interleaved):
    turn = lambda x, p: rope(x, jnp.array([p]), interleaved=interleaved)
    return float((turn(Q, m) * turn(K, n)).sum())


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_scores_depend_on_the_difference_and_norms_stay(interleaved):
    for m, n, shift in [(0, 0, 5), (3, 1, 10), (2, 9, 100)]:
        a, b = score(m, n, interleaved), score(m + shift, n + shift, interleaved)
        assert a == pytest.approx(b, abs=1e-5)
    assert score(3, 1, interleaved) != pytest.approx(score(1, 3, interleaved), abs=1e-3)
    turned = rope(Q, jnp.array([[77]]), interleaved=interleaved)
    assert float((turned**2).sum()) == pytest.approx(float((Q**2).sum()), rel=1e-6)
    np.testing.assert_array_equal(rope(Q, jnp.array([0]), interleaved=interleaved), Q)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_complex_product(interleaved):
    x, theta, positions = np.asarray(Q[0, 0, 0], np.float64), 50.0, [0, 3, 1000]
    pairs = x[0::2] + 1j * x[1::2] if interleaved else x[:4] + 1j * x[4:]
    for p in positions:
        z = pairs * np.exp(1j * p * theta ** (-np.arange(0, 8, 2) / 8))
        expected = np.stack([z.real, z.imag], -1).ravel()
        expected = expected if interleaved else np.concatenate([z.real, z.imag])
        y = rope(Q, jnp.array([p]), theta=theta, interleaved=interleaved)[0, 0, 0]
        np.testing.assert_allclose(y, expected, atol=2e-4 if p == 1000 else 1e-6)  # 1000 radians


def test_the_conventions_of_rope_differ_by_an_order_of_features():
    order = jnp.array([0, 2, 4, 6, 1, 3, 5, 7])
    at = jnp.array([5])
    half = rope(Q[..., order], at)
    np.testing.assert_allclose(rope(Q, at, interleaved=True)[..., order], half, rtol=1e-6)


def test_rope_takes_traced_positions_and_bases():
    turn = jax.jit(lambda p, theta: rope(Q, p, theta=theta))
    np.testing.assert_allclose(
        turn(jnp.array([[7]]), 100.0), rope(Q, jnp.array([7]), theta=100.0), atol=1e-5
    )
    assert rope(Q.astype(jnp.bfloat16), jnp.array([7])).dtype == jnp.bfloat16


def test_sinusoids_follow_the_formula():
    for p, i in [(0, 0), (3, 1), (9, 2)]:
        angle = p / 10000 ** (2 * i / 6)
        row = sinusoidal(10, 6)[p]
        assert float(row[2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
        assert float(row[2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)
    grid = sinusoidal_2d(3, 5, 12)  # f = 1, 0.01, 0.0001
    for row, column in [(0, 0), (2, 4), (1, 3)]:
        expected = [g(x * f) for x in (column, row) for g in (math.sin, math.cos)
                    for f in (1, 0.01, 0.0001)]  # fmt: skip
        np.testing.assert_allclose(grid[row * 5 + column], expected, atol=1e-6)


def test_learned_positions_are_rows():
    table = {"params": {"embedding": jnp.arange(8.0).reshape(4, 2)}}
    layer = LearnedPositions(4, 2)
    np.testing.assert_array_equal(layer.apply(table, 3)[0], [[0, 1], [2, 3], [4, 5]])
    at = jnp.array([[3, 0]])
    np.testing.assert_array_equal(layer.apply(table, at), [[[6, 7], [0, 1]]])
    assert bool(jnp.isnan(jax.jit(layer.apply)(table, jnp.array([4]))).all())


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16])
def test_alibi_slopes_fall_geometrically(heads):
    slopes = np.asarray(alibi(heads))
    power = 2 ** int(math.log2(heads))
    np.testing.assert_allclose(slopes[:power], [2 ** (-8 * i / power) for i in range(1, power + 1)])
    assert slopes.shape == (heads,) and len(set(slopes.tolist())) == heads
    between = [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power) + 1, 2)]
    np.testing.assert_allclose(slopes[power:], between)


@pytest.mark.parametrize("both", [True, False])
def test_buckets_are_exact_near_and_grow_far(both):
    n = 16 if both else 32
    found = np.asarray(relative_bucket(jnp.arange(-300, 301), bidirectional=both))
    near = found[300 - n // 2 + 1 : 301][::-1]
    np.testing.assert_array_equal(near, np.arange(n // 2))  # distances 0, 1, ...
    assert (np.diff(found[:301]) <= 0).all() and found[0] == n - 1
    after = found[301:]
    assert (after == 0).all() if not both else (after[:7] == 16 + np.arange(1, 8)).all()


def test_relative_bias_is_the_table_by_bucket():
    layer = RelativeBias(3, buckets=8, max_distance=16)
    table = layer.init(jax.random.key(0), 4, 6)
    whole = layer.apply(table, 4, 6)
    part = layer.apply(table, jnp.array([2]), jnp.array([[0, 5]]))
    np.testing.assert_array_equal(part[0, :, 0], whole[0, :, 2][:, jnp.array([0, 5])])
    moved = layer.apply(table, jnp.arange(10, 14), jnp.arange(10, 16))
    np.testing.assert_array_equal(moved, whole)


WRONG = {
    "odd head": (lambda: rope(Q[..., :7], jnp.array([0])), r"head size is 7, expected it even"),
    "rank": (lambda: rope(Q[0], jnp.array([0])), r"x has shape \(1, 1, 8\), expected \(b t h d\)"),
    "positions": (
        lambda: rope(Q, jnp.arange(3)),
        r"positions has shape \(3,\).*\(1,\) or \(1, 1\)",
    ),
    "odd width": (lambda: sinusoidal(4, 5), r"width=5\) needs .* an even width"),
    "no length": (lambda: sinusoidal(0, 4), r"length=0"),
    "grid": (lambda: sinusoidal_2d(2, 2, 10), r"divisible by 4; use width=8"),
    "no head": (lambda: alibi(0), r"heads is 0, expected an integer >= 1"),
    "buckets": (lambda: relative_bucket(jnp.array(1), buckets=7), r"buckets=7.*even"),
    "distance": (
        lambda: relative_bucket(jnp.array(1), max_distance=8),
        r"max_distance > 8; T5 has 32 and 128",
    ),
    "longer": (
        lambda: LearnedPositions(4, 2).init(jax.random.key(0), 5),
        r"has 5 positions, expected 1 to 4.*cut the sequence or make a longer table",
    ),
    "outside": (
        lambda: LearnedPositions(4, 2).init(jax.random.key(0), jnp.array([4])),
        r"positions run from 4 to 4, but the table of positions has 4 rows",
    ),
    "float positions": (
        lambda: RelativeBias(2).init(jax.random.key(0), jnp.ones(3), 3),
        r"positions are float32",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_input_says_what_to_do(name):
    call, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        call()
