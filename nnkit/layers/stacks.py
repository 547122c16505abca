"""Recurrent layers together: both directions, one above the other; cut gradients, and a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nnkit.core import trees
from nnkit.core.checks import shares
from nnkit.layers.drop import Dropout

__all__ = ["Bidirectional", "Stacked", "detach", "probe"]


class Bidirectional(nn.Module):
    """A recurrent layer from the left and one of its kind from the right, side by side.

    y_t = [forward_t, backward_t]. Parameters: those of the layer under "forward" and "backward".

    Args:
      forward: a recurrent layer such as LSTM(64); the other is its copy with reverse=True.

    Call: x [b t d], mask=None [b t], state=None, train=False -> (y [b t 2f], state), a state
    being {"forward": ..., "backward": ...}.

    Raises:
      TypeError: when first used, if `forward` is no recurrent layer.
      ValueError: if the layer is reversed already.

    >>> both = Bidirectional(nk.layers.LSTM(8))
    >>> both.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0][0].shape
    (2, 5, 16)

    Schuster & Paliwal 1997, doi:10.1109/78.650093.
    """

    forward: nn.Module

    def setup(self):
        if not hasattr(self.forward, "reverse"):
            raise TypeError(
                f"Bidirectional: forward is {self.forward!r:.60}, expected a layer with a field "
                "`reverse`, such as LSTM(64)"
            )
        if self.forward.reverse:
            raise ValueError("Bidirectional: forward has reverse=True, expected reverse=False")
        self.backward = self.forward.clone(parent=None, name=None, reverse=True)

    def __call__(self, x, mask=None, state=None, *, train: bool = False):
        state = {"forward": None, "backward": None} if state is None else state
        right, after = self.forward(x, mask, state["forward"], train=train)
        left, before = self.backward(x, mask, state["backward"], train=train)
        return jnp.concatenate([right, left], -1), {"forward": after, "backward": before}

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> dict:
        """The states of zeros of both."""
        one = self.forward.start(batch, dtype)
        return {"forward": one, "backward": jax.tree.map(jnp.zeros_like, one)}


class Stacked(nn.Module):
    """Recurrent layers one above the other, with dropout between them.

    Parameters: those of the layers under "layers_0", "layers_1", ...

    Args:
      layers: recurrent layers, each fed with what the one before gives.
      dropout: share of what goes from layer to layer that is set to 0 while training.
      locked: the same units at every step of a sequence (variational dropout), instead of others.

    Call: x [b t d], mask=None [b t], state=None, train=False -> (y [b t f], state), a state being
    the tuple of the states of the layers.

    Raises:
      ValueError: when first used, if there is no layer, the dropout is not in [0, 1), or the state
        is not one per layer.

    >>> stack = Stacked([nk.layers.LSTM(8), nk.layers.LSTM(4)], dropout=0.5)
    >>> (y, state), _ = stack.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> y.shape, len(state)
    ((2, 5, 4), 2)

    Graves et al., arXiv:1303.5778 (stacking); Zaremba et al., arXiv:1409.2329 (dropout between
    layers); Gal & Ghahramani, arXiv:1512.05287 (locked).
    """

    layers: Sequence[nn.Module]
    dropout: float = 0.0
    locked: bool = False

    @nn.compact
    def __call__(self, x, mask=None, state=None, *, train: bool = False):
        n = len(self.layers)
        if not n:
            raise ValueError("Stacked: there is no layer, expected at least one, such as LSTM(64)")
        shares("Stacked", dropout=self.dropout)
        state = (None,) * n if state is None else state
        if len(state) != n:
            raise ValueError(f"Stacked: state has {len(state)} parts, expected {n}: one per layer")
        drop = Dropout(self.dropout, broadcast_dims=(1,) if self.locked else ())
        found = []
        for i, layer in enumerate(self.layers):
            x = drop(x, train=train) if i else x
            x, last = layer(x, mask, state[i], train=train)
            found.append(last)
        return x, tuple(found)

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> tuple:
        """The states of zeros of all layers."""
        return tuple(layer.start(batch, dtype) for layer in self.layers)


def detach(state):
    """The same state, through which no gradient flows: truncated backpropagation through time.

    Args:
      state: a tree of arrays [b f], as a recurrent layer gives it.

    Returns:
      The same tree of arrays [b f].

    >>> float(jax.grad(lambda h: detach({"h": h})["h"] * 2)(1.0))
    0.0

    Williams & Peng 1990, doi:10.1162/neco.1990.2.4.490.
    """
    return jax.tree.map(jax.lax.stop_gradient, state)


def probe(module: nn.Module, variables, loss: Callable, *inputs, **options) -> dict[str, jax.Array]:
    """How much of the gradient of a loss reaches each hidden state: |dL/dh_t| for every t.

    Zeros e_t are added to every h_t (so that h_t acts on the output and on h_(t+1) as ever), and
    L is differentiated by them: dL/dh_t = dL/de_t. The norm is over the features of each example.
    Where it falls geometrically towards early steps, the gradient vanishes.

    Args:
      module: a recurrent layer, or a model that contains some.
      variables: of `module.init`: {"params": ..., ...}.
      loss: what the module gives -> [] a number. A sum over examples: each norm is its example's
        own; a mean: it is divided by b.
      *inputs: of the module, such as x [b t d] and a mask [b t].
      **options: of the module by name, such as train=True, rngs=... .

    Returns:
      {path: [b t]} for every recurrent layer, such as {"rnn_0/h": ...}; 0 at padded steps.

    Raises:
      ValueError: if the module contains no recurrent layer.

    >>> layer, x = nk.layers.RNN(4, activation=lambda z: z), jnp.ones((2, 3, 1))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> norms = probe(layer, variables, lambda out: out[1]["h"][:, 0].sum(), x)
    >>> norms["h"].round(4)  # a linear network with orthogonal U keeps the norm
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)

    Pascanu et al., arXiv:1211.5063, eq. 4 and 5.
    """

    def places():
        found = module.apply(variables, *inputs, mutable=["perturbations"], **options)[1]
        return found.get("perturbations", {})

    shapes = jax.eval_shape(places)
    if not jax.tree.leaves(shapes):
        raise ValueError(
            f"probe: {type(module).__name__} contains no recurrent layer; it looks into RNN, LSTM "
            "and GRU of nnkit.layers"
        )

    def total(nudges):
        return loss(module.apply({**variables, "perturbations": nudges}, *inputs, **options))

    slopes = jax.grad(total)(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    return {path: jnp.linalg.norm(x, axis=-1) for path, x in trees.paths(slopes)}
