"""Every way out of a process with a save in flight; two processes that want one run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from reliability import progress
from reliability.children import child
from reliability.forks import Forks
from reliability.kills import drawn, hidden

__all__ = ["blocked", "every_way", "failed_saves", "races"]

WAYS = ("return", "sys.exit", "exception", "SIGINT", "SIGTERM", "SIGHUP", "kernel")
NUMBERS = 25_000
SLICE = 10.0  # milliseconds: what threads of Python wait for each other, whatever is saved
KERNEL = """
import os; os.environ["NNKIT_FAILPOINTS"] = "save.manifest=sleep:{pause}"
from reliability import exits
exits.begin({folder!r}, 0.0)
"""


def begin(folder: str, pause: float):
    """Saves step 1, then starts to save step 2; the saver."""
    from nnkit.checkpoint import Checkpoints
    from nnkit.core import failpoints

    saver = Checkpoints(folder)
    saver.save(1, drawn(1, NUMBERS), position=1)
    saver.wait()
    if pause:
        failpoints._plan = failpoints.Plan(failpoints.parsed(f"save.manifest=sleep:{pause}"))
    saver.save(2, drawn(2, NUMBERS), position=2)
    print("saving", flush=True)
    return saver


def leave(folder: str, way: str, pause: float, fails: bool) -> None:
    """Ends in one of many ways while the save of step 2 is in flight."""
    from nnkit.core import failpoints

    # a copy of a process in the background may have inherited that SIGINT is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if fails:
        failpoints._plan = failpoints.Plan(failpoints.parsed("save.rename=EIO@2"))
    saver = begin(folder, 0.0 if fails else pause)
    if way == "sys.exit":
        sys.exit(0)
    if way == "exception":
        raise KeyError("mine")
    if way.startswith("SIG"):  # not one long sleep: Python runs no handler inside of a call into C
        for _ in range(400):
            time.sleep(0.05)
    del saver


def every_way(count: int, seed: int) -> dict:
    """Ends a process while it saves: by return, sys.exit, exception, signals, restart of a kernel.

    The save must be committed, or the exit code must not be 0 and a message say why; within the
    time of the save + 5 s. In one trial of five the save fails.

    Args:
      count: trials, the ways in turn; a kernel only where jupyter_client is installed.
      seed: of the times.

    Returns:
      count, failures, committed, told (failed saves with a code and a message), slowest (s).
    """
    kernels = importlib.util.find_spec("ipykernel") and importlib.util.find_spec("jupyter_client")
    ways = WAYS if kernels else WAYS[:-1]
    failures, committed, told, slowest = [], 0, 0, 0.0
    with tempfile.TemporaryDirectory() as root, Forks("exits") as forks:
        for trial in range(count):
            rng, way = random.Random(f"{seed}-{trial}"), ways[trial % len(ways)]
            folder, pause = Path(root, str(trial)), round(0.05 + 1.2 * rng.random(), 3)
            fails = way != "kernel" and trial % 5 == 0
            name = f"seed {seed}, trial {trial}, {way}, {'failing ' if fails else ''}save"
            if way == "kernel":
                seconds, problems = restarted(folder, pause)
            else:
                options = {"way": way, "pause": pause, "fails": fails}
                seconds, problems = left(forks, folder, rng, **options)
            steps = steps_of(folder)
            committed, told = committed + (2 in steps), told + (2 not in steps and not problems)
            if not fails and 2 not in steps:
                problems.append(f"the steps are {steps}")
            if hidden(folder):
                problems.append(f"{hidden(folder)} are left")
            slowest = max(slowest, seconds - pause)
            if seconds > pause + 5:
                problems.append(f"it took {seconds:.1f} s with a save of {pause} s")
            failures += [f"{name}: {why}" for why in problems]
            progress(f"exit {trial + 1} of {count}: {name}, {len(failures)} failures")
    return {
        "count": count, "failures": failures, "committed": committed, "told": told,
        "slowest": round(slowest, 2),
    }  # fmt: skip


def steps_of(folder: Path) -> list[int]:
    from nnkit.checkpoint import Checkpoints, verify

    steps = Checkpoints(folder).steps()
    return [step for step in steps if not verify(folder / f"{step:08d}")]


def left(forks: Forks, folder: Path, rng, way: str, pause: float, fails: bool):
    """(seconds, problems) of one process that ends."""
    forks.start("leave", folder=str(folder), way=way, pause=pause, fails=fails)
    forks.until("saving")
    began = time.monotonic()
    if way.startswith("SIG"):
        forks.kill(pause * rng.random(), getattr(signal, way))
    ended = forks.wait(40)
    seconds, problems = time.monotonic() - began, []
    wanted = {"return": 0, "sys.exit": 0, "exception": 1, "SIGINT": None, "SIGTERM": -15}
    code = 1 if fails and way in ("return", "sys.exit") else wanted.get(way, -1)
    if way == "SIGINT":  # an uncaught KeyboardInterrupt; 1 if the save failed, too
        code = ended.code if ended.code in (-2, 130, 1) else -2
    if ended.code != code:
        problems.append(f"ended with {ended.code}, expected {code}: {forks.child.said()[-1000:]}")
    end = time.monotonic() + 10  # what it said comes through a pipe of its own
    while fails and "failed" not in forks.child.said() and time.monotonic() < end:
        time.sleep(0.05)
    if fails and "failed" not in forks.child.said():
        problems.append("the failed save was not told")
    return seconds, problems


def restarted(folder: Path, pause: float):
    """(seconds, problems) of a kernel of Jupyter that is restarted while it saves."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=120)
    try:
        here = str(Path(__file__).resolve().parents[1])
        code = f"import sys; sys.path.insert(0, {here!r})\n"
        code += KERNEL.format(pause=pause, folder=str(folder))
        reply = client.execute_interactive(code, timeout=120, output_hook=lambda _: None)
        began = time.monotonic()
        manager.restart_kernel(now=False)
        seconds = time.monotonic() - began
        bad = reply["content"]["status"] != "ok"
        return seconds, [str(reply["content"])[:500]] if bad else []
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def failed_saves(count: int, seed: int) -> dict:
    """A save in the background fails: told at the next step, never listed, training can go on.

    Args:
      count: failures.
      seed: of the point that fails, and of how.

    Returns:
      count, failures, slowest (s of a check).
    """
    from nnkit.checkpoint import Checkpoints
    from nnkit.core import failpoints

    failures, slowest = [], 0.0
    names = [n for n in failpoints.names() if n.startswith("save.") and n != "save.parts"]
    names = names[: names.index("save.renamed")]  # after the rename it is committed
    for trial in range(count):
        rng = random.Random(f"{seed}-{trial}")
        rule = f"{rng.choice(names)}={rng.choice(['ENOSPC', 'EIO', 'EACCES'])}"
        told = f"seed {seed}, trial {trial}, {rule}"
        with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saver:
            saver.save(1, drawn(1, 100), position=1)
            saver.wait()
            plan = failpoints.Plan(failpoints.parsed(f"save.begin=sleep:0.05,{rule}"))
            failpoints._plan = plan
            try:
                saver.save(2, drawn(2, 100), position=2)
                seen, end = [], time.monotonic() + 20
                while not seen and time.monotonic() < end:
                    began = time.perf_counter()
                    try:
                        saver.check()
                    except RuntimeError as error:
                        seen.append(str(error))
                    slowest = max(slowest, time.perf_counter() - began)
                    if saver.latest() != 1:
                        failures.append(f"{told}: the latest is {saver.latest()}")
                    time.sleep(0.002)
            finally:
                failpoints._plan = None
            if not seen or folder not in seen[0] or "step 2" not in seen[0]:
                failures.append(f"{told}: told {seen}")
            saver.check()  # once
            saver.save(2, drawn(2, 100), position=2)
            saver.wait()
            if saver.steps() != [1, 2] or hidden(Path(folder)):
                failures.append(f"{told}: the steps are {saver.steps()}")
    return {"count": count, "failures": failures, "slowest": round(slowest, 4)}


