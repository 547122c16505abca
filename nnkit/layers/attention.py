"""The attention layer: projections, heads, rotations and the key-value cache."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import concrete, shares, sizes
from nnkit.layers.dense import Dense
from nnkit.layers.dot_product import attention, attention_weights
from nnkit.layers.drop import Dropout
from nnkit.layers.memory import cache, places_of, written
from nnkit.layers.norms import RMSNorm
from nnkit.layers.positions import rope
from nnkit.layers.scores import mix

__all__ = ["Attention", "attention", "attention_weights", "cache"]


class Attention(nn.Module):
    """Multi-head attention with learned projections, to itself or to a context.

    y = concat_i(attention(x W_q, c W_k, c W_v)_i) W_out, with c = x, or the context. Grouped
    queries: kv_heads < heads; one key head for all queries: kv_heads = 1.

    The parameters are query, key, value, out, each with `kernel` [in, heads*head_dim] (and bias),
    and query_norm, key_norm with `scale` [head_dim] for qk_norm.

    Args:
      heads: heads of queries.
      kv_heads: heads of keys and values, a divisor of heads; None: heads.
      head_dim: size of a head; None: width of x / heads.
      causal: a token sees itself and those before.
      window: see `attention`.
      use_bias: biases of query, key and value.
      out_bias: bias of out; None: as use_bias.
      qk_norm: RMS norm over head_dim of queries and keys, before the rotation.
      softcap: bound of the scores, or None.
      scale: factor of the products; None: 1/sqrt(head_dim). T5 has 1.
      rope: base of the rotation (10000.0), or None for none.
      interleaved: the second convention of `rope`.
      dropout: share of the attention weights set to 0 while training.
      kernel_init: of query, key and value.
      out_init: of out; None: kernel_init.
      epsilon: of qk_norm.
      implementation: see `attention`.

    Call: x [b t d], context [b s c] or None -> [b t d]. Keywords: mask [b s] (of the context, if
    there is one) or [b t s]; segments [b t]; positions [t] or [b t] for the rotation; bias
    [b|1 h|1 t|1 s|1], or a function of the positions of queries [b|1 t] and keys [b|1 s] (negative:
    hidden) that gives it; train; probabilities=True returns the weights [b h t s] too, last.

    With cache=`cache(...)` returns (y, cache): the t new tokens are written behind those there,
    with mask [b t] and segments [b t] of the new ones, and bias over s = length keys. Positions
    count the real tokens of each sequence unless they are given, so that prompts padded left or
    right need nothing else. With a window, a ring of as many places is enough; where the t tokens
    overwrite what the first of them sees, s = length + t keys are seen. Fields are those of a
    causal layer.

    Raises:
      ValueError: if heads do not divide, shapes do not fit, more tokens come than the cache has
        room for (traced: NaN, and nothing is overwritten), or a context meets causal, window,
        rope or a cache.

    >>> layer, x = Attention(heads=4, kv_heads=2, causal=True, rope=1e4), jnp.ones((1, 3, 8))
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, params["params"]["key"]["kernel"].shape
    ((1, 3, 8), (8, 4))
    >>> layer.apply(params, x, cache=cache(1, 5, kv_heads=2, head_dim=2))[1]["index"]
    Array(3, dtype=int32)

    Vaswani et al., arXiv:1706.03762, section 3.2.2; Ainslie et al., arXiv:2305.13245; QK norm:
    Dehghani et al., arXiv:2302.05442; softcap: Gemma 2, arXiv:2408.00118.
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = False
    window: int | None = None
    use_bias: bool = True
    out_bias: bool | None = None
    qk_norm: bool = False
    softcap: float | None = None
    scale: float | None = None
    rope: float | None = None
    interleaved: bool = False
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer | None = None
    epsilon: float = 1e-6
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x,
        context=None,
        *,
        mask=None,
        segments=None,
        positions=None,
        bias=None,
        cache=None,
        train: bool = False,
        probabilities: bool = False,
    ):
        groups, size = self._sizes(x, context, cache)
        q, k, v = self._project(x, x if context is None else context, groups, size)
        given = {"causal": self.causal, "window": self.window}
        if cache is None:
            q, k = self._rotated(q, k, positions)
            given |= {"mask": mask, "segments": segments}
            near = (jnp.arange(n, dtype=jnp.int32)[None] for n in (q.shape[1], k.shape[1]))
        else:
            places = places_of(cache, x, mask, positions)
            q, k = self._rotated(q, k, places)
            cache, seen, full = written(cache, k, v, places, mask, segments, self.window)
            k, v = seen.pop("k"), seen.pop("v")
            given |= seen
            near = seen["positions"]
        given["bias"] = bias(*near) if callable(bias) else bias
        given |= {"scale": self.scale, "softcap": self.softcap}
        y, p = self._attend(q, k, v, given, train, probabilities)
        y = Dense(
            x.shape[-1],
            use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            kernel_init=self.out_init or self.kernel_init,
            name="out",
        )(y.reshape(*y.shape[:2], self.heads * size))
        if cache is not None:
            y = jnp.where(full[:, None, None], jnp.full((), jnp.nan, y.dtype), y)
        extra = ((cache,) if cache is not None else ()) + ((p,) if probabilities else ())
        return (y, *extra) if extra else y

    def _attend(self, q, k, v, given, train, probabilities):
        """Mixed values [b t h e], and the weights [b h t s] where they are asked for."""
        drops = train and concrete(self.dropout) != 0  # a traced share drops
        if not drops and not probabilities:
            return attention(q, k, v, implementation=self.implementation, **given), None
        p = attention_weights(q, k, **given)
        kept = Dropout(self.dropout)(p, train=True) if drops else p
        (b, h, t, s), g = p.shape, v.shape[2]
        mask = given.get("mask")
        if mask is not None and jnp.ndim(mask) == 2:  # what stands in padding does not matter
            v = jnp.where(jnp.asarray(mask).astype(bool)[:, :, None, None], v, 0)
        y = mix(kept.reshape(b, g, h // g, t, s), v).astype(v.dtype)
        return y.reshape(b, t, h, v.shape[-1]), p

    def _project(self, x, context, groups, size):
        def heads(name, x, n):
            y = Dense(n * size, use_bias=self.use_bias, kernel_init=self.kernel_init, name=name)(x)
            return y.reshape(*y.shape[:2], n, size)

        q = heads("query", x, self.heads)
        k, v = heads("key", context, groups), heads("value", context, groups)
        if self.qk_norm:
            q = RMSNorm(self.epsilon, name="query_norm")(q)
            k = RMSNorm(self.epsilon, name="key_norm")(k)
        return q, k, v

    def _rotated(self, q, k, positions):
        if self.rope is None:
            return q, k
        positions = jnp.arange(q.shape[1]) if positions is None else positions
        turn = {"theta": self.rope, "interleaved": self.interleaved}
        return rope(q, positions, **turn), rope(k, positions, **turn)

    def _sizes(self, x, context, cache):
        fields = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        sizes("Attention", **{name: n for name, n in fields.items() if n is not None})
        shares("Attention", dropout=self.dropout)
        for name, array in (("x", x), ("context", context)):
            if array is not None and jnp.ndim(array) != 3:
                raise ValueError(f"{name} has shape {jnp.shape(array)}, expected (b t d)")
        width, heads = x.shape[-1], self.heads
        if self.head_dim is None and width % heads:
            near = f"{width // heads * heads or heads} or {(width // heads + 1) * heads}"
            raise ValueError(
                f"Attention: the width {width} of x is not divisible by heads={heads}; use a width "
                f"of {near}, other heads, or set head_dim"
            )
        groups = heads if self.kv_heads is None else self.kv_heads
        if heads % groups:
            raise ValueError(
                f"Attention: heads={heads} is not divisible by kv_heads={groups}; each key head "
                f"serves a whole number of query heads: use a divisor of {heads}"
            )
        taken = {"causal": self.causal, "window": self.window, "rope": self.rope, "cache": cache}
        wrong = [name for name, value in taken.items() if value not in (None, False)]
        if context is not None and wrong:
            raise ValueError(
                f"Attention: {', '.join(wrong)} given with a context of shape {context.shape}: "
                "they compare positions within one sequence; leave them out for cross-attention"
            )
        if cache is not None and not self.causal:
            raise ValueError(
                "Attention: a cache needs causal=True: without it tokens written earlier would "
                "have to see later ones"
            )
        return groups, self.head_dim or width // heads
