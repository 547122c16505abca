"""Rank 0: exact means, trees, shape checks and keys. Nothing here knows what a network is."""

from nnkit.core.checks import dims
from nnkit.core.keys import fold
from nnkit.core.means import Mean
from nnkit.core.trees import digest, find

__all__ = ["Mean", "digest", "dims", "find", "fold"]
