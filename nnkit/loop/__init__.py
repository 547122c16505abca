"""Rank 3: init, fit, evaluate, run, and the folder a run leaves."""

from nnkit.loop.checking import check
from nnkit.loop.evaluation import evaluate, predict
from nnkit.loop.fitting import fit, patience
from nnkit.loop.records import Run
from nnkit.loop.running import Result, run
from nnkit.loop.start import init
from nnkit.loop.tables import interval, number, percent, print_table

__all__ = [
    "Result",
    "Run",
    "check",
    "evaluate",
    "fit",
    "init",
    "interval",
    "number",
    "patience",
    "percent",
    "predict",
    "print_table",
    "run",
]
