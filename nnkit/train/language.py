"""What a language model wants: the next token, the hidden tokens, the target of a source."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core import keys
from nnkit.core.checks import concrete, dims
from nnkit.core.ranges import watching
from nnkit.train.masking import mask_tokens
from nnkit.train.objectives import Objective, pair
from nnkit.train.scores import per_token

__all__ = ["causal_lm", "masked_lm", "seq2seq"]

BESIDE = {  # fields of a batch, and the arguments of a model they become
    "token_mask": "mask",
    "segments": "segments",
    "positions": "positions",
    "token_types": "token_types",
}


def causal_lm(
    model,
    *,
    smoothing=0.0,
    z_loss=0.0,
    aux: Mapping[str, float] | None = None,
    byte_lengths=None,
) -> Objective:
    """Learn to give the next token: cross-entropy per token, every token counting the same.

    sum m_bt (-log softmax(logits_bt)[labels_bt]) / sum m_bt, over all tokens of all batches;
    m is "label_mask" times the "mask" of the batch.

    A batch has "tokens" and "labels" [b t] (the label of a place is the token after it, as
    `nk.data.text` gives them), and, if need be: "label_mask" [b t], the labels that count;
    "token_mask" [b t], False for padding; "segments" [b t], documents that do not see each other, 0
    being padding; "positions" [b t]. The last three are handed to the model as mask=, segments= and
    positions=.

    Args:
      model: a Linen module whose call takes the tokens first, such as models.GPT or RecurrentLM,
        or an (init, apply) tuple (see `pair`): x is the tokens, or, if a batch has more fields,
        a dict {"tokens", "mask", "segments", "positions"} of those there are. It gives logits
        [b t v], or (logits, {"balance": [b], "z": [b]}) with auxiliary losses.
      smoothing: share of the label spread over all tokens.
      z_loss: weight of log^2 Z at each token; 1e-4 in PaLM.
      aux: weights of auxiliary losses by name; None: 0.01 "balance" + 0.001 "z". A loss of the
        model that is not named here is only logged.
      byte_lengths: [v] bytes of each token (`tokenizer.byte_lengths`), for "bits_per_byte".

    Returns:
      An `Objective` with the metrics "loss"; "nats", the plain cross-entropy per token, without
      smoothing, z_loss and aux; "accuracy", the share of tokens that are the most likely one; the
      auxiliary losses; with byte_lengths "bits_per_byte", whose denominator is the UTF-8 bytes of
      the labels that count.

    Raises:
      KeyError: if a batch lacks a field; a batch with padding must say which labels count.
      ValueError: if the model cannot take a field that the batch has (a recurrent model does not
        keep packed documents apart), a label of the first batch is outside the vocabulary, the
        tokenizer has more tokens than the model, shapes differ, or aux names a loss that the model
        does not give.
      TypeError: if the model is none.

    >>> task = causal_lm(nk.models.GPT(vocabulary=11, length=8, width=8, depth=1, heads=2))
    >>> batch = {"tokens": jnp.array([[1, 2, 3]]), "labels": jnp.array([[2, 3, 4]])}
    >>> params, carry = jax.jit(task.init)(jax.random.key(0), batch)
    >>> mean, (carry, log) = task.loss(params, carry, batch, None)
    >>> sorted(log), float(mean.weight)
    (['accuracy', 'labels outside 0..10', 'loss', 'nats', 'tokens outside 0..10'], 3.0)

    Bengio et al. 2003, Journal of Machine Learning Research 3, section 2; balance: Fedus et al.,
    arXiv:2101.03961, eq. 4; z: Zoph et al., arXiv:2202.08906, eq. 5 and 6.
    """
    network = _Network("causal_lm", model, ("tokens",))
    score = functools.partial(
        per_token, smoothing=smoothing, z_loss=z_loss, aux=aux, byte_lengths=byte_lengths
    )

    def read(batch, key):
        _needs("causal_lm", batch, ("tokens", "labels"))
        padded = [name for name in ("token_mask", "segments") if name in batch]
        if padded and "label_mask" not in batch:
            raise KeyError(
                f"the batch has {padded[0]!r} but no 'label_mask' [b t]: which labels are padding, "
                "or the first token of another document? nk.data.text and nk.data.pack give it"
            )
        x = network.inputs((batch["tokens"],), _beside(batch))
        return x, batch["labels"], _counts(batch, batch.get("label_mask"), batch["labels"]), key

    return _objective(network, read, score)


def masked_lm(
    model,
    *,
    mask_id: int,
    special=(),
    vocabulary: int | None = None,
    share=0.15,
    hide=0.8,
    swap=0.1,
    z_loss=0.0,
) -> Objective:
    """Learn to guess hidden tokens from those on both sides: BERT's pre-training.

    The tokens that `mask_tokens` chooses are hidden, and only they are in the loss: cross-entropy
    per chosen token. With key=None, in evaluation, what is hidden follows from the tokens of a row
    alone, so that every evaluation hides the same, whatever the batches.

    A batch has "tokens" [b t], and, if need be, "token_mask", "token_types", "segments" (0 is
    padding) and "positions" [b t], which are handed to the model as in `causal_lm`.

    Args:
      model: a Linen module or an (init, apply) tuple as in `causal_lm`, such as models.BERT with
        classes=None; it gives logits [b t v].
      mask_id: id of the mask (`tokenizer.mask`).
      special: ids that are never chosen: padding, start, end (`tokenizer.special.values()`).
      vocabulary: number of tokens; None asks the model, `model.vocabulary`.
      share: of the ordinary tokens of a row that are chosen, 15 %.
      hide: share of the chosen ones that become the mask, 80 %.
      swap: share of the chosen ones that become a random token, 10 %.
      z_loss: weight of log^2 Z at each token.

    Returns:
      An `Objective` with the metrics "loss", "nats" (without z_loss) and "accuracy", all per chosen
      token.

    Raises:
      KeyError: if a batch has no tokens.
      ValueError: as in `causal_lm` and `mask_tokens`; if the vocabulary is not known.
      TypeError: if the model is none.

    >>> bert = nk.models.BERT(vocabulary=11, length=8, width=8, depth=1, heads=2)
    >>> task, batch = masked_lm(bert, mask_id=10), {"tokens": jnp.arange(8)[None]}
    >>> params, carry = jax.jit(task.init)(jax.random.key(0), batch)
    >>> mean, (carry, log) = task.loss(params, carry, batch, jax.random.key(1))
    >>> sorted(log), float(mean.weight)  # round(0.15 * 8)
    (['accuracy', 'loss', 'nats', 'tokens outside 0..10'], 1.0)

    Devlin et al., arXiv:1810.04805, section 3.1, task 1.
    """
    network = _Network("masked_lm", model, ("tokens",))
    size = getattr(model, "vocabulary", None) if vocabulary is None else vocabulary
    if size is None:
        raise ValueError(
            f"masked_lm: {type(model).__name__} has no field `vocabulary`; say vocabulary=, the "
            "number of tokens of which a random one is drawn"
        )

    def read(batch, key):
        _needs("masked_lm", batch, ("tokens",))
        beside = _beside(batch)
        own = None if key is None else keys.fold(key, "masked_lm")
        seen, chosen = mask_tokens(
            own,
            batch["tokens"],
            mask_id=mask_id,
            vocabulary=size,
            special=special,
            token_mask=beside.get("mask"),
            share=share,
            hide=hide,
            swap=swap,
        )
        x = network.inputs((seen,), beside)
        key = None if key is None else keys.fold(key, "model")
        return x, batch["tokens"], _counts(batch, chosen, batch["tokens"]), key

    return _objective(network, read, functools.partial(per_token, z_loss=z_loss))


def seq2seq(
    model, *, begin: int | None = None, smoothing=0.0, z_loss=0.0, byte_lengths=None
) -> Objective:
    """Learn to write the target of a source, each token from the source and the target so far.

    Cross-entropy per target token of logits = model(source, [begin, target_0, ..., target_(t-2)]),
    every token of "target_mask" counting the same.

    A batch has "source" [b s] and "target" [b t] (with its end token), and, if there is padding,
    "source_mask" [b s] and "target_mask" [b t], True for real tokens.

    Args:
      model: a Linen module such as models.EncDec, called with (source, target_in, source_mask=,
        target_mask=), or an (init, apply) tuple whose x is a dict {"source", "target_in",
        "source_mask", "target_mask"} of those there are. It gives logits [b t v].
      begin: id of the token that the decoder reads first; None asks the model, `model.begin`, or
        is 0.
      smoothing: share of the label spread over all tokens; 0.1 for translation.
      z_loss: weight of log^2 Z at each token.
      byte_lengths: [v] bytes of each token, for "bits_per_byte" of the target.

    Returns:
      An `Objective` with the metrics "loss", "nats", "accuracy" and, with byte_lengths,
      "bits_per_byte", as in `causal_lm`.

    Raises:
      KeyError: if a batch lacks a field.
      ValueError: if the model cannot take a mask that the batch has, a target of the first batch is
        outside the vocabulary, or shapes differ.
      TypeError: if the model is none.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "head_dim": 4, "hidden": 8}
    >>> task = seq2seq(nk.models.EncDec(vocabulary=11, **sizes), smoothing=0.1)
    >>> batch = {"source": jnp.array([[1, 2, 3]]), "target": jnp.array([[4, 5]])}
    >>> params, carry = jax.jit(task.init)(jax.random.key(0), batch)
    >>> float(task.loss(params, carry, batch, None)[0].weight)
    2.0

    Sutskever et al., arXiv:1409.3215, eq. 1; Raffel et al., arXiv:1910.10683, section 2.1.
    """
    network = _Network("seq2seq", model, ("source", "target_in"))
    first = getattr(model, "begin", 0) if begin is None else begin
    score = functools.partial(
        per_token, smoothing=smoothing, z_loss=z_loss, byte_lengths=byte_lengths
    )

    def read(batch, key):
        _needs("seq2seq", batch, ("source", "target"))
        target = jnp.asarray(batch["target"])
        mask = batch.get("target_mask")
        beside = {"source_mask": batch["source_mask"]} if "source_mask" in batch else {}
        if mask is not None:
            dims("b t, b t", target=target, target_mask=mask)
            beside["target_mask"] = _shifted(jnp.asarray(mask).astype(bool), True)
        x = network.inputs((batch["source"], _shifted(target, first)), beside)
        return x, batch["target"], _counts(batch, mask, target), key

    return _objective(network, read, score)


class _Network:
    """A model as (init, apply), and how its arguments are called."""

    def __init__(self, owner: str, model, first: tuple[str, ...]):
        self.begin, self.apply = pair(model)
        self.owner, self.first, self.takes = owner, first, None
        self.name = type(model).__name__
        if not isinstance(model, tuple):
            named = inspect.signature(type(model).__call__).parameters
            open_ended = any(p.kind is p.VAR_KEYWORD for p in named.values())
            self.takes = None if open_ended else set(named)
            self.first = tuple(named)[1 : 1 + len(first)]

    def inputs(self, arrays: tuple, beside: Mapping[str, Any]):
        """The x of `pair`: arrays in order, or by name if there are others beside them."""
        for name in beside:
            if self.takes is None or name in self.takes:
                continue
            said = f"{self.owner}: the batch has {name}, but {self.name} takes no argument {name}="
            if name == "segments":
                said += (
                    ": it would not keep packed documents apart; put each document in a row of "
                    "its own (nk.data.pad), or use a model with segments, such as models.GPT"
                )
            raise ValueError(said)
        if len(arrays) == 1 and not beside:
            return arrays[0]
        return dict(zip(self.first, arrays)) | dict(beside)


def _objective(network: _Network, read: Callable, score: Callable) -> Objective:
    """read: (batch, key) -> (x, labels [b t], mask [b t] or None, key of the model)."""

    def init(key, batch):
        x, labels, mask, _ = read(batch, None)
        params, carry = network.begin(key, x)
        outputs = jax.eval_shape(lambda p, c: network.apply(p, c, x, None)[0], params, carry)
        known = concrete(labels), None if mask is None else concrete(mask)
        if known[0] is not None and (mask is None or known[1] is not None):
            jax.eval_shape(lambda o: score(o, *known), outputs)  # values as well
        return params, carry

    def loss(params, carry, batch, key):
        with watching(batch) as watch:
            x, labels, mask, key = read(batch, key)
            outputs, carry = network.apply(params, carry, x, key)
            mean, log = score(outputs, labels, mask)
        return mean, (carry, log | watch.counts())

    return Objective(init, loss)


def _beside(batch) -> dict[str, Any]:
    """What a model is given beside the tokens, by the names of its arguments."""
    found = {argument: batch[field] for field, argument in BESIDE.items() if field in batch}
    if "segments" in batch and "token_mask" not in batch:
        found["mask"] = batch["segments"] != 0
    return found


def _counts(batch, mask, labels):
    """Which labels [b t] count: those of the mask, in examples of the batch's "mask" [b]."""
    if mask is not None:
        dims("b t, b t", labels=labels, label_mask=mask)
    rows = batch.get("mask")
    if rows is None:
        return mask
    dims("b _, b", labels=labels, mask=rows)
    known = concrete(rows), None if mask is None else concrete(mask)
    if known[0] is not None and (mask is None or known[1] is not None):  # stays known
        whole = np.broadcast_to(known[0].astype(np.float32)[:, None], np.shape(labels))
        return whole if mask is None else whole * np.asarray(known[1]).astype(np.float32)
    rows = jnp.broadcast_to(jnp.asarray(rows).astype(jnp.float32)[:, None], jnp.shape(labels))
    return rows if mask is None else rows * jnp.asarray(mask).astype(jnp.float32)


def _needs(owner: str, batch, names) -> None:
    for name in names:
        if name not in batch:
            raise KeyError(
                f"the batch has the fields {sorted(batch)}, {owner} needs {name!r} [b t]: rename "
                "the field"
            )


def _shifted(tokens, begin):
    """What a decoder reads: the beginning, then all but the last, [b t]."""
    first = jnp.full((len(tokens), 1), begin, tokens.dtype)
    return jnp.concatenate([first, tokens[:, :-1]], 1)