def contend(folder: str, rounds: int, name: str) -> None:
    """Takes the lock of a new folder in every round, at the moment that the other does."""
    from nnkit.checkpoint.locks import Lock, Locked

    print("ready", flush=True)
    for i in range(rounds):
        place = Path(folder, str(i))
        line = sys.stdin.readline()  # "go TIME"
        if not line:
            return
        time.sleep(max(0.0, float(line.split()[1]) - time.time()))
        lock = Lock(place)
        try:
            lock.take()
        except Locked as error:
            print("refused", str(error), flush=True)
            sys.stdin.readline()
            continue
        with contextlib.suppress(FileExistsError):
            os.close(os.open(place / f"writer-{name}", os.O_CREAT | os.O_EXCL))
        print("got it", flush=True)
        sys.stdin.readline()  # until both have answered
        lock.release()


def races(count: int, seed: int) -> dict:
    """Two processes take the lock of one folder at once; in every third a dead one had it before.

    Args:
      count: races.
      seed: of how far apart they start, 0 to 3 ms.

    Returns:
      count, failures, writers (of all races; it must be count).
    """
    script = "import sys; from reliability import exits; exits.contend(sys.argv[1], "
    failures, writers = [], 0
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(child(f"{script}{count}, {name!r})", root)) for name in ("a", "b")
        ]
        for trial in range(count):
            rng, place = random.Random(f"{seed}-{trial}"), Path(root, str(trial))
            place.mkdir()
            if stale := trial % 3 == 2:
                (place / ".lock").write_text(stale_record())
            if not trial:
                for one in both:
                    one.until("ready")
            when = time.time() + 0.02
            for one in both:
                one.say(f"go {when + 0.003 * rng.random()}")
            said = [next(one.lines(60)) for one in both]
            for one in both:
                one.say("next")
            got = sum(line == "got it" for line in said)
            there = len(list(place.glob("writer-*")))
            writers += there
            refused = [line for line in said if line.startswith("refused")]
            name = f"seed {seed}, race {trial}{', stale' if stale else ''}"
            if got != 1 or there != 1:
                failures.append(f"{name}: {got} got it, {there} wrote: {said}")
            other = [one.pid for one, line in zip(both, said) if line == "got it"]
            for line in refused:
                if other and f"process {other[0]} on " not in line:
                    failures.append(f"{name}: {line}")
            progress(f"race {trial + 1} of {count}, {len(failures)} failures")
    return {"count": count, "failures": failures, "writers": writers}


