"""A roll call before `jax.distributed` starts, because it does not say who is missing.

Process 0 listens at the address that JAX will use a moment later; the others say who they are.
When all are there, or one number is there twice, or the time is over, all are told so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time

__all__ = ["call", "numbers"]

# How schedulers tell a process how many there are, and which it is; JAX reads the same.
TOLD = (("SLURM_NTASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
ERRORS = {"TimeoutError": TimeoutError, "ValueError": ValueError}


def numbers(
    address: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int] | None:
    """(address, processes, number of this one): as given, else as the environment says; or None.

    Args:
      address: "host:port" of process 0, or None: that of JAX_COORDINATOR_ADDRESS.
      processes: how many there are, or None.
      process: the number of this one, or None.

    Returns:
      The three numbers, or None if one is not known.

    >>> numbers("localhost:1234", 2, 0)
    ('localhost:1234', 2, 0)
    """
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    for count, rank in TOLD:
        if count in os.environ and rank in os.environ:
            processes = int(os.environ[count]) if processes is None else processes
            process = int(os.environ[rank]) if process is None else process
    if address is None or processes is None or process is None:
        return None
    return address, processes, process


def call(address: str, processes: int, process: int, me: str, timeout: float) -> None:
    """Returns once all processes have come; raises the same error in all of them otherwise.

    Args:
      address: "host:port" of process 0.
      processes: how many there are.
      process: the number of this one, from 0.
      me: host and pid of this one, for messages.
      timeout: seconds to wait for the others.

    Raises:
      TimeoutError: naming the processes that did not come.
      ValueError: if two have one number, do not agree on how many there are, or the address is
        none.

    >>> call("localhost:0", 1, 0, "here", timeout=1)
    >>> call("localhost", 2, 0, "here", timeout=1)
    Traceback (most recent call last):
        ...
    ValueError: coordinator_address is 'localhost', expected "host:port" such as "node0:1234"
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(
            f'coordinator_address is {address!r}, expected "host:port" such as "node0:1234"'
        )
    end = time.monotonic() + timeout
    if processes == 1:
        return
    if process:
        told = _answer(host.strip("[]"), int(port), processes, process, me, end, timeout)
    else:
        told = _listen(int(port), processes, me, end, timeout)
    if told is not None:
        raise ERRORS[told[0]](told[1])


def _listen(port: int, processes: int, me: str, end: float, timeout: float):
    """Process 0: None if all came, else (kind, text) of the error that all are told."""
    came: dict[int, tuple[str, socket.socket]] = {}
    told = None
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen at port {port}: {error.strerror}; take another port"
            ) from error
        while told is None and len(came) < processes - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                other = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, processes)) - set(came))
                names = ", ".join(map(str, missing[:20])) + (" ..." if len(missing) > 20 else "")
                text = (
                    f"process {names} of {processes} did not come within {timeout:g} s; the same "
                    "command must run on every host, each with its own process_id"
                )
                told = ("TimeoutError", text)
                break
            said = _line(other)
            if said is None:  # not one of ours
                continue
            number, of, who = said
            if of != processes or not 0 < number < processes:
                text = (
                    f"{who} was started as process {number} of {of}, and process 0 ({me}) counts "
                    f"{processes}: give all the same num_processes"
                )
                told = ("ValueError", text)
            elif number in came:
                text = f"{came[number][0]} and {who} were both started as process {number}"
                told = ("ValueError", f"{text}: give each its own process_id")
            came.setdefault(number, (who, other))
            if told is not None:
                came[processes] = (who, other)  # to tell it, too
        for _, other in came.values():
            with contextlib.suppress(OSError):
                other.sendall(json.dumps(told).encode() + b"\n")
        for _, other in came.values():  # they close first, so that the port is free for JAX
            with contextlib.suppress(OSError):
                other.settimeout(1)
                other.recv(1)
    return told


def _answer(host, port, processes, process, me, end, timeout):
    """Another process: None if all came, else (kind, text) of the error."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.sendall(json.dumps([process, processes, me]).encode() + b"\n")
                server.settimeout(max(1.0, end - time.monotonic() + 5))
                with server.makefile("r") as lines:
                    text = lines.readline(65536)
            if text:
                return json.loads(text)
        except (OSError, ValueError):
            pass
        if time.monotonic() > end:
            text = (
                f"process 0 of {processes}, the coordinator at {host}:{port}, did not answer "
                f"{me} within {timeout:g} s: does it run, and can its port be reached?"
            )
            return "TimeoutError", text
        time.sleep(0.1)


def _line(other: socket.socket):
    """(number, of how many, who) as a process says it, or None from anybody else."""
    other.settimeout(5)
    try:
        with other.makefile("r") as lines:
            number, of, who = json.loads(lines.readline(1024))
    except (OSError, ValueError, TypeError):
        return None
    if type(number) is not int or type(of) is not int or type(who) is not str:
        return None
    return number, of, who
