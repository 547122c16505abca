"""Names made to do harm: what they name stays inside its folder, or is refused."""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.checkpoint import Checkpoints, CorruptCheckpoint, leaves, manifest
from nnkit.core import trees
from nnkit.data.prepared import builder
from nnkit.interop import files
from reliability import progress

__all__ = ["hostile", "name"]

TOGETHER = 40  # names of leaves in one checkpoint
PARTS = [
    "..", ".", "", "/", "\\", "../..", "/etc/passwd", "C:\\Windows", "\\\\host\\share",
    "//host/share", "\x00", "a\x00b", "\n", "\r\n", "\t", "\x1b[2J", "\u202e", "\u200b", "\ufeff",
    "\u2215", "CON", "nul.txt", "aux", "LPT1", "~", "~root", "$HOME", "${PATH}", "%2e%2e", "%2F",
    "%00", "%h", "%r", "%e", "a.b", ".hidden", "-rf", "--", "*", "?", "|", ";", "&& touch owned",
    "`touch owned`", "$(touch owned)", "'", '"', "<", ">", ":", "a" * 255, "b" * 300, "ü" * 150,
    "\U0001f600" * 70, "manifest.json", ".run", ".lock", "arrays", "00000001", "é", "e\u0301",
    "A", "a", "ß", "SS", "ı", "I", "__proto__", "__class__", "constructor", "zarr.json",
    "_METADATA", "c/0", "d/0", "ocdbt.process_0", "\ud800", "\udcff", " ", "trailing ",
    "trailing.",
]  # fmt: skip
SECRET = "what must stay"


def name(rng: random.Random) -> str:
    """A name of one to four such parts, joined in some way.

    >>> name(random.Random("0")) == name(random.Random("0"))
    True
    """
    parts = [rng.choice(PARTS) for _ in range(rng.choice([1, 1, 2, 3, 4]))]
    return rng.choice(["", "", "/", "\\", "."]).join(parts)


def hostile(count: int, seed: int) -> dict:
    """Gives hostile names to leaves, shards, files of a manifest and data sets.

    Args:
      count: how many names; a fourth of them at each door.
      seed: of the names.

    Returns:
      {"count", "failures", "inside": names used, within their folder, "refused": names refused}.
    """
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="names-") as root:
        outer = Path(root)
        (outer / "secret.safetensors").write_text(SECRET)
        inner = outer / "a" / "b"
        inner.mkdir(parents=True)
        names = [(trial, name(random.Random(f"{seed}-{trial}"))) for trial in range(count)]
        found = {"inside": 0, "refused": 0}
        for door, way in enumerate((_leaves, _shards, _manifests, _sets)):
            for trial, kind, told in way(inner, names[door::4]):
                found[kind] = found.get(kind, 0) + 1
                if told:
                    failures.append(f"seed {seed} trial {trial} {way.__name__}: {told}")
            progress(f"hostile names {way.__name__}: {len(failures)} failures")
        there = sorted(p.relative_to(outer).as_posix() for p in outer.rglob("*"))
        away = [
            p for p in there if p not in ("a", "secret.safetensors") and not p.startswith("a/b")
        ]
        if away or (outer / "secret.safetensors").read_text() != SECRET:
            failures.append(f"seed {seed}: outside there is now {away}")
    return {"count": count, "failures": failures, **found}


def _leaves(inner: Path, names):
    """Names of leaves of a checkpoint, nested and not; they come back under the same names."""
    folder, tree = inner / "leaves", {}
    for trial, text in names:
        leaf = np.array([trial], np.int32)
        one: Any = {text: leaf} if trial % 8 else {text: {text: leaf}}
        try:
            escaped = next(iter(leaves.flat(one)))
        except ValueError as error:
            yield trial, "refused", "" if "rename it" in str(error) else str(error)
            continue
        if len(escaped) > 220 or "." in escaped or "\\" in escaped or not escaped.isascii():
            yield trial, "inside", f"{text!r} is kept as {escaped!r}"
        tree[f"t{trial}"] = one
    groups = [dict(list(tree.items())[i : i + TOGETHER]) for i in range(0, len(tree), TOGETHER)]
    for number, group in enumerate(groups):
        place = folder / str(number)
        with Checkpoints(place) as saver:
            saver.save(1, group)
        found = Checkpoints(place).restore(group).state
        same = trees.digest(found) == trees.digest(group)
        extra = {path.name for path in place.iterdir()} - {"00000001", ".run", ".lock"}
        told = "" if same and not extra else f"same {same}, beside {extra}"
        for key in group:
            yield key[1:], "inside", told


def _shards(inner: Path, names):
    """Names of files in the index of a checkpoint of others."""
    folder = inner / "shards"
    folder.mkdir()
    for trial, text in names:
        for wanted in (text, text + ".safetensors"):
            table = {"weight_map": {"w": wanted}}
            (folder / files.INDEX).write_text(json.dumps(table))
            try:
                files.tensors(folder)
            except FileNotFoundError as error:
                plain = "/" not in wanted and "\\" not in wanted and "\0" not in wanted
                yield trial, "inside", "" if plain else f"looked for {wanted!r}: {error}"
            except ValueError as error:
                yield trial, "refused", "" if "elsewhere" in str(error) else f"{error!s:.200}"
            except OSError as error:  # names that are too long for the disk
                yield trial, "refused", "" if "too long" in str(error) else f"{error!r:.200}"
            else:
                yield trial, "opened", f"{wanted!r} was read"


def _manifests(inner: Path, names):
    """Names of files in a manifest whose digest is right."""
    folder = inner / "manifests"
    state = {"w": np.ones(3, np.float32)}
    with Checkpoints(folder) as saver:
        saver.save(1, state)
    place = folder / "00000001"
    body = manifest.read(place)
    row = {"bytes": len(SECRET), "sha256": "0" * 64}
    for trial, text in names:
        for wanted in (text, f"../../../../{text}", "../../../secret.safetensors"):
            manifest.write(place, body | {"files": body["files"] | {wanted: row}})
            try:
                Checkpoints(folder).restore(state, 1)
            except CorruptCheckpoint as error:
                known = "is missing" in str(error) or wanted in (manifest.NAME, "arrays")
                yield trial, "refused", "" if known else f"{wanted!r}: {error!s:.200}"
            else:
                yield trial, "opened", f"{wanted!r} was taken"


def _sets(inner: Path, names):
    """Names of data sets."""
    for trial, text in names:
        plain = all(letter.isalnum() or letter in "_.-" for letter in text) and text[:1].isalnum()
        if plain and text.isidentifier():
            continue  # a name as good as any: TFDS is asked for it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                builder(text, data_dir=str(inner / "sets"))
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                yield trial, "refused", "" if str(error) else "no words"
            else:
                yield trial, "opened", f"{text!r} was prepared"
