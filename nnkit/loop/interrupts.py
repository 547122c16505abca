"""Ctrl-C and SIGTERM during `fit`: noted at once, acted on where no state can be lost.

CPython runs the handler of a signal between two bytecodes: after `update` has consumed the old
state, say, and before the new one has a name. A handler that raises there costs the state. Here it
only takes a note, and the loop looks after the assignment. While nothing is in flight (waiting for
a batch, inside a hook) the handler raises at once, so that nobody waits for slow data.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from nnkit.core.means import Mean
from nnkit.parallel import hosts

__all__ = ["Interrupts", "ending", "forget", "packed", "recall", "remember", "unpacked"]

TERMINATED = 128 + signal.SIGTERM  # the exit code, as shells count
GRACE = 20.0  # seconds from SIGTERM to the end; who sends it waits 30 as a rule
LARGEST = 100_000  # bytes of sums that go into a manifest
_ends: contextvars.ContextVar[bool] = contextvars.ContextVar("ends", default=False)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Within, an interrupted `fit` raises KeyboardInterrupt once it has saved, and does not return.

    For programs whose next lines would take the result for a finished one: the command line.

    >>> with ending():
    ...     _ends.get()
    True
    """
    token = _ends.set(True)
    try:
        yield
    finally:
        _ends.reset(token)


class Interrupts:
    """Takes Ctrl-C and SIGTERM as long as the block lasts, in the main thread.

    Only Python's own handlers are replaced; somebody else's stay, and so they do in other threads
    and on many processes, where one must not stop alone. Handlers are put back at the end.

    Attributes:
      signals: the numbers that came, in order; the loop looks here after each update.

    >>> with Interrupts() as asked:
    ...     signal.raise_signal(signal.SIGINT)
    ...     asked.signals == [signal.SIGINT]
    True
    """

    def __init__(self):
        self.signals: list[int] = []
        self._safe = False
        self._before: dict[int, object] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread() and hosts.count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                if _ours(signal.getsignal(number)):
                    self._before[number] = signal.signal(number, self._heard)
            if signal.SIGTERM in self._before:
                self._watch = _Watch.started()
        return self

    def __exit__(self, *_) -> None:
        if self._watch is not None:
            self._watch.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def between(self, batches: Iterable) -> Iterator:
        """The same batches; while one is waited for, an interrupt raises at once."""
        batches = iter(batches)
        while True:
            self._safe = True
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._safe = False
            yield batch

    @contextlib.contextmanager
    def safely(self) -> Iterator[None]:
        """Within, nothing is in flight: an interrupt raises at once."""
        self._safe = True
        try:
            yield
        finally:
            self._safe = False

    def caused(self, error: BaseException) -> bool:
        """Did a signal that was taken here raise this?"""
        return bool(self.signals) and isinstance(error, KeyboardInterrupt | SystemExit)

    def leave(self, state) -> None:
        """Ends the process after SIGTERM; raises after a second Ctrl-C, or within `ending`.

        Raises:
          SystemExit: 143, as the shell calls a process that SIGTERM ended.
          KeyboardInterrupt: with the `state` of the loop.
        """
        if signal.SIGTERM in self.signals:
            raise SystemExit(TERMINATED)
        if self.signals and (len(self.signals) > 1 or _ends.get()):
            error = KeyboardInterrupt()
            error.state = state  # pyright: ignore[reportAttributeAccessIssue]
            raise error

    def _heard(self, number: int, frame) -> None:
        self.signals.append(number)
        if self.signals.count(signal.SIGTERM) > 1:
            os._exit(TERMINATED)  # a checkpoint is committed by one rename: none is half there
        if self._safe:
            self._safe = False
            raise SystemExit(TERMINATED) if number == signal.SIGTERM else KeyboardInterrupt


