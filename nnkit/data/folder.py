"""Batches of images kept in one folder per class."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from nnkit.data.batches import Batches
from nnkit.data.pictures import pixels
from nnkit.data.sources import Memory

__all__ = ["folder"]

_KINDS = (".png", ".jpg", ".jpeg")


def folder(
    path,
    *,
    size: int | tuple[int, int],
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    channels: int = 3,
    memory: int = 2**31,
) -> Batches:
    """Batches of the images of `path/<class>/*.png` (or jpg, at any depth below the class).

    Args:
      path: the folder; the sorted names of its subfolders are the classes 0, 1, ...
      size: side of the images, or (height, width); they are resized to it, not cropped.
      batch_size: b; the last batch is padded, with a "mask".
      shuffle: a new order every epoch.
      seed: decides the orders.
      channels: 3 for colour, 1 for grey.
      memory: bytes up to which the decoded images are kept in memory; above, they are read from
        disk batch by batch.

    Returns:
      `Batches` of {"x": [b h w channels] float32 in 0..1, "y": [b] int32}; `classes` has the names.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if it has no subfolders, a subfolder no image, or a file cannot be read.

    >>> folder("no/such/place", size=32, batch_size=8)
    Traceback (most recent call last):
        ...
    FileNotFoundError: path is 'no/such/place', which is no folder; expected <path>/<class>/*.png
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"path is {str(path)!r}, which is no folder; expected <path>/<class>/*.png"
        )
    side = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(side) != 2 or not all(isinstance(s, int) and s > 0 for s in side):
        raise ValueError(f"size is {size!r}, expected a positive int or (height, width), as 32")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}, expected 1 (grey) or 3 (colour)")
    classes, files, labels = _listed(root)
    source = _Files(files, np.array(labels, np.int32), side, channels)
    if len(files) * side[0] * side[1] * channels <= memory:
        images = _read(source, root.name)
        source = Memory({"x": images, "y": source.labels}, {"x": 255})
    return Batches(
        source, batch_size, shuffle=shuffle, seed=seed, classes=classes, name=root.name or "folder"
    )


def _listed(root: Path) -> tuple[tuple[str, ...], tuple[Path, ...], list[int]]:
    """Classes, files and labels, sorted: the same on every file system."""
    kinds = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if not kinds:
        raise ValueError(
            f"{root} has no subfolders, expected one per class; move the images to "
            f"{root.name}/<class>/"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, kind in enumerate(kinds):
        found = sorted(
            p for p in kind.rglob("*") if p.suffix.lower() in _KINDS and not p.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"{kind} has no images, expected files ending in {', '.join(_KINDS)}; "
                "add some or remove the subfolder"
            )
        files += found
        labels += [label] * len(found)
    return tuple(p.name for p in kinds), tuple(files), labels


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    """A source that decodes images when they are asked for."""

    files: tuple[Path, ...]
    labels: np.ndarray
    side: tuple[int, ...]
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> np.ndarray:
        """[h w c] uint8."""
        return pixels(self.files[i], self.channels, self.side)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        x = np.stack([self.image(i) for i in indices]).astype(np.float32) / np.float32(255)
        return {"x": x, "y": self.labels[indices]}

    def column(self, name: str) -> np.ndarray | None:
        return self.labels if name == "y" else None


def _read(source: _Files, name: str) -> np.ndarray:
    """All images [n h w c] uint8; says so if it takes long."""
    out = np.empty((len(source), *source.side, source.channels), np.uint8)
    began, said = time.monotonic(), False
    for i in range(len(source)):
        out[i] = source.image(i)
        if not said and time.monotonic() - began > 5:
            said = True
            print(f"{name}: decoding {len(source)} images, {i + 1} done after 5 s", flush=True)
    return out
