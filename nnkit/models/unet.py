"""U-Net: one class per pixel, with tiles for large pictures and weights for borders of cells.

Ronneberger et al., arXiv:1505.04597. Differs from it by default: padding that keeps the size
(`valid=True` for the paper's), and no dropout. On request: batch or group normalisation, and
resizing followed by a convolution (Odena et al. 2016, doi:10.23915/distill.00003), which leaves no
checkerboard.

    UNet.from_size   channels               padding   parameters (grey pictures, two classes)
    "paper"          64 128 256 512 1024    none      31.0 M, 572x572 pixels in, 388x388 out
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import positive, shares, sizes
from nnkit.layers.convolution import Conv, ConvTranspose
from nnkit.layers.drop import Dropout
from nnkit.layers.norms import BatchNorm, GroupNorm
from nnkit.layers.pooling import max_pool
from nnkit.models.fields import divides, pick
from nnkit.models.pictures import pictures

__all__ = ["SIZES", "UNet", "border_weights", "tiled"]

SIZES = {
    "paper": {"channels": (64, 128, 256, 512, 1024), "valid": True, "dropout": 0.5},
}
HE = nn.initializers.he_normal()


class UNet(nn.Module):
    """Pairs of 3x3 convolutions on the way down and up, joined across by concatenation.

    Down: two of (convolution, norm if any, relu), then 2x2 max-pooling. Up: twice the size, half
    the channels, [what came down at this size, cut to fit; this], two convolutions. Head: 1x1.

    Args:
      channels: channels of each level from the top to the bottom; one pooling between two.
      classes: classes per pixel.
      valid: convolutions without padding, as in the paper: the output is smaller than the picture.
      resize: grow by nearest neighbours and a 3x3 convolution in place of a transposed 2x2.
      norm: batch normalisation after each 3x3 convolution of a pair (then without bias).
      groups: group normalisation with so many groups instead.
      dropout: share dropped at the end of the way down (the two lowest levels) while training.

    Call: x [b h w c], train=False -> logits [b h w classes]; with intermediates=True also a dict
    {"down_0": [b h w channels[0]], ..., "up_0": [b h w channels[0]]}. Smaller with valid=True.

    Raises:
      TypeError: when first used, if a field is of another kind, or x holds integers.
      ValueError: if x is not [b h w c], its size does not survive the poolings (the message names
        the next sizes that do), norm and groups are both given, or groups do not divide channels.

    >>> model, x = UNet((4, 8), classes=3), jnp.ones((1, 16, 16, 1))
    >>> model.init_with_output(jax.random.key(0), x)[0].shape
    (1, 16, 16, 3)

    Ronneberger et al., arXiv:1505.04597, figure 1.
    """

    channels: Sequence[int] = (64, 128, 256, 512, 1024)
    classes: int = 2
    valid: bool = False
    resize: bool = False
    norm: bool = False
    groups: int | None = None
    dropout: float = 0.0

    @classmethod
    def from_size(cls, size: str, **changes) -> UNet:
        """The model of a published size.

        Args:
          size: "paper".
          **changes: other values for fields.

        Returns:
          A UNet for x [b h w c].

        Raises:
          KeyError: if there is no such size.

        >>> x = jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32)
        >>> y, _ = jax.eval_shape(UNet.from_size("paper").init_with_output, jax.random.key(0), x)
        >>> y.shape
        (1, 388, 388, 2)

        Ronneberger et al., arXiv:1505.04597, figure 1.
        """
        return cls(**(pick("UNet", SIZES, size) | changes))

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        x, deep, skips, inside = self._checked(x), len(self.channels) - 1, [], {}
        for i, width in enumerate(self.channels):
            x = self._pair(x, width, f"down_{i}", train)
            if i >= deep - 1:
                x = Dropout(self.dropout, name=f"dropout_{i}")(x, train=train)
            inside[f"down_{i}"] = x  # [b h/2^i w/2^i width]
            skips.append(x)
            if i < deep:
                x = max_pool(x, 2)
        for i in reversed(range(deep)):
            x = self._grown(x, self.channels[i], f"grow_{i}")
            x = jnp.concatenate([_centre(skips[i], x.shape[1:3]), x], -1)
            inside[f"up_{i}"] = x = self._pair(x, self.channels[i], f"up_{i}", train)
        y = Conv(self.classes, (1, 1), name="head")(x)  # [b h w classes]
        return (y, inside) if intermediates else y

    def _pair(self, x, width, name, train):
        """Two convolutions, each with its norm and a relu: [b h w d] -> [b h w width]."""
        for k in range(2):
            bias = not (self.norm or self.groups)
            x = self._conv(width, use_bias=bias, name=f"{name}_conv_{k}")(x)
            if self.norm:
                x = BatchNorm(name=f"{name}_norm_{k}")(x, train=train)
            elif self.groups:
                x = GroupNorm(self.groups, name=f"{name}_norm_{k}")(x)
            x = nn.relu(x)
        return x

    def _grown(self, x, width, name):
        """Twice the height and width: [b h w d] -> [b 2h 2w width]."""
        if not self.resize:
            return ConvTranspose(width, (2, 2), strides=2, kernel_init=HE, name=name)(x)
        b, h, w, d = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, d))
        return self._conv(width, name=name)(jnp.reshape(x, (b, 2 * h, 2 * w, d)))

    def _conv(self, width, **rest):
        padding = "VALID" if self.valid else "SAME"
        return Conv(width, (3, 3), padding=padding, kernel_init=HE, **rest)

    def _checked(self, x):
        sizes("UNet", many=True, channels=self.channels)
        sizes("UNet", classes=self.classes)
        shares("UNet", dropout=self.dropout)
        if self.groups is not None:
            sizes("UNet", groups=self.groups)
            for width in self.channels:
                divides("UNet", channels=width, groups=self.groups)
            if self.norm:
                raise ValueError(f"UNet: norm=True and groups={self.groups}, expected one of them")
        x = pictures("UNet", x)
        deep = len(self.channels) - 1
        fits = lambda n: _left(n, deep, self.valid, self.resize) is not None
        for n in x.shape[1:3]:
            if fits(n):
                continue
            up = next(m for m in range(n, n + 1000 * 2**deep) if fits(m))
            down = next((m for m in range(n, 0, -1) if fits(m)), None)
            less = f", or cut to {down}" if down else ""
            raise ValueError(
                f"UNet: x has shape {x.shape}: a side of {n} pixels does not stay even through "
                f"{deep} poolings{' without padding' if self.valid else ''}; pad to {up}{less}; "
                "`models.tiled` does so for any size"
            )
        return x


def tiled(apply: Callable, x, *, tile: int, overlap: int) -> jax.Array:
    """A network for pixels on a large picture, tile by tile; what is missing at edges is mirrored.

    Each tile is a window of tile x tile pixels, of which the middle tile - 2 overlap are kept. The
    result is that of the whole (mirrored) picture if overlap is at least the border that a pixel
    sees, and for a network with poolings, if overlap and tile - 2 overlap are divisible by
    2^poolings, so that the windows of pooling stay where they are.

    Args:
      apply: [b tile tile c] -> [b out out classes], jitted for speed; out = tile, or less for a
        network without padding, which must be centred.
      x: [b h w c] pictures.
      tile: height and width of the tiles.
      overlap: pixels around the middle, at least (tile - out) / 2.

    Returns:
      [b h w classes].

    Raises:
      ValueError: if x is not [b h w c], nothing is left of a tile, or overlap is less than what
        the network cuts off.

    >>> blur = lambda x: (x[:, 1:-1, 1:-1] + x[:, :-2, 1:-1] + x[:, 2:, 1:-1]) / 3
    >>> tiled(blur, jnp.ones((1, 100, 70, 1)), tile=34, overlap=1).shape
    (1, 100, 70, 1)

    Ronneberger et al., arXiv:1505.04597, figure 2.
    """
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}, expected [b h w c]; one picture: x[None]")
    sizes("tiled", tile=tile)
    step = tile - 2 * overlap
    if overlap < 0 or step < 1:
        raise ValueError(
            f"tile={tile} and overlap={overlap} leave {step} pixels of a tile, expected at least 1 "
            "and overlap >= 0; use a larger tile or less overlap"
        )
    h, w = x.shape[1:3]
    rows, columns = -(-h // step), -(-w // step)
    around = lambda n, size: (overlap, n * step - size + overlap)
    x = jnp.pad(x, ((0, 0), around(rows, h), around(columns, w), (0, 0)), mode="reflect")
    found = []
    for i in range(rows):
        starts = [j * step for j in range(columns)]
        windows = [x[:, i * step : i * step + tile, j : j + tile] for j in starts]
        kept = [_kept(apply(window), tile, overlap) for window in windows]
        found.append(jnp.concatenate(kept, 2))
    return jnp.concatenate(found, 1)[:, :h, :w]


def _kept(y, tile, overlap):
    """The middle of one tile's result [b out out classes]."""
    lost = tile - y.shape[1]
    if y.ndim != 4 or y.shape[1] != y.shape[2] or lost < 0 or lost % 2:
        raise ValueError(
            f"apply gives {y.shape} for a tile of {tile}x{tile} pixels, expected "
            "[b out out classes] with out = tile, or smaller by an even number"
        )
    if lost > 2 * overlap:
        raise ValueError(
            f"apply gives {y.shape[1]} of {tile} pixels, so it cuts off {lost // 2} on each side, "
            f"but overlap is {overlap}; use overlap={lost // 2}"
        )
    return _centre(y, (tile - 2 * overlap,) * 2)