def stale_record() -> str:
    """What a process of this machine that was killed leaves in its lock."""
    import json

    from nnkit.checkpoint import locks

    return json.dumps(locks._me() | {"pid": 2**22 + 1, "since": time.time() - 100, "token": "0"})


def blocked(count: int, seed: int, megabytes=(0.1, 10.0, 100.0)) -> dict:
    """How long `save` holds up training, against the time of one step.

    A multilayer perceptron with momentum on batches of 256; the median of the steps, and of the
    calls of `save` with nothing in flight. It may take as long as a step, or `SLICE`.

    Args:
      count: saves of each size.
      seed: of the weights.
      megabytes: of the states.

    Returns:
      count, failures, and for each size the milliseconds of a step and of a save.
    """
    import jax
    import numpy as np
    import optax

    import nnkit as nk

    failures, figures = [], {}
    for size in megabytes:
        width = max(8, int((size * 125_000 / 3) ** 0.5))
        model = nk.models.MLP((width, width, width))
        task = nk.supervised(model, lambda y, x: ((y - x) ** 2).mean(-1), x="x", y="x")
        step = nk.step(nk.gradient(task), optax.sgd(1e-3, momentum=0.9))
        batch = {"x": np.random.default_rng(seed).random((256, width), np.float32)}
        state = nk.init(step, jax.random.key(seed), batch)
        update = jax.jit(step.update, donate_argnums=0)
        steps, saves = [], []
        with tempfile.TemporaryDirectory() as folder, nk.Checkpoints(folder, keep_last=1) as saver:
            for i in range(4 + 4 * count):
                began = time.perf_counter()
                state, _ = jax.block_until_ready(update(state, batch))
                if i >= 3:
                    steps.append(time.perf_counter() - began)
                if i >= 4 and i % 4 == 0:
                    began = time.perf_counter()
                    saver.save(i, state)
                    saves.append(time.perf_counter() - began)
                    saver.wait()
        one, other = 1e3 * float(np.median(steps)), 1e3 * float(np.median(saves))
        figures[f"step_ms_{size}_MB"] = round(one, 2)
        figures[f"save_ms_{size}_MB"] = round(other, 2)
        if other > max(one, SLICE):
            failures.append(f"{size} MB: save blocks {other:.1f} ms, a step takes {one:.1f} ms")
        progress(f"{size} MB: save blocks {other:.1f} ms, a step takes {one:.1f} ms")
    return {"count": count * len(megabytes), "failures": failures, **figures}


WORKS: dict[str, Callable] = {"leave": leave}
