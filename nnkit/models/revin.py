"""Reversible instance normalisation: a model that does not see the units of a series.

Kim et al., Reversible instance normalization for accurate time-series forecasting against
distribution shift, ICLR 2022. Differs from its code: the gradient with respect to x flows through
mean and deviation too (the code stops it there; the gradients of the weights are the same).
"""

from __future__ import annotations

import inspect

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import positive
from nnkit.layers.inputs import wide
from nnkit.models.timeseries import series

__all__ = ["RevIN", "reversible"]


class RevIN(nn.Module):
    """A model that sees each window at mean 0 and deviation 1, and answers in its own units.

    z = g (x - mean) / sqrt(var + epsilon) + c, and y = (model(z) - c) / (g + epsilon^2)
    sqrt(var + epsilon) + mean, with mean and var over the steps of each window and feature.

    Args:
      model: a module [b t f] -> [b horizon f].
      affine: learn g and c [f] (1 and 0 else).
      last: take the last value off, not the mean.
      epsilon: keeps a constant window finite.

    Call: x [b t f], train=False -> [b horizon f]; with intermediates=True also
    {"mean": [b f], "deviation": [b f]}.

    Raises:
      ValueError: when first used, if x is not [b t f] or epsilon is not above 0.

    >>> x = jnp.arange(8.0).reshape(1, 8, 1)
    >>> model = RevIN(nk.models.NLinear(2, length=8))
    >>> params = model.init(jax.random.key(0), x)
    >>> moved = (model.apply(params, 10 * x + 3) - 3) / 10  # units do not matter
    >>> bool(jnp.allclose(moved, model.apply(params, x), atol=1e-4))
    True

    Kim et al., Reversible instance normalization, ICLR 2022, eq. 1 to 3.
    """

    model: nn.Module
    affine: bool = False
    last: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        series("RevIN", x)
        positive(epsilon=self.epsilon)
        modal = {"train": train} if "train" in _names(self.model) else {}

        def forecast(z):
            return self.model(z, **modal)

        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]) if self.affine else None
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]) if self.affine else None
        y, inside = reversible(forecast, x, scale, bias, last=self.last, epsilon=self.epsilon)
        return (y, inside) if intermediates else y


def reversible(inner, x, scale=None, bias=None, *, last=False, epsilon=1e-5):
    """inner(z) for x [b t f] at mean 0 and deviation 1, and back: ([b s f], statistics [b f]).

    What `RevIN` computes, with its scale and bias [f] (None: 1 and 0) given.

    Args:
      inner: [b t f] -> [b s f].
      x: [b t f] floats.
      scale: [f] g, or None.
      bias: [f] c, or None.
      last: take the last value off, not the mean.
      epsilon: keeps a constant window finite.

    Returns:
      (y [b s f], {"mean": [b f], "deviation": [b f]}).

    >>> reversible(lambda z: z, jnp.array([[[1.0], [3.0]]]))[0].round(4).tolist()
    [[[1.0], [3.0]]]

    Kim et al., Reversible instance normalization, ICLR 2022, eq. 1 to 3.
    """
    far = wide(x)
    mean = far[:, -1:] if last else far.mean(1, keepdims=True)  # [b 1 f]
    deviation = jnp.sqrt(far.var(1, keepdims=True) + epsilon)
    z = ((far - mean) / deviation).astype(x.dtype)
    if scale is not None and bias is not None:
        scale, bias = (p.astype(x.dtype)[None, None] for p in (scale, bias))
        y = (inner(z * scale + bias) - bias) / (scale + epsilon**2)
    else:
        y = inner(z)
    y = (y.astype(far.dtype) * deviation + mean).astype(x.dtype)
    return y, {"mean": mean[:, 0], "deviation": deviation[:, 0]}


def _names(model) -> tuple:
    """The parameters of a module's call."""
    return tuple(inspect.signature(type(model).__call__).parameters)
