"""Save, list, restore: one background writer, one atomic rename as the commit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nnkit.checkpoint import disk, leaves, listing, manifest, processes
from nnkit.checkpoint.background import Background
from nnkit.checkpoint.manifest import CorruptCheckpoint
from nnkit.checkpoint.values import data_position, json_value, number, numbers, whole
from nnkit.parallel import hosts

__all__ = ["Checkpoints", "Restored"]

_ABSENT = "no checkpoint in {}, expected at least one; save one first, or give another folder"


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: its step number.
      state: the tree of arrays [...], placed like the target.
      position: where in the data the run was: an int, or a JSON object.
      meta: what was given as `meta`.
      metrics: numbers by name.

    >>> Restored(3, {}, 0, None, {}).step
    3
    """

    step: int
    state: Any
    position: Any
    meta: Any
    metrics: dict[str, float]


class Checkpoints:
    """A folder of checkpoints, one per step, each complete or absent.

    A save copies the state and returns. In one background thread Orbax writes the arrays into a
    temporary folder, every file is hashed and synced, the manifest is written last, and one rename
    is the commit. The next save waits for it. A process that ends right after `save` still commits
    it, or says why not with an exit code that is not 0 (Python 3.12.0 to 3.12.2 cannot, there
    `save` itself waits). Opening a folder only removes temporaries of processes that have died.

    What was saved on any devices, by any number of processes, is restored onto any others, bit by
    bit: every leaf goes where its target is. On many processes (`nk.hosts`) all of them make the
    same calls of `save` and `restore`, on a folder that all see.

    Args:
      folder: where the checkpoints are, or will be; made by the first save.
      keep_last: how many of the newest steps stay; at least 1.
      keep_best: None, or ("accuracy", "max") or ("loss", "min"): the step that is best by this
        metric stays too; of equals the newest.

    Raises:
      ValueError: if `keep_last` or `keep_best` is not of that form.
      NotADirectoryError: if `folder` is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saver:
    ...     saver.save(10, {"w": jnp.ones(3)}, position=640)
    ...     saver.wait()
    ...     saver.steps(), saver.restore({"w": jnp.zeros(3)}).state
    ([10], {'w': Array([1., 1., 1.], dtype=float32)})
    """

    def __init__(self, folder, *, keep_last: int = 2, keep_best: tuple[str, str] | None = None):
        self.folder = Path(folder).absolute()  # Orbax wants it, and the process may change folder
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file, expected a folder; give another name")
        if isinstance(keep_last, bool) or not isinstance(keep_last, int) or keep_last < 1:
            raise ValueError(f"keep_last is {keep_last!r}, expected an int of at least 1")
        named = (
            isinstance(keep_best, (tuple, list))
            and len(keep_best) == 2
            and isinstance(keep_best[0], str)
            and keep_best[1] in ("max", "min")
        )
        if keep_best is not None and not named:
            raise ValueError(f'keep_best is {keep_best!r}, expected such as ("accuracy", "max")')
        self.keep_last, self.keep_best = keep_last, keep_best
        self._background = Background()
        self._damaged: set[int] = set()
        self._closed = False
        if hosts.first():
            disk.sweep(self.folder)

    def save(self, step: int, state, *, position=0, meta=None, metrics=None) -> None:
        """Copies the state and starts to write it; returns before it is on disk.

        The state may be donated at once. Errors of disks come at the next `check`, `save`, `wait`
        or `close`. A step that is there already stays if it holds the same bits and position; a
        damaged one is moved aside.

        Args:
          step: number of the step, from 0.
          state: any tree of arrays [...], typed keys among them, and Python numbers.
          position: where in the data the run is: an int, or a small JSON object.
          meta: any JSON value, such as the hash of the config.
          metrics: numbers [] by name.

        Raises:
          RuntimeError: if the save before this one failed; this one is then not started.
          ValueError: if the saver is closed, a leaf was donated, or a metric is missing.
          TypeError: if a leaf is no array of numbers, or something is no JSON.
          FileExistsError: if the step exists with other contents.
          NotImplementedError: if an array is spread over hosts that were not joined by
            `nk.hosts.start`, or of a dtype that Orbax has not and split over hosts.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saver:
        ...     saver.save(0, {"w": jnp.ones(3)}, meta={"config": "0f3a"}, metrics={"loss": 0.5})
        """
        if self._closed:
            raise ValueError(f"this saver of {self.folder} is closed; open another Checkpoints")
        self.wait()
        body = {"step": whole(step), "position": data_position(position)}
        wanted = self.keep_best and self.keep_best[0]
        body |= {"meta": json_value("meta", meta), "metrics": numbers(metrics, wanted)}
        rest = self._many(body, state) if hosts.count() > 1 else self._one(body, state)
        if rest is None:
            return

        def work():
            rest()
            self._damaged.discard(body["step"])
            if hosts.first():
                try:
                    self._retain(body["step"])
                except OSError as error:
                    raise OSError(
                        error.errno, f"it is saved, but an older one could not be deleted: {error}"
                    ) from error

        self._background.start(f"saving step {body['step']} in {self.folder}", work)

    def _one(self, body, state) -> Callable[[], None] | None:
        """The rest of a save by this process alone; None if the step is there already."""
        table, arrays = leaves.snapshot(state)
        if listing.taken(self.folder, body, table, arrays):
            return None
        from orbax.checkpoint import v1 as ocp  # here: a thread at exit may not import it

        return lambda: disk.commit(self.folder, ocp.save_checkpointables, body, table, arrays)

    def _many(self, body, state) -> Callable[[], None]:
        """The rest of a save in which all processes take part."""
        return processes.begun(self.folder, body, state)

    def wait(self) -> None:
        """Returns once the save in flight is committed.

        Raises:
          RuntimeError: if it failed; once, chained to the cause.

        >>> Checkpoints("no such folder").wait()
        """
        self._tell(self._background.error())

    def check(self) -> None:
        """Raise if the last save has failed; never waits for one in flight. `fit` asks each step.

        Of many processes none raises here, so that none leaves before the others: all learn of it
        at the next `save`, `wait` or `close`.

        Raises:
          RuntimeError: once, chained to the cause.

        >>> Checkpoints("no such folder").check()
        """
        if hosts.count() == 1:
            self._tell(self._background.failed())

    def _tell(self, error: BaseException | None) -> None:
        if error is not None:
            raise RuntimeError(
                f"{self._background.name} failed: {error}; older checkpoints are untouched, save "
                "again once the cause is gone"
            ) from error

    def room(self, state) -> None:
        """Raise unless two checkpoints of a state fit on the disk: a new one beside the last.

        Args:
          state: a tree of arrays [...].

        Raises:
          OSError: (ENOSPC) with the bytes needed and those free.

        >>> Checkpoints("no such folder").room({"w": jnp.ones(3)})
        """
        if hosts.first():
            size = sum(getattr(x, "nbytes", 8) for x in jax.tree.leaves(state))
            disk.space(self.folder, 2 * size, "two checkpoints")

    def close(self) -> None:
        """Waits, and refuses later saves.

        Raises:
          RuntimeError: if the save in flight failed.

        >>> Checkpoints("no such folder").close()
        """
        self._closed = True
        self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except RuntimeError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def steps(self) -> list[int]:
        """The steps with a readable manifest of this run, ascending.

        Returns:
          A list of ints.

        >>> Checkpoints("no such folder").steps()
        []
        """
        return sorted(listing.survey(self.folder).valid)

    def latest(self) -> int | None:
        """The newest step, or None.

        Returns:
          An int or None.

        >>> Checkpoints("no such folder").latest()
        """
        return max(listing.survey(self.folder).valid, default=None)

    def best(self) -> int | None:
        """The best step by the metric of `keep_best`; None without one, or if no step has it.

        Returns:
          An int or None.

        >>> Checkpoints("no such folder", keep_best=("loss", "min")).best()
        """
        return listing.best(listing.survey(self.folder).valid, self.keep_best)

    def info(self, step: int | None = None) -> dict[str, Any]:
        """The manifest of a step, the newest by default: position, meta, metrics, leaves, files.

        Args:
          step: a step of `steps()`, or None.

        Returns:
          A dict.

        Raises:
          FileNotFoundError: if there is none.
          CorruptCheckpoint: if it is damaged.

        >>> Checkpoints("no such folder").info()
        Traceback (most recent call last):
            ...
        FileNotFoundError: no checkpoint in ...; save one first, or give another folder
        """
        self._background.join()
        body = listing.read(self.folder, self._exists(self.latest() if step is None else step))
        return body | {"metrics": {k: number(x) for k, x in body["metrics"].items()}}

    def restore(
        self, target, step: int | None = None, *, under="", rename=None, allow_cast=False
    ) -> Restored:
        """A checkpoint, every file and leaf of it checked; cast or partial only if asked.

        Args:
          target: a tree of arrays [...] or `jax.ShapeDtypeStruct`s (with shardings, if wanted) of
            the same paths, shapes and dtypes; every leaf is placed like its target.
          step: None takes the newest valid one, and warns of newer ones that are damaged.
          under: path of the part that the target is, such as "params"; "" is the whole state.
          rename: {saved path: path in the target} of leaves or whole parts, below `under`.
          allow_cast: whether floats may change their width (float32 to bfloat16); it is told.

        Returns:
          A `Restored`.

        Raises:
          FileNotFoundError: if there is none.
          CorruptCheckpoint: if the one asked for is damaged, or all are.
          ValueError: if the target differs; names ten paths, both sides and the remedy. If
            `under` or `rename` names a path that was not saved.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saver:
        ...     saver.save(1, {"params": {"w": jnp.ones(2)}, "opt": jnp.zeros(2)})
        ...     saver.restore({"v": jnp.zeros(2)}, under="params", rename={"w": "v"}).state
        {'v': Array([1., 1.], dtype=float32)}
        """
        self._background.join()
        part = (under, rename, bool(allow_cast))
        if step is not None:
            return self._loaded(self._exists(step), target, part)
        problems = []
        valid, damaged = listing.survey(self.folder)
        candidates: list[int] = hosts.shared(sorted([*valid, *damaged], reverse=True))
        for one in candidates:
            try:
                restored = self._loaded(one, target, part)
            except CorruptCheckpoint as error:
                self._damaged.add(one)
                problems.append(str(error))
                continue
            told = f", skipping damaged ones: {' | '.join(problems)}" if problems else ""
            told += listing.foreign(self.folder)
            if told:
                warnings.warn(f"restored step {one}{told}", stacklevel=2)
            return restored
        if problems:
            raise CorruptCheckpoint(f"no valid checkpoint: {' | '.join(problems)}")
        raise FileNotFoundError(_ABSENT.format(self.folder))

    def _loaded(self, step: int, target, part) -> Restored:
        """The step in every process, or the same error in every process."""
        if hosts.count() == 1:
            return self._load(step, target, part)

        def load():  # damage that one process sees counts for all
            try:
                return self._load(step, target, part), None
            except CorruptCheckpoint as error:
                return None, str(error)

        restored, damage = hosts.unanimous(load)
        for why in hosts.gathered(damage):
            if why is not None:
                raise CorruptCheckpoint(why)
        return restored

    def _load(self, step: int, target, part) -> Restored:
        body = listing.read(self.folder, step)
        folder = self._path(step)
        *part, allow_cast = part
        try:
            pairs = leaves.chosen(body["leaves"], *part)
        except ValueError as error:
            raise ValueError(f"checkpoint {folder}: {error}") from None
        if differs := leaves.difference([row for _, row in pairs], target, allow_cast):
            raise ValueError(
                f"checkpoint {folder}: {differs}; use the config that made it (config.json), "
                "or another folder"
            )
        if problems := manifest.file_problems(folder, body):
            raise CorruptCheckpoint(f"checkpoint {folder}: {problems[0]}; {manifest.REMEDY}")
        wanted = leaves.flat(target)
        renamed = {saved["name"]: row for saved, row in pairs}
        saved = [row for row, _ in pairs]
        placed, cast = {}, []
        for row, array in disk.load(folder, saved, whole=len(saved) == len(body["leaves"])):
            saved_as = renamed[row["name"]]
            want = wanted[saved_as["name"]][1]
            row, array = leaves.cast(saved_as, array, want)
            if row is not saved_as:
                cast.append(f"{row['path']} from {saved_as['dtype']} to {row['dtype']}")
            placed[row["name"]] = leaves.place(row, array, want)
        if cast:
            warnings.warn(f"allow_cast: {len(cast)} leaves cast, first {cast[0]}", stacklevel=4)
        ordered = [placed[name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(target), ordered)
        metrics = {name: number(x) for name, x in body["metrics"].items()}
        return Restored(step, state, body["position"], body["meta"], metrics)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def _exists(self, step) -> int:
        """The step, if a checkpoint of it is there, valid or damaged."""
        valid, damaged = listing.survey(self.folder)
        if step is None or (not valid and not damaged):
            raise FileNotFoundError(_ABSENT.format(self.folder))
        if whole(step) not in valid and whole(step) not in damaged:
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self.folder}; there are {sorted(valid)}: "
                "restore one of these, or the newest by step=None"
            )
        return whole(step)

    def _retain(self, newest: int) -> None:
        """Deletes all but the newest and the best. Damaged ones neither count nor go."""
        found = listing.survey(self.folder).valid
        valid = {k: body for k, body in found.items() if k not in self._damaged}
        keep = {newest, listing.best(valid, self.keep_best), *sorted(valid)[-self.keep_last :]}
        for step in sorted(set(valid) - keep):
            disk.retire(self._path(step))
