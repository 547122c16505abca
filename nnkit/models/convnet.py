"""A small convolutional network: blocks of 3x3 convolutions and max-pooling, one hidden layer.

LeCun et al. 1998, doi:10.1109/5.726791 (LeNet-5). Differs from it: ReLU, max-pooling, 3x3
convolutions with SAME padding, batch normalisation on request (Ioffe & Szegedy, arXiv:1502.03167),
dropout before the head.

    ConvNet((32, 64), hidden=256)      MNIST, 28x28: 824,458 weights
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes
from nnkit.layers.convolution import Conv
from nnkit.layers.dense import Dense
from nnkit.layers.norms import BatchNorm
from nnkit.layers.pooling import max_pool
from nnkit.models.pictures import pictures

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Convolutions, each followed by ReLU and a 2x2 max-pooling, then a hidden layer and a head.

    Args:
      channels: channels of each block; each block halves height and width.
      hidden: width of the hidden layer.
      classes: number of outputs.
      dropout: share of the hidden layer's inputs set to 0 while training.
      norm: batch normalisation after each convolution (then the carry has batch statistics).

    Call: x [b h w c], train=False -> [b classes]; with intermediates=True also a dict
    {"block_0": [b h/2 w/2 channels[0]], ..., "hidden": [b hidden]}.

    Raises:
      TypeError: when first used, if channels are no list of integers, or a field is of another
        kind.
      ValueError: if x is not [b h w c], or smaller than the pooling needs; if a size is not >= 1,
        or the dropout is not in [0, 1).

    >>> model, x = ConvNet(channels=(4, 8), hidden=16), jnp.ones((2, 28, 28, 1))
    >>> y, inside = model.init_with_output(jax.random.key(0), x, intermediates=True)[0]
    >>> y.shape, inside["block_1"].shape
    ((2, 10), (2, 7, 7, 8))

    LeCun et al. 1998, doi:10.1109/5.726791.
    """

    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    classes: int = 10
    dropout: float = 0.5
    norm: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        sizes("ConvNet", many=True, channels=self.channels)
        sizes("ConvNet", hidden=self.hidden, classes=self.classes)
        shares("ConvNet", dropout=self.dropout)
        x = pictures("ConvNet", x, least=2 ** len(self.channels))
        inside = {}
        for i, width in enumerate(self.channels):
            x = Conv(width, (3, 3), kernel_init=nn.initializers.he_normal(), name=f"conv_{i}")(x)
            if self.norm:
                x = BatchNorm(unbiased=False, name=f"norm_{i}")(x, train=train)
            x = nn.relu(max_pool(x, 2))  # [b h/2 w/2 width]
            inside[f"block_{i}"] = x
        x = jnp.reshape(x, (x.shape[0], -1))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(Dense(self.hidden, kernel_init=nn.initializers.he_normal(), name="dense")(x))
        inside["hidden"] = x
        y = Dense(self.classes, name="head")(nn.Dropout(self.dropout, deterministic=not train)(x))
        return (y, inside) if intermediates else y
