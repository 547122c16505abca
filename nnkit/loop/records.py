"""The folder of a run: config, environment, log, checkpoints, status.

config.json     the configuration and its hash (a folder belongs to one), what is kept as best
env.json        one entry per start: commit, dirty diff, versions, devices, command
metrics.jsonl   one JSON object per row: step, seconds, values (NaN as Python writes it)
checkpoints/    state + data position, see nnkit.checkpoint
results.json    the table that the experiment ends with
STATUS          running | done | interrupted | failed: why
.lock           which process writes, while one does; readers need no lock

On many hosts the folder is on a disk that all of them see; process 0 writes, the others read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from nnkit.checkpoint import Checkpoints, locks
from nnkit.core.documents import document
from nnkit.core.failpoints import failpoint
from nnkit.core.privacy import private
from nnkit.loop.environment import environment, perishable
from nnkit.loop.tables import print_table
from nnkit.parallel import hosts

__all__ = ["Run", "canonical", "claimable"]


def canonical(config) -> tuple[dict, str]:
    """A configuration as plain JSON data, and the SHA-256 that names it.

    Args:
      config: a dataclass, or a mapping, of numbers, strings, None and lists or tuples of them.

    Returns:
      (data, 64 hexadecimal digits). The order of fields does not matter.

    Raises:
      TypeError: if a field is something else; names it.

    >>> canonical({"steps": 10, "rates": (0.1, 0.2)})[0]
    {'steps': 10, 'rates': [0.1, 0.2]}
    >>> canonical({"a": 1, "b": 2})[1] == canonical({"b": 2, "a": 1})[1]
    True
    """

    def plain(x, path):
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            x = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
        if isinstance(x, Mapping):
            return {str(k): plain(v, f"{path}.{k}") for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [plain(v, f"{path}[{i}]") for i, v in enumerate(x)]
        if isinstance(x, np.generic):
            x = x.item()
        if x is None or isinstance(x, bool | int | float | str):
            return x
        raise TypeError(
            f"config{path} is {type(x).__name__}, expected numbers, strings and lists; write "
            "x.tolist() for an array"
        )

    data = plain(config, "")
    if not isinstance(data, dict):
        raise TypeError(f"config is {type(config).__name__}, expected a dataclass or a mapping")
    text = json.dumps(data, sort_keys=True)
    return data, hashlib.sha256(text.encode()).hexdigest()


def claimable(folder, config) -> None:
    """Raise if a folder cannot become, or is not, the run folder of a configuration.

    Args:
      folder: a path; nothing is made there.
      config: see `canonical`.

    Raises:
      ValueError: if it belongs to another configuration; names the fields that differ. If another
        process is writing to it (`nk.checkpoint.Locked`); names it.
      NotADirectoryError: if it is a file.

    >>> claimable("no-such-folder", {"steps": 10})
    """
    _belongs(Path(folder), config)
    if hosts.first() and (who := locks.holder(folder)):
        raise locks.Locked(
            f"{folder} is in use by {who}; only one process may write to a run: wait until it has "
            "ended, or stop it, or use another folder"
        )


def _belongs(folder: Path, config) -> None:
    """Raise if a folder is a file, or of another configuration."""
    _nameable(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is a file, expected a folder for the run; give another name"
        )
    data, digest = canonical(config)
    if (folder / "config.json").exists():
        before = document(folder / "config.json")
        if not isinstance(before, dict) or not isinstance(before.get("config"), dict):
            raise ValueError(
                f"{folder / 'config.json'} is {before!r:.60}, expected the hash and the config of "
                "a run; use another folder, or remove the file"
            )
        if before.get("hash") != digest:
            raise ValueError(
                f"{folder} belongs to another configuration: "
                f"{_changes(before['config'], data)}; "
                "use another folder, or the configuration in its config.json"
            )


def _nameable(folder: Path) -> None:
    long = [part for part in folder.parts if len(os.fsencode(part)) > 255]
    if long or "\0" in str(folder):
        why = "a name is too long" if long else "there is a null byte in it"
        raise ValueError(
            f"folder is {str(folder)!r:.80}, which cannot be made: {why}; expected a path of names "
            "of at most 255 bytes: give another name"
        )


def made(folder: Path) -> None:
    """Make a folder and those above it, or say which path that was, and why it could not be.

    >>> made(Path("."))
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"folder is {str(folder)!r:.80}, which cannot be made: {error.strerror}; expected a "
            "path on a disk that can be written: give another folder"
        ) from error


