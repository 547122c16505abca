"""Trees of every kind: equal in a new process, bit by bit, or refused with the path."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from nnkit.checkpoint import Checkpoints
from nnkit.core import trees
from reliability import progress
from reliability.children import child

__all__ = ["odd", "random_tree"]

TOGETHER = (1, 12, 30)  # trees in a checkpoint, in turn; alone, with others beside it
NAMES = [
    "", ".", "..", "/", "a/b", "a.b", "a", "b", "A", "%", "%e", "%2E", "%r", "~", " ", "\x00", "\n",
    "ü", "é", "e\u0301", "\u202e", "日本", "\U0001f600", "x" * 90, "x" * 300, "x" * 301, "CON",
    "nul", "../../etc", "C:\\x", "-", "0", "None", "params", "zarr.json", "..%2F", "a\\b",
]  # fmt: skip
PLAIN = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 "
    "complex128"
).split()
NARROW = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4]
ON_DEVICE = ["bool", "int8", "uint8", "int32", "uint32", "float16", "float32", "complex64", *NARROW]
REFUSED = {  # leaves that no checkpoint can hold
    "text": "text",
    "object": np.array([None, 1], object),
    "date": np.array(["2026-11-23"], "datetime64[D]"),
    "letters": np.array(["a", "b"]),
    "too wide": 2**70,
    "a function": len,
}


class Pair(NamedTuple):
    """Two parts."""

    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Box:
    """A part with a name, as states have them."""

    inside: Any
    nothing: Any = None


def _array(rng: random.Random, dtype) -> np.ndarray:
    """Any bits: NaN payloads, -0.0, denormals; [...] of up to three axes, some of them empty."""
    dtype = np.dtype(dtype)
    shape = tuple(rng.choice([0, 1, 2, 3]) for _ in range(rng.choice([0, 1, 1, 2, 3])))
    count = int(np.prod(shape))
    if dtype == np.bool_ or dtype == ml_dtypes.int4:
        return (
            np.array([rng.randrange(2) for _ in range(count)], np.int8).astype(dtype).reshape(shape)
        )
    return np.frombuffer(rng.randbytes(count * dtype.itemsize), dtype).reshape(shape).copy()


def _leaf(rng: random.Random) -> Any:
    kind = rng.randrange(10)
    if kind < 4:
        return _array(rng, rng.choice([*PLAIN, *NARROW]))
    if kind < 7:
        return jax.device_put(_array(rng, rng.choice(ON_DEVICE)))
    if kind == 7:
        key = jax.random.key(rng.randrange(2**32), impl=rng.choice(["threefry2x32", "rbg"]))
        return jax.random.split(key, rng.choice([1, 3])) if rng.random() < 0.5 else key
    if kind == 8:
        return rng.choice([True, False, 0, -(2**60), 2**60, 0.1, -0.0, float("inf"), 1j, 1e-310])
    return rng.choice([np.float32(0.1), np.int8(-3), np.bool_(True), np.float64(1e300), None])


def random_tree(rng: random.Random, depth: int = 4) -> Any:
    """A tree of dicts, lists, tuples, named tuples and dataclasses, with odd names and leaves.

    >>> random_tree(random.Random("2"), 0) is None
    False
    """
    kind = rng.randrange(8) if depth else 7
    inner = lambda: random_tree(rng, depth - 1)
    if kind < 3:
        return {name: inner() for name in rng.sample(NAMES, rng.randrange(4))}
    if kind == 3:
        return [inner() for _ in range(rng.randrange(3))]
    if kind == 4:
        return tuple(inner() for _ in range(rng.randrange(3)))
    if kind == 5:
        return Pair(inner(), inner())
    if kind == 6:
        return Box(inner(), inner() if rng.random() < 0.3 else None)
    return _leaf(rng)


def _blank(tree) -> Any:
    """The same tree without its values: what a new process has before it restores."""

    def blank(x):
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        if isinstance(x, np.ndarray):
            return np.zeros_like(x)
        return type(x)(0)

    return jax.tree.map(blank, tree)


def different(found, wanted) -> str:
    """Where two trees differ in kind, type, dtype, shape or any bit; "" if nowhere."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return f"another structure: {jax.tree.structure(found)!s:.200}"
    for (path, a), (_, b) in zip(trees.paths(found), trees.paths(wanted)):
        kinds = (type(a), type(b)) if not isinstance(a, jax.Array) else (jax.Array, jax.Array)
        if kinds[0] is not kinds[1] or isinstance(a, jax.Array) != isinstance(b, jax.Array):
            return f"{path!r} is {type(a).__name__}, was {type(b).__name__}"
        if trees.describe(a) != trees.describe(b):
            return f"{path!r} is {trees.describe(a)}, was {trees.describe(b)}"
        if trees.to_host(a).tobytes() != trees.to_host(b).tobytes():
            return f"{path!r} has other bits"
    return ""


