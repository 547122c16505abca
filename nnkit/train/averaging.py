"""One gradient from all devices of a named axis: the older way, by `pmap` or `shard_map`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnkit.core import trees
from nnkit.train.gradients import Gradient
from nnkit.train.nouns import expect
from nnkit.train.varying import tracked, varies, varying

__all__ = ["averaged"]


def averaged(g: Gradient, axis_name: str | tuple[str, ...]) -> Gradient:
    """The gradient of the whole batch, where every device has its own rows of it.

    Totals and weights of all `Mean`s, gradient and metrics alike, are summed over the devices
    before anything is divided: sum_d total_d / sum_d weight_d, exact under masks and with ragged
    rows, which the mean of the devices' means is not. So every device makes the same move, and
    jax.pmap(step.update, axis_name=...) and jax.shard_map train as one device would with the whole
    batch. Batch statistics in the carry are those of each device's rows, averaged. Each device
    folds its number into the key, so that dropout differs.

    `shard` needs none of this; use it unless the program is written for one device's share.

    Args:
      g: any Gradient. averaged(accumulate(g, n)) talks once per step, after the slices.
      axis_name: the name that pmap, shard_map or vmap gave the axis of devices, or several.

    Returns:
      A Gradient.

    Raises:
      TypeError: if `g` is no Gradient or the name no string.
      ValueError: when used, if there is no such axis: under plain jit `shard` is the way.

    >>> task = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
    >>> one = nk.step(averaged(nk.gradient(task), "devices"), optax.sgd(0.5))
    >>> rows = {"x": jnp.arange(8.0).reshape(4, 2)}  # of four devices
    >>> state = jax.pmap(one.init, in_axes=(None, 0))(jax.random.key(0), rows)
    >>> state, metrics = jax.pmap(one.update, axis_name="devices")(state, rows)
    >>> state.params.tolist(), metrics["loss"].weight.tolist()
    ([3.5, 3.5, 3.5, 3.5], [8.0, 8.0, 8.0, 8.0])

    Goyal et al., arXiv:1706.02677, section 3 (synchronous data parallel).
    """
    expect("averaged", g, Gradient)
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"averaged(axis_name={axis_name!r}): expected the name of the axis of devices, such as "
            'averaged(g, "devices") under jax.pmap(step.update, axis_name="devices")'
        )

    def grad(params, carry, batch, key):
        try:
            index, n = jax.lax.axis_index(names), jax.lax.psum(1, names)
        except NameError as error:
            raise ValueError(
                f"averaged(axis_name={axis_name!r}): there is no axis of this name here; it is "
                "named by jax.pmap(step.update, axis_name=...) or jax.shard_map; under plain jit "
                "use nk.shard(step, mesh, batch=...), which needs no averaging"
            ) from error
        key = None if key is None else jax.random.fold_in(key, index)
        own = names if tracked(names) else ()  # each device's own: nothing is summed on the way
        params, carry = varying(params, own), varying(carry, own)
        mean, (carry, metrics) = g.grad(params, carry, batch, key)
        real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        floats = jax.tree.map(lambda x: x if real(x) else None, carry)
        rest = jax.tree.map(lambda x: None if real(x) else x, carry)
        mean, metrics, floats = jax.lax.psum(varying((mean, metrics, floats), own), names)
        floats = jax.tree.map(lambda x: x / jnp.asarray(n, x.dtype), floats)
        rest = jax.tree.map(lambda x: jax.lax.pmax(x, names) if varies(x, own) else x, rest)
        return mean, (trees.join(floats, rest), metrics)

    return g._replace(grad=grad)
