"""SIGTERM, notebooks and damaged caches: processes that are ended, interrupted, started again."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from pathlib import Path

import nnkit as nk
from reliability import progress
from reliability.children import child
from reliability.interrupts import alike, begun, ingredients, reference

__all__ = ["cache", "notebooks", "terminated"]

TRAINING = """
    import sys, time
    print("importing", flush=True)
    import jax, optax
    import nnkit as nk
    from reliability import interrupts

    phase, folder = sys.argv[1], sys.argv[2]
    task, step, train, test = interrupts.ingredients()


    class Slow:
        fingerprint, spec = train.fingerprint, train.spec

        def stream(self, start=0):
            for i, batch in enumerate(train.stream(start), start):
                if phase == "data" and i == 5:
                    print("data", flush=True)
                    time.sleep(40)
                yield batch


    def hook(params, carry):
        number[0] += 1
        print("step", number[0], flush=True)
        if phase == "evaluation" and number[0] == 9:
            print("evaluation", flush=True)
            time.sleep(60)
        if phase in ("step", "twice"):
            time.sleep(0.01)


    if phase == "compile":
        one = step.update

        def update(state, batch):
            print("compile", flush=True)
            time.sleep(3)  # tracing and compiling take their time
            return one(state, batch)

        step = step._replace(update=update)
    state = interrupts.begun()
    steps = int(sys.argv[3])
    with nk.Run(folder, {"a": 1}, save_every=10) as run:
        number = [run.checkpoints.latest() or 0]
        nk.fit(step, state, Slow(), steps=steps, every={1: hook}, run=run, progress=False)
    print("digest", nk.digest(nk.Checkpoints(folder + "/checkpoints").restore(state).state))
