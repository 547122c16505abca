"""Rank 3: doors to other ways of writing models."""

from nnkit.interop import nnx

__all__ = ["nnx"]
