"""Processes that make one program, for tests: start them, wait, read what they found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(__file__).with_name("hosts_program.py")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


class Job:
    """n processes, or those of them in `which`, with some CPU devices each."""

    def __init__(self, folder, scenario, *words, n=2, devices=4, which=None, **settings):
        self.folder, port = Path(folder), free_port()
        places = [ROOT, ROOT / "tests"]
        base = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "XLA_"))}
        base |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, places))}
        base |= {"DEVICES": str(devices), "PYTHONUNBUFFERED": "1", **settings}
        self.processes = {}
        for i in range(n) if which is None else which:
            command = [sys.executable, PROGRAM, scenario, port, n, i, folder, *words]
            self.processes[i] = subprocess.Popen(
                list(map(str, command)), env=base, stderr=subprocess.PIPE, text=True,
                stdout=subprocess.DEVNULL, cwd=folder,
            )  # fmt: skip
        self.errors = {}

    def codes(self, timeout=120) -> list[int]:
        """Exit codes in order, once all have ended; what they wrote to stderr is in `errors`."""
        try:
            for i, process in self.processes.items():
                self.errors[i] = process.communicate(timeout=timeout)[1]
        finally:
            for process in self.processes.values():
                process.kill()
        return [process.returncode for process in self.processes.values()]

    def found(self) -> list:
        """What each process wrote at its end."""
        assert self.codes() == [0] * len(self.processes), "\n".join(self.errors.values())
        names = [self.folder / f"found-{i}.json" for i in self.processes]
        return [json.loads(path.read_text()) for path in names]
