"""Checkpoints that are damaged, hostile, or of something else: one clear sentence each."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.interop import files, huggingface
from nnkit.interop.huggingface import loading
from nnkit.interop.huggingface.families import expected, model_of
from nnkit.layers import LayerNorm, RMSNorm, gelu
from nnkit.models import BERT, GPT, MLP, EncDec, ViT

HERE = Path(__file__).parents[1] / "references" / "huggingface"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(HERE / "gpt2", tmp_path / "gpt2"))


def said(folder, kind=ValueError, **options):
    """The message of a load that fails, within a second."""
    begin = time.perf_counter()
    with pytest.raises(kind) as caught:
        huggingface.load(folder, **options)
    assert time.perf_counter() - begin < 1
    return str(caught.value)


def config(folder, **changes):
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: x for k, x in found.items() if x is not DROP}))
    return folder


DROP = object()


def raw(folder, header, data=b"", length=None):
    """A safetensors file from its parts."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(head) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + head + data)
    return folder


def row(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {  # name: (header, data, length of the header, what is said)
    "empty": (b"", b"", None, "the header is no JSON object|damaged JSON"),
    "a header of 10^12 bytes": ({}, b"", 10**12, "is cut off, or no safetensors file: 10 bytes"),
    "the largest number": (
        {},
        b"",
        2**64 - 1,
        "say that the header alone has 18,446,744,073,709,551,615",
    ),
    "no JSON": (b"{]}", b"", None, "damaged JSON"),
    "a list": (b"[]", b"", None, "the header is no JSON object"),
    "deep": (b"[" * 100_000, b"", None, "damaged JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", None, "damaged JSON"),
    "a huge integer": (b'{"a": ' + b"9" * 5000 + b"}", b"", None, "damaged JSON"),
    "twice": (b'{"a": 1, "a": 2}', b"", None, "the name 'a' comes twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__ is"),
    "an entry too little": ({"a": {"dtype": "F32"}}, b"", None, "tensor 'a' is"),
    "an entry too much": ({"a": row() | {"call": "f"}}, bytes(8), None, "tensor 'a' is"),
    "another dtype": ({"a": row(dtype="object")}, bytes(8), None, "'a' has dtype 'object'"),
    "a dtype that is none": ({"a": row(dtype=[1])}, bytes(8), None, r"'a' has dtype \[1\]"),
    "a negative size": ({"a": row(shape=(-2,))}, bytes(8), None, "'a' has shape"),
    "a bool for a size": ({"a": row(shape=(True, 2))}, bytes(8), None, "'a' has shape"),
    "three offsets": ({"a": row(offsets=(0, 4, 8))}, bytes(8), None, "'a' has shape"),
    "a wrong product": ({"a": row(shape=(3,))}, bytes(8), None, "12 bytes, but its data_offsets"),
    "an overflowing product": ({"a": row((2**62, 2**62))}, bytes(8), None, "but its data_offsets"),
    "backwards": ({"a": row(offsets=(8, 0))}, bytes(8), None, "but its data_offsets"),
    "overlapping": (
        {"a": row(), "b": row(offsets=(4, 12))},
        bytes(12),
        None,
        "'b' at bytes 4 to 12 overlaps the tensor before it",
    ),
    "a hole": ({"a": row(), "b": row(offsets=(12, 20))}, bytes(20), None, "leaves a hole"),
    "out of the file": ({"a": row(offsets=(80, 88))}, bytes(8), None, "leaves a hole"),
    "cut off": ({"a": row()}, bytes(7), None, "is cut off: the data has 7 bytes, but 'a' ends at"),
    "too long": ({"a": row()}, bytes(9), None, "is longer than its header says"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file(case, folder):
    *parts, words = HOSTILE[case]
    text = said(raw(folder, *parts))
    assert "model.safetensors" in text
    assert any(word in text for word in words.replace("\\", "").split("|")), text


def test_a_file_that_is_cut_anywhere(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        text = said(folder)
        assert "cut off" in text and "download or copy the file again" in text
    path.write_bytes(whole)
    tensor = files.tensors(folder)["transformer.wte.weight"]
    path.write_bytes(whole[: tensor.start + 10])  # after its header was read
    with pytest.raises(ValueError, match=r"cut off inside tensor 'transformer.wte.weight': 10 of"):
        files.read(tensor)


@pytest.fixture
def shards(tmp_path):
    found = huggingface.load(HERE / "gpt2", quiet=True)
    return huggingface.save(tmp_path / "s", found.model, found.params, max_shard_size="9KB")


def index(folder, change):
    path = folder / files.INDEX
    found = json.loads(path.read_text())
    change(found["weight_map"])
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "elsewhere", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", 3, "x.bin"]
)
def test_an_index_that_points_elsewhere(elsewhere, shards):
    index(shards, lambda table: table.update({"transformer.wte.weight": elsewhere}))
    assert "expected the name of a .safetensors file in the same folder" in said(shards)


def test_headers_and_indices_are_as_long_as_their_files_allow(shards, folder, monkeypatch):
    monkeypatch.setattr(files, "SMALL", 30)
    text = said(raw(folder, {"a": row()}, bytes(8)))
    assert "the header has 61 bytes, expected at most 37 in a file of 77" in text
    index = shards / files.INDEX
    index.write_text(index.read_text() + " " * 10_000)
    text = said(shards)
    assert f"{files.INDEX} has " in text
    assert "bytes of weights; download or copy the file again" in text
    with pytest.raises(ValueError, match="is no plain file, expected safetensors"):
        files.headers(folder)


def test_shards_that_do_not_fit_their_index(shards):
    table = json.loads((shards / files.INDEX).read_text())["weight_map"]
    first, *_, last = sorted(set(table.values()))
    index(shards, lambda t: t.pop("transformer.wte.weight"))
    assert "holds 'transformer.wte.weight', which model.safetensors.index.json has nowhere" in said(
        shards
    )
    index(shards, lambda t: t.update({"transformer.wte.weight": last}))
    assert f"has in {last}" in said(shards)
    index(shards, lambda t: t.update({"transformer.wte.weight": first, "ghost": last}))
    assert f"{last} lacks 'ghost', which" in said(shards)
    (shards / last).unlink()
    assert f"lacks the shard {last}" in said(shards, FileNotFoundError)
    (shards / files.INDEX).write_text("[]")
    assert 'has no "weight_map"' in said(shards)
    (shards / files.SINGLE).write_bytes(b"")
    assert "has both model.safetensors and" in said(shards)


def test_no_weights_or_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert "it has weights.safetensors: rename the file" in said(folder, FileNotFoundError)
    (folder / "weights.safetensors").unlink()
    assert "expected a folder as `save`" in said(folder, FileNotFoundError)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /owned'\ntR.")
    text = said(folder, FileNotFoundError)
    assert "a pickle, which can run any program" in text and "save_pretrained" in text
    (folder / "config.json").write_text("{")
    assert "config.json is damaged JSON" in said(folder)
    (folder / "config.json").write_text("[]")
    assert "holds a list, expected an object" in said(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in said(folder, FileNotFoundError)


def test_another_architecture_or_size(folder):
    shutil.copy(HERE / "llama" / "model.safetensors", folder)
    text = said(folder)
    assert "does not fit the GPT that its config.json (model_type gpt2) describes" in text
    assert "27 missing, first 'transformer.wpe.weight' [32 16]" in text
    assert "20 unknown, first 'model.embed_tokens.weight' [41 16]" in text
    shutil.copy(HERE / "gpt2" / "model.safetensors", folder)
    text = said(config(folder, n_embd=24, vocab_size=40))
    assert "28 of another size, first 'transformer.wte.weight' [41 16], expected [40 24]" in text
    text = said(config(folder, n_embd=16, vocab_size=41, n_layer=3))
    assert "12 missing, first 'transformer.h.2.ln_1.weight' [16]" in text
    text = said(config(folder, n_layer=900))
    assert "config.json says 900 layers, but there are 28 tensors, expected more" in text
    text = said(config(folder, n_layer=1))
    assert "12 unknown, first 'transformer.h.1." in text


def test_a_tied_head_that_differs(tmp_path):
    folder = Path(shutil.copytree(HERE / "llama", tmp_path / "llama"))
    text = said(config(folder, tie_word_embeddings=True))
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in text
    assert '"tie_word_embeddings": false' in text


KEYS = {  # family: {key: (a value that our models cannot do, what is said)}
    "gpt2": {
        "scale_attn_by_inverse_layer_idx": (True, "attention is scaled by 1 / sqrt"),
        "scale_attn_weights": (False, "attention is scaled by 1 / sqrt"),
        "add_cross_attention": (True, "reads no second sequence"),
        "activation_function": ("quick_gelu", "expected one of gelu, gelu_python, gelu_new"),
        "n_embd": ("16", "n_embd is '16', expected an integer >= 1"),
        "vocab_size": (2**31, "vocab_size is 2,147,483,648, expected an integer < 2^31"),
        "n_layer": (1001, "n_layer is 1,001, expected at most 1,000 layers"),
        "layer_norm_epsilon": (0, "expected a number > 0"),
        "attn_pdrop": (0.3, "the shares"),
        "architectures": (["GPT2ForSequenceClassification"], "expected one of GPT2LMHeadModel"),
        "model_type": ("gpt_neox", "expected one of gpt2, llama"),
        "rotary_pct": (0.25, "the key 'rotary_pct' is 0.25"),
        "quantization_config": ({"bits": 4}, "weights are stored as codes"),
        "n_ctx": (31, "it is n_positions under its old name"),
    },
    "llama": {
        "rope_scaling": ({"rope_type": "llama3", "factor": 8.0}, "are not stretched"),
        "rope_parameters": ({"rope_type": "yarn", "rope_theta": 1e4}, "rope_parameters is"),
        "rope_theta": (-1.0, "rope_theta is -1.0, expected a number > 0"),
        "attention_bias": (True, "mlp_bias is False, expected True"),
        "attention_dropout": (0.1, "attention_dropout is 0.1, expected 0.0"),
        "partial_rotary_factor": (0.5, "rotated as a whole"),
        "sliding_window": (4, "Llama has no window"),
    },
    "qwen3": {
        "attention_bias": (True, "biases of attention and MLP go together"),
        "layer_types": (["full_attention"], "expected 2 of sliding_attention and full_attention"),
        "use_sliding_window": (False, "layer_types has windows, but sliding_window is None"),
    },
    "gemma2": {
        "query_pre_attn_scalar": (256, "query_pre_attn_scalar is 256, expected head_dim, 6"),
        "use_bidirectional_attention": (True, "looks back only"),
    },
    "bert": {
        "position_embedding_type": ("relative_key", "positions here are a table"),
        "is_decoder": (True, "in both directions"),
        "classifier_dropout": (0.4, None),
    },
    "vit": {
        "qkv_bias": (False, "have biases here"),
        "patch_size": ([4, 2], "expected one side"),
        "num_labels": (3, "num_labels is 3, expected 5"),
    },
    "t5": {
        "feed_forward_proj": ("gated-silu", "dense_act_fn is 'relu', expected 'silu'"),
        "is_encoder_decoder": (False, "has both halves"),
    },
}
CASES = [(family, key) for family, keys in KEYS.items() for key in keys]


@pytest.mark.parametrize(("family", "key"), CASES)
def test_a_key_that_our_models_cannot_do(family, key):
    value, words = KEYS[family][key]
    found = json.loads((HERE / family / "config.json").read_text())
    if key in ("rope_theta",):
        del found["rope_parameters"]
    if words is None:
        model_of(found | {key: value})
        return
    with pytest.raises(ValueError) as caught:
        model_of(found | {key: value})
    assert words in str(caught.value)
    assert key in str(caught.value) or key == "use_sliding_window" or "mlp_bias" in words


def test_what_the_caller_says_comes_first():
    found = json.loads((HERE / "gpt2" / "config.json").read_text())
    _, model = model_of(found | {"attn_pdrop": 0.3}, {"dropout": 0.2})
    assert model.dropout == 0.2
    assert model_of(found | {"odd": 1}, ignore_keys=("odd",))[1] == model_of(found)[1]
    with pytest.raises(TypeError, match="fields has 'widht', which GPT has not"):
        model_of(found, {"widht": 3})
    theta = {"rope_theta": 500.0, "rope_scaling": None, "rope_parameters": None}
    llama = json.loads((HERE / "llama" / "config.json").read_text())
    assert model_of(llama | theta)[1] == model_of(llama)[1]  # as transformers 4 writes it


class Words:
    """A tokenizer of n tokens."""

    end = None

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


TINY = {"vocabulary": 11, "length": 8, "width": 16, "depth": 2, "heads": 2}
LLAMA = {
    **TINY, "norm": RMSNorm, "learned": False, "rope": 1e4, "gated": True, "use_bias": False,
}  # fmt: skip
INEXPRESSIBLE = [
    (GPT(**TINY, alibi=True, learned=False), "GPT: alibi is True"),
    (GPT(**TINY, learned=False), "learned is False"),
    (GPT(**TINY, rope=1e4), "rope is 10000.0"),
    (GPT(**TINY, window=4), "window is 4"),
    (GPT(**TINY, kv_heads=1), "kv_heads is 1"),
    (GPT(**TINY, activation=jnp.sin), "activation is"),
    (GPT(**TINY, norm=lambda epsilon: None), "norm is"),
    (GPT(**LLAMA | {"rope": None}), "rope is None"),
    (GPT(**LLAMA, scale_embedding=True), "post_norm is False"),
    (GPT(**LLAMA, softcap=3.0), "softcap is 3.0"),
    (GPT(**LLAMA, qk_norm=True, qkv_bias=True), "qkv_bias is True"),
    (GPT(**LLAMA, experts=2, capacity=1.0), "capacity is 1.0"),
    (GPT(**LLAMA, experts=2, window=(4, None)), "window is"),
    (GPT(**LLAMA, qk_norm=True, window=(4, 3)), "expected one size beside None"),
    (GPT(**LLAMA | {"gated": False}), "gated is False"),
    (BERT(vocabulary=11, learned=False), "BERT: learned is False"),
    (ViT(3, cls=False), "ViT: cls is False"),
    (EncDec(activation=gelu, gated=True), "activation is the exact gelu"),
]


@pytest.mark.parametrize(("model", "words"), INEXPRESSIBLE, ids=[w for _, w in INEXPRESSIBLE])
def test_a_model_that_no_family_has(model, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        huggingface.save(tmp_path / "out", model, {})
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def drawn(model):
    """Parameters of a model, quickly."""
    rng = np.random.RandomState(0)
    flat = {
        k: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for k, x in expected(model).items()
    }
    return loading._nested(flat)


def test_wrong_words_of_save(tmp_path):
    model = GPT(**TINY)
    params = drawn(model)
    save = lambda **more: huggingface.save(tmp_path / "out", model, params, **more)
    with pytest.raises(TypeError, match="MLP has no form in transformers"):
        huggingface.save(tmp_path / "out", MLP((3,)), params)
    with pytest.raises(
        ValueError, match=r"attention/key/bias is missing, expected float32\[16\]; give those of"
    ):
        huggingface.save(tmp_path / "out", model, {"params": params})
    members = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    with pytest.raises(
        ValueError, match=r"is float32\[2,16\], expected float32\[16\]; .* axis of members"
    ):
        huggingface.save(tmp_path / "out", model, members)
    with pytest.raises(ValueError, match="the tokenizer has 12 tokens, but the model's vocabulary"):
        save(tokenizer=Words(12))
    with pytest.raises(ValueError, match="max_shard_size is 'much'"):
        save(max_shard_size="much")
    with pytest.raises(TypeError, match="card is int"):
        save(card=3)
    assert list(tmp_path.iterdir()) == []
    save()
    with pytest.raises(FileExistsError, match="nothing is overwritten unasked"):
        save()
    save(overwrite=True, card="mine")
    assert (tmp_path / "out" / "README.md").read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    model = GPT(**TINY)
    params = drawn(model)
    out = huggingface.save(tmp_path / "out", model, params)
    before = (out / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_one", full)
    with pytest.raises(OSError, match="No space left"):
        huggingface.save(out, model, params, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_tokenizer_that_does_not_match(folder, monkeypatch):
    from nnkit import data

    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(data, "tokenizer", lambda path: Words(42), raising=False)
    text = said(folder)
    assert "the tokenizer has 42 tokens, but the model's vocabulary has 41" in text
    assert huggingface.load(folder, tokenizer=False, quiet=True).tokenizer is None
    monkeypatch.setattr(data, "tokenizer", lambda path: Words(41), raising=False)
    assert len(huggingface.load(folder, quiet=True).tokenizer) == 41


def test_wide_numbers_are_not_cut_in_silence(tmp_path):
    tensors = files.tensors(HERE / "gpt2")
    wanted = [
        files.Wanted(k, np.dtype("float64"), x.shape, lambda x=x: files.read(x).astype(np.float64))
        for k, x in tensors.items()
    ]
    files.write(tmp_path, wanted)
    shutil.copy(HERE / "gpt2" / "config.json", tmp_path)
    assert "is float64, which JAX would cut to float32" in said(tmp_path)
    assert huggingface.load(tmp_path, dtype="float32", quiet=True).params["embed"]


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "BF16", "F16", "I8", "BOOL"])
def test_every_dtype_is_read_as_it_is(code, tmp_path):
    dtype = np.dtype(files.DTYPES[code])
    bits = np.arange(0, 2 if code == "BOOL" else 120, dtype=f"u{dtype.itemsize}")
    array = bits.view(dtype)
    files.write(tmp_path, [files.Wanted("a", dtype, array.shape, lambda: array)])
    found = files.read(files.tensors(tmp_path)["a"])
    assert found.dtype == dtype and found.tobytes() == array.tobytes()
    assert not (tmp_path / files.INDEX).exists()


def test_dtypes_are_aligned_and_complex_ones_refused(tmp_path):
    small, large = np.ones(3, np.int8), np.ones(2, np.float64)
    make = lambda x: files.Wanted(str(x.dtype), x.dtype, x.shape, lambda: x)
    files.write(tmp_path, [make(small), make(large)])
    found = files.tensors(tmp_path)
    assert found["float64"].start % 8 == 0
    np.testing.assert_array_equal(files.read(found["int8"]), small)
    with pytest.raises(TypeError, match="complex64, which safetensors cannot hold"):
        files.write(tmp_path, [make(np.ones(2, np.complex64))])


def test_two_names_of_one_tensor(folder):
    arrays = {k: files.read(x) for k, x in files.tensors(folder).items()}
    arrays["wte.weight"] = arrays["transformer.wte.weight"]
    files.write(
        folder, [files.Wanted(k, x.dtype, x.shape, lambda x=x: x) for k, x in arrays.items()]
    )
    assert "two names of one tensor" in said(folder)


def test_the_report_lists_a_few_and_counts_all():
    report = loading.Report("x", ("a",), (), tuple("abcde"), {"m": "a mask", "n": "a mask"})
    assert str(report) == (
        "x: 1 tensors loaded; missing: none; unused: 5 (a, b, c, ... 2 more); ignored: 2 (a mask)"
    )


def test_norms_are_told_apart():
    from nnkit.interop.huggingface.decoders import family_of
    from nnkit.layers import ShiftedRMSNorm

    assert family_of(GPT(**TINY, norm=LayerNorm)) == "gpt2"
    assert family_of(GPT(**LLAMA)) == "llama"
    assert family_of(GPT(**LLAMA, window=4)) == "mistral"
    assert family_of(GPT(**LLAMA, qkv_bias=True)) == "qwen2"
    assert family_of(GPT(**LLAMA, qk_norm=True)) == "qwen3"
    assert family_of(GPT(**LLAMA, experts=2)) == "mixtral"
    gemma = LLAMA | {"norm": ShiftedRMSNorm}
    assert family_of(GPT(**gemma, post_norm=True, scale_embedding=True)) == "gemma2"
