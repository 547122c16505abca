"""Every layer and pure function of `nnkit.layers` by name: the rows of `test_layer_laws.py`.

A new layer gets a row here; `test_docs.py` fails for one without. Functions that are re-exported
from jax as they are need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnkit import layers


class Row(NamedTuple):
    """A layer (Linen module) or a pure function, and what it is called with.

    call: the module, or a function of arrays.
    inputs: tuple of numpy arrays; float ones are differentiated.
    options: keyword arguments of the call.
    batched: the first axis of every input is one of examples, which do not see each other.
    trains: the module takes `train=`.
    smooth: gradients equal finite differences at these inputs.
    narrow: it also runs in bfloat16.
    """

    call: Any
    inputs: tuple
    options: Mapping = MappingProxyType({})
    batched: bool = True
    trains: bool = False
    smooth: bool = True
    narrow: bool = True


def real(*shape, seed=0, scale=1.0):
    """[*shape] float32 from a normal."""
    return np.asarray(scale * np.random.default_rng(seed).normal(size=shape), np.float32)


def ids(n, *shape, seed=0):
    """[*shape] int32 in 0..n-1."""
    return np.asarray(np.random.default_rng(seed).integers(0, n, shape), np.int32)


LAYERS: dict[str, Row] = {}

# --- dense, convolutions, norms, dropout, activations ---

LAYERS |= {
    "Dense": Row(layers.Dense(4), (real(3, 5, 6),)),
    "linear": Row(layers.linear, (real(3, 5, 6), real(6, 4)), batched=False),
    "Conv": Row(layers.Conv(4, (3, 3), strides=2), (real(3, 5, 6, 2),)),
    "Conv in pieces": Row(layers.Conv(2, (3, 3)), (real(32, 4, 3, 2),)),
    "Conv depthwise causal": Row(
        layers.Conv(4, 3, padding="CAUSAL", feature_group_count=4, kernel_dilation=2),
        (real(3, 6, 4),),
    ),
    "ConvTranspose": Row(layers.ConvTranspose(4, (3, 3), strides=2), (real(3, 4, 3, 2),)),
    "max_pool": Row(layers.max_pool, (real(3, 5, 6, 2),), options={"window": 2}),
    "max_pool overlapping": Row(
        layers.max_pool,
        (real(3, 5, 6, 2),),
        options={"window": 3, "strides": 2, "padding": "SAME"},
    ),
    "avg_pool": Row(layers.avg_pool, (real(3, 5, 6, 2),), options={"window": 2}),
    "avg_pool overlapping": Row(
        layers.avg_pool,
        (real(3, 5, 6, 2),),
        options={"window": 3, "strides": 2, "padding": "SAME", "count_include_pad": False},
    ),
    "global_avg_pool": Row(layers.global_avg_pool, (real(3, 5, 2), ids(2, 3, 5))),
    "BatchNorm": Row(layers.BatchNorm(), (real(3, 5, 4),), trains=True),
    "BatchNorm masked": Row(layers.BatchNorm(), (real(3, 5, 4), ids(2, 3, 5)), trains=True),
    "LayerNorm": Row(layers.LayerNorm(), (real(3, 5, 4),)),
    "GroupNorm": Row(layers.GroupNorm(2), (real(3, 5, 4),)),
    "InstanceNorm": Row(layers.InstanceNorm(), (real(3, 5, 4),)),
    "RMSNorm": Row(layers.RMSNorm(), (real(3, 5, 4),)),
    "ShiftedRMSNorm": Row(layers.ShiftedRMSNorm(), (real(3, 5, 4),)),
    "WeightNorm": Row(layers.WeightNorm(layers.Dense(4)), (real(3, 5, 6),)),
    "SpectralNorm": Row(layers.SpectralNorm(layers.Dense(4)), (real(3, 5, 6),), trains=True),
    "Dropout": Row(layers.Dropout(0.5), (real(3, 5),), trains=True),
    "StochasticDepth": Row(layers.StochasticDepth(0.5), (real(3, 5),), trains=True),
    "gelu": Row(layers.gelu, (real(3, 5),)),
    "gelu_tanh": Row(layers.gelu_tanh, (real(3, 5),)),
    "relu2": Row(layers.relu2, (real(3, 5),)),
    "prelu": Row(layers.prelu, (real(3, 5), real(5)), batched=False),
    "PReLU": Row(layers.PReLU(per_channel=True), (real(3, 5),)),
    "glu": Row(layers.glu, (real(3, 5), real(3, 5, seed=1))),
    "geglu": Row(layers.geglu, (real(3, 5), real(3, 5, seed=1))),
    "swiglu": Row(layers.swiglu, (real(3, 5), real(3, 5, seed=1))),
    "reglu": Row(layers.reglu, (real(3, 5), real(3, 5, seed=1))),
    "maxout": Row(layers.maxout, (real(3, 6),), options={"pieces": 2}),
    "softmax": Row(layers.softmax, (real(3, 6), ids(2, 3, 6))),
    "sparsemax": Row(layers.sparsemax, (real(3, 6),)),
    "entmax15": Row(layers.entmax15, (real(3, 6),)),
    "moments": Row(lambda x: layers.moments(x, -1)[:2], (real(3, 5),), narrow=False),
    "normalise": Row(
        lambda x: layers.normalise(x, x[:, :1], jnp.exp(x[:, 1:2]), epsilon=1e-5), (real(3, 5),)
    ),
}

# --- embeddings, positions, attention, feed-forward, mixture of experts ---

LAYERS |= {
    "Embed": Row(layers.Embed(11, 6), (ids(11, 3, 5),)),
    "LearnedPositions": Row(layers.LearnedPositions(9, 6), (ids(9, 3, 5),)),
    "RelativeBias": Row(
        layers.RelativeBias(2, buckets=8, max_distance=16), (ids(30, 3, 5), ids(30, 3, 4))
    ),
    "rope": Row(layers.rope, (real(3, 5, 2, 4), ids(9, 3, 5))),
    "rope interleaved": Row(
        layers.rope, (real(3, 5, 2, 4), ids(9, 3, 5)), options={"interleaved": True}
    ),
    "attention": Row(
        layers.attention,
        (real(3, 5, 4, 6), real(3, 5, 2, 6, seed=1), real(3, 5, 2, 6, seed=2)),
        options={"causal": True, "window": 3, "softcap": 2.0},
    ),
    "attention blockwise": Row(
        layers.attention,
        (real(3, 5, 4, 6), real(3, 7, 2, 6, seed=1), real(3, 7, 2, 6, seed=2)),
        options={"implementation": "blockwise"},
    ),
    "attention_weights": Row(
        layers.attention_weights,
        (real(3, 5, 4, 6), real(3, 7, 2, 6, seed=1)),
        options={"window": 2},
        narrow=False,  # weights are float32 for whoever looks at them
    ),
    "Attention": Row(
        layers.Attention(4, kv_heads=2, causal=True, rope=1e4, qk_norm=True, dropout=0.1),
        (real(3, 5, 8),),
        trains=True,
    ),
    "Attention cross": Row(
        layers.Attention(2, dropout=0.1), (real(3, 5, 8), real(3, 4, 6, seed=1)), trains=True
    ),
    "FeedForward": Row(layers.FeedForward(12, dropout=0.1), (real(3, 5, 8),), trains=True),
    "FeedForward gated": Row(
        layers.FeedForward(12, layers.silu, gated=True, use_bias=False), (real(3, 5, 8),)
    ),
    "MoE": Row(
        layers.MoE(8, 2, 12, gated=True, bias_rate=0.01),
        (real(3, 5, 8),),
        batched=False,  # its losses are those of the batch
        trains=True,
        narrow=False,  # losses are float32, and a rounded router may choose another expert
    ),
    "MoE capacity": Row(
        layers.MoE(4, 1, 12, capacity=1.0, routing="switch"),
        (real(3, 5, 8),),
        batched=False,
        narrow=False,
    ),
}

# --- recurrent ---
HOLES = np.array([[1, 1, 1, 0], [0, 1, 0, 1]], bool)
for _name, _layer in {
    "RNN": layers.RNN(4),
    "LSTM": layers.LSTM(4, reverse=True),
    "LSTM_all": layers.LSTM(4, peephole=True, projection=3, recurrent_dropout=0.3),
    "GRU": layers.GRU(4),
    "GRU_before": layers.GRU(4, reset="before"),
    "Bidirectional": layers.Bidirectional(layers.GRU(3)),
    "Stacked": layers.Stacked([layers.LSTM(3), layers.RNN(4)], dropout=0.3),
}.items():
    LAYERS[_name] = Row(_layer, (real(2, 4, 3), HOLES), trains=True)
LAYERS["detach"] = Row(layers.detach, (real(2, 3),), smooth=False)

# Names that are no map from arrays to arrays: initialisers, masks, caches. Tested on their own.
OTHERS: set[str] = set()
OTHERS |= {"eye", "probe"}  # tests/layers/test_layers_recurrent.py
OTHERS |= {"alibi", "cache", "sinusoidal", "sinusoidal_2d"}