def _groups(count: int) -> list[range]:
    """The trials that share a checkpoint."""
    groups, start = [], 0
    while start < count:
        size = min(TOGETHER[len(groups) % len(TOGETHER)], count - start)
        groups.append(range(start, start + size))
        start += size
    return groups


def _drawn(seed: int, trials: range) -> Any:
    made = [random_tree(random.Random(f"{seed}-{trial}")) for trial in trials]
    return made[0] if len(made) == 1 else dict(zip(map(str, trials), made))


def odd(count: int, seed: int) -> dict:
    """Saves odd trees here, restores them in a new process; trees that do not go are refused.

    Args:
      count: how many trees; on top, one in ten of them is saved again with a leaf that is refused.
      seed: of the trees.

    Returns:
      {"count", "failures", "refused": trees refused with their path, "leaves": how many came back}.
    """
    failures, refused = [], 0
    with tempfile.TemporaryDirectory(prefix="trees-") as root:
        for number, trials in enumerate(_groups(count)):
            try:
                with Checkpoints(Path(root) / str(number)) as saver:
                    saver.save(0, _drawn(seed, trials))
            except Exception as error:
                failures.append(f"seed {seed} trials {trials}: not saved: {error!s:.300}")
                continue
            inside = {path.name for path in (Path(root) / str(number)).iterdir()}
            if not inside <= {"00000000", ".run", ".lock"}:
                failures.append(f"seed {seed} trials {trials}: {inside} written")
        outside = {path.name for path in Path(root).iterdir()}
        if not outside <= {str(n) for n in range(len(_groups(count)))}:
            failures.append(f"seed {seed}: {outside} beside the checkpoints")
        for trial in range(0, count, 10):
            told = _refusal(random.Random(f"{seed}-{trial}"), Path(root) / "refused")
            failures += [f"seed {seed} trial {trial}: {told}"] if told else []
            refused += not told
        progress(f"odd trees: {count} saved, {refused} refused")
        script = "import sys; from reliability import trees; trees.main(sys.argv[1:])"
        ended = child(script, root, count, seed).wait(1200)
    if ended.code != 0:
        failures.append(f"seed {seed}: the new process ended with {ended.code}: {ended.err[-500:]}")
        return {"count": count, "failures": failures, "refused": refused, "leaves": 0}
    found = json.loads(ended.out.splitlines()[-1])
    failures += [f"seed {seed} {text}" for text in found["failures"]]
    return {"count": count, "failures": failures, "refused": refused, "leaves": found["leaves"]}


def _refusal(rng: random.Random, folder: Path) -> str:
    """What is wrong with the refusal of a tree with a leaf that cannot be saved; "" if nothing."""
    name, wrong = rng.choice([*REFUSED.items(), ("bad name", None), ("no order", None)])
    tree = {"good": np.ones(3), "deep": {"er": [random_tree(rng, 1), wrong]}}
    path = "deep/er/1"
    if name == "bad name":
        tree, path = {"good": {"\udc80": np.ones(2)}}, "good"
    if name == "no order":
        tree, path = {1: np.ones(2), "1": np.ones(2)}, "'1'"
    try:
        with Checkpoints(folder) as saver:
            saver.save(0, tree)
    except (TypeError, ValueError) as error:
        missing = path not in str(error) or (folder.exists() and any(folder.glob("[0-9]*")))
        return f"{name}: {error!s:.200}" if missing else ""
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error!s:.200}"
    return f"{name} was saved"


def main(words: list[str]) -> None:
    """The new process: restores every tree, and prints as JSON what differs."""
    root, count, seed = Path(words[0]), int(words[1]), int(words[2])
    failures, leaves = [], 0
    for number, trials in enumerate(_groups(count)):
        wanted = _drawn(seed, trials)
        try:
            found = Checkpoints(root / str(number)).restore(_blank(wanted)).state
        except Exception as error:
            failures.append(f"trials {trials}: {type(error).__name__}: {error!s:.300}")
            continue
        leaves += len(jax.tree.leaves(found))
        if told := different(found, wanted):
            failures.append(f"trials {trials}: {told}")
    json.dump({"failures": failures, "leaves": leaves}, sys.stdout)
    sys.stdout.write("\n")
