"""Rows of a text: every token is predicted once, documents stay apart, nothing is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnkit import data
from nnkit.data import Bytes, Characters

END = "<|endoftext|>"


def rows(batches):
    """All rows of an epoch by field, without those that fill the last batch."""
    found: dict[str, list] = {}
    for batch in batches:
        real = batch.pop("mask", np.ones(batches.batch_size)) > 0
        for name, x in batch.items():
            found.setdefault(name, []).append(x[real])
    return {name: np.concatenate(x) for name, x in found.items()}


# --- a running text ---
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 10, 23])
@pytest.mark.parametrize("stride", [None, 1, 2, 3, 4])
def test_every_token_but_the_first_is_a_label_once(n, stride):
    """The definition, place by place; a token's id is its place."""
    text = bytes(range(n))
    options = {} if stride is None else {"overlap": "context"}
    found = rows(data.text(text, length=4, batch_size=1, stride=stride, shuffle=False, **options))
    step, seen = stride or 4, []
    for r, (tokens, labels, counts) in enumerate(
        zip(found["tokens"], found["labels"], found["label_mask"])
    ):
        for i in range(4):
            place = r * step + i
            assert tokens[i] == (text[place] if place < n else 0)
            assert labels[i] == (text[place + 1] if place + 1 < n else 0)
            if counts[i]:
                seen.append(labels[i])
                if r:  # a label of a later row has the context that is promised
                    assert i >= 4 - step
            if place + 1 >= n:
                assert not counts[i]
    assert sorted(seen) == list(range(1, n))
    assert {x.dtype for x in found.values()} == {np.dtype(np.int32), np.dtype(bool)}


def test_overlapping_rows_for_training_count_all():
    """stride=1: one row for every start, as nanoGPT draws them."""
    text, length = bytes(range(20)), 6
    batches = data.text(text, length=length, batch_size=1, stride=1, seed=3)
    assert batches.examples == 20 - length
    found = rows(batches)
    starts = found["tokens"][:, 0]
    assert sorted(starts) == list(range(20 - length)) and (np.diff(starts) < 0).any()
    for s, tokens, labels in zip(starts, found["tokens"], found["labels"]):
        assert tokens.tolist() == list(range(s, s + length))
        assert labels.tolist() == list(range(s + 1, s + 1 + length))
    assert found["label_mask"].all()


def test_overlap_counts_as_said():
    text = bytes(range(9))
    every = rows(data.text(text, length=4, stride=2, batch_size=1, overlap="all"))
    once = rows(data.text(text, length=4, stride=2, batch_size=1, overlap="context"))
    assert (every["label_mask"].sum(), once["label_mask"].sum()) == (12, 8)
    with pytest.raises(ValueError, match=r"counts tokens more than once; say overlap='context'"):
        data.text(text, length=4, stride=2, batch_size=1, shuffle=False)
    with pytest.raises(ValueError, match="overlap is 'some', expected 'all' or 'context'"):
        data.text(text, length=4, stride=2, batch_size=1, overlap="some")


def test_what_was_done_is_noted():
    said = repr(data.text(b"abcdefg", length=4, batch_size=1, stride=3, overlap="context"))
    assert "7 tokens, every one but the first is a label" in said
    assert "rows overlap by 1: a label counts once" in said
    assert "the last 1 places of the last row are filled with 0 and masked" in said
    said = repr(data.text(["abc", "abcdefg"], length=6, batch_size=1))
    assert "2 documents, 10 tokens in 2 rows; padding 16.7 %" in said
    assert "1 documents are longer than 6" in said and "no start token" in said


def test_a_batch_is_a_function_of_seed_and_number():
    for source in (bytes(range(50)), [bytes(range(i % 9 + 1)) for i in range(40)]):
        batches = data.text(source, length=7, batch_size=2, seed=1)
        again = data.text(source, length=7, batch_size=2, seed=1)
        other = data.text(source, length=7, batch_size=2, seed=2)
        stream = batches.stream()
        first = [next(stream) for _ in range(12)]
        for i in (11, 3, 0):
            late = next(again.stream(start=i))
            assert sorted(late) == sorted(first[i])
            assert all((late[name] == first[i][name]).all() for name in late)
        assert batches.fingerprint == again.fingerprint
        assert any(
            (next(other.stream(i))["tokens"] != x["tokens"]).any() for i, x in enumerate(first)
        )


