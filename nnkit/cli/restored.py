"""What `nnkit eval`, `generate` and `export` begin with: a run folder, and its saved weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["NotRestored", "Restored", "language", "restored"]


class NotRestored(Exception):
    """A folder that cannot be restored: a sentence for the user, and the exit code.

    Args:
      said: what is wrong and what to do.
      code: 2 if the words were wrong, 1 if the folder is damaged.

    >>> NotRestored("no run here").code
    2
    """

    def __init__(self, said: str, code: int = 2):
        super().__init__(said)
        self.code = code


class Restored(NamedTuple):
    """A run as its experiment builds it, with the weights of a checkpoint.

    Attributes:
      module: the experiment.
      config: its configuration, as saved.
      step: the Step.
      train: the batches it was trained on.
      evaluations: hooks (params, carry) -> row, by name.
      weights: (params, carry) of the checkpoint, trees of arrays [...].
      said: folder, step and kind of the checkpoint in a sentence.

    >>> Restored._fields[-2:]
    ('weights', 'said')
    """

    module: ModuleType
    config: Any
    step: Any
    train: Any
    evaluations: Any
    weights: tuple
    said: str


def restored(folder, latest: bool = False) -> Restored:
    """Build the experiment of a run folder again, and restore its saved weights.

    The best checkpoint is taken where the run keeps one, else the newest.

    Args:
      folder: of the run.
      latest: take the newest checkpoint in any case.

    Returns:
      A `Restored`.

    Raises:
      NotRestored: if it is no run folder, has no experiment or no sound checkpoint; its `code` is
        the exit code.

    >>> restored("no-such-run")
    Traceback (most recent call last):
        ...
    nnkit.cli.restored.NotRestored: no-such-run is no run folder: it has no config.json; `nnkit...
    """
    folder = Path(folder)
    record = read_json(folder / "config.json")
    if record is None:
        raise NotRestored(
            f"{folder} is no run folder: it has no config.json; `nnkit ls` lists runs"
        )
    if "model_type" in record:
        raise NotRestored(
            f"{folder} holds weights, not a run: nk.interop.huggingface.load opens it, and `nnkit "
            "generate` writes with it"
        )
    if not record.get("experiment"):
        raise NotRestored(
            f"{folder} was not made by an experiment: use its weights where its model is defined"
        )
    if not checkpoints(folder / "checkpoints"):
        raise NotRestored(
            f"{folder} has no checkpoint yet: train it further with the command that began it"
        )
    import jax

    import nnkit as nk
    from nnkit.checkpoint import CorruptCheckpoint
    from nnkit.cli.train import cache_programs, cores_as_devices, load

    cache_programs()
    try:
        module = load(record["experiment"])
    except FileNotFoundError as error:
        raise NotRestored(str(error)) from error
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    config = module.Config(**fields)
    cores_as_devices(config)
    try:
        step, train, evaluations = module.build(config)
    except (FileNotFoundError, RuntimeError) as error:
        raise NotRestored(
            f"the experiment {record['experiment']!r} cannot be built here, its data set among the "
            f"rest (NNKIT_DATA_DIR says where data sets are): {error}"
        ) from error
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    saved = nk.Checkpoints(folder / "checkpoints", keep_best=record.get("keep_best"))
    best = None if latest else saved.best()
    try:
        found = saved.restore(state, step=best)
    except CorruptCheckpoint as error:
        raise NotRestored(str(error), 1) from error
    which = "newest" if best is None else f"best by {(record.get('keep_best') or ['?'])[0]}"
    said = f"{folder} at step {found.step:,}, the {which} checkpoint"
    return Restored(module, config, step, train, evaluations, step.weights(found.state), said)


def language(folder, latest: bool = False, member: int = 0) -> tuple:
    """The language model of a run folder: (model, variables, tokenizer, said).

    Args:
      folder: of the run; its experiment has `network(config)` and `tokenizer(config)`.
      latest: take the newest checkpoint, not the best.
      member: which one of an ensemble or a sweep, whose weights [n ...] have an axis more.

    Returns:
      (model, {"params": ..., and what is carried}, tokenizer, a sentence on the checkpoint).

    Raises:
      NotRestored: as `restored`, or if the experiment has no language model, or there is no such
        member.

    >>> language("no-such-run")
    Traceback (most recent call last):
        ...
    nnkit.cli.restored.NotRestored: no-such-run is no run folder: it has no config.json; `nnkit...
    """
    found = restored(folder, latest)
    for need in ("network", "tokenizer"):
        if not hasattr(found.module, need):
            raise NotRestored(
                f"the experiment of {folder} has no {need}(config): it is no language model; an "
                "experiment of one has network(config) and tokenizer(config)"
            )
    model, tokenizer = found.module.network(found.config), found.module.tokenizer(found.config)
    params, carry = found.weights
    variables = {"params": params, **carry}
    return model, one_member(model, variables, member), tokenizer, found.said


def one_member(model, variables, member: int):
    """The variables of one member, if they have an axis of members; else as they are."""
    import jax
    import numpy as np

    from nnkit.models import EncDec

    token = np.zeros((1, 1), np.int32)
    inputs = (token, token) if isinstance(model, EncDec) else (token,)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    want, have = (jax.tree.leaves(tree["params"])[0].shape for tree in (shapes, variables))
    n = have[0] if have[1:] == want else 1
    if not 0 <= member < n:
        raise NotRestored(f"member is {member}, but the run has {n}: expected 0 to {n - 1}")
    return jax.tree.map(lambda x: x[member], variables) if have != want else variables


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first.

    >>> checkpoints(Path("no-such-folder"))
    []
    """
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []


def read_json(path: Path):
    """What a JSON file holds, or None.

    >>> read_json(Path("no-such-file")) is None
    True
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
