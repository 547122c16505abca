"""A process that has imported everything, and one copy of it per trial: 10 ms instead of 3 s."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from reliability.children import child

__all__ = ["Ended", "Forks", "serve"]


class Ended(NamedTuple):
    """How a copy ended: its exit code (-9 after SIGKILL, None if it hung), and its lines."""

    code: int | None
    lines: list[str]


def serve(works: Mapping[str, Callable]) -> None:
    """Forks for every line [name, options] of standard input, until the copy has ended.

    A copy runs `works[name](**options)` and then ends as any Python program does.
    """
    for line in sys.stdin:
        name, options = json.loads(line)
        pid = os.fork()
        if pid == 0:
            print("pid", os.getpid(), flush=True)
            works[name](**options)
            return
        _, status = os.waitpid(pid, 0)
        print("gone", os.waitstatus_to_exitcode(status), flush=True)


class Forks:
    """The process that forks, and the copy that runs.

    Args:
      module: a module of this package with `WORKS`, {name: function}.
      env: environment variables.
      before: a command in front of Python's, such as "unshare -rm".
    """

    def __init__(self, module: str, env: Mapping[str, str] | None = None, before=()):
        script = f"from reliability import forks, {module}\nforks.serve({module}.WORKS)"
        quiet = {"PYTHONWARNINGS": "ignore", **(env or {})}
        self._again = lambda: child(script, env=quiet, before=before)
        self.child, self.pid = self._again(), 0
        self._lines: list[str] = []

    def start(self, name: str, **options) -> None:
        """Starts a copy; one at a time."""
        self._lines = []
        if not self.child.alive():
            self.child = self._again()
        self.child.say(json.dumps([name, options]))
        self.pid = int(self.child.until("pid").split()[1])

    def until(self, text: str, timeout: float = 120) -> str | None:
        """The first new line of the copy that starts with a text; None if it ended before."""
        for line in self.child.lines(timeout):
            self._lines.append(line)
            if line.startswith(text):
                return line
            if line.startswith("gone "):
                return None
        raise RuntimeError(f"the process that forks has ended: {self.child.said()}")

    def kill(self, seconds: float = 0.0, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the copy after some seconds."""
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> Ended:
        """How the copy ended; all is killed, and the code None, if it is silent for so long."""
        if not (self._lines and self._lines[-1].startswith("gone ")):
            try:
                self.until("gone ", timeout)
            except TimeoutError:
                return Ended(None, self._lines)
        return Ended(int(self._lines[-1].split()[1]), self._lines[:-1])

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_) -> None:
        self.child.__exit__()
