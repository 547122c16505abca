"""The one door for host data: dtypes, ranges, lengths and NaN are checked here, before any use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["clean"]

_NARROW = {"float64": np.float32, "int64": np.int32, "uint64": np.int32, "complex128": np.complex64}


def clean(fields: Mapping[str, Any], *, scaled: Collection[str] = ()):
    """Arrays as the accelerator takes them, or an error naming field, value and remedy.

    float64 becomes float32 and int64 int32 (never by wrapping); integer labels "y" become int32.

    Args:
      fields: arrays or lists [n ...] by name.
      scaled: names of images kept as uint8 and scaled when a batch is made.

    Returns:
      (arrays [n ...] by name, notes: what was converted).

    Raises:
      TypeError: for strings, objects, iterators, unscaled uint8 images.
      ValueError: for empty, ragged or non-finite fields, other lengths, labels [n 1], large ints.

    >>> clean({"x": [[1.0], [2.0]], "y": [0, 1]})[1]
    ('x was float64, converted to float32', 'y was int64, converted to int32')
    >>> clean({"x": [[1.0], [np.nan]]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: x has 1 NaN or inf of 2 values (first in row 1), expected finite ...
    """
    if not fields:
        raise ValueError("no fields were given, expected at least one; pass x=..., or a mapping")
    done, notes = {}, []
    for name, value in fields.items():
        if not isinstance(name, str):
            raise TypeError(f"a field is named {name!r}, expected a string such as 'x'")
        array = _array(name, value)
        _layout(name, array, name in scaled)
        was = array.dtype
        array = _narrow(name, array)
        _finite(name, array)
        if array.dtype != was:
            notes.append(f"{name} was {was}, converted to {array.dtype}")
        done[name] = array
    first = next(iter(done))
    for name, array in done.items():
        if len(array) != len(done[first]):
            raise ValueError(
                f"{name} has {len(array)} examples, but {first} has {len(done[first])}; every "
                "field needs one row per example: cut or complete one of them"
            )
    return done, tuple(notes)


def _array(name: str, value) -> np.ndarray:
    """The value as a numeric array [n ...]."""
    if hasattr(value, "__next__"):
        raise TypeError(
            f"{name} is a {type(value).__name__}, which can be read only once; expected an array: "
            f"np.stack(list({name}))"
        )
    if isinstance(value, Mapping):
        raise TypeError(
            f"{name} is a mapping, expected an array; give each array a name of its own"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name} is ragged (rows of different lengths), expected one shape for all examples; "
            "pad the rows to one length and pass a mask"
        ) from None
    if not (jax.numpy.issubdtype(array.dtype, np.number) or array.dtype == bool):
        if array.dtype == object and array.ndim and len({np.shape(v) for v in array}) > 1:
            raise ValueError(
                f"{name} is ragged (rows of different lengths), expected one shape for all "
                "examples; pad or resize the rows to one shape and pass a mask"
            )
        some = repr(array.ravel()[0])[:40] if array.size else "nothing"
        raise TypeError(
            f"{name} has dtype {array.dtype} (first value {some}), expected numbers; turn it into "
            "numbers (text: token ids; class names: np.unique(..., return_inverse=True)[1]) "
            "or leave it out"
        )
    return array


def _layout(name: str, array: np.ndarray, scaled: bool) -> None:
    """The batch axis, labels of one axis, images that were scaled."""
    if array.ndim == 0:
        raise ValueError(
            f"{name} is a scalar, expected [n ...]; add the example axis: {name}[None]"
        )
    if len(array) == 0:
        raise ValueError(
            f"{name} has shape {array.shape}, 0 examples, expected at least 1; "
            "check the path or the filter that made it"
        )
    kind = np.dtype(array.dtype).kind
    if name == "y" and kind in "iu" and array.ndim == 2 and array.shape[1] == 1:
        raise ValueError(
            f"y has shape {array.shape}, expected ({len(array)},) for integer labels; pass y[:, 0]"
        )
    if name == "mask" and (array.ndim != 1 or kind not in "bf"):
        raise ValueError(
            f"mask is {array.dtype} of shape {array.shape}, expected float or bool of shape "
            f"({len(array)},), 1 for examples that count; give other arrays another name"
        )
    if array.dtype == np.uint8 and array.ndim >= 3 and array.size and name != "y" and not scaled:
        raise TypeError(
            f"{name} is uint8, range {array.min()}..{array.max()}, expected scaled floats; "
            f"scale it: ({name} / 255).astype(np.float32)"
        )


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
    """64-bit numbers in 32 bits, integer labels as int32; values that do not fit are errors."""
    to: Any = _NARROW.get(str(array.dtype), array.dtype)
    if name == "y" and array.dtype.kind in "iu":
        to = np.int32
    if name == "mask":
        to = np.float32
    if array.dtype == to:
        return array
    if np.dtype(to).kind == "i":
        low, high = int(array.min()), int(array.max())
        if low < -(2**31) or high >= 2**31:
            raise ValueError(
                f"{name} has values {low}..{high}, expected -2147483648..2147483647 (int32); "
                f"renumber it: np.unique({name}, return_inverse=True)[1]"
            )
    elif array.dtype.kind == "f" and array.size:
        large = np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)
        if large.any():
            raise ValueError(
                f"{name} has the value {array[large][0]}, expected at most 3.4e38 (float32); "
                "rescale it"
            )
    return array.astype(to)


def _finite(name: str, array: np.ndarray) -> None:
    """No NaN, no inf."""
    if not jax.numpy.issubdtype(array.dtype, np.inexact):
        return
    good = np.isfinite(array)
    if not good.all():
        row = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        raise ValueError(
            f"{name} has {int((~good).sum())} NaN or inf of {good.size} values (first in row "
            f"{row}), expected finite numbers; drop or fill those rows"
        )