"""
PHASES = ("import", "data", "compile", "step", "evaluation", "save", "twice")
WAITS = {"import": "importing", "data": "data", "compile": "compile", "evaluation": "evaluation"}


def terminated(count: int, seed: int, phases=PHASES) -> dict:
    """PR-01: SIGTERM in import, data, compile, step, evaluation, save: out in 25 s, by 143.

    143 is what a shell calls both a process that SIGTERM ended and one that ended with this code.
    Of what was trained at most one step is lost, and the same command goes on from there.
    """
    failures, slowest = [], 0.0
    for trial in range(count):
        phase, draw = phases[trial % len(phases)], random.Random(f"{seed}-{trial}")
        with tempfile.TemporaryDirectory() as folder:
            problem, seconds = _told_to_end(phase, folder, draw)
        slowest = max(slowest, seconds)
        if problem:
            failures.append(f"seed {seed} trial {trial} ({phase}): {problem}")
        progress(f"SIGTERM: {trial + 1} of {count} ({phase}, {seconds:.1f} s): {problem or 'well'}")
    return {"count": count, "failures": failures, "slowest_exit_s": round(slowest, 2)}


def _told_to_end(phase: str, folder: str, draw: random.Random) -> tuple[str, float]:
    """One trial: (what is wrong or "", seconds from the signal to the end)."""
    env = alike()
    if phase in ("save", "twice"):
        env["NNKIT_FAILPOINTS"] = "save.arrays=sleep:1.0"
    with child(textwrap.dedent(TRAINING), phase, folder, 100_000, env=env) as process:
        first = WAITS.get(phase, f"step {draw.randint(11, 19) if phase == 'save' else 8}")
        process.until(first, timeout=90)
        time.sleep(draw.uniform(0.0, 0.3) if phase != "save" else 0.0)
        began = time.monotonic()
        process.send(signal.SIGTERM)
        if phase == "twice":
            time.sleep(draw.uniform(0.05, 0.4))
            process.send(signal.SIGTERM)
        ended = process.wait(60)
    seconds = time.monotonic() - began
    if ended.code not in (143, -signal.SIGTERM):
        return f"exit code {ended.code}, expected 143: {ended.err[-800:]}", seconds
    if seconds > (5 if phase == "twice" else 25):
        return f"it took {seconds:.1f} s", seconds
    told = [int(line.split()[1]) for line in ended.out.splitlines() if line.startswith("step ")]
    saved = nk.Checkpoints(Path(folder) / "checkpoints")
    latest, problems = saved.latest() or 0, []
    if latest:
        problems = nk.checkpoint.verify(saved.folder)
    if problems:
        return f"a checkpoint is damaged: {problems[0]}", seconds
    lost = max(told, default=0) - latest
    if phase in ("data", "step", "evaluation", "save") and lost > 1:
        return f"{lost} steps lost: told {max(told)}, saved {latest}", seconds
    if latest:
        restored = saved.restore(begun())
        if nk.digest(restored.state) != reference(latest):
            return f"the checkpoint of step {latest} holds another state", seconds
    return "", seconds


# -------------------------------------------------------------------------- compilation cache

CACHED = """
    import sys, warnings
    from pathlib import Path
    import jax, random
    import nnkit as nk
    from nnkit.cli.train import cache_programs
    from reliability import interrupts

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


    def digest():
        jax.clear_caches()
        interrupts.plain.cache_clear()
        interrupts.ingredients.cache_clear()
        _, step, train, _ = interrupts.ingredients()
        state, rows = nk.fit(step, interrupts.begun(), train, steps=5, progress=False)
        return nk.digest(state)


    wanted = digest()
    print("files", len([p for p in folder.iterdir() if p.name.endswith("-cache")]), flush=True)
    for trial in range(count):
        draw = random.Random(f"{seed}-{trial}")
        damage = draw.choice(["bit", "zeros", "cut", "empty", "garbage", "folder", "gone"])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for path in [p for p in folder.iterdir() if p.name.endswith("-cache") and p.is_file()]:
                data = bytearray(path.read_bytes())
                if damage == "bit" and data:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                elif damage == "zeros":
                    at = draw.randrange(max(1, len(data)))
                    data[at : at + 4096] = bytes(len(data[at : at + 4096]))
                elif damage == "cut":
                    data = data[: draw.randrange(max(1, len(data)))]
                elif damage == "empty":
                    data = bytearray()
                elif damage == "garbage":
                    data = bytearray(draw.randbytes(len(data)))
                path.unlink()
                if damage == "folder":
                    path.mkdir()
                elif damage != "gone":
                    path.write_bytes(data)
            same = digest() == wanted
        print("trial", trial, damage, "same" if same else "OTHER", len(said), flush=True)
        for path in folder.iterdir():
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        digest()
"""


def cache(count: int, seed: int) -> dict:
    """PR-07: every file of the compilation cache is damaged: a warning, and the same results."""
    failures, warned = [], 0
    with tempfile.TemporaryDirectory() as folder:
        env = {"JAX_COMPILATION_CACHE_DIR": folder, "NNKIT_CACHE": folder}
        with child(textwrap.dedent(CACHED), folder, count, seed, env=env) as process:
            ended = process.wait(120 + 30 * count)
    trials = [line.split() for line in ended.out.splitlines() if line.startswith("trial ")]
    for _, trial, damage, verdict, said in trials:
        warned += int(said) > 0
        if verdict != "same":
            failures.append(f"seed {seed} trial {trial} ({damage}): another result")
        if damage not in ("gone", "zeros") and not int(said):
            failures.append(f"seed {seed} trial {trial} ({damage}): no warning")
    if ended.code != 0 or len(trials) != count:
        failures.append(
            f"seed {seed} trial {len(trials)}: the process ended with {ended.code} after "
            f"{len(trials)} of {count}: {ended.err[-1500:]}"
        )
    return {"count": len(trials), "failures": failures, "warned": warned}


# ----------------------------------------------------------------------------------- notebooks

SETUP = """
import time, jax, nnkit as nk
from reliability import interrupts
task, step, train, test = interrupts.ingredients()
slow = {1: lambda params, carry: time.sleep(0.01)}
"""
START = "state = interrupts.begun()"
FIT = "state, rows = nk.fit(step, state, train, steps=60, every=slow, progress=False)"
RECORDED = """
with nk.Run(folder, {"a": 1}, save_every=20) as run:
    state, rows = nk.fit(step, state, train, steps=60, every=slow, run=run, progress=False)
