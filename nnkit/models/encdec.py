"""The encoder-decoder: T5, with relative positions and cross-attention.

Raffel et al., arXiv:1910.10683. Differs from it: query, key and value start with one variance (that
of their products is T5's). T5 v1.1 has a gated GELU and a head of its own.

    size         width  depth  heads  hidden    parameters
    small          512    6+6      8    2048     60,506,624
    base           768  12+12     12    3072    222,903,552
    large         1024  24+24     16    4096    737,668,096
    v1.1-small     512    8+8      6    1024     76,961,152
    v1.1-base      768  12+12     12    2048    247,577,856
    v1.1-large    1024  24+24     16    2816    783,150,080
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu_tanh
from nnkit.layers.attention import Attention
from nnkit.layers.attention import cache as empty_cache
from nnkit.layers.dense import Dense
from nnkit.layers.dot_product import attention, attention_weights
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.layers.feedforward import FeedForward
from nnkit.layers.norms import RMSNorm
from nnkit.layers.positions import RelativeBias
from nnkit.models.fields import pick
from nnkit.models.remat import kept, known
from nnkit.models.tokens import fits, places, seen_places, shift_right

__all__ = ["EncDec", "shift_right"]

_V1_1 = {"activation": gelu_tanh, "gated": True, "tied": False}
SIZES = {
    "small": {"width": 512, "depth": 6, "heads": 8, "hidden": 2048},
    "base": {"width": 768, "depth": 12, "heads": 12, "hidden": 3072},
    "large": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096},
    "v1.1-small": {"width": 512, "depth": 8, "heads": 6, "hidden": 1024, **_V1_1},
    "v1.1-base": {"width": 768, "depth": 12, "heads": 12, "hidden": 2048, **_V1_1},
    "v1.1-large": {"width": 1024, "depth": 24, "heads": 16, "hidden": 2816, **_V1_1},
}


class EncDec(nn.Module):
    """An encoder that reads the source and a decoder that writes the target, both pre-norm.

    Encoder: x' = x + attention(norm(x)); y = x' + MLP(norm(x')). The decoder looks back only, and
    has x'' = x' + attention(norm(x'), encoded) in between. Products of queries and keys are not
    scaled; a bias for each bucket of distance is shared by the blocks of a stack.
    logits = norm(y) / sqrt(width) E^T, or norm(y) W.

    Args:
      vocabulary: number of tokens, of source and target.
      width, depth, heads: size of a token, number of blocks of each stack, of heads.
      decoder_depth: blocks of the decoder; None: depth.
      head_dim: size of a head; it need not divide the width.
      hidden: width inside the MLP.
      activation: of the MLP; gated: times a second map.
      tied: the head is the table of tokens, scaled; False: a matrix of its own.
      buckets, max_distance: see `layers.RelativeBias`.
      dropout: share set to 0 in embeddings, attention probabilities, inside the MLP and after every
        branch while training.
      epsilon: of the norms.
      begin: id of the token that every target begins with, unseen; T5 has its padding, 0.
      remat: None keeps all activations of a block for the backward pass; "nothing", "dots",
        "dots_with_no_batch_dims" or "everything" says what is kept, the rest is computed again:
        see `models.remat`.

    Call: (source [b s], target_in [b t], source_mask [b s], target_mask [b t]), train=False ->
    [b t vocabulary]; target_in is `shift_right(target, model.begin)`. With intermediates=True also
    a dict {"encoder_embedded", "encoder_block_0", ..., "encoded": [b s width],
    "encoder_attention_0": [b heads s s], "embedded", "block_0", ..., "final": [b t width],
    "attention_0": [b heads t t], "cross_0": [b heads t s]}.

    Decoding step by step runs the encoder once: `encode`, `start`, then `decode` with the cache.

    Raises:
      TypeError: when first used, if a size or the tokens are no integers.
      ValueError: if known ids are outside the vocabulary, a shape does not fit, or the dropout is
        not in [0, 1).

    >>> model = EncDec(vocabulary=11, width=16, depth=1, heads=2, head_dim=8, hidden=32)
    >>> source, target = jnp.array([[1, 2, 3]]), jnp.array([[4, 5]])
    >>> model.init_with_output(jax.random.key(0), source, shift_right(target, 0))[0].shape
    (1, 2, 11)

    Raffel et al., arXiv:1910.10683, section 2.1; v1.1: Shazeer, arXiv:2002.05202.
    """

    vocabulary: int = 32128
    width: int = 512
    depth: int = 6
    decoder_depth: int | None = None
    heads: int = 8
    head_dim: int = 64
    hidden: int = 2048
    activation: Callable = nn.relu
    gated: bool = False
    tied: bool = True
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    epsilon: float = 1e-6
    begin: int = 0
    remat: str | Callable | None = None

    @classmethod
    def from_size(cls, size: str, **changes) -> EncDec:
        """A published size with changes: from_size("v1.1-small", dropout=0.0).

        Args:
          size: "small", "base", "large", or one of them behind "v1.1-".
          **changes: fields.

        Returns:
          The model.

        Raises:
          KeyError: if there is no such size.

        >>> EncDec.from_size("v1.1-small").gated
        True

        Raffel et al., arXiv:1910.10683, section 3.7.2; v1.1: Roberts et al., arXiv:2002.08910.
        """
        return cls(**(pick("EncDec", SIZES, size) | changes))

    def setup(self):
        named = ("vocabulary", "width", "depth", "heads", "head_dim", "hidden", "buckets")
        sizes("EncDec", **{name: getattr(self, name) for name in named})
        if self.decoder_depth is not None:
            sizes("EncDec", decoder_depth=self.decoder_depth)
        if not 0 <= self.begin < self.vocabulary:
            raise ValueError(
                f"EncDec: begin is {self.begin}, but the vocabulary has {self.vocabulary} tokens "
                f"(0..{self.vocabulary - 1})"
            )
        shares("EncDec", dropout=self.dropout)
        known("EncDec", self.remat)
        stack = partial(
            Stack,
            width=self.width,
            heads=self.heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            buckets=self.buckets,
            max_distance=self.max_distance,
            dropout=self.dropout,
            epsilon=self.epsilon,
            remat=self.remat,
        )
        self.embed = Embed(self.vocabulary, self.width, nn.initializers.normal(1.0))
        self.encoder = stack(depth=self.depth)
        self.decoder = stack(depth=self.decoder_depth or self.depth, decodes=True)
        if not self.tied:
            init = nn.initializers.normal(self.width**-0.5)
            self.head = Dense(self.vocabulary, use_bias=False, kernel_init=init)

    def __call__(
        self,
        source,
        target_in,
        source_mask=None,
        target_mask=None,
        *,
        train: bool = False,
        intermediates: bool = False,
    ):
        if jnp.shape(source)[:1] != jnp.shape(target_in)[:1]:
            raise ValueError(
                f"EncDec: target_in has shape {jnp.shape(target_in)}, expected [b t] with b = "
                f"{jnp.shape(source)[:1]} taken from source: one target for each source"
            )
        fits("EncDec source", source, mask=source_mask)
        fits("EncDec target", target_in, mask=target_mask)
        x, y = self.embed(source), self.embed(target_in)  # all is checked before anything is run
        encoded, read = self._read(x, source_mask, train, intermediates)
        y, written, _ = self._write(
            y, encoded, source_mask, target_mask, None, train, intermediates
        )
        return (y, read | written) if intermediates else y

    def encode(self, source, source_mask=None, *, train: bool = False, intermediates=False):
        """The source as the decoder sees it.

        Args:
          source: [b s] token ids.
          source_mask: [b s] True for real tokens, or None.
          train: drop features?
          intermediates: return a dict of what is inside, too?

        Returns:
          [b s width], or with intermediates=True ([b s width], dict).

        Raises:
          ValueError: as the call.

        >>> model = EncDec(vocabulary=11, width=16, depth=1, heads=2, head_dim=8, hidden=32)
        >>> source = jnp.array([[1, 2, 3]])
        >>> params = jax.jit(model.init)(jax.random.key(0), source, source)
        >>> model.apply(params, source, method="encode").shape
        (1, 3, 16)

        Raffel et al., arXiv:1910.10683, section 2.1.
        """
        fits("EncDec source", source, mask=source_mask)
        y, inside = self._read(self.embed(source), source_mask, train, intermediates)
        return (y, inside) if intermediates else y

    def _read(self, x, mask, train, intermediates):
        y, inside, _ = self.encoder(x, mask, train=train, intermediates=intermediates)
        inside = {f"encoder_{name}": x for name, x in inside.items() if name != "final"}
        return y, inside | {"encoded": y}

    def start(self, encoded, length: int, source_mask=None):
        """An empty memory for decoding; the keys and values of the source are made here, once.

        Args:
          encoded: [b s width] from `encode`.
          length: the most target tokens.
          source_mask: [b s] True for real tokens, or None.

        Returns:
          A dict of arrays [b ...] for `decode`.

        >>> model = EncDec(vocabulary=11, width=16, depth=1, heads=2, head_dim=8, hidden=32)
        >>> source, one = jnp.array([[1, 2, 3]]), jnp.array([[0]])
        >>> params = jax.jit(model.init)(jax.random.key(0), source, one)
        >>> encoded = model.apply(params, source, method="encode")
        >>> memory = model.apply(params, encoded, 5, method="start")
        >>> logits, memory = model.apply(params, one, cache=memory, method="decode")
        >>> logits.shape, int(memory["block_0"]["index"])
        ((1, 1, 11), 1)

        Shazeer, arXiv:1911.02150, section 2.4.
        """
        b, s = encoded.shape[:2]
        real = (
            jnp.ones((b, s), bool) if source_mask is None else jnp.asarray(source_mask).astype(bool)
        )
        return {"source_mask": real} | self.decoder.memory(encoded, length)

    def decode(
        self,
        target_in,
        encoded=None,
        source_mask=None,
        target_mask=None,
        *,
        cache=None,
        train: bool = False,
        intermediates: bool = False,
    ):
        """Logits of the next token at every place of the target.

        Args:
          target_in: [b t] token ids, shifted right; with a cache the next ones.
          encoded: [b s width] from `encode`, or None with a cache.
          source_mask: [b s] True for real tokens, or None.
          target_mask: [b t] True for real tokens, or None.
          cache: from `start`, or from the last call.
          train: drop features?
          intermediates: return a dict of what is inside, too?

        Returns:
          [b t vocabulary]; with a cache (that, the new cache); with intermediates=True (it, dict).

        Raises:
          ValueError: if there is neither the encoded source nor a cache, or both.

        >>> model = EncDec(vocabulary=11, width=16, depth=1, heads=2, head_dim=8, hidden=32)
        >>> source, one = jnp.array([[1, 2, 3]]), jnp.array([[0]])
        >>> params = jax.jit(model.init)(jax.random.key(0), source, one)
        >>> encoded = model.apply(params, source, method="encode")
        >>> model.apply(params, one, encoded, method="decode").shape
        (1, 1, 11)

        Raffel et al., arXiv:1910.10683, section 2.1.
        """
        fits("EncDec target", target_in, mask=target_mask)
        if (encoded is None) == (cache is None):
            raise ValueError(
                "EncDec.decode got "
                + ("neither" if cache is None else "both")
                + " of encoded and cache, expected one: encoded from `encode` for whole targets, "
                "cache from `start` for one step after the other"
            )
        y, inside, after = self._write(
            self.embed(target_in), encoded, source_mask, target_mask, cache, train, intermediates
        )
        y = y if cache is None else (y, after)
        return (y, inside) if intermediates else y

    def _write(self, x, encoded, source_mask, target_mask, cache, train, intermediates):
        x, inside, after = self.decoder(
            x, target_mask, encoded, source_mask, cache, train=train, intermediates=intermediates
        )
        if self.tied:
            y = self.embed.attend(x * jnp.asarray(self.width**-0.5, x.dtype))
        else:
            y = self.head(x)  # [b t vocabulary]
        return y, inside, after


class Stack(nn.Module):
    """The blocks of the encoder, or of the decoder; one relative bias for all of them."""

    width: int
    depth: int
    heads: int
    head_dim: int
    hidden: int
    activation: Callable
    gated: bool
    buckets: int
    max_distance: int
    dropout: float
    epsilon: float
    decodes: bool = False
    remat: str | Callable | None = None

    def setup(self):
        d, inner = self.width**-0.5, self.heads * self.head_dim
        even = self.head_dim**0.25  # of T5's sizes q d^-1/2 k: a root to query, key and value each
        normal = nn.initializers.normal
        parts = {"heads": self.heads, "head_dim": self.head_dim, "scale": 1.0, "use_bias": False}
        parts |= {"kernel_init": normal(d / even), "out_init": normal(even * inner**-0.5)}
        parts["dropout"] = self.dropout
        mlp = partial(
            FeedForward,
            self.hidden,
            activation=self.activation,
            gated=self.gated,
            use_bias=False,
            dropout=self.dropout,
            kernel_init=normal(d),
            out_init=normal(self.hidden**-0.5),
        )
        self.bias = RelativeBias(
            self.heads,
            self.buckets,
            self.max_distance,
            not self.decodes,  # bidirectional
            normal(d),
        )
        cross = partial(CrossAttention, self.width, **parts)
        self.block = [
            Block(
                make_attention=partial(Attention, causal=self.decodes, **parts),
                make_cross=cross if self.decodes else None,
                make_mlp=mlp,
                dropout=self.dropout,
                epsilon=self.epsilon,
            )
            for _ in range(self.depth)
        ]
        self.norm = RMSNorm(epsilon=self.epsilon)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, x, mask, encoded=None, encoded_mask=None, cache=None, *, train, intermediates
    ):
        i = j = x.shape[1]
        more = {}
        if cache is not None:
            i = more["positions"] = places(x[..., 0], mask, before=cache["block_0"])
            j, encoded_mask = seen_places(i, cache["block_0"]), cache["source_mask"]
        bias = self.bias(i, j)  # [1|b h t s]
        x = self.drop(x, train=train)
        inside, after = {"embedded": x}, dict(cache or {})
        for n, block in enumerate(self.block):
            source = None if not self.decodes else encoded if cache is None else cache[f"cross_{n}"]
            if cache is not None:
                more["cache"] = cache[f"block_{n}"]
            given = {"mask": mask, "probabilities": intermediates, **more}
            remat = None if intermediates or cache is not None else self.remat
            x, found = kept(
                remat,
                lambda block, x, bias, source, given=given: block(
                    x, {"bias": bias, **given}, source, encoded_mask, train=train
                ),
            )(block, x, bias, source)
            after[f"block_{n}"] = found.pop("cache")
            inside |= {f"block_{n}": x} | {f"{name}_{n}": p for name, p in found.items()}
        x = self.drop(self.norm(x), train=train)
        return x, inside | {"final": x}, after

    def memory(self, encoded, length):
        """Empty caches of the blocks, and their keys and values of the source."""
        one = lambda: empty_cache(
            encoded.shape[0], length, self.heads, self.head_dim, encoded.dtype
        )
        own = {f"block_{n}": one() for n in range(self.depth)}
        return own | {f"cross_{n}": block.memory(encoded) for n, block in enumerate(self.block)}


class Block(nn.Module):
    """Attention, cross-attention in the decoder, MLP: x + dropout(part(norm(x))) each."""

    make_attention: Callable[..., nn.Module]
    make_cross: Callable[..., nn.Module] | None
    make_mlp: Callable[..., nn.Module]
    dropout: float
    epsilon: float

    def setup(self):
        norm = partial(RMSNorm, epsilon=self.epsilon)
        self.attention, self.attention_norm = self.make_attention(), norm()
        if self.make_cross is not None:
            self.cross, self.cross_norm = self.make_cross(), norm()
        self.mlp, self.mlp_norm = self.make_mlp(), norm()
        self.drop = Dropout(self.dropout)

    def __call__(self, x, given, source, source_mask, *, train):
        asked = given["probabilities"]
        h = self.attention(self.attention_norm(x), train=train, **given)
        h, *more = h if isinstance(h, tuple) else (h,)
        found = {"cache": more[0] if "cache" in given else None}
        found |= {"attention": more[-1]} if asked else {}
        x = x + self.drop(h, train=train)
        if self.make_cross is not None:
            source = source if isinstance(source, dict) else self.cross.memory(source)
            h, p = self.cross(self.cross_norm(x), source, source_mask, train, asked)
            found |= {"cross": p} if asked else {}
            x = x + self.drop(h, train=train)
        h = self.mlp(self.mlp_norm(x), train=train)
        return x + self.drop(h, train=train), found

    def memory(self, encoded):
        """Keys and values of the source."""
        return self.cross.memory(encoded)


class CrossAttention(nn.Module):
    """Attention to keys and values that are made once for a whole target."""

    width: int
    heads: int
    head_dim: int
    scale: float
    use_bias: bool
    kernel_init: Callable
    out_init: Callable
    dropout: float

    def setup(self):
        make = partial(Dense, use_bias=self.use_bias, kernel_init=self.kernel_init)
        inner = self.heads * self.head_dim
        self.query, self.key, self.value = make(inner), make(inner), make(inner)
        self.out = make(self.width, kernel_init=self.out_init)
        self.drop = Dropout(self.dropout)

    def memory(self, encoded):
        """Keys and values {"k", "v": [b s h e]} of the source [b s d]."""
        return {"k": self._heads(self.key(encoded)), "v": self._heads(self.value(encoded))}

    def __call__(self, x, memory, mask, train, probabilities):
        q, v = self._heads(self.query(x)), memory["v"]
        p = None
        if probabilities or (train and self.dropout > 0):
            p = attention_weights(q, memory["k"], scale=self.scale, mask=mask)  # [b h t s]
            if mask is not None:  # what stands in padding does not matter
                v = jnp.where(jnp.asarray(mask).astype(bool)[:, :, None, None], v, 0)
            y = jnp.einsum("bhts,bshe->bthe", self.drop(p, train=train).astype(v.dtype), v)
        else:
            y = attention(q, memory["k"], v, scale=self.scale, mask=mask)  # [b t h e]
        return self.out(jnp.reshape(y, (*x.shape[:2], -1))), p

    def _heads(self, x):
        return jnp.reshape(x, (*x.shape[:2], self.heads, self.head_dim))
