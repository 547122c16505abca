"""Streams: whole characters, joined the text of `sample`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import counted
from writers import params_of

from nnkit.data import Bytes, Characters
from nnkit.generate import Decoder, chain, sample, stream, temperature, top_k
from nnkit.models import GPT, EncDec, RecurrentLM

LETTERS = Characters.of("abcdefghijk \n", special=("<|endoftext|>",))
MODEL = GPT(vocabulary=14, length=64, width=16, depth=1, heads=2)
KEY = {"key": jax.random.key(3), "warp": chain(temperature(1.2), top_k(9))}


def scripted(text: bytes):
    """A decoder that writes these bytes."""
    script = jnp.asarray(np.frombuffer(text, np.uint8).astype(np.int32))
    at = lambda n: jax.nn.one_hot(script[jnp.minimum(n, len(script) - 1)][None], 256)
    zero = jnp.zeros((), jnp.int32)
    start = lambda params, tokens, mask, room: (at(zero), zero)
    return Decoder(start, lambda params, x, n: (at(n + 1)[:, None], n + 1), None, 256)


@pytest.mark.parametrize("options", [{}, KEY], ids=["greedy", "drawn"])
@pytest.mark.parametrize("model", [MODEL, RecurrentLM(14, width=8, depth=1)])
def test_the_pieces_are_the_text_of_sample(model, options):
    params, prompt = params_of(model), LETTERS.encode("bad cab")
    found = sample(model, params, prompt[None], new_tokens=21, **options)
    pieces = list(stream(model, params, "bad cab", LETTERS, new_tokens=21, chunk=4, **options))
    row = found.tokens[0].tolist()
    text = LETTERS.decode(row[: row.index(13)] if 13 in row else row)
    assert "".join(pieces) == text
    assert all(pieces) and len(pieces) <= 1 + 5


def test_it_ends_at_the_end_of_text():
    model, params = MODEL, params_of(MODEL)
    row = sample(model, params, LETTERS.encode("a")[None], new_tokens=12).tokens[0].tolist()
    end = row[5]
    pieces = stream(model, params, "a", LETTERS, new_tokens=12, end=end, chunk=3)
    assert "".join(pieces) == LETTERS.decode(row[: row.index(end)])


def test_a_source_is_answered():
    model = EncDec(14, width=16, depth=1, heads=2, head_dim=4, hidden=24)
    params = params_of(model)
    found = sample(model, params, LETTERS.encode("a bad cab")[None], new_tokens=6, end=13)
    pieces = stream(model, params, "a bad cab", LETTERS, new_tokens=6)
    assert "".join(pieces) == LETTERS.decode(np.asarray(found.tokens[0])[: int(found.lengths[0])])


TEXTS = ["naïve café", "日本語 und mehr", "x😀y👩‍👩‍👧", "plain"]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_never_cut(text, chunk):
    raw = text.encode()
    pieces = list(stream(scripted(raw), {}, "é", Bytes(), new_tokens=len(raw), chunk=chunk))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) and all(pieces)
    if chunk == 1:
        assert pieces == list(text)


def test_bytes_that_are_no_character_come_in_the_end():
    raw = "ab日".encode()[:-1]
    pieces = list(stream(scripted(raw), {}, "x", Bytes(), new_tokens=len(raw), chunk=1))
    assert pieces == ["a", "b", "\ufffd"]
    raw = b"a\xff\xffb"
    assert "".join(stream(scripted(raw), {}, "x", Bytes(), new_tokens=4)) == "a\ufffd\ufffdb"


def test_prompts_of_about_the_same_length_share_a_program():
    params = params_of(MODEL)
    list(stream(MODEL, params, "a bad cab", LETTERS, new_tokens=9, **KEY))
    with counted() as programs:
        list(stream(MODEL, params, "a", LETTERS, new_tokens=9, **KEY))
    assert programs.count == 0
    long = "a" * 40  # 64 would leave no room for 20 more
    assert len("".join(stream(MODEL, params, long, LETTERS, new_tokens=20, end=0))) <= 20


def test_an_empty_prompt_is_the_start_of_text():
    params = params_of(MODEL)
    found = sample(MODEL, params, np.array([[13]]), new_tokens=5)
    pieces = stream(MODEL, params, "", LETTERS, new_tokens=5)
    assert "".join(pieces) == LETTERS.decode(found.tokens[0]).split("<")[0]


def test_wrong_input_is_said_before_the_first_piece():
    params = params_of(MODEL)
    with pytest.raises(ValueError, match=r"the prompt '' has no token, and the tokenizer no start"):
        stream(MODEL, params, "", Characters("ab"), new_tokens=5)
    with pytest.raises(ValueError, match="tokenizer has 256 tokens, but the vocabulary of the mod"):
        stream(MODEL, params, "a", Bytes(), new_tokens=5)
    with pytest.raises(ValueError, match="a prompt of 60 tokens and new_tokens=6 need 65 to be"):
        stream(MODEL, params, "a" * 60, LETTERS, new_tokens=6)
    with pytest.raises(ValueError, match=r"text has 'z' \(U\+007A\) at place 2"):
        stream(MODEL, params, "abz", LETTERS, new_tokens=6)
    with pytest.raises(ValueError, match="chunk is 0, expected an integer >= 1"):
        stream(MODEL, params, "a", LETTERS, new_tokens=6, chunk=0)
