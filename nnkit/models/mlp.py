"""Multilayer networks: the linear model, and the perceptron with hidden layers.

Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0. Differs from it: ReLU by default, and
weights from a normal of variance 2 / fan-in (He et al., arXiv:1502.01852) for it.

    MLP((800, 800, 10))      the 2x800 network of Simard et al. 2003 on MNIST: 1,276,810 weights
    MLP((300, 100, 10))      LeNet-300-100 of LeCun et al. 1998, doi:10.1109/5.726791
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from nnkit.core.checks import shares, sizes

__all__ = ["MLP", "Linear"]


class Linear(nn.Module):
    """One affine layer on the flattened input: logistic regression with `losses.cross_entropy`.

    y = x W + b, W and b from 0 (the problem is convex).

    Args:
      width: number of outputs.

    Call: x [b ...] -> [b width]; with intermediates=True ([b width], {}).

    Raises:
      TypeError: when first used, if the width is no integer.
      ValueError: if it is not >= 1, or x has no batch axis.

    >>> Linear(10).init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 1)))[0].shape
    (2, 10)

    Cox 1958, doi:10.1111/j.2517-6161.1958.tb00292.x.
    """

    width: int

    @nn.compact
    def __call__(self, x, *, intermediates: bool = False):
        sizes("Linear", width=self.width)
        x = _flat(x)  # [b d]
        y = nn.Dense(self.width, kernel_init=nn.initializers.zeros, name="head")(x)  # [b width]
        return (y, {}) if intermediates else y


class MLP(nn.Module):
    """A multilayer perceptron on the flattened input.

    h_i = dropout(activation(h_(i-1) W_i + b_i)); the last layer is affine alone.

    Args:
      widths: outputs of each layer, the last one the outputs of the model.
      activation: elementwise function.
      dropout: share of hidden units set to 0 while training; the others are scaled by 1/(1-p).
      dropout_in: the same for the inputs.

    Call: x [b ...], train=False -> [b widths[-1]]; with intermediates=True also a dict
    {"hidden_0": [b widths[0]], ...} of what each hidden layer gives.

    Raises:
      TypeError: when first used, if widths are no list of integers, or a field is of another kind.
      ValueError: if there is no width, one is not >= 1, or a dropout is not in [0, 1).

    >>> model, x = MLP(widths=(16, 10)), jnp.ones((2, 8, 8, 1))
    >>> y, inside = model.init_with_output(jax.random.key(0), x, intermediates=True)[0]
    >>> y.shape, inside["hidden_0"].shape
    ((2, 10), (2, 16))

    Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0; dropout: Srivastava et al. 2014.
    """

    widths: Sequence[int]
    activation: Callable = nn.relu
    dropout: float = 0.0
    dropout_in: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False, intermediates: bool = False):
        sizes("MLP", many=True, widths=self.widths)
        shares("MLP", dropout=self.dropout, dropout_in=self.dropout_in)
        if not callable(self.activation):
            raise TypeError(
                f"MLP: activation is {self.activation!r:.60}, expected a function such as nn.relu"
            )
        inside = {}
        h = nn.Dropout(self.dropout_in, deterministic=not train)(_flat(x))  # [b d]
        for i, width in enumerate(self.widths[:-1]):
            h = nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"dense_{i}")(h)
            h = self.activation(h)  # [b width]
            inside[f"hidden_{i}"] = h
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        y = nn.Dense(self.widths[-1], name="head")(h)  # [b c]
        return (y, inside) if intermediates else y


def _flat(x):
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, expected [b ...] with a leading batch axis")
    return jnp.reshape(x, (x.shape[0], -1))
