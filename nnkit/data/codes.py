"""What tokenizers are made of: unicode, ids, the letters of bytes, the form of their files."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["checked", "decoded", "letters", "numbered", "read", "utf8", "written"]


def read(texts):
    """Texts to learn from as they are, those of a `pathlib.Path` read; a name of a file is refused.

    Args:
      texts: a str, a path, or [n] str.

    Returns:
      A str or [n] str.

    Raises:
      FileNotFoundError: if a str names a file: that would be learned letter by letter.

    >>> read("emma")
    'emma'
    """
    if isinstance(texts, os.PathLike):
        return decoded(Path(texts).read_bytes(), str(texts))
    short = isinstance(texts, str) and len(texts) < 256 and not any(c.isspace() for c in texts)
    if short and (Path(texts).is_file() or re.search(r"\w\.[a-z]{2,4}$", texts)):
        raise FileNotFoundError(
            f"texts is {texts!r}, which reads like the name of a file, expected the text itself: "
            f"give pathlib.Path({texts!r}), or a list of texts"
        )
    return texts


def utf8(text: str) -> None:
    """A str must be unicode text: lone surrogates cannot be written in UTF-8.

    Args:
      text: any str.

    Raises:
      ValueError: naming the place.

    >>> utf8("a\\ud800")
    Traceback (most recent call last):
        ...
    ValueError: text has the lone surrogate '\\ud800' at place 1, which is no unicode text; ...
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has the lone surrogate {text[error.start]!r} at place {error.start}, which is "
            "no unicode text; give the bytes it was read from"
        ) from None


def decoded(raw: bytes, name: str) -> str:
    """Bytes as a str, which they must be.

    Args:
      raw: bytes in UTF-8.
      name: of what they are, for the message.

    Returns:
      The text.

    Raises:
      ValueError: naming the first wrong byte.

    >>> decoded(b"a\\xff", "book.txt")
    Traceback (most recent call last):
        ...
    ValueError: book.txt has the byte 0xff at place 1, which is no UTF-8; decode it with its own...
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} has the byte 0x{raw[error.start]:02x} at place {error.start}, which is no "
            "UTF-8; decode it with its own encoding first, or use Bytes(), which takes any bytes"
        ) from None


def checked(ids, size: int) -> list[int]:
    """Ids as a list of Python ints, all of them in the vocabulary.

    Args:
      ids: [n] integers.
      size: of the vocabulary.

    Returns:
      [n] ints.

    Raises:
      TypeError: if they are no integers.
      ValueError: if the shape is not [n], or one is outside.

    >>> checked([0, 9], size=5)
    Traceback (most recent call last):
        ...
    ValueError: ids run from 0 to 9, expected 0 to 4, the tokens of this tokenizer; was the text...
    """
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids has shape {ids.shape}, expected [n], one text at a time")
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"ids is {ids.dtype}, expected integers")
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"ids run from {ids.min()} to {ids.max()}, expected 0 to {size - 1}, the tokens of "
            "this tokenizer; was the text encoded by another one?"
        )
    return ids.tolist()


def numbered(names: Iterable[str], first: int) -> dict[str, int]:
    """Ids for the names of special tokens.

    Args:
      names: [m] strings.
      first: the id of the first one.

    Returns:
      {name: id}.

    Raises:
      TypeError: if it is one string, or a name is none.
      ValueError: if a name is empty or there twice.

    >>> numbered(("<|endoftext|>", "<pad>"), 256)
    {'<|endoftext|>': 256, '<pad>': 257}
    """
    if isinstance(names, str):
        raise TypeError(f"special is the string {names!r}, expected names: special=({names!r},)")
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"special has {name!r:.60}, expected names such as '<|endoftext|>'")
        if not name or names.count(name) > 1:
            what = "is empty" if not name else "is there twice"
            raise ValueError(f"the special token {name!r} {what}, expected names, each once")
        utf8(name)
    return {name: first + i for i, name in enumerate(names)}


@functools.cache
def letters() -> tuple[str, ...]:
    """The printable characters that stand for the bytes 0 to 255 in files of byte-level BPE.

    Returns:
      [256] characters: a byte that is printable in Latin-1 is itself, the others follow U+00FF.

    >>> letters()[65], letters()[32], len(set(letters()))
    ('A', 'Ġ', 256)

    Radford et al. 2019, section 2.2, and the code published with it.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [i for i in range(256) if i not in shown]
    return tuple(chr(256 + hidden.index(i)) if i in hidden else chr(i) for i in range(256))


def written(model: dict, special: dict[str, int], before: Any, after: Any) -> str:
    """A `tokenizer.json` as the library `tokenizers` reads it.

    Args:
      model: its "model".
      special: {name: id}.
      before: its "pre_tokenizer".
      after: its "decoder".

    Returns:
      The text of the file.

    >>> sorted(json.loads(written({}, {"<pad>": 3}, None, None)))[:2]
    ['added_tokens', 'decoder']
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": name, **plain, "special": True} for name, i in special.items()]
    parts: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    parts |= {"added_tokens": added, "normalizer": None, "pre_tokenizer": before}
    parts |= {"post_processor": None, "decoder": after, "model": model}
    return json.dumps(parts, ensure_ascii=False, indent=2) + "\n"