"""
LOOK = "if rows[-1].get('interrupted'): print('AT', rows[-1]['step'])"
SHOW = "print('DIGEST', nk.digest(state), rows[-1]['step'], len(rows))"
# what is done to a kernel: cells, "!" before one that is interrupted, "restart"
SCENARIOS: dict[str, list[str]] = {
    "from top to bottom": [SETUP, START, FIT, SHOW],
    "interrupted, the cell again": [SETUP, START, "!" + FIT, FIT, SHOW],
    "interrupted twice": [SETUP, START, "!" + FIT, "!" + FIT, FIT, SHOW],
    "interrupted, all cells again": [SETUP, START, "!" + FIT, SETUP, START, FIT, SHOW],
    "recorded": [SETUP, START, RECORDED, SHOW],
    "recorded, interrupted": [SETUP, START, "!" + RECORDED, RECORDED, SHOW],
    "recorded, restart": [SETUP, START, "!" + RECORDED, "restart", SETUP, START, RECORDED, SHOW],
    "recorded, all again": [SETUP, START, "!" + RECORDED, SETUP, START, RECORDED, SHOW],
    "recorded, finished, the cell again": [SETUP, START, RECORDED, RECORDED, SHOW],
    "wrong order": [SETUP, FIT, START, FIT, SHOW],
}


def notebooks(count: int, seed: int) -> dict:
    """PR-04: interrupt, rerun, restart, wrong order: the bits and rows of the plain script."""
    from jupyter_client.manager import KernelManager

    failures, reached = [], []
    every = {1: lambda params, carry: None}
    _, step, train, _ = ingredients()
    _, rows = nk.fit(step, begun(), train, steps=60, every=every, progress=False)
    wanted = f"DIGEST {reference(60)} 60 {len(rows)}"
    for trial in range(count):
        name, cells = list(SCENARIOS.items())[trial % len(SCENARIOS)]
        draw = random.Random(f"{seed}-{trial}")
        manager = KernelManager(kernel_name="python3")
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JAX_"))}
        with tempfile.TemporaryDirectory() as folder:
            manager.start_kernel(
                env={**kept, **alike(), "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
            )
            try:
                told = _session(manager, [f"folder = {folder!r}", *cells], draw, folder, reached)
            except Exception:
                told = traceback.format_exc()[-800:]
            finally:
                manager.shutdown_kernel(now=True)
        progress(f"notebook: {trial + 1} of {count} ({name})")
        if told.strip() != wanted:
            failures.append(f"seed {seed} trial {trial} ({name}): {told.strip()[-600:]}")
    return {"count": count, "failures": failures, "interrupted": len(reached)}


def _session(manager, cells: list[str], draw: random.Random, folder: str, reached: list) -> str:
    """Runs the cells; the output of the last one. `reached`: steps of interrupted fits."""
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    said: list[str] = []

    def heard(message):
        content = message["content"]
        said.append(content.get("text", "") or "\n".join(content.get("traceback", [])))

    for cell in cells:
        if cell == "restart":
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            client.execute_interactive(f"folder = {folder!r}", timeout=60)
            continue
        said.clear()
        timer = threading.Timer(draw.uniform(0.1, 0.4), manager.interrupt_kernel)
        if cell.startswith("!"):
            timer.start()
        client.execute_interactive(cell.removeprefix("!"), timeout=120, output_hook=heard)
        if cell.startswith("!"):
            timer.join()
            client.execute_interactive(LOOK, timeout=60, output_hook=heard)
            reached += [line for line in "".join(said).splitlines() if line.startswith("AT ")]
    client.stop_channels()
    return "".join(said)


def main() -> None:
    """One campaign by name: python -m reliability.endings terminated 7 0."""
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = {"cache": cache, "notebooks": notebooks, "terminated": terminated}[name]
    print(json.dumps(work(count, seed), indent=1))


if __name__ == "__main__":
    main()
