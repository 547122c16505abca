"""Tokenizers: nothing is lost, merges are those of the definition, files are read by both sides."""

from __future__ import annotations

import collections
import itertools
import json
import re
import sys

import numpy as np
import pytest
import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from nnkit import data
from nnkit.data import BPE, Bytes, Characters

END = "<|endoftext|>"
BOOK = """It's a truth universally acknowledged, that we'll've 1234 apples; naïve façades,
  def f(x):\n\treturn x ** 2   # 3.14159\n\n"Don't," they'd said -- Ünïcödé!
你好，世界 🐢🐢 привет мир.\r\n"""
BOOK = 3 * BOOK


def random_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 40 characters: ASCII, blanks, all of unicode, emoji with joiners, marks."""
    rng = np.random.default_rng(seed)
    parts = [
        lambda: chr(rng.integers(32, 127)),
        lambda: rng.choice([" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "'s", "'LL", "\0"]),
        lambda: chr(rng.integers(0x80, 0x800)),
        lambda: chr(rng.integers(0x4E00, 0x9FFF)),
        lambda: chr(rng.choice([0x301, 0x308, 0x200D, 0xFE0F, 0x1F469, 0x1F422, 0x1F1E9])),
        lambda: chr(c if (c := int(rng.integers(0x110000 - 0x800))) < 0xD800 else c + 0x800),
        lambda: "".join(rng.choice(list("thequickbrown"), 3)),
    ]
    return [
        "".join(parts[i]() for i in rng.integers(0, len(parts), rng.integers(0, 41)))
        for _ in range(n)
    ]


TEXTS = random_texts(1000)


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.of([BOOK, *random_texts(30, seed=1)], size=400)


@pytest.fixture(scope="module")
def ours(bpe):
    return [
        Bytes(),
        Bytes(special=(END, "<pad>")),
        bpe,
        Characters.of(TEXTS, special=(END,)),
    ]


# --- nothing is lost ---
def test_random_unicode_comes_back(ours):
    for t in ours:
        for text in TEXTS:
            ids = t.encode(text)
            assert ids.dtype == np.int32 and ids.ndim == 1
            assert t.decode(ids) == text and t.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_come_back(ours, seed):
    rng = np.random.default_rng(seed)
    for t in ours[:3]:
        for n in (0, 1, 2, 7, 300):
            raw = rng.integers(0, 256, n, np.uint8).tobytes()
            assert t.decode_bytes(t.encode(raw)) == raw
            mixed = raw + "naïve 🐢".encode() + raw
            assert t.decode_bytes(t.encode(mixed)) == mixed


def test_bytes_that_are_utf8_have_the_tokens_of_the_text(ours):
    for t in ours:
        for text in TEXTS[:100]:
            np.testing.assert_array_equal(t.encode(text.encode()), t.encode(text))


def test_bytes_that_are_no_utf8_are_replaced_in_a_str_and_kept_in_bytes(bpe):
    for t in (Bytes(), bpe):
        ids = t.encode(b"a\xff\xc3")
        assert (t.decode(ids), t.decode_bytes(ids)) == ("a\ufffd\ufffd", b"a\xff\xc3")


def test_the_bytes_of_tokens_add_to_those_of_the_text(ours):
    for t in ours:
        assert t.byte_lengths.shape == (len(t),) and t.byte_lengths.dtype == np.int32
        assert (t.byte_lengths[list(t.special.values())] == 0).all()
        for text in TEXTS[:200]:
            assert t.byte_lengths[t.encode(text)].sum() == len(text.encode())


def test_bytes_are_their_own_ids():
    assert Bytes().encode("né").tolist() == list("né".encode())
    assert len(Bytes()) == 256


def test_characters_are_numbered_by_code_point():
    t = Characters.of("hello wörld")
    known = sorted(set("hello wörld"))
    assert t.characters == "".join(known) and len(t) == len(known)
    assert t.encode("low").tolist() == [known.index(c) for c in "low"]
    swapped = Characters("ba")  # the order given is the order of the ids
    assert swapped.encode("ab").tolist() == [1, 0]


# --- special tokens ---
def test_special_tokens_are_no_text_unless_said(ours):
    for t in ours[1:]:
        end = t.special[END]
        assert (t.end, t.start) == (end, end)
        text = f"a{END}" if "<" in t.decode(range(len(t) - len(t.special))) else "a"
        if text != "a":
            ids = t.encode(text)
            assert end not in ids and t.decode(ids) == text
        ids = t.encode(f"a{END}b", special=True)
        assert ids.tolist() == [*t.encode("a"), end, *t.encode("b")]
        assert (t.decode(ids), t.decode(ids, special=True)) == ("ab", f"a{END}b")
        assert t.decode_bytes(ids, special=True) == f"a{END}b".encode()


def test_special_tokens_are_found_in_bytes_too():
    t = Bytes(special=(END, "<pad>"))
    assert t.encode(b"\xff<pad>a", special=True).tolist() == [255, 257, 97]
    assert t.padding == 257 and t.mask is None


def test_the_longest_special_token_is_read():
    t = Bytes(special=("<a>", "<a><b>"))
    assert t.encode("<a><b><a>", special=True).tolist() == [257, 256]


def test_values_are_equal_if_they_do_the_same(bpe):
    assert Bytes(special=(END,)) == Bytes(special=[END]) != Bytes()
    assert hash(Bytes(special=(END,))) == hash(Bytes(special=(END,)))
    assert Characters.of("ab") == Characters("ab") and hash(Characters("ab"))
    assert BPE(bpe.json) == bpe and repr(bpe) == "BPE(400 tokens)"


# --- BPE: the definition ---
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def naive(texts, count):
    """The merges of Sennrich et al., counting everything anew each time; ties: lowest ids."""
    order = sorted(range(256), key=lambda byte: data.codes.letters()[byte])  # GPT-2's
    pieces = [bytes([byte]) for byte in order]
    words = collections.Counter(w for text in texts for w in WORDS.findall(text))
    rows = [([order.index(byte) for byte in w.encode()], n) for w, n in words.items()]
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for row, n in rows:
            for two in itertools.pairwise(row):
                pairs[two] += n
        best = min(pairs, key=lambda two: (-pairs[two], two))
        merges.append((pieces[best[0]], pieces[best[1]]))
        pieces.append(pieces[best[0]] + pieces[best[1]])
        rows = [(merged(row, best, len(pieces) - 1), n) for row, n in rows]
    return tuple(merges)


def merged(row, two, new):
    out = []
    for i in row:
        out.append(i)
        if tuple(out[-2:]) == two:
            out[-2:] = [new]
    return out


@pytest.mark.parametrize("kind", ["book", "letters", "repeats"])
def test_merges_are_those_of_the_naive_trainer(kind):
    rng = np.random.default_rng(3)
    texts = {
        "book": [BOOK],
        "letters": ["".join(rng.choice(list("abcd   \n"), 600)) for _ in range(3)],
        "repeats": ["".join(rng.choice(list("aab "), 300)) + "aaaaaaa aaaa aaa"],
    }[kind]
    count = 25 if kind == "repeats" else 60
    t = BPE.of(texts, size=256 + count, special=())
    assert t.merges == naive(texts, count)


def test_ids_are_those_of_merging_by_rank(bpe):
    """Encoding, the slow way: in every word the earliest merge goes first."""
    order = sorted(range(256), key=lambda byte: data.codes.letters()[byte])
    ranks = {two: i for i, two in enumerate(bpe.merges)}
    place = {bytes([byte]): i for i, byte in enumerate(order)}
    place |= {a + b: 256 + i for i, (a, b) in enumerate(bpe.merges)}
    for text in [BOOK, "hello  there, it's 99 naïve apples\n\n "]:
        want = []
        for word in WORDS.findall(text):
            parts = [bytes([byte]) for byte in word.encode()]
            while found := [two for two in itertools.pairwise(parts) if two in ranks]:
                a, b = min(found, key=ranks.__getitem__)
                i = list(itertools.pairwise(parts)).index((a, b))
                parts[i : i + 2] = [a + b]
            want += [place[part] for part in parts]
        assert bpe.encode(text).tolist() == want


def test_learning_twice_gives_the_same(bpe):
    assert BPE.of(iter([BOOK, *random_texts(30, seed=1)]), size=400) == bpe


def test_rare_pairs_are_not_merged():
    assert BPE.of("ab ab cd", size=257, special=()).merges == ((b"a", b"b"),)
    with pytest.raises(ValueError, match=r"have pairs for 25\d tokens only"):
        BPE.of("ab ab cd", size=300, minimum=2)


# --- files ---
def test_our_files_are_read_by_the_library_and_by_us(ours, tmp_path):
    for i, t in enumerate(ours):
        path = t.save(tmp_path / str(i))
        assert path.name == "tokenizer.json"
        theirs = library.Tokenizer.from_file(str(path))
        assert theirs.get_vocab_size() == len(t)
        for text in [*TEXTS[:300], BOOK if i < 3 else ""]:
            found = theirs.encode(text).ids
            assert found == t.encode(text).tolist()
            assert theirs.decode(found) == text
        again = data.tokenizer(tmp_path / str(i))
        assert again == t and type(again) is type(t) and again.special == t.special
        assert data.tokenizer(t.save(tmp_path / f"{i}.json")) == t
        if t.special:
            assert theirs.encode(f"a{END}").ids == t.encode(f"a{END}", special=True).tolist()


def made(kind: str):
    """A tokenizer of the library, as the families of models have them."""
    texts = [BOOK, *random_texts(50, seed=2)]
    if kind in ("gpt2", "llama3"):
        t = library.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(library.Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        both = pre_tokenizers.Sequence([split, level])
        t.pre_tokenizer = level if kind == "gpt2" else both
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        names = ["<|begin_of_text|>", "<|end_of_text|>"] if kind == "llama3" else [END]
        trainer = trainers.BpeTrainer(
            vocab_size=350, initial_alphabet=alphabet, special_tokens=names, show_progress=False
        )
        t.train_from_iterator(texts, trainer)
        if kind == "llama3":
            start = ("<|begin_of_text|>", 0)
            t.post_processor = processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[start]
            )
        return t
    if kind in ("llama2", "mistral"):
        t = library.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        blank = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        t.decoder = decoders.Sequence([*strip, decoders.Strip(" ", 1, 0)])
        if kind == "llama2":
            t.normalizer = blank
        else:
            t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        names = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
        words = [w for text in texts for w in text.split()]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=names, show_progress=False)
        t.train_from_iterator(words, trainer)
        # as in real files: the bytes are plain tokens of the model, <s> is put before a text
        file = json.loads(t.to_str())
        file["added_tokens"] = [one for one in file["added_tokens"] if one["id"] < 3]
        t = library.Tokenizer.from_str(json.dumps(file))
        t.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        return t
    if kind == "bert":
        t = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=True)
        t.pre_tokenizer, t.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=names, show_progress=False
        )
        t.train_from_iterator(texts, trainer)
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        t.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
        t.enable_truncation(5)
        t.enable_padding(length=9)
        return t
    t = library.Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    t.train_from_iterator([BOOK], trainer)
    return t


ROLES = {  # start, end, padding, mask
    "gpt2": (END, END, None, None),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", None, None),
    "llama2": ("<s>", "</s>", None, None),
    "mistral": ("<s>", "</s>", None, None),
    "bert": ("[CLS]", "[SEP]", "[PAD]", "[MASK]"),
    "t5": (None, "</s>", "<pad>", None),
}
LOST = {
    "llama2": "its decoder is Sequence",
    "mistral": "its decoder is Sequence",
    "bert": "its model is WordPiece",
    "t5": "its model is Unigram",
}


@pytest.mark.parametrize("kind", list(ROLES))
def test_a_file_of_the_library_gives_the_ids_of_the_library(kind, tmp_path):
    theirs = made(kind)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    t = data.tokenizer(tmp_path)
    assert len(t) == theirs.get_vocab_size()
    for text in [*TEXTS, BOOK]:
        ids = t.encode(text)
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
        assert t.encode(text, special=True).tolist() == theirs.encode(text).ids
        assert t.decode(ids) == theirs.decode(ids.tolist())
    start, end, padding, mask = (theirs.token_to_id(name) if name else None for name in ROLES[kind])
    assert (t.start, t.end, t.padding, t.mask) == (start, end, padding, mask)
    if kind in LOST:
        assert type(t) is data.Wrapped and t.byte_lengths is None
        assert t.lossy.startswith(LOST[kind])
        assert t.decode_bytes(t.encode("a cat")) == t.decode(t.encode("a cat")).encode()
    else:
        assert type(t) is BPE and t.lossy is None
        assert all(t.decode(t.encode(text)) == text for text in TEXTS)
        assert all(t.byte_lengths[t.encode(x)].sum() == len(x.encode()) for x in TEXTS)
    t.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_special_tokens_in_the_text_of_a_file_of_the_library(tmp_path):
    made("bert").save(str(tmp_path / "tokenizer.json"))
    t = data.tokenizer(tmp_path)
    assert t.mask not in t.encode("a [MASK]")
    ids = t.encode("a [MASK]", special=True)
    assert ids[0] == t.start and ids[-1] == t.end and t.mask in ids
    assert "[MASK]" in t.decode(ids, special=True) and "[MASK]" not in t.decode(ids)


def changed(t, **parts):
    return json.dumps(json.loads(t.json) | parts)


def test_what_loses_text_is_named(bpe):
    def lossy(**parts):
        return data.Wrapped(changed(bpe, **parts)).lossy

    file = json.loads(bpe.json)
    level = file["pre_tokenizer"]
    assert "normalises texts (NFC)" in lossy(normalizer={"type": "NFC"})
    assert "add_prefix_space" in lossy(pre_tokenizer=level | {"add_prefix_space": True})
    assert "splits texts by Whitespace" in lossy(pre_tokenizer={"type": "Whitespace"})
    removed = {"type": "Split", "behavior": "Removed"}
    both = {"type": "Sequence", "pretokenizers": [removed, level]}
    assert "splits texts by Split" in lossy(pre_tokenizer=both)
    assert "not turned into bytes" in lossy(pre_tokenizer={"type": "Digits"})
    assert "marks the parts" in lossy(model=file["model"] | {"end_of_word_suffix": "</w>"})
    few = {token: i for token, i in file["model"]["vocab"].items() if token != "A"}
    assert "no token for 1 bytes, 0x41" in lossy(model=file["model"] | {"vocab": few})
    added = {"id": 400, "content": "x", "lstrip": True, "special": False}
    assert "take blanks" in lossy(added_tokens=[added])
    assert lossy() is None
    with pytest.raises(ValueError, match=r"no byte-level BPE .*normalises texts \(NFC\)"):
        BPE(changed(bpe, normalizer={"type": "NFC"}))


# --- wrong input ---
def test_wrong_texts_and_ids(ours):
    for t in ours:
        with pytest.raises(TypeError, match="expected str or bytes, one text at a time"):
            t.encode(["a", "b"])
        with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at place 1"):
            t.encode("a\ud800")
        with pytest.raises(
            ValueError, match=rf"run from 0 to {len(t)}, expected 0 to {len(t) - 1}"
        ):
            t.decode([0, len(t)])
        with pytest.raises(ValueError, match="run from -1"):
            t.decode_bytes(np.array([-1]))
        with pytest.raises(ValueError, match=r"shape \(1, 2\), expected \[n\]"):
            t.decode(np.zeros((1, 2), int))
        with pytest.raises(TypeError, match="ids is float64, expected integers"):
            t.decode(np.ones(2))
        assert t.decode([]) == "" and len(t.encode("")) == 0


def test_an_unknown_character_is_named():
    t = Characters.of("ab")
    with pytest.raises(ValueError, match=r"'ü' \(U\+00FC\) at place 2, expected one of the 2"):
        t.encode("abü")
    with pytest.raises(ValueError, match="byte 0xff at place 1, which is no UTF-8"):
        t.encode(b"a\xff")
    with pytest.raises(ValueError, match="no characters"):
        Characters.of("")
    with pytest.raises(ValueError, match="'a' is there twice"):
        Characters("aba")
    with pytest.raises(TypeError, match="expected a str of them"):
        Characters(["a"])  # type: ignore[arg-type]


def test_wrong_special_tokens():
    with pytest.raises(TypeError, match="expected names: special="):
        Bytes(special="<pad>")
    with pytest.raises(ValueError, match="'<a>' is there twice"):
        Bytes(special=("<a>", "<a>"))
    with pytest.raises(ValueError, match="is empty"):
        Bytes(special=("",))
    with pytest.raises(TypeError, match="special has 3"):
        Bytes(special=(3,))
    with pytest.raises(ValueError, match="'he' is a word of the vocabulary"):
        BPE.of("hehehe he he", size=259, special=("he",))


def test_wrong_sizes():
    with pytest.raises(ValueError, match="size is 256, expected at least 257"):
        BPE.of("a", size=256)
    with pytest.raises(TypeError, match="expected an int"):
        BPE.of("a", size=300.0)  # type: ignore[arg-type]


def test_wrong_texts_to_learn_from():
    with pytest.raises(TypeError, match="text 1 is b'b', expected str"):
        BPE.of(["a", b"b"], size=300)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="lone surrogate"):
        BPE.of(["a\ud800"], size=300)


def test_wrong_files(tmp_path, bpe):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json"):
        data.tokenizer(tmp_path / "nothing")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: the tokenizer is no JSON"):
        data.tokenizer(path)
    path.write_text('{"vocab": {}}')
    with pytest.raises(ValueError, match=r"\['vocab'\], expected a mapping with \"model\""):
        data.tokenizer(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="byte 0xff at place 0"):
        data.tokenizer(path)
    path.write_text(changed(bpe, model=json.loads(bpe.json)["model"] | {"dropout": 0.1}))
    with pytest.raises(ValueError, match=r"dropout=0.1: a text would have other tokens"):
        data.tokenizer(path)
    path.write_text('{"model": {"type": "Magic"}}')
    with pytest.raises(ValueError, match="the library tokenizers does not read this file"):
        data.tokenizer(path).encode("a")


def test_bytes_and_characters_need_no_library(monkeypatch, tmp_path, bpe):
    bpe.save(tmp_path / "bpe")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for t in (Bytes(special=(END,)), Characters.of("abc")):
        t.save(tmp_path)
        assert data.tokenizer(tmp_path) == t
    with pytest.raises(ImportError, match=r"pip install 'nnkit-jax\[text\]'"):
        BPE.of("abc", size=256, special=())
    with pytest.raises(ImportError, match="Characters need nothing"):
        data.tokenizer(tmp_path / "bpe").encode("a")
