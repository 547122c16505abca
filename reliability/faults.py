"""Every operation on files of a save and a deletion fails, one after the other."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from reliability import progress
from reliability.forks import Forks
from reliability.kills import drawn, hidden

__all__ = ["at_each_operation", "disk_full", "everywhere", "named_points"]

ACTIONS = ("kill", "ENOSPC", "EIO", "EACCES")
NUMBERS = 2_000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Operations:
    """Counts what changes files below a folder, and lets one of these operations fail.

    Python tells its hooks of every open, rename, mkdir and removal before it is done; fsync is
    wrapped. What Orbax writes from C++ is not among them: see `disk_full` and `kills`.

    Args:
      folder: only paths below it count.
      at: the operation that fails, from 1; 0 is none.
      action: kill, ENOSPC, EIO or EACCES.
    """

    def __init__(self, folder: str, at: int, action: str):
        self.folder, self.at, self.action = os.path.realpath(folder), at, action
        self.done: list[str] = []
        self.on = True
        self.lock = threading.Lock()
        sys.addaudithook(self.hook)
        plain = os.fsync

        def fsync(file):
            number = file if isinstance(file, int) else file.fileno()
            self.meet("os.fsync", os.readlink(f"/proc/self/fd/{number}"))
            plain(file)

        os.fsync = fsync

    def hook(self, event: str, arguments) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & WRITES:
                self.meet(event, os.fsdecode(path))
        elif event in CHANGES and isinstance(arguments[0], str | bytes):
            path, below = os.fsdecode(arguments[0]), arguments[-1]
            if event in ("os.remove", "os.rmdir") and below != -1:  # as `rmtree` goes about it
                path = os.path.join(os.readlink(f"/proc/self/fd/{below}"), path)
            self.meet(event, path)

    def meet(self, event: str, path: str) -> None:
        if not self.on or not os.path.abspath(path).startswith(self.folder):
            return
        with self.lock:
            self.done.append(f"{event} {os.path.basename(path)}")
            due = len(self.done) == self.at
        if due and self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif due:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number), path)


def save_and_delete(folder: str, at: int, action: str) -> None:
    """Opens a folder with steps 1 and 2, saves step 3, which deletes step 1; one thing fails."""
    faults = Operations(folder, at, action)
    told, saver = "", None
    try:
        told, saver = attempted(folder)
    except OSError as error:
        told = str(error)
    faults.on = False
    print("done", len(faults.done), faults.done[at - 1] if 0 < at <= len(faults.done) else "-")
    print("told", told.replace("\n", " "), flush=True)
    if saver is not None and told:
        after(saver, told)


def attempted(folder: str):
    """(what the saver said of its failure, the saver) of a save of step 3."""
    from nnkit.checkpoint import Checkpoints

    saver = Checkpoints(folder, keep_last=2)
    try:
        saver.save(3, drawn(3, NUMBERS), position=3)
        saver.wait()
        print("ack 3", flush=True)
    except (RuntimeError, OSError) as error:
        return str(error), saver
    return "", saver


def after(saver, told: str) -> None:
    """In the process whose save failed: what is listed is sound, and the next save works."""
    from nnkit.checkpoint import verify

    steps = saver.steps()
    bad = [why for step in steps for why in verify(saver.folder / f"{step:08d}")]
    if bad or not {2} <= set(steps):
        print("wrong", f"after {told!r} the steps are {steps}: {bad}", flush=True)
    saver.save(4, drawn(4, NUMBERS), position=4)
    saver.wait()
    if left := [name for name in hidden(saver.folder) if not name.startswith(".trash")]:
        print("wrong", f"after the next save {left} are left", flush=True)
    print("ack 4", flush=True)


def points(folder: str, rule: str) -> None:
    """As `save_and_delete`, at a named point."""
    from nnkit.core import failpoints

    failpoints._plan = failpoints.Plan(failpoints.parsed(rule))
    try:
        told, saver = attempted(folder)
    except OSError as error:
        told, saver = str(error), None
    failpoints._plan = None
    print("told", told.replace("\n", " "), flush=True)
    if saver is not None and told:
        after(saver, told)


def prepared(root: str) -> Path:
    """A folder with steps 1 and 2, and a leftover of a process that died."""
    from nnkit.checkpoint import Checkpoints

    folder = Path(root, "prepared")
    with Checkpoints(folder, keep_last=2) as saver:
        for step in (1, 2):
            saver.save(step, drawn(step, NUMBERS), position=step)
    (folder / ".tmp-9-999999999").mkdir()
    (folder / ".tmp-9-999999999" / "half").write_text("")
    return folder


def at_each_operation(count: int, seed: int) -> dict:
    """Lets operation k = 1 ... F of opening, saving and deleting fail, in each of four ways.

    After it: what was acknowledged is there, all that is listed can be read, a failed save was
    told with the folder and saving goes on in the same process, and after a kill the next start
    sweeps up and saves.

    Args:
      count: trials; all 4 F if it is at least that, else as many, drawn, half of them kills.
      seed: of the draw.

    Returns:
      count, failures, operations (F).
    """
    with tempfile.TemporaryDirectory() as root, Forks("faults") as forks:
        template = prepared(root)
        folder = Path(root, "folder")
        shutil.copytree(template, folder)
        forks.start("save_and_delete", folder=str(folder), at=0, action="kill")
        line = forks.until("done") or "done 0"
        forks.wait()
        total = int(line.split()[1])
        everything = [(k, action) for k in range(1, total + 1) for action in ACTIONS]
        chosen = everything
        if count < len(everything):
            rng, kills = random.Random(str(seed)), everything[::4]
            rest = [one for one in everything if one[1] != "kill"]
            chosen = rng.sample(kills, count // 2) + rng.sample(rest, count - count // 2)
        failures = [] if total > 20 else [f"only {total} operations were seen"]
        for trial, (k, action) in enumerate(chosen):
            options = {"at": k, "action": action}
            told = f"operation {k} of {total}, {action}"
            failures += tried(forks, template, folder, "save_and_delete", options, told)
            progress(f"fault {trial + 1} of {len(chosen)}: {told}, {len(failures)} failures")
    return {"count": len(chosen), "failures": failures, "operations": total}


def named_points(count: int, seed: int) -> dict:
    """As `at_each_operation`, at each failpoint of a save: kill, ENOSPC, EIO and EACCES.

    Args:
      count: trials; all of them if it is at least that, else as many, drawn.
      seed: of the draw.

    Returns:
      count, failures, points.
    """
    from nnkit.core import failpoints

    names = [n for n in failpoints.names() if n.startswith(("save.", "delete.", "sweep."))]
    names.remove("save.parts")  # of many processes: tests/parallel
    chosen = [(name, action) for name in names for action in ACTIONS]
    if count < len(chosen):
        chosen = random.Random(str(seed)).sample(chosen, count)
    failures = []
    with tempfile.TemporaryDirectory() as root, Forks("faults") as forks:
        template = prepared(root)
        for trial, (name, action) in enumerate(chosen):
            told = f"{name}={action}"
            options = {"rule": told}
            failures += tried(forks, template, Path(root, "folder"), "points", options, told)
            progress(f"point {trial + 1} of {len(chosen)}: {told}, {len(failures)} failures")
    return {"count": len(chosen), "failures": failures, "points": len(names)}


def everywhere(count: int, seed: int) -> dict:
    """`at_each_operation`, then `named_points`: all of both if count is large enough.

    Args:
      count: trials of each at most.
      seed: of the draws.

    Returns:
      count, failures, operations, points; of: how many trials there are in all.
    """
    one, other = at_each_operation(count, seed), named_points(count, seed)
    both = {"count": one["count"] + other["count"], "failures": one["failures"]}
    both["of"] = len(ACTIONS) * (one["operations"] + other["points"])
    both["failures"] += other["failures"]
    return both | {"operations": one["operations"], "points": other["points"]}


def tried(forks: Forks, template: Path, folder: Path, name: str, options, told: str) -> list[str]:
    """One fault in a fresh copy of the folder; what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    forks.start(name, folder=str(folder), **options)
    ended = forks.wait()
    words = [line.split(" ", 1) for line in ended.lines if " " in line]
    said = dict(words)
    acks = [int(rest) for first, rest in words if first == "ack"]
    problems = [rest for first, rest in words if first == "wrong"]
    killed = "kill" in (options.get("action"), options.get("rule", "").rpartition("=")[2])
    reached = killed or bool(said.get("told"))
    if ended.code != (-9 if killed and not said.get("done") else 0):
        problems.append(f"ended with {ended.code}: {forks.child.said()[-1500:]}")
    if not killed and reached and str(folder) not in said["told"]:
        problems.append(f"the folder is not named: {said['told']}")
    problems += recovered(folder, max(acks, default=2))
    return [f"{told} ({said.get('done', '')}): {why}" for why in problems]


