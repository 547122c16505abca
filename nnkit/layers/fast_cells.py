"""Whole sequences of LSTM and GRU with their derivative written out: faster than `cells.unroll`.

The input projection is one product, the gates are saved, the scan backward carries the derivative
of the state alone, and the gradient of the recurrent kernel is one product after it. Backward is
plain JAX, so second derivatives by `jax.grad(jax.grad)` and `jax.jvp(jax.grad)` work; `jax.jvp` of
the function itself does not: that is what `cells.unroll` is for. Arrays are [t b ...].
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nnkit.layers.cells import project

__all__ = ["gru_after", "gru_before", "lstm"]


def lstm(weights, x, state, *, mask=None, reverse=False):
    """`cells.unroll(cells.lstm, ...)`, without peepholes and projection.

    Args:
      weights: {"kernel_in": [d 4f], "kernel_rec": [f 4f], "bias": [4f] or absent}.
      x: [t b d] inputs.
      state: {"h": [b f], "c": [b f]} to start from.
      mask: [t b] bool, False for padding, or None.
      reverse: from the last step to the first.

    Returns:
      (y [t b f], the state after the last step of the walk).

    >>> weights = {"kernel_in": jnp.ones((1, 4)), "kernel_rec": jnp.ones((1, 4))}
    >>> state = {"h": jnp.zeros((2, 1)), "c": jnp.zeros((2, 1))}
    >>> lstm(weights, jnp.ones((5, 2, 1)), state)[0].shape
    (5, 2, 1)

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; Appleyard et al.,
    arXiv:1604.01946 (the schedule).
    """
    return _lstm(reverse, weights, x, state, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(reverse, weights, x, state, mask):
    return _lstm_forward(reverse, weights, x, state, mask)[0]


def _lstm_forward(reverse, weights, x, state, mask):
    kernel = weights["kernel_rec"]

    def one(carry, xs):
        (h, c), (z, real) = carry, xs
        i, f, g, o = jnp.split(z + h @ kernel, 4, -1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c_new = f * c + i * g
        h_new = o * jnp.tanh(c_new)
        if real is not None:
            h_new, c_new = jnp.where(real, h_new, h), jnp.where(real, c_new, c)
        return (h_new, c_new), (h_new, c_new, i, f, g, o)

    mask = _wide(mask)
    xs, start = (project(weights, x), mask), (state["h"], state["c"])
    (h, c), saved = lax.scan(one, start, xs, reverse=reverse)
    y = saved[0] if mask is None else jnp.where(mask, saved[0], 0)
    return (y, {"h": h, "c": c}), (weights, x, state, mask, saved)


def _lstm_backward(reverse, residuals, slopes):
    weights, x, state, mask, (hs, cs, i, f, g, o) = residuals
    dy, dlast = slopes
    kernel = weights["kernel_rec"]
    before = _before(state["c"], cs, reverse)
    bent = jnp.tanh(f * before + i * g) if mask is not None else jnp.tanh(cs)

    def one(carry, xs):
        (dh, dc), (dy, real, before, bent, i, f, g, o) = carry, xs
        dh_new, dc_new = dh + dy, dc
        if real is not None:
            dh_new, dc_new = jnp.where(real, dh + dy, 0), jnp.where(real, dc, 0)
        dc_new = dc_new + dh_new * o * (1 - bent * bent)
        di, df = dc_new * g * i * (1 - i), dc_new * before * f * (1 - f)
        dg, do = dc_new * i * (1 - g * g), dh_new * bent * o * (1 - o)
        dz = jnp.concatenate([di, df, dg, do], -1)
        dh_old, dc_old = _back(dz, kernel), dc_new * f
        if real is not None:
            dh_old = dh_old + jnp.where(real, 0, dh)
            dc_old = dc_old + jnp.where(real, 0, dc)
        return (dh_old, dc_old), dz

    xs = (dy, mask, before, bent, i, f, g, o)
    (dh, dc), dz = lax.scan(one, (dlast["h"], dlast["c"]), xs, reverse=not reverse)
    dx, dweights = _inputs(weights, x, dz)
    dweights["kernel_rec"] = _outer(_before(state["h"], hs, reverse), dz)
    return dweights, dx, {"h": dh, "c": dc}, None


_lstm.defvjp(_lstm_forward, _lstm_backward)


def gru_after(weights, x, state, *, mask=None, reverse=False):
    """`cells.unroll(cells.gru_after, ...)`: the reset gate acts after the recurrent product.

    Args:
      weights: {"kernel_in": [d 3f], "kernel_rec": [f 3f], "bias": [3f], "bias_rec": [3f]}; the
        biases may be absent.
      x: [t b d] inputs.
      state: {"h": [b f]} to start from.
      mask: [t b] bool, False for padding, or None.
      reverse: from the last step to the first.

    Returns:
      (y [t b f], the state after the last step of the walk).

    >>> weights = {"kernel_in": jnp.ones((1, 3)), "kernel_rec": jnp.ones((1, 3))}
    >>> gru_after(weights, jnp.ones((5, 2, 1)), {"h": jnp.zeros((2, 1))})[0].shape
    (5, 2, 1)

    Cho et al., arXiv:1406.1078, eq. 5 to 8, with the reset gate after the product.
    """
    return _after(reverse, weights, x, state, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _after(reverse, weights, x, state, mask):
    return _after_forward(reverse, weights, x, state, mask)[0]


def _after_forward(reverse, weights, x, state, mask):
    kernel, bias = weights["kernel_rec"], weights.get("bias_rec")

    def one(h, xs):
        z, real = xs
        a = h @ kernel if bias is None else h @ kernel + bias[None]
        (x_r, x_u, x_n), (h_r, h_u, h_n) = jnp.split(z, 3, -1), jnp.split(a, 3, -1)
        r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
        n = jnp.tanh(x_n + r * h_n)
        new = (1 - u) * n + u * h
        new = new if real is None else jnp.where(real, new, h)
        return new, (new, r, u, n, h_n)

    mask = _wide(mask)
    h, saved = lax.scan(one, state["h"], (project(weights, x), mask), reverse=reverse)
    y = saved[0] if mask is None else jnp.where(mask, saved[0], 0)
    return (y, {"h": h}), (weights, x, state, mask, saved)


def _after_backward(reverse, residuals, slopes):
    weights, x, state, mask, (hs, r, u, n, h_n) = residuals
    dy, dlast = slopes
    kernel = weights["kernel_rec"]
    before = _before(state["h"], hs, reverse)

    def one(dh, xs):
        dy, real, before, r, u, n, h_n = xs
        new = dh + dy if real is None else jnp.where(real, dh + dy, 0)
        dn, du = new * (1 - u) * (1 - n * n), new * (before - n) * u * (1 - u)
        dr = dn * h_n * r * (1 - r)
        old = new * u + _back(jnp.concatenate([dr, du, dn * r], -1), kernel)
        old = old if real is None else old + jnp.where(real, 0, dh)
        return old, jnp.concatenate([dr, du, dn], -1)

    dh, dz = lax.scan(one, dlast["h"], (dy, mask, before, r, u, n, h_n), reverse=not reverse)
    dx, dweights = _inputs(weights, x, dz)
    f = hs.shape[-1]
    da = jnp.concatenate([dz[..., : 2 * f], dz[..., 2 * f :] * r], -1)
    dweights["kernel_rec"] = _outer(before, da)
    if "bias_rec" in weights:
        dweights["bias_rec"] = da.sum((0, 1))
    return dweights, dx, {"h": dh}, None


_after.defvjp(_after_forward, _after_backward)


def gru_before(weights, x, state, *, mask=None, reverse=False):
    """`cells.unroll(cells.gru_before, ...)`: the reset gate acts before the recurrent product.

    Args:
      weights: {"kernel_in": [d 3f], "kernel_rec": [f 3f], "bias": [3f] or absent}.
      x: [t b d] inputs.
      state: {"h": [b f]} to start from.
      mask: [t b] bool, False for padding, or None.
      reverse: from the last step to the first.

    Returns:
      (y [t b f], the state after the last step of the walk).

    >>> weights = {"kernel_in": jnp.ones((1, 3)), "kernel_rec": jnp.ones((1, 3))}
    >>> gru_before(weights, jnp.ones((5, 2, 1)), {"h": jnp.zeros((2, 1))})[0].shape
    (5, 2, 1)

    Cho et al., arXiv:1406.1078, eq. 5 to 8.
    """
    return _prior(reverse, weights, x, state, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _prior(reverse, weights, x, state, mask):
    return _prior_forward(reverse, weights, x, state, mask)[0]


def _prior_forward(reverse, weights, x, state, mask):
    f = state["h"].shape[-1]
    gates, candidate = weights["kernel_rec"][:, : 2 * f], weights["kernel_rec"][:, 2 * f :]

    def one(h, xs):
        z, real = xs
        r, u = jnp.split(jax.nn.sigmoid(z[:, : 2 * f] + h @ gates), 2, -1)
        n = jnp.tanh(z[:, 2 * f :] + (r * h) @ candidate)
        new = (1 - u) * n + u * h
        new = new if real is None else jnp.where(real, new, h)
        return new, (new, r, u, n)

    mask = _wide(mask)
    h, saved = lax.scan(one, state["h"], (project(weights, x), mask), reverse=reverse)
    y = saved[0] if mask is None else jnp.where(mask, saved[0], 0)
    return (y, {"h": h}), (weights, x, state, mask, saved)


def _prior_backward(reverse, residuals, slopes):
    weights, x, state, mask, (hs, r, u, n) = residuals
    dy, dlast = slopes
    f = hs.shape[-1]
    gates, candidate = weights["kernel_rec"][:, : 2 * f], weights["kernel_rec"][:, 2 * f :]
    before = _before(state["h"], hs, reverse)

    def one(dh, xs):
        dy, real, before, r, u, n = xs
        new = dh + dy if real is None else jnp.where(real, dh + dy, 0)
        dn, du = new * (1 - u) * (1 - n * n), new * (before - n) * u * (1 - u)
        reset = _back(dn, candidate)  # by r h
        dr = reset * before * r * (1 - r)
        both = jnp.concatenate([dr, du], -1)
        old = new * u + reset * r + _back(both, gates)
        old = old if real is None else old + jnp.where(real, 0, dh)
        return old, jnp.concatenate([both, dn], -1)

    dh, dz = lax.scan(one, dlast["h"], (dy, mask, before, r, u, n), reverse=not reverse)
    dx, dweights = _inputs(weights, x, dz)
    parts = [_outer(before, dz[..., : 2 * f]), _outer(r * before, dz[..., 2 * f :])]
    dweights["kernel_rec"] = jnp.concatenate(parts, -1)
    return dweights, dx, {"h": dh}, None


_prior.defvjp(_prior_forward, _prior_backward)


def _wide(mask):
    return None if mask is None else mask[..., None]


def _before(start, after, reverse):
    """The states [t b f] before each step, from those after it."""
    parts = [after[1:], start[None]] if reverse else [start[None], after[:-1]]
    return jnp.concatenate(parts, 0)


def _back(dz, kernel):
    """dz [... k] kernel^T -> [... f], without a transposed copy of the kernel [f k]."""
    return lax.dot_general(dz, kernel, (((dz.ndim - 1,), (1,)), ((), ())))


def _outer(x, dz):
    """The gradient [d k] of a kernel: sum of x^T dz over steps and batch, as one product."""
    x, dz = x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1])
    return lax.dot_general(x, dz, (((0,), (0,)), ((), ())))


def _inputs(weights, x, dz):
    """The slopes of `project`: (dx, {"kernel_in", "bias"})."""
    found = {"kernel_in": _outer(x, dz)}
    if "bias" in weights:
        found["bias"] = dz.sum((0, 1))
    return _back(dz, weights["kernel_in"]), found
