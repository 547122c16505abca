"""BERT: a bidirectional encoder, with a head for masked words or for classes.

Devlin et al., arXiv:1810.04805. Differs from it: no next-sentence head; the pooler belongs to the
classifier.

    size     width  depth  heads    parameters (MLM head)   (2 classes)
    tiny       128      2      2                4,416,698     4,386,178
    mini       256      4      4               11,201,594    11,171,074
    small      512      4      8               28,795,194    28,764,674
    medium     512      8      8               41,404,730    41,374,210
    base       768     12     12              109,514,298   109,483,778
    large     1024     24     16              335,174,458   335,143,938
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import concrete, shares, sizes
from nnkit.layers.activations import gelu
from nnkit.layers.attention import Attention
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.layers.feedforward import FeedForward
from nnkit.layers.norms import LayerNorm
from nnkit.layers.positions import LearnedPositions
from nnkit.models.fields import divides, pick
from nnkit.models.remat import kept, known
from nnkit.models.tokens import fits

__all__ = ["BERT"]

SIZES = {
    "tiny": {"width": 128, "depth": 2, "heads": 2},
    "mini": {"width": 256, "depth": 4, "heads": 4},
    "small": {"width": 512, "depth": 4, "heads": 8},
    "medium": {"width": 512, "depth": 8, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
_NORMAL = nn.initializers.truncated_normal(0.02)


class BERT(nn.Module):
    """A bidirectional encoder with post-norm blocks and its head.

    x_0 = norm(word + position + type); x' = norm(x_l + MSA(x_l)); x_(l+1) = norm(x' + MLP(x')).
    Words: logits = norm(gelu(x W + b)) E^T + c, with E the word table. Classes: the first token
    through tanh(x W + b), dropout and an affine layer.

    Args:
      vocabulary: number of tokens.
      classes: None gives logits of words for every token, a number the logits of a classifier.
      width, depth, heads: size of a token, number of blocks, of heads.
      hidden: width inside the MLP; None is 4 width.
      length: the longest sequence.
      types: number of token types (sentence A, sentence B).
      learned: learned positions; False: none, the encoder then sees a set.
      activation: of the MLP and of the word head; the exact GELU.
      dropout: share set to 0 in embeddings, attention probabilities, after attention and MLP, and
        before the classifier, while training.
      epsilon: of the norms.
      remat: None keeps all activations of a block for the backward pass; "nothing", "dots",
        "dots_with_no_batch_dims" or "everything" says what is kept, the rest is computed again:
        see `models.remat`.

    Call: (tokens [b t], mask [b t] True for real tokens, token_types [b t]), train=False ->
    [b t vocabulary], or [b classes]; with intermediates=True also a dict {"embedded": [b t width],
    "block_0": ..., "attention_0": [b heads t t] probabilities, ..., "final": [b t width]}.

    Raises:
      TypeError: when first used, if a size or the tokens are no integers.
      ValueError: if a known id is outside its table, the sequence is longer than `length`, a shape
        does not fit, heads do not divide the width, or the dropout is not in [0, 1).

    >>> model = BERT(vocabulary=11, width=16, depth=2, heads=2, length=8)
    >>> tokens = jnp.array([[1, 2, 3, 0]])
    >>> model.init_with_output(jax.random.key(0), tokens, tokens > 0)[0].shape
    (1, 4, 11)

    Devlin et al., arXiv:1810.04805, section 3; sizes: Turc et al., arXiv:1908.08962, table 1.
    """

    vocabulary: int = 30522
    classes: int | None = None
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    length: int = 512
    types: int = 2
    learned: bool = True
    activation: Callable = gelu
    dropout: float = 0.1
    epsilon: float = 1e-12
    remat: str | Callable | None = None

    @classmethod
    def from_size(cls, size: str, **changes) -> BERT:
        """A published size with changes: from_size("tiny", classes=2).

        Args:
          size: "tiny", "mini", "small", "medium", "base" or "large".
          **changes: fields.

        Returns:
          The model.

        Raises:
          KeyError: if there is no such size.

        >>> BERT.from_size("tiny", classes=2).depth
        2

        Devlin et al., arXiv:1810.04805, section 3; Turc et al., arXiv:1908.08962, table 1.
        """
        return cls(**(pick("BERT", SIZES, size) | changes))

    @nn.compact
    def __call__(
        self, tokens, mask=None, token_types=None, *, train: bool = False, intermediates=False
    ):
        self._check(tokens, mask, token_types)
        words = Embed(self.vocabulary, self.width, _NORMAL, name="embed")
        x = words(tokens)  # [b t d]
        if self.learned:
            places = LearnedPositions(self.length, self.width, _NORMAL, name="positions")
            x = x + places(tokens.shape[1])
        kinds = jnp.zeros_like(tokens) if token_types is None else token_types
        x = x + Embed(self.types, self.width, _NORMAL, name="token_types")(kinds)
        x = LayerNorm(epsilon=self.epsilon, name="norm")(x)
        x = Dropout(self.dropout)(x, train=train)
        inside = {"embedded": x}
        options = {"train": train, "intermediates": intermediates}
        run = kept(
            None if intermediates else self.remat, lambda block, x: block(x, mask, **options)
        )
        for i in range(self.depth):
            block = Block(
                heads=self.heads,
                hidden=self.hidden or 4 * self.width,
                activation=self.activation,
                dropout=self.dropout,
                epsilon=self.epsilon,
                name=f"block_{i}",
            )
            x, scores = run(block, x)
            inside |= {f"block_{i}": x, f"attention_{i}": scores}
        inside["final"] = x
        y = self._words(x, words) if self.classes is None else self._classes(x, self.classes, train)
        return (y, inside) if intermediates else y

    def _words(self, x, words):
        """Logits of the word at every place, [b t vocabulary]."""
        x = Dense(self.width, kernel_init=_NORMAL, name="transform")(x)
        x = LayerNorm(epsilon=self.epsilon, name="transform_norm")(self.activation(x))
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        y = words.attend(x)
        return y + bias.astype(y.dtype).reshape(1, 1, -1)

    def _classes(self, x, classes: int, train):
        """Logits of the classes from the first token, [b classes]."""
        x = jnp.tanh(Dense(self.width, kernel_init=_NORMAL, name="pooler")(x[:, 0]))
        x = Dropout(self.dropout)(x, train=train)
        return Dense(classes, kernel_init=_NORMAL, name="head")(x)

    def _check(self, tokens, mask, token_types):
        named = ("vocabulary", "width", "depth", "heads", "length", "types")
        sizes("BERT", **{name: getattr(self, name) for name in named})
        if self.classes is not None:
            sizes("BERT", classes=self.classes)
        shares("BERT", dropout=self.dropout)
        known("BERT", self.remat)
        divides("BERT", width=self.width, heads=self.heads)
        fits("BERT", tokens, length=self.length, mask=mask, token_types=token_types)
        kinds = None if token_types is None else concrete(token_types)
        if kinds is not None and kinds.size and not 0 <= kinds.min() <= kinds.max() < self.types:
            raise ValueError(
                f"BERT: token_types run from {kinds.min()} to {kinds.max()}, expected 0 to "
                f"{self.types - 1}; give the model types={max(int(kinds.max()) + 1, self.types)}"
            )


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + MLP(x))."""

    heads: int
    hidden: int
    activation: Callable
    dropout: float
    epsilon: float

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False, intermediates: bool = False):
        h = Attention(
            heads=self.heads,
            dropout=self.dropout,
            kernel_init=_NORMAL,
            out_init=_NORMAL,
            name="attention",
        )(x, mask=mask, train=train, probabilities=intermediates)
        h, scores = h if intermediates else (h, None)
        h = Dropout(self.dropout)(h, train=train)
        x = LayerNorm(epsilon=self.epsilon, name="attention_norm")(x + h)
        h = FeedForward(self.hidden, activation=self.activation, name="mlp")(x, train=train)
        h = Dropout(self.dropout)(h, train=train)
        return LayerNorm(epsilon=self.epsilon, name="mlp_norm")(x + h), scores
