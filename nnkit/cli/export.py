"""`nnkit export`: the model of a run as files that others open."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from nnkit.cli.restored import NotRestored, Restored, read_json, restored

__all__ = ["export"]


def export(words: list[str]) -> int:
    """nnkit export RUN OUT [--format huggingface|stablehlo] [--member 0] [--latest].

    huggingface: model.safetensors, config.json, the tokenizer and a model card, which transformers
    opens. stablehlo: a program that runs with jax and safetensors alone, for any batch size. The
    experiment has `network(config)`, and for a tokenizer `tokenizer(config)`.

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> export(["no-such-run", "no-such-folder"])
    no-such-run is no run folder: it has no config.json; `nnkit ls` lists runs
    2
    """
    try:
        asked = _parser().parse_args(words)
    except SystemExit as ended:  # --help, or words that are wrong: said by argparse
        return int(ended.code or 0)
    out = Path(asked.out)
    if out.exists() or out.is_symlink():
        print(f"{out} exists, and nothing is overwritten; give a new folder")
        return 2
    try:
        found = restored(asked.run, asked.latest)
        model, inputs = _network(found, asked.run)
        variables, count = _variables(found, model, inputs, asked.member)
        write = _huggingface if asked.format == "huggingface" else _stablehlo
        said = write(out, found, model, inputs, variables, _card(Path(asked.run), found, asked))
    except NotRestored as error:
        print(error)
        return error.code
    except (ImportError, KeyError, TypeError, ValueError) as error:
        print(error.args[0] if error.args else error)
        return 2
    print(found.said + (f", member {asked.member} of {count}" if count else ""))
    print(said)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnkit export",
        description="The model of RUN as files that others open.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("out", metavar="OUT", help="a new folder")
    add(
        "--format",
        choices=("huggingface", "stablehlo"),
        default="huggingface",
        help="huggingface (default): transformers opens it; stablehlo: jax alone runs it",
    )
    add("--member", type=int, default=0, help="of an ensemble or a sweep (default: 0)")
    add("--latest", action="store_true", help="the newest checkpoint, not the best")
    return parser


def _network(found: Restored, folder) -> tuple[Any, dict[str, Any]]:
    """(model, its inputs from the first batch)."""
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
    return model, _inputs(model, next(iter(found.train)), folder)


def _inputs(model, batch, folder) -> dict[str, Any]:
    """What the model is called with, by the names of its arguments: arrays [b ...] of a batch."""
    takes = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    needed = [p.name for p in takes if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    also = {"x": ("image",), "target_in": ("target",), "tokens": ("text",)}
    found = {}
    for i, name in enumerate(needed):
        fields = [name, *also.get(name, ()), *(["x"] if i == 0 else [])]
        field = next((field for field in fields if field in batch), None)
        if field is None:
            raise NotRestored(
                f"the {type(model).__name__} of {folder} is called with {name!r}, but its batches "
                f"have {sorted(batch)}: rename a field"
            )
        found[name] = batch[field]
    masks = {"mask": "token_mask", "source_mask": "source_mask"}
    for name, field in masks.items():
        if field in batch and any(p.name == name for p in takes):
            found[name] = batch[field]
    return found


def _variables(found: Restored, model, inputs, member: int) -> tuple[dict, int]:
    """({"params": ..., and what is carried} of one member, number of members or 0)."""
    import jax

    from nnkit.core.trees import difference

    want = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
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


def _huggingface(out: Path, found: Restored, model, inputs, variables, card: dict) -> str:
    from nnkit.interop import huggingface

    more = sorted(set(variables) - {"params"})
    if more:
        raise NotRestored(
            f"the model carries {more[0]!r} beside its parameters, which no file of transformers "
            "here holds; use --format stablehlo"
        )
    make = getattr(found.module, "tokenizer", None)
    tokenizer = None if make is None else make(found.config)
    huggingface.save(out, model, variables["params"], tokenizer=tokenizer, card=card)
    kind = (read_json(out / "config.json") or {})["architectures"][0]
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    return f"{out}: {kind}; {names}"


def _stablehlo(out: Path, found: Restored, model, inputs, variables, card: dict) -> str:
    import jax.numpy as jnp

    from nnkit.interop import serving

    specs = {name: (("b", *x.shape[1:]), jnp.asarray(x).dtype) for name, x in inputs.items()}
    about = {**card.get("training", {}), "settings": card.get("settings", {})}
    make = getattr(found.module, "tokenizer", None)
    if make is not None:
        about["shorter texts"] = "pad them on the right; output n - 1 is for the token after n"
    serving.export(model, variables, specs, out, about=about)
    if make is not None:
        make(found.config).save(out)
    shapes = ", ".join(
        f"{name} [{' '.join(map(str, shape))}]" for name, (shape, _) in specs.items()
    )
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    return f"{out}: a program of {shapes}; {names}"


def _card(run: Path, found: Restored, asked) -> dict:
    """What the model card says: what it is, how it was trained, with what results."""
    record = read_json(run / "config.json") or {}
    sessions = read_json(run / "env.json") or [{}]
    last = sessions[-1]
    about = (found.module.__doc__ or "").strip().split("\n\n")[0]
    bare = lambda word: Path(word).name if Path(word).is_absolute() else str(word)
    training = {"experiment": bare(record.get("experiment") or "")}
    training["checkpoint"] = found.said.replace(str(run), run.name)
    training["command"] = " ".join(bare(str(word)) for word in last.get("command") or [])
    training |= {key: last.get(key) for key in ("commit", "time")}
    card: dict[str, Any] = {"what it is": about} if about else {}
    card["training"] = {key: value for key, value in training.items() if value}
    card["settings"] = record.get("config", {})
    results = read_json(run / "results.json")
    if isinstance(results, list) and all(isinstance(row, dict) for row in results) and results:
        card["results"] = results
    versions = last.get("versions")
    if isinstance(versions, dict):
        card["versions"] = {name: version for name, version in versions.items() if version}
    return card
