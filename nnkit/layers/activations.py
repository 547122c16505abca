"""Activations: elementwise ones, gates of (gate, up), and (from their own file) probabilities.

Those that `jax.nn` has under the name of the field come from there. `gelu` is the erf form, as in
torch; the tanh approximation of GPT-2 has its own name, `gelu_tanh`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import (
    celu,
    elu,
    hard_sigmoid,
    hard_swish,
    hard_tanh,
    identity,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    swish,
    tanh,
)
from jax.nn import soft_sign as softsign

from nnkit.core.checks import sizes
from nnkit.layers.inputs import channels, real
from nnkit.layers.simplex import entmax15, softmax, sparsemax

__all__ = [
    "PReLU",
    "celu",
    "elu",
    "entmax15",
    "geglu",
    "gelu",
    "gelu_tanh",
    "glu",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "maxout",
    "mish",
    "prelu",
    "reglu",
    "relu",
    "relu2",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "sparsemax",
    "swiglu",
    "swish",
    "tanh",
]


def gelu(x):
    """The Gaussian error linear unit, exact.

    x Phi(x) = x (1 + erf(x / sqrt 2)) / 2.

    Args:
      x: [...] floats.

    Returns:
      [...] of the same dtype.

    >>> f"{gelu(jnp.array(1.0)):.4f} {gelu_tanh(jnp.array(1.0)):.4f}"
    '0.8413 0.8412'

    Hendrycks & Gimpel, arXiv:1606.08415, section 2.
    """
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x):
    """The tanh approximation of `gelu`: GPT-2's, "gelu_new" and "gelu_pytorch_tanh" elsewhere.

    x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2; off by up to 5e-4.

    Args:
      x: [...] floats.

    Returns:
      [...] of the same dtype.

    >>> f"{gelu_tanh(jnp.array(2.0)):.4f} {gelu(jnp.array(2.0)):.4f}"
    '1.9546 1.9545'

    Hendrycks & Gimpel, arXiv:1606.08415, section 2.
    """
    return jax.nn.gelu(x, approximate=True)


def relu2(x):
    """Squared ReLU.

    max(0, x)^2.

    Args:
      x: [...] floats.

    Returns:
      [...] of the same dtype.

    >>> relu2(jnp.array([-1.0, 3.0]))
    Array([0., 9.], dtype=float32)

    So et al., arXiv:2109.08668, section 3.1.
    """
    return jnp.square(relu(x))


def prelu(x, slope):
    """ReLU with a given slope below 0.

    max(0, x) + slope min(0, x).

    Args:
      x: [... c] floats.
      slope: [] or [c], of the same dtype.

    Returns:
      [... c].

    Raises:
      ValueError: if the slope is neither one number nor one per channel.

    >>> prelu(jnp.array([[-2.0, 3.0]]), jnp.array([0.5, 0.5]))
    Array([[-1.,  3.]], dtype=float32)

    He et al., arXiv:1502.01852, eq. 1.
    """
    if jnp.shape(slope) not in ((), (1,), x.shape[-1:]):
        raise ValueError(
            f"prelu: slope has shape {jnp.shape(slope)}, expected () or the channels of x, which "
            f"has shape {x.shape}"
        )
    return jnp.where(x > 0, x, jnp.reshape(slope, (1,) * (x.ndim - 1) + (-1,)) * x)


class PReLU(nn.Module):
    """ReLU with a learned slope below 0, `prelu`.

    Args:
      start: the slope it starts with.
      per_channel: one slope per channel; False learns one for all (torch's default).

    Call: x [... c] -> [... c]; param "slope" [1] or [c].

    Raises:
      TypeError: if x is no floats.
      ValueError: if x has other channels than the slopes.

    >>> PReLU().init_with_output(jax.random.key(0), jnp.array([-2.0, 3.0]))[0]
    Array([-0.5,  3. ], dtype=float32)

    He et al., arXiv:1502.01852, eq. 1.
    """

    start: float = 0.25
    per_channel: bool = False

    @nn.compact
    def __call__(self, x):
        x = real("PReLU", x)
        if self.per_channel:
            channels(self, x, "slope", axis=-1)
        shape = (x.shape[-1],) if self.per_channel else (1,)
        slope = self.param("slope", nn.initializers.constant(self.start), shape)
        return prelu(x, slope.astype(x.dtype))


def glu(gate, up):
    """Gated linear unit: one projection decides how much of the other passes.

    sigmoid(gate) up. torch's `glu` takes both from one array, [up, gate].

    Args:
      gate: [... d] the projection that goes through the activation.
      up: [... d] the projection that is multiplied.

    Returns:
      [... d].

    Raises:
      ValueError: if the shapes differ.

    >>> glu(jnp.array([0.0]), jnp.array([4.0]))
    Array([2.], dtype=float32)

    Dauphin et al., arXiv:1612.08083, eq. 1.
    """
    return _gated(sigmoid, gate, up)


def geglu(gate, up):
    """Gated unit with GELU (erf form).

    gelu(gate) up.

    Args:
      gate: [... d] the projection that goes through the activation.
      up: [... d] the projection that is multiplied.

    Returns:
      [... d].

    Raises:
      ValueError: if the shapes differ.

    >>> f"{geglu(jnp.array(1.0), jnp.array(2.0)):.4f}"
    '1.6827'

    Shazeer, arXiv:2002.05202, eq. 5.
    """
    return _gated(gelu, gate, up)


def swiglu(gate, up):
    """Gated unit with SiLU, of Llama and PaLM.

    silu(gate) up.

    Args:
      gate: [... d] the projection that goes through the activation.
      up: [... d] the projection that is multiplied.

    Returns:
      [... d].

    Raises:
      ValueError: if the shapes differ.

    >>> f"{swiglu(jnp.array(1.0), jnp.array(2.0)):.4f}"
    '1.4621'

    Shazeer, arXiv:2002.05202, eq. 5.
    """
    return _gated(silu, gate, up)


def reglu(gate, up):
    """Gated unit with ReLU.

    relu(gate) up.

    Args:
      gate: [... d] the projection that goes through the activation.
      up: [... d] the projection that is multiplied.

    Returns:
      [... d].

    Raises:
      ValueError: if the shapes differ.

    >>> reglu(jnp.array([-1.0, 2.0]), jnp.array([3.0, 3.0]))
    Array([0., 6.], dtype=float32)

    Shazeer, arXiv:2002.05202, eq. 5.
    """
    return _gated(relu, gate, up)


def maxout(x, pieces):
    """The maximum of each run of `pieces` features.

    y_i = max over j < pieces of x_(i pieces + j): with an affine layer before it, a convex
    piecewise linear unit.

    Args:
      x: [... d] floats, d divisible by pieces.
      pieces: how many features compete.

    Returns:
      [... d/pieces].

    Raises:
      TypeError: if pieces is no integer.
      ValueError: if it is not >= 1, or does not divide the features.

    >>> maxout(jnp.array([1.0, 5.0, 2.0, 0.0]), 2)
    Array([5., 2.], dtype=float32)

    Goodfellow et al., arXiv:1302.4389, section 3.
    """
    sizes("maxout", pieces=pieces)
    if x.ndim == 0 or x.shape[-1] % pieces:
        raise ValueError(
            f"maxout: x has shape {x.shape}, expected a last axis divisible by pieces={pieces}"
        )
    return jnp.reshape(x, (*x.shape[:-1], -1, pieces)).max(-1)


def _gated(activation, gate, up):
    if gate.shape != up.shape:
        raise ValueError(f"gate has shape {gate.shape} and up has shape {up.shape}, expected equal")
    return activation(gate) * up
