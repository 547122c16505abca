"""Files with random faults at every door: errors of ours in words, and no waiting."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nnkit.checkpoint import Checkpoints, CorruptCheckpoint, manifest
from nnkit.cli.restored import of_transformers, read_json
from nnkit.core import documents
from nnkit.interop import files
from nnkit.interop.huggingface.families import described, model_of
from nnkit.loop.records import canonical, claimable
from reliability import progress

__all__ = ["inputs"]

LONGEST = 1.0  # seconds that an answer may take
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.0, -0.0, 1e308, float("inf"),
    float("nan"), "", "a", "..", "os.system", "__import__('os')", "\x00", "\u202e", "x" * 1000,
    [], {}, [[]], [None], {"": None}, [1, "a"], [1] * 100, {"a": {"b": {"c": 1}}},
]  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11, "n_positions": 8},
    "llama": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
    "mistral": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2},
    "qwen2": {"hidden_size": 8, "num_attention_heads": 2, "max_window_layers": 1},
    "qwen3": {"hidden_size": 8, "num_attention_heads": 2, "layer_types": ["full_attention"] * 32},
    "gemma2": {"hidden_size": 8, "query_pre_attn_scalar": 256, "sliding_window": 4},
    "mixtral": {"hidden_size": 8, "num_attention_heads": 2, "num_local_experts": 2},
    "bert": {"hidden_size": 8, "num_attention_heads": 2, "id2label": {"0": "a", "1": "b"}},
    "vit": {"hidden_size": 8, "num_attention_heads": 2, "image_size": 8, "patch_size": [4, 4]},
    "t5": {"d_model": 8, "num_heads": 2, "feed_forward_proj": "gated-gelu"},
}


def changed(rng: random.Random, value: Any) -> Any:
    """A JSON value with one to three faults somewhere inside."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way, here = [], value
        while isinstance(here, (dict, list)) and here and rng.random() < 0.8:
            at = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
            way.append((here, at))
            here = here[at]
        kind = rng.randrange(5)
        odd = copy.deepcopy(rng.choice(ODD)) if kind else _nearly(rng, here)
        if not way:
            value = (
                odd
                if not isinstance(value, dict) or rng.random() < 0.1
                else value | {rng.choice(["extra", "", "model_type", "__class__"]): odd}
            )
            continue
        holder, at = way[-1]
        if kind == 1 and isinstance(holder, dict):
            del holder[at]
        elif kind == 2 and isinstance(holder, dict):
            holder[str(at) + rng.choice(["", "_", "x", "\x00"])] = odd
        else:
            holder[at] = odd
    return value


