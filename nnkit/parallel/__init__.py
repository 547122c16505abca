"""Rank 1: meshes, rules from the path of a leaf to the axes it is split over, many hosts."""

from nnkit.parallel import hosts, rules
from nnkit.parallel.mesh import mesh

__all__ = ["hosts", "mesh", "rules"]
