"""Noise while training: dropout, and whole branches left out."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nnkit.core.checks import concrete, shares
from nnkit.layers.inputs import real

__all__ = ["Dropout", "StochasticDepth"]


class Dropout(nn.Module):
    """Sets a share of the features to 0 while training, and scales the others by 1 / (1 - rate).

    y = m x / (1 - p), m ~ Bernoulli(1 - p); the expectation of y is x. The identity with
    train=False or rate 0.

    Args:
      rate: share p that is dropped, in [0, 1), to 1 / 65536; may be traced.
      broadcast_dims: axes along which one draw is shared: (1,) on [b t d] is variational dropout,
        the same features at every time.

    Call: x [...], *, train=False -> [...]; the key is the stream "dropout".

    Raises:
      TypeError: when first used, if rate is no number, or x no floats.
      ValueError: if rate is not in [0, 1), or broadcast_dims are no axes of x.

    >>> keys = {"dropout": jax.random.key(0)}
    >>> y = Dropout(0.5).apply({}, jnp.ones(1000), train=True, rngs=keys)
    >>> sorted({float(v) for v in y}), abs(float(y.mean()) - 1) < 0.1
    ([0.0, 2.0], True)

    Srivastava et al. 2014, Dropout; shared in time: Gal & Ghahramani, arXiv:1512.05287.
    """

    rate: float
    broadcast_dims: Sequence[int] = ()

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        shares("Dropout", rate=self.rate)
        x = real("Dropout", x)
        shape = list(x.shape)
        for axis in self.broadcast_dims:
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(
                    f"Dropout: broadcast_dims is {tuple(self.broadcast_dims)}, expected axes of x, "
                    f"which has shape {x.shape}"
                )
            shape[axis] = 1
        if not train or _none(self.rate):
            return x
        return _thinned(x, self.make_rng("dropout"), self.rate, tuple(shape))


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for a share of the examples while training (DropPath).

    y[n] = m[n] x[n] / (1 - p), m ~ Bernoulli(1 - p), one draw per example. Put it on the branch:
    x + StochasticDepth(p)(f(x), train=train).

    Args:
      rate: share p of the examples, in [0, 1); may be traced.

    Call: x [b ...], *, train=False -> [b ...]; the key is the stream "dropout".

    Raises:
      TypeError: when first used, if rate is no number, or x no floats.
      ValueError: if rate is not in [0, 1), or x has no batch axis.

    >>> keys = {"dropout": jax.random.key(0)}
    >>> y = StochasticDepth(0.5).apply({}, jnp.ones((6, 2)), train=True, rngs=keys)
    >>> y.shape, bool((y[:, 0] == y[:, 1]).all())
    ((6, 2), True)

    Huang et al., arXiv:1603.09382; scaled while training: Larsson et al., arXiv:1605.07648.
    """

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        shares("StochasticDepth", rate=self.rate)
        x = real("StochasticDepth", x)
        if x.ndim == 0:
            raise ValueError("StochasticDepth: x is a scalar, expected [b ...] with a batch axis")
        if not train or _none(self.rate):
            return x
        return _thinned(x, self.make_rng("dropout"), self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))


def _none(rate) -> bool:
    known = concrete(rate)
    return known is not None and known == 0


def _thinned(x, key, rate, shape):
    """x [...] times a mask [shape] of 0 and 1 / (1 - rate).

    One word of random bits serves two entries of the last axis, the rate rounded to 1 / 65536: half
    the time of a step of a small Transformer went into random bits.
    """
    few = jnp.round(jnp.asarray(rate, jnp.float32) * 2**16).clip(0, 2**16 - 1)
    size = shape[-1] if shape else 1
    words = jax.random.bits(key, (*shape[:-1], -(-size // 2)), jnp.uint32)
    draw = jnp.concatenate([words >> 16, words & 0xFFFF], -1)[..., :size].reshape(shape)
    scale = (1 / (1 - few / 2**16)).astype(x.dtype)
    kept = jnp.broadcast_to(draw >= few.astype(jnp.uint32), x.shape)
    return jnp.where(kept, x * scale, jnp.zeros_like(x))
