"""Checkpoints damaged in every way: found before a value is used, or harmless; never silent."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.checkpoint import Checkpoints, CorruptCheckpoint, manifest, verify
from nnkit.core import trees
from reliability import progress

__all__ = ["WAYS", "checkpoints", "state"]

STEPS = (1, 2, 3)
KINDS = ("vectors", "training", "numbers", "many")


def state(kind: str, step: int) -> Any:
    """A small state of bits that cannot be compressed, another one for every step.

    >>> sorted(state("numbers", 1))
    ['n', 'rate', 'seen']
    """
    rng = np.random.default_rng([KINDS.index(kind), step])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    if kind == "vectors":
        return {"w": draw(64, 96), "b": draw(96), "n": np.int32(step)}
    if kind == "training":
        params = {"kernel": jnp.asarray(draw(32, 32)), "bias": jnp.asarray(draw(32))}
        half = jnp.asarray(draw(33)).astype(jnp.bfloat16)
        return {"params": params, "mu": half, "key": jax.random.key(step), "step": jnp.int32(step)}
    if kind == "numbers":
        return {"n": step, "rate": 0.1 * step, "seen": np.int64(2**40 + step)}
    return {f"layer_{i}": {"w": draw(5, 7), "b": draw(7)} for i in range(30)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _one(rng, folder: Path, least: int = 1) -> Path:
    """A file of at least so many bytes, large ones more often."""
    files = [path for path in _files(folder) if path.stat().st_size >= least]
    return rng.choices(files, [1 + path.stat().st_size ** 0.5 for path in files])[0]


def _changed(path: Path, data: bytes | bytearray) -> list[Path]:
    path.write_bytes(bytes(data))
    return [path]


def flipped(rng, folder: Path, other: Path) -> list[Path]:
    """One bit."""
    path = _one(rng, folder)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return _changed(path, data)


def zeroed(rng, folder: Path, other: Path) -> list[Path]:
    """A block of 4 KiB, or what there is of it."""
    path = _one(rng, folder)
    data = bytearray(path.read_bytes())
    start = rng.randrange(0, len(data), 4096)
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    return _changed(path, data)


def cut(rng, folder: Path, other: Path) -> list[Path]:
    """The end of a file is missing."""
    path = _one(rng, folder)
    return _changed(path, path.read_bytes()[: rng.randrange(path.stat().st_size)])


def longer(rng, folder: Path, other: Path) -> list[Path]:
    """More bytes at the end."""
    path = _one(rng, folder)
    return _changed(path, path.read_bytes() + rng.randbytes(rng.choice([1, 4096])))


def noise(rng, folder: Path, other: Path) -> list[Path]:
    """Other bytes, as many."""
    path = _one(rng, folder)
    return _changed(path, rng.randbytes(path.stat().st_size))


def deleted(rng, folder: Path, other: Path) -> list[Path]:
    """A file is gone, of whatever size."""
    path = rng.choice(_files(folder))
    path.unlink()
    return [path]


def renamed(rng, folder: Path, other: Path) -> list[Path]:
    """A file has another name."""
    path = rng.choice(_files(folder))
    path.rename(path.with_name(path.name + rng.choice(["~", ".part", "x"])))
    return [path]


def swapped(rng, folder: Path, other: Path) -> list[Path]:
    """Two files have each other's contents."""
    one, two = rng.sample([path for path in _files(folder) if path.stat().st_size], 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return [one, two]


def mixed(rng, folder: Path, other: Path) -> list[Path]:
    """A file of another checkpoint, at the place of the one most like it."""
    path = _one(rng, folder)
    size, where = path.stat().st_size, path.parent.relative_to(folder)
    near = sorted(_files(other / where), key=lambda p: abs(p.stat().st_size - size))
    return _changed(path, near[0].read_bytes())


def linked(rng, folder: Path, other: Path) -> list[Path]:
    """A link to the same bytes elsewhere."""
    path = rng.choice(_files(folder))
    away = folder.parent / f"away-{rng.randrange(10**9)}"
    path.rename(away)
    path.symlink_to(away)
    return [path]


def emptied(rng, folder: Path, other: Path) -> list[Path]:
    """A folder inside is gone."""
    path = rng.choice([p for p in folder.rglob("*") if p.is_dir() and any(p.iterdir())])
    shutil.rmtree(path)
    return [path]


def forged(rng, folder: Path, other: Path) -> list[Path]:
    """Sound arrays of another state under a manifest that names their files: leaves tell it."""
    shutil.rmtree(folder / "arrays")
    shutil.copytree(other / "arrays", folder / "arrays")
    body = manifest.read(folder)
    (folder / manifest.NAME).unlink()
    manifest.write(folder, body | {"files": manifest.file_table(folder)})
    return []


WAYS = (
    flipped, flipped, zeroed, zeroed, cut, longer, noise, deleted, renamed, swapped, mixed, linked,
    emptied, forged,
)  # fmt: skip


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file by name, links marked."""
    return {
        path.relative_to(folder).as_posix() + ("@" if path.is_symlink() else ""): path.read_bytes()
        for path in _files(folder)
    }


def checkpoints(count: int, seed: int) -> dict:
    """Damages the newest of three checkpoints and asks for it: told, and the one before is taken.

    Args:
      count: how many damaged checkpoints.
      seed: of the kinds of damage and their places.

    Returns:
      {"count", "failures", "found": damaged and told, "harmless": read, with the right bits,
      "silent": read, with other bits, and how often each way}.
    """
    root = Path(tempfile.mkdtemp(prefix="damage-"))
    failures: list[str] = []
    seen: Counter = Counter()
    try:
        for kind in KINDS:
            with Checkpoints(root / kind, keep_last=9) as saver:
                for step in STEPS:
                    saver.save(step, state(kind, step), position=step)
        for trial in range(count):
            rng = random.Random(f"{seed}-{trial}")
            kind, way = KINDS[trial % len(KINDS)], rng.choice(WAYS)
            run = root / f"trial-{trial}"
            shutil.copytree(root / kind, run)
            try:
                seen[_tried(rng, run, kind, way)] += 1
                seen[way.__name__] += 1
            except Exception as error:
                seen["silent"] += isinstance(error, Silent)
                name = f"seed {seed} trial {trial} {kind} {way.__name__}"
                failures.append(f"{name}: {type(error).__name__}: {error!s:.300}")
            shutil.rmtree(run)
            if trial % 200 == 199:
                progress(f"damaged checkpoints: {trial + 1} of {count}, {len(failures)} failures")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {"count": count, "failures": failures, "silent": 0, **seen}


class Silent(AssertionError):
    """Other bits were handed out."""


def _tried(rng, run: Path, kind: str, way) -> str:
    """One damaged checkpoint; "found" or "harmless", or an error."""
    folder, other = run / "00000003", run / "00000001"
    before = _contents(folder)
    places = way(rng, folder, other)
    same = folder.is_dir() and _contents(folder) == before
    target = state(kind, 1)
    problems = [] if way is forged else verify(folder)
    strict = None
    try:
        strict = Checkpoints(run).restore(target, 3)
    except (CorruptCheckpoint, FileNotFoundError) as error:
        told = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Checkpoints(run).restore(target)
    right = trees.digest(state(kind, found.step))
    if trees.digest(found.state) != right or found.position != found.step:
        raise Silent(f"step {found.step} was restored with other bits")
    if same:
        assert strict is not None and found.step == 3 and not problems, "sound, and refused"
        return "harmless"
    if strict is not None:
        right = trees.digest(state(kind, 3))
        if trees.digest(strict.state) != right:
            raise Silent("step 3 was restored by its number with other bits")
        raise AssertionError("damaged, and restored all the same")
    assert found.step == 2, f"step {found.step} was taken, expected 2"
    said = " ".join(str(one.message) for one in caught)
    names = [path.relative_to(folder).as_posix() for path in places]
    for text in (told, said, *problems[:1]):
        assert "00000003" in text, f"the checkpoint is not named: {text}"
    wanted = names if places else ["leaf "]
    assert any(name in told for name in wanted), f"{wanted} not named: {told}"
    assert any(name in said for name in wanted), f"{wanted} not named: {said}"
    assert problems or not places, "verify found nothing"
    assert os.path.lexists(folder), "it was deleted"
    return "found"
