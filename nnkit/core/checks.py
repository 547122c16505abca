"""Shape contracts in one line: checked while tracing, free when running."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["concrete", "dims", "indices", "positive"]


def dims(spec: str, **arrays) -> SimpleNamespace:
    """Match arrays against a spec such as "b t d, b t" and return the sizes by name.

    A name means the same size everywhere, a number means itself, `_` matches any size, a leading
    `...` any axes. Costs nothing when the program runs: shapes are known while tracing.

    Args:
      spec: one pattern per array, separated by commas.
      **arrays: the arrays [...], in the order of the patterns.

    Returns:
      The sizes as attributes.

    Raises:
      ValueError: if a shape does not match; the message names array, shape and expectation.

    >>> dims("b t d, b t", x=np.ones((2, 3, 4)), mask=np.ones((2, 3))).d
    4
    >>> dims("b t d, b t", x=np.ones((2, 3, 4)), mask=np.ones((2, 5)))
    Traceback (most recent call last):
        ...
    ValueError: mask has shape (2, 5), expected (b t) with t = 3 taken from x
    """
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for (name, array), pattern in zip(arrays.items(), spec.split(","), strict=True):
        axes, shape = pattern.split(), tuple(np.shape(array))
        want = f"{name} has shape {shape}, expected ({pattern.strip()})"
        if axes and axes[0] == "...":
            axes = axes[1:]
            if len(shape) < len(axes):
                raise ValueError(want)
            shape = shape[len(shape) - len(axes) :]
        if len(axes) != len(shape):
            raise ValueError(want)
        for axis, size in zip(axes, shape):
            if axis == "_":
                continue
            expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if expected != size:
                taken = f" with {axis} = {expected} taken from {source.get(axis)}"
                raise ValueError(want + (taken if axis in source else ""))
            source.setdefault(axis, name)
    return SimpleNamespace(**{k: v for k, v in sizes.items() if k.isidentifier()})


def concrete(x) -> np.ndarray | None:
    """The values [...] of an array as numpy, or None while it is being traced.

    Checks of *values* (a label out of range) run on the real first batch and vanish under `jit`.

    Args:
      x: [...] a numpy array, a jax array or a tracer.

    Returns:
      [...] the array, or None.

    >>> concrete(jnp.arange(3)), jax.jit(lambda x: jnp.float32(concrete(x) is None))(1.0)
    (array([0, 1, 2], dtype=int32), Array(1., dtype=float32))
    """
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return None


def indices(logits, labels):
    """Labels [...] as int32 indices into the last axis of logits [... c], and which are none.

    Values are checked where they are known (see `concrete`); traced ones are told apart, so that
    the caller can make them NaN: a gather would take the last class for -1.

    Args:
      logits: [... c] scores.
      labels: [...] integers of any width.

    Returns:
      (indices [...] int32 with 0 for what is no class, mask [...] of what is no class).

    Raises:
      ValueError: if the shapes do not fit, or known labels are outside 0..c-1.

    >>> indices(jnp.zeros((2, 3)), jnp.array([0, 3]))
    Traceback (most recent call last):
        ...
    ValueError: labels run from 0 to 3, but the logits have 3 classes (0..2); subtract...
    """
    shape, have = tuple(np.shape(logits)), tuple(np.shape(labels))
    if have != shape[:-1] or not shape:
        hint = "; one-hot integers: labels.astype(jnp.float32)" if have == shape else ""
        if have == shape and len(shape) == 1:
            hint = "; for one logit per example use losses.binary"
        elif have == shape[:-1] + (1,):
            hint = f"; squeeze with labels[{':' if len(have) == 2 else '...'}, 0]"
        raise ValueError(
            f"labels has shape {have}, expected {shape[:-1]}: the leading axes of logits, "
            f"which has shape {shape}{hint}"
        )
    c, known = shape[-1], concrete(labels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= c):
        raise ValueError(
            f"labels run from {known.min()} to {known.max()}, but the logits have {c} classes "
            f"(0..{c - 1}); subtract the minimum or widen the last layer (masked places: put 0)"
        )
    labels = jnp.asarray(labels)
    labels = labels if labels.dtype.itemsize == 8 else labels.astype(jnp.int32)
    bad = (labels < 0) | (labels >= c)
    return jnp.where(bad, 0, labels).astype(jnp.int32), bad


def positive(**numbers) -> None:
    """Every number [...] given by name must be finite and above 0. Traced values pass.

    Args:
      **numbers: [...] Python numbers or arrays.

    Raises:
      ValueError: naming the argument, the value and what is allowed.

    >>> positive(learning_rate=-0.1)
    Traceback (most recent call last):
        ...
    ValueError: learning_rate is -0.1, expected a finite number > 0; 1e-3 is a usual start
    """
    for name, x in numbers.items():
        if isinstance(x, str):
            raise TypeError(f"{name} is the string {x!r}, expected a number: write {name}={x}")
        known = concrete(x)
        if known is not None and known.dtype.kind in "OSUcmM":
            raise TypeError(f"{name} is {x!r:.60}, expected a number > 0")
        if known is None or np.all(np.isfinite(known) & (known > 0)):
            continue
        bad = known[~(np.isfinite(known) & (known > 0))].ravel()[0] if known.ndim else known
        hint = "; 1e-3 is a usual start" if name.endswith("learning_rate") else ""
        raise ValueError(f"{name} is {bad}, expected a finite number > 0{hint}")
