"""Where a data set of TFDS lies, and preparing it once if it lies nowhere."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

__all__ = ["builder", "split_info"]

downloads = contextvars.ContextVar("downloads", default=True)  # may a missing set be downloaded?
_FORMATS = ("array_record", "parquet")  # those that can be read at random, without TensorFlow


def builder(name: str, data_dir: str | None = None):
    """The TFDS builder of a set that is ready to be read.

    Args:
      name: such as "mnist", "mnist:3.0.1" or "set/config".
      data_dir: the only folder to look into and to prepare in; None looks in NNKIT_DATA_DIR,
        TFDS_DATA_DIR and ~/tensorflow_datasets, and prepares in the second or the last.

    Returns:
      A TFDS builder.

    Raises:
      ValueError: for an unknown name (says the nearest ones), or a set that is not whole.
      FileNotFoundError: if NNKIT_DATA_DIR is set to something that is no folder.
      RuntimeError: if preparing it fails (no connection) or needs TensorFlow.

    >>> builder("")
    Traceback (most recent call last):
        ...
    ValueError: name is '', expected the name of a data set, such as 'mnist'
    """
    if not isinstance(name, str) or not re.fullmatch(
        r"\w[\w.\-]*(/\w[\w.\-+=,]*)?(:[\w.*]+)?", name
    ):
        raise ValueError(f"name is {name!r}, expected the name of a data set, such as 'mnist'")
    folders = _folders(data_dir)
    import tensorflow_datasets as tfds

    return _found(tfds, name, folders) or _prepare(tfds, name, folders)


def _found(tfds, name: str, folders: list[Path]):
    """The builder of a set that lies in one of the folders, or None."""
    for folder in folders:
        for place in _versions(folder, name):
            _known(place)
            try:
                ready = tfds.builder_from_directory(place)
            except Exception as error:
                raise _damaged(
                    place, f"its description cannot be read ({_cause(error)})"
                ) from error
            if {f.value for f in ready.info.available_file_formats()} & set(_FORMATS):
                return ready
    return None


def _known(place: Path) -> None:
    """The features of a set are those of TFDS: it imports what features.json names."""
    try:
        text = (place / "features.json").read_text()
        names = [str(name) for name in _under("pythonClassName", json.loads(text))]
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(place, f"features.json cannot be read ({_cause(error)})") from error
    for name in names:
        if not name.startswith("tensorflow_datasets.core.features."):
            raise ValueError(
                f"features.json of {place} names the class {name!r}, expected one of "
                "tensorflow_datasets.core.features: reading it would run other code; use a data "
                "set whose features are those of TFDS"
            )


def _under(name: str, tree) -> list:
    """All values of a key in a tree of JSON."""
    if isinstance(tree, dict):
        return [v for k, x in tree.items() for v in ([x] if k == name else _under(name, x))]
    return [v for x in tree for v in _under(name, x)] if isinstance(tree, list) else []


def _damaged(place, what: str) -> ValueError:
    """The error for a set that was copied by halves, or is damaged."""
    return ValueError(
        f"{place} is no whole data set: {what}, expected all the files of a finished preparation; "
        "copy it again, or remove this folder and it is prepared anew"
    )


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _folders(data_dir: str | None) -> list[Path]:
    """Where to look, in order; the last is the one to prepare in."""
    own = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    given = os.environ.get("NNKIT_DATA_DIR")
    if not data_dir and given and not Path(given).expanduser().is_dir():
        raise FileNotFoundError(
            f"NNKIT_DATA_DIR is {given!r}, which is no folder; expected one with data sets in TFDS "
            f"format; correct it, or unset it to use {own}"
        )
    places = [data_dir] if data_dir else [given, own]
    return [Path(place).expanduser() for place in places if place]


def _versions(folder: Path, name: str) -> list[Path]:
    """The prepared versions of a set in a folder, newest first; one config if none is named."""
    base, config, version = _parts(name)
    inner = [folder / base / config] if config else [folder / base]
    if not config and (folder / base).is_dir():
        inner += sorted(p for p in (folder / base).iterdir() if p.is_dir())
    for place in inner:
        found = [p.parent for p in place.glob(f"{version or '*'}/dataset_info.json")]
        found = [p for p in found if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
        if found:
            return sorted(found, key=lambda p: [int(v) for v in p.name.split(".")], reverse=True)
    return []


def _parts(name: str) -> tuple[str, str, str]:
    """ "set/config:1.0.0" as ("set", "config", "1.0.0")."""
    head, _, version = name.partition(":")
    base, _, config = head.partition("/")
    return base, config, version


def _prepare(tfds, name: str, folders: list[Path]):
    """Download and prepare once, as array_record, in the last folder."""
    try:
        made = tfds.builder(name, data_dir=str(folders[-1]), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ModuleNotFoundError) as error:
        if "tensorflow" in str(error) and isinstance(error, ModuleNotFoundError):
            raise _needs_tensorflow(name) from error
        raise _unknown(name, folders) from None
    looked, place = ", ".join(map(str, folders)), Path(made.data_dir)
    if not downloads.get():
        remedy = "set NNKIT_DATA_DIR to a folder with prepared data sets, or train first"
        raise RuntimeError(f"{name} is not in {looked}, and nothing is downloaded here: {remedy}")
    if not place.is_dir():
        print(
            f"{name} is not in {looked}: downloading and preparing it once in {folders[-1]}",
            flush=True,
        )
    elif not (place / "dataset_info.json").is_file():
        raise _damaged(place, "dataset_info.json is missing")
    try:  # what is downloaded must have the SHA-256 that the builder knows
        strict = {"force_checksums_validation": True, "try_download_gcs": False}
        made.download_and_prepare(download_config=tfds.download.DownloadConfig(**strict))
    except Exception as error:
        _tidy(place.resolve(), folders[-1].resolve())
        if (ready := _found(tfds, name, folders)) is not None:
            return ready  # another process was faster
        if "No module named 'tensorflow'" in str(error):
            raise _needs_tensorflow(name) from error
        raise RuntimeError(
            f"{name} is not in {looked}, and downloading and preparing it in {folders[-1]} failed "
            f"({_cause(error)}); set NNKIT_DATA_DIR to a folder with prepared data sets (or pass "
            "it as data_dir=...), or check the connection and try again"
        ) from error
    if not {f.value for f in made.info.available_file_formats()} & set(_FORMATS):
        raise RuntimeError(
            f"{name} is prepared in {made.data_dir} as {made.info.file_format.value}, which only "
            f"TensorFlow can read, expected {' or '.join(_FORMATS)}; pass another data_dir=..."
        )
    return made


def _tidy(place: Path, top: Path) -> None:
    """Remove the empty folders that a failed preparation left, from `place` up to below `top`."""
    for folder in (place, *place.parents):
        if top not in folder.parents:
            return
        with contextlib.suppress(OSError):  # there is none, or it holds something
            folder.rmdir()


def _needs_tensorflow(name: str) -> RuntimeError:
    return RuntimeError(
        f"preparing {name} needs TensorFlow (its builder uses it to read or encode the originals), "
        "which is not installed; pip install 'nnkit-jax[tfds-prepare]' for this one step, or pass "
        "data_dir= of a prepared copy; reading it afterwards does not need TensorFlow"
    )


def _unknown(name: str, folders: list[Path]) -> ValueError:
    """The error for a name that neither the folders nor TFDS know."""
    known = {p.name for f in folders if f.is_dir() for p in f.iterdir() if _versions(f, p.name)}
    here = sorted(known)
    with contextlib.suppress(Exception):  # the list is a help, not a need
        from tensorflow_datasets.core import registered

        known |= set(registered.list_imported_builders())
    near = difflib.get_close_matches(_parts(name)[0], sorted(known), 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "check the spelling"
    listed = f" ({', '.join(here[:40])})" if here else ""
    return ValueError(
        f"{name!r} is neither prepared in {', '.join(map(str, folders))}{listed} nor known to "
        f"TFDS; {hint}"
    )


def split_info(builder, name: str, split: str) -> SimpleNamespace:
    """The facts of a split, checked.

    Args:
      builder: from `builder`.
      name: for messages.
      split: such as "train" or "train[:90%]".

    Returns:
      split (the text) and files (the paths it is read from).

    Raises:
      ValueError: if the set has no such split, or it is empty (lists the splits and their sizes),
        or a file is missing or holds another number of examples than were prepared.

    >>> split_info(None, "mnist", 3)
    Traceback (most recent call last):
        ...
    TypeError: split is 3, expected a string such as 'train'
    """
    if not isinstance(split, str):
        raise TypeError(f"split is {split!r}, expected a string such as 'train'")
    sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
    listed = ", ".join(f"{k} ({n:,} examples)" for k, n in sizes.items())
    try:
        found = builder.info.splits[split]
        count, files = found.num_examples, [Path(p) for p in found.filepaths]
    except (KeyError, ValueError, AssertionError):
        raise ValueError(
            f"{name} has no split {split!r}, expected one of {listed}, or a part such as "
            f"'{next(iter(sizes), 'train')}[:90%]'"
        ) from None
    if not count:
        raise ValueError(
            f"split {split!r} of {name} has 0 examples, expected at least 1 ({listed})"
        )
    _whole(builder, found.file_instructions)
    return SimpleNamespace(split=split, files=files)


def _whole(builder, parts) -> None:
    """Every file of a split is there and holds as many examples as were prepared."""
    for part in parts:
        path, count = Path(part.filename), part.examples_in_shard
        if not path.is_file():
            raise _damaged(builder.data_path, f"{path.name} is missing")
        try:
            there = _examples(path, builder.info.file_format.value)
        except Exception as error:
            what = f"{path.name} ({path.stat().st_size} bytes) cannot be read ({_cause(error)})"
            raise _damaged(builder.data_path, what) from error
        if there != count:
            what = f"{path.name} holds {there} examples instead of {count}"
            raise _damaged(builder.data_path, what)


def _examples(path: Path, kind: str) -> int:
    """How many examples a file holds, by its own table of contents."""
    if kind == "parquet":
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows
    from array_record.python import array_record_module  # pyright: ignore

    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()