def border_weights(labels, *, strength: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Weights of pixels for a loss that keeps touching cells apart.

    w(x) = w_c(x) + strength exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), with d1 and d2 the distances to
    the nearest and second nearest cell; w_c balances cells and background: each has half of the
    weight, and the mean of w_c is 1. The second term is for the background alone: it is there that
    a border is learned. Runs on the host, once per picture, not under `jit`.

    Args:
      labels: [h w] integers, 0 for background and one number per cell; or bools, True in cells
        (cells are then what is connected along rows and columns).
      strength: weight of the borders, w_0 = 10 in the paper.
      sigma: their width in pixels, 5 in the paper.

    Returns:
      [h w] float32 weights.

    Raises:
      ValueError: if labels is not [h w], or strength or sigma is not > 0.
      TypeError: if labels are neither integers nor bools.

    >>> labels = np.array([[1, 0, 2, 2, 0, 0, 0, 0]])
    >>> border_weights(labels, sigma=1.0).round(2)
    array([[1.33, 2.15, 1.33, 1.33, 0.8 , 0.8 , 0.8 , 0.8 ]], dtype=float32)

    Ronneberger et al., arXiv:1505.04597, eq. 2.
    """
    from scipy import ndimage

    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(
            f"labels has shape {labels.shape}, expected [h w], one picture at a time: "
            "np.stack([border_weights(y) for y in labels])"
        )
    if labels.dtype.kind not in "biu":
        raise TypeError(
            f"labels are {labels.dtype}, expected integers (0 background, one number per cell) or "
            "bools: labels > 0.5"
        )
    positive(strength=strength, sigma=sigma)
    if labels.dtype == bool:
        labels = np.asarray(ndimage.label(labels)[0])  # type: ignore[index]
    first = second = np.full(labels.shape, np.inf)
    for cell in np.unique(labels[labels != 0]):
        d = np.asarray(ndimage.distance_transform_edt(labels != cell))
        first, second = np.minimum(first, d), np.minimum(second, np.maximum(first, d))
    inside = labels != 0
    share = np.where(inside, inside.mean(), 1 - inside.mean())
    border = strength * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    balanced = 1 / (share * (1 + (0 < inside.mean() < 1)))
    return (balanced + np.where(inside, 0, border)).astype(np.float32)


def _centre(x, size):
    """The middle [b h w c] of a larger map."""
    a, b = (x.shape[1] - size[0]) // 2, (x.shape[2] - size[1]) // 2
    return x[:, a : a + size[0], b : b + size[1]]


def _left(n, deep, valid, resize):
    """Pixels that n become along one side, or None if a pooling would have to cut one off."""
    lost = 4 if valid else 0
    for _ in range(deep):
        n -= lost
        if n < 2 or n % 2:
            return None
        n //= 2
    n -= lost
    for _ in range(deep):
        n = 2 * n - lost - (2 if valid and resize else 0)
    return n if n >= 1 else None
