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

from nnkit.core.privacy import private

__all__ = ["code", "environment", "perishable"]

MOUNTS = Path("/proc/self/mounts")
COLAB, DRIVE = Path("/content"), Path("/content/drive")
PACKAGES = "jax jaxlib flax optax orbax-checkpoint numpy".split()


def environment() -> dict[str, Any]:
    """What made a run: versions, devices, commit, dirty diff, command. No variables, no home.

    Texts pass `private`: the home folder is ~, and secrets of the environment are left out.

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

    found = {
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
    return private(found)


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


def perishable(folder) -> str:
    """Why a run in this folder may be lost, and what to do; "" if nothing is known against it.

    Args:
      folder: a path, which need not exist.

    Returns:
      A sentence or "".

    >>> perishable(Path.home())
    ''
    """
    path = Path(folder).absolute()
    copied = "checkpoints are read back and checked against digests, copy them elsewhere as well"
    if path.is_relative_to(DRIVE):
        return f"{folder} is on Google Drive, which may be unmounted or write late: {copied}"
    if path.is_relative_to(COLAB) and COLAB.is_dir():
        return (
            f"{folder} is on the disk of a Colab machine, and is gone when that stops: mount Drive "
            f"(google.colab.drive.mount({str(DRIVE)!r})) and use a folder in {DRIVE}/MyDrive"
        )
    mounts = [line.split() for line in MOUNTS.read_text().splitlines()] if MOUNTS.exists() else []
    over = [m for m in mounts if len(m) > 2 and path.is_relative_to(m[1].replace("\\040", " "))]
    kind = max(over, key=lambda m: len(m[1]))[2] if over else ""
    if kind.startswith("fuse"):
        return f"{folder} is on a file system in user space ({kind}), which may go away: {copied}"
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
