"""Files made to do harm: refused in words, within a second and 100 MB, with nothing touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.checkpoint import Checkpoints, manifest, verify
from nnkit.interop import digests, huggingface
from reliability.children import child

__all__ = ["CASES", "files"]

MOST, LONGEST = 100e6, 1.0  # bytes and seconds that a refusal may take
TARGET = {"w": np.zeros((8, 8), np.float32), "n": np.int32(0)}
QWEN = {"model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 2}
ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def weights(folder: Path) -> None:
    """A sound checkpoint of a tiny GPT."""
    from nnkit.interop.huggingface.families import expected
    from nnkit.interop.huggingface.loading import _nested
    from nnkit.models import GPT

    model = GPT(vocabulary=11, length=8, width=8, depth=1, heads=2)
    zeros = {path: np.zeros(x.shape, np.float32) for path, x in expected(model).items()}
    huggingface.save(folder, model, _nested(zeros))


def checkpoint(folder: Path) -> None:
    """A sound checkpoint of step 1."""
    with Checkpoints(folder) as saver:
        saver.save(1, TARGET)


def bare(folder: Path) -> None:
    """An empty folder."""
    folder.mkdir()


def run(folder: Path) -> None:
    """What `nnkit eval` asks of a run folder first."""
    (folder / "checkpoints" / "00000001").mkdir(parents=True)
    record = {"experiment": "digits", "config": {}, "hash": ""}
    (folder / "config.json").write_text(json.dumps(record))


def _opened(folder: Path) -> None:
    from nnkit.cli.restored import restored

    restored(folder)


def _tokenizer(folder: Path) -> None:
    from nnkit import data

    data.tokenizer(folder)


def _picture(folder: Path) -> None:
    from nnkit.data.pictures import pixels

    pixels(folder / "a.png", 3)


def _cached(folder: Path) -> None:
    from nnkit.data import decoded

    os.environ["NNKIT_CACHE"] = str(folder)
    if decoded.load("kept") is None:
        raise ValueError("the cache has no such file")


def _sound(folder: Path) -> None:
    if problems := digests.verify(folder):
        raise ValueError(problems[0])


def _verified(folder: Path) -> None:
    if problems := verify(folder):
        raise ValueError(problems[0])


DOORS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "weights": (weights, lambda folder: huggingface.load(folder, quiet=True)),
    "sound": (weights, _sound),
    "checkpoint": (checkpoint, lambda folder: Checkpoints(folder).restore(TARGET, 1)),
    "verify": (checkpoint, _verified),
    "tokenizer": (bare, _tokenizer),
    "run": (run, _opened),
    "picture": (bare, _picture),
    "cache": (bare, _cached),
}


def _header(header, data: bytes = b"", length: int | None = None):
    """A safetensors file from its parts."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(head) if length is None else length
    return lambda folder: (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", size) + head + data
    )


