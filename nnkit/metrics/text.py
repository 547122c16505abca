"""Metrics of text: the uncertainty per token and per byte, and BLEU by its reference program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import positive
from nnkit.core.means import Mean

__all__ = ["Bleu", "bits_per_byte", "bits_per_token", "bleu", "perplexity"]


def perplexity(nats):
    """How many tokens the model hesitates between, on average.

    exp(sum of nats / number of tokens): the exponential of the accumulated mean. The mean of the
    perplexities of batches or texts is another number, and larger.

    Args:
      nats: the accumulated `Mean` of nats per token, as `sequence_cross_entropy` gives under
        `supervised`, or its value [].

    Returns:
      [] float, at least 1 for a language model; [n] for a `Mean` of n members.

    Raises:
      ValueError: if `nats` is an array of several losses: those must be accumulated first.

    >>> a, b = Mean(jnp.float32(2.0), jnp.float32(4)), Mean(jnp.float32(0.0), jnp.float32(4))
    >>> round(float(perplexity(a + b)), 4)  # exp(2 / 8), not (exp(0.5) + 1) / 2
    1.284

    Jelinek et al. 1977, doi:10.1121/1.2016299.
    """
    return jnp.exp(_nats("perplexity", nats))


def bits_per_token(nats):
    """The mean of nats per token, in bits: bits per character where the tokens are characters.

    nats / log 2.

    Args:
      nats: the accumulated `Mean` of nats per token, or its value [].

    Returns:
      [] float.

    Raises:
      ValueError: if `nats` is an array of several losses.

    >>> round(float(bits_per_token(Mean(jnp.float32(math.log(8.0)), jnp.float32(1)))), 4)
    3.0

    Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x, section 6.
    """
    return _nats("bits_per_token", nats) / math.log(2)


def bits_per_byte(nats, tokens, bytes):
    """Bits the model needs for each byte of the text: comparable between tokenisers.

    nats * tokens / (bytes log 2): the total over all tokens, divided by the size of the text.

    Args:
      nats: the accumulated `Mean` of nats per token, or its value [].
      tokens: [] how many tokens that mean is over (the weight of the `Mean`).
      bytes: [] size of the same text in UTF-8: len(text.encode()); not characters.

    Returns:
      [] float.

    Raises:
      ValueError: if `nats` is an array of several losses, or a count is not above 0.

    >>> round(float(bits_per_byte(math.log(16.0), tokens=50, bytes=200)), 4)  # 4 bits, 4 bytes
    1.0

    Gao et al., arXiv:2101.00027, section 3.1.
    """
    positive(tokens=tokens, bytes=bytes)
    nats = _nats("bits_per_byte", nats)
    return nats * (jnp.asarray(tokens) / jnp.asarray(bytes)).astype(nats.dtype) / math.log(2)


class Bleu(NamedTuple):
    """BLEU with what must be said beside it.

    Attributes:
      score: 0 to 100.
      signature: sacrebleu's: tokenisation, case, smoothing, number of references, version.
      precisions: of n-grams of 1, 2, 3 and 4 tokens, in percent.
      brevity: factor for hypotheses shorter than the references, 0 to 1.
      lengths: tokens of the hypotheses and of the references.

    >>> Bleu(27.3, "nrefs:1|case:mixed|tok:13a", (60.0, 34.0, 21.0, 13.0), 1.0, (90, 88)).score
    27.3

    Papineni et al. 2002, doi:10.3115/1073083.1073135.
    """

    score: float
    signature: str
    precisions: tuple[float, ...]
    brevity: float
    lengths: tuple[int, int]


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Bleu:
    """BLEU of a corpus of detokenised texts, computed by sacrebleu.

    brevity * exp(mean_n log precision_n) over n-grams of 1 to 4, counted over the corpus. Numbers
    of different tokenisation or case are not comparable: quote the signature.

    Args:
      hypotheses: [n] texts as a reader would see them, not tokens joined by blanks.
      references: [n] texts, or [n] lists of equally many texts each.
      tokenize: "13a" (WMT, the default of sacrebleu), "intl", "zh", "char", or "none" for texts
        tokenised already (which is another score: say so).
      lowercase: True ignores case.

    Returns:
      A `Bleu`.

    Raises:
      ImportError: if sacrebleu is missing.
      TypeError: if one string comes where a list of them belongs.
      ValueError: if the numbers of texts differ, or there are none.

    >>> found = bleu(["The cat sat on the mat."], ["The cat sat on the mat."])
    >>> round(found.score, 1), found.signature
    (100.0, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2...')

    Papineni et al. 2002, doi:10.3115/1073083.1073135; Post, arXiv:1804.08771 (signature).
    """
    for name, texts in {"hypotheses": hypotheses, "references": references}.items():
        if isinstance(texts, str):
            raise TypeError(f"{name} is one string, expected a list of texts: [{texts!r:.30}]")
    sets = [[one] if isinstance(one, str) else list(one) for one in references]
    if len(hypotheses) != len(sets) or not sets:
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(sets)} references, expected as many, at least "
            "1; several references for a text go into one list: [[a, b], [c, d]]"
        )
    if len({len(one) for one in sets}) > 1 or not sets[0]:
        raise ValueError(
            f"the texts have {sorted({len(one) for one in sets})} references, expected the same "
            "number, at least 1, for each"
        )
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ImportError(
            "metrics.bleu computes BLEU by sacrebleu, which is not installed: "
            "pip install 'nnkit-jax[text]'"
        ) from error
    metric = BLEU(tokenize=tokenize, lowercase=lowercase)
    score = metric.corpus_score(list(hypotheses), [list(column) for column in zip(*sets)])
    return Bleu(
        float(score.score),
        str(metric.get_signature()),
        tuple(float(p) for p in score.precisions),
        float(score.bp),
        (int(score.sys_len), int(score.ref_len)),
    )


def _nats(name, nats):
    """The value of a `Mean`, or a number, as a float array."""
    if isinstance(nats, Mean):
        nats = nats.value
    elif np.ndim(nats):
        raise ValueError(
            f"{name} got an array of shape {np.shape(nats)}, expected the accumulated Mean of nats "
            "per token or its value: add the Means of all batches first (evaluate does)"
        )
    nats = jnp.asarray(nats)
    return nats if nats.dtype == jnp.float64 else nats.astype(jnp.float32)
