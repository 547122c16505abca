"""Learning rates as functions of the step: step [] -> rate [], for any optimizer of optax.

Every number may be traced: a peak that `sweep` varies is data, not part of the program. Steps
count from 0; with a warm-up the rate of step 0 is 0, as in optax and transformers.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nnkit.core.checks import concrete, positive

__all__ = ["inverse_sqrt", "linear", "warmup_cosine", "wsd"]


def warmup_cosine(peak, steps, warmup=0, final=0.0) -> Callable:
    """A linear warm-up to the peak, then half a cosine down.

    peak t / warmup up to step `warmup`, then peak (final + (1 - final) (1 + cos(pi u)) / 2) with
    u = (t - warmup) / (steps - warmup); peak * final afterwards.

    Args:
      peak: [] the largest rate; may be traced.
      steps: int, the whole length, warm-up included.
      warmup: int, steps of the warm-up; 0 for none.
      final: [] last rate as a share of the peak; 0.1 in GPT-3.

    Returns:
      step [] -> rate [] float32 (float64 where jax has that enabled).

    Raises:
      ValueError: if the peak is not above 0, or warmup < steps or 0 <= final <= 1 does not hold.

    >>> rate = warmup_cosine(1.0, steps=20, warmup=4, final=0.5)
    >>> [round(float(rate(t)), 3) for t in (0, 2, 4, 12, 20, 99)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]

    Loshchilov & Hutter, arXiv:1608.03983, eq. 5; Brown et al., arXiv:2005.14165, appendix B.
    """
    _checked("warmup_cosine", peak, warmup=warmup, steps=steps, final=final)

    def rate(step):
        t, top, up, n, low = _floats(step, peak, warmup, steps, final)
        share = (1 + jnp.cos(jnp.pi * _progress(t - up, n - up))) / 2
        return top * _ramp(t, up) * (low + (1 - low) * share)

    return rate


def linear(peak, steps, warmup=0, final=0.0) -> Callable:
    """A linear warm-up to the peak, then a straight line down.

    peak t / warmup up to step `warmup`, then peak (1 - (1 - final) u) with
    u = (t - warmup) / (steps - warmup); peak * final afterwards.

    Args:
      peak: [] the largest rate; may be traced.
      steps: int, the whole length, warm-up included.
      warmup: int, steps of the warm-up; 0 for none.
      final: [] last rate as a share of the peak.

    Returns:
      step [] -> rate [] float32 (float64 where jax has that enabled).

    Raises:
      ValueError: if the peak is not above 0, or warmup < steps or 0 <= final <= 1 does not hold.

    >>> rate = linear(1.0, steps=20, warmup=4)
    >>> [round(float(rate(t)), 3) for t in (0, 2, 4, 12, 20, 99)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]

    Devlin et al., arXiv:1810.04805, appendix A.2.
    """
    _checked("linear", peak, warmup=warmup, steps=steps, final=final)

    def rate(step):
        t, top, up, n, low = _floats(step, peak, warmup, steps, final)
        return top * _ramp(t, up) * (1 - (1 - low) * _progress(t - up, n - up))

    return rate


def wsd(peak, steps, warmup, decay, final=0.0, *, power=1.0) -> Callable:
    """Warm-up, stable, decay: a run can be prolonged, and be decayed from any point.

    peak t / warmup, then peak, then over the last `decay` steps peak (1 - (1 - final) u^power)
    with u from 0 to 1; peak * final afterwards.

    Args:
      peak: [] the rate between warm-up and decay; may be traced.
      steps: int, the whole length.
      warmup: int, steps of the warm-up; 0 for none.
      decay: int, steps of the decay at the end; 0 for none: the peak stays.
      final: [] last rate as a share of the peak.
      power: 1 for a straight line, 0.5 for "1-sqrt" (Hägele et al. found it better), above 0.

    Returns:
      step [] -> rate [] float32 (float64 where jax has that enabled).

    Raises:
      ValueError: if a number is out of its range, or warmup + decay > steps.

    >>> rate = wsd(1.0, steps=20, warmup=4, decay=8, power=0.5)
    >>> [round(float(rate(t)), 3) for t in (0, 2, 4, 12, 14, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Hu et al., arXiv:2404.06395, eq. 1; Hägele et al., arXiv:2405.18392, section 4 (1-sqrt).
    """
    _checked("wsd", peak, warmup=warmup, steps=steps, final=final)
    positive(power=power)
    known = [x for x in map(concrete, (decay, steps, warmup)) if x is not None]
    if len(known) == 3 and not 0 <= known[0] <= known[1] - known[2]:
        raise ValueError(
            f"wsd: steps={steps}, warmup={warmup} and decay={decay}, expected decay >= 0 and "
            "warmup + decay <= steps: shorten the decay, the end of those steps"
        )

    def rate(step):
        t, top, up, n, low = _floats(step, peak, warmup, steps, final)
        last, bend = _floats(decay, power)
        begun = (last > 0) & (t > n - last)
        u = jnp.where(begun, _progress(t - (n - last), last), 1)  # 1: a slope at 0 is infinite
        fall = 1 - (1 - low) * jnp.where(begun, u**bend, 0)
        return top * _ramp(t, up) * fall

    return rate


def inverse_sqrt(peak, warmup) -> Callable:
    """A linear warm-up to the peak, then the inverse square root of the step: no last step.

    peak min(t / warmup, sqrt(warmup / t)). The Transformer of 2017 has peak (d warmup)^-1/2 for
    width d.

    Args:
      peak: [] the largest rate, reached at step `warmup`; may be traced.
      warmup: int, at least 1.

    Returns:
      step [] -> rate [] float32 (float64 where jax has that enabled).

    Raises:
      ValueError: if the peak is not above 0 or the warm-up below 1.

    >>> rate = inverse_sqrt(1.0, warmup=4)
    >>> [round(float(rate(t)), 3) for t in (0, 2, 4, 16)]
    [0.0, 0.5, 1.0, 0.5]

    Vaswani et al., arXiv:1706.03762, eq. 3.
    """
    positive(peak=peak)
    known = concrete(warmup)
    if known is not None and not known >= 1:
        raise ValueError(f"inverse_sqrt: warmup={warmup}, expected an int >= 1; 1000 is usual")

    def rate(step):
        t, top, up = _floats(step, peak, warmup)
        return top * jnp.minimum(t / up, jnp.sqrt(up / jnp.maximum(t, up)))

    return rate


def _checked(name, peak, *, warmup, steps, final):
    """The numbers of a schedule, those that are known."""
    positive(peak=peak)
    first, last, low = (concrete(x) for x in (warmup, steps, final))
    if first is not None and not first >= 0:
        raise ValueError(f"{name}: warmup={warmup}, expected a number of steps >= 0; 0 is off")
    if first is not None and last is not None and not first < last:
        raise ValueError(
            f"{name}: warmup={warmup} and steps={steps}, expected warmup < steps: steps is the "
            "whole length, the warm-up included: give a shorter warm-up"
        )
    if low is not None and not 0 <= low <= 1:
        raise ValueError(
            f"{name}: final={final}, expected a share of the peak, 0 <= final <= 1; "
            "for a last rate r write final=r / peak"
        )


def _floats(*numbers):
    """Numbers [] as float32, where a count below 2**24 is exact, or float64 if that is enabled."""
    return [jnp.asarray(x).astype(jax.dtypes.canonicalize_dtype(float)) for x in numbers]


def _ramp(t, warmup):
    """From 0 to 1 over the warm-up; 1 without one."""
    return jnp.where(t < warmup, t / jnp.maximum(warmup, 1), 1)


def _progress(t, n):
    """t / n from 0 to 1."""
    return jnp.clip(t / jnp.maximum(n, 1), 0, 1)