def _nearly(rng, value):
    """A value of the same kind that is a little off."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 2**31, -(2**40), 10**25])
    if isinstance(value, float):
        return value * rng.choice([-1, 0, 1e300, float("nan")])
    if isinstance(value, str):
        return rng.choice([value.upper(), value + "x", value[1:], value * 40])
    return copy.deepcopy(rng.choice(ODD))


def torn(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some that are others, missing or too many."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(found)) if found else 0
        kind = rng.randrange(4)
        if kind == 0 and found:
            found[at] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + rng.choice([1, 4, 1000])]
        elif kind == 2:
            found[at:at] = rng.choice([b"[", b"{", b'"', b",", b"\x00", b"1e999", b"[" * 2000])
        elif found:
            found[at:at] = found[at : at + rng.choice([2, 20])]
    return bytes(found)


class Doors:
    """The ways by which files come in, each with sound contents to begin from.

    Args:
      folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.folder, self.state = folder, {"w": np.ones((2, 3), np.float32), "n": np.int32(1)}
        with Checkpoints(folder / "run") as saver:
            saver.save(1, self.state, metrics={"loss": 0.5}, meta={"config": "0f"})
        self.place = folder / "run" / "00000001"
        self.manifest = (self.place / manifest.NAME).read_bytes()
        ones = np.ones((2, 3), np.float32)
        rows = [files.Wanted(n, ones.dtype, ones.shape, lambda: ones) for n in ("a", "b")]
        files.write(folder, rows)
        self.weights = (folder / files.SINGLE).read_bytes()
        self.config = {"rate": 0.1, "steps": 10, "widths": [3, 4], "name": "a"}
        data, digest = canonical(self.config)
        self.record = {"experiment": "digits", "hash": digest, "config": data, "keep_best": None}

    def restored(self, rng) -> None:
        """A manifest with faults: torn, or with a right digest of its own."""
        if rng.random() < 0.5:
            (self.place / manifest.NAME).write_bytes(torn(rng, self.manifest))
        else:
            body = json.loads(self.manifest)
            body.pop("sha256")
            made = changed(rng, body)
            made = made if isinstance(made, dict) else {"a": made}
            try:
                manifest.write(self.place, made)
            except ValueError:  # NaN, which no manifest can say
                return
        Checkpoints(self.folder / "run").restore(self.state, 1)

    def listed(self, rng) -> None:
        """The same, when the folder is looked at."""
        (self.place / manifest.NAME).write_bytes(torn(rng, self.manifest))
        Checkpoints(self.folder / "run", keep_best=("loss", "min")).best()

    def opened(self, rng) -> None:
        """A safetensors file with faults, in its bytes or in its header."""
        data = torn(rng, self.weights)
        if rng.random() < 0.5:
            (size,) = struct.unpack("<Q", self.weights[:8])
            head = json.dumps(changed(rng, json.loads(self.weights[8 : 8 + size]))).encode()
            data = struct.pack("<Q", len(head)) + head + self.weights[8 + size :]
        (self.folder / files.SINGLE).write_bytes(data)
        for tensor in files.headers(self.folder / files.SINGLE).values():
            files.read(tensor)

    def described(self, rng) -> None:
        """A config.json of another library."""
        family = rng.choice(list(FAMILIES))
        _, model = model_of(changed(rng, {"model_type": family} | FAMILIES[family]))
        described(model)

    def claimed(self, rng) -> None:
        """The config.json of a run."""
        path = self.folder / "config.json"
        text = json.dumps(changed(rng, self.record)).encode()
        path.write_bytes(text if rng.random() < 0.5 else torn(rng, text))
        read_json(path)
        of_transformers(self.folder)
        claimable(self.folder, self.config)

    def parsed(self, rng) -> None:
        """JSON of any kind."""
        documents.parsed(torn(rng, json.dumps(changed(rng, self.record)).encode()))


WEIGHTED = ("restored", *["listed", "opened", "claimed"] * 2, *["described", "parsed"] * 6)


def inputs(count: int, seed: int) -> dict:
    """Faulty inputs at every door.

    Args:
      count: how many.
      seed: of the faults.

    Returns:
      {"count", "failures", "refused": how many, "seconds": the longest answer}.
    """
    failures: list[str] = []
    longest, seen = 0.0, Counter()
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        doors = Doors(root)
        for trial in range(count):
            rng = random.Random(f"{seed}-{trial}")
            door = rng.choice(WEIGHTED)
            begun = time.process_time()
            told = _answer(getattr(doors, door), rng)
            seconds = time.process_time() - begun
            longest = max(longest, seconds)
            seen["refused"] += told is None
            if told or seconds > LONGEST:
                failures.append(f"seed {seed} trial {trial} {door}: {told}, {seconds:.2f} s")
            if trial % 20_000 == 19_999:
                progress(f"faulty inputs: {trial + 1} of {count}, {len(failures)} failures")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    found = {"count": count, "failures": failures, "refused": seen["refused"]}
    return found | {"seconds": round(longest, 3)}


def _answer(door: Callable[[random.Random], None], rng: random.Random) -> str | None:
    """None if it was refused by us, "" if it was taken, else what went wrong."""
    try:
        door(rng)
    except (ValueError, TypeError, FileNotFoundError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        last = trace.tb_frame.f_code.co_filename if trace else ""
        if "nnkit" in Path(last).parts or isinstance(error, CorruptCheckpoint):
            # an operation that is refused by Python inside our code is no answer
            words = ("object is not", "unsupported operand", "not supported between", "argument")
            bare = isinstance(error, TypeError) and any(word in str(error) for word in words)
            return f"{type(error).__name__}: {error!s:.200}" if bare else None
        return f"{type(error).__name__} from {last}: {error!s:.200}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return ""
