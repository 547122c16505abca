"""Recurrent networks for a class or a number per sequence, and for the next token.

Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735 (LSTM); the language model is that of
Zaremba et al., arXiv:1409.2329. Differs from it: orthogonal recurrent weights and a forget bias of
1 instead of uniform weights, and a state that ends with its sequence unless it is handed on.

    RecurrentClassifier(classes=10, width=128)                          an LSTM on [b t d]
    RecurrentLM.from_size("medium", vocabulary=10_000)                  19,775,200 weights

| size | layers | width | dropout | test perplexity on PTB (Zaremba et al., table 1) |
|---|---|---|---|---|
| small | 2 | 200 | 0 | 114.5 |
| medium | 2 | 650 | 0.5 | 82.7 |
| large | 2 | 1500 | 0.65 | 78.4 |
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import dims, shares, sizes
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.layers.recurrent import LSTM
from nnkit.layers.stacks import Bidirectional, Stacked
from nnkit.models.fields import pick
from nnkit.models.tokens import fits

__all__ = ["SIZES", "RecurrentClassifier", "RecurrentLM"]

SIZES = {
    "small": {"width": 200, "depth": 2, "dropout": 0.0},
    "medium": {"width": 650, "depth": 2, "dropout": 0.5},
    "large": {"width": 1500, "depth": 2, "dropout": 0.65},
}
POOLS = ("last", "mean", "max")


class RecurrentClassifier(nn.Module):
    """Recurrent layers over a sequence, one summary of it, and a head.

    y = dropout(pool(layers(x))) V + c. "last" is the state after the last real step (of both
    directions: after each one's own end), "mean" and "max" go over the real steps.
    Parameters: embed/embedding for tokens; layers/layers_i/... of the layers; head/kernel, bias.

    Args:
      classes: number of outputs; 1 for a number.
      layer: width -> a recurrent layer, such as LSTM, GRU, RNN or
        functools.partial(GRU, reset="before").
      width: units of each layer and direction; also of the embedding.
      depth: number of layers.
      vocabulary: number of token ids; None for real-valued inputs.
      bidirectional: layers that read both ways.
      pool: "last", "mean" or "max".
      dropout: share set to 0 between layers and before the head, while training.
      locked: the same share at every step (variational dropout).

    Call: x [b t d] floats, or [b t] token ids with a vocabulary; mask=None [b t], True for real
    steps; train=False -> [b classes]. With intermediates=True also {"hidden": [b t f],
    "pooled": [b f]}. A sequence without a real step has the summary 0.

    Raises:
      TypeError: when first used, if a field is of another kind, or x is not floats (not integers,
        with a vocabulary).
      ValueError: if a size is not >= 1, the dropout not in [0, 1), pool none of the three, shapes
        do not fit, or known ids are outside the vocabulary.

    >>> model, x = RecurrentClassifier(classes=3, width=8), jnp.ones((2, 5, 4))
    >>> y, inside = model.init_with_output(jax.random.key(0), x, intermediates=True)[0]
    >>> y.shape, inside["hidden"].shape
    ((2, 3), (2, 5, 8))

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735.
    """

    classes: int
    layer: Callable = LSTM
    width: int = 128
    depth: int = 1
    vocabulary: int | None = None
    bidirectional: bool = False
    pool: str = "last"
    dropout: float = 0.0
    locked: bool = False

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False, intermediates: bool = False):
        _check(self, classes=self.classes)
        if self.pool not in POOLS:
            raise ValueError(
                f"RecurrentClassifier: pool is {self.pool!r}, expected one of {', '.join(POOLS)}"
            )
        if self.vocabulary is not None:
            fits("RecurrentClassifier", x, mask=mask)
            x = Embed(self.vocabulary, self.width, name="embed")(x)  # [b t width]
        elif jnp.ndim(x) != 3:
            raise ValueError(
                f"RecurrentClassifier: x has shape {jnp.shape(x)}, expected [b t d]; one number "
                "per step is x[..., None], and token ids need vocabulary="
            )
        if mask is not None:
            dims("b t d, b t", x=x, mask=mask)
            mask = jnp.asarray(mask).astype(bool)
        layers = [_layer(self) for _ in range(self.depth)]
        stack = Stacked(layers, dropout=self.dropout, locked=self.locked, name="layers")
        h, state = stack(x, mask, train=train)  # [b t f]
        pooled = _last(state[-1]) if self.pool == "last" else _over(self.pool, h, mask)  # [b f]
        y = Dense(self.classes, name="head")(Dropout(self.dropout)(pooled, train=train))
        return (y, {"hidden": h, "pooled": pooled}) if intermediates else y


class RecurrentLM(nn.Module):
    """A recurrent language model: logits for the next token after every token.

    logits = dropout(layers(dropout(E[tokens]))) V + c. Parameters: embed/embedding;
    layers/layers_i/... of the layers; head/kernel and bias (tied: bias alone, under "head_bias").

    Args:
      vocabulary: number of token ids.
      layer: width -> a recurrent layer, such as LSTM or GRU.
      width: of the embedding and of each layer.
      depth: number of layers.
      dropout: share set to 0 after the embedding, between layers and before the head.
      locked: the same share at every step (variational dropout).
      tied: the embedding is the head as well.

    Call: tokens [b t], mask=None [b t], state=None, train=False -> logits [b t vocabulary]; given
    a state (`start(b)`, or that of the window before), (logits, state): for truncated
    backpropagation cut it by `layers.detach`. With intermediates=True (what it gives,
    {"hidden": [b t width]}).

    Raises:
      TypeError: when first used, if a field is of another kind, or the tokens are no integers.
      ValueError: if a size is not >= 1, the dropout not in [0, 1), shapes do not fit, or known ids
        are outside the vocabulary.

    >>> model, tokens = RecurrentLM(vocabulary=11, width=8), jnp.array([[1, 2, 10]])
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> logits, state = model.apply(variables, tokens, state=model.start(1))
    >>> logits.shape, len(state)
    ((1, 3, 11), 2)

    Zaremba et al., arXiv:1409.2329; tied: Press & Wolf, arXiv:1608.05859; locked: Gal &
    Ghahramani, arXiv:1512.05287.
    """

    vocabulary: int
    layer: Callable = LSTM
    width: int = 200
    depth: int = 2
    dropout: float = 0.0
    locked: bool = False
    tied: bool = False

    bidirectional = False

    @classmethod
    def from_size(cls, size: str, **changes) -> RecurrentLM:
        """The published model of that name, with changes.

        Args:
          size: a name in `SIZES`.
          **changes: fields, `vocabulary` among them.

        Returns:
          A `RecurrentLM`.

        Raises:
          KeyError: if there is no such size.

        >>> RecurrentLM.from_size("large", vocabulary=10_000).width
        1500

        Zaremba et al., arXiv:1409.2329, section 4.1.
        """
        return cls(**pick("RecurrentLM", SIZES, size) | changes)

    @nn.compact
    def __call__(
        self, tokens, mask=None, state=None, *, train: bool = False, intermediates: bool = False
    ):
        _check(self)
        fits("RecurrentLM", tokens, mask=mask)
        drop = Dropout(self.dropout, broadcast_dims=(1,) if self.locked else ())
        embed = Embed(self.vocabulary, self.width, name="embed")
        layers = [_layer(self) for _ in range(self.depth)]
        stack = Stacked(layers, dropout=self.dropout, locked=self.locked, name="layers")
        h, last = stack(drop(embed(tokens), train=train), mask, state, train=train)  # [b t width]
        out = drop(h, train=train)
        if self.tied:
            bias = self.param("head_bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32)
            logits = embed.attend(out) + bias.astype(out.dtype)[None, None]
        else:
            logits = Dense(self.vocabulary, name="head")(out)  # [b t v]
        found = logits if state is None else (logits, last)
        return (found, {"hidden": h}) if intermediates else found

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> tuple:
        """The state of zeros of every layer, for `batch` sequences."""
        return tuple(self.layer(self.width).start(batch, dtype) for _ in range(self.depth))


def _check(model, **more) -> None:
    """The fields that both models have."""
    name = type(model).__name__
    sizes(name, **more, width=model.width, depth=model.depth)
    if model.vocabulary is not None:
        sizes(name, vocabulary=model.vocabulary)
    shares(name, dropout=model.dropout)
    if not callable(model.layer) or isinstance(model.layer, nn.Module):
        raise TypeError(
            f"{name}: layer is {model.layer!r:.60}, expected a function of the width that gives a "
            "recurrent layer, such as the class layers.LSTM (not an instance of it)"
        )


def _layer(model):
    """One layer, not yet a part of the model: `Stacked` names it."""
    layer = model.layer(model.width).clone(parent=None, name=None)
    return Bidirectional(layer, parent=None) if model.bidirectional else layer


def _last(state):
    """The h [b f] of a state; of both directions [b 2f]."""
    if "h" in state:
        return state["h"]
    return jnp.concatenate([state["forward"]["h"], state["backward"]["h"]], -1)


def _over(pool, h, mask):
    """Mean or maximum of h [b t f] over the real steps: [b f], 0 if there is none."""
    if mask is None:
        return h.mean(1) if pool == "mean" else h.max(1)
    real = mask[..., None]
    if pool == "mean":
        wide = jnp.where(real, h, 0).astype(h.dtype if h.dtype == jnp.float64 else jnp.float32)
        count = jnp.maximum(real.sum(1), 1).astype(wide.dtype)
        return (wide.sum(1) / count).astype(h.dtype)
    best = jnp.where(real, h, -jnp.inf).max(1)
    return jnp.where(real.any(1), best, 0)
