"""Normalisation of activations. Statistics in float32 or wider, outputs in the dtype of x."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from nnkit.core.checks import positive, sizes
from nnkit.layers.inputs import channels, real, wide
from nnkit.layers.moments import moments, normalise
from nnkit.layers.weight_norms import SpectralNorm, WeightNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "ShiftedRMSNorm",
    "SpectralNorm",
    "WeightNorm",
    "moments",
    "normalise",
]


class BatchNorm(nn.Module):
    """Normalises each channel by its statistics over the batch; by running ones in evaluation.

    Training: y = scale (x - mean) / sqrt(var + epsilon) + bias over all axes but the last, with
    the variance / n; running = momentum running + (1 - momentum) batch. Evaluation reads the
    running statistics and changes nothing.

    Args:
      momentum: share of the old running statistics that is kept; torch's momentum is 1 minus it.
      epsilon: added to the variance.
      unbiased: the running variance takes n / (n - 1) of the batch's, as in torch; False takes it
        as it is, as in flax.
      use_scale: False leaves the scale out.
      use_bias: False leaves the bias out.
      scale_init: of scale [c].
      bias_init: of bias [c].

    Call: x [b ... c], mask=None [b] or [b ...] (True for what counts), *, train=False -> [b ... c].
    Params "scale", "bias"; "mean" [c] and "var" [c], float32, in the collection "batch_stats".
    A batch that is masked altogether leaves the running statistics alone.

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0 or momentum not in [0, 1]; x has no batch axis, other
        channels than the weights, or one value per channel in training; the mask does not fit.

    >>> x, norm = jnp.array([[1.0], [3.0]]), BatchNorm()
    >>> y, new = norm.apply(norm.init(jax.random.key(0), x), x, train=True, mutable="batch_stats")
    >>> y[:, 0].round(3), new["batch_stats"]["var"].round(3)
    (Array([-1.,  1.], dtype=float32), Array([1.1], dtype=float32))

    Ioffe & Szegedy, arXiv:1502.03167, algorithms 1 and 2.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False):
        x = _checked(self, x, 2, "[b ... c]")
        if not 0 <= self.momentum <= 1:
            raise ValueError(
                f"BatchNorm: momentum is {self.momentum}, expected the share in [0, 1] of the "
                "running statistics that is kept"
            )
        shape, many = (x.shape[-1],), x.size // max(x.shape[-1], 1)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale, bias = _affine(self, x)
        row = (1,) * (x.ndim - 1) + shape
        if not train:
            now, spread = jnp.reshape(mean.value, row), jnp.reshape(var.value, row)
        elif many < 2 and not self.is_initializing():
            raise ValueError(
                f"BatchNorm: x has shape {x.shape}, one value per channel, expected at least 2 "
                "while training: their variance is 0; use a larger batch, or LayerNorm"
            )
        else:
            mask = None if mask is None else _below(mask, x)
            now, spread, n = moments(x, range(x.ndim - 1), mask)
            if not self.is_initializing():
                self._remember(mean, now, n)
                n = jnp.asarray(n, spread.dtype)
                right = n / jnp.maximum(n - 1, 1) if self.unbiased else 1
                self._remember(var, spread * right, n)
        return normalise(x, now, spread, epsilon=self.epsilon, scale=scale, bias=bias)

    def _remember(self, running, seen, n):
        old, seen = running.value, lax.stop_gradient(jnp.reshape(seen, (-1,)))
        new = self.momentum * old + (1 - self.momentum) * seen.astype(old.dtype)
        running.value = jnp.where(jnp.reshape(jnp.asarray(n), (-1,)) > 0, new, old)


