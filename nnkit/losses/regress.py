"""Losses for numbers: one value per example, the mean over its trailing axes."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from nnkit.core.checks import positive, real, same

__all__ = ["huber", "mae", "mse"]


def mse(predictions, targets):
    """Squared error.

    mean_i (x_i - y_i)^2 over the trailing axes.

    Args:
      predictions: [b ...] floats.
      targets: [b ...] numbers of the same shape; they are taken to the predictions' precision.

    Returns:
      [b] one loss per example.

    Raises:
      ValueError: if shapes differ: (b, 1) against (b,) would silently compare all with all.
      TypeError: if the predictions are not floats.

    >>> mse(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [3.0, 3.0]]))
    Array([2., 9.], dtype=float32)

    A model with outputs [b 1] and a table with targets [b]: take the column.

    >>> task = nk.supervised(nn.Dense(1), lambda outputs, y: mse(outputs[:, 0], y))
    >>> batch = {"x": jnp.ones((4, 3)), "y": jnp.ones(4)}
    >>> params, carry = task.init(jax.random.key(0), batch)
    >>> task.loss(params, carry, batch, None)[0].weight
    Array(4., dtype=float32)

    Legendre, Nouvelles méthodes pour la détermination des orbites des comètes, 1805.
    """
    predictions, targets = _pair("mse", predictions, targets)
    return _each((predictions - targets) ** 2)


def mae(predictions, targets):
    """Absolute error; its slope is 0 where both agree.

    mean_i |x_i - y_i| over the trailing axes.

    Args:
      predictions: [b ...] floats.
      targets: [b ...] numbers of the same shape.

    Returns:
      [b] one loss per example.

    Raises:
      ValueError: if shapes differ.
      TypeError: if the predictions are not floats.

    >>> mae(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0]))
    Array([0., 3.], dtype=float32)

    Boscovich, 1757; Laplace, Mécanique céleste, book III, 1799.
    """
    predictions, targets = _pair("mae", predictions, targets)
    error = predictions - targets
    return _each(error * jnp.sign(error))  # jnp.abs has slope 1 at 0


def huber(predictions, targets, *, delta=1.0):
    """Squared error near 0 and absolute error beyond `delta`, with one slope where they meet.

    mean_i of e^2 / 2 if |e| <= delta, else delta (|e| - delta / 2), with e = x_i - y_i.

    Args:
      predictions: [b ...] floats.
      targets: [b ...] numbers of the same shape.
      delta: where the line begins, above 0; infinity is half the squared error.

    Returns:
      [b] one loss per example.

    Raises:
      ValueError: if shapes differ or delta is not above 0.
      TypeError: if the predictions are not floats.

    >>> huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]))
    Array([0.125, 2.5  ], dtype=float32)

    Huber, Robust estimation of a location parameter, 1964, eq. 2.
    """
    predictions, targets = _pair("huber", predictions, targets)
    if not (isinstance(delta, float) and delta == float("inf")):
        positive(delta=delta)
        return _each(
            optax.huber_loss(
                predictions, targets, delta=jnp.asarray(delta).astype(predictions.dtype)
            )
        )
    return _each((predictions - targets) ** 2 / 2)


def _pair(loss, predictions, targets):
    """Both [b ...] in the predictions' precision, at least float32."""
    predictions = real("predictions", predictions)
    same(loss, predictions=predictions, targets=targets)
    if predictions.ndim == 0:
        raise ValueError(
            "predictions has shape (), expected (b ...): one row per example; write x[None]"
        )
    return predictions, jnp.asarray(targets).astype(predictions.dtype)


def _each(errors):
    """[b ...] to [b]: the mean over trailing axes."""
    return errors.mean(tuple(range(1, errors.ndim)))
