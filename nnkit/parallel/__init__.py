"""Rank 1: meshes, and rules from the path of a leaf to the axes it is split over."""

from nnkit.parallel import rules
from nnkit.parallel.mesh import mesh

__all__ = ["mesh", "rules"]
