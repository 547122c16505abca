"""What a function does last, read from its program: softmax before a loss that wants logits."""

from __future__ import annotations

from collections.abc import Callable

import jax

__all__ = ["last"]

THROUGH = "convert_element_type reshape squeeze copy transpose expand_dims slice gather".split()
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
SEEN = {"logistic": "sigmoid"}


def last(f: Callable, *args) -> tuple[str, object]:
    """("softmax", "sigmoid" or "", shapes of the outputs [...]) of a function; nothing is computed.

    Args:
      f: a function of arrays that gives one array; of others the first word is "".
      *args: arrays or shapes [...].

    Returns:
      (word, shapes as `jax.eval_shape` gives them).

    >>> last(lambda x: jax.nn.softmax(x).reshape(-1), jnp.ones((2, 3)))
    ('softmax', ShapeDtypeStruct(shape=(6,), dtype=float32))
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    if len(jax.tree.leaves(shapes)) != 1:
        return "", shapes
    return _last(closed.jaxpr, closed.jaxpr.outvars[0]), shapes


def _last(jaxpr, var) -> str:
    """The word for the equation that gives a variable."""
    while True:
        eqn = next((e for e in jaxpr.eqns if any(v is var for v in e.outvars)), None)
        if eqn is None:
            return ""
        inner = next((eqn.params[name] for name in INNER if name in eqn.params), None)
        if inner is not None:
            at = next(i for i, v in enumerate(eqn.outvars) if v is var)
            inside = getattr(inner, "jaxpr", inner)
            return _last(inside, inside.outvars[at]) if hasattr(inside, "outvars") else ""
        name = eqn.primitive.name
        if name in SEEN:
            return SEEN[name]
        if name == "div":
            above = next(
                (e for e in jaxpr.eqns if any(v is eqn.invars[0] for v in e.outvars)), None
            )
            return "softmax" if above is not None and above.primitive.name == "exp" else ""
        if name not in THROUGH:
            return ""
        var = eqn.invars[0]
