"""Temporal convolutional networks: dilated causal convolutions instead of recurrence.

Bai et al., arXiv:1803.01271. Differs from it: kernels start from a normal of variance 2 / fan-in
(He et al., arXiv:1502.01852), padding counts for nothing wherever it stands, and dropout takes
whole channels, as the paper says and its code does not.

    TCN.from_size("adding")        T = 600, receptive field 3,571: 70,369 weights on [b t 2]
    TCN.from_size("copying")       T = 1000, ten symbols: 12,530 weights on [b t 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import dims, shares, sizes
from nnkit.layers.convolution import Conv
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.layers.weight_norms import WeightNorm
from nnkit.models.fields import pick
from nnkit.models.tokens import fits

__all__ = ["SIZES", "TCN", "receptive_field"]

SIZES = {
    "adding": {"classes": 1, "channels": (24,) * 8, "kernel": 8, "pool": "last"},
    "copying": {"classes": 10, "channels": (10,) * 8, "kernel": 8, "pool": "each"},
}
POOLS = ("last", "each")


def receptive_field(kernel: int, levels: int) -> int:
    """How many steps an output of a TCN sees, its own included: 1 + 2 (k - 1) (2^n - 1).

    Args:
      kernel: k, steps that one convolution sees.
      levels: n, blocks of two convolutions, of dilation 1, 2, 4, ...

    Returns:
      The number of steps.

    Raises:
      TypeError: if one is no integer.
      ValueError: if one is not >= 1.

    >>> receptive_field(kernel=8, levels=8)
    3571

    Bai et al., arXiv:1803.01271, section 3.2, with two convolutions per block.
    """
    sizes("receptive_field", kernel=kernel, levels=levels)
    return 1 + 2 * (kernel - 1) * (2**levels - 1)


class TCN(nn.Module):
    """Residual blocks of causal convolutions whose dilation doubles from block to block.

    h_i = relu(h_(i-1) + f(f(h_(i-1)))), f = dropout(relu(conv_dilation 2^i)) with normalised
    weights; a 1x1 convolution on the way past where the channels change. An output sees no later
    step, and `receptive_field(kernel, len(channels))` steps in all: choose it >= the length.
    Parameters: embed/embedding for tokens; block_i/conv_0 and conv_1 (kernel is v, scale is g),
    block_i/past; head.

    Args:
      classes: number of outputs; 1 for a number.
      channels: of each block.
      kernel: steps that one convolution sees.
      vocabulary: number of token ids; None for real-valued inputs.
      pool: "last" gives one output per sequence, from its last real step; "each" one per step.
      dropout: share of whole channels set to 0 after each convolution, while training.

    Call: x [b t d] floats, or [b t] token ids with a vocabulary; mask=None [b t], True for real
    steps; train=False -> [b classes], or [b t classes] with pool="each". With intermediates=True
    also {"block_0": [b t channels[0]], ...}. A sequence without a real step has the summary 0.

    Raises:
      TypeError: when first used, if a field is of another kind, or x is not floats (not integers,
        with a vocabulary).
      ValueError: if a size is not >= 1, the dropout not in [0, 1), pool neither of the two, shapes
        do not fit, or known ids are outside the vocabulary.

    >>> model, x = TCN(classes=3, channels=(8, 8), kernel=3), jnp.ones((2, 5, 4))
    >>> y, inside = model.init_with_output(jax.random.key(0), x, intermediates=True)[0]
    >>> y.shape, inside["block_1"].shape
    ((2, 3), (2, 5, 8))

    Bai et al., arXiv:1803.01271, section 3.
    """

    classes: int
    channels: Sequence[int] = (24,) * 8
    kernel: int = 8
    vocabulary: int | None = None
    pool: str = "last"
    dropout: float = 0.0

    @classmethod
    def from_size(cls, size: str, **changes) -> TCN:
        """The published model of that name, with changes.

        Args:
          size: a name in `SIZES`.
          **changes: fields.

        Returns:
          A `TCN`.

        Raises:
          KeyError: if there is no such size.

        >>> TCN.from_size("adding").kernel
        8

        Bai et al., arXiv:1803.01271, section 5.2 and their code.
        """
        return cls(**pick("TCN", SIZES, size) | changes)

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False, intermediates: bool = False):
        sizes("TCN", classes=self.classes, kernel=self.kernel)
        sizes("TCN", many=True, channels=self.channels)
        shares("TCN", dropout=self.dropout)
        if self.pool not in POOLS:
            raise ValueError(f"TCN: pool is {self.pool!r}, expected one of {', '.join(POOLS)}")
        if self.vocabulary is not None:
            sizes("TCN", vocabulary=self.vocabulary)
            fits("TCN", x, mask=mask)
            x = Embed(self.vocabulary, self.channels[0], name="embed")(x)
        elif jnp.ndim(x) != 3 or not x.shape[1]:
            raise ValueError(
                f"TCN: x has shape {jnp.shape(x)}, expected [b t d] with at least one step; one "
                "number per step is x[..., None], and token ids need vocabulary="
            )
        if mask is not None:
            dims("b t d, b t", x=x, mask=mask)
            mask = jnp.asarray(mask).astype(bool)
        h, inside = x, {}
        for i, width in enumerate(self.channels):
            h = _Block(width, self.kernel, 2**i, self.dropout, name=f"block_{i}")(h, mask, train)
            inside[f"block_{i}"] = h
        y = Dense(self.classes, name="head")(_last(h, mask) if self.pool == "last" else h)
        return (y, inside) if intermediates else y


class _Block(nn.Module):
    """Two causal convolutions and the way past them: [b t d] -> [b t width]."""

    width: int
    kernel: int
    dilation: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, train: bool):
        h, drop = x, Dropout(self.dropout, broadcast_dims=(1,))
        for i in range(2):
            conv = Conv(
                self.width,
                (self.kernel,),
                padding="CAUSAL",
                kernel_dilation=self.dilation,
                kernel_init=nn.initializers.he_normal(),
            )
            h = WeightNorm(conv, name=f"conv_{i}")(_zeroed(h, mask))
            h = drop(nn.relu(h), train=train)
        past = x if x.shape[-1] == self.width else Dense(self.width, name="past")(x)
        return nn.relu(h + past)


def _zeroed(h, mask):
    """h [b t d] with 0 at padded steps, as before the first one."""
    return h if mask is None else jnp.where(mask[..., None], h, 0)


def _last(h, mask):
    """h [b f] of the last real step; 0 if there is none."""
    if mask is None:
        return h[:, -1]
    later = jnp.cumsum(mask[:, ::-1].astype(jnp.int32), 1)[:, ::-1]  # real steps from here on
    last = mask & (later == 1)
    return jnp.where(last[..., None], h, 0).sum(1)
