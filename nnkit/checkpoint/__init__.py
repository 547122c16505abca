"""Rank 2: checkpoints which are complete or absent: Orbax arrays under a manifest of digests."""

from nnkit.checkpoint.checkpoints import Checkpoints, Restored
from nnkit.checkpoint.locks import Locked
from nnkit.checkpoint.manifest import CorruptCheckpoint, verify

__all__ = ["Checkpoints", "CorruptCheckpoint", "Locked", "Restored", "verify"]
