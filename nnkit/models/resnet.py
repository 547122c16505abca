"""Residual networks for pictures: ResNet (CIFAR and ImageNet) and the wide, pre-activated one.

He et al., arXiv:1512.03385; Zagoruyko & Komodakis, arXiv:1605.07146. What is from elsewhere: the
stride of a bottleneck is in its 3x3 convolution ("v1.5", as in torchvision), weights start normal
with variance 2 / fan-out (He et al., arXiv:1502.01852), running variances are unbiased as in torch.

    ResNet.from_size   stages      blocks     classes  parameters
    "20" ... "110"     16 32 64    3, 5 .. 18   10     0.27, 0.46, 0.66, 0.85, 1.7 M (CIFAR)
    "18"               64 .. 512   2 2 2 2    1000     11.7 M
    "34"               64 .. 512   3 4 6 3    1000     21.8 M
    "50"  bottleneck   64 .. 512   3 4 6 3    1000     25.6 M
    "101" bottleneck   64 .. 512   3 4 23 3   1000     44.5 M
    "152" bottleneck   64 .. 512   3 8 36 3   1000     60.2 M

    WideResNet.from_size   classes  parameters
    "16-4" "16-8"            10     2.7 M, 11.0 M
    "22-8"                   10     17.2 M
    "28-10" "28-12"          10     36.5 M, 52.5 M
    "40-1" "40-2" "40-4"     10     0.6 M, 2.2 M, 8.9 M
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes
from nnkit.layers.convolution import Conv
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.norms import BatchNorm
from nnkit.layers.pooling import max_pool
from nnkit.models.fields import pick
from nnkit.models.pictures import pictures

__all__ = ["SIZES", "WIDE_SIZES", "ResNet", "WideResNet"]


def _cifar(n):
    small = {"small": True, "project": False, "classes": 10}
    return {"depths": (n, n, n), "channels": (16, 32, 64), **small}


def _imagenet(*depths, bottleneck=False):
    return {"depths": depths, "channels": (64, 128, 256, 512), "bottleneck": bottleneck}


SIZES = {
    "20": _cifar(3),
    "32": _cifar(5),
    "44": _cifar(7),
    "56": _cifar(9),
    "110": _cifar(18),
    "18": _imagenet(2, 2, 2, 2),
    "34": _imagenet(3, 4, 6, 3),
    "50": _imagenet(3, 4, 6, 3, bottleneck=True),
    "101": _imagenet(3, 4, 23, 3, bottleneck=True),
    "152": _imagenet(3, 8, 36, 3, bottleneck=True),
}
WIDE_SIZES = {
    f"{depth}-{width}": {"depth": depth, "width": width}
    for depth, width in [(16, 4), (16, 8), (22, 8), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4)]
}
HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """Stages of residual blocks, each halving height and width, then the mean and a linear head.

    Basic block: y = relu(s(x) + BN(conv3(relu(BN(conv3(x)))))); bottleneck: conv1, conv3, conv1
    with four times as many channels at the end. s is the identity where the shapes agree, else
    option B, BN(conv1(x)), or option A, every second pixel and channels of zeros after the others.

    Args:
      depths: blocks of each stage.
      channels: channels of the 3x3 convolutions of each stage.
      classes: number of outputs.
      bottleneck: blocks of three convolutions.
      small: stem of a 3x3 convolution (CIFAR) in place of 7x7 with stride 2 and max-pooling.
      project: shortcuts by projection (option B); False for option A, without parameters.
      zero_init: the last scale of each block starts at 0, so that each block starts as its
        shortcut (Goyal et al., arXiv:1706.02677, section 5.1).

    Call: x [b h w c], train=False -> [b classes]; with intermediates=True also a dict
    {"stem": [b h' w' channels[0]], "block_0_0": ..., "pooled": [b d]}, block_STAGE_BLOCK.

    Raises:
      TypeError: when first used, if a field is of another kind, or x holds integers.
      ValueError: if x is not [b h w c] or too small, depths and channels differ in length, a size
        is not >= 1, or option A would have to drop channels.

    >>> model = ResNet.from_size("20")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    >>> sum(p.size for p in jax.tree.leaves(params))
    269722

    He et al., arXiv:1512.03385, table 1 and section 4.2.
    """

    depths: Sequence[int]
    channels: Sequence[int]
    classes: int = 1000
    bottleneck: bool = False
    small: bool = False
    project: bool = True
    zero_init: bool = False

    @classmethod
    def from_size(cls, size: str, **changes) -> ResNet:
        """The model of a published size.

        Args:
          size: "20", "32", "44", "56", "110" (CIFAR) or "18", "34", "50", "101", "152".
          **changes: other values for fields.

        Returns:
          A ResNet for x [b h w c].

        Raises:
          KeyError: if there is no such size.

        >>> ResNet.from_size("18", classes=10, small=True).depths
        (2, 2, 2, 2)

        He et al., arXiv:1512.03385, table 1 and section 4.2.
        """
        return cls(**(pick("ResNet", SIZES, size) | changes))

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        sizes("ResNet", many=True, depths=self.depths, channels=self.channels)
        sizes("ResNet", classes=self.classes)
        if len(self.depths) != len(self.channels):
            raise ValueError(
                f"ResNet: depths has {len(self.depths)} stages and channels {len(self.channels)}, "
                "expected as many: one number of blocks and one of channels per stage"
            )
        shrink = (1 if self.small else 4) * 2 ** (len(self.depths) - 1)
        x = pictures("ResNet", x, least=shrink)
        size, stride = (3, 1) if self.small else (7, 2)
        x = _conv(self.channels[0], size, stride, name="stem")(x)
        x = nn.relu(BatchNorm(name="stem_norm")(x, train=train))
        if not self.small:
            x = max_pool(x, 3, strides=2, padding=1)
        inside, block = {"stem": x}, _Bottleneck if self.bottleneck else _Basic
        for i, (depth, width) in enumerate(zip(self.depths, self.channels)):
            for j in range(depth):
                stride, name = 2 if i and not j else 1, f"block_{i}_{j}"
                x = block(width, stride, self.project, self.zero_init, name=name)(x, train=train)
                inside[name] = x  # [b h/2^i w/2^i width or 4 width]
        inside["pooled"] = x = x.mean((1, 2))  # [b d]
        y = Dense(self.classes, name="head")(x)
        return (y, inside) if intermediates else y


class _Basic(nn.Module):
    """relu(s(x) + BN(conv3(relu(BN(conv3(x)))))): [b h w d] -> [b h/stride w/stride width]."""

    width: int
    stride: int = 1
    project: bool = True
    zero_init: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        h = _conv(self.width, 3, self.stride, name="conv_0")(x)
        h = nn.relu(BatchNorm(name="norm_0")(h, train=train))
        h = _conv(self.width, 3, name="conv_1")(h)
        h = BatchNorm(scale_init=_last(self.zero_init), name="norm_1")(h, train=train)
        return nn.relu(h + _shortcut(x, self.width, self.stride, self.project, train))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1: [b h w d] -> [b h/stride w/stride 4 width]."""

    width: int
    stride: int = 1
    project: bool = True
    zero_init: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        h = _conv(self.width, 1, name="conv_0")(x)
        h = nn.relu(BatchNorm(name="norm_0")(h, train=train))
        h = _conv(self.width, 3, self.stride, name="conv_1")(h)
        h = nn.relu(BatchNorm(name="norm_1")(h, train=train))
        h = _conv(4 * self.width, 1, name="conv_2")(h)
        h = BatchNorm(scale_init=_last(self.zero_init), name="norm_2")(h, train=train)
        return nn.relu(h + _shortcut(x, 4 * self.width, self.stride, self.project, train))


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activated blocks, `width` times wider.

    a = relu(BN(x)); y = s + conv3(dropout(relu(BN(conv3(a))))), with s = x where the channels
    agree, else conv1(a); then relu(BN), the mean over the picture, and a linear head.

    Args:
      depth: 6 n + 4 layers, n blocks per stage.
      width: factor on the channels.
      classes: number of outputs.
      dropout: share dropped between the convolutions of a block while training; 0.3 in the paper.
      channels: channels of the stages before they are widened; the first is also the stem's.

    Call: x [b h w c], train=False -> [b classes]; with intermediates=True also a dict
    {"stem": [b h w channels[0]], "block_0_0": ..., "pooled": [b d]}, block_STAGE_BLOCK.

    Raises:
      TypeError: when first used, if a field is of another kind, or x holds integers.
      ValueError: if x is not [b h w c] or too small, depth is not 6 n + 4, a size is not >= 1, or
        dropout is not in [0, 1).

    >>> model = WideResNet(depth=28, width=10)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    >>> sum(p.size for p in jax.tree.leaves(params))
    36479194

    Zagoruyko & Komodakis, arXiv:1605.07146, table 1.
    """

    depth: int = 28
    width: int = 10
    classes: int = 10
    dropout: float = 0.0
    channels: Sequence[int] = (16, 32, 64)

    @classmethod
    def from_size(cls, size: str, **changes) -> WideResNet:
        """The model of a published size.

        Args:
          size: "DEPTH-WIDTH", such as "28-10"; see the table of the module.
          **changes: other values for fields.

        Returns:
          A WideResNet for x [b h w c].

        Raises:
          KeyError: if there is no such size.

        >>> WideResNet.from_size("40-4", dropout=0.3).width
        4

        Zagoruyko & Komodakis, arXiv:1605.07146, table 4.
        """
        return cls(**(pick("WideResNet", WIDE_SIZES, size) | changes))

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        sizes("WideResNet", depth=self.depth, width=self.width, classes=self.classes)
        sizes("WideResNet", many=True, channels=self.channels)
        shares("WideResNet", dropout=self.dropout)
        n, rest = divmod(self.depth - 4, 6)
        if rest or n < 1:
            near = f"{6 * n + 4} or {6 * n + 10}" if n >= 1 else "10"
            raise ValueError(
                f"WideResNet: depth is {self.depth}, expected 6 n + 4, with n blocks in each of "
                f"three stages; use {near}"
            )
        x = pictures("WideResNet", x, least=2 ** (len(self.channels) - 1))
        inside = {"stem": _conv(self.channels[0], 3, name="stem")(x)}
        x = inside["stem"]
        for i, c in enumerate(self.channels):
            for j in range(n):
                stride, name = 2 if i and not j else 1, f"block_{i}_{j}"
                x = _Wide(c * self.width, stride, self.dropout, name=name)(x, train=train)
                inside[name] = x  # [b h/2^i w/2^i c width]
        x = nn.relu(BatchNorm(name="norm")(x, train=train))
        inside["pooled"] = x = x.mean((1, 2))  # [b d]
        y = Dense(self.classes, name="head")(x)
        return (y, inside) if intermediates else y


class _Wide(nn.Module):
    """s + conv3(dropout(relu(BN(conv3(relu(BN(x))))))): [b h w d] -> [b h/s w/s width]."""

    width: int
    stride: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        a = nn.relu(BatchNorm(name="norm_0")(x, train=train))
        if x.shape[-1] != self.width or self.stride != 1:
            x = _conv(self.width, 1, self.stride, name="shortcut")(a)
        h = _conv(self.width, 3, self.stride, name="conv_0")(a)
        h = nn.relu(BatchNorm(name="norm_1")(h, train=train))
        h = Dropout(self.dropout, name="dropout")(h, train=train)
        return x + _conv(self.width, 3, name="conv_1")(h)


def _conv(width, size, stride=1, *, name):
    """A convolution with torch's padding, the same on both sides, and no bias."""
    rest = {"use_bias": False, "kernel_init": HE, "name": name}
    return Conv(width, (size, size), strides=stride, padding=size // 2, **rest)


def _last(zero_init):
    return nn.initializers.zeros if zero_init else nn.initializers.ones


def _shortcut(x, width, stride, project, train):
    """x [b h w d] in the shape [b h/stride w/stride width] of a block's outputs."""
    more = width - x.shape[-1]
    if more == 0 and stride == 1:
        return x
    if project:
        x = _conv(width, 1, stride, name="shortcut")(x)
        return BatchNorm(name="shortcut_norm")(x, train=train)
    if more < 0:
        raise ValueError(
            f"ResNet: a stage of {width} channels follows one of {x.shape[-1]}, but option A only "
            "adds channels; use project=True, or channels that grow"
        )
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
