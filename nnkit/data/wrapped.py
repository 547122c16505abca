"""Tokenizers of others, read from a `tokenizer.json` by the library `tokenizers`."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from nnkit.core.documents import parsed
from nnkit.data.codes import checked, decoded, letters, utf8
from nnkit.data.tokenizers import Common

__all__ = ["Wrapped", "imported"]

_INVALID = re.compile("([\udc80-\udcff]+)")


@dataclasses.dataclass(frozen=True, repr=False)
class Wrapped(Common):
    """A tokenizer of the library `tokenizers`, as its file says; made by `nk.data.tokenizer`.

    encode(text) gives the ids of the text alone: no token is put around it, and a special token
    written in it is read as letters. encode(text, special=True) gives what the library gives, the
    tokens of its template ([CLS] ... [SEP]) and special tokens in the text included. Truncation and
    padding that the file may ask for are switched off. `decode` is that of the library; where the
    text is lost on the way (lower case, unicode normalisation, unknown words), `lossy` says why,
    `byte_lengths` is None, and `decode_bytes` gives the bytes of what `decode` gives.

    Attributes:
      json: the text of the file.

    Raises:
      ImportError: when first used, if `tokenizers` is missing.
      TypeError: if a text is neither str nor bytes, or ids are no integers.
      ValueError: if the file is no tokenizer or draws its tokens at random, a str is no unicode
        text, or an id is outside the vocabulary.

    >>> bert = '{"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "good": 1}}}'
    >>> t = nk.data.Wrapped(bert)
    >>> len(t), t.byte_lengths, t.lossy
    (2, None, 'its model is WordPiece, not BPE on bytes')
    """

    json: str

    def __post_init__(self):
        if (self._file["model"].get("dropout") or 0) > 0:
            raise ValueError(
                f"the tokenizer has dropout={self._file['model']['dropout']}: a text would have "
                'other tokens every time; set "dropout" to null in its file'
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    @functools.cached_property
    def _file(self) -> dict[str, Any]:
        try:
            found = parsed(self.json)
        except ValueError as error:
            raise ValueError(f"the tokenizer is no JSON: {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
            raise ValueError(
                f"the tokenizer has {sorted(found) if isinstance(found, dict) else type(found)}, "
                'expected a mapping with "model", as the library tokenizers writes it '
                "(tokenizer.json, not tokenizer_config.json or vocab.json)"
            )
        return found

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        """Ids of all tokens by their name in the file, without added ones."""
        named = self._file["model"].get("vocab") or {}
        if isinstance(named, dict):
            return named
        return {token: i for i, (token, *_) in enumerate(named)}  # Unigram: [[token, score], ...]

    @property
    def _added(self) -> list[dict[str, Any]]:
        return self._file.get("added_tokens") or []

    @property
    def special(self) -> dict[str, int]:  # type: ignore[override]
        """Ids of the special tokens by name."""
        return self._special

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        return {one["content"]: one["id"] for one in self._added if one.get("special")}

    @functools.cached_property
    def _size(self) -> int:
        ids = [*self._vocabulary.values(), *(one["id"] for one in self._added)]
        return max(ids, default=-1) + 1

    def __len__(self) -> int:
        return self._size

    @functools.cached_property
    def _library(self):
        return _loaded(self.json)

    @functools.cached_property
    def _literal(self):
        """The same, to which special tokens are letters."""
        found = _loaded(self.json)
        found.encode_special_tokens = True
        return found

    @property
    def lossy(self) -> str | None:
        """Why a text is not got back from its tokens byte for byte, or None."""
        return self._why

    @functools.cached_property
    def _why(self) -> str | None:
        return _lossy(self._file, self._vocabulary)

    @functools.cached_property
    def _pieces(self) -> tuple[bytes, ...]:
        value = {letter: i for i, letter in enumerate(letters())}
        pieces = [b""] * len(self)
        for token, i in self._vocabulary.items():
            known = all(c in value for c in token)
            pieces[i] = bytes(value[c] for c in token) if known else token.encode()
        for one in self._added:
            pieces[one["id"]] = one["content"].encode()
        return tuple(pieces)

    def encode(self, text: str | bytes, *, special: bool = False) -> np.ndarray:
        """The ids [n] int32 of a text; with special=True as the library gives them."""
        if not special:
            return super().encode(text)
        if not isinstance(text, str | bytes):
            raise TypeError(f"text is {text!r:.60}, expected str or bytes, one text at a time")
        text = decoded(text, "text") if isinstance(text, bytes) else text
        utf8(text)
        return np.array(self._library.encode(text).ids, np.int32)

    def _plain(self, text) -> np.ndarray:
        if isinstance(text, str):
            return self._words(text)
        if self.lossy:
            return self._words(decoded(text, "text"))
        runs = _INVALID.split(text.decode("utf-8", errors="surrogateescape"))
        found = [self._words(run) for run in runs[::2]]
        for i, run in enumerate(runs[1::2]):
            raw = run.encode("utf-8", errors="surrogateescape")
            single = np.array([self._vocabulary[letters()[byte]] for byte in raw], np.int32)
            found.insert(2 * i + 1, single)
        return np.concatenate(found)

    def _words(self, text: str) -> np.ndarray:
        return np.array(self._literal.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids, *, special: bool = False) -> str:
        """The text of ids [n]; special tokens are left out, or written by name."""
        if not self.lossy:
            return super().decode(ids, special=special)
        return self._library.decode(checked(ids, len(self)), skip_special_tokens=not special)

    def decode_bytes(self, ids, *, special: bool = False) -> bytes:
        """The bytes of ids [n]; of a lossy tokenizer those of the text that `decode` gives."""
        if not self.lossy:
            return super().decode_bytes(ids, special=special)
        return self.decode(ids, special=special).encode()

    def _json(self) -> str:
        return self.json


def _lossy(file: dict[str, Any], vocabulary: dict[str, int]) -> str | None:
    """What keeps a text from coming back byte for byte, or None."""
    model = file["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return f"its model is {model.get('type')}, not BPE on bytes"
    decoder = (file.get("decoder") or {}).get("type")
    if decoder != "ByteLevel":
        return f"its decoder is {decoder}, not ByteLevel: it is no BPE on bytes"
    if file.get("normalizer"):
        return f"it normalises texts ({file['normalizer'].get('type')})"
    before = file.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    for step in steps:
        if step.get("add_prefix_space"):
            return "it puts a blank before every text (add_prefix_space)"
        whole = step.get("type") == "Split" and step.get("behavior") != "Removed"
        if not whole and step.get("type") not in ("ByteLevel", "Digits"):
            return f"it splits texts by {step.get('type')}, which may leave out something"
    if not any(step.get("type") == "ByteLevel" for step in steps):
        return "its texts are not turned into bytes (no ByteLevel before the model)"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "it marks the parts of words (continuing_subword_prefix, end_of_word_suffix)"
    if missing := [byte for byte in range(256) if letters()[byte] not in vocabulary]:
        return f"it has no token for {len(missing)} bytes, 0x{missing[0]:02x} among them"
    plain = [one for one in file.get("added_tokens") or [] if not one.get("special")]
    if any(one.get("lstrip") or one.get("rstrip") or one.get("normalized") for one in plain):
        return "it has added tokens that take blanks with them"
    return None


def _loaded(text: str):
    """A tokenizer of the library, without truncation and padding."""
    library = imported()
    try:
        found = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"the library tokenizers does not read this file: {error}") from None
    found.no_truncation()
    found.no_padding()
    return found


def imported():
    """The library `tokenizers`.

    Returns:
      The module.

    Raises:
      ImportError: if it is missing; says how to install it.

    >>> imported().__name__
    'tokenizers'
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "byte-level BPE and files of other tokenizers need the library tokenizers: "
            "pip install 'nnkit-jax[text]'; Bytes() and Characters need nothing"
        ) from error
    return tokenizers
