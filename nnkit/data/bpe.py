"""Byte-level BPE: trained here, or read with any other tokenizer from a `tokenizer.json`.

The work is done by the library `tokenizers` (the extra `text`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from nnkit.data.codes import decoded, letters, numbered, read, utf8
from nnkit.data.tokenizers import Bytes, Characters
from nnkit.data.wrapped import Wrapped, imported

__all__ = ["BPE", "tokenizer"]

_LARGEST = 2**26  # bytes of a tokenizer.json

_END = ("<|endoftext|>",)


@dataclasses.dataclass(frozen=True, repr=False)
class BPE(Wrapped):
    """Byte-level BPE: frequent neighbours become one token, beginning with the 256 bytes.

    A text is split in words by the pattern of GPT-2 ('ll, a blank and letters, a blank and digits,
    other marks, blanks); in each word the pair of tokens learned first is merged, as long as there
    is one. Nothing is unknown: any text and any bytes come back as they were. The ids are the 256
    bytes in GPT-2's order, the merges in the order they were learned, special tokens.

    Methods: encode(text) -> [n] int32; decode(ids) -> str; decode_bytes(ids) -> bytes;
    save(folder). `encode` takes bytes too, also such that are no UTF-8; see `Tokenizer` for the
    rest. `BPE.of(texts, size)` learns one, `nk.data.tokenizer(path)` reads one.

    Attributes:
      json: the text of its `tokenizer.json`.

    Raises:
      ImportError: when first used, if `tokenizers` is missing.
      ValueError: if it is not byte-level BPE from which every text can be got back, or an id is
        outside the vocabulary.

    >>> t = BPE.of(["low lower lowest"] * 2, size=260)
    >>> t.merges, t.decode(t.encode("slow 🐢")), t.end
    (((b'l', b'o'), (b'lo', b'w'), (b' ', b'low')), 'slow 🐢', 259)

    Sennrich et al., arXiv:1508.07909, algorithm 1; bytes: Radford et al. 2019, section 2.2.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.lossy:
            raise ValueError(
                f"this is no byte-level BPE from which every text comes back: {self.lossy}; "
                "nk.data.tokenizer(path) reads other tokenizers"
            )

    @classmethod
    def of(
        cls,
        texts: str | Iterable[str],
        size: int,
        *,
        special: Iterable[str] = _END,
        minimum: int = 2,
    ) -> BPE:
        """Learn the merges: again and again, the pair that occurs most often becomes one token.

        Pairs are counted inside words. Of pairs that occur as often, the one with the lowest ids is
        taken, left then right.

        Args:
          texts: a text, [n] texts, or a `pathlib.Path` of one; of the training part only.
          size: tokens of the vocabulary: 256 bytes, merges and special tokens together.
          special: names of special tokens, the last ids.
          minimum: how often a pair must occur to be merged.

        Returns:
          A `BPE` with len(it) == size; the same for the same texts.

        Raises:
          ImportError: if `tokenizers` is missing.
          FileNotFoundError: if a text is the name of a file.
          TypeError: if the size is no int, or a text no str.
          ValueError: if the size is too small, or larger than the texts have pairs for.

        >>> BPE.of("aaab aaab", size=258, special=()).merges
        ((b'a', b'a'), (b'a', b'b'))

        Sennrich et al., arXiv:1508.07909, algorithm 1.
        """
        library, texts = imported(), read(texts)
        names = list(numbered(special, 0))
        if isinstance(size, bool) or not hasattr(type(size), "__index__"):
            raise TypeError(f"size is {size!r:.60}, expected an int such as 1024")
        if size < 256 + len(names):
            raise ValueError(
                f"size is {size}, expected at least {256 + len(names)}: 256 bytes and "
                f"{len(names)} special tokens"
            )
        learner = library.Tokenizer(library.models.BPE())
        learner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size - len(names),
            min_frequency=minimum,
            initial_alphabet=sorted(letters()),
            show_progress=False,
        )
        learner.train_from_iterator(_each(texts), trainer)
        found = learner.get_vocab_size()
        if found + len(names) != size:
            raise ValueError(
                f"size is {size}, but the texts have pairs for {found + len(names)} tokens only "
                f"(each must occur {minimum} times); use size={found + len(names)} or more text"
            )
        for name in names:
            if learner.token_to_id(name) is not None:
                raise ValueError(f"the special token {name!r} is a word of the vocabulary already")
            learner.add_special_tokens([library.AddedToken(name, normalized=False, special=True)])
        return cls(learner.to_str())

    @property
    def merges(self) -> tuple[tuple[bytes, bytes], ...]:
        """The pairs that become one token, in the order of learning."""
        value = {letter: i for i, letter in enumerate(letters())}
        raw = lambda token: bytes(value[c] for c in token)
        pairs = self._file["model"]["merges"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
        return tuple((raw(a), raw(b)) for a, b in pairs)


def tokenizer(path) -> Bytes | Characters | Wrapped:
    """The tokenizer in a `tokenizer.json`: one of ours, or any of the library `tokenizers`.

    Args:
      path: the file, or the folder it is in.

    Returns:
      `Bytes` or `Characters` (read without the library), a `BPE` if it is byte-level and every text
      comes back, else a `Wrapped` tokenizer: WordPiece, Unigram, BPE on characters.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no tokenizer.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = nk.data.Characters("abc").save(folder)
    ...     tokenizer(folder)
    Characters(characters='abc', special={})
    """
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"path is {str(path)!r}, which is no file; expected a tokenizer.json, or the folder it "
            "is in"
        )
    if path.stat().st_size > _LARGEST:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, expected a tokenizer.json of at most "
            f"{_LARGEST:,}; copy the right file there"
        )
    text = decoded(path.read_bytes(), path.name)
    try:
        found = Wrapped(text)
        ours = _ours(found)
        return ours or (found if found.lossy else BPE(text))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is JSON, but no tokenizer.json ({type(error).__name__}: {error}), expected "
            "what the library tokenizers writes; copy the file again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _each(texts: str | Iterable[str]):
    """The texts one by one, each of them unicode."""
    for i, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is {text!r:.60}, expected str; decode bytes first")
        utf8(text)
        yield text


def _ours(found: Wrapped) -> Bytes | Characters | None:
    """The `Bytes` or `Characters` that would write this file."""
    names = sorted(found.special, key=lambda name: found.special[name])
    words = sorted(found._vocabulary, key=lambda token: found._vocabulary[token])
    kind, ours = found._file["model"].get("type"), None
    try:
        if kind == "BPE":
            ours = Bytes(special=names)
        elif kind == "WordLevel":
            ours = Characters("".join(words), special=names)
    except ValueError:  # a word of several characters, or none
        return None
    return ours if ours and json.loads(ours._json()) == found._file else None
