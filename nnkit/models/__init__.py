"""Rank 2: model families as Flax Linen modules, one file each, readable alone."""

from nnkit.models.convnet import ConvNet
from nnkit.models.mlp import MLP, Linear

__all__ = ["MLP", "ConvNet", "Linear"]
