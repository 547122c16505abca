"""NNX modules as (init, apply) pairs, so that every Objective, Step and sweep takes them.

Parameters (`nnx.Param`) are differentiated; every other variable (batch statistics, ...) is carry.
`flax.nnx` is imported when it is used: some pairs of flax and jax cannot import it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax

__all__ = ["pair"]


def pair(make: Callable) -> tuple[Callable, Callable]:
    """An NNX module as two pure functions, for `nk.supervised`.

    Args:
      make: rngs -> module, such as the class of the module itself. The module is called as
        module(x [b ...]), with `train=` if it takes that, and with `rngs=` (an `nnx.Rngs`) if it
        takes that; write `nnx.Dropout(rate)` without rngs and pass them on at the call. With
        key=None a module without `train` is switched by `module.eval()`, else by `module.train()`.

    Returns:
      (init, apply): init(key, x) -> (params, carry); apply(params, carry, x, key).

    Raises:
      ImportError: if this flax cannot import nnx on this jax; names versions that work.
      TypeError: if `make` gives no NNX module.

    >>> from flax import nnx
    >>> init, apply = pair(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> params, carry = init(jax.random.key(0), jnp.ones((2, 4)))
    >>> apply(params, carry, jnp.ones((2, 4)), None)[0].shape
    (2, 3)
    """
    nnx = _nnx()
    pure = getattr(nnx, "as_pure", None) or nnx.pure  # flax 0.11 says pure

    def made(key):
        # flax draws its initial weights from raw streams of one key: give it one of its own
        return make(nnx.Rngs(key))

    template = nnx.eval_shape(lambda: made(jax.random.key(0)))
    if not isinstance(template, nnx.Module):
        raise TypeError(f"make(rngs) gave {type(template).__name__}, expected an nnx.Module")
    graph = nnx.graphdef(template)
    takes = inspect.signature(type(template).__call__).parameters

    def init(key, x):
        _, params, carry = nnx.split(made(key), nnx.Param, ...)
        return pure(params), pure(carry)

    def apply(params, carry, x, key):
        train = key is not None
        module = nnx.merge(graph, params, carry, copy=True)
        options = {}
        if "train" in takes:
            options["train"] = train
        else:
            module.train() if train else module.eval()
        if "rngs" in takes:
            options["rngs"] = nnx.Rngs(key) if train else None
        outputs = module(x, **options)
        _, _, new = nnx.split(module, nnx.Param, ...)
        return outputs, pure(new) if train else carry

    return init, apply


def _nnx():
    try:
        from flax import nnx
    except Exception as error:
        import flax

        raise ImportError(
            f"flax.nnx {flax.__version__} does not import on jax {jax.__version__}; pairs that "
            "work: flax 0.11.2 with jax 0.7.2, flax 0.12.8 with jax 0.10, flax 0.12.12 with jax "
            "0.11 or newer. Linen modules work on all of them"
        ) from error
    return nnx