def _sparse(name: str, start: bytes, size: int):
    """A file that is large, and takes no room."""

    def make(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def _text(name: str, text: str | bytes):
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


def _config(**changes):
    def make(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def _pipe(name: str):
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def _link(name: str, target: str):
    def make(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def _index(table):
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        text = table if isinstance(table, str) else json.dumps({"weight_map": table})
        (folder / "model.safetensors.index.json").write_text(text)

    return make


def _forged(**changes):
    """A manifest with a right digest of its own, and other contents."""

    def make(folder: Path) -> None:
        place = folder / "00000001"
        manifest.write(place, manifest.read(place) | changes)

    return make


def _pickled() -> bytes:
    class Harm:
        def __reduce__(self):
            return os.system, ("touch owned",)

    return pickle.dumps(Harm())


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\0" * 10**6)
    return file.getvalue()


def _png(width: int, height: int) -> bytes:
    """The head of a picture of so many pixels; its body is a few bytes."""
    import zlib

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 9))


def _object_cache(folder: Path) -> None:
    (folder / "data").mkdir()
    np.savez(folder / "data" / "kept.npz", x=np.array([None, 1], object))


def _huge_cache(folder: Path) -> None:
    (folder / "data").mkdir()
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(folder / "data" / "kept.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)


def _inside(folder: Path) -> None:
    (folder / "evil.py").write_text("open('owned', 'w')")
    _config(experiment=str(folder / "evil.py"))(folder)


_empty = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(25_000)}
_place = "00000001/"
CASES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a header of 10^12 bytes": ("weights", _header({}, length=10**12)),
    "a header of 2^64 - 1": ("weights", _header({}, length=2**64 - 1)),
    "a header over 100 MB": ("weights", _sparse("model.safetensors", b"\0\0\0\7", 2**30)),
    "a header that is a bomb": ("weights", _header(b"[" + b"[]," * 2_500_000 + b"[]]")),
    "objects by the million": ("weights", _header(b"[" + b"{}," * 600_000 + b"{}]")),
    "25,000 empty tensors": ("weights", _header(_empty)),
    "a deep header": ("weights", _header(b"[" * 1_000_000)),
    "a name twice": ("weights", _header(b'{"a": 1, "a": 2}')),
    "overlapping tensors": (
        "weights",
        _header({"a": ROW, "b": ROW | {"data_offsets": [4, 12]}}, bytes(12)),
    ),
    "a product that overflows": (
        "weights",
        _header({"a": ROW | {"shape": [2**62, 2**62]}}, bytes(8)),
    ),
    "a tensor out of the file": ("weights", _header({"a": ROW}, bytes(7))),
    "objects for numbers": ("weights", _header({"a": ROW | {"dtype": "object"}}, bytes(8))),
    "a pickle by that name": ("weights", _text("model.safetensors", _pickled())),
    "a zip by that name": ("weights", _text("model.safetensors", _zip("../../owned"))),
    "weights that are a pipe": ("weights", _pipe("model.safetensors")),
    "weights without an end": ("weights", _link("model.safetensors", "/dev/zero")),
    "an index that leads out": ("weights", _index({"a": "../../secret.safetensors"})),
    "an index to the root": ("weights", _index({"a": "/etc/passwd"})),
    "an index that is a bomb": ("weights", _index("[" + "[]," * 2_500_000 + "[]]")),
    "a config that is a bomb": ("weights", _text("config.json", "[" + "[]," * 10**6 + "[]]")),
    "a deep config": ("weights", _text("config.json", '{"a":' * 5000 + "1" + "}" * 5000)),
    "a config with a name twice": ("weights", _text("config.json", '{"n_layer": 1, "n_layer": 2}')),
    "a config of 10^9 layers": ("weights", _config(n_layer=10**9)),
    "a config of 900 layers": ("weights", _config(n_layer=900)),
    "10^9 layers with windows": (
        "weights",
        _text("config.json", json.dumps(QWEN | {"num_hidden_layers": 10**9})),
    ),
    "a config that is a pipe": ("weights", _pipe("config.json")),
    "a run whose config is a pipe": ("run", _pipe("config.json")),
    "a config without an end": ("weights", _link("config.json", "/dev/zero")),
    "a flipped bit": ("sound", lambda f: _flip(f / "model.safetensors")),
    "a manifest over 64 MB": ("checkpoint", _sparse(_place + "manifest.json", b"{", 2**27)),
    "a deep manifest": ("checkpoint", _text(_place + "manifest.json", "[" * 1_000_000)),
    "a manifest with a name twice": ("verify", _text(_place + "manifest.json", '{"a":1,"a":2}')),
    "a manifest that leads out": (
        "checkpoint",
        _forged(files={"../../secret": {"bytes": 6, "sha256": "0"}}),
    ),
    "a manifest to the root": (
        "verify",
        _forged(files={"/etc/passwd": {"bytes": 6, "sha256": "0"}}),
    ),
    "a leaf of 10^13 numbers": (
        "checkpoint",
        _forged(
            leaves=[
                {"name": "w", "path": "w", "dtype": "float32", "shape": [10**13], "sha256": "0"}
            ]
        ),
    ),
    "arrays that are a link": ("checkpoint", _link(_place + "arrays", "../../outside")),
    "a pipe among arrays": ("checkpoint", _pipe(_place + "arrays/_CHECKPOINT_METADATA")),
    "a pickle among arrays": ("verify", _text(_place + "arrays/state.pkl", _pickled())),
    "a tokenizer over 64 MB": ("tokenizer", _sparse("tokenizer.json", b"{", 2**28)),
    "a deep tokenizer": ("tokenizer", _text("tokenizer.json", '{"model":' * 10**5)),
    "a run that brings its program": ("run", _inside),
    "a run with a program beside it": ("run", _config(experiment="../evil.py")),
    "a run whose config is a list": ("run", _text("config.json", "[1, 2]")),
    "a run with settings of others": ("run", _config(config={"__class__": "os.system"})),
    "a picture of 10^10 pixels": ("picture", _text("a.png", _png(100_000, 100_000))),
    "a picture of 1.5 10^8 pixels": ("picture", _text("a.png", _png(15_000, 10_000))),
    "objects in the cache": ("cache", _object_cache),
    "10^12 numbers in the cache": ("cache", _huge_cache),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def files(count: int, seed: int) -> dict:
    """Opens hostile files, one after the other in one process that is watched.

    Args:
      count: how many of `CASES`; more than there are means all.
      seed: unused: the cases are what they are.

    Returns:
      {"count", "failures", "seconds": of the slowest refusal, "megabytes": of the largest}.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        script = "import sys; from reliability import hostile; hostile.main(sys.argv[1:])"
        ended = child(script, root, count, cwd=root).wait(600)
        outside = sorted(path.name for path in Path(root).iterdir())
    if ended.code != 0:
        told = f"the process ended with {ended.code}: {ended.err[-600:]}"
        return {"count": 0, "failures": [told]}
    found = json.loads(ended.out.splitlines()[-1])
    if outside:
        found["failures"].append(f"{outside} written beside")
    return found


def main(words: list[str]) -> None:
    """The process: every case in a folder of its own; prints as JSON what went wrong."""
    warnings.simplefilter("ignore")
    root, count = Path(words[0]), int(words[1])
    chosen = list(CASES.items())[:count]
    with tempfile.TemporaryDirectory(prefix="hostile-cases-") as inner:
        for name, (make, opened) in DOORS.items():  # sound files first: what opening them imports
            make(Path(inner) / name)
            try:
                opened(Path(inner) / name)
            except Exception:
                if name in ("weights", "sound", "checkpoint", "verify"):
                    raise
        failures, longest, largest, slowest = [], 0.0, 0.0, ""
        for number, (name, (door, make)) in enumerate(chosen):
            place = Path(inner) / f"case-{number}"
            shutil.copytree(Path(inner) / door, place / "folder")
            (place / "outside").mkdir()
            (place / "secret").write_text("secret")
            make(place / "folder")
            told, seconds, size = _refused(DOORS[door][1], place / "folder")
            there = sorted(path.name for path in place.iterdir())
            if there != ["folder", "outside", "secret"] or list(root.iterdir()):
                told = told or f"something was written: {there}"
            slowest = name if seconds > longest else slowest
            longest, largest = max(longest, seconds), max(largest, size)
            if told or seconds > LONGEST or size > MOST:
                failures.append(f"{name}: {told or 'refused'}, {seconds:.2f} s, {size:.0f} bytes")
            shutil.rmtree(place)
    found = {"count": len(chosen), "failures": failures, "seconds": round(longest, 3)}
    json.dump(found | {"megabytes": round(largest / 1e6, 1), "slowest": slowest}, sys.stdout)
    sys.stdout.write("\n")


def _refused(opened, folder: Path) -> tuple[str, float, float]:
    """("" if it was refused in words of ours, seconds, bytes that it took at most)."""

    def late(*_):
        raise TimeoutError("not refused within 20 s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    before, begun = _memory(), time.process_time()  # other processes do not count
    told = "it was opened"
    try:
        opened(folder)
    except TimeoutError as error:
        told = str(error)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        last = trace.tb_frame.f_code.co_filename if trace else ""
        ours = "nnkit" in Path(last).parts or last == __file__
        known = isinstance(error, (ValueError, FileNotFoundError)) or "Restored" in repr(error)
        told = "" if ours and known else f"{type(error).__name__} from {last}: {error!s:.200}"
    finally:
        signal.alarm(0)
    return told, time.process_time() - begun, _peak() - before


def _memory() -> float:
    """Bytes in use now; where the system can, the peak is forgotten."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> float:
    """The most bytes since `_memory`, or since the start where the system cannot forget."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))
