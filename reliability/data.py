"""Data that break, hang, are read by many: every example comes once, in its place, or an error."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.experimental
import numpy as np

import nnkit as nk
from reliability import progress
from reliability.children import child

__all__ = ["broken", "coverage", "orphans", "readers", "shares", "together", "workers"]


def drawn(seed: int, trial: int) -> random.Random:
    """The random numbers of a trial."""
    return random.Random(f"{seed}-{trial}")


def campaign(trial: Callable, count: int, seed: int, every: int = 100) -> dict:
    """Runs trials (rng, number) -> a complaint or None; what is raised is a failure too."""
    failures = []
    for i in range(count):
        try:
            said = trial(drawn(seed, i), i)
        except Exception:
            said = traceback.format_exc(limit=-3)
        if said:
            failures.append(f"seed {seed} trial {i}: {said}")
        if (i + 1) % every == 0:
            progress(f"{trial.__name__}: {i + 1} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures}


class Numbered:
    """n examples whose content is their number plus one; one of them may be `at` fault."""

    def __init__(self, n: int, at: int | None = None, fault: Callable | None = None):
        self.n, self.at, self.fault, self.armed = n, at, fault, False

    def __len__(self) -> int:
        return self.n

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        x = np.asarray(indices).astype(np.float32) + 1
        if self.armed and self.fault is not None and (indices == self.at).any():
            x = self.fault(x)
        return {"x": x, "y": np.asarray(indices).astype(np.int32)}


# DP-01: readers that break


def broken(count: int, seed: int) -> dict:
    """A reader raises, hangs, exits, stops or gives another shape at a random example."""
    return campaign(_broken, count, seed)


KINDS = ("OSError", "MemoryError", "SystemExit", "StopIteration", "shape", "passing", "hangs")


def _broken(rng: random.Random, i: int) -> str | None:
    kind, n = KINDS[i % len(KINDS)], rng.randint(1, 60)
    b, readers, ahead = rng.randint(1, min(n, 16)), rng.choice((0, 1, 2, 4)), rng.choice((0, 1, 8))
    if kind == "hangs" and not readers:  # nobody watches the thread that asks
        ahead = ahead or 1
    gate, calls = threading.Event(), []

    def fault(x):
        calls.append(1)
        if kind == "hangs":
            gate.wait(60)
        elif kind == "shape":
            return x[:, None]
        elif kind != "passing" or len(calls) == 1:
            raise _named(kind)
        return x

    source = Numbered(n, rng.randrange(n), fault)
    batches = nk.data.Batches(source, b, seed=rng.randrange(2**32)).reading(
        workers=readers, timeout=0.5 if kind == "hangs" else 60.0
    )
    order = [rows.tolist() for _, rows in zip(range(len(batches)), batches.numbers(0))]
    place = next(i for i, rows in enumerate(order) if source.at in rows)
    source.armed = True
    stream: Any = nk.data.prefetch(iter(batches), ahead) if ahead else iter(batches)
    got, error, began = [], None, time.monotonic()
    try:
        for batch in stream:
            rows = np.asarray(batch["y"])[np.asarray(batch.get("mask", np.ones(b))) > 0]
            got.append(rows.tolist())
    except BaseException as raised:
        error = raised
    seconds = time.monotonic() - began
    gate.set()
    stream.close()
    what = f"{kind} at example {source.at}, n={n} b={b} workers={readers} ahead={ahead}: "
    if got != order[:place]:
        return what + f"gave {len(got)} batches, expected the first {place}"
    if error is None:
        return what + "the epoch ended without an error"
    text = " ".join([str(error), *getattr(error, "__notes__", [])])
    kinds = {"hangs": TimeoutError, "shape": ValueError, "passing": OSError}
    kinds |= {"OSError": OSError, "MemoryError": MemoryError}
    wanted = [f"batch {place} of data", "thread "]
    if kind in ("OSError", "MemoryError", "shape"):
        wanted.append(f"example {source.at} alone raises {kinds[kind].__name__}")
    if kind in ("SystemExit", "StopIteration"):
        wanted.append(f"raised {kind}")
    if kind == "passing":
        wanted.append("each of them alone can be read")
    if type(error) is not kinds.get(kind, RuntimeError):
        return what + f"raised {type(error).__name__}: {text}"
    if missing := [word for word in wanted if word not in text]:
        return what + f"{missing} not in: {text}"
    if kind == "hangs" and seconds > 3:
        return what + f"noticed after {seconds:.1f} s"
    return None if alone() else what + f"threads are left: {threading.enumerate()}"


def _named(kind: str) -> BaseException:
    errors = {e.__name__: e for e in (MemoryError, SystemExit, StopIteration)}
    return errors.get(kind, OSError)("record is damaged")


def alone(seconds: float = 5.0) -> bool:
    """Whether the threads of readers go within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not [t for t in threading.enumerate() if t.name.startswith("nnkit-")]:
            return True
        time.sleep(0.005)
    return False


