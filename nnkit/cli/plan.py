"""`nnkit plan`: what training an experiment takes on chips that need not be there."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

__all__ = ["plan"]


def plan(words: list[str]) -> int:
    """nnkit plan EXPERIMENT --topology v5e:4x4 --mesh fsdp=16 [--field value].

    EXPERIMENT is one of `nnkit train`, whose step and first batch are compiled as they are, or a
    published size of models.GPT such as gpt2, trained in bfloat16 with AdamW. Progress goes to
    stderr, the table to the terminal.

    Args:
      words: the words after the verb.

    Returns:
      The exit code: 0 if it fits, 1 if it does not, 2 if the words were wrong.

    >>> plan(["digits", "--topology", "v5:4x4"])  # doctest: +ELLIPSIS
    there is no chip 'v5', expected one of cpu, v3, v4, v5e, ...
    2
    """
    try:
        asked, rest = _parser().parse_known_args(words)
    except SystemExit as ended:  # --help, or words that are wrong: said by argparse
        return int(ended.code or 0)
    try:
        mesh = _mesh(asked.mesh)
        _possible(asked)
        _devices(asked.topology)
        step, batch, model = _work(asked, rest)
    except SystemExit as ended:  # by tyro
        return int(ended.code or 0)
    except (FileNotFoundError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        print(error.args[0] if error.args else error)
        return 2
    import nnkit as nk

    assume = {name: getattr(asked, name) for name in ASSUMED if getattr(asked, name) is not None}
    try:
        found = nk.plan(
            step,
            batch,
            asked.topology,
            mesh=mesh,
            model=model,
            tokens=asked.tokens,
            assume=assume,
            search=asked.search or None,
        )
    except (ImportError, TypeError, ValueError) as error:
        print(error.args[0] if error.args else error)
        return 2
    print(found)
    return 0 if found.fits else 1


ASSUMED = {
    "efficiency": "share of the roofline that is reached (default: 0.46)",
    "usable": "share of a chip's memory that a program gets",
    "watts": "power of one chip under load (default: its data sheet's, if there is one)",
    "overhead": "power of the site over that of the chips (default: 1.56)",
    "carbon": "kg of CO2e per kWh (default: 0.445)",
    "price": "of one chip for an hour (default: unknown)",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnkit plan",
        description="What training EXPERIMENT takes on chips that need not be there: memory, "
        "operations, communication, time, energy and cost. Other words are fields of the "
        "experiment, as in `nnkit train`. Exit status 0: it fits; 1: it does not.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", help="a name, a file.py, or a size such as gpt2")
    add(
        "--topology",
        help="chip and shape: v5e:4x4, v5p:2x2x1, h100:8, cpu:8 (default: the attached devices)",
    )
    add("--mesh", help="axes of the devices, such as fsdp=16 or data=2,tensor=8 (default: data)")
    add("--batch", type=int, help="examples of a step (default: those of the experiment)")
    add("--tokens", type=float, help="of the whole training, such as 10e9; or examples")
    add("--search", action="store_true", help="look for the largest batch that fits")
    for name, text in ASSUMED.items():
        add(f"--{name}", type=float, help="assume: " + text)
    return parser


def _mesh(words: str | None) -> dict[str, int] | None:
    if words is None:
        return None
    found = {}
    for part in words.replace(",", " ").split():
        name, _, size = part.partition("=")
        if not name.isidentifier() or not size.isdigit() or name in found:
            raise ValueError(f"--mesh is {words!r}, expected axes with sizes such as fsdp=16")
        found[name] = int(size)
    if not found:
        raise ValueError("--mesh is empty, expected axes with sizes such as fsdp=16")
    return found


def _possible(asked) -> None:
    for name, least in (("batch", 1), ("tokens", 1)):
        x = getattr(asked, name)
        if x is not None and not (math.isfinite(x) and x >= least):
            raise ValueError(f"--{name} is {x:g}, expected a number >= {least}")


def _devices(topology: str | None) -> None:
    """Plans are made on the CPU: no accelerator is started, and as many CPU devices as asked."""
    if topology is None:
        return
    import jax

    from nnkit.cost import chip, target

    name, _, shape = topology.partition(":")
    kind = chip(name).kind
    with contextlib.suppress(RuntimeError):  # jax has started already: it stays as it is
        jax.config.update("jax_platforms", "cpu")
        there = max(1, getattr(jax.config, "jax_num_cpu_devices", 1))
        if kind == "cpu" and shape.isdigit() and int(shape) > there:
            jax.config.update("jax_num_cpu_devices", int(shape))
    target(topology)  # a compiler that is missing is said before any data are read


def _work(asked, rest: list[str]) -> tuple[Any, Any, Any]:
    """(step, batch, model or None) of an experiment, or of a published size."""
    from nnkit.cli.train import cache_programs, folders
    from nnkit.models.gpt import SIZES

    known = {path.stem for folder in folders() for path in folder.glob("[a-z]*.py")}
    cache_programs()
    if asked.experiment in SIZES and asked.experiment not in known:
        if rest:
            raise ValueError(f"{asked.experiment} is a model and has no field {rest[0]!r}")
        return published(asked.experiment, asked.batch or 8)
    try:
        return _experiment(asked, rest)
    except FileNotFoundError as error:
        if asked.experiment in known or asked.experiment.endswith(".py"):
            raise
        raise FileNotFoundError(f"{error}, or a size of GPT: {', '.join(SIZES)}") from error


def published(size: str, batch_size: int) -> tuple[Any, Any, Any]:
    """A published size of GPT as it is trained: bfloat16 products, AdamW, whole sequences.

    Args:
      size: a name of `models.GPT.from_size`.
      batch_size: sequences of a step.

    Returns:
      (step, batch of shapes, model).

    >>> published("nanogpt-cpu", 4)[1]["tokens"].shape
    (4, 64)
    """
    import jax
    import optax

    import nnkit as nk
    from nnkit import models

    model = models.GPT.from_size(size)
    tokens = jax.ShapeDtypeStruct((batch_size, model.length), "int32")
    grad = nk.gradient(nk.half(nk.causal_lm(model)))
    return nk.step(grad, optax.adamw(3e-4)), {"tokens": tokens, "labels": tokens}, model


def _experiment(asked, rest: list[str]) -> tuple[Any, Any, Any]:
    import jax
    import tyro

    from nnkit.cli.train import load
    from nnkit.data.prepared import downloads

    module = load(asked.experiment)
    if not hasattr(module, "build"):
        raise ValueError(
            f"the experiment {asked.experiment!r} has no build(config), which gives its step and "
            "batches; a plan needs it"
        )
    name = Path(asked.experiment).stem
    config = tyro.cli(module.Config, args=rest, prog=f"nnkit plan {name}")
    if any(field.name == "devices" for field in dataclasses.fields(config)):
        config = dataclasses.replace(config, devices=1)  # the plan spreads the work, not the step
    print(f"building {name} ...", file=sys.stderr, flush=True)
    token = downloads.set(False)
    try:
        step, train, _ = module.build(config)
        batch = next(iter(train))
    finally:
        downloads.reset(token)
    if asked.batch is not None:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((asked.batch, *x.shape[1:]), x.dtype), batch
        )
    network = getattr(module, "network", None)
    return step, batch, None if network is None else network(config)
