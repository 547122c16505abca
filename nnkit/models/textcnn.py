"""A convolutional network over words: filters of a few words each, the largest answer of each.

Kim, arXiv:1408.5882 ("CNN-rand": word vectors start at random). Differs from it: padding counts
for nothing, wherever it stands and however much there is; the last layer has no bound on its norm.

    TextCNN.from_size("rand", vocabulary=18_767, classes=2)      movie reviews: 5,991,002 weights
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nnkit.core.checks import dims, shares, sizes
from nnkit.layers.dense import Dense, linear
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.models.fields import pick

__all__ = ["SIZES", "TextCNN"]

SIZES = {"rand": {"width": 300, "windows": (3, 4, 5), "maps": 100, "dropout": 0.5}}


class TextCNN(nn.Module):
    """Text classification by filters over windows of words and their maximum over time.

    f = dropout(concat_h max_s relu(sum_i e_(s+i) W_h,i + b_h)), y = f W + b; s runs over every
    window of h words that holds at least one real word, words outside the text being 0.
    Parameters: embed/embedding, conv_h/kernel [h width maps] and conv_h/bias for every h, head.

    Args:
      vocabulary: number of word ids.
      classes: number of outputs.
      width: size of a word vector.
      windows: how many words the filters see.
      maps: filters per window size.
      dropout: share of f set to 0 while training.

    Call: tokens [b t], mask=None [b t] (True for words), train=False -> [b classes]; with
    intermediates=True also {"embedded": [b t width], "features": [b len(windows)*maps]}.

    Raises:
      TypeError: when first used, if a field is of another kind, or the tokens are no integers.
      ValueError: if a size is not >= 1, a window size is there twice, the dropout is not in
        [0, 1), shapes do not fit, or known ids are outside the vocabulary.

    >>> model, tokens = TextCNN(vocabulary=9, width=4, maps=2), jnp.array([[3, 8, 0], [5, 0, 0]])
    >>> (y, inside), _ = model.init_with_output(
    ...     jax.random.key(0), tokens, tokens > 0, intermediates=True
    ... )
    >>> y.shape, inside["features"].shape
    ((2, 2), (2, 6))

    Kim, arXiv:1408.5882, section 2.
    """

    vocabulary: int
    classes: int = 2
    width: int = 300
    windows: Sequence[int] = (3, 4, 5)
    maps: int = 100
    dropout: float = 0.5

    @classmethod
    def from_size(cls, size: str, **changes) -> TextCNN:
        """The published model of that name, with changes.

        Args:
          size: a name in `SIZES`.
          **changes: fields, `vocabulary` among them.

        Returns:
          A `TextCNN`.

        Raises:
          KeyError: if there is no such size.

        >>> TextCNN.from_size("rand", vocabulary=100).windows
        (3, 4, 5)

        Kim, arXiv:1408.5882, section 3.1.
        """
        return cls(**pick("TextCNN", SIZES, size) | changes)

    @nn.compact
    def __call__(self, tokens, mask=None, *, train: bool = False, intermediates: bool = False):
        _check(self)
        dims("b t", tokens=tokens)
        mask = jnp.ones(jnp.shape(tokens), bool) if mask is None else jnp.asarray(mask).astype(bool)
        dims("b t, b t", tokens=tokens, mask=mask)
        x = Embed(self.vocabulary, self.width, embedding_init=_uniform, name="embed")(tokens)
        x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))  # [b t width]
        filters = [_Filters(h, self.maps, name=f"conv_{h}")(self.width) for h in self.windows]
        found = [
            jnp.where(_near(mask, h)[..., None], nn.relu(y + b[None, None]), 0).max(1)
            for h, y, (_, b) in zip(self.windows, _over_windows(x, filters), filters)
        ]
        f = jnp.concatenate(found, -1)  # [b len(windows)*maps]
        y = Dense(self.classes, name="head")(Dropout(self.dropout)(f, train=train))
        return (y, {"embedded": x, "features": f}) if intermediates else y


class _Filters(nn.Module):
    """The weights of the filters over h words: (kernel [h width maps], bias [maps])."""

    h: int
    maps: int

    @nn.compact
    def __call__(self, width: int):
        kernel = self.param("kernel", nn.initializers.he_normal(), (self.h, width, self.maps))
        return kernel, self.param("bias", nn.initializers.zeros, (self.maps,))


def _over_windows(x, filters):
    """Convolutions of x [b t d] with kernels [h d m], every overlap: a list of [b t+h-1 m].

    All kernels are one matrix [d sum(h)*m]: one product gives what every word says to every place
    of every window, then places are moved and added. On 2 CPU cores a gradient of the published
    size (batch 50, 56 words) takes 52 ms, by `lax.conv` 120 ms, and 790 where members of a sweep
    are unrolled.
    """
    wide = [jnp.moveaxis(k, 0, 1).reshape(k.shape[1], -1) for k, _ in filters]  # [d h*m]
    said = linear(x, jnp.concatenate(wide, 1).astype(x.dtype))  # [b t sum(h)*m]
    out, start = [], 0
    for kernel, _ in filters:
        h, _, m = kernel.shape
        places = [said[..., start + i * m : start + (i + 1) * m] for i in range(h)]
        out.append(sum(_moved(y, i, h) for i, y in enumerate(places)))
        start += h * m
    return out


def _near(mask, h: int):
    """Which windows of h places hold a real word: [b t] -> [b t+h-1]."""
    return jnp.stack([_moved(mask[..., None], i, h) for i in range(h)]).any(0)[..., 0]


def _moved(y, i: int, h: int):
    """y [b t m], what words say at place i of h, put where the window stands: [b t+h-1 m]."""
    return jnp.pad(y, ((0, 0), (h - 1 - i, i), (0, 0)))


def _uniform(key, shape, dtype=jnp.float32):
    """Word vectors from U(-0.25, 0.25), about the variance of pre-trained ones (section 3.2)."""
    return jax.random.uniform(key, shape, dtype, -0.25, 0.25)


def _check(model: TextCNN) -> None:
    sizes("TextCNN", many=True, windows=model.windows)
    sizes(
        "TextCNN",
        vocabulary=model.vocabulary,
        classes=model.classes,
        width=model.width,
        maps=model.maps,
    )
    shares("TextCNN", dropout=model.dropout)
    if len(set(model.windows)) < len(model.windows):
        raise ValueError(
            f"TextCNN: windows is {model.windows!r}, expected each size once; more filters of a "
            "size: maps=..."
        )
