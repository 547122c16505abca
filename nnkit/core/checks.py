"""Shape contracts in one line: checked while tracing, free when running."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.ranges import indexed

__all__ = [
    "concrete",
    "dims",
    "indices",
    "positive",
    "real",
    "same",
    "seen",
    "shares",
    "sizes",
    "typed",
]


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
    indexed(labels, c)
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
            hint = "; a schedule goes into tx=optax.adamw(schedule)" if callable(x) else ""
            raise TypeError(
                f"{name} is {x!r:.60}, expected a number > 0, such as {name}=1e-3{hint}"
            )
        if known is not None and not known.size:
            raise ValueError(
                f"{name} is {x!r:.60}, expected at least one number > 0, such as {name}=(1e-3,)"
            )
        if known is None or np.all(np.isfinite(known) & (known > 0)):
            continue
        bad = known[~(np.isfinite(known) & (known > 0))].ravel()[0] if known.ndim else known
        rate = name.endswith(("learning_rate", "learning_rates"))
        hint = "; 1e-3 is a usual start" if rate else f", such as {name}=1"
        raise ValueError(f"{name} is {bad}, expected a finite number > 0{hint}")


def real(name: str, x):
    """An array of floats in float32 or wider: what losses and metrics compute with.

    Args:
      name: of the array, for the message.
      x: [...] floats of any width.

    Returns:
      [...] float32, or float64 as it came.

    Raises:
      TypeError: if it is not of floats.

    >>> real("logits", jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} is {x.dtype}, expected floats: the output of the model; "
            f"if they are right so, write {name}.astype(jnp.float32)"
        )
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def same(loss: str | None = None, /, **pair) -> None:
    """Two arrays must have one shape: nothing is broadcast.

    Args:
      loss: name of the loss in the remedy, or None.
      **pair: two arrays [...] by name.

    Raises:
      ValueError: if the shapes differ; says how to squeeze an axis of 1.

    >>> same(outputs=np.ones((4, 1)), y=np.ones(4))
    Traceback (most recent call last):
        ...
    ValueError: outputs has shape (4, 1) and y has shape (4,), expected the same shape; squeeze...
    """
    (a, x), (b, y) = ((name, tuple(np.shape(array))) for name, array in pair.items())
    if x == y:
        return
    hint, at = "", "[:, 0]" if max(len(x), len(y)) == 2 else "[..., 0]"
    if y + (1,) == x:
        hint, call = f"; squeeze with {a}{at}", f"outputs{at}, y"
    elif x + (1,) == y:
        hint, call = f"; squeeze with {b}{at}", f"outputs, y{at}"
    if hint and loss:
        hint += f": nk.supervised(model, lambda outputs, y: losses.{loss}({call}))"
    raise ValueError(f"{a} has shape {x} and {b} has shape {y}, expected the same shape{hint}")


def seen(labels, mask):
    """Labels with 0 where the mask is 0: what stands there does not matter. Known ones stay known.

    Args:
      labels: [...] integers.
      mask: [...] of the same shape; 0 or False hides.

    Returns:
      [...] labels, a numpy array if both are known.

    >>> seen(np.array([3, -100]), np.array([True, False]))
    array([3, 0])
    """
    known = concrete(labels), concrete(mask)
    if known[0] is None or known[1] is None:
        labels = jnp.asarray(labels)
        return jnp.where(jnp.asarray(mask).astype(bool), labels, jnp.zeros_like(labels))
    return np.where(known[1] == 0, np.zeros_like(known[0]), known[0])


def sizes(owner: str, *, many: bool = False, **fields) -> None:
    """Every field must be an integer >= 1, or (many) a list of at least one of them.

    Args:
      owner: name of the model or layer, for the message.
      many: are the fields lists?
      **fields: values by name.

    Raises:
      TypeError: if a field is of another kind.
      ValueError: if a list is empty, or a size is not >= 1.

    >>> sizes("MLP", many=True, widths=3)
    Traceback (most recent call last):
        ...
    TypeError: MLP: widths is 3, expected integers >= 1 in a list or tuple; write widths=(3,)
    """
    for name, value in fields.items():
        said = f"{owner}: {name} is {value!r:.60}, expected"
        if not many:
            _size(value, said + f" an integer >= 1{_for_example(name, value)}")
            continue
        if not isinstance(value, list | tuple | range | np.ndarray):
            one = f"({value},)" if _whole(value) else "(64, 10)"
            raise TypeError(f"{said} integers >= 1 in a list or tuple; write {name}={one}")
        if not len(value):
            raise ValueError(f"{said} at least one integer >= 1, such as {name}=(64, 10)")
        for i, x in enumerate(value):
            where = f"{owner}: {name}[{i}] is {x!r:.60} in {value!r:.60}, expected"
            _size(x, f"{where} an integer >= 1, as in {name}=(64, 10)")


