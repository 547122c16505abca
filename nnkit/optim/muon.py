"""Muon: momentum made orthogonal, for the hidden matrices; another optimizer for the rest.

Written from the author's program with optax's parts. `optax.contrib.muon` differs from it: it
corrects the bias of both terms of Nesterov's momentum, which mixes them differently in the first
steps, takes every matrix (the embeddings and the head as well), and gives the rest a NAdam.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnkit.core.checks import concrete
from nnkit.core.trees import path_name, paths

__all__ = ["muon", "muon_labels", "orthogonalise"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
REST = re.compile(r"embed|position|_token|cls|patch|stem|norm|scale|bias|gamma|peephole", re.I)
HEAD = re.compile(r"(?:^|/)(?:\w*_)?(?:head|logits|classifier|readout)(?:_\d+)?(?:/|$)", re.I)


def orthogonalise(x, *, steps=5, epsilon=1e-7):
    """The orthogonal matrix nearest to a matrix, roughly: singular values from 0.7 to 1.2.

    X <- a X + (b X X' + c (X X')^2) X, `steps` times from x / |x|, with (a, b, c) = (3.4445,
    -4.7750, 2.0315). The singular vectors stay; 5 steps bring singular values from 0.01 of the
    norm upwards near 1, and not onto it: the coefficients are the steepest at 0.

    Args:
      x: [... r c] matrices, each for itself.
      steps: int, at least 1.
      epsilon: added to the norm, so that 0 stays 0.

    Returns:
      [... r c], in the dtype of x; computed in float32 or wider.

    Raises:
      ValueError: if x has fewer than two axes or steps is below 1.

    >>> x = orthogonalise(jnp.array([[3.0, 0.0], [0.0, -1.0]]))
    >>> bool((jnp.abs(jnp.abs(jnp.diagonal(x)) - 1) < 0.3).all()), float(x[0, 1])
    (True, 0.0)

    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks (NewtonSchulz5).
    """
    if jnp.ndim(x) < 2:
        raise ValueError(f"orthogonalise: x has shape {jnp.shape(x)}, expected (... r c)")
    if steps < 1:
        raise ValueError(f"orthogonalise: steps={steps}, expected an int >= 1; 5 is usual")
    a, b, c = COEFFICIENTS
    dtype, tall = x.dtype, x.shape[-2] > x.shape[-1]
    x = x if dtype == jnp.float64 else x.astype(jnp.float32)
    x = x.mT if tall else x  # the smaller of the two products
    x = x / (jnp.sqrt((x**2).sum((-2, -1), keepdims=True)) + epsilon)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.mT if tall else x).astype(dtype)


def muon_labels(params):
    """Which parameters `muon` moves itself: "muon" for hidden matrices, "rest" for the others.

    Hidden are leaves of two axes or more whose path names no embedding, position, class token,
    patch, stem, norm, scale, bias or head ("head", "lm_head", "logits", "classifier", "readout").

    Args:
      params: tree of arrays [...].

    Returns:
      The tree of labels.

    >>> leaf = jnp.zeros((2, 2))
    >>> muon_labels({"embed": leaf, "mlp": {"kernel": leaf, "bias": leaf[0]}, "lm_head": leaf})
    {'embed': 'rest', 'lm_head': 'rest', 'mlp': {'bias': 'rest', 'kernel': 'muon'}}

    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    def label(path, leaf):
        path = path_name(path)
        hidden = np.ndim(leaf) >= 2 and not REST.search(path) and not HEAD.search(path)
        return "muon" if hidden else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def muon(
    learning_rate,
    rest: optax.GradientTransformation,
    *,
    momentum=0.95,
    nesterov: bool = True,
    weight_decay=0.0,
    steps: int = 5,
    rms=None,
    labels: Callable = muon_labels,
):
    """Muon on hidden matrices, another optimizer on everything else.

    m <- momentum m + g, then w <- w - rate (scale * orthogonalise(g + momentum m) + weight_decay
    w), scale = sqrt(max(1, outputs / inputs)). Convolutions, which are the leaves "kernel" [... i
    o], are flattened to [(... i) o]; of other leaves [e i o] (experts) every matrix is for itself.

    Args:
      learning_rate: [] number (may be traced) or schedule; 0.02 is usual.
      rest: the optimizer of embeddings, head, gains and biases: optax.adamw(3e-4).
      momentum: [] from 0 to below 1.
      nesterov: whether the gradient is added once more, as above.
      weight_decay: [] at least 0; scaled by the rate, on hidden matrices alone.
      steps: int, iterations of `orthogonalise`.
      rms: None for the scale above; 0.2 for 0.2 sqrt(max(inputs, outputs)), by which every move
        has the root mean square that AdamW's has, so that its rates fit.
      labels: params -> tree of "muon" and "rest"; `muon_labels` says what is on Muon.

    Returns:
      An optax optimizer of tree to tree.

    Raises:
      TypeError: if `rest` is no optimizer.
      ValueError: if a knob is out of range; by its `init`, if no leaf is on Muon or one that is
        has fewer than two axes.

    >>> tx = muon(0.02, optax.sgd(1.0))
    >>> grads = {"mlp": {"kernel": 1000 * jnp.eye(3), "bias": jnp.full(3, 1000.0)}}
    >>> moves, state = tx.update(grads, tx.init(grads), grads)
    >>> bool((moves["mlp"]["kernel"] > -0.03).all()), float(moves["mlp"]["bias"][0])
    (True, -1000.0)

    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; rms: Liu et al.,
    arXiv:2502.16982, eq. 4.
    """
    if not (hasattr(rest, "init") and hasattr(rest, "update")):
        raise TypeError(f"muon: rest is {rest!r:.60}, expected an optimizer: optax.adamw(3e-4)")
    for name, x, top in (("momentum", momentum, 1), ("weight_decay", weight_decay, float("inf"))):
        known = concrete(x)
        if known is not None and not 0 <= known < top:
            raise ValueError(f"muon: {name}={x}, expected 0 <= {name} < {top}; 0 is off")

    hidden = optax.chain(
        optax.trace(momentum, nesterov),
        _orthogonal(steps, rms),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    inner = optax.partition({"muon": hidden, "rest": rest}, labels)

    def init(params):
        which = dict(paths(labels(params)))
        if "muon" not in which.values():
            raise ValueError(
                f"muon: no parameter is a hidden matrix; the paths are {list(which)[:8]}; give "
                'labels=params -> tree of "muon" and "rest"'
            )
        for path, leaf in paths(params):
            if which[path] == "muon" and np.ndim(leaf) < 2:
                raise ValueError(
                    f"muon: {path} has shape {np.shape(leaf)}, expected a matrix [i o] or kernel "
                    '[... i o]; label it "rest"'
                )
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def _orthogonal(steps, rms):
    """Every leaf as matrices, made orthogonal and scaled by shape."""

    def one(path, x):
        experts = x.ndim > 2 and path_name(path).rpartition("/")[2] != "kernel"
        matrices = x if experts else x.reshape(-1, x.shape[-1])
        inputs, outputs = matrices.shape[-2:]
        scale = max(1.0, outputs / inputs) ** 0.5
        if rms is not None:
            scale = rms * max(inputs, outputs) ** 0.5
        found = orthogonalise(matrices, steps=steps).reshape(x.shape)
        return found * jnp.asarray(scale).astype(x.dtype)

    def update(updates, state, params=None):
        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