def test_characters_and_the_default_of_bytes():
    letters = Characters.of("abc")
    found = rows(data.text(b"abcab", length=4, batch_size=1, tokenizer=letters))
    assert found["tokens"].tolist() == [[0, 1, 2, 0]] and found["labels"].tolist() == [[1, 2, 0, 1]]
    found = rows(data.text(b"abcab", length=4, batch_size=1))
    assert found["tokens"].tolist() == [list(b"abca")]


def test_ids_above_a_byte_keep_their_values():
    for count in (300, 66_000):  # two bytes, four bytes
        t = Characters("".join(chr(0x10000 + i) for i in range(count)))
        text = t.characters[-9:]
        found = rows(data.text(text.encode(), length=8, batch_size=1, tokenizer=t))
        assert found["tokens"][0].tolist() == t.encode(text)[:-1].tolist()


# --- where a text comes from ---
def test_a_path_a_name_and_a_text(tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_bytes("naïve\r\ntext".encode())
    monkeypatch.chdir(tmp_path)
    for source in (path, str(path), "book.txt", path.read_bytes(), "naïve\r\ntext"):
        found = rows(data.text(source, length=4, batch_size=1, shuffle=False))
        whole = bytes([found["tokens"][0, 0], *found["labels"][found["label_mask"]].tolist()])
        assert whole == path.read_bytes()
    assert data.text(path, length=4, batch_size=1).name == "book.txt"
    found = rows(data.text("two words", length=8, batch_size=1))  # a blank: no name
    assert found["tokens"].tolist() == [list(b"two word")]


def test_what_might_be_a_name_is_no_text(tmp_path):
    for name in ("bok.txt", "data/book", "my book.txt", str(tmp_path / "no")):
        with pytest.raises(FileNotFoundError, match=r"which is no file; .* source.encode\(\)"):
            data.text(name, length=4, batch_size=1)
    with pytest.raises(FileNotFoundError, match="which is no file"):
        data.text(tmp_path / "no", length=4, batch_size=1)
    with pytest.raises(FileNotFoundError, match="source is ''"):
        data.text("", length=4, batch_size=1)


def test_wrong_texts(tmp_path):
    with pytest.raises(ValueError, match="text has 1 tokens, expected at least 2"):
        data.text(b"a", length=4, batch_size=1)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty.txt has 0 tokens"):
        data.text(tmp_path / "empty.txt", length=4, batch_size=1)
    with pytest.raises(TypeError, match="expected a path, a text"):
        data.text(3, length=4, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride is 5, expected 1 to 4"):
        data.text(b"abc", length=4, stride=5, batch_size=1)
    with pytest.raises(ValueError, match="stride is 0"):
        data.text(b"abc", length=4, stride=0, batch_size=1)
    with pytest.raises(TypeError, match=r"length is 4\.0, expected an integer"):
        data.text(b"abc", length=4.0, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 9, but text has only 1"):
        data.text(b"abc", length=4, batch_size=9)
    with pytest.raises(ValueError, match="for a running text, but the source is a list of 1"):
        data.text(["abc"], length=4, stride=2, batch_size=1)
    with pytest.raises(ValueError, match="there are no documents"):
        data.text([], length=4, batch_size=1)
    with pytest.raises(ValueError, match=r"documents\[1\] is empty"):
        data.text(["a", ""], length=4, batch_size=1)
    with pytest.raises(TypeError, match="text is 3, expected str or bytes"):
        data.text([3], length=4, batch_size=1)  # type: ignore[list-item]


# --- documents ---
def test_documents_stand_between_start_and_end():
    both = Bytes(special=("<s>", "</s>"))
    found = rows(data.text(["ab", ""], length=6, batch_size=1, tokenizer=both))
    assert found["tokens"].tolist() == [[256, 97, 98, 257, 256, 257]]
    assert found["segments"].tolist() == [[1, 1, 1, 1, 2, 2]]
    assert found["label_mask"].tolist() == [[True, True, True, False, True, False]]
    assert found["labels"].tolist() == [[97, 98, 257, 0, 257, 0]]
    one = Bytes(special=(END,))
    found = rows(data.text(["ab"], length=4, batch_size=1, tokenizer=one))
    assert found["tokens"].tolist() == [[256, 97, 98, 256]]


@pytest.mark.parametrize("length", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(4))
def test_every_token_of_every_document_stands_in_one_place(length, seed):
    """Each document's pieces are put together again; ids are unique over all documents."""
    rng = np.random.default_rng(seed)
    ids = iter(range(1, 10_000))
    documents = [[next(ids) for _ in range(rng.integers(1, 14))] for _ in range(30)]
    found = data.pack(documents, length)
    assert {name: x.dtype for name, x in found.items()} == {
        "tokens": np.int32,
        "labels": np.int32,
        "segments": np.int32,
        "label_mask": bool,
    }
    tokens, segments = found["tokens"], found["segments"]
    assert sorted(tokens[segments > 0]) == list(range(1, sum(map(len, documents)) + 1))
    assert (tokens[segments == 0] == 0).all() and not found["label_mask"][segments == 0].any()
    after = {a: b for one in documents for a, b in itertools.pairwise(one)}
    owner = {token: i for i, one in enumerate(documents) for token in one}
    labels = []
    for r in range(len(tokens)):
        used = segments[r][segments[r] > 0]
        assert used.tolist() == sorted(used) and set(used) == set(range(1, used.max() + 1))
        assert (segments[r][len(used) :] == 0).all()
        for segment in set(used):
            mine = tokens[r][segments[r] == segment]
            assert len({owner[token] for token in mine}) == 1
            assert mine.tolist() == list(range(mine[0], mine[0] + len(mine)))
        for i in range(len(used)):
            follows = after.get(tokens[r, i])
            assert found["label_mask"][r, i] == (follows is not None)
            assert found["labels"][r, i] == (follows or 0)
            labels += [] if follows is None else [follows]
    assert sorted(labels) == sorted(after.values())  # all but the first of each, once


def test_a_row_is_begun_only_if_no_other_has_room():
    """The same rows as by the rule, searched the slow way."""
    rng = np.random.default_rng(0)
    documents = [[i] * int(n) for i, n in enumerate(rng.integers(1, 25, 60), 1)]
    found, length = data.pack(documents, 10), 10
    slow: list[list[int]] = []
    since: dict[int, int] = {}
    now = 0
    for one in documents:
        for s in range(0, len(one), length):
            piece, now = one[s : s + length], now + 1
            fits = [r for r, row in enumerate(slow) if len(piece) <= length - len(row)]
            if not fits:
                slow.append([])
                fits = [len(slow) - 1]
            best = min(fits, key=lambda r: (length - len(slow[r]), since.get(r, 0)))
            slow[best] += piece
            since[best] = now
    assert [row[row > 0].tolist() for row in found["tokens"]] == slow


def test_packing_wastes_little():
    rng = np.random.default_rng(0)
    documents = [np.ones(n, int) for n in rng.integers(3, 40, 2000)]
    assert (data.pack(documents, 128)["segments"] == 0).mean() < 0.01


def test_padding_on_both_sides():
    found = data.pad([[5, 6, 7], [8], []], length=4, padding=9)
    assert found["tokens"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9], [9, 9, 9, 9]]
    assert found["token_mask"].sum(1).tolist() == [3, 1, 0]
    found = data.pad([[5, 6, 7], [8]], side="left")
    assert found["tokens"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert found["token_mask"].tolist() == [[True] * 3, [False, False, True]]
    assert data.pad([[], []])["tokens"].shape == (2, 1)


def test_wrong_documents():
    with pytest.raises(ValueError, match=r"documents\[1\] is empty, expected at least one token"):
        data.pack([[1], []], 4)
    with pytest.raises(TypeError, match=r"documents\[0\] is 'ab', expected token ids"):
        data.pack(["ab"], 4)
    with pytest.raises(TypeError, match="documents is 'ab', expected a list"):
        data.pack("ab", 4)
    with pytest.raises(ValueError, match="documents is empty"):
        data.pack([], 4)
    with pytest.raises(TypeError, match=r"documents\[0\] is float64"):
        data.pack([[1.5]], 4)
    with pytest.raises(ValueError, match=r"documents\[0\] has ids from -1 to 2"):
        data.pack([[-1, 2]], 4)
    with pytest.raises(ValueError, match=r"documents\[0\] has shape \(1, 1\)"):
        data.pack([[[1]]], 4)
    with pytest.raises(ValueError, match="length is 0, expected an integer number of tokens >= 1"):
        data.pack([[1]], 0)
    with pytest.raises(TypeError, match="length is True"):
        data.pack([[1]], True)
    with pytest.raises(ValueError, match=r"row 1 has 3 tokens, expected at most length=2"):
        data.pad([[1], [1, 2, 3]], length=2)
    with pytest.raises(ValueError, match="side is 'top'"):
        data.pad([[1]], side="top")
