"""Checks of what layers are given, for the files of this folder: fields, kinds and sizes."""

from __future__ import annotations

import jax.numpy as jnp

__all__: list[str] = []


def real(layer: str, x):
    """An array [...] of floats, as it is."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{layer}: x is {x.dtype}, expected floats; pictures: x.astype(jnp.float32) / 255, "
            "token ids: layers.Embed"
        )
    return x


def channels(module, x, kernel: str = "kernel", *, axis: int = -2, groups: int = 1) -> None:
    """The features of x [... c] must be those that the weights of a bound module were made for."""
    if not module.has_variable("params", kernel):
        return
    made = module.get_variable("params", kernel)
    shape, want = tuple(jnp.shape(made)), jnp.shape(made)[axis] * groups
    if x.shape[-1] != want:
        raise ValueError(
            f"{type(module).__name__} {module.name or ''}: x has shape {x.shape}, expected "
            f"{want} features on the last axis, for which its {kernel} {shape} was made; pictures "
            "are [b h w c], sequences [b t d]"
        )


def wide(x):
    """x [...] in float32 or wider, for statistics and sums."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
