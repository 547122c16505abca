"""One step of each recurrent cell as a pure function, and the plain loop over time.

A step is (weights, state, z [b k], keep) -> state, with z = x_t W + b computed beforehand for all
steps. A state is a dict of arrays [b f]; what the cell gives is state["h"]. Arrays over time are
time-major here: [t b ...].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["gru_after", "gru_before", "lstm", "project", "simple", "unroll"]


def project(weights, x):
    """What the inputs of all steps give to the gates, in one product: x W + b.

    Args:
      weights: {"kernel_in": [d k], "bias": [k] or absent}.
      x: [t b d] inputs.

    Returns:
      [t b k].

    >>> project({"kernel_in": jnp.ones((2, 3)), "bias": jnp.ones(3)}, jnp.ones((5, 1, 2))).shape
    (5, 1, 3)

    Appleyard et al., arXiv:1604.01946, section 3.1.
    """
    t, b, d = x.shape
    z = (x.reshape(-1, d) @ weights["kernel_in"]).reshape(t, b, -1)
    return z + weights["bias"][None, None] if "bias" in weights else z


def simple(activation: Callable) -> Callable:
    """The step of a simple recurrent network: h' = a(z + h U).

    Args:
      activation: a, elementwise, such as `jnp.tanh`.

    Returns:
      (weights, state {"h" [b f]}, z [b f], keep=None) -> state; weights has "kernel_rec" [f f].

    >>> state = {"h": jnp.ones((1, 1))}
    >>> simple(nn.relu)({"kernel_rec": jnp.full((1, 1), 2.0)}, state, jnp.ones((1, 1)))["h"]
    Array([[3.]], dtype=float32)

    Elman 1990, doi:10.1207/s15516709cog1402_1.
    """

    def step(weights, state, z, keep=None):
        return {"h": activation(z + _seen(state["h"], keep) @ weights["kernel_rec"])}

    return step


def lstm(weights, state, z, keep=None):
    """One step of long short-term memory; gates in the order i, f, g, o.

    c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c'), with (i, f, g, o) = z + h U. Peepholes add
    p_i c to i, p_f c to f and p_o c' to o; a projection gives h' = (s(o) tanh(c')) P.

    Args:
      weights: {"kernel_rec": [r 4f]}, and on request "peephole" [3 f] (i, f, o) and
        "kernel_proj" [f r].
      state: {"h": [b r], "c": [b f]}; r = f without a projection.
      z: [b 4f] from `project`.
      keep: [b r] factors on h where the gates see it, or None.

    Returns:
      The next state.

    >>> state = {"h": jnp.zeros((1, 1)), "c": jnp.ones((1, 1))}
    >>> new = lstm({"kernel_rec": jnp.zeros((1, 4))}, state, jnp.array([[0.0, 99.0, 0.0, 99.0]]))
    >>> float(new["c"][0, 0]), round(float(new["h"][0, 0]), 4)
    (1.0, 0.7616)

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, with the forget gate of Gers et
    al. 2000, doi:10.1162/089976600300015015; peepholes: Gers et al. 2002; projection: Sak et al.,
    arXiv:1402.1128, eq. 1 to 7.
    """
    c, a = state["c"], z + _seen(state["h"], keep) @ weights["kernel_rec"]
    i, f, g, o = jnp.split(a, 4, -1)
    if "peephole" in weights:
        p_i, p_f, p_o = weights["peephole"][:, None]  # each [1 f]
        i, f = i + p_i * c, f + p_f * c
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if "peephole" in weights:
        o = o + p_o * c
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return {"h": h @ weights["kernel_proj"] if "kernel_proj" in weights else h, "c": c}


def gru_after(weights, state, z, keep=None):
    """One step of a gated recurrent unit, reset after the product; gates in the order r, z, n.

    h' = (1 - s(z)) n + s(z) h, n = tanh(x_n + s(r) (h U_n + b_n)): the form of cuDNN and torch.

    Args:
      weights: {"kernel_rec": [f 3f], "bias_rec": [3f] or absent}.
      state: {"h": [b f]}.
      z: [b 3f] from `project`.
      keep: [b f] factors on h where the gates see it, or None.

    Returns:
      The next state.

    >>> state = {"h": jnp.ones((1, 1))}
    >>> gru_after({"kernel_rec": jnp.zeros((1, 3))}, state, jnp.array([[0.0, 0.0, 99.0]]))["h"]
    Array([[1.]], dtype=float32)

    Cho et al., arXiv:1406.1078, eq. 5 to 8, with the reset gate after the product.
    """
    h, f = state["h"], state["h"].shape[-1]
    a = _seen(h, keep) @ weights["kernel_rec"]
    a = a + weights["bias_rec"][None] if "bias_rec" in weights else a
    r, u = jnp.split(jax.nn.sigmoid(z[:, : 2 * f] + a[:, : 2 * f]), 2, -1)
    n = jnp.tanh(z[:, 2 * f :] + r * a[:, 2 * f :])
    return {"h": (1 - u) * n + u * h}


def gru_before(weights, state, z, keep=None):
    """One step of a gated recurrent unit, reset before the product; gates in the order r, z, n.

    h' = (1 - s(z)) n + s(z) h, n = tanh(x_n + (s(r) h) U_n): the form of the paper.

    Args:
      weights: {"kernel_rec": [f 3f]}.
      state: {"h": [b f]}.
      z: [b 3f] from `project`.
      keep: [b f] factors on h where the gates see it, or None.

    Returns:
      The next state.

    >>> state = {"h": jnp.ones((1, 1))}
    >>> gru_before({"kernel_rec": jnp.zeros((1, 3))}, state, jnp.array([[0.0, 0.0, 99.0]]))["h"]
    Array([[1.]], dtype=float32)

    Cho et al., arXiv:1406.1078, eq. 5 to 8.
    """
    h, f, kernel = state["h"], state["h"].shape[-1], weights["kernel_rec"]
    seen = _seen(h, keep)
    r, u = jnp.split(jax.nn.sigmoid(z[:, : 2 * f] + seen @ kernel[:, : 2 * f]), 2, -1)
    n = jnp.tanh(z[:, 2 * f :] + (r * seen) @ kernel[:, 2 * f :])
    return {"h": (1 - u) * n + u * h}


def unroll(step: Callable, weights, x, state, *, mask=None, reverse=False, keep=None, nudge=None):
    """A cell over time, by `lax.scan` and plain differentiation: the reference of every fast form.

    A masked step carries the state through and gives 0.

    Args:
      step: one of the steps of this file.
      weights: of the cell; with "kernel_in" and "bias" for `project`.
      x: [t b d] inputs.
      state: to start from: a dict of [b f].
      mask: [t b] bool, False for padding, or None.
      reverse: from the last step to the first.
      keep: [b f] factors on h where the gates see it: variational dropout.
      nudge: [t b f] added to every h_t, so that derivatives by h_t can be taken (see `probe`).

    Returns:
      (y [t b f], the state after the last step of the walk).

    >>> weights = {"kernel_in": jnp.ones((1, 1)), "kernel_rec": jnp.ones((1, 1))}
    >>> x, state = jnp.arange(3.0).reshape(3, 1, 1), {"h": jnp.zeros((1, 1))}
    >>> unroll(simple(nn.relu), weights, x, state)[0].ravel()
    Array([0., 1., 3.], dtype=float32)

    Werbos 1990, doi:10.1109/5.58337.
    """

    def one(state, xs):
        z, real, more = xs
        new = step(weights, state, z, keep)
        if more is not None:
            new = {**new, "h": new["h"] + more}
        if real is None:
            return new, new["h"]
        real = real[:, None]
        new = {name: jnp.where(real, new[name], old) for name, old in state.items()}
        return new, jnp.where(real, new["h"], 0)

    state, y = jax.lax.scan(one, state, (project(weights, x), mask, nudge), reverse=reverse)
    return y, state


def _seen(h, keep):
    return h if keep is None else h * keep
