"""ConvNeXt: a convolutional network with the macro design of a vision transformer.

Liu et al., arXiv:2201.03545. Nothing differs from it but the start of the weights: normal with
standard deviation 0.02, where the paper's truncated normal cuts at -2 and 2, which is never.

    ConvNeXt.from_size   channels            blocks      drop   parameters
    "T"                  96 192 384 768      3 3 9 3     0.1     28.6 M
    "S"                  96 192 384 768      3 3 27 3    0.4     50.2 M
    "B"                  128 256 512 1024    3 3 27 3    0.5     88.6 M
    "L"                  192 384 768 1536    3 3 27 3    0.5    197.8 M

"drop" is the stochastic depth of the paper's training on ImageNet-1K, the default of the size.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu
from nnkit.layers.convolution import Conv
from nnkit.layers.dense import Dense
from nnkit.layers.drop import StochasticDepth
from nnkit.layers.norms import LayerNorm
from nnkit.models.fields import pick
from nnkit.models.pictures import pictures

__all__ = ["SIZES", "ConvNeXt"]

SIZES = {
    "T": {"depths": (3, 3, 9, 3), "channels": (96, 192, 384, 768), "drop": 0.1},
    "S": {"depths": (3, 3, 27, 3), "channels": (96, 192, 384, 768), "drop": 0.4},
    "B": {"depths": (3, 3, 27, 3), "channels": (128, 256, 512, 1024), "drop": 0.5},
    "L": {"depths": (3, 3, 27, 3), "channels": (192, 384, 768, 1536), "drop": 0.5},
}
NORMAL = nn.initializers.normal(0.02)
EPSILON = 1e-6


class ConvNeXt(nn.Module):
    """Patches of 4x4 pixels, stages of depthwise 7x7 blocks, the mean, layer norm, linear head.

    y = x + drop(g * W2 gelu(W1 LN(conv7(x)))), conv7 depthwise, W1 four times wider, g [d] learned
    (LayerScale). Between stages: LN, then a 2x2 convolution with stride 2.

    Args:
      depths: blocks of each stage.
      channels: channels of each stage.
      classes: number of outputs.
      drop: stochastic depth, per example while training: 0 for the first block, linearly up to
        this share for the last.
      scale: start of LayerScale.

    Call: x [b h w c], train=False -> [b classes]; with intermediates=True also a dict
    {"stem": [b h/4 w/4 channels[0]], "block_0_0": ..., "pooled": [b d]}, block_STAGE_BLOCK. A rest
    of h or w after division is left out, as in the paper's code.

    Raises:
      TypeError: when first used, if a field is of another kind, or x holds integers.
      ValueError: if x is not [b h w c] or too small, depths and channels differ in length, a size
        is not >= 1, or drop is not in [0, 1).

    >>> model = ConvNeXt.from_size("T")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    >>> sum(p.size for p in jax.tree.leaves(params))
    28589128

    Liu et al., arXiv:2201.03545, figure 4 and table 9.
    """

    depths: Sequence[int]
    channels: Sequence[int]
    classes: int = 1000
    drop: float = 0.0
    scale: float = 1e-6

    @classmethod
    def from_size(cls, size: str, **changes) -> ConvNeXt:
        """The model of a published size.

        Args:
          size: "T", "S", "B" or "L".
          **changes: other values for fields.

        Returns:
          A ConvNeXt for x [b h w c].

        Raises:
          KeyError: if there is no such size.

        >>> ConvNeXt.from_size("T", classes=10).channels
        (96, 192, 384, 768)

        Liu et al., arXiv:2201.03545, section 3.
        """
        return cls(**(pick("ConvNeXt", SIZES, size) | changes))

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        sizes("ConvNeXt", many=True, depths=self.depths, channels=self.channels)
        sizes("ConvNeXt", classes=self.classes)
        shares("ConvNeXt", drop=self.drop)
        if len(self.depths) != len(self.channels):
            raise ValueError(
                f"ConvNeXt: depths has {len(self.depths)} stages and channels "
                f"{len(self.channels)}, expected as many: one number of blocks and one of channels "
                "per stage"
            )
        x = pictures("ConvNeXt", x, least=4 * 2 ** (len(self.depths) - 1))
        x = _patches(self.channels[0], 4, name="stem")(x)
        x = LayerNorm(EPSILON, name="stem_norm")(x)
        inside, drops = {"stem": x}, iter(np.linspace(0, self.drop, sum(self.depths)).tolist())
        for i, (depth, width) in enumerate(zip(self.depths, self.channels)):
            if i:
                x = LayerNorm(EPSILON, name=f"down_norm_{i}")(x)
                x = _patches(width, 2, name=f"down_{i}")(x)  # [b h/2 w/2 width]
            for j in range(depth):
                name = f"block_{i}_{j}"
                x = _Block(width, next(drops), self.scale, name=name)(x, train=train)
                inside[name] = x
        inside["pooled"] = x = LayerNorm(EPSILON, name="norm")(x.mean((1, 2)))  # [b d]
        y = Dense(self.classes, kernel_init=NORMAL, name="head")(x)
        return (y, inside) if intermediates else y


class _Block(nn.Module):
    """x + drop(g * W2 gelu(W1 LN(conv7(x)))), [b h w d] -> [b h w d]."""

    width: int
    drop: float
    scale: float

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        h = Conv(
            self.width,
            (7, 7),
            padding=3,
            feature_group_count=self.width,
            kernel_init=NORMAL,
            name="depthwise",
        )(x)
        h = LayerNorm(EPSILON, name="norm")(h)
        h = gelu(Dense(4 * self.width, kernel_init=NORMAL, name="up")(h))
        h = Dense(self.width, kernel_init=NORMAL, name="down")(h)
        start = nn.initializers.constant(self.scale)
        g = self.param("layer_scale", start, (self.width,), jnp.float32)
        h = h * jnp.reshape(g, (1, 1, 1, -1)).astype(h.dtype)
        return x + StochasticDepth(self.drop, name="drop")(h, train=train)


def _patches(width, size, *, name):
    """A convolution whose windows do not overlap."""
    rest = {"padding": "VALID", "kernel_init": NORMAL, "name": name}
    return Conv(width, (size, size), strides=size, **rest)
