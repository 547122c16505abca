"""The norm of Gemma: its parameter is the distance of the scale from 1."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nnkit.layers.norms import RMSNorm

__all__ = ["ShiftedRMSNorm"]


class ShiftedRMSNorm(nn.Module):
    """Divides by the root mean square and multiplies with 1 + scale, as Gemma does.

    y = (1 + scale) x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 or wider. Keeping
    scale itself, as the files have it, loses no bit: in bfloat16, 1 + 0.001 is 1.

    Args:
      epsilon: added to the mean square.

    Call: x [... d] -> [... d]; param "scale", which starts from 0.

    Raises:
      TypeError: if x is no floats.
      ValueError: if epsilon is not > 0, or x has other features than the weights.

    >>> y, params = ShiftedRMSNorm().init_with_output(jax.random.key(0), jnp.array([[3.0, 3.0]]))
    >>> y.round(3), params["params"]["scale"]
    (Array([[1., 1.]], dtype=float32), Array([0., 0.], dtype=float32))

    Gemma Team, arXiv:2403.08295, section 2; Zhang & Sennrich, arXiv:1910.07467, eq. 4.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        x = jnp.asarray(x)
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])
        kind = jnp.promote_types(x.dtype, jnp.float32)
        y = RMSNorm(self.epsilon, use_scale=False, name="rms")(x.astype(kind))
        y = y * (1 + scale.astype(kind)).reshape((1,) * (x.ndim - 1) + (-1,))
        return y.astype(x.dtype)
