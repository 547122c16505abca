"""Many processes as one program: start, agree, share, and end together.

The engine is JAX's own: `jax.distributed` finds the cluster, listens to the heartbeats and ends
every process when one has died. Here are the words around it: who is missing, and what differs.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from nnkit.parallel import roll

__all__ = [
    "agree",
    "barrier",
    "count",
    "first",
    "gathered",
    "shared",
    "start",
    "together",
    "unanimous",
    "who",
]

PAUSE = 10  # seconds between two lines of a process that waits for others
_peers: list[str] = []  # "host (pid 7)" of every process, written once by `start`
_seconds = {"roll": 10}  # how long the others have to answer when one seems gone
_calls: dict[str, itertools.count] = {}


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    heartbeat: int = 30,
) -> None:
    """Join the other processes: the first line of a program that runs on many hosts.

    Without arguments JAX finds the cluster by itself: TPU pods, Slurm, Kubernetes, Open MPI. From
    then on `jax.devices()` are those of all processes. A second call does nothing. One process
    that is missing at the start, or that dies later, ends all of them.

    Args:
      coordinator_address: "host:port" of process 0; None asks the cluster.
      num_processes: how many there are; None asks the cluster.
      process_id: the number of this one, from 0; None asks the cluster.
      timeout: seconds to wait for the others.
      heartbeat: seconds after which a silent process counts as dead.

    Raises:
      RuntimeError: if JAX was used before: the devices of others can no longer be joined.
      ValueError: if no cluster is found and none is given, the numbers do not fit, or this
        process was started as another one.
      TimeoutError: if the others do not come; names them. In a cluster that JAX found by itself the
        variable JAX_COORDINATOR_ADDRESS must be set for that (docs/hosts); otherwise JAX ends the
        process (SIGABRT) and names nobody.

    >>> start("host0:1234", num_processes=2, process_id=2)
    Traceback (most recent call last):
        ...
    ValueError: process_id is 2, expected 0 to 1: num_processes is 2
    """
    _sensible(num_processes, process_id, timeout, heartbeat)
    if jax.distributed.is_initialized():
        _same(num_processes, process_id)
        return
    numbers = f"process {process_id} of {num_processes}" if num_processes else "this process"
    where = f" at {coordinator_address}" if coordinator_address else ""
    waiting = (
        f"nnkit: {numbers} ({_me()}) waits for the others{where}; it gives up after {timeout} s: "
        "the same command must run on every host, and reach that port"
    )
    try:
        _unused()
        with _saying(waiting):
            known = roll.numbers(coordinator_address, num_processes, process_id)
            if known is not None:
                roll.call(*known, _me(), timeout)
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=heartbeat,
            )
    except (RuntimeError, ValueError) as error:
        explained = _explained(error, waiting)
        if explained is error:
            raise
        raise explained from error
    _seconds["roll"] = max(2, min(10, heartbeat // 2))
    atexit.register(_leave)  # runs before the hook of JAX, which waits for all
    with _saying(waiting):
        _peers[:] = gathered(_me())
    _announce()


def count() -> int:
    """How many processes there are; 1 without `start`. Alone it asks no device.

    Returns:
      An int.

    >>> count()
    1
    """
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """True in process 0, which writes the files of a run and talks; True in a process alone.

    Returns:
      A bool.

    >>> first()
    True
    """
    return count() == 1 or jax.process_index() == 0


def who(process: int) -> str:
    """A process in words, with its host where that is known.

    Args:
      process: its number, from 0.

    Returns:
      Such as "process 1 of 2 (node7, pid 4242)".

    >>> who(0)
    'process 0 of 1'
    """
    place = f" ({_peers[process]})" if process < len(_peers) else ""
    return f"process {process} of {count()}{place}"


def barrier(name: str, *, timeout: int = 600) -> None:
    """Wait until every process is here. Uses no device, so that any thread may wait.

    Args:
      name: the same in all processes; may be used again.
      timeout: seconds.

    Raises:
      TimeoutError: if one does not come; names it.

    >>> barrier("written")
    """
    if count() == 1:
        return
    from orbax.checkpoint import multihost  # its public door to the barriers of jax.distributed

    number = next(_calls.setdefault(name, itertools.count()))
    wait = multihost.get_barrier_sync_fn(processes=set(range(count())))
    try:
        wait(key=f"nnkit/{name}/{number}", timeout_ms=timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(f"barrier {name!r}: {_absent(str(error), timeout)}") from error


def gathered(value) -> list:
    """A small JSON value of every process, in all of them.

    Args:
      value: numbers, strings, None, lists and mappings of them.

    Returns:
      [n] one value per process.

    >>> gathered({"step": 3})
    [{'step': 3}]
    """
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if count() == 1:
        return [json.loads(text.tobytes())]
    from jax.experimental import multihost_utils

    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text)))).reshape(-1)
    mine = np.zeros(int(sizes.max()), np.uint8)
    mine[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(mine)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def shared(value) -> Any:
    """The JSON value of process 0, in every process: for what one must decide for all.

    Args:
      value: numbers, strings, None, lists and mappings of them; only that of process 0 counts.

    Returns:
      The value, as JSON gives it back.

    >>> shared((1, 2))
    [1, 2]
    """
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if count() == 1:
        return json.loads(text.tobytes())
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    mine = np.zeros(size, np.uint8)
    if first():
        mine[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())


def agree(values: Mapping[str, Any], what: str = "this run") -> None:
    """Raise, in every process, if the processes differ in anything by name.

    Args:
      values: names to small JSON values: fields of a configuration, hashes, steps.
      what: what they are to agree on, for the message.

    Raises:
      ValueError: naming the process, the field, and both values.

    >>> agree({"learning_rate": 0.1, "code": "0f3a"})
    """
    if count() == 1:
        return
    found = gathered({k: json.dumps(v, sort_keys=True) for k, v in values.items()})
    absent = "nothing"
    for process, theirs in enumerate(found):
        ours = found[0]
        names = [k for k in {**ours, **theirs} if ours.get(k, absent) != theirs.get(k, absent)]
        if names:
            parts = [
                f"{k} is {theirs.get(k, absent):.70}, there {ours.get(k, absent):.70}"
                for k in names
            ]
            more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
            raise ValueError(
                f"the processes do not agree on {what}: {who(process)} differs from {who(0)}: "
                f"{'; '.join(parts[:3])}{more}; start all of them with the same code, "
                "configuration and data"
            )


def unanimous(work: Callable[[], Any]) -> Any:
    """What `work()` gives; if it fails in one process, every process raises.

    For what each does by itself (reading, checking): without it the others would wait for ever.

    Args:
      work: a function that waits for no other process.

    Returns:
      Its result in this process.

    Raises:
      RuntimeError: if it failed elsewhere; names the process. Its own error where it failed.

    >>> unanimous(lambda: 3)
    3
    """
    if count() == 1:
        return work()
    result = problem = None
    try:
        result = work()
    except Exception as error:
        problem = error
    told = gathered(None if problem is None else f"{type(problem).__name__}: {problem}"[:2000])
    if problem is not None:
        raise problem
    for process, text in enumerate(told):
        if text is not None:
            raise RuntimeError(f"{who(process)} failed: {text}")
    return result


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around work on all devices: when it breaks because a process has gone, say which.

    A collective that fails says at most an address. All that are left then call the roll, and
    whoever does not answer is named. Other errors pass.

    Raises:
      ConnectionError: naming the processes that are gone.

    >>> with together():
    ...     1 + 1
    2
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if count() == 1 or not _broken(error):
            raise
        try:
            barrier("roll", timeout=_seconds["roll"])
        except TimeoutError as missing:
            told = str(missing).partition(": ")[2]
            text = (
                f"{who(jax.process_index())} lost its peers: {told}; look into the log of that "
                "one, then start all again: the run goes on from its newest checkpoint"
            )
            print(f"nnkit: {text}", file=sys.stderr, flush=True)
            raise ConnectionError(text) from error
        raise


def _broken(error: Exception) -> bool:
    """Is it from work on all devices? Eager collectives raise a plain ValueError (jax 0.10)."""
    kinds = ("UNKNOWN:", "UNAVAILABLE:", "INTERNAL:", "CANCELLED:")
    return isinstance(error, jax.errors.JaxRuntimeError) or str(error).startswith(kinds)


def _absent(text: str, timeout: int) -> str:
    """Who was not at a barrier, from the words of `jax.distributed`."""
    late = text.rpartition("timed out task names")[2] or text
    found = re.findall(r"task:(\d+)", late) or re.findall(r"^\s*(\d+)\s*$", late, re.M)
    named = {int(n) for n in found} - {jax.process_index()}
    if named:
        return f"{', '.join(who(n) for n in sorted(named))} did not come in {timeout} s"
    if "UNAVAILABLE" in text or "CANCELLED" in text:
        return f"{who(0)}, the coordinator, is gone"
    return f"not all came in {timeout} s ({text:.300})"


def _sensible(num_processes, process_id, timeout, heartbeat) -> None:
    """Raise if numbers given to `start` cannot be right."""
    for name, x in {"timeout": timeout, "heartbeat": heartbeat}.items():
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            raise ValueError(f"{name} is {x!r}, expected whole seconds >= 1; 30 is usual")
    if num_processes is not None and (not isinstance(num_processes, int) or num_processes < 1):
        raise ValueError(f"num_processes is {num_processes!r}, expected an int >= 1")
    top = num_processes if num_processes is not None else 2**31
    if process_id is not None and not (isinstance(process_id, int) and 0 <= process_id < top):
        raise ValueError(
            f"process_id is {process_id!r}, expected 0 to {top - 1}: num_processes is "
            f"{num_processes}"
        )


def _same(num_processes, process_id) -> None:
    """Raise if a second start asks for something else than the first."""
    has = {"num_processes": jax.process_count(), "process_id": jax.process_index()}
    for name, x in {"num_processes": num_processes, "process_id": process_id}.items():
        if x is not None and x != has[name]:
            raise ValueError(
                f"start({name}={x}): this process was started with {name}={has[name]}; start it "
                "once, with the numbers of its place"
            )


def _unused() -> None:
    """Raise if JAX has its devices already: it says so before it looks at numbers (0 of 0)."""
    with contextlib.suppress(ValueError):
        jax.distributed.initialize("localhost:0", 0, 0, cluster_detection_method="deactivate")


def _explained(error: Exception, waiting: str) -> Exception:
    """The error of `jax.distributed.initialize` in words that say what to do."""
    text = str(error)
    if "should be defined" in text or "must be defined" in text:
        return ValueError(
            "no cluster was found (TPU pod, Slurm, Kubernetes, Open MPI) and none was given; "
            "start the program by the launcher of the cluster, or give all three: "
            "start('host0:1234', num_processes=2, process_id=0); nnkit train: "
            "--hosts host0:1234,2,0"
        )
    if isinstance(error, RuntimeError) and "before" in text:
        return RuntimeError(
            "hosts.start() came after JAX was used (jax.devices(), a random key, any array): make "
            "it the first line of the program, before nk.mesh and before any data"
        )
    if "DEADLINE" in text or "UNAVAILABLE" in text:
        return TimeoutError(f"{waiting.removeprefix('nnkit: ')} ({text:.500})")
    return error


@contextlib.contextmanager
def _saying(text: str) -> Iterator[None]:
    """Print a line to stderr every PAUSE seconds while the body waits."""
    done = threading.Event()

    def say():
        for n in itertools.count(1):
            if done.wait(PAUSE):
                return
            print(f"{text} [{n * PAUSE} s]", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, name="nnkit-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _announce() -> None:
    """One line in the log of each process; its last words by JAX name a task by this number."""
    others = [f"task {i} is {peer}" for i, peer in enumerate(_peers)][:16]
    more = f", and {len(_peers) - 16} more" if len(_peers) > 16 else ""
    print(
        f"nnkit: {who(jax.process_index())} is ready; {', '.join(others)}{more}",
        file=sys.stderr,
        flush=True,
    )


def _me() -> str:
    return f"{socket.gethostname()}, pid {os.getpid()}"


def _leave() -> None:
    """At exit after an error that nobody caught: do not wait for those who wait for this one."""
    if getattr(sys, "last_value", None) is not None and count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
