"""`nnkit export`: the model of a run as files that others open."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnkit.cli.restored import (
    NotRestored,
    Restored,
    inputs,
    network,
    one_member,
    read_json,
    restored,
)
from nnkit.core.privacy import private

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
        model = network(found, asked.run)
        fed = inputs(found, model, asked.run)
        variables, count = one_member(found, model, fed, asked.member)
        write = _huggingface if asked.format == "huggingface" else _stablehlo
        said = write(out, found, model, fed, variables, _card(Path(asked.run), found, asked))
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


def _huggingface(out: Path, found: Restored, model, fed, variables, card: dict) -> str:
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


def _stablehlo(out: Path, found: Restored, model, fed, variables, card: dict) -> str:
    import jax.numpy as jnp

    from nnkit.interop import serving

    specs = {name: (("b", *x.shape[1:]), jnp.asarray(x).dtype) for name, x in fed.items()}
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
    return private(card)
