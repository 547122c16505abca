"""Words: Kim's cleaning, numbers by frequency, padding with a mask."""

from __future__ import annotations

import numpy as np
import pytest

from nnkit import data
from nnkit.data import Vocabulary, split_words


def slow_split(text):
    """The substitutions of Kim's `clean_str`, one after another."""
    import re

    text = re.sub(r"[^A-Za-z0-9(),!?\'\`]", " ", text)
    for found in ("'s", "'ve", "n't", "'re", "'d", "'ll"):
        text = text.replace(found, " " + found)
    for found in ",!()?":
        text = text.replace(found, f" {found} ")
    return re.sub(r"\s{2,}", " ", text).strip().lower().split(" ")


@pytest.mark.parametrize(
    "text",
    [
        "it's so laddish and juvenile , only teenage boys could possibly find it funny .",
        "Don't! (We've seen it; they'd say: \"you'll like it, won't you?\")",
        "the rock's the 21st century's new conan",
        "  spaces\tand\nlines   are `nothing` ",
        "café naïve — dash…",
    ],
)
def test_words_are_split_as_by_the_substitutions_one_after_another(text):
    assert split_words(text) == slow_split(text) == split_words(text.encode())


def test_a_text_without_words_gives_none():
    assert split_words("") == split_words(" ... -- ") == []


def test_movie_reviews_have_the_words_and_the_length_of_the_paper(data_dir):
    """Table 1 of arXiv:1408.5882, row MR: N 10662, |V| 18765, average length 20; at most 56."""
    texts = []

    def numbers(rows):
        texts.extend(rows["text"])
        return {"y": rows["label"]}

    every = "train+validation+test"
    data.tfds("rotten_tomatoes", split=every, batch_size=50, map=numbers, data_dir=data_dir)
    v = Vocabulary.of(texts)
    mask = v.encode(texts)["token_mask"]
    assert (len(texts), len(v.words), mask.shape[1]) == (10662, 18765, 56)
    assert round(mask.sum() / len(texts)) == 20
    assert (mask.sum(1) > 0).all()


def test_numbers_go_by_frequency_then_alphabet_and_come_back():
    v = Vocabulary.of(["b a c", "c a", "a d"])
    assert v.words == ("a", "c", "b", "d")
    assert len(v) == 6
    out = v.encode(["d a", "x c c", ""])
    assert out["tokens"].tolist() == [[5, 2, 0], [1, 3, 3], [0, 0, 0]]
    assert out["token_mask"].sum(1).tolist() == [2, 3, 0]
    assert (out["tokens"].dtype, out["token_mask"].dtype) == (np.int32, bool)
    assert [v.decode(row) for row in out["tokens"]] == [["d", "a"], ["?", "c", "c"], []]


def test_rare_words_become_unknown():
    v = Vocabulary.of(["a a b"], minimum=2)
    assert v.words == ("a",)
    assert v.encode(["a b"])["tokens"].tolist() == [[2, 1]]


def test_own_words_by_another_split():
    v = Vocabulary.of(["ab", "b"], split=list)
    assert v.encode(["ba"])["tokens"].tolist() == [[2, 3]]


def test_a_length_pads_or_cuts_on_request():
    v = Vocabulary(("a",))
    assert v.encode(["a"], length=3)["tokens"].tolist() == [[2, 0, 0]]
    assert v.encode(["a a a"], length=2, cut=True)["token_mask"].tolist() == [[True, True]]
    assert v.encode([""])["tokens"].shape == (1, 1)
    with pytest.raises(ValueError, match=r"text 1 has 3 words, expected at most length=2 \(so hav"):
        v.encode(["a", "a a a"], length=2)


def test_what_is_wrong_is_said():
    v = Vocabulary(("a", "b"))
    with pytest.raises(TypeError, match="texts is one text, 'good film', expected a list of them"):
        Vocabulary.of("good film")
    with pytest.raises(TypeError, match="texts is one text, b'good', expected a list"):
        v.encode(b"good")
    with pytest.raises(ValueError, match="there is no text to encode, expected at least one"):
        v.encode([])
    with pytest.raises(TypeError, match="text is 3, expected str or bytes, one text at a time"):
        split_words(3)
    with pytest.raises(ValueError, match=r"text is b'caf.*', expected UTF-8"):
        split_words("café".encode("latin-1"))
    with pytest.raises(ValueError, match="none of 2 words occurs 2 times; use a smaller minimum"):
        Vocabulary.of(["a b"], minimum=2)
    with pytest.raises(ValueError, match="the vocabulary has no words"):
        Vocabulary(())
    with pytest.raises(ValueError, match="the word 'a' is there twice, expected each word once"):
        Vocabulary(("a", "b", "a"))
    with pytest.raises(ValueError, match=r"tokens run from 0 to 4, expected 0..3: the vocabulary"):
        v.decode([0, 4])
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 2\), expected \[t\]"):
        v.decode([[0, 1]])
