"""One task at a time beside the main thread, finished before the process ends."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  its exit hook comes first, so that ours runs earlier
import os
import signal
import sys
import threading
from collections.abc import Callable

from nnkit.parallel import hosts

__all__: list[str] = []  # for this package only

# CPython 3.12.0 to 3.12.2 refuse new threads (Orbax's) once the main thread ends (gh-113964);
# there, or without a hook that runs early enough, a task is waited for at once.
_REGISTER = getattr(threading, "_register_atexit", None)
BLOCKS = _REGISTER is None or (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3)

_pending: set[Background] = set()  # running, or failed and not yet reported
_hooked: list[bool] = []
_failed: list[bool] = []
_leaving: list[bool] = []


class Background:
    """Runs one function in a thread; its error waits to be taken.

    >>> background = Background()
    >>> background.start("nothing", lambda: None)
    >>> background.error() is None
    True
    """

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.name = ""

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Starts `work`, and waits for it where `BLOCKS`; the one before must have ended."""

        def run():
            try:
                work()
                _pending.discard(self)
            except BaseException as error:  # reported by `error`, or at exit
                self._error = error

        _hook()
        self.name = name
        _pending.add(self)
        self._thread = threading.Thread(target=run, name=name, daemon=False)
        self._thread.start()
        if BLOCKS:
            self.join()

    def join(self) -> None:
        """Returns once nothing runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failed(self) -> BaseException | None:
        """The error of a task that has ended, once; never waits for one that runs."""
        if self._thread is not None and self._thread.is_alive():
            return None
        return self.error()

    def error(self) -> BaseException | None:
        """Waits, and hands out the error of the last task, once."""
        self.join()
        _pending.discard(self)
        error, self._error = self._error, None
        return error


def _hook() -> None:
    """Has the process wait for tasks at its end, before thread pools (Orbax's) refuse to work.

    There is no public hook at that point: `atexit` comes too late, as does joining the thread.
    """
    _listen()
    if _hooked:
        return
    _hooked.append(True)
    if _REGISTER is not None:
        _REGISTER(_finish)
    atexit.register(_leave)


def _listen() -> None:
    """Has the process wait for tasks when it is told to end, unless someone else listens."""
    if threading.current_thread() is not threading.main_thread() or hosts.count() > 1:
        return
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _told)


def _told(number: int, frame) -> None:
    """Finishes the tasks, then ends as the signal does by default; a second one ends at once."""
    if not _leaving:
        _leaving.append(True)
        running = [task.name for task in _pending]
        if running:
            _say(f"nnkit: {signal.Signals(number).name}: first {', '.join(running)}")
        _finish(_say)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Writes to standard error past Python's buffer, which a signal may have interrupted."""
    os.write(2, f"{text}\n".encode())


def _finish(say: Callable[[str], None] | None = None) -> None:
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    for task in list(_pending):
        task.join()
        if (error := task.error()) is not None:
            _failed.append(True)
            say(f"nnkit: {task.name} failed: {error!r}")


def _leave() -> None:
    _finish()
    if _failed:  # the only way to change the exit code this late
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
