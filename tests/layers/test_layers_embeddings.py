"""Embeddings: rows by id, the tied head, and ids that no row has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers import Embed
from nnkit.layers.embeddings import rows

TABLE = jnp.arange(12.0).reshape(4, 3)


def test_rows_and_head_are_the_table_forward_and_backward():
    layer, params = Embed(4, 3), {"params": {"embedding": TABLE}}
    tokens = jnp.array([[0, 3, 3], [1, 2, 0]])
    np.testing.assert_array_equal(layer.apply(params, tokens), np.asarray(TABLE)[tokens])
    logits = layer.apply(params, TABLE[:2], method="attend")
    np.testing.assert_allclose(logits, TABLE[:2] @ TABLE.T)
    grad = jax.grad(lambda p: layer.apply(p, tokens).sum())(params)["params"]["embedding"]
    np.testing.assert_array_equal(grad, np.bincount(tokens.ravel())[:, None] * np.ones((4, 3)))


def test_traced_ids_outside_are_nan_and_touch_no_row():
    ids = jnp.array([-1, 0, 3, 4])
    y = jax.jit(rows)(TABLE, ids)
    np.testing.assert_array_equal(np.isnan(y).all(-1), [True, False, False, True])
    grad = jax.jit(jax.grad(lambda table, ids: rows(table, ids)[1:3].sum()))(TABLE, ids)
    np.testing.assert_array_equal(grad, [[1] * 3, [0] * 3, [0] * 3, [1] * 3])


def test_small_integers_index_large_tables():
    y = rows(jnp.arange(300.0)[:, None], jnp.array([255], jnp.uint8))
    assert float(y[0, 0]) == 255


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        ([0, 4], ValueError, r"tokens run from 0 to 4, but the vocabulary has 4 rows.*widen.* 5"),
        ([-1, 2], ValueError, r"run from -1 to 2.*put 0 in masked places"),
        ([0.0, 1.0], TypeError, r"tokens is float32 of shape \(2,\).*astype\(int\)"),
    ],
)
def test_wrong_ids_are_errors(ids, error, said):
    with pytest.raises(error, match=said):
        Embed(4, 3).init(jax.random.key(0), jnp.array(ids))


def test_wrong_sizes_are_errors():
    with pytest.raises(ValueError, match="vocabulary is 0, expected an integer >= 1"):
        Embed(0, 3).init(jax.random.key(0), jnp.array([0]))
    with pytest.raises(ValueError, match=r"h has shape \(2, 5\), expected \(... 3\)"):
        Embed(4, 3).apply({"params": {"embedding": TABLE}}, jnp.ones((2, 5)), method="attend")
