"""The kind of device a program is being traced for, which need not be one that is here."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

__all__ = ["compiling_for", "platform"]

KINDS = ("cpu", "gpu", "tpu")
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
