"""nnkit: deep learning as pure functions.

    Objective ──gradient──> Gradient ──step──> Step

| noun | pure functions | read as |
|---|---|---|
| `Objective` | init(key, batch) -> (params, carry); loss(params, carry, batch, key) | our wish |
| `Gradient` | init; grad(params, carry, batch, key) | which way is down |
| `Step` | init(key, batch) -> state; update(state, batch); weights(state) | one move |

`params` is what gradients flow to, `carry` is what is carried along, `key=None` is evaluation.
Objectives of language models: `causal_lm`, `masked_lm` (which hides tokens by `mask_tokens`),
`seq2seq`. A technique wraps exactly one noun, and its type says which:

- Objective -> Objective: `half`, `penalised`, `frozen`, `adapt`, `stacked`
- Gradient -> Gradient: `accumulate`, `averaged`, `clipped`, `sam`
- Objective -> Gradient: `per_example`
- Step -> Step: `ema`, `skip_nonfinite`, `rollback`, `replayed`, `repeat`, `seeded`, `ensemble`,
  `sweep`, `shard`, and on the members of a sweep `halving`, `population`

Of members: `best`, `member`, `chosen` (how they are mapped), `chunks`, `chunked` and `rounds` (as
many at a time as fit the memory).

Where things live, lowest rank first (a file imports only lower ranks):

    core        exact means, trees by path, shape checks, keys
    layers      Linen blocks, and the pure functions under them
    losses      per-example losses           metrics   per-example metrics, and of whole sets
    optim       schedules, masks by path, Muon: recipes on top of optax
    data        arrays, tfds, folder, table, text, tokenizers: batches with a mask, in any order
    parallel    meshes, sharding rules, many hosts
    models      Flax Linen modules           train     objectives, gradients, steps
    checkpoint  Orbax with a manifest
    loop        init, fit, evaluate, run, the run folder
    cost        `plan`: what a step takes on chips one does not have; operations counted
    generate    text from language models: sampling, beams, speculation
    interop     NNX modules; Hugging Face weights; programs to serve
    cli         the command `nnkit`

>>> import nnkit as nk
>>> nk.Step._fields
('init', 'update', 'weights')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "nnkit.core": ("Mean", "digest", "find"),
    "nnkit.train": (
        "Gradient Objective Step accumulate adapt averaged best causal_lm chosen chunked chunks "
        "clipped ema ensemble frozen gradient half halving in_turn mask_tokens masked_lm member "
        "objective pair penalised per_example population product repeat replayed rollback rounds "
        "sam seeded seq2seq shard skip_nonfinite spread stacked step supervised sweep unrolled"
    ).split(),
    "nnkit.parallel": ("hosts", "mesh", "rules"),
    "nnkit.checkpoint": ("Checkpoints",),
    "nnkit.cost": ("plan",),
    "nnkit.loop": "check evaluate fit init predict run Run patience".split(),
}
_HOME = {name: home for home, names in _WHERE.items() for name in names}
_PARTS = (
    "checkpoint cli core cost data generate interop layers loop losses metrics models optim "
    "parallel train"
).split()
_CORE = "checks keys means trees".split()

__all__ = sorted([*_HOME, *_PARTS, *_CORE])

if TYPE_CHECKING:  # what the lazy doors below lead to, for editors and type checkers
    from nnkit import (
        checkpoint,
        cli,
        core,
        cost,
        data,
        generate,
        interop,
        layers,
        loop,
        losses,
        metrics,
        models,
        optim,
        parallel,
        train,
    )
    from nnkit.checkpoint import Checkpoints
    from nnkit.core import Mean, checks, digest, find, keys, means, trees
    from nnkit.cost import plan
    from nnkit.loop import Run, check, evaluate, fit, init, patience, predict, run
    from nnkit.parallel import hosts, mesh, rules
    from nnkit.train import (
        Gradient,
        Objective,
        Step,
        accumulate,
        adapt,
        averaged,
        best,
        causal_lm,
        chosen,
        chunked,
        chunks,
        clipped,
        ema,
        ensemble,
        frozen,
        gradient,
        half,
        halving,
        in_turn,
        mask_tokens,
        masked_lm,
        member,
        objective,
        pair,
        penalised,
        per_example,
        population,
        product,
        repeat,
        replayed,
        rollback,
        rounds,
        sam,
        seeded,
        seq2seq,
        shard,
        skip_nonfinite,
        spread,
        stacked,
        step,
        supervised,
        sweep,
        unrolled,
    )


def __getattr__(name: str):
    """Import a part when it is first used: `import nnkit` alone costs no jax."""
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PARTS:
        found = importlib.import_module(f"nnkit.{name}")
    elif name in _CORE:
        found = importlib.import_module(f"nnkit.core.{name}")
    else:
        raise AttributeError(f"module 'nnkit' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
