"""Rank 3: what a step costs before it is run: operations, memory, traffic, time, energy, money."""

from nnkit.cost.budget import Assumptions, Budget, Roofline
from nnkit.cost.chips import CHIPS, Chip, chip
from nnkit.cost.counting import Flops, flops, transformer
from nnkit.cost.planning import plan
from nnkit.cost.plans import Memory, Plan
from nnkit.cost.programs import Collective
from nnkit.cost.targets import Target, target

__all__ = [
    "CHIPS",
    "Assumptions",
    "Budget",
    "Chip",
    "Collective",
    "Flops",
    "Memory",
    "Plan",
    "Roofline",
    "Target",
    "chip",
    "flops",
    "plan",
    "target",
    "transformer",
]
