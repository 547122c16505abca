"""Data sets that are prepared, copied and downloaded by halves: whole, or an error that says so."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import importlib
import io
import json
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nnkit as nk
from reliability import progress
from reliability.children import child

__all__ = ["damaged", "downloads", "halves", "killed"]

N = 120
SETS = ("nnkit_sketch", "nnkit_fetched")
BODY = np.random.default_rng(0).normal(size=(N, 20)).astype(np.float32).tobytes()
CHUNK = 512  # bytes that the server sends at a time


def drawn(seed: int, trial: int) -> random.Random:
    """The random numbers of a trial."""
    return random.Random(f"{seed}-{trial}")


@functools.cache
def builders() -> Any:
    """Two sets of TFDS: one made on the spot, one from a file that is downloaded."""
    import tensorflow_datasets as source
    from tensorflow_datasets.core import units
    from tensorflow_datasets.core.download import checksums

    class NnkitSketch(source.core.GeneratorBasedBuilder):
        VERSION = source.core.Version("1.0.0")

        def _info(self):
            shape = source.features.Tensor(shape=(20,), dtype=np.float32)
            features = {"x": shape, "y": source.features.ClassLabel(num_classes=3)}
            return source.core.DatasetInfo(
                builder=self,
                disable_shuffling=True,
                features=source.features.FeaturesDict(features),
            )

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(BODY),
                "test": self._generate_examples(BODY[:800]),
            }

        def _generate_examples(self, body):
            for i, row in enumerate(np.frombuffer(body, np.float32).reshape(-1, 20)):
                sys.audit("nnkit.example", str(self.data_dir))
                yield i, {"x": row, "y": i % 3}

    class NnkitFetched(NnkitSketch):
        url, known = "", True

        @property
        def url_infos(self):
            digest = hashlib.sha256(BODY).hexdigest()
            info = checksums.UrlInfo(units.Size(len(BODY)), digest, "body.bin")
            return {self.url: info} if self.known else {}

        def _split_generators(self, manager):
            body = Path(manager.download(self.url)).read_bytes()
            return {
                "train": self._generate_examples(body),
                "test": self._generate_examples(body[:800]),
            }

    return {"nnkit_sketch": NnkitSketch, "nnkit_fetched": NnkitFetched}


def read(name: str, folder: Path) -> nk.data.Batches:
    """The training part, prepared in a folder if it is not there."""
    builders()
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return nk.data.tfds(name, split="train", batch_size=50, data_dir=str(folder))


def right(batches) -> bool:
    """Whether every example is there, bit by bit."""
    found = [batch["x"][batch["mask"] > 0] for batch in batches.reading(workers=0)]
    x = np.zeros((0, 20), np.float32) if not found else np.concatenate(found)
    order = np.concatenate([rows for _, rows in zip(found, batches.numbers(0))])
    return x[np.argsort(order)].tobytes() == BODY


@contextlib.contextmanager
def alone(**settings: str) -> Iterator[Path]:
    """An empty folder, no cache of decoded examples, no proxy."""
    settings = {"NNKIT_CACHE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **settings}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# Damage to what lies on the disk


def damaged(count: int, seed: int) -> dict:
    """A file of a prepared set is missing, cut, zeroed, flipped or swapped: noticed or harmless."""
    failures, refused = [], 0
    with alone() as folder:
        read(SETS[0], folder / "whole")
        for i in range(count):
            rng = drawn(seed, i)
            shutil.copytree(folder / "whole", folder / "now")
            what = _damage(folder / "now" / SETS[0] / "1.0.0", rng)
            said = None
            try:
                batches = read(SETS[0], folder / "now")
                said = None if right(batches) else f"{what}: other examples, in silence"
                if "is missing" in what or " cut " in what:
                    said = f"{what}: accepted"
            except ValueError as error:
                refused += 1
                if "1.0.0" not in str(error) or "copy" not in str(error):
                    said = f"{what}: {error}"
            except Exception as error:
                said = f"{what}: {type(error).__name__}: {error}"
            if said:
                failures.append(f"seed {seed} trial {i}: {said}")
            shutil.rmtree(folder / "now")
    return {"count": count, "failures": failures, "refused": refused}


def _damage(place: Path, rng: random.Random) -> str:
    """Does something to one file; returns what."""
    shards = sorted(place.glob("*train*"))
    path = rng.choice([*shards, *shards, place / "dataset_info.json", place / "features.json"])
    kind = rng.choice(("missing", "cut", "zeroed", "flipped", "swapped"))
    bytes_ = bytearray(path.read_bytes())
    at = rng.randrange(len(bytes_))
    if kind == "missing":
        path.unlink()
        return f"{path.name} is missing"
    if kind == "cut":
        at = rng.choice((0, at, len(bytes_) // 2, len(bytes_) - 1))
        path.write_bytes(bytes_[:at])
        return f"{path.name} cut to {at} bytes"
    if kind == "swapped" and path in shards:
        shutil.copy(next(place.glob("*test*")), path)
        return f"{path.name} is that of the other split"
    if kind == "zeroed":
        bytes_[at : at + 4096] = bytes(len(bytes_[at : at + 4096]))
    elif path in shards:
        bytes_[at] ^= 1 << rng.randrange(8)
    else:
        bytes_[at] ^= 128  # no text any more
    path.write_bytes(bytes_)
    return f"{path.name} {kind} at {at}"


# Downloads


class Server:
    """A server on this machine that sends the file, or something else, slowly if wanted."""

    def __init__(self):
        self.body, self.length, self.moved = BODY, len(BODY), ""
        self.status, self.kill_at = 200, 0
        self.victim: queue.Queue[int] = queue.Queue()  # who is killed when so much is sent
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if server.moved:
                    self.send_response(302)
                    self.send_header("Location", server.moved)
                    self.end_headers()
                    return
                self.send_response(server.status)
                self.send_header("Content-Length", str(server.length))
                self.send_header("Content-Disposition", 'attachment; filename="../../body.bin"')
                self.end_headers()
                with contextlib.suppress(OSError):
                    for at in range(0, len(server.body), CHUNK):
                        self.wfile.write(server.body[at : at + CHUNK])
                        if 0 < server.kill_at <= at + CHUNK:
                            time.sleep(0.05)  # it has arrived
                            os.kill(server.victim.get(timeout=30), signal.SIGKILL)
                            return

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/body.bin"

    def __enter__(self) -> Server:
        builders()["nnkit_fetched"].url = self.url
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


WRONG = ("checksum", "truncated", "short", "longer", "moved", "gone", "unknown")


def downloads(count: int, seed: int) -> dict:
    """What is downloaded is another file, cut, moved to another scheme, or has no known digest."""
    failures = []
    for i in range(count):
        rng, kind = drawn(seed, i), WRONG[i % len(WRONG)]
        made = builders()["nnkit_fetched"]
        with alone() as folder, Server() as server:
            _wrong(server, made, kind, rng)
            said = None
            try:
                read(SETS[1], folder)
                said = "accepted"
            except RuntimeError as error:
                if "failed" not in str(error) or str(folder) not in str(error):
                    said = str(error)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            if said is None and (left := _prepared(folder)):
                said = f"left {left}"
            server.body, server.length, server.moved, made.known = BODY, len(BODY), "", True
            server.status = 200
            if said is None and not right(read(SETS[1], folder)):
                said = "the second time other examples"
            outside = list(folder.parent.glob("body.bin*"))
            if said or outside:
                failures.append(f"seed {seed} trial {i}: {kind}: {said} {outside}")
    return {"count": count, "failures": failures}


def _wrong(server: Server, made, kind: str, rng: random.Random) -> None:
    """Makes the server send something else."""
    at = rng.randrange(len(BODY))
    if kind == "checksum":
        server.body = BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]
    elif kind == "truncated":  # the connection ends too early
        server.body = BODY[:at]
    elif kind == "short":  # and it says so
        server.body, server.length = BODY[:at], at
    elif kind == "longer":
        server.body = BODY + bytes(at + 1)
        server.length = len(server.body)
    elif kind == "moved":
        server.moved = rng.choice(
            ("file:///etc/hostname", "ftp://127.0.0.1:9/body.bin", "gopher://x")
        )
    elif kind == "unknown":
        made.known = False
    else:
        server.status = 404


def _prepared(folder: Path) -> list[str]:
    """What would be taken for a prepared set."""
    return [str(p.relative_to(folder)) for p in folder.rglob("dataset_info.json")]


# Killed while it prepares


def killed(count: int, seed: int) -> dict:
    """Preparing is killed at `count` points, every fifth time with a second one at its side."""
    out = Path(tempfile.mkdtemp()) / "found.json"
    try:
        with child(DRIVER, out, count, seed) as driver:
            for line in driver.lines(300):
                progress(line)
            ended = driver.wait(60)
        if not out.exists():
            return {"count": 0, "failures": [f"seed {seed}: code {ended.code}: {ended.err[-800:]}"]}
        return json.loads(out.read_text())
    finally:
        shutil.rmtree(out.parent)


DRIVER = """
import sys
from reliability import sets
sets.drive(*sys.argv[1:])
"""


def drive(out: str, count: str, seed: str) -> None:
    """The campaign, in a process of its own: it forks, which is quick but not for any process."""
    failures, n = [], int(count)
    builders()
    with alone() as folder, Server() as server:
        points = {name: _traced(name, folder / name) for name in SETS}
        for i in range(n):
            name, place = SETS[i % 2], folder / str(i)
            point = max(1, round(points[name] * (i // 2 + 1) / ((n + 1) // 2)))
            mode = "at once" if i % 5 == 4 else "in the download" if i % 4 == 1 else "killed"
            server.kill_at = drawn(int(seed), i).randint(1, len(BODY)) if "down" in mode else 0
            first = _forked(name, place, point if mode == "killed" else 0)
            if server.kill_at:
                server.victim.put(first)
            if mode == "at once":
                second = _forked(name, place, 0)
                codes = [_code(first), _code(second)]
                said = None if codes == [0, 0] else f"two at once ended with {codes}"
            else:
                code = _code(first)
                said = None if code in (0, -signal.SIGKILL) else f"ended with {code}"
                said = said if code or mode == "killed" else "was not killed"
            server.kill_at = 0
            whole = bool(_prepared(place))
            code = _code(_forked(name, place, 0))  # never here: what is forked has no threads
            said = said or (f"afterwards it ended with {code}" if code else None)
            if said:
                kind = f"{mode} at point {point} of {points[name]}, prepared={whole}"
                failures.append(f"seed {seed} trial {i}: {name} {kind}: {said}")
            if (i + 1) % 10 == 0:
                print(f"killed: {i + 1} of {n}, {len(failures)} failures", flush=True)
    found = {"count": n, "failures": failures, **{f"points of {k}": v for k, v in points.items()}}
    Path(out).write_text(json.dumps(found))


def _traced(name: str, folder: Path) -> int:
    """How many operations on files in a folder, and pieces of a download, preparing takes."""
    reader, writer = os.pipe()
    number = os.fork()
    if not number:
        os.close(reader)
        counted = _count(folder, lambda n: None)
        read(name, folder)
        with os.fdopen(writer, "w") as pipe:
            json.dump([counted[0], *sys.modules], pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        points, *names = json.loads(pipe.read() or "[0]")
    for module in names:  # once here, rather than once in every process
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    assert _code(number) == 0 and points > 10, f"{name} could not be prepared: {points} points"
    return points


def _forked(name: str, folder: Path, point: int) -> int:
    """The number of a process that prepares a set and kills itself at a point (0: at none)."""
    number = os.fork()
    if number:
        return number
    try:
        if point:
            _count(folder, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
        os._exit(0 if right(read(name, folder)) else 3)
    except BaseException as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
        os._exit(4)


def _count(folder: Path, reached) -> list[int]:
    """Counts the operations on files of this process in a folder, and what it receives."""
    counted, inside = [0], str(folder)

    def hook(event: str, words) -> None:
        files = event.split(".")[0] in ("open", "os", "shutil", "nnkit") and inside in str(
            words[:2]
        )
        if files or event == "socket.connect":
            counted[0] += 1
            reached(counted[0])

    sys.addaudithook(hook)
    return counted


def _code(number: int) -> int:
    """How a process ended: its code, or minus the signal; it is killed after 60 s."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return 99


def halves(count: int, seed: int) -> dict:
    """All of it: half of the trials killed or two at once, the rest damage and downloads."""
    parts = {"killed": (killed, (count + 1) // 2), "downloads": (downloads, count // 5)}
    parts["damaged"] = (damaged, count - sum(n for _, n in parts.values()))
    found: dict = {"count": 0, "failures": []}
    for name, (part, n) in parts.items():
        one = part(n, seed) if n else {"count": 0, "failures": []}
        found["count"] += one.pop("count")
        found["failures"] += [f"{name}: {text}" for text in one.pop("failures")]
        found |= one | {name: n}
        progress(f"{name}: {n} trials, {len(found['failures'])} failures so far")
    return found
