"""Starts of weights: functions (key, shape, dtype) -> array, as in `jax.nn.initializers`.

Fans are named: `lecun_*` and `he_*` divide by fan-in, `glorot_*` by the mean of fan-in and
fan-out; `variance_scaling(scale, "fan_out", "normal")` says it in full. A kernel is [... i o]: the
fan-in is everything but the last axis. `delta_orthogonal` is for convolutions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import (
    constant,
    delta_orthogonal,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    uniform,
    variance_scaling,
    zeros,
)

from nnkit.core.checks import positive, shares

__all__ = [
    "Width",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "mup",
    "normal",
    "ones",
    "orthogonal",
    "scaled",
    "sparse",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "zeros",
]

_CUT = 0.87962566103423978  # standard deviation of a normal cut at -2 and 2


def truncated_normal(stddev=0.02):
    """A normal distribution cut at two standard deviations, whose own one is what is asked for.

    w = stddev / 0.8796 z, z ~ N(0, 1) given |z| < 2. `jax.nn.initializers.truncated_normal` and
    torch's `trunc_normal_` leave the division out: 12 % less.

    Args:
      stddev: standard deviation of the result, > 0.

    Returns:
      A function (key, shape, dtype) -> [shape].

    Raises:
      ValueError: if stddev is not > 0.

    >>> f"{truncated_normal(0.5)(jax.random.key(0), (400, 400)).std():.2f}"
    '0.50'

    Johnson, Kotz & Balakrishnan, Continuous Univariate Distributions, 1994, section 13.10.1.
    """
    positive(stddev=stddev)

    def init(key, shape, dtype=jnp.float32, *_):
        return (stddev / _CUT) * jax.random.truncated_normal(key, -2, 2, shape, dtype)

    return init


def sparse(sparsity, stddev=0.01):
    """Normal weights, most of them 0: every output hears only some of the inputs.

    Of each output's incoming weights, ceil(sparsity fan-in) at random places are 0. (torch's
    `sparse_` counts along the outputs of each input instead.)

    Args:
      sparsity: share that is 0, in [0, 1).
      stddev: standard deviation of the others, > 0.

    Returns:
      A function (key, shape, dtype) -> [... i o].

    Raises:
      TypeError: if sparsity is no number.
      ValueError: if it is not in [0, 1), or stddev not > 0; when used, if the shape is no matrix
        or kernel.

    >>> w = sparse(0.9)(jax.random.key(0), (20, 3))
    >>> (w != 0).sum(0)
    Array([2, 2, 2], dtype=int32)

    Martens 2010, Deep learning via Hessian-free optimization, section 5.
    """
    shares("sparse", sparsity=sparsity)
    positive(stddev=stddev)

    def init(key, shape, dtype=jnp.float32, *_):
        if len(shape) < 2:
            raise ValueError(f"sparse: shape is {shape}, expected [... i o], a matrix or a kernel")
        value, place = jax.random.split(key)
        w = stddev * jax.random.normal(value, (math.prod(shape[:-1]), shape[-1]), dtype)
        ranks = jnp.broadcast_to(jnp.arange(len(w))[:, None], w.shape)
        ranks = jax.random.permutation(place, ranks, independent=True)
        return jnp.reshape(jnp.where(ranks >= math.ceil(sparsity * len(w)), w, 0), shape)

    return init


def scaled(init, factor):
    """Another start, times a number.

    factor init(key, shape): 1 / sqrt(2 n) on the last matrices of n residual blocks (GPT-2), the
    `mup` factors, a gain.

    Args:
      init: a function (key, shape, dtype) -> [shape].
      factor: [] a number.

    Returns:
      A function (key, shape, dtype) -> [shape].

    >>> scaled(ones, 0.5)(jax.random.key(0), (2,))
    Array([0.5, 0.5], dtype=float32)

    Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    def start(key, shape, dtype=jnp.float32, *rest):
        return jnp.asarray(factor, dtype) * init(key, shape, dtype, *rest)

    return start


class Width(NamedTuple):
    """What changes with the width: two factors on what was right at the base width.

    Attributes:
      stddev: on the standard deviation of the weights at the start.
      learning_rate: on the learning rate.

    >>> Width(stddev=0.5, learning_rate=0.25).learning_rate
    0.25

    Yang et al., arXiv:2203.03466, table 3.
    """

    stddev: float
    learning_rate: float


def mup(kind, ratio, *, optimizer="adam"):
    """The maximal update parametrisation: factors that keep learning alike as the width grows.

    With r = width / base width: input weights and biases 1, hidden matrices stddev / sqrt(r),
    output weights stddev / r; learning rate of Adam 1, 1/r, 1/r, of SGD r, 1, 1/r. Attention
    scores are divided by the head size, not by its root. ratio 1 changes nothing.

    Args:
      kind: "input" (fan-in fixed: first layer, embeddings, all biases and gains), "hidden" (both
        fans grow) or "output" (fan-out fixed: the head).
      ratio: width / base width, > 0.
      optimizer: "adam" (and its relatives) or "sgd".

    Returns:
      A `Width`: factors (stddev, learning_rate) on the values of the base width. The factor on
      stddev is against a fixed one: `lecun_normal` brings 1 / sqrt(r) of its own.

    Raises:
      KeyError: if kind or optimizer is another word.
      ValueError: if ratio is not > 0.

    >>> mup("hidden", 4.0)
    Width(stddev=0.5, learning_rate=0.25)

    Yang et al., arXiv:2203.03466, table 3.
    """
    positive(ratio=ratio)
    rates = {
        "adam": {"input": 1.0, "hidden": 1 / ratio, "output": 1 / ratio},
        "sgd": {"input": ratio, "hidden": 1.0, "output": 1 / ratio},
    }
    if optimizer not in rates:
        raise KeyError(f"mup: optimizer is {optimizer!r}, expected 'adam' or 'sgd'")
    if kind not in rates[optimizer]:
        raise KeyError(f"mup: kind is {kind!r}, expected 'input', 'hidden' or 'output'")
    spread = {"input": 1.0, "hidden": ratio**-0.5, "output": 1 / ratio}
    return Width(spread[kind], rates[optimizer][kind])
