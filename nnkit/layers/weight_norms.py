"""Normalisation of weights: a layer around a layer, which computes with another kernel."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nnkit.core.checks import sizes
from nnkit.layers.inputs import real, wide

__all__ = ["SpectralNorm", "WeightNorm"]


class WeightNorm(nn.Module):
    """A layer whose kernel is learned as length and direction, one length per output.

    W = g v / |v|, the norm over everything but the outputs. g starts at |v|, so that W starts as
    the layer's own.

    Args:
      layer: a layer with a param "kernel" [... o], such as Dense(8) or Conv(8, (3, 3)).

    Call: what the layer takes -> what it gives; params: the layer's own (its "kernel" is v) and
    "scale" (g [o]).

    Raises:
      TypeError: when first used, if the layer is no Linen module.
      ValueError: if it has no param "kernel", or keeps a state.

    >>> x, layer = jnp.ones((2, 3)), WeightNorm(nn.Dense(4))
    >>> params = layer.init(jax.random.key(0), x)["params"]
    >>> params["scale"].shape, params["kernel"].shape
    ((4,), (3, 4))

    Salimans & Kingma, arXiv:1602.07868, eq. 2.
    """

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        layer, params = _inner(self, x)
        v = wide(params["kernel"])
        scale = self.param("scale", lambda _: jnp.sqrt(_squares(v)).astype(jnp.float32))
        length = lax.rsqrt(jnp.maximum(_squares(v), jnp.finfo(v.dtype).tiny))
        kernel = v * jnp.reshape(scale.astype(v.dtype) * length, (1,) * (v.ndim - 1) + (-1,))
        kernel = kernel.astype(params["kernel"].dtype)
        return layer.apply({"params": {**params, "kernel": kernel}}, x)


class SpectralNorm(nn.Module):
    """A layer whose kernel is divided by its largest singular value.

    W / s, s = u . W v with W as a matrix [o, rest]; while training each call takes `steps` power
    iterations u = W v / |W v|, v = W'u / |W'u| (as torch orders them), which count as constants in
    the gradient.

    Args:
      layer: a layer with a param "kernel" [... o], such as Dense(8) or Conv(8, (3, 3)).
      steps: power iterations per call in training; 15 more when it starts.
      epsilon: smallest length of a vector that is divided by.

    Call: what the layer takes, *, train=False -> what it gives; params: the layer's own; "u" [o],
    "v" [rest] and the last "sigma" [] in the collection "batch_stats".

    Raises:
      TypeError: when first used, if the layer is no Linen module, or steps no integer.
      ValueError: if it has no param "kernel", or keeps a state; if steps is not >= 1.

    >>> x, layer = jnp.eye(3), SpectralNorm(nn.Dense(3, use_bias=False))
    >>> y = layer.init_with_output(jax.random.key(0), x)[0]
    >>> float(np.linalg.norm(y, 2).round(2))
    1.0

    Miyato et al., arXiv:1802.05957, algorithm 1.
    """

    layer: nn.Module
    steps: int = 1
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        sizes("SpectralNorm", steps=self.steps)
        layer, params = _inner(self, x)
        kernel = wide(params["kernel"])
        w = jnp.reshape(kernel, (-1, kernel.shape[-1])).T  # [o rest]
        still = lax.stop_gradient(w)

        def start(axis):
            key = self.make_rng("params")
            return _unit(jax.random.normal(key, (w.shape[axis],), jnp.float32), self.epsilon)

        u = self.variable("batch_stats", "u", start, 0)
        v = self.variable("batch_stats", "v", start, 1)
        sigma = self.variable("batch_stats", "sigma", jnp.ones, (), jnp.float32)
        a, b = u.value.astype(w.dtype), v.value.astype(w.dtype)
        if train or self.is_initializing():
            for _ in range(15 if self.is_initializing() else self.steps):
                a = _unit(still @ b, self.epsilon)
                b = _unit(still.T @ a, self.epsilon)
        s = a @ (w @ b)
        if train or self.is_initializing():
            u.value, v.value = a.astype(u.value.dtype), b.astype(v.value.dtype)
            sigma.value = lax.stop_gradient(s).astype(sigma.value.dtype)
        kernel = (kernel / s).astype(params["kernel"].dtype)
        return layer.apply({"params": {**params, "kernel": kernel}}, x)


def _inner(module, x):
    """The layer on its own, and its params, which are ours under the same names."""
    name = type(module).__name__
    real(name, x)
    if not isinstance(module.layer, nn.Module):
        raise TypeError(
            f"{name}: layer is {module.layer!r:.60}, expected a layer such as layers.Dense(8)"
        )
    layer = module.layer.clone(parent=None, name=None)
    if not module.is_initializing():
        mine = module.variables["params"]
        return layer, {k: v for k, v in mine.items() if k != "scale"}
    made = dict(layer.init(module.make_rng("params"), x))
    params = made.pop("params", {})
    if "kernel" not in params or made:
        there = ", ".join(repr(k) for k in [*params, *made]) or "nothing"
        raise ValueError(
            f"{name}: {type(layer).__name__} has {there}, expected a param 'kernel' and no state; "
            "wrap a Dense or a Conv, one at a time"
        )
    return layer, {k: module.param(k, lambda _, v=v: v) for k, v in params.items()}


def _squares(v):
    """The squared norm [o] of each output's weights."""
    return jnp.square(v).sum(tuple(range(v.ndim - 1)))


def _unit(x, epsilon: float):
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum()), epsilon)
