"""PatchTST: a Transformer over patches of a series, one series at a time.

Nie et al., arXiv:2211.14730. As in its code, not all of which is in the paper: the scores of each
layer are added to those of the next (RealFormer), the norm is a batch norm after each residual sum,
and the end of a series is repeated to make one more patch. Differs from the code in form alone: two
dropouts in a row on what attention gives are one of the same law.

    PatchTST.from_size("small/42", horizon=96)     ETTh1: 81,728 weights, MSE / MAE .375 / .399
    PatchTST.from_size("small/64", horizon=96)     ETTh1: look-back 512, .370 / .400

On ETTh1 a 336 x 96 ridge (`models.ridge`) has an MSE of .370: it is the floor to beat.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.inputs import wide
from nnkit.layers.norms import BatchNorm, LayerNorm
from nnkit.models.fields import divides, pick
from nnkit.models.revin import reversible
from nnkit.models.timeseries import OverTime, series

__all__ = ["SIZES", "PatchTST"]

_SMALL = {"width": 16, "heads": 4, "hidden": 128, "dropout": 0.3}
_LARGE = {"width": 128, "heads": 16, "hidden": 256, "dropout": 0.2}
SIZES = {  # the paper's appendix A.1.4: small for ETTh1, ETTh2 and ILI; 42 and 64 are the patches
    "small/42": {"length": 336, **_SMALL},
    "small/64": {"length": 512, **_SMALL},
    "large/42": {"length": 336, **_LARGE},
    "large/64": {"length": 512, **_LARGE},
}

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as torch's linear map


class PatchTST(nn.Module):
    """Patches of each series are tokens; an encoder; one linear map from all tokens to the future.

    Each series is brought to mean 0 and deviation 1 (`RevIN`), its end repeated `stride` times, and
    cut into p = (length - patch) // stride + 2 patches. All series share the weights and never meet
    (channel independence). Layer i: h <- norm(h + attention_i(h)), h <- norm(h + ff_i(h)), with
    scores s_i = q k^T / sqrt(width / heads) + s_(i-1).

    Sizes: "small/42" and "small/64" (width 16, 4 heads, hidden 128, dropout .3; length 336 and
    512), "large/42" and "large/64" (width 128, 16 heads, hidden 256, dropout .2).

    Args:
      horizon: steps to forecast.
      length: steps of x.
      patch: steps of a patch.
      stride: steps between the starts of two patches.
      width: of the tokens.
      heads: of the attention; divide the width.
      hidden: units of the feed-forward part.
      layers: of the encoder.
      dropout: share dropped of tokens, hidden units and what each part adds.
      attention_dropout: share of attention weights dropped.
      head_dropout: share of forecasts dropped (0 in the paper).
      padded: repeat the end for one more patch.
      revin: mean 0 and deviation 1 per window and series.
      affine: learn scale and bias of it (off in the published runs).
      last: RevIN takes the last value off instead of the mean.
      batch_norm: norms over batch and patches; False: layer norms.
      pre_norm: norm before each part, not after the sum.
      residual_scores: add the scores of the layer below.
      individual: a head of its own for each series.

    Call: x [b t f], mask=None [b] (0 for rows that do not count in batch statistics), train=False
    -> [b horizon f]; with intermediates=True also {"tokens": [b f p d], "layer_0": [b f p d], ...,
    "attention_0": [b f h p p], ..., "mean": [b f], "deviation": [b f]}.

    Raises:
      TypeError: when first used, if a size is no integer.
      ValueError: if a size is not >= 1, the heads do not divide the width, a share is not in
        [0, 1), the patch is longer than x, or x is not [b length f].
      KeyError: by `from_size`, for an unknown size.

    >>> model = PatchTST.from_size("small/42", horizon=96)
    >>> model.init_with_output(jax.random.key(0), jnp.ones((2, 336, 7)))[0].shape
    (2, 96, 7)

    Nie et al., arXiv:2211.14730, section 3.1; He et al., arXiv:2012.11747 (residual scores).
    """

    horizon: int
    length: int = 336
    patch: int = 16
    stride: int = 8
    width: int = 16
    heads: int = 4
    hidden: int = 128
    layers: int = 3
    dropout: float = 0.3
    attention_dropout: float = 0.0
    head_dropout: float = 0.0
    padded: bool = True
    revin: bool = True
    affine: bool = False
    last: bool = False
    batch_norm: bool = True
    pre_norm: bool = False
    residual_scores: bool = True
    individual: bool = False

    @classmethod
    def from_size(cls, size: str, **changes) -> PatchTST:
        """A published size, see `SIZES`; `changes` replace its fields."""
        return cls(**{**pick("PatchTST", SIZES, size), **changes})

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False, intermediates: bool = False):
        self._check(x)
        inside = {}

        def forecast(z):
            h = self._tokens(z, train)  # [b f p d]
            inside["tokens"] = h
            scores = None
            for i in range(self.layers):
                layer = EncoderLayer(
                    self.width, self.heads, self.hidden, self.dropout, self.attention_dropout,
                    self.batch_norm, self.pre_norm, name=f"layer_{i}",
                )  # fmt: skip
                h, scores, attention = layer(h, scores, mask, train=train)
                scores = scores if self.residual_scores else None
                inside[f"layer_{i}"] = h
                if intermediates:
                    inside[f"attention_{i}"] = attention[0] / attention[1]
            y = Head(self.horizon, self.individual, name="head")(h)  # [b f horizon]
            return jnp.swapaxes(Dropout(self.head_dropout)(y, train=train), 1, 2)

        if not self.revin:
            y = forecast(x)
        else:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:]) if self.affine else None
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]) if self.affine else None
            y, statistics = reversible(forecast, x, scale, bias, last=self.last)
            inside |= statistics
        return (y, inside) if intermediates else y

    def _check(self, x) -> None:
        names = ("horizon", "length", "patch", "stride", "width", "heads", "hidden", "layers")
        sizes("PatchTST", **{name: getattr(self, name) for name in names})
        names = ("dropout", "attention_dropout", "head_dropout")
        shares("PatchTST", **{name: getattr(self, name) for name in names})
        divides("PatchTST", width=self.width, heads=self.heads)
        if self.patch > self.length:
            raise ValueError(
                f"PatchTST: patch={self.patch} is longer than length={self.length}; use patches of "
                f"at most {self.length} steps"
            )
        series("PatchTST", x, self.length)

    def _tokens(self, z, train):
        """Patches [b f p patch] of z [b t f], embedded: [b f p d]."""
        z = jnp.swapaxes(z, 1, 2)  # [b f t]
        if self.padded:
            z = jnp.pad(z, ((0, 0), (0, 0), (0, self.stride)), mode="edge")
        count = (z.shape[2] - self.patch) // self.stride + 1
        patches = z[:, :, np.arange(count)[:, None] * self.stride + np.arange(self.patch)[None]]
        h = Dense(self.width, kernel_init=_uniform, name="embed")(patches)
        places = self.param("positions", _small_uniform, (count, self.width))
        h = h + places.astype(h.dtype)[None, None]
        return Dropout(self.dropout)(h, train=train)


class EncoderLayer(nn.Module):
    """One layer over the patches of each series, with the scores of the layer below.

    Args:
      width, heads, hidden: sizes.
      dropout, attention_dropout: shares.
      batch_norm, pre_norm: which norm, and where.

    Call: h [b f p d], scores [b f h p p] or None, mask [b] or None, train=False -> (h, scores,
    (weights [b f h p p], their sums [b f h p 1])).

    >>> layer, h = EncoderLayer(8, 2, 16), jnp.ones((2, 3, 5, 8))
    >>> y, scores, _ = layer.init_with_output(jax.random.key(0), h)[0]
    >>> y.shape, scores.shape
    ((2, 3, 5, 8), (2, 3, 2, 5, 5))

    Nie et al., arXiv:2211.14730, section 3.1; He et al., arXiv:2012.11747, figure 1.
    """

    width: int
    heads: int
    hidden: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    batch_norm: bool = True
    pre_norm: bool = False

    @nn.compact
    def __call__(self, h, scores=None, mask=None, *, train: bool = False):
        def norm(name, x):
            if self.batch_norm:
                return BatchNorm(name=name)(x, mask, train=train)
            return LayerNorm(name=name)(x)

        def dense(features, name, x):
            return Dense(features, kernel_init=_uniform, name=name)(x)

        x = norm("norm_attention", h) if self.pre_norm else h
        q, k, v = (self._heads(dense(self.width, name, x)) for name in ("query", "key", "value"))
        new = wide(jnp.matmul(q * (self.width // self.heads) ** -0.5, jnp.swapaxes(k, -1, -2)))
        scores = new if scores is None else new + scores  # [b f h p p]
        top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - top)  # divided by their sum after the product: 2 times faster
        total = weights.sum(-1, keepdims=True)
        kept = Dropout(self.attention_dropout)(weights, train=train)
        mixed = (jnp.matmul(kept, wide(v)) / total).astype(h.dtype)  # [b f h p d/h]
        mixed = dense(self.width, "out", jnp.swapaxes(mixed, 2, 3).reshape(h.shape))
        twice = 1 - (1 - self.dropout) ** 2  # the reference drops twice in a row
        h = h + Dropout(twice)(mixed, train=train)
        h = h if self.pre_norm else norm("norm_attention", h)
        x = norm("norm_ff", h) if self.pre_norm else h
        x = Dropout(self.dropout)(gelu(dense(self.hidden, "up", x)), train=train)
        h = h + Dropout(self.dropout)(dense(self.width, "down", x), train=train)
        return (h if self.pre_norm else norm("norm_ff", h)), scores, (weights, total)

    def _heads(self, x):
        """[b f p d] -> [b f h p d/h]."""
        return jnp.swapaxes(x.reshape(*x.shape[:-1], self.heads, -1), 2, 3)


class Head(nn.Module):
    """All tokens of a series to its future: [b f p d] -> [b f horizon].

    y_f = W^T vec(h_f) + b, shared by the series or (individual) one map for each.

    Args:
      horizon: steps to forecast.
      individual: a map for each series.

    Call: h [b f p d] -> [b f horizon].

    >>> Head(7).init_with_output(jax.random.key(0), jnp.ones((2, 3, 5, 4)))[0].shape
    (2, 3, 7)

    Nie et al., arXiv:2211.14730, section 3.1.
    """

    horizon: int
    individual: bool = False

    @nn.compact
    def __call__(self, h):
        flat = h.reshape(*h.shape[:2], -1)  # [b f p*d]
        y = OverTime(self.horizon, self.individual, name="map")(jnp.swapaxes(flat, 1, 2))
        return jnp.swapaxes(y, 1, 2)


def _small_uniform(key, shape, dtype=jnp.float32):
    """Uniform in -0.02..0.02, the reference's start of the positions."""
    return jax.random.uniform(key, shape, dtype, -0.02, 0.02)
