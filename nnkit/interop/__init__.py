"""Rank 3: doors to other ways of writing models, to their files, and to serving."""

from nnkit.interop import huggingface, nnx, serving

__all__ = ["huggingface", "nnx", "serving"]
