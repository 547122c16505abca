"""Many processes as one program: what they say to each other, and how they fail together."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import launching
import pytest

import nnkit as nk
from nnkit.parallel import roll


def test_one_process_needs_nobody():
    assert (nk.hosts.count(), nk.hosts.first(), nk.hosts.who(0)) == (1, True, "process 0 of 1")
    assert nk.hosts.gathered([1, "ä"]) == [[1, "ä"]]
    assert nk.hosts.shared(None) is None
    nk.hosts.agree({"x": 1})
    nk.hosts.barrier("x")
    with pytest.raises(ZeroDivisionError):
        nk.hosts.unanimous(lambda: 1 // 0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="mine"), nk.hosts.together():
        raise jax.errors.JaxRuntimeError("mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_processes": 2, "process_id": 2}, r"process_id is 2, expected 0 to 1"),
        ({"num_processes": 0}, r"num_processes is 0, expected an int >= 1"),
        ({"timeout": 0}, r"timeout is 0, expected whole seconds >= 1; 30 is usual"),
        ({"heartbeat": 0.5}, r"heartbeat is 0.5, expected whole seconds"),
    ],
)
def test_numbers_that_cannot_be_right(words, message):
    with pytest.raises(ValueError, match=message):
        nk.hosts.start("localhost:1", **words)


def test_start_after_jax_was_used_says_so():
    jax.devices()
    with pytest.raises(RuntimeError, match=r"came after JAX was used .* make it the first line"):
        nk.hosts.start("localhost:1", 2, 0)


def test_without_a_cluster_it_says_how_to_give_one(monkeypatch):
    def nothing_found(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    with pytest.raises(ValueError, match=r"no cluster was found .* start\('host0:1234', num_proc"):
        nk.hosts.start()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What the two processes of "words" found; beside it, one each that waits for the other."""
    folder = tmp_path_factory.mktemp("hosts")
    job = launching.Job(folder, "words")
    zero = launching.Job(folder, "words", which=[0], WAIT="3")
    one = launching.Job(folder, "words", which=[1], WAIT="3")
    return job.found(), zero, one


def test_what_processes_say_to_each_other(jobs):
    (zero, one), *_ = jobs
    assert (zero["count"], one["count"]) == ([2, True, 8], [2, False, 8])
    for said in (zero, one):
        assert said["gathered"] == [{"i": 0, "text": "ä"}, {"i": 1, "text": "ää"}]
        assert said["shared"] == {"from": 0}
        assert said["agree"] is None
        assert said["twice"] == [None, None]
        assert said["barrier"] == [None, None]
    assert (zero["fine"], one["fine"]) == (0, 1)


def test_who_differs_in_what_is_named_everywhere(jobs):
    (zero, one), *_ = jobs
    for said in (zero, one):
        text = said["differ"]
        assert text.startswith("ValueError: the processes do not agree on the run: process 1 of 2")
        assert "differs from process 0 of 2 (" in text
        assert "rate is 0.2, there 0.1; start all of them with the same code" in text
        assert "code is" not in text
        assert "steps is 3, there nothing" in said["field"]
        assert "key is [0, 1], there [0, 0]" in said["keys"]
        assert "first batch is" in said["lists"]
        assert "give every process the whole batch" in said["lists"]
        assert "data.seed is 2, there 1" in said["seeds"]
        assert "8 devices by nk.shard(step, nk.mesh(data=8)" in said["apart"]


def test_what_fails_in_one_fails_in_all_by_name(jobs):
    (zero, one), *_ = jobs
    assert zero["fails"].startswith("ZeroDivisionError")
    assert one["fails"].startswith("RuntimeError: process 0 of 2 (")
    assert "failed: ZeroDivisionError" in one["fails"]
    assert zero["alone"].startswith("TimeoutError: barrier 'only one': process 1 of 2 (")
    assert "did not come in 1 s" in zero["alone"]
    assert "this process was started with process_id=0" in zero["other"]


def test_a_process_that_is_missing_at_the_start_is_named(jobs):
    _, zero, one = jobs
    assert zero.codes() == [1]
    assert "TimeoutError: process 1 of 2 did not come within 3 s" in zero.errors[0]
    assert one.codes() == [1]
    assert "process 0 of 2, the coordinator at localhost" in one.errors[1]


def called(numbers, timeout=20.0):
    """What the roll call says to processes started as (number, of how many)."""
    address = f"localhost:{launching.free_port()}"

    def one(pair):
        try:
            roll.call(address, pair[1], pair[0], f"host{pair[0]}", timeout)
        except (TimeoutError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_the_roll_call():
    assert called([(i, 5) for i in range(5)]) == [""] * 5
    assert called([(0, 1)]) == [""]
    told = called([(0, 4), (2, 4)], timeout=0.5)
    assert set(told) == {told[0]}
    assert told[0].startswith("TimeoutError: process 1, 3 of 4 did not come within 0.5 s; the same")
    told = called([(0, 3), (1, 3), (1, 3)])
    assert set(told) == {told[0]}
    assert told[0].startswith("ValueError: host1 and host1 were both started as process 1: give")
    told = called([(0, 2), (2, 3)])
    assert told[0] == told[1]
    assert "host2 was started as process 2 of 3, and process 0 (host0) counts 2" in told[0]
    (told,) = called([(1, 2)], timeout=0.5)
    assert "process 0 of 2, the coordinator at localhost:" in told
    assert "did not answer host1 within 0.5 s: does it run" in told


def test_the_roll_call_ignores_others_who_knock():
    port, found = launching.free_port(), []
    with ThreadPoolExecutor(2) as pool:
        zero = pool.submit(roll.call, f"localhost:{port}", 2, 0, "host0", 20.0)
        for words in (b"GET / HTTP/1.1\n", b"[1, 2]\n", b'["1", 2, "x"]\n', b""):
            while True:
                try:
                    with socket.create_connection(("localhost", port)) as knock:
                        knock.sendall(words)
                    break
                except OSError:
                    time.sleep(0.01)
            found.append(zero.done())
        pool.submit(roll.call, f"localhost:{port}", 2, 1, "host1", 20.0).result()
        zero.result()
    assert found == [False] * 4


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"process 0 cannot listen at port {port}: .*another"):
            roll.call(f"localhost:{port}", 2, 0, "host0", 1.0)


@pytest.mark.parametrize(("count", "rank"), roll.TOLD)
def test_the_numbers_of_a_scheduler_are_read(monkeypatch, count, rank):
    for name in (*sum(roll.TOLD, ()), "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert roll.numbers(None, None, None) is None
    monkeypatch.setenv(count, "4")
    monkeypatch.setenv(rank, "3")
    assert roll.numbers(None, None, None) is None  # the address is known to JAX alone
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:1234")
    assert roll.numbers(None, None, None) == ("node0:1234", 4, 3)
    assert roll.numbers("here:1", 2, 0) == ("here:1", 2, 0)
