"""Feed-forward layers against the formula in numpy."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from nnkit import layers
from nnkit.layers import FeedForward

X = jax.random.normal(jax.random.key(0), (2, 3, 4))
GELU = np.vectorize(lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)
SILU = lambda z: z / (1 + np.exp(-z))


def maps(params):
    """{name: function in numpy} of the affine maps."""
    kernel = lambda p: np.asarray(p["kernel"], np.float64)
    return {
        n: lambda x, p=p: x @ kernel(p) + np.asarray(p.get("bias", 0)) for n, p in params.items()
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "slow", "gated"),
    [
        (layers.gelu, GELU, False),
        (layers.relu2, lambda z: np.maximum(z, 0) ** 2, False),
        (layers.silu, SILU, True),
        (layers.gelu, GELU, True),
    ],
)
def test_it_is_the_formula(activation, slow, gated, bias):
    layer = FeedForward(6, activation, gated=gated, use_bias=bias)
    params = layer.init(jax.random.key(1), X)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases that count
    f, x = maps(params), np.asarray(X, np.float64)
    h = slow(f["gate"](x)) * f["up"](x) if gated else slow(f["up"](x))
    np.testing.assert_allclose(layer.apply({"params": params}, X), f["down"](h), atol=1e-5)
    assert ("bias" in params["up"]) is bias


def test_dropout_only_while_training():
    layer = FeedForward(64, dropout=0.5)
    params = layer.init(jax.random.key(1), X)
    y = layer.apply(params, X)
    np.testing.assert_array_equal(y, layer.clone(dropout=0.0).apply(params, X, train=True))
    keys = {"dropout": jax.random.key(2)}
    assert not np.allclose(layer.apply(params, X, train=True, rngs=keys), y)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"hidden": 0}, ValueError, "hidden is 0, expected an integer >= 1"),
        ({"hidden": 4, "dropout": 50}, ValueError, r"dropout is 50, expected a share in \[0, 1\)"),
        ({"hidden": 4, "activation": "gelu"}, TypeError, "expected a function such as nn.silu"),
    ],
)
def test_wrong_fields_are_errors(fields, error, said):
    with pytest.raises(error, match=said):
        FeedForward(**fields).init(jax.random.key(0), X)
