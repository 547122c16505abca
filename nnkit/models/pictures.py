"""Are these pictures what the model takes? Asked of the input when a model is called."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["pictures"]


def pictures(model: str, x, *, least: int = 1) -> jax.Array:
    """Pictures [b h w c] as a float array, checked before any layer sees them.

    Args:
      model: its name, for the messages.
      x: [b h w c] float pictures.
      least: smallest height and width.

    Returns:
      x [b h w c].

    Raises:
      ValueError: if x is not [b h w c], looks like [b c h w], or is too small.
      TypeError: if x holds integers.

    >>> pictures("ResNet", jnp.ones((2, 3, 32, 32)))
    Traceback (most recent call last):
        ...
    ValueError: ResNet: x has shape (2, 3, 32, 32), which looks like [b c h w]; expected [b h w...

    Axis order: Flax `nn.Conv`, channels last.
    """
    x = jnp.asarray(x)
    said = f"{model}: x has shape {x.shape}, "
    if x.ndim != 4:
        hint = "; one picture: x[None]; one channel: x[..., None]" if x.ndim in (2, 3) else ""
        raise ValueError(f"{said}expected [b h w c]{hint}")
    _, h, w, c = x.shape
    if h in (1, 3) and c not in (1, 3) and w > h:
        raise ValueError(
            f"{said}which looks like [b c h w]; expected [b h w c]: "
            "jnp.transpose(x, (0, 2, 3, 1)) makes it so"
        )
    if min(h, w) < least:
        raise ValueError(f"{said}expected h and w of at least {least}: resize or pad the pictures")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{model}: x is {x.dtype}{list(x.shape)}, expected floats near unit scale: "
            "x.astype(jnp.float32) / 255 for bytes"
        )
    return x