class _Watch:
    """A thread that ends the process if the main thread does not, such as in a long compilation.

    Python's handlers run in the main thread, once it is back from C. The system however writes
    the number of a signal into a socket at once.
    """

    def __init__(self, reader: socket.socket, writer: socket.socket):
        self.reader, self.writer = reader, writer
        self.thread = threading.Thread(target=self._read, name="nnkit-signals", daemon=True)
        self.thread.start()

    @classmethod
    def started(cls) -> _Watch | None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if before == -1:
            return cls(reader, writer)
        signal.set_wakeup_fd(before)  # an event loop listens already
        reader.close()
        writer.close()
        return None

    def end(self) -> None:
        signal.set_wakeup_fd(-1)
        self.writer.close()
        self.thread.join(1)

    def _read(self) -> None:
        with self.reader:
            while number := self.reader.recv(1):
                if number[0] != signal.SIGTERM:
                    continue
                self.reader.settimeout(GRACE)
                with contextlib.suppress(TimeoutError):
                    while more := self.reader.recv(1):
                        if more[0] == signal.SIGTERM:
                            break
                    else:
                        return  # the loop has ended
                print("nnkit: ended by SIGTERM before the loop could", file=sys.stderr, flush=True)
                os._exit(TERMINATED)


def _ours(handler) -> bool:
    """Is it a handler of Python, or the one with which checkpoints wait for a save?"""
    known = (signal.SIG_DFL, signal.default_int_handler)
    return handler in known or getattr(handler, "__module__", "") == "nnkit.checkpoint.background"


def packed(sums) -> dict | None:
    """Sums since the last row as JSON data, bit by bit; None without any, or if they are large.

    Args:
      sums: {name: Mean of arrays [...]}, or None.

    >>> unpacked(packed({"loss": Mean(np.float32(0.1), np.float32(3))}))["loss"].total
    array(0.1, dtype=float32)
    """
    if sums is None or sum(x.nbytes for x in jax.tree.leaves(sums)) > LARGEST:
        return None

    def one(x):
        x = np.asarray(x)
        return {"dtype": str(x.dtype), "shape": list(x.shape), "hex": x.tobytes().hex()}

    sums = jax.device_get(sums)
    return {name: [one(mean.total), one(mean.weight)] for name, mean in sums.items()}


def unpacked(data: Mapping | None) -> dict | None:
    """What `packed` made of it: {name: Mean of numpy arrays [...]}, or None.

    >>> unpacked(None)
    """
    if data is None:
        return None

    def one(x):
        flat = np.frombuffer(bytes.fromhex(x["hex"]), np.dtype(x["dtype"]))
        return flat.reshape(x["shape"]).copy()

    return {name: Mean(*[one(x) for x in pair]) for name, pair in data.items()}  # pyright: ignore[reportArgumentType]


_last: list[tuple] = []  # (references to the leaves, batches, steps, done, rows, sums) of one fit


def remember(state, batches, steps: int, done: int, rows: list, sums) -> None:
    """Keep what an interrupted `fit` without a run needs to go on, as long as its state lives.

    Args:
      state: that is returned.
      batches: the data.
      steps: that were asked for.
      done: updates made.
      rows: logged so far.
      sums: {name: Mean} since the last of them, or None.

    >>> x = jnp.ones(3)
    >>> remember(x, [1], 9, 4, [], None)
    >>> recall(x, [1], 8) is None
    True
    """
    forget()
    leaves = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    gone = lambda _: forget()
    references = [weakref.ref(x, gone if i == 0 else None) for i, x in enumerate(leaves)]
    sums = unpacked(packed(sums))
    rows = [row for row in rows if row["step"] < done or sums is None]  # else that one comes again
    _last.append((references, batches, steps, done, rows, sums))


def forget() -> None:
    """Drop what `remember` kept.

    >>> forget()
    """
    _last.clear()


def recall(state, batches, steps: int) -> tuple | None:
    """(done, rows, sums) if this is the state of an interrupted `fit`, and the rest is the same.

    Raises:
      ValueError: if it cannot go on: the batches were a generator, which is read.

    >>> recall(jnp.ones(3), [1], 9)
    """
    if not _last:
        return None
    references, data, asked, done, rows, sums = _last[0]
    leaves = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    same = len(leaves) == len(references) and all(r() is x for r, x in zip(references, leaves))
    told = getattr(data, "fingerprint", None)
    alike = data is batches or (told and told == getattr(batches, "fingerprint", None))
    if not same or not alike or asked != steps:
        return None
    forget()
    if not hasattr(batches, "stream") and iter(batches) is batches:
        raise ValueError(
            f"the fit before was interrupted at step {done} of {steps}, and its generator has been "
            "read further than that, expected data that can be read again; pass a list or a Batches"
        )
    return done, rows, sums
