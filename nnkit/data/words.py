"""Texts as word numbers: split by rules, numbered by frequency, padded with a mask."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np

__all__ = ["Vocabulary", "split_words"]

_KEPT = re.compile(r"[^A-Za-z0-9(),!?'`]")
_CLITIC = re.compile(r"('s|'ve|n't|'re|'d|'ll)")
_MARK = re.compile(r"([,!()?])")


def split_words(text: bytes | str) -> list[str]:
    """An English sentence as lower-case words, as Kim prepared movie reviews.

    Letters, digits and ( ) , ! ? ' ` are kept, everything else separates. 's 've n't 're 'd 'll
    and the marks ( ) , ! ? are words of their own.

    Args:
      text: str, or bytes in UTF-8.

    Returns:
      The words [t], none empty; [] for a text without any.

    Raises:
      TypeError: if it is neither str nor bytes.
      ValueError: if the bytes are not UTF-8.

    >>> split_words("It isn't bad, it's 8-bit!")
    ['it', 'is', "n't", 'bad', ',', 'it', "'s", '8', 'bit', '!']

    Kim, arXiv:1408.5882, `clean_str` of the code published with it.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"text is {text[:40]!r}, expected UTF-8 ({error}); decode it with its own "
                "encoding first"
            ) from error
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r:.60}, expected str or bytes, one text at a time")
    text = _CLITIC.sub(r" \1", _KEPT.sub(" ", text))
    return _MARK.sub(r" \1 ", text).lower().split()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words that have a number: 0 is padding, 1 any other word, then those of `words`.

    Attributes:
      words: the known words, none twice; word i has the number i + 2.
      split: text -> list of words.

    Raises:
      ValueError: if a word is there twice, or none.

    >>> v = Vocabulary.of(["good good film", "bad film"])
    >>> len(v), v.words
    (5, ('film', 'good', 'bad'))
    >>> v.encode(["a bad film", "good"])["tokens"]
    array([[1, 4, 2],
           [3, 0, 0]], dtype=int32)
    """

    words: tuple[str, ...]
    split: Callable[[bytes | str], Sequence[str]] = split_words

    PADDING = 0
    UNKNOWN = 1

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if not self.words:
            raise ValueError("the vocabulary has no words; Vocabulary.of(texts) collects them")
        if len(self._numbers) != len(self.words):
            twice = collections.Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"the word {twice!r} is there twice, expected each word once")

    @classmethod
    def of(
        cls, texts: Iterable[bytes | str], *, minimum: int = 1, split: Callable = split_words
    ) -> Vocabulary:
        """The words of texts, most frequent first (as often: in the order of the alphabet).

        Collect them from the training part only: a word of the test part is an unknown word.

        Args:
          texts: [n] texts.
          minimum: how often a word must occur; rarer ones become unknown. Above 1 the number 1
            is trained as well.
          split: text -> list of words.

        Returns:
          A `Vocabulary`.

        Raises:
          TypeError: if `texts` is one text.
          ValueError: if no word occurs `minimum` times.

        >>> Vocabulary.of(["good good film", "bad film"], minimum=2).words
        ('film', 'good')
        """
        counts = collections.Counter(word for text in _many(texts) for word in split(text))
        kept = sorted((-n, word) for word, n in counts.items() if n >= minimum)
        if not kept:
            raise ValueError(
                f"none of {len(counts)} words occurs {minimum} times; use a smaller minimum, 1 "
                "keeps all"
            )
        return cls(tuple(word for _, word in kept), split)

    def __len__(self) -> int:
        """Rows of an embedding: the words, padding and unknown."""
        return len(self.words) + 2

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: i + 2 for i, word in enumerate(self.words)}

    def encode(
        self, texts: Iterable[bytes | str], *, length: int | None = None, cut: bool = False
    ) -> dict[str, np.ndarray]:
        """Texts as numbers of one length, padded at the end.

        Args:
          texts: [n] texts.
          length: t; None takes the longest text.
          cut: shorten longer texts to their first t words.

        Returns:
          {"tokens": [n t] int32, "token_mask": [n t] bool}, True for words, also unknown ones.

        Raises:
          TypeError: if `texts` is one text.
          ValueError: if a text is longer than `length` and not to be cut, or there is no text.

        >>> Vocabulary(("film",)).encode(["a film", "b"], length=3)["token_mask"]
        array([[ True,  True, False],
               [ True, False, False]])
        """
        rows = [self.split(text) for text in _many(texts)]
        if not rows:
            raise ValueError("there is no text to encode, expected at least one")
        longest = max(map(len, rows))
        length = max(longest, 1) if length is None else length
        if longest > length and not cut:
            i = next(i for i, row in enumerate(rows) if len(row) > length)
            more = sum(len(row) > length for row in rows)
            raise ValueError(
                f"text {i} has {len(rows[i])} words, expected at most length={length} (so have "
                f"{more} of {len(rows)}); use length={longest}, or cut=True to shorten them"
            )
        tokens = np.zeros((len(rows), length), np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            numbers = [self._numbers.get(word, self.UNKNOWN) for word in row[:length]]
            tokens[i, : len(numbers)], mask[i, : len(numbers)] = numbers, True
        return {"tokens": tokens, "token_mask": mask}

    def decode(self, tokens) -> list[str]:
        """The words of one text; padding is left out, unknown ones are "?".

        Args:
          tokens: [t] integers.

        Returns:
          The words.

        Raises:
          ValueError: if a number is outside the vocabulary, or the shape is not [t].

        >>> Vocabulary(("film",)).decode([1, 2, 0])
        ['?', 'film']
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"tokens has shape {tokens.shape}, expected [t], one text at a time")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise ValueError(
                f"tokens run from {tokens.min()} to {tokens.max()}, expected 0..{len(self) - 1}: "
                "the vocabulary they were encoded with"
            )
        names = ("", "?", *self.words)
        return [names[i] for i in tokens if i != self.PADDING]


def _many(texts) -> Iterable:
    if isinstance(texts, bytes | str):
        raise TypeError(f"texts is one text, {texts!r:.40}, expected a list of them: [text]")
    return texts
