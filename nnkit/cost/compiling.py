"""The real training step, compiled ahead of time, and its figures; kept on disk by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nnkit.cost import programs

__all__ = ["figures", "kept_in", "said_while", "versions"]

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def versions() -> dict[str, str]:
    """The versions that decide what the compiler makes.

    Returns:
      Versions by name of the package.

    >>> versions()["jax"] == jax.__version__
    True
    """
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def kept_in(folder: str | Path | None = None) -> Path | None:
    """The folder of plans: the one given, or NNKIT_CACHE/plans; None if NNKIT_CACHE is 0.

    Args:
      folder: a folder, or None.

    Returns:
      A path, or None.

    >>> kept_in("here").name
    'here'
    """
    if folder is not None:
        return Path(folder)
    place = os.environ.get("NNKIT_CACHE", str(Path.home() / ".cache" / "nnkit"))
    return None if place == "0" else Path(place) / "plans"


@contextlib.contextmanager
def said_while(what: str, say: Callable[[str], None], often: float = 20.0):
    """Say what is being done, then every so many seconds that it still is, then how long it took.

    Args:
      what: such as "compiling for v5e:4x4".
      say: a function of a line.
      often: seconds between lines.

    Returns:
      A context manager.

    >>> with said_while("thinking", print):
    ...     pass
    thinking ...
    thinking: 0 s
    """
    start, ended = time.monotonic(), threading.Event()
    say(f"{what} ...")

    def tick():
        while not ended.wait(often):
            say(f"{what}: {time.monotonic() - start:.0f} s so far")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    say(f"{what}: {time.monotonic() - start:.0f} s")


def to_stderr(line: str) -> None:
    """Progress goes where results do not."""
    print(line, file=sys.stderr, flush=True)


def figures(
    lowered, title: str, folder: Path | None, say: Callable[[str], None], *, about: str = ""
) -> dict[str, Any]:
    """What the compiler makes of a lowered step: bytes, collectives, its own count.

    Args:
      lowered: `jax.jit(update).lower(...)`.
      title: what is compiled, in words.
      folder: where figures are kept, or None.
      say: a function of a line, for progress.
      about: the devices; with the program, versions and flags it is the name in the cache.

    Returns:
      A JSON mapping; "refused" holds the compiler's words if it found no way to fit the memory.

    >>> lowered = jax.jit(jnp.sin).lower(jnp.ones(3))
    >>> figures(lowered, "cpu:1", None, lambda line: None)["arguments"]
    12
    """
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    fast = str(getattr(jax.config, "jax_disable_most_optimizations", False))
    made = json.dumps([about, versions(), flags, fast, FORMAT])
    name = hashlib.sha256((made + lowered.as_text()).encode()).hexdigest()
    path = None if folder is None else folder / f"{name}.json"
    if path is not None and path.is_file():
        with contextlib.suppress(OSError, json.JSONDecodeError):
            say(f"{title}: compiled before, figures {name[:8]} of {folder}")
            return {**json.loads(path.read_text()), "cached": True}
    start = time.monotonic()
    with said_while(f"compiling for {title}", say), _unwritten():
        try:
            found = _figures(lowered.compile())
        except jax.errors.JaxRuntimeError as error:
            found = refusal(str(error))
            if not found:
                raise
    found["seconds"] = round(time.monotonic() - start, 1)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(found))
        part.replace(path)  # never half a file
    return {**found, "cached": False}


MISSING = "memory traffic and collectives are unknown, and the roofline is that of compute alone"
FORMAT = 1  # of the figures; another number forgets those kept


@contextlib.contextmanager
def _unwritten():
    """JAX's own cache of programs is not written: it cannot read those of absent devices again."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _figures(compiled) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    try:
        program = programs.parse(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:  # a compiler newer than the reader of its programs
        said = str(error).splitlines()[0][:160]
        program, unknown = None, [f"the compiled program cannot be read ({said}), so {MISSING}"]
    else:
        unknown = [f"loop {x}: counted once" for x in programs.executed(program)[1]]
    own: Any = compiled.cost_analysis()
    own = own[0] if isinstance(own, list) and own else own
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporaries": temporaries,
        "code": memory.generated_code_size_in_bytes,
        "peak": arguments + outputs - aliased + temporaries,
        "flops": (own or {}).get("flops"),
        "traffic": None if program is None else programs.traffic(program),
        "collectives": [] if program is None else [list(c) for c in programs.collectives(program)],
        "unknown": unknown,
    }


def refusal(message: str) -> dict[str, Any]:
    """Figures of a program that the compiler found too large, {} if it says something else.

    >>> refusal("RESOURCE_EXHAUSTED: ... Used 64.01G of 15.75G hbm.")["needed"] // 2**30
    64
    """
    if "RESOURCE_EXHAUSTED" not in message and "memory" not in message.lower():
        return {}
    size = r"([\d.]+)([KMGT])i?B?"
    found = re.search(rf"[Uu]sed {size} of {size}", message)
    found = found or re.search(rf"\({size}\) exceeds available\D*?{size}", message)
    needed = limit = None
    if found:
        needed = int(float(found[1]) * UNITS[found[2]])
        limit = int(float(found[3]) * UNITS[found[4]])
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return {"refused": lines[0][:300] if lines else message[:300], "needed": needed, "limit": limit}