class LayerNorm(nn.Module):
    """Normalises the features of each position by their own mean and variance.

    y = scale (x - mean) / sqrt(var + epsilon) + bias over the last axis, the variance / d.

    Args:
      epsilon: added to the variance; 1e-5 as in torch (flax 1e-6, BERT 1e-12).
      use_scale: False leaves the scale out.
      use_bias: False leaves the bias out.
      scale_init: of scale [d].
      bias_init: of bias [d].

    Call: x [... d] -> [... d]; params "scale" and "bias".

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0, x is a scalar or has other features than the weights.

    >>> LayerNorm().init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0]]))[0].round(3)
    Array([[-1.,  1.]], dtype=float32)

    Ba, Kiros & Hinton, arXiv:1607.06450, eq. 3.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        x = _checked(self, x, 1, "[... d]")
        scale, bias = _affine(self, x)
        mean, var, _ = moments(x, -1)
        return normalise(x, mean, var, epsilon=self.epsilon, scale=scale, bias=bias)


class GroupNorm(nn.Module):
    """Normalises groups of channels of each example over all its positions.

    y = scale (x - mean) / sqrt(var + epsilon) + bias, mean and var over the positions and the
    c / groups channels of a group. groups=c is `InstanceNorm`.

    Args:
      groups: number of groups, divides the channels.
      epsilon: added to the variance.
      use_scale: False leaves the scale out.
      use_bias: False leaves the bias out.
      scale_init: of scale [c].
      bias_init: of bias [c].

    Call: x [b ... c] -> [b ... c]; params "scale" and "bias".

    Raises:
      TypeError: if groups is no integer, or x no floats.
      ValueError: if the groups do not divide the channels, epsilon is not > 0, x has no batch axis
        or other channels than the weights.

    >>> x = jnp.arange(16.0).reshape(1, 2, 2, 4)
    >>> y = GroupNorm(2).init_with_output(jax.random.key(0), x)[0]
    >>> abs(float(y[..., :2].mean())) < 1e-6, float(y[..., :2].var().round(3))
    (True, 1.0)

    Wu & He, arXiv:1803.08494, eqs. 1-7.
    """

    groups: int = 32
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        sizes("GroupNorm", groups=self.groups)
        x = _checked(self, x, 2, "[b ... c]")
        if x.shape[-1] % self.groups:
            raise ValueError(
                f"GroupNorm: groups={self.groups} does not divide the {x.shape[-1]} channels of x, "
                f"which has shape {x.shape}; channels are the last axis"
            )
        return _grouped(self, x, self.groups)


class InstanceNorm(nn.Module):
    """Normalises each channel of each example over its positions.

    y = scale (x - mean) / sqrt(var + epsilon) + bias, mean and var over the axes between the
    first and the last.

    Args:
      epsilon: added to the variance.
      use_scale: False leaves the scale out (torch's default).
      use_bias: False leaves the bias out (torch's default).
      scale_init: of scale [c].
      bias_init: of bias [c].

    Call: x [b ... c] -> [b ... c]; params "scale" and "bias".

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0, x has fewer than two positions, or other channels than the
        weights.

    >>> x = jnp.array([[[1.0, 5.0], [3.0, 9.0]]])
    >>> InstanceNorm().init_with_output(jax.random.key(0), x)[0].round(3)
    Array([[[-1., -1.],
            [ 1.,  1.]]], dtype=float32)

    Ulyanov, Vedaldi & Lempitsky, arXiv:1607.08022, eq. 4.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        x = _checked(self, x, 3, "[b ... c] with at least two positions in between")
        if math.prod(x.shape[1:-1]) < 2:
            raise ValueError(
                f"InstanceNorm: x has shape {x.shape}, one position per channel, expected at "
                "least 2: the variance of one is 0; use LayerNorm"
            )
        return _grouped(self, x, x.shape[-1])


class RMSNorm(nn.Module):
    """Divides the features of each position by their root mean square.

    y = scale x / sqrt(mean(x^2) + epsilon) over the last axis.

    Args:
      epsilon: added to the mean square.
      use_scale: False leaves the scale out.
      scale_init: of scale [d].

    Call: x [... d] -> [... d]; param "scale".

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0, x is a scalar or has other features than the weights.

    >>> RMSNorm().init_with_output(jax.random.key(0), jnp.array([[3.0, 3.0]]))[0].round(3)
    Array([[1., 1.]], dtype=float32)

    Zhang & Sennrich, arXiv:1910.07467, eq. 4.
    """

    epsilon: float = 1e-6
    use_scale: bool = True
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        x = _checked(self, x, 1, "[... d]")
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else None
        y = wide(x)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        if scale is not None:
            y = y * jnp.reshape(scale, (1,) * (x.ndim - 1) + shape).astype(y.dtype)
        return y.astype(x.dtype)


class ShiftedRMSNorm(nn.Module):
    """RMS norm whose parameter is the distance of the scale from 1, as Gemma keeps it.

    y = (1 + scale) x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 or wider. Keeping
    the distance loses no bit of small scales: in bfloat16, 1 + 0.001 is 1.

    Args:
      epsilon: added to the mean square.

    Call: x [... d] -> [... d]; param "scale", which starts from 0.

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0, x is a scalar or has other features than the weights.

    >>> y, params = ShiftedRMSNorm().init_with_output(jax.random.key(0), jnp.array([[3.0, 3.0]]))
    >>> y.round(3), params["params"]["scale"]
    (Array([[1., 1.]], dtype=float32), Array([0., 0.], dtype=float32))

    Gemma Team, arXiv:2403.08295, section 2; Zhang & Sennrich, arXiv:1910.07467, eq. 4.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        x = _checked(self, x, 1, "[... d]")
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.zeros, shape)
        y = wide(x)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        y = y * (1 + jnp.reshape(scale, (1,) * (x.ndim - 1) + shape).astype(y.dtype))
        return y.astype(x.dtype)


def _checked(module, x, rank: int, said: str):
    """x as floats of at least that rank, with the features that the weights have."""
    name = type(module).__name__
    positive(epsilon=module.epsilon)
    x = real(name, x)
    if x.ndim < rank:
        raise ValueError(f"{name}: x has shape {x.shape}, expected {said}")
    for weight in ("scale", "bias"):
        channels(module, x, weight, axis=-1)
    return x


def _affine(module, x):
    """Scale and bias [1 ... c], None where they are left out."""
    shape, row = (x.shape[-1],), (1,) * (x.ndim - 1) + (x.shape[-1],)
    scale = module.param("scale", module.scale_init, shape) if module.use_scale else None
    bias = module.param("bias", module.bias_init, shape) if module.use_bias else None
    return tuple(None if w is None else jnp.reshape(w, row) for w in (scale, bias))


def _grouped(module, x, groups: int):
    """x [b ... c] normalised over its positions and the channels of each group."""
    scale, bias = _affine(module, x)
    split = jnp.reshape(x, (x.shape[0], -1, groups, x.shape[-1] // groups))  # [b p g c/g]
    mean, var, _ = moments(split, (1, 3))
    row = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    mean, var = (jnp.reshape(jnp.repeat(m, split.shape[-1], 3), row) for m in (mean, var))
    return normalise(x, mean, var, epsilon=module.epsilon, scale=scale, bias=bias)


def _below(mask, x):
    """A mask [b] or [b ...] with trailing axes, of the rank of x [b ... c]."""
    shape = jnp.shape(mask)
    if not shape or len(shape) >= x.ndim or shape != x.shape[: len(shape)]:
        raise ValueError(
            f"BatchNorm: mask has shape {shape}, expected the leading axes of x, which has shape "
            f"{x.shape}: [b] or [b ...] without channels"
        )
    return jnp.reshape(mask, shape + (1,) * (x.ndim - len(shape)))
