"""Processes that are started, watched, killed and waited for, never longer than they may take."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Child", "Ended", "child"]

ROOT = Path(__file__).resolve().parents[1]
DROPPED = ("PYTEST", "XLA_", "NNKIT_FAILPOINTS", "PYTHONDONTWRITEBYTECODE", "JAX_")
# A process that is started in the background may have inherited that SIGINT is ignored.
FIRST = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
FILE = FIRST + (
    "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
      code: its exit code, -9 after SIGKILL; None if it did not end in time and was killed.
      out: what it wrote to standard output.
      err: what it wrote to standard error.
      seconds: how long it lived.

    >>> Ended(0, "", "", 1.0).code
    0
    """

    code: int | None
    out: str
    err: str
    seconds: float


class Child:
    """A process whose lines are read as they come.

    >>> with child("print('ready', flush=True); import time; time.sleep(60)") as one:
    ...     one.until("ready")
    ...     one.kill_after(0.01)
    ...     one.wait(20).code
    'ready'
    -9
    """

    def __init__(self, process: subprocess.Popen):
        self.process, self.began = process, time.monotonic()
        self._out: list[str] = []
        self._err: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self._timers: list[threading.Timer] = []
        self._ended: float | None = None
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout, self._out, True)),
            threading.Thread(target=self._read, args=(process.stderr, self._err, False)),
        ]
        for reader in self._readers:
            reader.daemon = True
            reader.start()

    def _read(self, stream, kept: list[str], told: bool) -> None:
        for line in stream:
            kept.append(line)
            if told:
                self._fresh.put(line.rstrip("\n"))
        if told:
            self._fresh.put(None)

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def say(self, line: str) -> None:
        """Writes a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def send(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill_after(self, seconds: float, number: int = signal.SIGKILL) -> None:
        """Sends a signal after some seconds from now; returns at once."""
        timer = threading.Timer(seconds, self.send, (number,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def lines(self, timeout: float = 120) -> Iterator[str]:
        """The lines of its standard output as they come, until it closes it.

        Args:
          timeout: seconds for each line; after them the process is killed.

        Raises:
          TimeoutError: if no line comes in time.
        """
        while True:
            try:
                line = self._fresh.get(timeout=timeout)
            except queue.Empty:
                self.stop()
                raise TimeoutError(f"no line in {timeout} s, then: {self.said()}") from None
            if line is None:
                return
            yield line

    def until(self, text: str, timeout: float = 120) -> str:
        """The first new line that starts with a text.

        Raises:
          TimeoutError: if it does not come in time.
          RuntimeError: if the process ends before.
        """
        end = time.monotonic() + timeout
        for line in self.lines(timeout):
            if line.startswith(text):
                return line
            if time.monotonic() > end:
                self.stop()
                raise TimeoutError(f"no line {text!r} in {timeout} s: {self.said()}")
        raise RuntimeError(f"it ended without a line {text!r}: {self.said()}")

    def wait(self, timeout: float = 120) -> Ended:
        """How it ended; after the timeout it is killed, and the code is None."""
        code = None
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout)
        if self._ended is None:
            self._ended = time.monotonic() - self.began
        if code is None:
            self.stop()
        for timer in self._timers:
            timer.cancel()
        for reader in self._readers:  # a grandchild may hold the pipes open
            reader.join(5)
        for reader, stream in zip(self._readers, (self.process.stdout, self.process.stderr)):
            if stream is not None and not reader.is_alive():
                stream.close()
        return Ended(code, "".join(self._out), "".join(self._err), self._ended)

    def stop(self) -> None:
        """Kills it and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)

    def said(self) -> str:
        """The end of what it wrote."""
        return ("".join(self._out)[-1000:] + "".join(self._err)[-2000:]).strip()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.wait(10)


def child(script: str | Path, *arguments, env=None, cwd=None, before=()) -> Child:
    """Starts a Python process that sees this checkout, on the CPU, with cached programs.

    Args:
      script: the program as text, or the path of its file.
      arguments: its words.
      env: {name: value} of the environment besides those of this process; they win.
      cwd: its folder; None is that of this process.
      before: words in front of the command, such as "unshare", "-rm".

    Returns:
      A `Child`. It leads a group of processes, so that a Ctrl-C at this terminal is not its.

    >>> child("import sys; print(sys.argv[1])", "hello").wait(20).out
    'hello\\n'
    """
    cache = os.environ.get("NNKIT_CACHE") or os.path.join(tempfile.gettempdir(), "nnkit-children")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONPYCACHEPREFIX": os.path.join(cache, "bytecode"),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "NNKIT_CACHE": cache,
    }
    if isinstance(script, Path):
        command = ["-c", FILE, str(script)]
    else:
        command = ["-c", FIRST + textwrap.dedent(script)]
    process = subprocess.Popen(
        [*before, sys.executable, *command, *map(str, arguments)],
        env=kept | settings | (env or {}),
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Child(process)
