"""Rank 2, the heart: Objective -> Gradient -> Step, and the techniques that wrap each."""

from nnkit.train.averaging import averaged
from nnkit.train.chunks import chunked, rounds
from nnkit.train.each import chosen, chunks, in_turn, spread, unrolled
from nnkit.train.gradients import Gradient, accumulate, clipped, gradient, per_example, sam
from nnkit.train.guards import replayed, rollback, skip_nonfinite
from nnkit.train.language import causal_lm, masked_lm, seq2seq
from nnkit.train.masking import mask_tokens
from nnkit.train.members import best, ensemble, member, product, sweep
from nnkit.train.objectives import (
    Objective,
    adapt,
    frozen,
    half,
    objective,
    pair,
    penalised,
    stacked,
    supervised,
)
from nnkit.train.select import halving, population
from nnkit.train.sharding import shard
from nnkit.train.steps import Step, ema, repeat, seeded, step

__all__ = [
    "Gradient",
    "Objective",
    "Step",
    "accumulate",
    "adapt",
    "averaged",
    "best",
    "causal_lm",
    "chosen",
    "chunked",
    "chunks",
    "clipped",
    "ema",
    "ensemble",
    "frozen",
    "gradient",
    "half",
    "halving",
    "in_turn",
    "mask_tokens",
    "masked_lm",
    "member",
    "objective",
    "pair",
    "penalised",
    "per_example",
    "population",
    "product",
    "repeat",
    "replayed",
    "rollback",
    "rounds",
    "sam",
    "seeded",
    "seq2seq",
    "shard",
    "skip_nonfinite",
    "spread",
    "stacked",
    "step",
    "supervised",
    "sweep",
    "unrolled",
]