READER = """
import itertools, sys, time
import numpy as np
import nnkit as nk

class Slow:
    def __len__(self): return 64
    def take(self, rows):
        time.sleep(0.01 if sys.argv[1] == "busy" else 3600 * (0 in rows and len(rows) > 1))
        return {"x": np.zeros((len(rows), 1000), np.float32)}

batches = nk.data.Batches(Slow(), 8, shuffle=False).reading(workers=4)
ahead = nk.data.prefetch(batches.stream(), 4)
if sys.argv[1] == "busy":
    next(ahead)
print("reading", flush=True)
time.sleep(3600)
"""


def orphans(count: int, seed: int) -> dict:
    """The program that reads is killed (or told to end): nothing of it is left after 5 s."""
    failures = []
    for i in range(count):
        rng = drawn(seed, i)
        kind, number = rng.choice(("busy", "hangs")), rng.choice((9, 9, 15))
        with child(READER, kind) as reader:
            reader.until("reading")
            time.sleep(rng.random() * 0.2)
            reader.send(number)
            code = reader.wait(5).code
            end = time.monotonic() + 5
            while (left := _group(reader.pid)) and time.monotonic() < end:
                time.sleep(0.05)
        if code != -number or left:
            failures.append(f"seed {seed} trial {i}: {kind}, code {code}, left {left}")
        progress(f"orphans: {i + 1} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures}


def _group(number: int) -> list[str]:
    """The commands of the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, rest = path.read_text().rpartition(") ")
            state, _, group = rest.split()[:3]
            if int(group) == number and state != "Z":
                found.append(path.parent.name)
    return found


def readers(count: int, seed: int) -> dict:
    """A quarter of the trials kills the program, the others break what it reads."""
    one, two = broken(count - count // 4, seed), orphans(count // 4, seed)
    failures = [*one["failures"], *two["failures"]]
    return {"count": count, "failures": failures, "programs killed": two["count"]}


# DP-03: coverage


class Shown:
    """Whatever batches are current, so that one evaluation, compiled once per shape, sees many."""

    def __init__(self):
        self.batches: list = []
        self.place: Any = None

    def __iter__(self):
        for batch in self.batches:
            if "mask" in batch:  # what stands in the padding must not matter
                batch["x"][batch["mask"] == 0] = 1e6
            yield batch if self.place is None else jax.device_put(batch, self.place)


def coverage(count: int, seed: int) -> dict:
    """Every example once an epoch, resumed anywhere, read by any threads, in any shares."""
    shown = Shown()
    task = nk.objective(
        lambda key, batch: {"w": jax.numpy.zeros_like(batch["x"], shape=())},
        lambda params, batch, key: (params["w"] * batch["x"] - 1) ** 2,
    )
    evaluate = nk.evaluate(task, shown)

    def trial(rng, _):
        return _covered(rng, shown, evaluate)

    trial.__name__ = "coverage"
    with _wide():
        return campaign(trial, count, seed)


def _covered(rng: random.Random, shown: Shown, evaluate) -> str | None:
    n, b = rng.randint(0, 300), rng.choice((1, 2, 7, 8, 8, 16, 33, 64, rng.randint(1, 64)))
    what = f"n={n} b={b}: "
    source = Numbered(n)
    if n == 0 or b > n:
        try:
            nk.data.Batches(source, b)
        except ValueError as error:
            said = "0 examples" if n == 0 else f"only {n} examples"
            return None if said in str(error) else what + str(error)
        return what + "was not refused"
    readers, shuffle = rng.choice((0, 1, 2)), rng.random() < 0.8
    batches = nk.data.Batches(source, b, shuffle=shuffle, seed=rng.randrange(2**32))
    batches = batches.reading(workers=readers)
    k = len(batches)
    what += f"workers={readers} shuffle={shuffle} seed={batches.seed}: "
    epochs = [list(_prefix(batches.stream(e * k), k)) for e in (0, rng.randint(1, 5))]
    for epoch in epochs:
        seen = [row for batch in epoch for row in _ids(batch, b)]
        if sorted(seen) != list(range(n)):
            return what + f"an epoch has {len(seen)} examples, {len(set(seen))} different"
        if any(("mask" in batch) != (n % b > 0) for batch in epoch):
            return what + "a mask is missing, or there is one without need"
    start = rng.randrange(3 * k)
    whole = list(_prefix(batches.reading(workers=0).stream(), start + 3))
    if _digest(whole[start:]) != _digest(_prefix(batches.stream(start), 3)):
        return what + f"resuming at batch {start} gives other batches"
    said = _divided(rng, batches, epochs[0])
    return what + said if said else _evaluated(rng, shown, evaluate, batches, what)


def _divided(rng, batches, epoch) -> str | None:
    """1, 2 or 8 readers of parts of every batch read it all, nothing twice."""
    b, parts = batches.batch_size, rng.choice((1, 2, 8))
    if parts > b:
        return None
    pieces = np.array_split(np.arange(b), parts)
    streams = [iter(batches.share(rows)) for rows in pieces]
    for i, batch in enumerate(epoch):
        shares = [next(stream) for stream in streams]
        joined = {name: np.concatenate([s[name] for s in shares]) for name in batch}
        if _digest([joined]) != _digest([batch]):
            return f"batch {i} in {parts} parts is not the batch"
    if any(next(stream, None) is not None for stream in streams):
        return f"a share of {parts} has more batches than the whole"
    return None


def _evaluated(rng, shown: Shown, evaluate, batches, what: str) -> str | None:
    """The mean over all is that of numpy, whatever is in the padding, on 1, 2 or 8 devices."""
    b, n, wide = batches.batch_size, batches.examples, rng.random() < 0.5
    dtype, most = (np.float64, 1e-12) if wide else (np.float32, 1e-6)
    devices = rng.choice((1, 1, 1, 2, 8))
    shown.batches = [{**batch, "x": batch["x"].astype(dtype) / n} for batch in batches]
    shown.place = None
    if devices <= jax.device_count() and b % devices == 0 and devices > 1:
        mesh = nk.mesh(data=devices, devices=jax.devices()[:devices])
        shown.place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    w = rng.random()
    found = evaluate({"w": jax.numpy.asarray(w, dtype)}, {})["loss"]
    x = (np.arange(n).astype(dtype) + 1) / dtype(n)
    right = math.fsum((dtype(w) * x.astype(np.float64) - 1) ** 2) / n
    if not abs(found - right) <= most * max(right, 1e-3):
        return what + f"evaluation {found!r}, numpy {right!r}, {dtype.__name__}, {devices} devices"
    return None


def _wide():
    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return where.enable_x64(True)


def _prefix(stream, k: int) -> list:
    """The first k batches."""
    return [next(stream) for _ in range(k)]


def _ids(batch, b: int) -> list[int]:
    return batch["y"][batch.get("mask", np.ones(b)) > 0].tolist()


def _digest(batches) -> str:
    """SHA-256 of all arrays of all batches, with names, shapes and dtypes."""
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            x = np.ascontiguousarray(batch[name])
            found.update(f"{name} {x.dtype} {x.shape}".encode() + x.tobytes())
    return found.hexdigest()


# DT-04: whoever reads, the bits are the same


def workers(count: int, seed: int) -> dict:
    """Batches read by 0, 1, 2, 4 threads and 0, 1, 8 ahead have one digest."""
    pairs = [(readers, ahead) for readers in (0, 1, 2, 4) for ahead in (0, 1, 8)]
    digests: dict[int, str] = {}
    failures = []
    for i in range(count):
        readers, ahead = pairs[i % len(pairs)]
        again = i // len(pairs)
        rng = drawn(seed, again)  # the same data for all twelve
        n, b = rng.randint(30, 90), rng.randint(2, 9)
        batches = nk.data.Batches(Jittery(n), b, seed=rng.randrange(2**32))
        start, k = rng.randrange(3 * len(batches)), 2 * len(batches) + 1
        stream: Any = batches.reading(workers=readers).stream(start)
        stream = nk.data.prefetch(stream, ahead) if ahead else stream
        found = _digest([jax.device_get(batch) for batch in _prefix(stream, k)])
        stream.close()
        if digests.setdefault(again, found) != found:
            failures.append(f"seed {seed} trial {i}: workers={readers} ahead={ahead} n={n} b={b}")
    different = len(set(digests.values())) == len(digests)
    if not different:
        failures.append(f"seed {seed}: other data have the same digest")
    return {"count": count, "failures": failures, "data sets": len(digests)}


class Jittery(Numbered):
    """Examples that take a random time to read."""

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(random.random() * 1e-3)
        return super().take(indices)


# DP-05: many processes


def shares(count: int, seed: int) -> dict:
    """2 to 4 processes, in this one: disjoint, complete, equal steps; their number may change."""
    return campaign(_shared, count, seed)


def _shared(rng: random.Random, _) -> str | None:
    n = rng.randint(1, 120)
    b, processes = rng.randint(1, min(n, 32)), rng.choice((2, 3, 4))
    batches = nk.data.Batches(Numbered(n), b, seed=rng.randrange(2**32))
    what = f"n={n} b={b} processes={processes} seed={batches.seed}: "
    if processes > b:
        return None
    mixed = rng.sample(range(b), b)
    pieces = [np.sort(mixed[i::processes]) for i in range(processes)]
    parts = [batches.share(rows) for rows in pieces]
    if {len(part) for part in parts} != {len(batches)}:
        return what + "not as many batches everywhere"
    start = rng.randrange(2 * len(batches))
    streams = [part.stream(start) for part in parts]
    for i, batch in zip(range(start, start + len(batches)), batches.stream(start)):
        found = [next(stream) for stream in streams]
        for rows, one in zip(pieces, found):
            if any(not np.array_equal(one[name], batch[name][rows]) for name in batch):
                return what + f"batch {i} is another in a part"
        if i == start + len(batches) // 2:  # goes on with other parts
            pieces = np.array_split(np.arange(b), min(b, processes + 1))
            streams = [batches.share(rows).stream(i + 1) for rows in pieces]
    return None


HOST = """
import sys
import jax, numpy as np
import nnkit as nk
from reliability.data import Numbered, drawn, _digest

port, me, count, seed = (int(word) for word in sys.argv[1:])
nk.hosts.start(f"localhost:{port}", 2, me, timeout=60, heartbeat=10)
for trial in range(count):
    rng = drawn(seed, trial)
    n = rng.randint(1, 60)
    b = rng.randint(1, min(n, 16)) if n > 1 else 1
    batches = nk.data.Batches(Numbered(n), b, seed=rng.randrange(2**32))
    batches = batches.reading(workers=rng.choice((0, 1, 2)))
    rows = [rows for rows in np.array_split(np.arange(b), 2) if len(rows)]
    mine = batches.share(rows[me % len(rows)])
    seen, whole = [], list(batches)
    for batch, full in zip(nk.data.prefetch(iter(mine)), whole, strict=True):
        batch = jax.device_get(batch)
        kept = batch["y"][batch.get("mask", np.ones(len(batch["y"]))) > 0].tolist()
        told = nk.hosts.gathered(kept)
        both = told[0] + told[1] if len(rows) == 2 else told[0]
        seen += both
        every = full["y"][full.get("mask", np.ones(b)) > 0].tolist()
        assert sorted(both) == sorted(every), (trial, n, b, told, every)
    assert sorted(seen) == list(range(n)), (trial, n, b, seen)
    nk.hosts.agree({"digest": _digest(whole)})
    if (trial + 1) % 20 == 0 and not me:
        print("trials", trial + 1, flush=True)
print("done", count, flush=True)
"""


def together(count: int, seed: int) -> dict:
    """Two real processes read their shares in step, `count` random data sets: no deadlock."""
    import socket

    found = shares(count, seed)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    limit = 120 + count
    with child(HOST, port, 0, count, seed) as zero, child(HOST, port, 1, count, seed) as one:
        for name, process in (("process 0", zero), ("process 1", one)):
            ended = process.wait(limit)
            if ended.code != 0 or f"done {count}" not in ended.out:
                said = (ended.out[-200:] + ended.err[-800:]).strip()
                found["failures"].append(f"seed {seed}: {name}, code {ended.code}: {said}")
    return {**found, "two processes": count}
