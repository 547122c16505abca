"""Batches of TensorFlow Datasets, without TensorFlow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nnkit.data import decoded
from nnkit.data.batches import Batches
from nnkit.data.fields import clean
from nnkit.data.pictures import pixels
from nnkit.data.prepared import builder as find_builder
from nnkit.data.prepared import split_info
from nnkit.data.sources import Memory

__all__ = ["columns", "tfds"]

_CHUNK = 1000


def tfds(
    name: str,
    *,
    split: str,
    batch_size: int,
    shuffle: bool | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    map: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
    x: str | None = None,
    y: str | None = None,
    memory: int = 2**31,
) -> Batches:
    """Batches of a data set of TFDS.

    The input and the label that the set declares become "x" and "y"; `x=` and `y=` choose
    instead (only what they name is kept); a set that declares none hands out its features under
    their own names. 8-bit images become float32 in 0..1, labels int32. The set is looked for in
    `data_dir`, or in the folders NNKIT_DATA_DIR, TFDS_DATA_DIR and ~/tensorflow_datasets; if it is
    in none, TFDS prepares it once (in array_record format), and says so. What took more than a
    second to decode is kept, up to 256 MiB, under NNKIT_CACHE or ~/.cache/nnkit.

    Args:
      name: such as "mnist", "mnist:3.0.1" or "set/config".
      split: such as "train", "test" or "train[:90%]".
      batch_size: b; the last batch is padded, with a "mask".
      shuffle: a new order every epoch; None shuffles splits with "train" in their name.
      seed: decides the orders.
      data_dir: where the set lies or shall lie.
      map: from some examples, a dict of numpy arrays [n ...] (objects for text), to as many
        examples as numbers. Runs once where the split fits in memory; must be deterministic.
      x: the feature (or result of `map`) that becomes "x".
      y: the one that becomes "y".
      memory: bytes up to which the decoded split is kept in memory; above, batches are read from
        disk.

    Returns:
      `Batches`; `classes` has the label names.

    Raises:
      ValueError: for an unknown name (with the nearest ones) or split (with the existing ones), or
        a set that is not whole.
      KeyError: if `x` or `y` names no feature.
      TypeError: for text or ragged features without `map`.
      FileNotFoundError: if NNKIT_DATA_DIR is set to something that is no folder.
      RuntimeError: if the set cannot be downloaded, or preparing it needs TensorFlow; reading
        never does.

    >>> tfds("mnist", split="train", batch_size=32, memory=-1)
    Traceback (most recent call last):
        ...
    ValueError: memory is -1, expected a number of bytes >= 0
    """
    if memory < 0:
        raise ValueError(f"memory is {memory}, expected a number of bytes >= 0")
    builder = find_builder(name, data_dir)
    info = split_info(builder, name, split)
    records = _records(builder, split, map, x, y)
    arrays = _in_memory(records, info, name, memory)
    source = records if arrays is None else Memory(arrays, records.divisors(arrays))
    shuffle = "train" in split if shuffle is None else shuffle
    classes, title = _classes(builder, records), f"{name} {split}"
    return Batches(source, batch_size, shuffle=shuffle, seed=seed, classes=classes, name=title)


def columns(name: str, *, split: str, data_dir: str | None = None) -> dict[str, Any]:
    """All examples of a split of a TFDS data set, in order, feature by feature: texts as str.

    For data that a program must read as a whole before it can be batched: texts to make a tokenizer
    of, sentences to encode. The set is looked for as `tfds` does.

    Args:
      name: such as "sst2".
      split: such as "train" or "train+validation".
      data_dir: where the set lies or shall lie.

    Returns:
      {feature: [n] list of str, or [n ...] array of what is no text}; images as stored, unscaled.

    Raises:
      ValueError: for an unknown name (with the nearest ones) or split (with the existing ones), or
        text that is not UTF-8.

    >>> columns("no_such_set", split="train")
    Traceback (most recent call last):
        ...
    ValueError: ...no_such_set...

    TensorFlow Datasets, `as_data_source`.
    """
    builder = find_builder(name, data_dir)
    split_info(builder, name, split)
    records = dataclasses.replace(_records(builder, split, None, None, None), chosen=None)
    found = records.raw(range(len(records)))
    return {feature: _texts(name, feature, column) for feature, column in found.items()}


def _texts(name: str, feature: str, column: np.ndarray):
    """A column of bytes as a list of str; anything else as it is."""
    if column.dtype != object or not isinstance(column[0], bytes | str):
        return column
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in column]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: {feature} is not UTF-8 ({error}); read it by tfds(..., map=...) and decode "
            "it with its own encoding"
        ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """A source that reads and decodes examples when they are asked for."""

    reader: Any
    images: dict[str, int]
    map: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None
    chosen: dict[str, str] | None
    strict: bool  # a chosen name must exist; not so for declared names after `map`
    place: str  # the folder, for messages

    def __len__(self) -> int:
        return len(self.reader)

    def raw(self, indices) -> dict[str, np.ndarray]:
        """Examples mapped and renamed, images as they are stored."""
        rows = [_flat(row) for row in self._read([int(i) for i in indices])]
        needed = rows[0] if self.map or not self.chosen else self.chosen.values()
        for name, channels in self.images.items():
            for row in rows if name in needed else ():
                row[name] = pixels(row[name], channels)
        batch = {name: _together([row[name] for row in rows]) for name in rows[0]}
        if self.map is not None:
            batch = dict(self.map(batch))
            for name, array in batch.items():
                if np.ndim(array) == 0 or len(array) != len(rows):
                    raise ValueError(
                        f"map returned {name} of shape {np.shape(array)} for {len(rows)} "
                        "examples, expected one row per example; keep all of them"
                    )
        if self.chosen is None or not (self.strict or set(self.chosen.values()) <= set(batch)):
            return batch
        for to, name in self.chosen.items():
            if name not in batch:
                raise KeyError(
                    f"{to}={name!r} names no feature, expected one of {', '.join(sorted(batch))}"
                )
        return {to: batch[name] for to, name in self.chosen.items()}

    def _read(self, indices: list[int]):
        """The examples as they are stored; files check a hash of every part that is read."""
        try:
            return self.reader.__getitems__(indices)
        except Exception as error:
            raise ValueError(
                f"examples {indices[0]}..{indices[-1]} of {self.place} cannot be read "
                f"({type(error).__name__}: {error!s:.200}), expected a whole file; copy the data "
                "set again, or remove this folder and it is prepared anew"
            ) from error

    def scaled(self) -> set[str]:
        """The names, after choosing, of images: pixels go through unscaled."""
        if self.map is not None:
            return set()
        if self.chosen is None:
            return set(self.images)
        return {to for to, name in self.chosen.items() if name in self.images}

    def divisors(self, arrays) -> dict[str, float]:
        """What images are divided by, by name."""
        return {name: 255 for name in self.scaled() if name in arrays}

    def clean(self, indices):
        """Arrays [i ...], checked."""
        batch = self.raw(indices)
        for name, array in batch.items():
            if np.asarray(array).dtype == object:
                _no_numbers(name, array)
        return clean(batch, scaled=self.scaled())[0]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        arrays = self.clean(indices)
        return Memory(arrays, self.divisors(arrays)).take(np.arange(len(indices)))


def _no_numbers(name: str, array) -> None:
    """The error for a feature of text or of changing shape."""
    first = np.asarray(array)[0]
    kind = "text" if isinstance(first, bytes | str) else "of changing shape"
    raise TypeError(
        f"{name} is {kind} (first value {repr(first)[:40]}), expected numbers of one shape; turn "
        "it into numbers with map=function of a dict of arrays, or choose other features with "
        "x='...', y='...'"
    )


def _records(builder, split: str, map, x, y) -> _Records:
    """The reader of a split, with its images left encoded, and the choice of features."""
    import tensorflow_datasets

    features = builder.info.features
    image: Any = tensorflow_datasets.features.Image  # its annotations allow for nested shapes
    images = {
        name: feature.shape[-1]
        for name, feature in features.items()
        if isinstance(feature, image) and np.dtype(feature.np_dtype) == np.uint8
    }
    decoders: Any = {name: tensorflow_datasets.decode.SkipDecoding() for name in images}
    chosen: dict[str, str] = {to: name for to, name in (("x", x), ("y", y)) if name is not None}
    strict = bool(chosen) or map is None
    declared = builder.info.supervised_keys
    if not chosen and isinstance(declared, tuple) and len(declared) == 2:
        chosen = (
            dict(zip(("x", "y"), declared)) if all(isinstance(n, str) for n in declared) else {}
        )
    reader = builder.as_data_source(split, decoders=decoders or None)
    return _Records(reader, images, map, chosen or None, strict, str(builder.data_path))


def _in_memory(records: _Records, info, name: str, memory: int):
    """The whole split decoded; None if it is larger than `memory` bytes."""
    n = len(records)
    kept = decoded.key(info.files, n=n, split=info.split, chosen=records.chosen)
    if records.map is None and memory and (arrays := decoded.load(kept)) is not None:
        return arrays if _bytes(arrays) <= memory else None
    began, said, chunks = time.monotonic(), False, []
    for start in range(0, n, _CHUNK):
        chunk = records.clean(range(start, min(start + _CHUNK, n)))
        if not start and _bytes(chunk) * n > memory * min(n, _CHUNK):
            return None
        chunks.append(chunk)
        done, spent = start + _CHUNK, time.monotonic() - began
        if not said and spent > 1 and spent / done * n > 5:
            said = True
            print(f"{name}: decoding {n} examples, about {spent / done * n:.0f} s", flush=True)
    arrays = {field: _joined(field, chunks) for field in chunks[0]}
    if records.map is None and time.monotonic() - began > 1:
        decoded.save(kept, arrays)
    return arrays


def _bytes(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _joined(name: str, chunks: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The chunks of one field, which must agree in shape and dtype."""
    first = chunks[0][name]
    for chunk in chunks:
        if chunk[name].shape[1:] != first.shape[1:] or chunk[name].dtype != first.dtype:
            raise ValueError(
                f"{name} is {chunk[name].dtype}{list(chunk[name].shape[1:])} in some examples and "
                f"{first.dtype}{list(first.shape[1:])} in others, expected one shape; pad or "
                "resize with map=..."
            )
    return np.concatenate([chunk[name] for chunk in chunks])


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested features as "objects/label"."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        inner = _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {}
        flat |= inner or {prefix + name: value}
    return flat


def _together(values: list[Any]) -> np.ndarray:
    """Values of one feature as an array [n ...]; of objects if they are text or differ in shape."""
    shapes = {np.shape(v) for v in values}
    if len(shapes) == 1 and not isinstance(values[0], bytes | str):
        array = np.stack([np.asarray(v) for v in values])
        if array.dtype.kind not in "SU":
            return array
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def _classes(builder, records: _Records) -> tuple[str, ...] | None:
    """The names of the labels, if "y" is a declared class label."""
    name = (records.chosen or {}).get("y", "y")
    names = getattr(dict(builder.info.features).get(name), "names", None)
    return tuple(names) if names and records.map is None else None
