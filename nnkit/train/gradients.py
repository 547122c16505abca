"""Gradients: which way is down. Each is still a `Mean`, so slices and devices add exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nnkit.core import trees
from nnkit.core.checks import positive
from nnkit.core.means import Mean, add, scalar
from nnkit.train.nouns import expect
from nnkit.train.objectives import Objective
from nnkit.train.varying import as_varying

__all__ = ["Gradient", "accumulate", "clipped", "gradient", "per_example", "sam"]


class Gradient(NamedTuple):
    """Which way is down, as two pure functions.

    Attributes:
      init: (key, batch) -> (params, carry), as `Objective.init`.
      grad: (params, carry, batch, key) -> (Mean whose total is a tree like params,
        (carry, metrics)).

    >>> g = gradient(Objective(
    ...     lambda key, batch: (jnp.ones(()), {}),
    ...     lambda w, carry, batch, key: (Mean.of((w * batch["x"]) ** 2), (carry, {})),
    ... ))
    >>> mean, _ = g.grad(jnp.float32(3), {}, {"x": jnp.array([1.0, 1.0])}, None)
    >>> mean.total, mean.value
    (Array(12., dtype=float32), Array(6., dtype=float32))
    """

    init: Callable[..., tuple[Any, Any]]
    grad: Callable[..., tuple[Mean, tuple[Any, Mapping[str, Mean]]]]


def gradient(objective: Objective) -> Gradient:
    """The gradient of an objective by reverse-mode differentiation.

    Args:
      objective: any Objective.

    Returns:
      A Gradient: total = d(sum of losses)/d params, weight = what the losses were summed over.

    Raises:
      TypeError: if a parameter is no floating array, or a metric is no `Mean`.
      ValueError: if the loss is not one number.

    >>> task = Objective(
    ...     lambda key, batch: (jnp.zeros(()), {}),
    ...     lambda w, carry, batch, key: (Mean.of((w - batch["x"]) ** 2), (carry, {})),
    ... )
    >>> gradient(task).grad(jnp.float32(0), {}, {"x": jnp.array([1.0, 3.0])}, None)[0].value
    Array(-4., dtype=float32)
    """

    expect("gradient", objective, Objective)

    def grad(params, carry, batch, key):
        for path, x in trees.paths(params):
            if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
                raise TypeError(
                    f"parameter {path or 'params'} is {trees.describe(x)}, expected floating: "
                    "put what no gradient flows to into the carry"
                )

        def total(p):
            mean, (new, metrics) = objective.loss(p, carry, batch, key)
            _check(mean, metrics)
            return mean.total, (mean.weight, (new, metrics))

        slope, (weight, aux) = jax.grad(total, has_aux=True)(params)
        return Mean(slope, weight), aux

    return Gradient(objective.init, grad)


def _check(mean, metrics):
    if not isinstance(mean, Mean):
        raise TypeError(
            f"the loss is {type(mean).__name__}, expected a Mean: Mean.of(losses, mask)"
        )
    if jnp.ndim(mean.total):
        raise ValueError(
            f"the loss has shape {jnp.shape(mean.total)}, expected one number; a stack of members "
            "is trained by ensemble or sweep of the plain objective"
        )
    for name, m in metrics.items():
        if not isinstance(m, Mean):
            raise TypeError(
                f"metric {name!r} is {type(m).__name__}, expected a Mean: Mean.of(values, mask) "
                "for one value per example, nk.means.scalar(x) for one per step"
            )


def accumulate(g: Gradient, n: int) -> Gradient:
    """The same gradient, from `n` slices of the batch one after another: a part of the memory.

    Exact, also under a mask, since totals and weights are added before anything is divided. The
    carry goes through the slices in turn, so batch statistics are those of slices. n = 1 is the
    identity.

    Args:
      g: any Gradient.
      n: number of slices; must divide the batch size.

    Returns:
      A Gradient.

    Raises:
      ValueError: if n < 1, or does not divide the batch.

    >>> g = gradient(Objective(
    ...     lambda key, batch: (jnp.ones(()), {}),
    ...     lambda w, carry, batch, key: (Mean.of(w * batch["x"]), (carry, {})),
    ... ))
    >>> batch = {"x": jnp.arange(6.0)}
    >>> accumulate(g, 3).grad(jnp.float32(1), {}, batch, None)[0].value
    Array(2.5, dtype=float32)
    """
    expect("accumulate", g, Gradient)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"accumulate(n={n!r}): expected an integer >= 1; 1 switches it off")
    if n == 1:
        return g

    def grad(params, carry, batch, key):
        slices = _sliced(batch, n, f"accumulate(n={n})")
        keys = jnp.zeros((n, 0)) if key is None else jax.random.split(key, n)

        def one(carry, batch, key_):
            mean, (carry, metrics) = g.grad(params, carry, batch, None if key is None else key_)
            return (mean, metrics), carry

        def body(state, xs):
            total, carry = state
            found, carry = one(carry, *xs)
            return (add(total, found), carry), None

        shapes, after = jax.eval_shape(lambda *xs: one(carry, *_first(xs)), slices, keys)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        start = as_varying((zero, carry), (shapes, after))
        ((mean, metrics), carry), _ = jax.lax.scan(body, start, (slices, keys))
        return mean, (carry, metrics)

    return g._replace(grad=grad)


def _sliced(batch, n, who):
    """Leaves [b ...] as [n b/n ...]; slice i takes rows i, i + n, ..: each device keeps work."""

    def cut(path, x):
        if not jnp.ndim(x) or x.shape[0] % n:
            raise ValueError(
                f"{who} needs a batch size divisible by {n}, got {trees.describe(x)} "
                f"(leaf {trees.path_name(path)!r}); use another batch size, or pad and mask"
            )
        return jnp.moveaxis(jnp.reshape(x, (x.shape[0] // n, n, *x.shape[1:])), 1, 0)

    return jax.tree_util.tree_map_with_path(cut, batch)


def _first(tree):
    """The first slice of every leaf [n ...]; traced apart, it does not count as a use of a key."""
    return jax.tree.map(lambda x: x[0], tree)


def clipped(g: Gradient, norm) -> Gradient:
    """The mean gradient scaled down to a global norm of at most `norm`. inf is the identity.

    g * min(1, norm / |g|). clipped(accumulate(g)) clips the whole, accumulate(clipped(g)) slices.

    Args:
      g: any Gradient.
      norm: [] largest norm, > 0; may be traced.

    Returns:
      A Gradient; logs "gradient_norm", the norm before clipping.

    Raises:
      ValueError: if norm is not positive.

    >>> g = gradient(Objective(
    ...     lambda key, batch: (jnp.ones(2), {}),
    ...     lambda w, carry, batch, key: (Mean.of(batch["x"] @ w), (carry, {})),
    ... ))
    >>> clipped(g, 1.0).grad(jnp.ones(2), {}, {"x": jnp.array([[3.0, 4.0]])}, None)[0].value
    Array([0.6, 0.8], dtype=float32)

    Pascanu et al., arXiv:1211.5063, algorithm 1.
    """
    expect("clipped", g, Gradient)
    if norm != float("inf") if isinstance(norm, float) else True:
        positive(norm=norm)

    def grad(params, carry, batch, key):
        mean, (carry, metrics) = g.grad(params, carry, batch, key)
        size = optax.tree.norm(mean.total) / _safe(mean.weight)
        scale = jnp.minimum(1.0, norm / jnp.maximum(size, jnp.finfo(size.dtype).tiny))
        total = jax.tree.map(lambda t: t * scale.astype(t.dtype), mean.total)
        return Mean(total, mean.weight), (carry, {**metrics, "gradient_norm": scalar(size)})

    return g._replace(grad=grad)


def _safe(weight):
    """The weight [...], 1 where it is 0: the gradient of an empty batch is 0, not 0 / 0."""
    return jnp.where(weight == 0, jnp.ones_like(weight), weight)


def sam(g: Gradient, rho=0.05) -> Gradient:
    """Sharpness-aware minimisation: the gradient at the worst point of a ball of radius `rho`.

    g(w + rho g(w) / |g(w)|). rho = 0 is the identity. Loss, metrics and batch statistics are those
    of w itself. accumulate(sam(g)) is m-SAM, sam(accumulate(g)) is SAM.

    Args:
      g: any Gradient; it is computed twice.
      rho: [] radius, >= 0; may be traced. 0.05 in the paper.

    Returns:
      A Gradient.

    >>> g = gradient(Objective(
    ...     lambda key, batch: (jnp.ones(()), {}),
    ...     lambda w, carry, batch, key: (Mean.of(0.5 * (w * batch["x"]) ** 2), (carry, {})),
    ... ))
    >>> sam(g, 0.5).grad(jnp.float32(2), {}, {"x": jnp.ones(1)}, None)[0].value
    Array(2.5, dtype=float32)

    Foret et al., arXiv:2010.01412, eq. 2 and 3.
    """

    expect("sam", g, Gradient)

    def grad(params, carry, batch, key):
        again = None if key is None else jax.random.clone(key)  # the same dropout at both points
        here, aux = g.grad(params, carry, batch, key)
        size = optax.tree.norm(here.total)
        size = jnp.maximum(size, jnp.finfo(size.dtype).tiny)
        up = jax.tree.map(
            lambda p, d: p + (rho * d / size.astype(d.dtype)).astype(p.dtype), params, here.total
        )
        return g.grad(up, carry, batch, again)[0], aux

    return g._replace(grad=grad)


def per_example(objective: Objective, clip, noise=0.0, *, microbatch: int | None = None):
    """The gradient of DP-SGD: each example's clipped to norm `clip`, Gaussian noise on the sum.

    (sum_i g_i min(1, clip / |g_i|) + N(0, (noise clip)^2 I)) / b. clip = inf with noise = 0 is
    `gradient`. Only `microbatch` gradients are in memory at a time, whatever the batch.

    Args:
      objective: an Objective whose carry the loss does not change: batch statistics would mix the
        examples that this keeps apart.
      clip: [] largest norm of one example's gradient, > 0 (C in the paper); may be traced.
      noise: [] noise multiplier, >= 0 (sigma in the paper); may be traced. The (epsilon, delta)
        it buys depends on sampling and steps: state both with any claim.
      microbatch: examples at a time; must divide the batch. None: the largest divisor up to 32.

    Returns:
      A Gradient; logs "clipped", the share of examples that were clipped.

    Raises:
      ValueError: if clip is not positive, noise negative, or microbatch does not divide the batch.
      TypeError: if the loss changes the carry.

    >>> g = per_example(Objective(
    ...     lambda key, batch: (jnp.ones(()), {}),
    ...     lambda w, carry, batch, key: (Mean.of(w * batch["x"]), (carry, {})),
    ... ), clip=1.0)
    >>> g.grad(jnp.float32(1), {}, {"x": jnp.array([0.5, 9.0])}, jax.random.key(0))[0].value
    Array(0.75, dtype=float32)

    Abadi et al., arXiv:1607.00133, algorithm 1.
    """
    expect("per_example", objective, Objective)
    if not (isinstance(clip, float) and clip == float("inf")):
        positive(clip=clip)
    if isinstance(noise, int | float) and not 0 <= noise < float("inf"):
        raise ValueError(f"noise is {noise}, expected a finite multiplier >= 0")
    if isinstance(noise, int | float) and noise and clip == float("inf"):
        raise ValueError("noise needs a finite clip: its deviation is noise * clip")
    single = gradient(objective)

    def grad(params, carry, batch, key):
        _unchanged(objective, params, carry, batch, key)
        b = jax.tree.leaves(batch)[0].shape[0]
        size = microbatch or max(m for m in range(1, min(b, 32) + 1) if b % m == 0)
        if b % size:
            raise ValueError(f"per_example(microbatch={size}) must divide the batch size {b}")
        key_noise, key_loss = (None, None) if key is None else jax.random.split(key)

        def one(row, key):
            row = jax.tree.map(lambda x: x[None], row)
            mean, (_, metrics) = single.grad(params, carry, row, key)
            norm = optax.tree.norm(mean.total)
            scale = jnp.minimum(1.0, clip / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
            total = jax.tree.map(lambda t: t * scale.astype(t.dtype), mean.total)
            share = Mean((norm > clip).astype(jnp.float32) * mean.weight, mean.weight)
            return Mean(total, mean.weight), {**metrics, "clipped": share}

        def few(rows, keys):
            found = jax.vmap(one, (0, None if keys is None else 0))(rows, keys)
            return jax.tree.map(lambda x: x.sum(0), found)

        rows = jax.tree.map(lambda x: jnp.reshape(x, (b // size, size, *x.shape[1:])), batch)
        keys = None if key_loss is None else jax.random.split(key_loss, (b // size, size))

        def body(total, xs):
            return add(total, few(*xs)), None

        shapes = jax.eval_shape(lambda *xs: few(*_first(xs)), rows, keys)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (mean, metrics), _ = jax.lax.scan(body, zero, (rows, keys))
        return Mean(_noisy(mean.total, clip, noise, key_noise), mean.weight), (carry, metrics)

    return Gradient(objective.init, grad)


def _unchanged(objective, params, carry, batch, key):
    """Raise if the loss gives back another carry than it got: it would mix the examples."""
    if not jax.tree.leaves(carry):
        return
    again = None if key is None else jax.random.clone(key)
    traced = jax.make_jaxpr(lambda c: objective.loss(params, c, batch, again)[1][0])(carry).jaxpr
    changed = [
        path
        for (path, _), new, old in zip(trees.paths(carry), traced.outvars, traced.invars)
        if new is not old
    ]
    if changed:
        raise TypeError(
            f"per_example: the loss changes the carry at {changed[0]!r}, expected one that stays: "
            "statistics of a batch mix examples, so there is no gradient of one example: use layer "
            "or group normalisation"
        )


def _noisy(total, clip, noise, key):
    if isinstance(noise, int | float) and noise == 0:
        return total
    if key is None:
        raise ValueError("per_example with noise needs a key: key=None is evaluation")
    leaves, tree = jax.tree.flatten(total)
    keys = jax.random.split(key, len(leaves))
    scale = jnp.asarray(clip * noise)
    return jax.tree.unflatten(
        tree,
        [
            x + scale.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys)
        ],
    )
