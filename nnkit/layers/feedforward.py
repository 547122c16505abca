"""The position-wise network of a Transformer block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from nnkit.core.checks import shares, sizes
from nnkit.layers.activations import gelu
from nnkit.layers.dense import Dense
from nnkit.layers.drop import Dropout

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Two affine maps with an activation between, on every token by itself.

    plain: dropout(a(x W_up)) W_down; gated: dropout(a(x W_gate) * (x W_up)) W_down, with a the
    activation. Gated with silu is SwiGLU, with gelu GEGLU, with relu ReGLU, with sigmoid GLU; plain
    with the square of relu is ReLU^2.

    The parameters are up, down (and gate), each with `kernel` (and bias).

    Args:
      hidden: width between the two maps.
      activation: elementwise function; the exact GELU (with erf) by default.
      gated: multiply by a second map.
      use_bias: do the maps have biases?
      dropout: share of hidden units set to 0 while training.
      kernel_init: of up and gate.
      out_init: of down; None: kernel_init.

    Call: x [b t d] (any [... d]), train=False -> [b t d].

    Raises:
      TypeError: if the activation is no function, or a field is of another kind.
      ValueError: if hidden is not >= 1 or dropout not in [0, 1).

    >>> layer = FeedForward(hidden=16, activation=nn.silu, gated=True, use_bias=False)
    >>> y, params = layer.init_with_output(jax.random.key(0), jnp.ones((1, 3, 4)))
    >>> y.shape, sorted(params["params"])
    ((1, 3, 4), ['down', 'gate', 'up'])

    Vaswani et al., arXiv:1706.03762, eq. 2; gated: Shazeer, arXiv:2002.05202, eq. 5 and 6.
    """

    hidden: int
    activation: Callable = gelu
    gated: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        sizes("FeedForward", hidden=self.hidden)
        shares("FeedForward", dropout=self.dropout)
        if not callable(self.activation):
            raise TypeError(
                f"FeedForward: activation is {self.activation!r:.60}, expected a function such as "
                "nn.silu"
            )
        shape = {"use_bias": self.use_bias, "kernel_init": self.kernel_init}
        h = Dense(self.hidden, name="up", **shape)(x)  # [... hidden]
        if self.gated:
            h = self.activation(Dense(self.hidden, name="gate", **shape)(x)) * h
        else:
            h = self.activation(h)
        h = Dropout(self.dropout)(h, train=train)
        out_init = self.out_init or self.kernel_init
        return Dense(x.shape[-1], use_bias=self.use_bias, kernel_init=out_init, name="down")(h)
