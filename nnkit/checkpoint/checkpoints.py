"""Save, list, restore: one background writer, one atomic rename as the commit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nnkit.checkpoint import disk, leaves, listing, manifest
from nnkit.checkpoint.background import Background
from nnkit.checkpoint.manifest import CorruptCheckpoint
from nnkit.checkpoint.values import data_position, json_value, number, numbers, whole

__all__ = ["Checkpoints", "Restored"]

_ABSENT = "no checkpoint in {}; save one first, or give another folder"


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
        disk.sweep(self.folder)

    def save(self, step: int, state, *, position=0, meta=None, metrics=None) -> None:
        """Copies the state and starts to write it; returns before it is on disk.

        The state may be donated at once. Errors of disks come at the next `save`, `wait` or
        `close`. A step that is there already stays if it holds the same bits and position; a
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
          NotImplementedError: if an array is spread over several hosts.

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
        table, arrays = leaves.snapshot(state)
        if listing.taken(self.folder, body, table, arrays):
            return
        from orbax.checkpoint import v1 as ocp  # here: a thread at exit may not import it

        def work():
            disk.commit(self.folder, ocp.save_checkpointables, body, table, arrays)
            self._damaged.discard(body["step"])
            self._retain(body["step"])

        self._background.start(f"saving step {body['step']} in {self.folder}", work)

    def wait(self) -> None:
        """Returns once the save in flight is committed.

        Raises:
          RuntimeError: if it failed; once, chained to the cause.

        >>> Checkpoints("no such folder").wait()
        """
        if (error := self._background.error()) is not None:
            raise RuntimeError(
                f"{self._background.name} failed: {error}; older checkpoints are untouched, save "
                "again once the cause is gone"
            ) from error

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

    def restore(self, target, step: int | None = None) -> Restored:
        """A checkpoint, every file and leaf of it checked; never cast, never partial.

        Args:
          target: a tree of arrays [...] or `jax.ShapeDtypeStruct`s (with shardings, if wanted) of
            the same paths, shapes and dtypes; every leaf is placed like its target.
          step: None takes the newest valid one, and warns of newer ones that are damaged.

        Returns:
          A `Restored`.

        Raises:
          FileNotFoundError: if there is none.
          CorruptCheckpoint: if the one asked for is damaged, or all are.
          ValueError: if the target differs; names the first path, both sides and the remedy.

        >>> Checkpoints("no such folder").restore({"w": jnp.zeros(3)})
        Traceback (most recent call last):
            ...
        FileNotFoundError: no checkpoint in ...; save one first, or give another folder
        """
        self._background.join()
        if step is not None:
            return self._load(self._exists(step), target)
        problems = []
        valid, damaged = listing.survey(self.folder)
        for step in sorted([*valid, *damaged], reverse=True):
            try:
                restored = self._load(step, target)
            except CorruptCheckpoint as error:
                self._damaged.add(step)
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(
                    f"restored step {step}, skipping damaged ones: {' | '.join(problems)}",
                    stacklevel=2,
                )
            return restored
        if problems:
            raise CorruptCheckpoint(f"no valid checkpoint: {' | '.join(problems)}")
        raise FileNotFoundError(_ABSENT.format(self.folder))

    def _load(self, step: int, target) -> Restored:
        body = listing.read(self.folder, step)
        folder = self._path(step)
        if differs := leaves.difference(body["leaves"], target):
            raise ValueError(
                f"checkpoint {folder}: {differs}; use the config that made it (config.json), "
                "or another folder"
            )
        if problems := manifest.file_problems(folder, body):
            raise CorruptCheckpoint(f"checkpoint {folder}: {problems[0]}; {manifest.REMEDY}")
        rows = {row["name"]: row for row in body["leaves"]}
        arrays = disk.load(folder, body["leaves"])
        placed = [
            leaves.place(rows[name], arrays[name], want)
            for name, (_, want) in leaves.flat(target).items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(target), placed)
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
                f"no checkpoint of step {step} in {self.folder}; there are {sorted(valid)}"
            )
        return whole(step)

    def _retain(self, newest: int) -> None:
        """Deletes all but the newest and the best. Damaged ones neither count nor go."""
        found = listing.survey(self.folder).valid
        valid = {k: body for k, body in found.items() if k not in self._damaged}
        keep = {newest, listing.best(valid, self.keep_best), *sorted(valid)[-self.keep_last :]}
        for step in sorted(set(valid) - keep):
            disk.retire(self._path(step))
