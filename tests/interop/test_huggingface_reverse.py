"""Our models, written by us, opened by transformers: the same logits; and our tokenizers there."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.torch_side import logits, opened, transformers

from nnkit import data
from nnkit.interop import huggingface
from nnkit.interop.huggingface.families import expected
from nnkit.interop.huggingface.loading import _nested
from nnkit.layers import RMSNorm, ShiftedRMSNorm, gelu_tanh, silu
from nnkit.models import BERT, GPT, EncDec, ViT

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

SIZE = {"vocabulary": 31, "length": 16, "width": 16, "depth": 2, "heads": 4}
LLAMA = {
    **SIZE,
    "kv_heads": 2,
    "hidden": 24,
    "norm": RMSNorm,
    "epsilon": 1e-6,
    "learned": False,
    "rope": 700.0,
    "activation": silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
GEMMA = LLAMA | {"tied": True, "post_norm": True, "scale_embedding": True, "head_dim": 8}
GEMMA |= {"activation": gelu_tanh, "window": (3, None), "softcap": 2.0, "final_softcap": 3.0}
BERT_SIZE = {"vocabulary": 31, "width": 16, "depth": 2, "heads": 4, "length": 16, "hidden": 24}
T5 = {"vocabulary": 31, "width": 16, "depth": 2, "decoder_depth": 1, "heads": 2, "head_dim": 5}
T5 |= {"hidden": 24, "buckets": 8, "max_distance": 12}
NANO = {k: v for k, v in SIZE.items() if k != "vocabulary"}
CASES = {  # name: (ours, the class of theirs)
    "gpt2": (GPT(**SIZE), "GPT2LMHeadModel"),
    "gpt2_untied": (GPT(**SIZE, tied=False, hidden=20), "GPT2LMHeadModel"),
    "nanogpt": (GPT.from_size("nanogpt-cpu", **SIZE), "GPT2LMHeadModel"),
    "llama": (GPT(**LLAMA), "LlamaForCausalLM"),
    "llama_biased": (GPT(**LLAMA | {"use_bias": True}), "LlamaForCausalLM"),
    "mistral": (GPT(**LLAMA, window=3), "MistralForCausalLM"),
    "qwen2": (GPT(**LLAMA | {"tied": True}, qkv_bias=True), "Qwen2ForCausalLM"),
    "qwen2_window": (GPT(**LLAMA, qkv_bias=True, window=(None, 3)), "Qwen2ForCausalLM"),
    "qwen3": (GPT(**LLAMA, head_dim=8, qk_norm=True), "Qwen3ForCausalLM"),
    "gemma2": (GPT(**GEMMA), "Gemma2ForCausalLM"),
    "gemma2_shifted": (GPT(**GEMMA | {"norm": ShiftedRMSNorm}), "Gemma2ForCausalLM"),
    "mixtral": (GPT(**LLAMA, experts=3, top_k=2), "MixtralForCausalLM"),
    "bert": (BERT(**BERT_SIZE), "BertForMaskedLM"),
    "bert_classify": (BERT(**BERT_SIZE, classes=3), "BertForSequenceClassification"),
    "vit": (
        ViT(5, width=16, depth=2, heads=4, hidden=24, patch=4, image=(8, 12)),
        "ViTForImageClassification",
    ),
    "t5": (EncDec(**T5), "T5ForConditionalGeneration"),
    "t5_v1_1": (
        EncDec(**T5 | {"activation": gelu_tanh, "gated": True, "tied": False}),
        "T5ForConditionalGeneration",
    ),
}


def drawn(model):
    """Parameters of a model: none is 0 or 1 by chance."""
    rng, found = np.random.RandomState(5), {}
    for path, x in expected(model).items():
        draw = rng.standard_normal(x.shape).astype(np.float32)
        matrix = len(x.shape) > 1
        found[path] = draw / np.sqrt(x.shape[-2]) if matrix else 0.1 * draw + ("scale" in path)
    return _nested({path: jnp.asarray(x) for path, x in found.items()})


def feed(model):
    """(inputs of ours, inputs of theirs)."""
    rng = np.random.RandomState(6)
    if isinstance(model, ViT):
        x = rng.standard_normal((2, 8, 12, 3)).astype(np.float32)
        return (x,), {"pixel_values": x.transpose(0, 3, 1, 2)}
    tokens = rng.randint(0, 31, (2, 9)).astype(np.int32)
    if isinstance(model, EncDec):
        target = rng.randint(0, 31, (2, 6)).astype(np.int32)
        return (tokens, target), {"input_ids": tokens, "decoder_input_ids": target}
    return (tokens,), {"input_ids": tokens}


@partial(jax.jit, static_argnums=0)
def run(model, params, inputs):
    return model.apply({"params": params}, *inputs)


@pytest.mark.parametrize("name", CASES)
def test_transformers_opens_what_we_write(name, tmp_path):
    transformers()
    model, kind = CASES[name]
    params = drawn(model)
    out = huggingface.save(tmp_path / "out", model, params, max_shard_size="10KB")
    mine, theirs = feed(model)
    found = logits(opened(out, kind), **theirs)
    wanted = np.asarray(run(model, params, mine))
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5, error


@pytest.mark.parametrize("kind", ["characters", "bytes", "BPE"])
def test_auto_tokenizer_opens_ours(kind, tmp_path):
    library, _ = transformers()
    texts = ["A small text; naïve – 日本 🙂\n", "and  another one."]
    tokenizer = {
        "characters": lambda: data.Characters.of("".join(texts)),
        "bytes": lambda: data.Bytes(special=("<|endoftext|>",)),
        "BPE": lambda: data.BPE.of(texts * 3, 264),
    }[kind]()
    model = GPT(**SIZE | {"vocabulary": len(tokenizer)})
    out = huggingface.save(tmp_path / "out", model, drawn(model), tokenizer=tokenizer)
    theirs = library.AutoTokenizer.from_pretrained(out)
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert len(theirs) == len(tokenizer)
    assert theirs.eos_token_id == tokenizer.end
    again = huggingface.load(out, quiet=True)
    assert again.tokenizer.encode(texts[0]).tolist() == tokenizer.encode(texts[0]).tolist()
    assert again.config["eos_token_id"] == tokenizer.end


def test_a_bfloat16_file_opens_there(tmp_path):
    _, torch = transformers()
    model = GPT(**LLAMA)
    out = huggingface.save(tmp_path / "out", model, drawn(model), dtype="bfloat16")
    theirs = opened(out, "AutoModelForCausalLM")
    assert theirs.dtype == torch.bfloat16
    mine = huggingface.load(out, quiet=True).params["block_0"]["mlp"]["up"]["kernel"]
    there = theirs.model.layers[0].mlp.up_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(np.asarray(mine.astype(jnp.float32)), there)