def recovered(folder: Path, acknowledged: int) -> list[str]:
    """The next start: nothing acknowledged is lost, nothing half is listed, saving works."""
    from nnkit.checkpoint import Checkpoints, verify
    from nnkit.core import trees

    saver, problems = Checkpoints(folder, keep_last=2), []
    problems += [f"opening it left {name}" for name in hidden(folder)]
    steps = saver.steps()
    if max(steps, default=0) < acknowledged:
        problems.append(f"step {acknowledged} was acknowledged, the steps are {steps}")
    for step in steps:
        problems += verify(folder / f"{step:08d}")
    found = saver.restore(drawn(0, NUMBERS))
    if trees.digest(found.state) != trees.digest(drawn(found.step, NUMBERS)):
        problems.append(f"step {found.step} holds other bits")
    saver.save(5, drawn(5, NUMBERS), position=5)
    saver.close()
    if saver.latest() != 5 or len(saver.steps()) > 3:
        problems.append(f"after the next save the steps are {saver.steps()}")
    return problems


def filled(folder: str, megabytes: int, rest: int, numbers: int) -> None:
    """Saves on a disk that another program fills up after the space was checked.

    The disk is a small one of memory, that only this process sees; `rest` bytes stay free.
    """
    from nnkit.checkpoint import Checkpoints, disk, verify

    mounted = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder]
    subprocess.run(mounted, check=True)
    run = Path(folder, "run")
    with Checkpoints(run, keep_last=2) as saver:
        saver.save(1, drawn(1, numbers), position=1)
    plain, ballast = disk.space, Path(folder, "ballast")

    def space(*arguments):
        plain(*arguments)
        with open(ballast, "wb") as file, contextlib.suppress(OSError):
            while (free := shutil.disk_usage(folder).free - rest) > 0:
                file.write(bytes(min(free, 2**16)))
                file.flush()

    disk.space = space
    saver = Checkpoints(run, keep_last=2)
    told = ""
    try:
        saver.save(2, drawn(2, numbers), position=2)
        saver.wait()
    except RuntimeError as error:
        told = str(error)
    disk.space = plain
    print("told", told.replace("\n", " "))
    wrong(not told and saver.steps() != [1, 2], f"nothing was told, the steps are {saver.steps()}")
    wrong(told and (hidden(run) or 1 not in saver.steps()), f"left {os.listdir(run)}")
    parts = [part for part in (str(run), "needed", "free") if part not in told]
    wrong(told and parts, f"the message lacks {parts}")
    try:
        saver.room({"w": drawn(3, numbers)["w"].repeat(50)})
        wrong(True, "a state that is too large was let through")
    except OSError as error:
        wrong("needed" not in str(error) or "free" not in str(error), f"told {error}")
    ballast.unlink()
    saver.save(3, drawn(3, numbers), position=3)
    saver.wait()
    wrong(saver.latest() != 3, f"after the next save the steps are {saver.steps()}")
    for step in saver.steps():
        wrong(verify(run / f"{step:08d}"), f"step {step} is damaged")
    print("alive", flush=True)


