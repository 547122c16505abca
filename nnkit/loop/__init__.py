"""Rank 3: init, fit, evaluate, run, and the folder a run leaves."""

from nnkit.loop.checking import check
from nnkit.loop.curves import curves, write_csv
from nnkit.loop.evaluation import evaluate, predict
from nnkit.loop.fitting import fit, patience
from nnkit.loop.members import diverged, save_members
from nnkit.loop.records import Run
from nnkit.loop.retraces import watched
from nnkit.loop.running import Result, run
from nnkit.loop.start import init
from nnkit.loop.tables import interval, number, percent, print_table
from nnkit.loop.verdicts import Difference, Verdict, paired, verdict

__all__ = [
    "Difference",
    "Result",
    "Run",
    "Verdict",
    "check",
    "curves",
    "diverged",
    "evaluate",
    "fit",
    "init",
    "interval",
    "number",
    "paired",
    "patience",
    "percent",
    "predict",
    "print_table",
    "run",
    "save_members",
    "verdict",
    "watched",
    "write_csv",
]
