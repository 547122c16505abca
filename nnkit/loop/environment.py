"""What made a run: written beside its numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["environment"]

PACKAGES = "jax jaxlib flax optax orbax-checkpoint numpy".split()


def environment() -> dict[str, Any]:
    """What made a run: versions, devices, commit, dirty diff, command. No variables, no home.

    Returns:
      A JSON mapping.

    >>> environment()["python"] == platform.python_version()
    True
    """
    import jax

    def git(*args):
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    diff = git("diff", "HEAD")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    from nnkit import __version__

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git("rev-parse", "HEAD"),
        "diff": diff[:100_000] if diff else diff,
        "nnkit": __version__,
        "python": platform.python_version(),
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
    }