class Run:
    """A folder that records one run, and from which the same run continues.

    Use it as a context manager and give it to `fit`: the last checkpoint is restored, with the
    position in the data and the rows logged until then, and training goes on bit by bit as if it
    had never stopped. From then on no other process can write to the folder until the block ends,
    or this process, however that happens; reading is always possible.

    Args:
      folder: where; made if missing.
      config: what the run belongs to: a dataclass or mapping of numbers, strings and lists.
      experiment: name of the experiment, so that `nnkit eval` finds it again.
      save_every: steps between checkpoints; None saves at the end alone.
      keep_last: checkpoints to keep.
      keep_best: (metric, "max" or "min") of the evaluation rows: that checkpoint is kept too. Only
        checkpoints at a step that was evaluated can be the best one.
        "accuracy" is that of the first evaluation at a step, "test/accuracy" that of its split.

    Raises:
      ValueError: if the folder belongs to another configuration; names the fields that differ. If
        another process is writing to it (`nk.checkpoint.Locked`); names process, host and age.
      NotADirectoryError: if the folder is a file.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with Run(folder + "/a", {"steps": 10}) as run:
    ...     run.status
    'new'
    >>> Run(folder + "/a", {"steps": 20})
    Traceback (most recent call last):
        ...
    ValueError: ...a belongs to another configuration: steps was 10, is now 20; use another...
    """

    def __init__(
        self,
        folder,
        config=None,
        *,
        experiment=None,
        save_every=None,
        keep_last=2,
        keep_best=None,
    ):
        if save_every is not None and (not isinstance(save_every, int) or save_every < 1):
            raise ValueError(
                f"save_every is {save_every!r}, expected an integer >= 1 or None; 500 is usual"
            )
        self.folder = Path(folder)
        self.config, self.hash = canonical({} if config is None else config)
        told = {f"config.{k}": v for k, v in self.config.items()} | {"folder": str(folder)}
        hosts.agree(told | {"save_every": save_every}, "the run")
        hosts.unanimous(lambda: _belongs(self.folder, self.config))
        self.experiment = experiment
        self.save_every = save_every
        self._writes = hosts.first()
        if self._writes:
            made(self.folder)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", keep_last=keep_last, keep_best=keep_best
        )
        self._lock = locks.Lock(self.folder)
        self._claim()
        hosts.barrier("run folder")
        hosts.unanimous(self._seen)
        self.restored = 0  # the step that the last `resume` went on from
        self.pending = None  # sums since the last row, of a run that was interrupted between two
        self._sessions = self._read("env.json") or []
        self._environment: dict | None = None

    def __enter__(self) -> Run:
        self._hold()
        if self._writes and (why := perishable(self.folder)):
            warnings.warn(why, stacklevel=2)
        self._environment = environment()
        self._write("env.json", [*self._sessions, self._environment])
        return self

    def __exit__(self, kind, error, traceback) -> None:
        told = "interrupted"
        if kind is not KeyboardInterrupt and (kind is not SystemExit or self.status != told):
            told = f"failed: {kind.__name__}: {str(error)[:500]}" if kind else ""
        with contextlib.suppress(OSError):  # the disk may be what failed: do not hide the error
            if told:
                self.mark(told)
        try:
            self.checkpoints.__exit__(kind, error, traceback)
        finally:
            self._lock.release()

    @property
    def status(self) -> str:
        """new, running, done, interrupted, or failed: why."""
        path = self.folder / "STATUS"
        return path.read_text().strip() if path.exists() else "new"

    def mark(self, status: str) -> None:
        """Write the status."""
        self._replace("STATUS", private(status) + "\n")

    def rows(self) -> list[dict]:
        """The rows logged so far; lists become arrays [n]."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line being written when the process was killed
                break
            rows.append(_arrays(row))
        return rows

    def log(self, row: Mapping) -> None:
        """Append a row to metrics.jsonl."""
        if not self._writes:
            return
        failpoint("run.log")
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(_plain(row)) + "\n")

    def resume(self, state, fingerprint=None):
        """(state, step, rows) to go on from: those of the newest checkpoint, or the given start.

        Rows logged after that checkpoint are dropped: they will be logged again.

        Raises:
          ValueError: if the state has another form, the data are others, or another process writes.
          OSError: if the disk has no room for two checkpoints of the state.
        """
        self._hold()
        if self.status != "done":
            hosts.unanimous(lambda: self.checkpoints.room(state))
        if not hosts.shared(bool(self.checkpoints.steps())):
            self._keep_rows(0)
            return state, 0, []
        restored = self.checkpoints.restore(state)
        was = (restored.meta or {}).get("data")
        if fingerprint is not None and was is not None and _plain(was) != _plain(fingerprint):
            raise ValueError(
                f"{self.folder} was trained on other data: {_changes(was, fingerprint)}; "
                "use the same data, or another folder"
            )
        self._tell_code()
        self.restored, self.pending = restored.step, (restored.meta or {}).get("pending")
        whole = restored.step - (self.pending is not None)  # the row of that step comes again
        return restored.state, restored.step, self._keep_rows(whole)

    def save(self, step: int, state, rows, fingerprint=None, pending=None) -> None:
        """Save state and data position under `step`, asynchronously; `pending`: sums as JSON."""
        if self._writes and not (self.folder / "config.json").exists():
            raise FileNotFoundError(
                f"{self.folder} has gone since the run began: its config.json is not there; mount "
                "the disk again, then the same call goes on from the last checkpoint"
            )
        self._lock.check()
        found: dict = {}
        for row in rows:
            if row["step"] == step and "split" in row:  # plain names are those of the first
                values = {k: v for k, v in row.items() if k not in ("step", "time")}
                values = {k: float(np.mean(v)) for k, v in values.items() if _numeric(v)}
                found = values | {f"{row['split']}/{k}": v for k, v in values.items()} | found
        meta = {"config": self.hash, "data": _plain(fingerprint or {}), "pending": pending}
        self.checkpoints.save(step, state, position=step, meta=meta, metrics=found)

    def conclude(self, table: list[Mapping]) -> None:
        """Print a table of results, and keep it as results.json."""
        if not self._writes:
            return
        print_table(table, title=f"{self.folder}")
        self._write("results.json", _plain(table))

    def _tell_code(self) -> None:
        """Say that a run goes on with other code than it had; it is for the user to judge."""
        now = self._environment
        if not self._sessions or now is None or not self._writes or self.status == "done":
            return
        before = self._sessions[-1]
        both = [{k: x.get(k) for k in ("commit", "diff", "nnkit", "python")} for x in (before, now)]
        both = [{**x, **(y.get("versions") or {})} for x, y in zip(both, (before, now))]
        if both[0] != both[1]:
            print(f"{self.folder} goes on with other code: {_changes(*both)}", flush=True)

    def _hold(self) -> None:
        """Take the lock, in the process that writes; the others fail with it."""
        hosts.unanimous(lambda: self._lock.take() if self._writes else None)

    def _seen(self) -> None:
        """Raise unless this process sees the folder that process 0 has made."""
        if not (self.folder / "config.json").exists():
            raise FileNotFoundError(
                f"{self.folder.absolute()} was made by process 0 and is not there for "
                f"{hosts.who(jax.process_index())}: give a folder on a disk that all hosts share"
            )

    def _keep_rows(self, step: int) -> list[dict]:
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        if hosts.count() > 1:
            rows = [_arrays(row) for row in hosts.shared([_plain(row) for row in rows])]
        text = "".join(json.dumps(_plain(row)) + "\n" for row in rows)
        self._replace("metrics.jsonl", text)
        return rows

    def _claim(self) -> None:
        if self._read("config.json") is None:
            record = {
                "experiment": private(self.experiment),
                "hash": self.hash,
                "config": self.config,
            }
            record["keep_best"] = self.checkpoints.keep_best
            self._write("config.json", record)

    def _read(self, name: str):
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, name: str, data) -> None:
        self._replace(name, json.dumps(data, indent=1) + "\n")

    def _replace(self, name: str, text: str) -> None:
        if not self._writes:
            return
        temporary = self.folder / f".{name}.{os.getpid()}"
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        failpoint("run.write")
        os.replace(temporary, self.folder / name)


def _arrays(row: Mapping) -> dict:
    return {k: np.asarray(v) if isinstance(v, list) else v for k, v in row.items()}


def _numeric(x) -> bool:
    return not isinstance(x, str) and np.asarray(x).dtype.kind in "fiu"


def _plain(x):
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray | np.generic):
        return x.tolist()
    return x


def _changes(before: Mapping, now: Mapping) -> str:
    names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    parts = [f"{k} was {before.get(k)!r:.60}, is now {now.get(k)!r:.60}" for k in names]
    return "; ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
