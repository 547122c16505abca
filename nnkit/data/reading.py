"""Reading batch after batch: by threads if wanted, in order, with errors that name the example."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.experimental
import numpy as np

from nnkit.core.failpoints import failpoint

__all__ = ["TIMEOUT", "Stream", "explained", "settings", "stands", "time_limit"]

TIMEOUT = 60.0  # seconds without a batch after which reading counts as hung


class Stream:
    """The batches of some rows, in order; what `Batches.stream` gives.

    Batch i is `take` of the i-th rows, whichever thread reads it. An error of `take` reaches the
    consumer in its place: after all batches before it, and with a note that names batch, examples
    and thread. Nothing is left out.

    Attributes:
      take: rows [m] -> a batch, a dict of arrays [b ...].
      rows: the rows of one batch after another.
      start: the number of the first, for messages.
      name: of the data, for messages.
      workers: threads that read at the same time; 0 reads in the thread that asks.
      timeout: seconds without a batch after which threads count as hung.

    >>> stream = Stream(lambda rows: {"x": rows * 10}, [np.array([1, 2]), np.array([3])], workers=2)
    >>> [batch["x"].tolist() for batch in stream]
    [[10, 20], [30]]
    """

    def __init__(
        self,
        take: Callable[[np.ndarray], dict[str, np.ndarray]],
        rows: Iterable[np.ndarray],
        *,
        start: int = 0,
        name: str = "data",
        workers: int = 0,
        timeout: float = TIMEOUT,
    ):
        self.timeout = timeout
        self._desk = _Desk(take, iter(rows), start, name, 2 * workers)
        self._workers, self._threads = workers, []
        self._halt: Callable = self._desk.close

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        desk = self._desk
        if not self._workers:
            desk.read()
        elif not self._threads:
            self._begin()
        batch, error = desk.next(self.timeout, self.doing)
        if error is not None:
            self.close()
            raise error
        if batch is None:
            raise StopIteration
        return batch

    def _begin(self) -> None:
        """Start the threads. They know the desk only, so that dropping this stream is seen."""
        for i in range(self._workers):
            thread = threading.Thread(
                target=_work, args=(self._desk, settings()), name=f"nnkit-reader-{i}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._halt = weakref.finalize(self, self._desk.close)

    def doing(self) -> str:
        """What is being read at this moment, by whom, and where in the code."""
        return self._desk.doing()

    def close(self) -> None:
        """Let the threads end; a thread that hangs in the source is left behind."""
        self._halt()


class _Desk:
    """What the readers of a stream share: rows to be read, what is being read, what is ready."""

    def __init__(self, take, rows: Iterator[np.ndarray], start: int, name: str, room: int):
        self.take, self.rows, self.name, self.room = take, rows, name, room
        self.changed = threading.Condition()
        self.drawn = self.wanted = start  # the next number to read, and to hand out
        self.ready: dict[int, tuple[Any, BaseException | None]] = {}
        self.now: dict[int, tuple[int, np.ndarray]] = {}  # by thread
        self.again: tuple[int, np.ndarray] | None = None  # read by halves
        self.ended = self.closed = False
        self.crash: RuntimeError | None = None  # a thread died outside of `take`

    def draw(self) -> tuple[int, np.ndarray] | None:
        """The next number and its rows, once there is room; None at the end."""
        with self.changed:
            self.changed.wait_for(self._may_draw)
            job, self.again = self.again, None
            if job is None and not (self.ended or self.closed):
                try:
                    rows = next(self.rows, None)
                except Exception as error:  # another thread would find an end there
                    self.died(error)
                    rows = None
                job = None if rows is None else (self.drawn, rows)
                self.drawn += job is not None
            if job is None:
                self.ended = True
                self.changed.notify_all()
            else:
                self.now[threading.get_ident()] = job
            return job

    def _may_draw(self) -> bool:
        free = not self.room or self.drawn - self.wanted < self.room
        return free or self.ended or self.closed

    def read(self) -> bool:
        """Read one batch; False at the end. What goes wrong is kept in its place."""
        job = self.draw()
        if job is None:
            return False
        try:
            found = self._taken(*job)
        except KeyboardInterrupt:  # in the thread that asks: the same batch comes next time
            self.now.clear()
            self.again = job
            raise
        with self.changed:
            self.now.pop(threading.get_ident(), None)
            self.ready[job[0]] = found
            self.ended = self.ended or found[1] is not None
            self.changed.notify_all()
        return True

    def _taken(self, i: int, rows: np.ndarray):
        """(batch, error) of some rows."""
        try:
            failpoint("data.read")
            return self.take(rows), None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not self.room:
                raise
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                return None, explained(error, self.take, rows, f"batch {i} of {self.name}")
            told = RuntimeError(f"reading raised {type(error).__name__}, expected an Exception")
            told.__cause__ = error  # they would end the epoch or the program in silence
            return None, explained(told, None, rows, f"batch {i} of {self.name}")

    def next(self, timeout: float, doing: Callable[[], str]):
        """(batch, error) of the next number, in order; (None, None) after the last."""
        waited, tick = 0.0, min(1.0, timeout / 4)
        with self.changed:
            while self.wanted not in self.ready:
                if self.closed:
                    return None, None
                if self.ended and not self.now and (self.crash or self.wanted >= self.drawn):
                    return None, self.crash
                # Seconds are counted, not read off a clock: a stopped process is not a hung source.
                waited += 0.0 if self.changed.wait(tick) else tick
                if waited >= timeout:
                    return None, hung(doing(), timeout)
            found = self.ready.pop(self.wanted)
            self.wanted += 1
            self.changed.notify_all()
        return found

    def died(self, error: BaseException) -> None:
        """What went wrong outside of `take`: the end of this stream, after what is ready."""
        thread = threading.current_thread().name
        told = RuntimeError(
            f"thread {thread}, which reads {self.name}, died: {error!r}; expected no error but of "
            "the source; start again from the last checkpoint"
        )
        told.__cause__ = error
        with self.changed:
            self.now.pop(threading.get_ident(), None)
            self.crash, self.ended = told, True
            self.changed.notify_all()

    def doing(self) -> str:
        now = dict(self.now)
        if not now:
            return f"nothing of {self.name}"
        thread, (i, rows) = min(now.items(), key=lambda item: item[1][0])
        return f"batch {i} of {self.name} ({listed(rows)}), in {stands(thread)}"

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.ready.clear()
            self.changed.notify_all()


def _work(desk: _Desk, settings) -> None:
    """A thread: read until the end, an error or the close."""
    try:
        with settings:
            while desk.read():
                pass
    except BaseException as error:
        thread = threading.current_thread().name
        told = RuntimeError(
            f"thread {thread}, which reads {desk.name}, died: {error!r}; start again"
        )
        told.__cause__ = error
        with desk.changed:
            desk.crash = told
            desk.changed.notify_all()


def explained(error: BaseException, take: Callable | None, rows: np.ndarray, what: str):
    """The error with a note: what was read, which example is at fault, in which thread.

    Args:
      error: what was raised.
      take: rows [m] -> a batch, to ask for one example after the other; None does not.
      rows: [m] the numbers of the examples.
      what: they are of.

    Returns:
      The error.

    >>> explained(OSError("damaged"), None, np.arange(3), "batch 7 of digits").__notes__
    ['while reading batch 7 of digits (examples 0, 1, 2) in thread MainThread']
    """
    thread = threading.current_thread().name
    note = f"while reading {what} ({listed(rows)}) in thread {thread}"
    error.add_note(note if take is None else f"{note}; {_at_fault(take, rows)}")
    return error


def _at_fault(take, rows) -> str:
    """Which examples cannot be read on their own."""
    for j in range(len(rows)):
        try:
            take(rows[j : j + 1])
        except Exception as error:
            return f"example {int(rows[j])} alone raises {type(error).__name__}"
    return "each of them alone can be read: a passing fault, or one of their being together"


def listed(rows) -> str:
    """The numbers of some examples [m], the first of them.

    >>> listed(np.arange(9))
    'examples 0, 1, 2, 3, ...: 9'
    """
    first = ", ".join(str(int(row)) for row in rows[:4])
    return f"examples {first}, ...: {len(rows)}" if len(rows) > 4 else f"examples {first}"


def hung(doing: str, seconds: float) -> TimeoutError:
    """The error for a source that gives nothing.

    >>> hung("batch 3 of digits", 60.0).args[0][:57]
    'no batch came within 60 s: still reading batch 3 of digit'
    """
    return TimeoutError(
        f"no batch came within {seconds:g} s: still reading {doing}; expected one in that time. "
        "Does a disk or a server not answer, or does a filter reject everything? If it may take "
        "that long: batches.reading(timeout=600), or prefetch(iterator, timeout=600)"
    )


def stands(thread: int) -> str:
    """Where a thread stands, from its number: name, file, line and function.

    >>> stands(threading.get_ident()).split(" at ")[0]
    'thread MainThread'
    """
    names = {t.ident: t.name for t in threading.enumerate()}
    frame = sys._current_frames().get(thread)
    if frame is None:
        return f"thread {names.get(thread, thread)}, which has ended"
    code = frame.f_code
    place = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"
    return f"thread {names.get(thread, thread)} at {place}"


class settings:
    """For a thread to enter: those of jax's settings that hold in the thread that made this.

    `jax.enable_x64` and `jax.default_device` as contexts hold for one thread; another one would
    make float32 of float64, or use the first device, in silence.

    >>> with settings():
    ...     jnp.ones(2).dtype
    dtype('float32')
    """

    def __init__(self):
        self.wanted = {name: getattr(jax.config, name) for name in _CONTEXTS}
        self.entered = contextlib.ExitStack()

    def __enter__(self) -> None:
        for name, value in self.wanted.items():
            if getattr(jax.config, name) != value:
                self.entered.enter_context(_CONTEXTS[name](value))

    def __exit__(self, *raised) -> None:
        self.entered.close()


def _width(wide: bool):
    """The context of 64-bit numbers, which has moved."""
    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return where.enable_x64(wide)


_CONTEXTS = {"jax_enable_x64": _width, "jax_default_device": jax.default_device}


def time_limit(timeout: Any) -> float:
    """A time limit, checked: a number above 0; infinity is none.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is not above 0.

    >>> time_limit(30)
    30.0
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        raise TypeError(f"timeout is {timeout!r}, expected seconds > 0; {TIMEOUT:g} is usual")
    if not timeout > 0:
        raise ValueError(
            f"timeout is {timeout!r}, expected seconds > 0; {TIMEOUT:g} is usual, math.inf is none"
        )
    return float(timeout)
