"""How often XLA compiled something: the counter that the tests share."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import jax

EVENT = "/jax/core/compile/backend_compile_duration"
_open: list[SimpleNamespace] = []


def _heard(event: str, seconds: float, **_) -> None:
    if event == EVENT:
        for counter in _open:
            counter.count += 1


jax.monitoring.register_event_duration_secs_listener(_heard)


@contextlib.contextmanager
def counted():
    """`.count` programs were compiled inside the block. Make keys and arrays before it.

    >>> f, x = jax.jit(lambda x: x + 1), np.ones(3, np.float32)
    >>> with counted() as programs:
    ...     _ = f(x), f(x)
    >>> programs.count
    1
    """
    counter = SimpleNamespace(count=0)
    _open.append(counter)
    try:
        yield counter
    finally:
        _open.remove(counter)
