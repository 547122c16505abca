"""Batches of a table in a CSV file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.fields import clean
from nnkit.data.sources import Memory

__all__ = ["table"]


def table(
    path,
    *,
    target: str,
    batch_size: int,
    columns: Sequence[str] | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Batches:
    """Batches of a CSV file with a header: numeric columns as "x", one column as "y".

    Text targets become class indices in sorted order (`classes` has the names), integers stay as
    they are, floats stay floats. `.split(0.8)` gives a test part. Nothing is scaled:
    `data.standardise` does that. Numeric targets are [b] while most models give [b 1], hence
    `outputs[:, 0]` in the second example.

    Args:
      path: the file.
      target: the column to predict.
      batch_size: b; the last batch is padded, with a "mask".
      columns: the d feature columns, in order; None takes all but the target.
      shuffle: a new order every epoch.
      seed: decides the orders.

    Returns:
      `Batches` of {"x": [b d] float32, "y": [b] int32 or float32}.

    Raises:
      FileNotFoundError: if there is no such file.
      KeyError: for a column that the file does not have.
      ValueError: for missing values, an empty table, columns named twice.
      TypeError: for feature columns that are not numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     file = Path(place) / "iris.csv"
    ...     _ = file.write_text("width,length,kind\\n1,2,setosa\\n3,4.5,virginica\\n")
    ...     flowers = table(file, target="kind", batch_size=2, shuffle=False)
    >>> next(iter(flowers))["x"].tolist(), flowers.classes
    ([[1.0, 2.0], [3.0, 4.5]], ('setosa', 'virginica'))

    >>> with tempfile.TemporaryDirectory() as place:
    ...     file = Path(place) / "houses.csv"
    ...     _ = file.write_text("rooms,area,price\\n2,50,1.5\\n3,70,2.5\\n4,90,3.0\\n")
    ...     houses = nk.data.standardise(table(file, target="price", batch_size=3))
    >>> task = nk.supervised(nn.Dense(1), lambda outputs, y: nk.losses.mse(outputs[:, 0], y))
    >>> params, carry = task.init(jax.random.key(0), next(iter(houses)))
    >>> task.loss(params, carry, next(iter(houses)), None)[0].weight
    Array(3., dtype=float32)
    """
    data = _read(path)
    wanted = _features(data.column_names, target, columns, path)
    if data.num_rows == 0:
        raise ValueError(f"{path} has a header and 0 rows, expected at least 1; check the file")
    _complete(data.select([*wanted, target]), path)
    x = np.stack([_numbers(data, name, wanted, path) for name in wanted], axis=1)
    y, classes = _target(data[target], target)
    arrays, _ = clean({"x": x, "y": y})
    return Batches(
        Memory(arrays),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        classes=classes,
        name=Path(path).name,
        notes=("x columns: " + ", ".join(wanted),),
    )


def _read(path):
    from pyarrow import ArrowInvalid, csv

    if not Path(path).is_file():
        raise FileNotFoundError(f"path is {str(path)!r}, which is no file; expected a CSV file")
    try:
        return csv.read_csv(str(path), convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except ArrowInvalid as error:
        raise ValueError(
            f"{path} cannot be read ({error}), expected CSV with a header; check that line"
        ) from error


def _features(names: list[str], target: str, columns, path) -> list[str]:
    """The feature columns, checked against the header."""
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{path} names the column {twice[0]!r} twice; rename one in the header")
    wanted = [n for n in names if n != target] if columns is None else list(columns)
    for name in [target, *wanted]:
        _known(name, names, path)
    if target in wanted:
        raise ValueError(f"columns hold the target {target!r}, expected features only; drop it")
    if not wanted:
        raise ValueError(f"{path} has no column beside the target {target!r}, expected at least 1")
    return wanted


def _known(name: str, names: list[str], path) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise KeyError(f"{path} has no column {name!r}, expected one of {', '.join(names[:20])}{hint}")


def _complete(data, path) -> None:
    """No missing values."""
    for name in data.column_names:
        if missing := data[name].null_count:
            raise ValueError(
                f"column {name!r} of {path} has {missing} missing of {data.num_rows} values, "
                "expected none; fill them or drop the rows, or leave the column out with "
                "columns=[...]"
            )


def _numbers(data, name: str, wanted: list[str], path) -> np.ndarray:
    """A column [n] as float32."""
    from pyarrow import types

    def numeric(column) -> bool:
        kind = data[column].type
        return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    if not numeric(name):
        bad = [n for n in wanted if not numeric(n)]
        good = [n for n in wanted if numeric(n)]
        raise TypeError(
            f"{path} has feature columns that are not numbers: "
            f"{', '.join(f'{n!r} ({data[n].type})' for n in bad)}; encode them, or choose "
            f"columns={good}"
        )
    values = data[name].to_numpy().astype(np.float64)
    return clean({name: values})[0][name]


def _target(column, name: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The target [n], and the class names if it was text."""
    from pyarrow import types

    values = column.to_numpy()
    if types.is_boolean(column.type):
        return values.astype(np.int32), ("false", "true")
    if types.is_string(column.type) or types.is_large_string(column.type):
        classes, index = np.unique(values.astype(str), return_inverse=True)
        return index.astype(np.int32), tuple(classes.tolist())
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        raise TypeError(
            f"target {name!r} has type {column.type}, expected numbers or text; choose another "
            "target or convert it"
        )
    return values, None
