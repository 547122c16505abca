"""Work ahead of the step: prefetch on a thread, stacks of batches."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

__all__ = ["prefetch", "stack"]

_END = object()


def prefetch(
    iterator: Iterable[Any], size: int = 2, place: Callable[[Any], Any] | None = None
) -> _Ahead:
    """An iterator whose next items are read and put on the device by a thread, ahead of time.

    An exception of the source is raised at the consumer with its own traceback. The thread ends
    with the source, on `close()`, at the end of a `with` block, when the iterator is dropped and
    at the exit of the interpreter.

    Args:
      iterator: gives batches, trees of arrays [...].
      size: how many finished items may wait.
      place: what is done to each; `jax.device_put` if None.

    Returns:
      An iterator over the placed batches, with `close()`.

    Raises:
      ValueError: if `size` < 1.

    >>> [int(x.sum()) for x in prefetch([np.ones(2, np.int32), np.ones(3, np.int32)])]
    [2, 3]
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"prefetch(size={size!r}) needs an int >= 1; 2 is enough for most")
    return _Ahead(iter(iterator), size, jax.device_put if place is None else place)


class _Ahead:
    """The consumer's end. The thread knows the queue only, so that dropping this end is seen."""

    def __init__(self, source: Iterator[Any], size: int, place: Callable[[Any], Any]):
        self._items: queue.Queue = queue.Queue(size)
        self._done = False
        stop = threading.Event()
        thread = threading.Thread(
            target=_work,
            args=(source, place, self._items, stop),
            name="nnkit-prefetch",
            daemon=True,
        )
        self._halt = weakref.finalize(self, _halt, thread, self._items, stop)
        thread.start()

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self):
        if self._done or not self._halt.alive:
            raise StopIteration
        item, error = self._items.get()
        if item is not _END:
            return item
        self._done = True
        self._halt()
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and forget what it had read."""
        self._halt()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _work(source, place, items: queue.Queue, stop: threading.Event) -> None:
    """The thread: read, place, hand over, until the end or `stop`. Always ends with _END."""
    error = None
    try:
        for item in source:
            if stop.is_set():
                break
            items.put((place(item), None))
            if stop.is_set():
                break
    except StopIteration as ended:  # raised by `place`: it would look like the end of the data
        error = RuntimeError("place raised StopIteration; return the batch instead")
        error.__cause__ = ended
    except BaseException as raised:
        error = raised
    finally:
        if hasattr(source, "close"):
            try:
                source.close()
            except BaseException as raised:
                error = error or raised
    items.put((_END, error))


def _halt(thread: threading.Thread, items: queue.Queue, stop: threading.Event) -> None:
    """Stop the thread: it may be waiting for room, so make room until it is gone (10 s)."""
    stop.set()
    if thread is threading.current_thread():  # the collector may run anywhere
        return
    for _ in range(1000):
        while not items.empty():
            items.get_nowait()
        thread.join(0.01)
        if not thread.is_alive():
            break
    while not items.empty():
        items.get_nowait()
    with contextlib.suppress(queue.Full):  # only if the thread hangs in the source
        items.put_nowait((_END, None))  # for a consumer that waits on another thread


def stack(iterable: Iterable[Any], k: int) -> Iterator[Any]:
    """Groups of k batches as one tree with a leading axis of steps.

    Args:
      iterable: gives trees of arrays [b ...], all of one shape.
      k: batches per group.

    Returns:
      An iterator over trees of arrays [k b ...].

    Raises:
      ValueError: if k < 1, or the end comes inside a group (nothing is dropped in silence).

    >>> [g.shape for g in stack([np.zeros(3)] * 4, 2)]
    [(2, 3), (2, 3)]
    """
    if isinstance(k, bool) or not hasattr(type(k), "__index__") or k < 1:
        raise ValueError(f"stack(k={k!r}) needs an int >= 1; 1 is one batch per group")
    return _stacked(iter(iterable), int(k))


def _stacked(batches: Iterator[Any], k: int):
    while group := list(itertools.islice(batches, k)):
        if len(group) < k:
            raise ValueError(
                f"stack(k={k}) got {len(group)} batches at the end, expected {k}; "
                "use a k that divides the number of batches, or an endless stream"
            )
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *group)
