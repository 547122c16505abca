"""Rank 4: the command `nnkit`; acts on experiments and runs."""

from nnkit.cli.main import main
from nnkit.cli.train import launch

__all__ = ["launch", "main"]
