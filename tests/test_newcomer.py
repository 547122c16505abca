"""Slips that newcomers made with texts: each is said in a sentence, before anything is compiled."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import data, generate, models
from nnkit.interop import huggingface

MODEL = models.GPT(vocabulary=10, length=16, width=16, depth=1, heads=2)
LETTERS = data.Characters.of("abcdefghij")


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.array([[1]]))["params"]


def test_a_vocabulary_too_small_is_said_by_init_under_a_mask_too():
    pages = data.text(b"hello world " * 9, length=16, batch_size=2)
    step = nk.step(nk.gradient(nk.causal_lm(MODEL)), optax.sgd(0.1))
    with pytest.raises(ValueError, match="tokens run from 32 to 119, but the vocabulary has 10"):
        nk.init(step, jax.random.key(0), next(iter(pages)))
    other = [{"tokens": np.zeros((2, 4), int), "labels": np.full((2, 4), 10)}]
    other[0] |= {"label_mask": np.ones((2, 4), bool), "mask": np.ones(2)}
    with pytest.raises(ValueError, match="labels run from 10 to 10, but the logits have 10"):
        nk.init(step, jax.random.key(0), other[0])


@pytest.mark.parametrize("learn", [data.Characters.of, lambda text: data.BPE.of(text, size=300)])
def test_the_name_of_a_file_is_not_learned_letter_by_letter(learn, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="byte-pair encoding is learned by `tokenizers`")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'book.txt', which reads like the name of a file"):
        learn("book.txt")
    text = "in the beginning was the word, and the word was long enough to merge its letters " * 20
    pathlib.Path("book").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"give pathlib.Path\('book'\)"):
        learn("book")
    found = data.Characters.of(pathlib.Path("book"))
    assert found == data.Characters.of(text)


def test_parameters_that_are_something_else(params):
    tokens = np.array([[1, 2]])
    with pytest.raises(TypeError, match=r"params is tuple.*params, carry = step.weights\(state\)"):
        generate.sample(MODEL, (params, {}), tokens, new_tokens=2)
    found = huggingface.Pretrained(MODEL, params, None, {}, None)
    with pytest.raises(TypeError, match=r"params is Pretrained.*give its \.params"):
        generate.beam(MODEL, found, tokens, new_tokens=2)
    with pytest.raises(TypeError, match=r"adapt: params is Pretrained.*give its \.params"):
        nk.adapt(nk.causal_lm(MODEL), found)
    with pytest.raises(TypeError, match=r"adapt: fresh is 'head/\*', expected a predicate"):
        nk.adapt(nk.causal_lm(MODEL), params, fresh="head/*")


def test_prompts_that_are_no_ids(params):
    for text in ("abc", ["abc"]):
        with pytest.raises(TypeError, match=r"tokens is text, .*tokenizer.encode\(text\)\[None\]"):
            generate.sample(MODEL, params, text, new_tokens=2)
    with pytest.raises(ValueError, match=r"rows of tokens differ in length.*nk.data.pad"):
        generate.sample(MODEL, params, [[1, 2], [3]], new_tokens=2)
    with pytest.raises(TypeError, match=r"expected a str and what encodes it: stream\(model"):
        generate.stream(MODEL, params, LETTERS, "abc", new_tokens=2)


def test_a_tokenizer_without_a_mask_hides_nothing():
    with pytest.raises(TypeError, match=r"mask_id is None.*special=\(\"\[MASK\]\",\)"):
        nk.mask_tokens(None, np.array([[1, 2]]), mask_id=LETTERS.mask, vocabulary=10)
    pages = data.text(["ab", "cd"], length=6, batch_size=1, tokenizer=LETTERS)
    assert any("no end token" in note for note in pages.notes)


def test_other_classes_on_given_weights(tmp_path):
    sizes = {"vocabulary": 11, "width": 8, "depth": 1, "heads": 2, "length": 8}
    three = models.BERT(classes=3, **sizes)
    params = jax.jit(three.init)(jax.random.key(0), jnp.array([[1]]))["params"]
    folder = huggingface.save(tmp_path / "three", three, params)
    with pytest.raises(
        ValueError, match=r"'classifier.weight' \[3 8\], expected \[5 8\] \(here hea"
    ):
        huggingface.load(folder, fields={"classes": 5})
    key = {"key": jax.random.key(1), "quiet": True}
    five = huggingface.load(folder, fields={"classes": 5}, allow_missing=("head/*",), **key)
    assert five.params["head"]["kernel"].shape == (8, 5)
    assert five.report.missing == ("head/kernel", "head/bias")
    np.testing.assert_array_equal(five.params["pooler"]["kernel"], params["pooler"]["kernel"])


def test_a_pointer_of_git_lfs_is_no_file_cut_off(tmp_path):
    folder = huggingface.save(
        tmp_path / "tiny", MODEL, jax.jit(MODEL.init)(jax.random.key(0), jnp.array([[1]]))["params"]
    )
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ValueError, match="is a pointer of Git LFS"):
        huggingface.load(folder)
