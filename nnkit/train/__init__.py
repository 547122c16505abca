"""Rank 2, the heart: Objective -> Gradient -> Step, and the techniques that wrap each."""

from nnkit.train.gradients import Gradient, accumulate, clipped, gradient, per_example, sam
from nnkit.train.language import causal_lm, masked_lm, seq2seq
from nnkit.train.masking import mask_tokens
from nnkit.train.members import ensemble, in_turn, product, spread, sweep, unrolled
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
from nnkit.train.sharding import shard
from nnkit.train.steps import Step, ema, repeat, seeded, skip_nonfinite, step

__all__ = [
    "Gradient",
    "Objective",
    "Step",
    "accumulate",
    "adapt",
    "causal_lm",
    "clipped",
    "ema",
    "ensemble",
    "frozen",
    "gradient",
    "half",
    "in_turn",
    "mask_tokens",
    "masked_lm",
    "objective",
    "pair",
    "penalised",
    "per_example",
    "product",
    "repeat",
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
