"""Cross-entropy, accuracy and bits per byte of the tokens of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import concrete
from nnkit.core.means import Mean
from nnkit.core.ranges import indexed
from nnkit.losses import sequence_cross_entropy

__all__ = ["per_token"]

AUX = {"balance": 0.01, "z": 0.001}  # weights of Switch and of ST-MoE


def per_token(outputs, labels, mask, *, smoothing=0.0, z_loss=0.0, aux=None, byte_lengths=None):
    """The loss of what a language model gave, and its metrics, over all tokens that count.

    Args:
      outputs: logits [b t v], or (logits, {name: [b]}) with auxiliary losses.
      labels: [b t] token ids.
      mask: [b t] labels that count, or None.
      smoothing: as `losses.sequence_cross_entropy` takes it.
      z_loss: as `losses.sequence_cross_entropy` takes it.
      aux: weights of the auxiliary losses by name, or None.
      byte_lengths: [v] bytes of every token, or None.

    Returns:
      (`Mean` [], {"loss", "nats", "accuracy", ...}).

    Raises:
      TypeError: if the outputs are something else.
      ValueError: if an auxiliary loss is missing, shapes differ, or a known label is outside the
        vocabulary.

    >>> mean, log = per_token(jnp.zeros((1, 2, 4)), jnp.array([[1, 3]]), None)
    >>> round(float(mean.value), 4), float(mean.weight)
    (1.3863, 2.0)
    """
    logits, extra = outputs if isinstance(outputs, tuple) else (outputs, {})
    indexed(labels, jnp.shape(logits)[-1])
    nats = sequence_cross_entropy(logits, labels, mask)  # totals and weights [b]
    shaped = any(isinstance(knob, jax.Array) or knob != 0 for knob in (smoothing, z_loss))
    knobs = {"smoothing": smoothing, "z_loss": z_loss}
    mean = sequence_cross_entropy(logits, labels, mask, **knobs) if shaped else nats
    log, added = {}, mean.total
    for name, weight in _weights(extra, aux).items():
        value = jnp.asarray(extra[name]).astype(mean.total.dtype) * mean.weight  # [b]
        added = added + jnp.asarray(weight).astype(value.dtype) * value
        log[name] = Mean(value.sum(), mean.weight.sum())
    nats, mean = (Mean(x.sum(), nats.weight.sum()) for x in (nats.total, added))
    real = np.ones(jnp.shape(labels), bool) if mask is None else mask
    right = logits.argmax(-1) == jnp.asarray(labels).astype(jnp.int32)
    log |= {"loss": mean, "nats": nats, "accuracy": Mean.of(right, real)}
    if byte_lengths is not None:
        size = _bytes(byte_lengths, labels, real, logits.shape[-1])
        log["bits_per_byte"] = Mean(nats.total / math.log(2), size.astype(nats.total.dtype))
    return mean, log


def _bytes(lengths, labels, mask, vocabulary: int):
    """Bytes [] of the labels [b t] that count; NaN for a traced label that the table lacks."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or len(lengths) > vocabulary:
        raise ValueError(
            f"byte_lengths has shape {lengths.shape}, expected (v) with v at most {vocabulary}, "
            "the tokens of the model; is it the tokenizer that the model was made for?"
        )
    known = concrete(labels), concrete(mask)
    if known[0] is not None and known[1] is not None:
        last = known[0][known[1] != 0].max(initial=0)
        if last >= len(lengths):
            raise ValueError(
                f"a label is {last}, but byte_lengths has {len(lengths)} tokens; is it the "
                "tokenizer that the text was encoded with?"
            )
    table = jnp.asarray(lengths, jnp.float32)
    mask = jnp.asarray(mask)
    labels = jnp.where(mask.astype(bool), jnp.asarray(labels).astype(jnp.int32), 0)
    each = jnp.take(table, labels, mode="fill", fill_value=jnp.nan)
    return (each * mask.astype(jnp.float32)).sum()


def _weights(extra, aux):
    """Weight of every auxiliary loss that a model gave."""
    if not isinstance(extra, Mapping):
        raise TypeError(
            f"the model gave logits and {type(extra).__name__}, expected logits [b t v], or "
            "(logits, {name: [b]}) with auxiliary losses"
        )
    wanted = {name: AUX[name] for name in extra if name in AUX} if aux is None else aux
    if missing := sorted(set(wanted) - set(extra)):
        raise ValueError(
            f"aux names {missing[0]!r}, but the model gives {sorted(extra) or 'logits alone'}; "
            "models.GPT(experts=..., with_aux=True) gives 'balance' and 'z'"
        )
    return {name: wanted.get(name, 0.0) for name in extra}
