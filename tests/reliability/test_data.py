"""Data: every example once and in its place, or an error that names it; the counts of every commit.

The same functions run at their full counts by `python -m reliability nightly DP-01 DP-03 ...`.
"""

import ast
import json
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.data.reading import Stream
from reliability import data, sets
from reliability.children import child


def passed(found, count):
    assert not found["failures"], "\n".join(found["failures"][:5])
    assert found["count"] == count


TASK = nk.objective(
    lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"].mean(axis=1, keepdims=False)) ** 2
)


@pytest.fixture(scope="module")
def step():
    return nk.step(nk.gradient(TASK), optax.sgd(0.1))


# DP-01


def test_readers_that_break():
    passed(data.broken(count=20, seed=0), 20)


@pytest.mark.nightly
def test_nothing_is_left_of_a_killed_program():
    passed(data.orphans(count=4, seed=0), 4)


def test_fit_says_which_example_cannot_be_read(step):
    def fault(x):
        raise OSError("sector 7 is damaged")

    class Wide(data.Numbered):
        def take(self, indices):
            return {"x": np.repeat(super().take(indices)["x"][:, None], 2, axis=1)}

    source = Wide(40, 23, fault)
    batches = nk.data.Batches(source, 4, shuffle=False).reading(workers=2)
    state = nk.init(step, jax.random.key(0), next(iter(batches)))
    _ = batches.fingerprint  # fit compares it, and would look at this example before
    source.armed = True
    with pytest.raises(OSError, match=r"sector 7 is damaged") as caught:
        nk.fit(step, state, batches, steps=10, progress=False)
    (note,) = (n for n in caught.value.__notes__ if "while reading" in n)
    assert "batch 5 of data (examples 20, 21, 22, 23) in thread nnkit-reader-" in note
    assert "example 23 alone raises OSError" in note
    with pytest.raises(OSError, match="sector 7") as caught:
        _ = nk.data.Batches(source, 4).fingerprint
    assert "example 23 alone raises OSError" in caught.value.__notes__[0]


@pytest.mark.parametrize(("workers", "ahead"), [(0, True), (1, True), (1, False)])
def test_a_source_that_hangs_is_named_with_the_line_where_it_stands(workers, ahead):
    gate = threading.Event()

    def stuck(x):
        gate.wait(30)
        return x

    source = data.Numbered(8, 5, stuck)
    batches = nk.data.Batches(source, 2, shuffle=False).reading(workers=workers, timeout=0.3)
    source.armed = True
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no batch came within 0.3 s") as caught:
        list(nk.data.prefetch(batches) if ahead else batches)
    gate.set()
    assert data.alone()
    assert 0.3 <= time.monotonic() - began < 3
    thread = "nnkit-reader-0" if workers else "nnkit-prefetch"
    text = str(caught.value)
    assert f"batch 2 of data (examples 4, 5), in thread {thread} at " in text
    assert "reading(timeout=600)" in text


STOPPED = """
import time
import nnkit as nk
from reliability.data import Numbered

class Slow(Numbered):
    def take(self, indices):
        time.sleep(0.05)
        return super().take(indices)

batches = nk.data.Batches(Slow(400), 4).reading(workers=1, timeout=2)
print("reading", flush=True)
print(len(list(nk.data.prefetch(batches))), flush=True)
"""


@pytest.mark.nightly
def test_a_stop_of_the_program_is_no_hang():
    """The seconds are counted one by one: SIGSTOP or a closed lid is no hung source."""
    with child(STOPPED) as one:
        one.until("reading")
        time.sleep(0.5)
        one.send(signal.SIGSTOP)
        time.sleep(6)
        one.send(signal.SIGCONT)
        ended = one.wait(60)
    assert (ended.code, ended.out.split()[-1]) == (0, "100"), ended.err


def test_ctrl_c_in_the_middle_of_reading_loses_no_batch():
    pressed = []

    def once(x):
        if not pressed:
            pressed.append(1)
            raise KeyboardInterrupt
        return x

    source = data.Numbered(6, 3, once)
    stream = nk.data.Batches(source, 2, shuffle=False).stream()
    source.armed = True
    assert next(stream)["y"].tolist() == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert [next(stream)["y"].tolist() for _ in range(2)] == [[2, 3], [4, 5]]


def test_a_thread_that_dies_elsewhere_is_an_error():
    def rows():
        yield np.array([0])
        raise MemoryError("no order for this epoch")

    stream = Stream(lambda rows: {"y": rows}, rows(), workers=2)
    assert next(stream)["y"].tolist() == [0]
    with pytest.raises(RuntimeError, match=r"thread nnkit-reader-\d, which reads data, died: Mem"):
        next(stream)


# DP-02


def test_a_generator_that_rejects_everything_does_not_hang(step):
    over = threading.Event()

    def rejecting():
        yield {"x": np.ones((2, 4), np.float32)}
        while not over.wait(1e-3):
            pass

    state = nk.init(step, jax.random.key(0), {"x": np.ones((2, 4), np.float32)})
    endless = nk.data.prefetch(rejecting(), timeout=0.3)
    with pytest.raises(TimeoutError, match=r"within 0.3 s.*does a filter reject everything"):
        nk.fit(step, state, endless, steps=5, progress=False)
    over.set()
    endless._thread.join(5)


# DP-03, DP-05, DT-04


def test_every_example_once():
    passed(data.coverage(count=100, seed=0), 100)


