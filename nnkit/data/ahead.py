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

from nnkit.data.reading import TIMEOUT, hung, settings, stands, time_limit

__all__ = ["owned", "prefetch", "stack"]

_END = object()


def owned(batch):
    """A batch on the device, in memory that nobody else writes to.

    On CPUs `jax.device_put` may go on using the memory of a numpy array, and elsewhere reads it
    later: a source that fills the same array again would change batches that were handed over.

    Args:
      batch: a tree of arrays [...].

    Returns:
      The tree of jax arrays; those that were jax arrays are not copied.

    >>> x = np.zeros(2, np.float32)
    >>> kept = owned({"x": x})
    >>> x[:] = 7
    >>> kept
    {'x': Array([0., 0.], dtype=float32)}
    """
    return jax.device_put(
        jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, batch)
    )


def prefetch(
    iterator: Iterable[Any],
    size: int = 2,
    place: Callable[[Any], Any] | None = None,
    *,
    timeout: float | None = None,
) -> _Ahead:
    """An iterator whose next items are read and put on the device by a thread, ahead of time.

    An exception of the source is raised at the consumer with its own traceback. The thread ends
    with the source, on `close()`, at the end of a `with` block, when the iterator is dropped and
    at the exit of the interpreter.

    Args:
      iterator: gives batches, trees of arrays [...].
      size: how many finished items may wait.
      place: what is done to each; None puts a copy on the device, so that the source may use its
        arrays again.
      timeout: seconds to wait for an item; after them the source counts as hung. None takes that
        of the iterator if it has one, else 60.

    Returns:
      An iterator over the placed batches, with `close()`.

    Raises:
      ValueError: if `size` < 1, or `timeout` is not above 0.
      TypeError: if `timeout` is no number.
      TimeoutError: from the iterator, if the source hangs; says where.

    >>> [int(x.sum()) for x in prefetch([np.ones(2, np.int32), np.ones(3, np.int32)])]
    [2, 3]
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"prefetch(size={size!r}) needs an int >= 1; 2 is enough for most")
    timeout = getattr(iterator, "timeout", TIMEOUT) if timeout is None else timeout
    return _Ahead(iter(iterator), size, owned if place is None else place, time_limit(timeout))


class _Ahead:
    """The consumer's end. The thread knows the queue only, so that dropping this end is seen."""

    def __init__(
        self, source: Iterator[Any], size: int, place: Callable[[Any], Any], timeout: float
    ):
        self.timeout = timeout
        self._doing = getattr(source, "doing", None)
        self._items: queue.Queue = queue.Queue(size)
        self._done = False
        stop = threading.Event()
        thread = threading.Thread(
            target=_work,
            args=(source, place, self._items, stop, settings()),
            name="nnkit-prefetch",
            daemon=True,
        )
        self._thread, self._stop = thread, stop
        self._halt = weakref.finalize(self, _halt, thread, self._items, stop)
        thread.start()

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self):
        if self._done or not self._halt.alive:
            raise StopIteration
        item, error = self._wait()
        if item is not _END:
            return item
        self._done = True
        self._halt()  # nothing to do after a hang: it is detached
        if error is not None:
            raise error
        raise StopIteration

    def _wait(self):
        """The next item of the thread; an error if it hangs."""
        waited, tick = 0.0, min(1.0, self.timeout / 4)
        # Seconds are counted, not read off a clock: a stopped process is not a hung source.
        while waited < self.timeout:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=tick)
            waited += tick
        self._done = True
        self._stop.set()
        self._halt.detach()  # it would wait for the thread, which is left behind
        return _END, hung(self.doing(), self.timeout)

    def doing(self) -> str:
        """What is being read at this moment, by whom, and where in the code."""
        told = self._doing() if self._doing is not None else ""
        return told if " at " in told else f"in {stands(self._thread.ident or 0)}"

    def close(self) -> None:
        """Stop the thread and forget what it had read."""
        self._halt()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _work(source, place, items: queue.Queue, stop: threading.Event, settings) -> None:
    """The thread: read, place, hand over, until the end or `stop`. Always ends with _END."""
    error = None
    try:
        with settings:
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
