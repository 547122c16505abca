"""What `nnkit eval`, `generate` and `export` begin with: a run folder, and its saved weights."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nnkit.core.documents import document

__all__ = ["NotRestored", "Restored", "inputs", "language", "network", "one_member", "restored"]


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
    if not isinstance(record, dict):
        raise NotRestored(
            f"{folder} is no run folder: it has no config.json; `nnkit ls` lists runs"
        )
    if of_transformers(folder):
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
        module = load(_program(folder, record["experiment"]))
    except FileNotFoundError as error:
        raise NotRestored(str(error)) from error
    try:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
        config = module.Config(**fields)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise NotRestored(
            f"config.json of {folder} does not fit the Config of {record['experiment']}: {error}; "
            "take the version of the experiment that made the run (env.json has its commit)"
        ) from error
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


def _program(folder: Path, name) -> str:
    """The experiment of a run as `load` takes it; a folder that brings its own is refused.

    A file that config.json names is run. One that came with the folder could be anybody's.
    """
    if not isinstance(name, str) or not name.endswith(".py"):
        return str(name)
    path = Path(name).expanduser()
    inside = path.resolve().is_relative_to(folder.resolve())
    if not path.is_absolute() or inside:
        raise NotRestored(
            f"config.json of {folder} names the program {name!r}, expected a name of an experiment "
            "or a whole path outside of the run folder: a folder that came from elsewhere could "
            "run anything; look at the file, and train with it again"
        )
    return str(path)


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
    model, tokenizer = network(found, folder), found.module.tokenizer(found.config)
    variables, _ = one_member(found, model, inputs(found, model, folder), member)
    return model, variables, tokenizer, found.said


def network(found: Restored, folder):
    """The model of a run, by the `network(config)` of its experiment.

    Args:
      found: the run.
      folder: its name, for messages.

    Returns:
      A Linen module.

    Raises:
      NotRestored: if the experiment has no network(config), or it gives no Linen module.

    >>> from types import SimpleNamespace as Of
    >>> run = Of(module=Of(network=lambda config: nk.models.MLP(config)), config=(3, 2))
    >>> network(run, "run").widths
    (3, 2)
    """
    make = getattr(found.module, "network", None)
    needed = [] if make is None else inspect.signature(make).parameters.values()
    if make is None or len([p for p in needed if p.default is p.empty]) != 1:
        raise NotRestored(
            f"the experiment of {folder} has no network(config), which gives the model; write one, "
            "and the run can be exported as it is"
        )
    model = make(found.config)
    if not hasattr(model, "apply") or not hasattr(model, "init"):
        raise NotRestored(
            f"network(config) gave {type(model).__name__}, expected a Linen module such as "
            "nnkit.models.GPT"
        )
    return model


def inputs(found: Restored, model, folder) -> dict[str, Any]:
    """What the model is called with, by the names of its arguments: arrays [b ...] of a batch.

    Args:
      found: the run, whose first batch is taken.
      model: from `network`.
      folder: its name, for messages.

    Returns:
      {argument: array [b ...]}.

    Raises:
      NotRestored: if the batches have no field for an argument.

    >>> from types import SimpleNamespace as Of
    >>> inputs(Of(train=[{"x": np.ones((2, 3)), "y": [0, 1]}]), nk.models.MLP((2,)), "run")
    {'x': array([[1., 1., 1.],
           [1., 1., 1.]])}
    """
    batch = next(iter(found.train))
    takes = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    needed = [p.name for p in takes if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    also = {"x": ("image",), "target_in": ("target",), "tokens": ("text",)}
    fed = {}
    for i, name in enumerate(needed):
        fields = [name, *also.get(name, ()), *(["x"] if i == 0 else [])]
        field = next((field for field in fields if field in batch), None)
        if field is None:
            raise NotRestored(
                f"the {type(model).__name__} of {folder} is called with {name!r}, but its batches "
                f"have {sorted(batch)}: rename a field"
            )
        fed[name] = batch[field]
    masks = {"mask": "token_mask", "source_mask": "source_mask"}
    for name, field in masks.items():
        if field in batch and any(p.name == name for p in takes):
            fed[name] = batch[field]
    return fed


def one_member(found: Restored, model, fed, member: int) -> tuple[dict, int]:
    """({"params": ..., and what is carried} of one member [...], number of members or 0).

    Args:
      found: the run; the weights of an ensemble or a sweep have an axis [n ...] more.
      model: from `network`.
      fed: from `inputs`.
      member: which one, from 0.

    Returns:
      (variables, n); n = 0 if the run has one model.

    Raises:
      NotRestored: if the weights are not those of the model, or there is no such member.

    >>> from types import SimpleNamespace as Of
    >>> x, model = np.ones((1, 2), np.float32), nk.models.Linear(3)
    >>> three = jax.vmap(lambda key: model.init(key, x))(jax.random.split(jax.random.key(0), 3))
    >>> one_member(Of(weights=(three["params"], {})), model, {"x": x}, 2)[1]
    3
    """
    import jax

    from nnkit.core.trees import difference

    want = jax.eval_shape(lambda: model.init(jax.random.key(0), **fed))
    params, carry = found.weights
    variables = {"params": params, **(carry if isinstance(carry, dict) else {})}
    variables = {name: tree for name, tree in variables.items() if name in want}
    plain = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), tree)
    wrong = difference(plain(variables), plain(want))
    if not wrong:
        if member:
            raise NotRestored(f"member is {member}, but the run has 1 model: leave --member out")
        return variables, 0
    first = jax.tree.leaves(variables["params"])[0]
    count = first.shape[0] if first.ndim else 0
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], "float32"), variables)
    if not count or difference(one, plain(want)):
        raise NotRestored(
            f"the weights of the run are not those of network(config): {wrong}; network(config) is "
            "to give the model that build(config) trains"
        )
    if not 0 <= member < count:
        raise NotRestored(f"member is {member}, but the run has {count}: expected 0 to {count - 1}")
    return jax.tree.map(lambda x: x[member], variables), count


def of_transformers(folder) -> bool:
    """Whether a folder holds weights in the format of Hugging Face, by its config.json.

    >>> of_transformers("no-such-folder")
    False
    """
    found = read_json(Path(folder) / "config.json")
    return isinstance(found, dict) and "model_type" in found


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first.

    >>> checkpoints(Path("no-such-folder"))
    []
    """
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []


def read_json(path: Path):
    """What a JSON file holds, or None: config.json of at most 1 MB, others of 64 MB.

    >>> read_json(Path("no-such-file")) is None
    True
    """
    try:
        return document(path, limit=2**20 if path.name == "config.json" else 2**26)
    except (OSError, ValueError):
        return None
