"""The decoder: GPT-2, and what it has become (RMS norm, RoPE, grouped queries, SwiGLU, experts).

Radford et al. 2019 (GPT-2); Touvron et al., arXiv:2307.09288 (Llama 2). One block, whose parts are
fields. Differs from them: `zero_init` lets every block start as the identity.

    size              width  depth  heads (keys)  hidden   length      parameters
    nanogpt-cpu         128      4      4            512       64          804,096  (65 tokens)
    nanogpt-char        384      6      6           1536      256       10,745,088  (65 tokens)
    gpt2                768     12     12           3072     1024      124,439,808
    gpt2-medium        1024     24     16           4096     1024      354,823,168
    gpt2-large         1280     36     20           5120     1024      774,030,080
    gpt2-xl            1600     48     25           6400     1024    1,557,611,200
    llama2-7b          4096     32     32          11008     4096    6,738,415,616
    llama3-8b          4096     32     32 (8)      14336     8192    8,030,261,248
    mistral-7b         4096     32     32 (8)      14336    32768    7,241,732,096
    mixtral-8x7b       4096     32     32 (8)      14336    32768   46,702,792,704
    qwen2-0.5b          896     24     14 (2)       4864    32768      494,032,768
    qwen3-0.6b         1024     28     16 (8)       3072    32768      596,049,920
    gemma2-2b          2304     26      8 (4)       9216     8192    2,614,341,888
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu, gelu_tanh
from nnkit.layers.attention import Attention
from nnkit.layers.attention import cache as empty_cache
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout
from nnkit.layers.embeddings import Embed
from nnkit.layers.feedforward import FeedForward
from nnkit.layers.moe import MoE
from nnkit.layers.norms import LayerNorm, RMSNorm, ShiftedRMSNorm
from nnkit.layers.positions import LearnedPositions, alibi
from nnkit.models.fields import divides, pick
from nnkit.models.remat import kept, known
from nnkit.models.tokens import fits, places

__all__ = ["GPT"]


def _row(vocabulary, length, width, depth, heads, hidden=None, **more):
    names = ("vocabulary", "length", "width", "depth", "heads", "hidden")
    return dict(zip(names, (vocabulary, length, width, depth, heads, hidden))) | more


_LLAMA = {
    "norm": RMSNorm,
    "learned": False,
    "rope": 1e4,
    "activation": nn.silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
_GROUPED = {**_LLAMA, "kv_heads": 8}
_NANO = {"norm": partial(LayerNorm, use_bias=False), "activation": gelu, "use_bias": False}
_QWEN = {**_LLAMA, "rope": 1e6, "epsilon": 1e-6, "tied": True}
_GEMMA = {
    **_LLAMA,
    "norm": ShiftedRMSNorm,
    "activation": gelu_tanh,
    "epsilon": 1e-6,
    "tied": True,
    "post_norm": True,
    "scale_embedding": True,
    "softcap": 50.0,
    "final_softcap": 30.0,
    "window": (4096, None),
}
SIZES = {
    "nanogpt-cpu": _row(65, 64, 128, 4, 4, **_NANO),
    "nanogpt-char": _row(65, 256, 384, 6, 6, **_NANO, dropout=0.2),
    "gpt2": _row(50257, 1024, 768, 12, 12, dropout=0.1),
    "gpt2-medium": _row(50257, 1024, 1024, 24, 16, dropout=0.1),
    "gpt2-large": _row(50257, 1024, 1280, 36, 20, dropout=0.1),
    "gpt2-xl": _row(50257, 1024, 1600, 48, 25, dropout=0.1),
    "llama2-7b": _row(32000, 4096, 4096, 32, 32, 11008, **_LLAMA),
    "llama3-8b": _row(128256, 8192, 4096, 32, 32, 14336, **_GROUPED | {"rope": 5e5}),
    "mistral-7b": _row(32000, 32768, 4096, 32, 32, 14336, **_GROUPED, window=4096),
    "mixtral-8x7b": _row(
        32000, 32768, 4096, 32, 32, 14336, **_GROUPED | {"rope": 1e6}, experts=8, top_k=2
    ),
    "qwen2-0.5b": _row(151936, 32768, 896, 24, 14, 4864, **_QWEN, kv_heads=2, qkv_bias=True),
    "qwen3-0.6b": _row(
        151936, 32768, 1024, 28, 16, 3072, **_QWEN, kv_heads=8, head_dim=128, qk_norm=True
    ),
    "gemma2-2b": _row(256000, 8192, 2304, 26, 8, 9216, **_GEMMA, kv_heads=4, head_dim=256),
}


class GPT(nn.Module):
    """A decoder of pre-norm blocks over tokens; every token sees itself and those before it.

    x_0 = E[token] (+ P); x' = x_l + attention(norm(x_l)); x_(l+1) = x' + MLP(norm(x'));
    logits = norm(x_L) E^T, or norm(x_L) W.

    Args:
      vocabulary: number of tokens.
      length: the longest sequence.
      width, depth, heads: size of a token, number of blocks, of heads.
      kv_heads: heads of keys and values; None: heads.
      head_dim: size of a head; None: width / heads.
      hidden: width inside the MLP; None: 4 width.
      norm: class of the norms, LayerNorm or RMSNorm, with their `epsilon`.
      learned: learned positions, added to the tokens.
      rope: base of the rotation of queries and keys, or None.
      alibi: a penalty on distance, linear for each head.
      activation: of the MLP; gated: times a second map (SwiGLU: nn.silu, gated).
      tied: the head is the table of tokens; False: a matrix of its own.
      use_bias: biases of all maps; qkv_bias: of query, key and value, None: as use_bias.
      qk_norm: RMS norm of queries and keys.
      window: how many tokens a token sees, itself included; None: all; a tuple goes round the
        blocks.
      softcap, final_softcap: bounds c tanh(z / c) of the attention scores and of the logits.
      post_norm: a norm after attention and MLP too, before they are added.
      scale_embedding: tokens times sqrt(width).
      dropout: share set to 0 in embeddings, attention probabilities and after attention and MLP.
      init_scale: standard deviation s of all matrices; s / sqrt(2 depth) where a branch ends.
      zero_init: those start from 0 instead.
      experts: number of experts in place of the MLP, or None; top_k of them read each token.
      capacity, bias_rate: see `layers.MoE`; with a capacity tokens of a batch compete for room,
        so that a token depends on others, later ones too.
      groups: the tokens are cut into so many groups that compete apart; see `layers.MoE`. As many
        as devices share the batch, when the experts are spread over them.
      with_aux: outputs are (logits, {"balance": [b], "z": [b]}), so that a loss can add them.
      remat: None keeps all activations of a block for the backward pass; "nothing", "dots",
        "dots_with_no_batch_dims" or "everything" says what is kept, the rest is computed again:
        see `models.remat`.

    Call: (tokens [b t], mask [b t] True for real tokens), segments [b t] (tokens see their own
    segment only), positions [b t] (default: real tokens counted from 0, anew in each segment),
    train=False -> [b t vocabulary]; with intermediates=True also a dict {"embedded": [b t width],
    "block_0": ..., "attention_0": [b heads t s] probabilities, ..., "final": [b t width]}, and with
    experts "balance" and "z", sums over the blocks, the same number for all of [b]. With
    cache=model.cache(b, length) the outputs are (logits, cache): the t tokens follow those before.
    only=[b] one place of each sequence: its logits alone, [b 1 vocabulary].

    Experts are trained with with_aux=True and a loss that adds what it is handed:

        def loss(outputs, labels):
            logits, aux = outputs
            mean = losses.sequence_cross_entropy(logits, labels)
            return Mean(mean.total + 0.01 * aux["balance"] * mean.weight, mean.weight)

    Raises:
      TypeError: when first used, if a size or the tokens are no integers.
      ValueError: if known ids are outside the vocabulary, a sequence is longer than `length`,
        a shape does not fit, heads do not divide, or a share is not in [0, 1).

    >>> model = GPT(vocabulary=11, length=8, width=16, depth=2, heads=2)
    >>> tokens = jnp.array([[1, 2]])
    >>> y, params = model.init_with_output(jax.random.key(0), tokens)
    >>> y.shape
    (1, 2, 11)
    >>> (y, memory), tree = model.apply(params, tokens, cache=model.cache(1, 8)), params["params"]
    >>> y.shape, sorted(tree), sorted(tree["block_0"])
    ((1, 2, 11), ['block_0', 'block_1', 'embed', 'norm', 'positions'], ['attention', ...])

    Radford et al. 2019, section 2.3; Touvron et al., arXiv:2302.13971, section 2.2; Mixtral:
    Jiang et al., arXiv:2401.04088; post_norm, softcap: Gemma 2, arXiv:2408.00118, section 2.
    """

    vocabulary: int
    length: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    norm: Callable[..., nn.Module] = LayerNorm
    epsilon: float = 1e-5
    learned: bool = True
    rope: float | None = None
    alibi: bool = False
    activation: Callable = gelu_tanh
    gated: bool = False
    tied: bool = True
    use_bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    window: int | tuple[int | None, ...] | None = None
    softcap: float | None = None
    final_softcap: float | None = None
    post_norm: bool = False
    scale_embedding: bool = False
    dropout: float = 0.0
    init_scale: float = 0.02
    zero_init: bool = False
    experts: int | None = None
    top_k: int = 2
    capacity: float | None = None
    bias_rate: float | None = None
    groups: int = 1
    with_aux: bool = False
    remat: str | Callable | None = None

    @classmethod
    def from_size(cls, size: str, **changes) -> GPT:
        """A published size with changes: from_size("gpt2", dropout=0.0).

        Args:
          size: a name of the table in this file.
          **changes: fields.

        Returns:
          The model.

        Raises:
          KeyError: if there is no such size.

        >>> GPT.from_size("llama3-8b").kv_heads
        8

        Radford et al. 2019, table 2; Grattafiori et al., arXiv:2407.21783, table 3; nanoGPT.
        """
        return cls(**(pick("GPT", SIZES, size) | changes))

    def cache(self, batch: int, length: int, dtype=jnp.float32, *, ring: int | None = None) -> dict:
        """An empty memory of keys and values for decoding, a dict of arrays [batch length ...].

        Args:
          batch: number of sequences.
          length: the most tokens of one, at most that of the model.
          dtype: of keys and values; that of the parameters is the usual choice.
          ring: None: every block has `length` places. A number n: every block has a ring for each
            sequence (padding takes no place), and a block with a window has window + n - 1 places
            only, however long the text: as many as steps of n tokens need, n - 1 of which may be
            taken back by `layers.memory.rewind`. Longer calls, such as the prompt, are exact too.

        Returns:
          {"block_0": `layers.attention.cache`, ...}.

        Raises:
          ValueError: if it is longer than the model's length, or ring is not >= 1.

        >>> model = GPT(vocabulary=11, length=8, width=16, depth=2, heads=2, window=(3, None))
        >>> {name: x["k"].shape for name, x in model.cache(1, 8, ring=1).items()}
        {'block_0': (1, 3, 2, 8), 'block_1': (1, 8, 2, 8)}

        Shazeer, arXiv:1911.02150, section 2.4; ring: Jiang et al., arXiv:2310.06825, section 2.
        """
        if length > self.length:
            raise ValueError(
                f"GPT: a cache for {length} tokens, expected at most length={self.length}, that of "
                f"the model; make the model with length={length}"
            )
        if ring is not None:
            sizes("GPT.cache", ring=ring)
        groups, size = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        windows = self._windows()

        def one(window):
            places = length
            if ring is not None and window is not None:
                places = min(length, window + ring - 1)
            return empty_cache(batch, places, groups, size, dtype, ring=ring is not None)

        return {f"block_{i}": one(windows[i]) for i in range(self.depth)}

    @nn.compact
    def __call__(
        self,
        tokens,
        mask=None,
        *,
        segments=None,
        positions=None,
        cache=None,
        only=None,
        train: bool = False,
        intermediates: bool = False,
    ):
        self._check(tokens, mask, segments, positions, cache)
        before = None if cache is None else cache["block_0"]
        if positions is None:
            positions = places(tokens, mask, segments, before)
        normal = nn.initializers.normal(self.init_scale)
        words = Embed(self.vocabulary, self.width, normal, name="embed")
        x = words(tokens)  # [b t d]
        if self.scale_embedding:
            x = x * jnp.asarray(math.sqrt(self.width), x.dtype)
        if self.learned:
            x = x + LearnedPositions(self.length, self.width, normal, name="positions")(positions)
        x = Dropout(self.dropout)(x, train=train)
        inside, losses, after = {"embedded": x}, [], {}
        given = {
            "mask": mask,
            "segments": segments,
            "positions": positions,
            "bias": partial(_distance, self.heads) if self.alibi else None,
        }
        run = self._kept({"train": train, "intermediates": intermediates}, cache)
        for i, block in enumerate(self._blocks()):
            memory = None if cache is None else cache[f"block_{i}"]
            x, found = run(block, x, given, memory)
            inside |= {f"block_{i}": x, f"attention_{i}": found["attention"]}
            after[f"block_{i}"] = found["cache"]
            losses.append(found["losses"])
        x = self._norm()(name="norm")(x)
        inside["final"] = x
        if only is not None:
            x = jnp.take_along_axis(x, jnp.asarray(only)[:, None, None], 1)  # [b 1 d]
        if self.tied:
            y = words.attend(x)  # [b t vocabulary]
        else:
            y = Dense(self.vocabulary, use_bias=False, kernel_init=normal, name="head")(x)
        if self.final_softcap is not None:
            y = self.final_softcap * jnp.tanh(y / self.final_softcap)
        if self.experts is not None:
            aux = {name: sum(found[name] for found in losses) for name in ("balance", "z")}
            aux = {k: jnp.broadcast_to(x, tokens.shape[:1]) for k, x in aux.items()}  # [b]
            inside |= aux
            y = (y, aux) if self.with_aux else y
        y = y if cache is None else (y, after)
        return (y, inside) if intermediates else y

    def _kept(self, options, cache):
        """(block, x, given, memory) -> what the block gives, computed again where remat says so."""
        if self.remat is None or cache is not None or options["intermediates"]:
            return lambda block, x, given, memory: block(x, given, memory, **options)

        def run(block, x, given, memory):
            return kept(self.remat, lambda block, x: block(x, given, None, **options))(block, x)

        return run

    def _windows(self):
        """The window of every block."""
        given = self.window if isinstance(self.window, tuple) else (self.window,)
        return [given[i % len(given)] for i in range(self.depth)]

    def _norm(self):
        return partial(self.norm, epsilon=self.epsilon)

    def _blocks(self):
        """The blocks, one after the other; what they are made of is said here."""
        normal = nn.initializers.normal(self.init_scale)
        last = nn.initializers.normal(self.init_scale / math.sqrt(2 * self.depth))
        inits = {
            "kernel_init": normal,
            "out_init": nn.initializers.zeros if self.zero_init else last,
        }
        windows = self._windows()
        attention = partial(
            Attention,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            causal=True,
            use_bias=self.use_bias if self.qkv_bias is None else self.qkv_bias,
            out_bias=self.use_bias,
            qk_norm=self.qk_norm,
            softcap=self.softcap,
            rope=self.rope,
            dropout=self.dropout,
            epsilon=self.epsilon,
            **inits,
        )
        shape = {"activation": self.activation, "gated": self.gated, **inits}
        hidden = self.hidden or 4 * self.width
        mlp = partial(FeedForward, hidden, use_bias=self.use_bias, **shape)
        if self.experts is not None:
            rules = {name: getattr(self, name) for name in ("capacity", "bias_rate", "groups")}
            mlp = partial(MoE, self.experts, self.top_k, hidden, **rules, **shape)
        for i in range(self.depth):
            yield Block(
                norm=self._norm(),
                attention=partial(attention, window=windows[i]),
                mlp=mlp,
                post_norm=self.post_norm,
                dropout=self.dropout,
                name=f"block_{i}",
            )

    def _check(self, tokens, mask, segments, positions, cache):
        known("GPT", self.remat)
        named = ("vocabulary", "length", "width", "depth", "heads", "top_k", "groups")
        sizes("GPT", **{name: getattr(self, name) for name in named})
        asked = {n: getattr(self, n) for n in ("kv_heads", "head_dim", "hidden", "experts")}
        sizes("GPT", **{name: size for name, size in asked.items() if size is not None})
        shares("GPT", dropout=self.dropout)
        if self.head_dim is None:
            divides("GPT", width=self.width, heads=self.heads)
        divides("GPT", heads=self.heads, kv_heads=self.kv_heads or self.heads)
        fits("GPT", tokens, length=self.length, mask=mask, segments=segments, positions=positions)
        if self.with_aux and self.experts is None:
            raise ValueError("GPT: with_aux=True needs experts: without them nothing is auxiliary")
        if cache is None:
            return
        if sorted(cache) != sorted(f"block_{i}" for i in range(self.depth)):
            raise ValueError(
                f"GPT: the cache has {sorted(cache)}, expected one entry for each of depth="
                f"{self.depth} blocks; make it with model.cache(batch, length)"
            )
        if segments is not None and positions is None:
            raise ValueError(
                "GPT: segments with a cache need positions [b t]: whether a segment goes on from "
                "the tokens before is not known"
            )


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); its parts are given as functions of a name."""

    norm: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]
    mlp: Callable[..., Any]
    post_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x, given, cache, *, train: bool = False, intermediates: bool = False):
        h = self.norm(name="attention_norm")(x)
        h = self.attention(name="attention")(
            h, **given, cache=cache, train=train, probabilities=intermediates
        )
        h, *more = h if isinstance(h, tuple) else (h,)
        found = {
            "cache": None if cache is None else more[0],
            "attention": more[-1] if intermediates else None,
            "losses": None,
        }
        x = x + self._end(h, "attention_after", train)
        h = self.norm(name="mlp_norm")(x)
        mlp = self.mlp(name="mlp")
        if isinstance(mlp, MoE):
            h, found["losses"] = mlp(h, given["mask"], train=train)
        else:
            h = mlp(h, train=train)
        return x + self._end(h, "mlp_after", train), found

    def _end(self, h, name, train):
        if self.post_norm:
            h = self.norm(name=name)(h)
        return Dropout(self.dropout)(h, train=train)


def _distance(heads, i, j):
    """The bias of ALiBi, -slope |i - j|, [1|b h t s] for positions [1|b t] and [1|b s]."""
    far = jnp.abs(i[:, None, :, None] - j[:, None, None, :])  # [1|b 1 t s]
    return -alibi(heads).reshape(1, -1, 1, 1) * far.astype(jnp.float32)