def test_shares_of_processes():
    passed(data.shares(count=200, seed=0), 200)


@pytest.mark.nightly
def test_two_processes_read_in_step():
    passed(data.together(count=40, seed=0), 40)


def test_whoever_reads_the_bits_are_the_same():
    found = data.workers(count=12, seed=0)
    passed(found, 12)
    assert found["data sets"] == 1


# DP-04, SE-07


def test_damaged_sets_are_noticed():
    found = sets.damaged(count=30, seed=0)
    passed(found, 30)
    assert found["refused"] >= 15


def test_downloads_that_are_not_what_was_promised():
    passed(sets.downloads(count=7, seed=0), 7)


def test_preparing_is_killed():
    passed(sets.killed(count=5, seed=0), 5)


def test_features_of_a_set_name_no_other_code():
    with sets.alone() as folder:
        sets.read(sets.SETS[0], folder)
        path = folder / sets.SETS[0] / "1.0.0" / "features.json"
        text = path.read_text()
        tree = json.loads(text)
        for name in ("os.system", "tensorflow_datasets.core.featuresx.Text", 7, ["os", "x"]):
            tree["featuresDict"]["features"]["x"]["pythonClassName"] = name
            path.write_text(json.dumps(tree))
            with pytest.raises(
                ValueError, match=r"features.json of .* names the class .*other code"
            ):
                sets.read(sets.SETS[0], folder)
        path.write_text("[" * 100_000)
        with pytest.raises(ValueError, match=r"features.json cannot be read .*copy it again"):
            sets.read(sets.SETS[0], folder)
        path.write_text(text)
        assert sets.right(sets.read(sets.SETS[0], folder))


def test_a_set_without_its_description_is_not_taken_for_prepared():
    with sets.alone() as folder:
        sets.read(sets.SETS[0], folder)
        place = folder / sets.SETS[0] / "1.0.0"
        (place / "dataset_info.json").unlink()
        with pytest.raises(
            ValueError, match=r"1.0.0 is no whole data set: dataset_info.json is mi"
        ):
            sets.read(sets.SETS[0], folder)
        shutil.rmtree(place)
        assert sets.right(sets.read(sets.SETS[0], folder))


NETWORK = {"http", "urllib.request", "requests", "httpx", "aiohttp", "ftplib", "socket", "ssl"}


def test_nothing_in_the_package_opens_a_connection_of_its_own():
    """What is downloaded comes through TFDS (SHA-256 demanded) or huggingface_hub."""
    package = Path(nk.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name in NETWORK or name.split(".")[0] in NETWORK:
                    found.add((path.relative_to(package).as_posix(), name.split(".")[0]))
    words = ("urlopen", "urlretrieve", "wget ", "curl ")
    texts = {p for p in package.rglob("*.py") if any(w in p.read_text() for w in words)}
    assert {p for p, name in found if name != "socket"} == set()
    assert {p for p, name in found} <= ROLL_CALL
    assert not texts


# the roll call of processes; the name of this host in locks and logs; a pair for signals
ROLL_CALL = {"parallel/roll.py", "parallel/hosts.py", "checkpoint/locks.py", "loop/interrupts.py"}


# DP-06


def aligned(shape):
    """Zeros at an address that jax uses in place on CPUs."""
    raw = np.zeros(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : raw.size - 64 + start].view(np.float32).reshape(shape)


def filled(n, one):
    """n batches in the same memory, or each in its own."""
    for i in range(n):
        one[:] = i
        yield {"x": one}


def test_batches_may_be_made_in_the_same_memory(step):
    def trained(batches):
        state = nk.init(step, jax.random.key(0), {"x": np.zeros((4, 64), np.float32)})
        state, rows = nk.fit(step, state, batches, steps=30, log_every=1, progress=False)
        return float(state.params), [row["loss"] for row in rows]

    own = [{"x": np.full((4, 64), i, np.float32)} for i in range(30)]
    right = trained(own)
    assert trained(filled(30, aligned((4, 64)))) == right
    assert trained(nk.data.prefetch(filled(30, aligned((4, 64))), 4)) == right


def test_a_list_of_batches_may_be_changed_while_training(step):
    def trained(change):
        batches = [{"x": aligned((4, 64)) + i} for i in range(3)]
        batches[1]["x"] = aligned((4, 64))
        state = nk.init(step, jax.random.key(0), batches[0])

        def hook(params, carry):
            for batch in batches if change else ():
                batch["x"][:] = 1e9

        return nk.fit(step, state, batches, steps=9, every={1: hook}, progress=False)[0].params

    assert float(trained(True)) == float(trained(False))


def test_evaluation_of_batches_made_in_the_same_memory():
    class Again:
        def __init__(self, one):
            self.one = one

        def __iter__(self):
            return filled(6, self.one)

    value = nk.evaluate(TASK, Again(aligned((4, 64))))(jnp.float32(0), {})["loss"]
    assert value == np.mean(np.arange(6.0) ** 2)


def test_a_source_may_give_the_same_memory_for_every_batch(step):
    class Reusing:
        memory = aligned((4, 64))

        def __len__(self):
            return 40

        def take(self, rows):
            out = self.memory[: len(rows)]
            out[:] = rows[:, None]
            return {"x": out}

    batches: Any = nk.data.prefetch(nk.data.Batches(Reusing(), 4, shuffle=False), 8)
    found = [int(batch["x"][0, 0]) for batch in batches]
    assert found == list(range(0, 40, 4))
