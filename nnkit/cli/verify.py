"""`nnkit verify`: is every byte what was written? Needs no model, no data and no device."""

from __future__ import annotations

import os
from pathlib import Path

from nnkit.cli.restored import checkpoints
from nnkit.core.documents import document, parsed

__all__ = ["verify"]

USAGE = """usage: nnkit verify PATH
PATH is a run folder, a folder of checkpoints or one of them, a .safetensors file, or a folder of
weights. Exit code: 0 if all is as it was written, 1 if something is damaged, 2 if there is nothing
to verify."""


def verify(words: list[str]) -> int:
    """nnkit verify PATH: checkpoints, weights and records against the digests written with them.

    Args:
      words: the words after the verb.

    Returns:
      0 if all is sound, 1 if anything is damaged, 2 if there is nothing to verify.

    >>> verify(["no-such-run"])
    no-such-run does not exist; give a run, a folder of checkpoints, or a .safetensors file
    2
    """
    if len(words) != 1 or words[0].startswith("-"):
        print(USAGE)
        return 0 if words in (["-h"], ["--help"]) else 2
    path = Path(words[0])
    if not os.path.lexists(path):
        print(f"{path} does not exist; give a run, a folder of checkpoints, or a .safetensors file")
        return 2
    found = _found(path)
    if not found:
        print(
            f"{path} has no checkpoints and no weights; give a run, a folder of checkpoints, or a "
            ".safetensors file"
        )
        return 2
    bad = 0
    for what, problems, note in found:
        bad += bool(problems)
        print(f"{'damaged' if problems else 'ok     '}  {what}{note}")
        for problem in problems:
            print(f"         {problem}")
    return 1 if bad else 0


def _found(path: Path) -> list[tuple[Path, list[str], str]]:
    """(what, its problems, a note) of everything at a path that can be verified."""
    if path.suffix == ".safetensors" or not path.is_dir():
        return [_weights(path)]
    if (path / "manifest.json").exists() or (path / "arrays").is_dir():
        return [_checkpoint(path)]
    inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = [_checkpoint(one) for one in checkpoints(inside)]
    names = ("model.safetensors", "model.safetensors.index.json")
    if any((path / name).exists() for name in names):
        found.append(_weights(path))
    if found and (path / "config.json").exists() and inside != path:
        found.append((path / "config.json", _config(path / "config.json"), ""))
    if found and (path / "metrics.jsonl").exists():
        found.append((path / "metrics.jsonl", _log(path / "metrics.jsonl"), ""))
    return found


def _checkpoint(path: Path) -> tuple[Path, list[str], str]:
    from nnkit.checkpoint import verify as problems_of

    try:
        return path, problems_of(path), ""
    except FileNotFoundError:
        return path, ["it has no manifest.json, and is named as a checkpoint"], ""


def _weights(path: Path) -> tuple[Path, list[str], str]:
    from nnkit.interop import digests

    try:
        problems = digests.verify(path)
        sealed = problems or path.is_dir() or digests.digested(path)
    except (OSError, ValueError) as error:
        return path, [str(error)], ""
    return path, problems, "" if sealed else "  (only its form: no digest was written into it)"


def _config(path: Path) -> list[str]:
    from nnkit.loop.records import canonical

    try:
        record = document(path)
        if record.get("hash") == canonical(record["config"])[1]:
            return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"it cannot be read: {error}"]
    return ["its hash is not that of its configuration: it was changed after the run began"]


def _log(path: Path) -> list[str]:
    """The last line may be cut off: that is what a kill leaves, and the next start drops it."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            parsed(line)
        except ValueError as error:
            return [f"line {number} is damaged: {error}"]
    return []
