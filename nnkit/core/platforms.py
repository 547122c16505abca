"""The kind of device a program is traced for, which need not be here, or is required to be."""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import jax

__all__ = ["compiling_for", "platform", "require"]

KINDS = ("cpu", "gpu", "tpu")
BACKENDS = {"cuda": "gpu", "rocm": "gpu", "gpu": "gpu", "tpu": "tpu", "cpu": "cpu"}
PLUGINS = {
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin"),
}
FILES = {"tpu": ("accel*", "vfio/[0-9]*"), "gpu": ("nvidia*", "dxg", "kfd")}
DEV = Path("/dev")
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The kind of device that what is traced now will run on: "cpu", "gpu" or "tpu".

    That of `compiling_for`, else that of the default device. Layers whose fastest form depends on
    the device ask here, so that a program that is only planned for a TPU has the form for a TPU.

    Returns:
      A word.

    >>> platform() == jax.default_backend()
    True
    """
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(kind: str) -> Iterator[None]:
    """Within, `platform()` is `kind`. Trace a function of its own inside: jit keeps what it traced.

    Args:
      kind: "cpu", "gpu" or "tpu".

    Returns:
      A context manager.

    Raises:
      ValueError: if it is no such word.

    >>> with compiling_for("tpu"):
    ...     platform()
    'tpu'
    """
    if kind not in KINDS:
        raise ValueError(f"compiling_for({kind!r}): expected one of {', '.join(KINDS)}")
    token = _target.set(kind)
    try:
        yield
    finally:
        _target.reset(token)


def require(kind: str | None = None, devices: int = 1) -> None:
    """Raise unless the devices that were asked for are here; before anything is compiled.

    Whether a machine has an accelerator at all is seen from its files and the packages, in
    milliseconds, before JAX looks for it, which may take long.

    Args:
      kind: "cpu", "gpu" or "tpu"; None takes the first word of JAX_PLATFORMS, and nothing is
        required without one.
      devices: how many there must be.

    Raises:
      ValueError: if it is no such word, or `devices` is below 1.
      RuntimeError: if they are not here, in use by another process, or too few.

    >>> require("cpu")
    """
    asked = f"platform {kind!r}"
    if kind is None:
        first = (jax.config.jax_platforms or "").split(",")[0]  # pyright: ignore[reportAttributeAccessIssue]
        kind, asked = BACKENDS.get(first), f"JAX_PLATFORMS={first}"
        if kind is None:
            return
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"platform is {kind!r}, expected one of {known}; 'cpu' is usual")
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices is {devices!r}, expected an integer >= 1, such as devices=1")
    instead = "use a machine that has them, or ask for the CPU: JAX_PLATFORMS=cpu"
    if lacking := _lacking(kind):
        raise RuntimeError(f"{asked} was asked for, but {lacking}; expected a {kind}: {instead}")
    try:
        found, chosen = len(jax.devices(kind)), jax.default_backend()
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        busy = any(word in why.lower() for word in ("in use", "busy", "already", "lock"))
        who = "; end the other process that has them" if busy else ""
        raise RuntimeError(
            f"{asked} was asked for, but JAX cannot start it ({why:.200}), expected "
            f"{devices} {kind} devices{who}; {instead}"
        ) from error
    if chosen != kind:
        raise RuntimeError(
            f"{asked} was asked for, but programs run on {chosen}, expected {kind}; unset "
            f"JAX_PLATFORMS or set it to {kind}, before JAX is used; {instead}"
        )
    if found < devices:
        raise RuntimeError(
            f"{devices} {kind} devices were asked for, but there are {found}; ask for {found}, or "
            "use a machine that has more"
        )


def _lacking(kind: str) -> str:
    """What a machine certainly needs for a kind of device and has not; "" if nothing."""
    if kind == "cpu":
        return ""
    if not any(next(DEV.glob(pattern), None) for pattern in FILES[kind]):
        files = " or ".join(f"{DEV}/{pattern}" for pattern in FILES[kind])
        return f"this machine has no {kind.upper()}: there is no {files}"
    path = os.environ.get("TPU_LIBRARY_PATH") if kind == "tpu" else None
    if not path and not any(importlib.util.find_spec(name) for name in PLUGINS[kind]):
        extra = "tpu" if kind == "tpu" else "cuda13"
        return f"JAX has no plugin for it (pip install 'jax[{extra}]')"
    return ""