def shares(owner: str, **fields) -> None:
    """Every field must be a number in [0, 1): the share that is dropped.

    Args:
      owner: name of the model or layer, for the message.
      **fields: values [] by name; traced ones pass.

    Raises:
      TypeError: if one is no number.
      ValueError: if one is not in [0, 1).

    >>> shares("MLP", dropout=50)
    Traceback (most recent call last):
        ...
    ValueError: MLP: dropout is 50, expected a share in [0, 1): 0 drops nothing, 0.5 one half
    """
    for name, value in fields.items():
        said = f"{owner}: {name} is {value!r:.60}, expected a share in [0, 1): 0 drops nothing, "
        known = concrete(value)
        if known is None:
            continue
        if known.ndim or known.dtype.kind not in "fiu":
            raise TypeError(f"{said}0.5 one half")
        if not 0 <= known < 1:
            raise ValueError(f"{said}0.5 one half")


def typed(config) -> None:
    """Every field of a dataclass must be of the type it is annotated with; nothing is converted.

    An int is no bool, a float no string and not NaN; it is infinite only where the default is.
    Traced numbers pass as floats. The last line of the `__post_init__` of a Config.

    Args:
      config: a dataclass instance of numbers, texts, literals, tuples of them, and dataclasses.

    Raises:
      TypeError: if a field is of another type.
      ValueError: if a text is not one of the literals, a float is not finite, or an integer has
        more than 32 bits.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     steps: int = 1000
    >>> typed(Config(steps="10"))
    Traceback (most recent call last):
        ...
    TypeError: steps is the string '10', expected an integer: write steps=10
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        default = None if field.default is dataclasses.MISSING else field.default
        _fits(field.name, getattr(config, field.name), hints[field.name], default)


def _fits(name: str, x: typing.Any, kind: typing.Any, default: typing.Any) -> None:
    """Raise unless a value is of a type; the default is what the remedy shows."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    example = {int: 10, float: 0.1, bool: True}.get(kind, "name")
    like = f", such as {example!r}" if default is None else f"; {default!r:.60} is usual"
    if origin in (typing.Union, types.UnionType):
        if x is None and type(None) in inside:
            return
        kind = next(k for k in inside if k is not type(None))
        _fits(name, x, kind, default)
        return
    if origin is typing.Literal:
        if not any(x == one and type(x) is type(one) for one in inside):
            near = difflib.get_close_matches(str(x), [str(one) for one in inside], n=1)
            hint = f"; perhaps you meant {near[0]!r}" if near else like
            known = ", ".join(map(repr, inside))
            raise ValueError(f"{name} is {x!r:.60}, expected one of {known}{hint}")
        return
    if origin is tuple and inside[1:] == (...,):
        if not isinstance(x, tuple | list):
            one = f": write {name}=({x!r:.60},)" if isinstance(x, int | float | str) else like
            raise TypeError(f"{name} is {x!r:.60}, expected a tuple{one}")
        for i, one in enumerate(x):
            _fits(f"{name}[{i}]", one, inside[0], default[0] if default else None)
        return
    if kind not in SAID:
        return
    said = f"{name} is {x!r:.60}, expected {SAID[kind]}"
    right = type(x) is kind
    if kind is int:
        right = _whole(x) and not isinstance(x, jax.Array | np.ndarray)
    elif kind is float:  # an array: traced, in a sweep
        right = isinstance(x, float | np.floating | jax.Array) or _whole(x)
    if isinstance(x, str) and not right:
        written = x.replace(".", "", 1).replace("e-", "").removeprefix("-").isdigit()
        word = f": write {name}={x}" if written and "[" not in name else like
        raise TypeError(f"{name} is the string {x!r:.60}, expected {SAID[kind]}{word}")
    if not right:
        raise TypeError(said + like)
    if kind is int and not -(2**31) <= int(x) < 2**31:
        raise ValueError(f"{said} of 32 bits, -2147483648..2147483647{like}")
    if kind is float and isinstance(x, float | np.floating):
        endless = isinstance(default, float) and math.isinf(default)
        if math.isnan(x) or (math.isinf(x) and not endless):
            raise ValueError(f"{name} is {x}, expected a finite number{like}")
        if math.isfinite(x) and abs(x) > 3.4e38:
            raise ValueError(f"{name} is {x}, expected at most 3.4e38, as in float32{like}")


SAID = {int: "an integer", float: "a number", str: "a text", bool: "True or False"}


def _size(x, said: str) -> None:
    if not _whole(x):
        raise TypeError(said)
    if operator.index(x) < 1:
        raise ValueError(said)


def _whole(x) -> bool:
    try:
        operator.index(x)
    except TypeError:
        return False
    return not isinstance(x, bool | np.bool_)


def _for_example(name, value) -> str:
    """The integer that is meant, where one can tell."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f", such as {name}=10"
    whole = number.is_integer() and number >= 1 and not isinstance(value, bool | np.bool_)
    return f"; write {name}={int(number)}" if whole else f", such as {name}=10"
