"""What a manifest may hold besides arrays: whole steps, JSON values, numbers."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

from nnkit.core.documents import parsed

__all__: list[str] = []  # for this package only

LEVELS = 24  # of lists and objects; a manifest has 32 at most


def whole(step) -> int:
    """A step, checked: an int from 0.

    >>> whole(-1)
    Traceback (most recent call last):
        ...
    ValueError: step is -1, expected an int from 0; take the number of updates made
    """
    try:
        found = operator.index(step)
    except TypeError:
        found = -1
    if isinstance(step, bool) or not 0 <= found < 10**18:
        raise ValueError(
            f"step is {step!r}, expected an int from 0; take the number of updates made"
        )
    return found


def json_value(name: str, value) -> Any:
    """A value as JSON gives it back: at most 1 MB and 24 levels, each name of an object once.

    >>> json_value("meta", {"widths": (3, 4)})
    {'widths': [3, 4]}
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} is {value!r:.80}, expected plain JSON values: {error}") from error
    if len(text) > 2**20:
        raise ValueError(
            f"{name} has {len(text)} characters as JSON, at most {2**20} fit; keep it in a file"
        )
    try:
        return parsed(text, depth=LEVELS)
    except ValueError as error:
        raise ValueError(
            f"{name} is {value!r:.80}, expected JSON of at most {LEVELS} levels, each name once: "
            f"{error}; make it flatter, or rename a key"
        ) from None


def data_position(value) -> int | dict[str, Any]:
    """A position in the data: an int, or a JSON object.

    >>> data_position(640)
    640
    """
    if hasattr(value, "__index__") and not isinstance(value, bool):
        value = operator.index(value)
    if isinstance(value, bool) or not isinstance(value, (int, dict)):
        raise TypeError(f"position is {value!r}, expected an int or a dict of plain JSON values")
    return json_value("position", value)


def numbers(metrics, wanted: str | None = None) -> dict[str, Any]:
    """Metrics [] as JSON can hold them; what is not finite becomes "nan", "inf" or "-inf".

    >>> numbers({"loss": jnp.float32(0.5), "ratio": float("nan")})
    {'loss': 0.5, 'ratio': 'nan'}
    """
    found = {}
    for name, value in (metrics or {}).items():
        try:
            value = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"metric {name} is {value!r}, expected one number; reduce it"
            ) from error
        found[str(name)] = value if math.isfinite(value) else str(value)
    if metrics and wanted and wanted not in found:
        raise ValueError(
            f"keep_best wants the metric {wanted!r}, got {sorted(found)}; give it, or no metrics "
            "at all for a step without an evaluation"
        )
    return found


def number(x) -> float:
    """A metric as it was, "nan" and "inf" too.

    >>> number("inf")
    inf
    """
    return float(x)