def wrong(problem, text: str) -> None:
    if problem:
        print("wrong", text, flush=True)


def disk_full(count: int, seed: int) -> dict:
    """A disk that becomes full during a save, with 0 to all of the bytes of the save written.

    A real full disk: a mount that only the process sees. Where that is not allowed, nothing is
    done, and the count is 0.

    Args:
      count: positions, evenly spread.
      seed: moves them a little.

    Returns:
      count, failures, told (saves that failed, in words).
    """
    if not may_mount():
        return {"count": 0, "failures": [], "told": 0, "why": "mounting is not allowed here"}
    failures, told, numbers = [], 0, 100_000
    before = ("unshare", "-r", "-m") if os.getuid() else ("unshare", "-m")
    with tempfile.TemporaryDirectory() as root, Forks("faults", before=before) as forks:
        for trial in range(count):
            part = (trial + random.Random(f"{seed}-{trial}").random()) / count
            rest = int(part * 1.1 * numbers * 4)  # a save needs a little more than its arrays
            folder = Path(root, str(trial))
            folder.mkdir()
            forks.start("filled", folder=str(folder), megabytes=3, rest=rest, numbers=numbers)
            ended = forks.wait()
            said = dict(line.split(" ", 1) for line in ended.lines if " " in line)
            told += bool(said.get("told"))
            here = [line for line in ended.lines if line.startswith("wrong")]
            if ended.code != 0 or "alive" not in ended.lines:
                here.append(f"ended with {ended.code}: {forks.child.said()[-1500:]}")
            failures += [f"seed {seed}, trial {trial}, {rest} bytes free: {why}" for why in here]
            progress(f"full disk {trial + 1} of {count}: {rest} bytes, {len(failures)} failures")
    return {"count": count, "failures": failures, "told": told}


def may_mount() -> bool:
    """Whether a process may mount a disk of its own here."""
    words = ["unshare", "-r", "-m"] if os.getuid() else ["unshare", "-m"]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
        done = subprocess.run(
            [*words, "mount", "-t", "tmpfs", "none", folder], capture_output=True, timeout=20
        )
        return done.returncode == 0
    return False


WORKS: dict[str, Callable] = {
    "save_and_delete": save_and_delete,
    "points": points,
    "filled": filled,
}
