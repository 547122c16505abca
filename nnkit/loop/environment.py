"""What made a run: written beside its numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["code", "environment"]

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
    from nnkit import __version__

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git("rev-parse", "HEAD"),
        "diff": diff[:100_000] if diff else diff,
        "nnkit": __version__,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
        "processes": jax.process_count(),
    }


def code() -> dict[str, str]:
    """What must be equal on all hosts for them to run one program: versions, and a hash of code.

    Returns:
      {package: version, "code": SHA-256 of nnkit's files and of the main program}.

    >>> sorted(code())[:2]
    ['code', 'flax']
    """
    found = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    for path in [*sorted(package.rglob("*.py")), *([Path(main)] if main else [])]:
        if path.is_file():
            found.update(path.read_bytes())
    versions = {name: str(_version(name)) for name in PACKAGES}
    return {**versions, "python": platform.python_version(), "code": found.hexdigest()[:16]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
