"""Text as it is written, piece by piece, for a terminal."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import sizes
from nnkit.generate import inputs
from nnkit.generate.decoders import decoder
from nnkit.generate.sampling import Rule, advance, begin

__all__ = ["stream"]

LOST = "\ufffd"  # what bytes that are no whole character decode to


def stream(
    model,
    params,
    prompt: str,
    tokenizer,
    *,
    new_tokens,
    key=None,
    warp=None,
    end=None,
    special=False,
    chunk=8,
) -> Iterator[str]:
    """The text of `sample`, in pieces, while it is written.

    Joined, the pieces are the decoded text of `sample` with the same key, without the end. A
    character of several bytes is never cut: its first bytes wait for the others. The prompt is
    padded on the left to a power of two, so that prompts of about the same length share a program.

    Args:
      model: a `models.GPT`, `RecurrentLM`, `EncDec`, or any `Decoder`.
      params: its parameters.
      prompt: text to go on from, or a source; "" is the start of text, if the tokenizer has one.
      tokenizer: has encode(str) -> ids [t], decode(ids) -> str, len and `end`.
      new_tokens: the most tokens to write.
      key: [] a typed key; None is greedy.
      warp: as in `sample`.
      end: id that ends the text; None: that of the tokenizer, if it has one.
      special: read special tokens in the prompt as such, and add those of the tokenizer's template,
        as transformers does (Llama's token of the beginning, T5's of the end)?
      chunk: tokens written between two pieces.

    Returns:
      An iterator of str, none of them empty.

    Raises:
      TypeError: as `sample`.
      ValueError: as `sample`; before the first piece.

    >>> class Digits:
    ...     end = None
    ...     __len__ = lambda self: 10
    ...     encode = lambda self, text: np.array([int(letter) for letter in text])
    ...     decode = lambda self, ids: "".join(str(i) for i in ids)
    >>> model = nk.models.GPT(vocabulary=10, length=32, width=16, depth=1, heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]]))
    >>> len("".join(stream(model, params, "314", Digits(), new_tokens=9)))
    9

    Shazeer, arXiv:1911.02150, section 2.4; characters in bytes: RFC 3629, section 3.
    """
    made = decoder(model)
    inputs.weights("stream", params)
    sizes("stream", new_tokens=new_tokens, chunk=chunk)
    if not isinstance(prompt, str) or not hasattr(tokenizer, "encode"):
        raise TypeError(
            f"stream: prompt is {prompt!r:.40} and tokenizer {type(tokenizer).__name__}, expected "
            "a str and what encodes it: stream(model, params, prompt, tokenizer, new_tokens=...)"
        )
    if made.vocabulary is not None and len(tokenizer) > made.vocabulary:
        raise ValueError(
            f"stream: the tokenizer has {len(tokenizer)} tokens, but the vocabulary of the model "
            f"{made.vocabulary}; take the one that the model was trained with"
        )
    ids = _encoded(tokenizer, prompt, special)
    end = getattr(tokenizer, "end", None) if end is None else end
    inputs.prompt("stream", made, ids[None], None, new_tokens, end=end)
    tokens, mask = _padded(ids, None if made.length is None else made.length - new_tokens + 1)
    key = inputs.random_key("stream", key, 1)
    rule = Rule(inputs.warping(warp), key, inputs.token_id(end), inputs.token_id(0))
    found = _tokens(made, params, tokens, mask, rule, int(new_tokens), int(chunk))
    return _pieces(found, tokenizer, ids if made.continues else ids[:0], end)


def _encoded(tokenizer, prompt, special):
    """[t] ids of the prompt; of an empty one the start of text."""
    ids = np.asarray(tokenizer.encode(prompt, **({"special": True} if special else {})), np.int32)
    start = getattr(tokenizer, "start", None)
    if not ids.size and start is not None:
        ids = np.array([start], np.int32)
    if not ids.size:
        raise ValueError(
            f"stream: the prompt {prompt!r:.40} has no token, and the tokenizer no start of text; "
            "expected at least one token to write from"
        )
    return ids


def _padded(ids, most):
    """[1 t] tokens and mask, padded on the left to a power of two, or to `most`."""
    t = max(16, 1 << (len(ids) - 1).bit_length())
    short = max(0, (t if most is None else min(t, most)) - len(ids))
    pad = lambda x: np.pad(x, (short, 0))[None]
    return pad(ids), pad(np.ones(len(ids), bool))


def _tokens(made, params, tokens, mask, rule, new_tokens, chunk):
    """Chunks of new ids; the program of a chunk is compiled once."""
    state, new = _begin(made, params, tokens, mask, rule, new_tokens - 1)
    yield [int(new.tokens[0])]
    while int(state.n) < new_tokens and not bool(state.ended[0]):
        state, new = _advance(made, params, state, rule, chunk, jnp.asarray(new_tokens))
        yield np.asarray(new.tokens[0])[np.asarray(new.mask[0])].tolist()


def _pieces(found, tokenizer, before, end):
    """Text of what is new, up to the last whole character."""
    start = len(tokenizer.decode(before)) if len(before) else 0
    ids, shown, text = [int(i) for i in before], 0, ""
    for new in found:
        ids += [i for i in new if i != end]
        text = tokenizer.decode(np.asarray(ids, np.int32))[start:] if ids else ""
        whole = len(text.rstrip(LOST))
        if whole > shown:
            yield text[shown:whole]
            shown = whole
    if len(text) > shown:  # bytes that never became a character
        yield text[shown:]


_begin = functools.partial(jax.jit, static_argnames=("decoder", "room"))(begin)
_advance = functools.partial(jax.jit, static_argnames=("decoder", "size"))(advance)
