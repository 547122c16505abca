"""The Vision Transformer: an image as a sequence of patches.

Dosovitskiy et al., arXiv:2010.11929. Differs from it: no dropout but stochastic depth on request
(Touvron et al., arXiv:2012.12877); fixed 2-D positions and the mean over patches on request (Beyer
et al., arXiv:2205.01580).

    size        width  depth  heads  hidden  patch    parameters (224 x 224, 1000 classes)
    Ti/16         192     12      3     768     16      5,717,416
    S/16          384     12      6    1536     16     22,050,664
    B/16          768     12     12    3072     16     86,567,656
    B/32          768     12     12    3072     32     88,224,232
    L/16         1024     24     16    4096     16    304,326,632
    H/14         1280     32     16    5120     14    632,045,800
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu
from nnkit.layers.attention import Attention
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout, StochasticDepth
from nnkit.layers.feedforward import FeedForward
from nnkit.layers.norms import LayerNorm
from nnkit.layers.positions import sinusoidal_2d
from nnkit.models.fields import divides, pick
from nnkit.models.remat import kept, known

__all__ = ["ViT"]

_COLUMNS = ("width", "depth", "heads", "hidden", "patch")
_ROWS = {
    "Ti/16": (192, 12, 3, 768, 16),
    "S/16": (384, 12, 6, 1536, 16),
    "B/16": (768, 12, 12, 3072, 16),
    "B/32": (768, 12, 12, 3072, 32),
    "L/16": (1024, 24, 16, 4096, 16),
    "H/14": (1280, 32, 16, 5120, 14),
}
SIZES = {name: dict(zip(_COLUMNS, row)) for name, row in _ROWS.items()}


class ViT(nn.Module):
    """Patches as tokens, pre-norm blocks, and a head on the class token or the mean.

    x_0 = [cls; patches E] + P; x_(l+1) = MLP(norm(x')) + x' with x' = MSA(norm(x_l)) + x_l;
    y = head(norm(x_L)[cls]).

    Args:
      classes: number of outputs.
      width, depth, heads: size of a token, number of blocks, of heads.
      hidden: width inside the MLP; None is 4 width.
      patch: side of a square patch.
      image: side of the images, or (h, w).
      channels: channels of the images.
      cls: a class token that the head reads; False: the mean over patches.
      learned: learned positions; False: fixed sines and cosines of row and column.
      activation: of the MLP.
      dropout: share of features set to 0 after positions, attention and MLP while training.
      drop_path: share of examples that skip the last block; it grows linearly from 0 at the first.
      epsilon: of the norms.
      remat: None keeps all activations of a block for the backward pass; "nothing", "dots",
        "dots_with_no_batch_dims" or "everything" says what is kept, the rest is computed again:
        see `models.remat`.

    Call: x [b h w c], train=False -> [b classes]; with intermediates=True also a dict
    {"embedded": [b n width], "block_0": ..., "attention_0": [b heads n n] probabilities, ...,
    "final": [b n width]}, with n = patches in reading order, after the class token if there is one.

    Raises:
      TypeError: when first used, if a size is no integer.
      ValueError: if x is not [b h w c] of the given size, patches do not divide the image, heads
        do not divide the width, or a share is not in [0, 1).

    >>> model = ViT(classes=10, width=16, depth=2, heads=2, patch=4, image=8)
    >>> y, inside = model.init_with_output(
    ...     jax.random.key(0), jnp.ones((2, 8, 8, 3)), intermediates=True)[0]
    >>> y.shape, inside["final"].shape
    ((2, 10), (2, 5, 16))

    Dosovitskiy et al., arXiv:2010.11929, eq. 1 to 4.
    """

    classes: int
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int | None = None
    patch: int = 16
    image: int | tuple[int, int] = 224
    channels: int = 3
    cls: bool = True
    learned: bool = True
    activation: Callable = gelu
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-6
    remat: str | Callable | None = None

    @classmethod
    def from_size(cls, size: str, **changes) -> ViT:
        """A published size with changes: from_size("S/16", classes=10, image=32, patch=4).

        Args:
          size: "Ti/16", "S/16", "B/16", "B/32", "L/16" or "H/14".
          **changes: fields; 1000 classes if not said.

        Returns:
          The model.

        Raises:
          KeyError: if there is no such size.

        >>> ViT.from_size("S/16", classes=10).width
        384

        Dosovitskiy et al., arXiv:2010.11929, table 1; Touvron et al., arXiv:2012.12877, table 1.
        """
        fields: dict[str, Any] = {"classes": 1000} | pick("ViT", SIZES, size) | changes
        return cls(**fields)

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        rows, columns = self._grid(x)
        x = Dense(self.width, kernel_init=nn.initializers.lecun_normal(), name="patches")(
            _patches(x, self.patch)
        )  # [b n d]
        x = self._placed(x, rows, columns)
        x = Dropout(self.dropout)(x, train=train)
        inside = {"embedded": x}
        options = {"train": train, "intermediates": intermediates}
        run = kept(None if intermediates else self.remat, lambda block, x: block(x, **options))
        for i in range(self.depth):
            block = Block(
                heads=self.heads,
                hidden=self.hidden or 4 * self.width,
                activation=self.activation,
                dropout=self.dropout,
                drop_path=self.drop_path * i / max(self.depth - 1, 1),
                epsilon=self.epsilon,
                name=f"block_{i}",
            )
            x, scores = run(block, x)
            inside |= {f"block_{i}": x, f"attention_{i}": scores}
        x = LayerNorm(epsilon=self.epsilon, name="norm")(x)
        inside["final"] = x
        x = x[:, 0] if self.cls else x.mean(1)  # [b d]
        y = Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)  # [b c]
        return (y, inside) if intermediates else y

    def _placed(self, x, rows, columns):
        """Tokens with their positions, [b n d] or [b 1+n d] with a class token."""
        b, n, d = x.shape
        if self.cls:
            first = self.param("cls", nn.initializers.zeros, (1, 1, d)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), x], 1)
        if self.learned:
            init = nn.initializers.normal(0.02)
            places = self.param("positions", init, (1, n + self.cls, d))
        else:
            places = sinusoidal_2d(rows, columns, d)
            places = jnp.pad(places, ((int(self.cls), 0), (0, 0)))[None]
        return x + places.astype(x.dtype)

    def _grid(self, x) -> tuple[int, int]:
        """Rows and columns of patches, after all checks."""
        named = {n: getattr(self, n) for n in ("classes", "width", "depth", "heads", "patch")}
        sizes("ViT", **named, channels=self.channels)
        shares("ViT", dropout=self.dropout, drop_path=self.drop_path)
        known("ViT", self.remat)
        divides("ViT", width=self.width, heads=self.heads)
        sides = self.image if isinstance(self.image, tuple | list) else (self.image, self.image)
        sizes("ViT", many=True, image=sides)
        h, w = sides
        for name, side in (("height", h), ("width", w)):
            if side % self.patch:
                near = [p for p in range(1, side + 1) if side % p == 0]
                raise ValueError(
                    f"ViT: the {name} of image={self.image} is not divisible by patch={self.patch};"
                    f" use a patch of {', '.join(map(str, near[-5:]))}, or resize the images"
                )
        want = (h, w, self.channels)
        if x.ndim != 4 or x.shape[1:] != want:
            hint = "; resize the images, or say image=(h, w) and channels=c of the model"
            if x.ndim == 4 and x.shape[1:] == (self.channels, h, w):
                hint = ": channels come last; write x.transpose(0, 2, 3, 1)"
            elif x.ndim == 3:
                hint = (
                    "; one image needs a batch axis: x[None]"
                    if x.shape == want
                    else ("; grey images need an axis of channels: x[..., None]")
                )
            raise ValueError(
                f"x has shape {x.shape}, expected [b {h} {w} {self.channels}] from image="
                f"{self.image} and channels={self.channels} of the ViT{hint}"
            )
        return h // self.patch, w // self.patch


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    heads: int
    hidden: int
    activation: Callable
    dropout: float
    drop_path: float
    epsilon: float

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        h = LayerNorm(epsilon=self.epsilon, name="attention_norm")(x)
        h = Attention(heads=self.heads, name="attention")(
            h, train=train, probabilities=intermediates
        )
        h, scores = h if intermediates else (h, None)
        h = Dropout(self.dropout)(h, train=train)
        x = x + StochasticDepth(self.drop_path)(h, train=train)
        h = LayerNorm(epsilon=self.epsilon, name="mlp_norm")(x)
        h = FeedForward(self.hidden, activation=self.activation, name="mlp")(h, train=train)
        h = Dropout(self.dropout)(h, train=train)
        return x + StochasticDepth(self.drop_path)(h, train=train), scores


def _patches(x, p):
    """[b h w c] -> [b h/p * w/p p*p*c]: patches in reading order, pixels and channels inside."""
    b, h, w, c = x.shape
    x = jnp.reshape(x, (b, h // p, p, w // p, p, c)).transpose(0, 1, 3, 2, 4, 5)
    return jnp.reshape(x, (b, (h // p) * (w // p), p * p * c))
