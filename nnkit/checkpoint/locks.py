"""One writer per folder: a lock that names its holder and outlives no process.

The file `.lock` of the folder is locked by the system (`flock`), which lets go when the process
ends, however it ends. What is written in it says who holds it. Where a disk has no such locks, and
between hosts, that record counts, for as long as the holder renews the time of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

from nnkit.core.failpoints import failpoint

try:
    import fcntl
except ImportError:  # Windows: the record alone counts
    fcntl = None

__all__ = ["Lock", "Locked", "holder"]

NAME = ".lock"
BEAT = 10.0  # seconds between two signs of life
SILENT = 4 * BEAT  # without one for so long, a holder on another host is gone
BRIEF = 1.0  # seconds in which a process that was just killed lets go
_guard = threading.RLock()
_held: dict[str, Held] = {}  # by folder; many in one process may share one
_beating: list[threading.Thread] = []


class Locked(ValueError):
    """A folder that another process is writing to.

    >>> issubclass(Locked, ValueError)
    True
    """


class Held:
    """A lock of this process: its open file, its token, and how many share it."""

    def __init__(self, file: int, token: str):
        self.file, self.token, self.users = file, token, 0


class Lock:
    """The right of this process to write into a folder; objects of one process share it.

    Args:
      folder: which; it is there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(folder)
    ...     lock.take()
    ...     lock.check()
    ...     lock.release()
    """

    def __init__(self, folder):
        self.folder = Path(folder).absolute()
        self._finalizer: Any = None

    @property
    def held(self) -> bool:
        """Whether this object has it."""
        return self._finalizer is not None and self._finalizer.alive

    def take(self) -> None:
        """Takes it, from a dead process too; nothing happens if this object has it.

        Raises:
          Locked: if another process has it; names process, host and age.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Lock(folder).take()
        """
        if self.held:
            return
        failpoint("lock.take")
        key = str(self.folder.resolve())
        with _guard:
            if key not in _held:
                _held[key] = _taken(self.folder)
            _held[key].users += 1
            self._finalizer = weakref.finalize(self, _release, key)
            _beat()
        failpoint("lock.taken")

    def check(self) -> None:
        """Raise if another process has taken it meanwhile, as it may after a long silence.

        Raises:
          Locked: naming the other.

        >>> Lock("no such folder").check()  # not taken
        """
        if not self.held:
            return
        record = _read(self.folder / NAME)
        mine = _held[str(self.folder.resolve())].token
        if record and record.get("token") != mine:
            raise Locked(
                f"{self.folder} was taken over by {_who(record)}, because this process gave no "
                "sign of life; only one may write: stop one of them, or use another folder"
            )

    def release(self) -> None:
        """Lets go of it; nothing happens if this object has it not.

        >>> Lock("no such folder").release()
        """
        if self._finalizer is not None:
            self._finalizer()


def holder(folder) -> str | None:
    """Who writes to a folder: another process in words, or None.

    Args:
      folder: a path; nothing is made there.

    Returns:
      Such as "process 4242 on node7, for 12 minutes", or None.

    >>> holder("no such folder")
    """
    path = Path(folder) / NAME
    if str(path.parent.absolute().resolve()) in _held:
        return None
    try:
        file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        busy, record = _locked(file) is False, _read(path)
        here = bool(record) and _machine(record) == _machine(_me())
        if not record and not busy:
            return None
        if not busy and here and (_flocks(file) or not _lives(record)):
            return None
        silent = time.time() - os.fstat(file).st_mtime > SILENT
        return None if not busy and not here and silent else _who(record)
    finally:
        os.close(file)


def _taken(folder: Path) -> Held:
    """The lock of a folder, taken for this process."""
    path, end = folder / NAME, time.monotonic() + BRIEF
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            ours = _locked(file)
            if ours is not False and _still(file, path):
                return Held(file, _signed(folder, path, file, bool(ours)))
            if time.monotonic() > end:
                raise _refusal(folder, _read(path))
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0.02)


def _still(file: int, path: Path) -> bool:
    """Whether an open file has its name still: who lets go removes the name, then the lock."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _signed(folder: Path, path: Path, file: int, flocked: bool) -> str:
    """Writes the record of this process, if that of another does not count; its token."""
    record = _read(path)
    if record and not _gone(file, path, record, flocked):
        raise _refusal(folder, record)
    mine = _me() | {"since": time.time(), "token": uuid.uuid4().hex}
    _write(file, json.dumps(mine))
    if not flocked:  # two may have come at once: the last to write has it
        time.sleep(0.2)
        if (other := _read(path)).get("token") != mine["token"]:
            raise _refusal(folder, other)
    return mine["token"]


def _refusal(folder: Path, record: dict[str, Any]) -> Locked:
    stop = "wait until it has ended, or stop it"
    if record and _machine(record) == _machine(_me()):
        stop += f" (kill {record.get('pid')})"
    return Locked(
        f"{folder} is in use by {_who(record)}; only one process may write to a run: {stop}, or "
        "use another folder"
    )


def _gone(file: int, path: Path, record: dict[str, Any], flocked: bool) -> bool:
    """Has the process of a record ended without letting go?"""
    if _machine(record) == _machine(_me()):
        return flocked or not _lives(record)
    seen = os.fstat(file).st_mtime
    if time.time() - seen > 10 * SILENT:  # so much that clocks need not agree
        return True
    print(f"nnkit: {path.parent} was in use by {_who(record)}; waiting for a sign of life of it")
    end = time.monotonic() + SILENT
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT))
        if os.stat(path).st_mtime != seen or _read(path) != record:
            return False
    return True


def _locked(file: int) -> bool | None:
    """True if the system gave the lock, False if another has it, None where there are none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flocks(file: int) -> bool:
    return _locked(file) is not None


def _release(key: str) -> None:
    with _guard:
        held = _held.get(key)
        if held is None:
            return
        held.users -= 1
        if held.users:
            return
        del _held[key]
        with contextlib.suppress(OSError):
            if _read(Path(key) / NAME).get("token") == held.token:
                os.unlink(Path(key) / NAME)
        with contextlib.suppress(OSError):
            os.close(held.file)


def _read(path: Path) -> dict[str, Any]:
    """The record of a lock; {} if there is none, or it is no record."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"host": str, "boot": str, "pid": int, "token": str}
    whole = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items())
    return found if whole else {}


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)
    os.fsync(file)


def _me() -> dict[str, Any]:
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid()}


def _machine(record: dict[str, Any]) -> tuple:
    return record.get("host"), record.get("boot")


def _lives(record: dict[str, Any]) -> bool:
    pid = record.get("pid")
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _who(record: dict[str, Any]) -> str:
    if not record:
        return "another process"
    since = record.get("since")
    seconds = max(0.0, time.time() - since) if isinstance(since, int | float) else 0.0
    long = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    long = f"{seconds / 3600:.1f} hours" if seconds > 2 * 3600 else long
    return f"process {record.get('pid')} on {record.get('host')!s:.100}, for {long}"


def _beat() -> None:
    """Has a thread renew the time of the files that are held."""
    if _beating:
        return

    def run():
        while True:
            time.sleep(BEAT)
            with _guard:
                for held in _held.values():
                    with contextlib.suppress(OSError):
                        os.utime(held.file)

    _beating.append(threading.Thread(target=run, name="nnkit lock", daemon=True))
    _beating[0].start()


def _forget() -> None:
    """In a forked process: the locks are those of its parent."""
    global _guard
    _guard = threading.RLock()
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.file)
    _held.clear()
    _beating.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
