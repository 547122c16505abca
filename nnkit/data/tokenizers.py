"""Text as token ids and back: bytes, characters, and what all tokenizers have in common.

Byte-level BPE and files of others: `nnkit.data.bpe`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnkit.data.codes import checked, decoded, letters, numbered, read, utf8, written

__all__ = ["Bytes", "Characters", "Tokenizer"]

ROLES = {
    "end": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]"),
    "start": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|startoftext|>", "<|endoftext|>"),
    "padding": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}


class Tokenizer(Protocol):
    """What every tokenizer has; those of nnkit are values: equal if they do the same.

    Special tokens are no text. `encode` reads "<|endoftext|>" as so many letters, unless
    special=True; `decode` leaves special tokens out, unless special=True.

    Attributes:
      special: id of every special token by its name, such as {"<|endoftext|>": 256}.
      start, end, padding, mask: ids of the special tokens with these roles, or None. A
        "<|endoftext|>" without a start token is the start as well, as in GPT-2. Names that have a
        role: "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]" end a text; "<s>",
        "<|begin_of_text|>", "<bos>", "[CLS]" begin it; "<pad>", "[PAD]" fill; "<mask>", "[MASK]"
        hide.
      byte_lengths: [v] int32, how many bytes of UTF-8 each token stands for, 0 for special ones;
        None if the text cannot be got back from the tokens, byte for byte (`lossy` says why).
      lossy: None, or why `byte_lengths` is None.

    >>> from nnkit.data import Bytes
    >>> t: Tokenizer = Bytes()
    >>> len(t), t.decode(t.encode("naïve")), t.end
    (256, 'naïve', None)
    """

    @property
    def special(self) -> dict[str, int]: ...
    @property
    def start(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    @property
    def padding(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def byte_lengths(self) -> np.ndarray | None: ...
    @property
    def lossy(self) -> str | None: ...

    def __len__(self) -> int: ...
    def encode(self, text: str | bytes, *, special: bool = False) -> np.ndarray: ...
    def decode(self, ids, *, special: bool = False) -> str: ...
    def decode_bytes(self, ids, *, special: bool = False) -> bytes: ...
    def save(self, path) -> Path: ...


class Common:
    """What the tokenizers share: roles, checks, the way of a text through special tokens."""

    special: Any  # {name: id}

    def __len__(self) -> int:
        raise NotImplementedError

    def _plain(self, text: str | bytes) -> np.ndarray:
        """The ids [n] int32 of a text without special tokens."""
        raise NotImplementedError

    @property
    def _pieces(self) -> tuple[bytes, ...]:
        """The bytes of every token [v]; those of special tokens are their names."""
        raise NotImplementedError

    def _json(self) -> str:
        raise NotImplementedError

    @property
    def start(self) -> int | None:
        """Id of the token before a text, or None."""
        return self._role("start")

    @property
    def end(self) -> int | None:
        """Id of the token after a text, or None."""
        return self._role("end")

    @property
    def padding(self) -> int | None:
        """Id of the token that fills a row, or None."""
        return self._role("padding")

    @property
    def mask(self) -> int | None:
        """Id of the token that hides another, or None."""
        return self._role("mask")

    def _role(self, role: str) -> int | None:
        return next((self.special[name] for name in ROLES[role] if name in self.special), None)

    @property
    def lossy(self) -> str | None:
        """None: a text is got back from its tokens, byte for byte."""
        return None

    @property
    def byte_lengths(self) -> np.ndarray | None:
        """Bytes of UTF-8 that each token stands for, [v] int32, 0 for special ones; or None."""
        return None if self.lossy else self._lengths

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.array([len(piece) for piece in self._pieces], np.int32)
        lengths[list(self.special.values())] = 0
        lengths.setflags(write=False)
        return lengths

    def encode(self, text: str | bytes, *, special: bool = False) -> np.ndarray:
        """The ids [n] int32 of a text; with special=True special tokens in it are read as such."""
        if not isinstance(text, str | bytes):
            raise TypeError(f"text is {text!r:.60}, expected str or bytes, one text at a time")
        if isinstance(text, str):
            utf8(text)
        if not (special and self.special):
            return self._plain(text)
        names = sorted(self.special, key=len, reverse=True)
        pattern = "|".join(map(re.escape, names))
        parts: list[str | bytes] = (
            list(re.split(f"({pattern})", text))
            if isinstance(text, str)
            else list(re.split(f"({pattern})".encode(), text))
        )
        found: list[np.ndarray] = []
        for i, part in enumerate(parts):
            name = part.decode() if i % 2 and isinstance(part, bytes) else part
            one = self._plain(part) if i % 2 == 0 else np.array([self.special[name]], np.int32)
            found.append(one)
        return np.concatenate(found)

    def decode_bytes(self, ids, *, special: bool = False) -> bytes:
        """The bytes that ids [n] stand for; special tokens are left out, or written by name."""
        pieces, hidden = self._pieces, () if special else frozenset(self.special.values())
        return b"".join(pieces[i] for i in checked(ids, len(self)) if i not in hidden)

    def decode(self, ids, *, special: bool = False) -> str:
        """The text of ids [n]; bytes that are no UTF-8 become the sign U+FFFD."""
        return self.decode_bytes(ids, special=special).decode("utf-8", errors="replace")

    def save(self, path) -> Path:
        """Write `tokenizer.json`, which the library `tokenizers` reads; a folder, or the file."""
        path = Path(path)
        path = path if path.suffix == ".json" else path / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._json(), encoding="utf-8")
        return path


@dataclasses.dataclass(frozen=True)
class Bytes(Common):
    """The bytes of UTF-8 are the tokens 0 to 255: nothing to learn, nothing unknown.

    Methods: encode(text) -> [n] int32; decode(ids) -> str; decode_bytes(ids) -> bytes;
    save(folder). `encode` takes bytes too, any bytes; see `Tokenizer` for the rest.

    Attributes:
      special: names of special tokens, which get the ids from 256 on.

    Raises:
      TypeError: if a text is neither str nor bytes, or ids are no integers.
      ValueError: if a str is no unicode text (lone surrogates), an id is outside the vocabulary, or
        a special token is there twice or empty.

    >>> t = Bytes(special=("<|endoftext|>",))
    >>> t.encode("né"), len(t), t.end
    (array([110, 195, 169], dtype=int32), 257, 256)
    >>> t.decode([110, 195, 169, 256]), t.decode([195]), t.decode_bytes([195])
    ('né', '\ufffd', b'\\xc3')

    Xue et al., arXiv:2105.13626, section 3.1 (without its special tokens before the bytes).
    """

    _: dataclasses.KW_ONLY
    special: Any = ()  # becomes {name: id}

    def __post_init__(self):
        object.__setattr__(self, "special", numbered(self.special, 256))

    def __hash__(self) -> int:
        return hash(tuple(self.special))

    def __len__(self) -> int:
        return 256 + len(self.special)

    @property
    def _pieces(self) -> tuple[bytes, ...]:
        return tuple(bytes([i]) for i in range(256)) + tuple(s.encode() for s in self.special)

    def _plain(self, text):
        raw = text if isinstance(text, bytes) else text.encode()
        return np.frombuffer(raw, np.uint8).astype(np.int32)

    def _json(self) -> str:
        vocabulary = {letter: i for i, letter in enumerate(letters())}
        model = {"type": "BPE", "vocab": vocabulary, "merges": []}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
        level = level | {"use_regex": False}
        return written(model, self.special, level, level)


@dataclasses.dataclass(frozen=True)
class Characters(Common):
    """Every character is a token: those of a text, numbered in the order of their code points.

    Methods: encode(text) -> [n] int32; decode(ids) -> str; decode_bytes(ids) -> bytes;
    save(folder). See `Tokenizer` for the rest.

    Attributes:
      characters: the characters that are known, none twice; their places are their ids.
      special: names of special tokens, which get the ids after them.

    Raises:
      TypeError: if a text is neither str nor bytes, or ids are no integers.
      ValueError: if a text has another character (the message names it and its place), bytes are
        no UTF-8, an id is outside the vocabulary, or a character or a special token is there twice.

    >>> t = Characters.of("hello", special=("<|endoftext|>",))
    >>> t.characters, t.encode("hole"), t.end
    ('ehlo', array([1, 3, 2, 0], dtype=int32), 4)
    >>> t.encode("help")
    Traceback (most recent call last):
        ...
    ValueError: text has 'p' (U+0070) at place 3, expected one of the 4 characters 'ehlo'...
    """

    characters: str
    _: dataclasses.KW_ONLY
    special: Any = ()  # becomes {name: id}

    def __post_init__(self):
        if not isinstance(self.characters, str):
            raise TypeError(f"characters is {self.characters!r:.60}, expected a str of them")
        if not self.characters:
            raise ValueError("there are no characters; Characters.of(text) collects them")
        utf8(self.characters)
        if len(self._ids) != len(self.characters):
            twice = next(c for c in self.characters if self.characters.count(c) > 1)
            raise ValueError(f"the character {twice!r} is there twice, expected each once")
        object.__setattr__(self, "special", numbered(self.special, len(self.characters)))

    @classmethod
    def of(cls, texts: str | Iterable[str], *, special: Iterable[str] = ()) -> Characters:
        """The characters of a text, or of several.

        Args:
          texts: a text, [n] texts, or a `pathlib.Path` of one.
          special: names of special tokens.

        Returns:
          A `Characters`.

        Raises:
          FileNotFoundError: if a text is the name of a file.
          ValueError: if there is no character.

        >>> Characters.of(["emma", "ava"]).characters
        'aemv'
        """
        texts = read(texts)
        found: set[str] = set(texts) if isinstance(texts, str) else set().union(*texts)
        return cls("".join(sorted(found)), special=special)

    def __hash__(self) -> int:
        return hash((self.characters, tuple(self.special)))

    def __len__(self) -> int:
        return len(self.characters) + len(self.special)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.characters)}

    @functools.cached_property
    def _pieces(self) -> tuple[bytes, ...]:
        return tuple(c.encode() for c in (*self.characters, *self.special))

    def _plain(self, text):
        if isinstance(text, bytes):
            text = decoded(text, "text")
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], points), len(known) - 1)
        wrong = known[order][place] != points
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"text has {text[i]!r} (U+{points[i]:04X}) at place {i}, expected one of the "
                f"{len(known)} characters {self.characters!r:.80}; collect the characters of all "
                "texts, Characters.of([train, test]), or use Bytes(), which knows every text"
            )
        return order[place].astype(np.int32)

    def _json(self) -> str:
        one = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated"}
        model = {"type": "WordLevel", "vocab": dict(self._ids), "unk_token": "unknown"}
        return written(model, self.special, one | {"invert": False}, {"type": "Fuse"})
