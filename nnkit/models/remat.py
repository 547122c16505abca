"""What the blocks of a model keep for the backward pass, and what they compute again."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

__all__ = ["POLICIES", "kept", "known"]

POLICIES = {
    name: getattr(jax.checkpoint_policies, f"{name}_saveable")
    for name in ("nothing", "dots_with_no_batch_dims", "dots", "everything")
}


def known(model: str, remat: str | Callable | None) -> None:
    """A field `remat` must be None, a name of `POLICIES`, or a policy.

    Args:
      model: its name, for the message.
      remat: the field.

    Raises:
      ValueError: if it is none of them; the message lists the names.

    >>> known("GPT", "all")
    Traceback (most recent call last):
        ...
    ValueError: GPT: remat is 'all', expected None (nothing is computed again), one of 'nothing'...
    """
    if remat is None or callable(remat) or remat in POLICIES:
        return
    names = ", ".join(repr(name) for name in POLICIES)
    raise ValueError(
        f"{model}: remat is {remat!r}, expected None (nothing is computed again), one of {names}, "
        "which say what is kept, or a policy of jax.checkpoint_policies"
    )


def kept(remat: str | Callable | None, f: Callable) -> Callable:
    """f(module, *arrays), of which the backward pass computes again what is not kept.

    The numbers are the same; memory falls from all activations of a block to what the policy
    keeps, and its input. "nothing": the whole block is computed again, a third more work.
    "dots_with_no_batch_dims": products with weights are kept, attention scores are not. "dots":
    all products are kept; "everything": all is.

    Args:
      remat: a name of `POLICIES`, a policy of `jax.checkpoint_policies`, or None for f as it is.
      f: function of a bound Linen module and trees of arrays [...].

    Returns:
      A function of the same arguments.

    >>> kept(None, abs) is abs
    True

    Chen et al., arXiv:1604.06174; policies: Korthikanti et al., arXiv:2205.05198, section 5.
    """
    if remat is None:
        return f
    return nn.remat(f, policy=POLICIES.get(remat) if isinstance(remat, str) else remat)
