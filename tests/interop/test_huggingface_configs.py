"""config.json as the published checkpoints have it: the sizes of our tables come out."""

from __future__ import annotations

import jax
import pytest

from nnkit.interop.huggingface.families import described, expected, model_of
from nnkit.interop.huggingface.names import rules
from nnkit.models import BERT, GPT, EncDec, ViT

RUN = {"use_cache": True, "torch_dtype": "float16", "transformers_version": "4.40.0"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
    **RUN,
}
MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
    **RUN,
}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"translation_en_to_de": {"num_beams": 4}},
    "vocab_size": 32128,
}
PUBLISHED = {  # name: (config.json, our model)
    "gpt2": (
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50256,
            "embd_pdrop": 0.1,
            "eos_token_id": 50256,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "summary_type": "cls_index",
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
        GPT.from_size("gpt2"),
    ),
    "llama2-7b": (LLAMA, GPT.from_size("llama2-7b", kv_heads=32)),
    "llama3-8b": (
        LLAMA
        | {
            "attention_bias": False,
            "intermediate_size": 14336,
            "max_position_embeddings": 8192,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
            "vocab_size": 128256,
        },
        GPT.from_size("llama3-8b"),
    ),
    "mistral-7b": (MISTRAL, GPT.from_size("mistral-7b")),
    "mixtral-8x7b": (
        MISTRAL
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "output_router_logits": False,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
        },
        GPT.from_size("mixtral-8x7b"),
    ),
    "qwen2-0.5b": (QWEN, GPT.from_size("qwen2-0.5b")),
    "qwen3-0.6b": (
        {k: v for k, v in QWEN.items() if k != "use_mrope"}
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "sliding_window": None,
        },
        GPT.from_size("qwen3-0.6b"),
    ),
    "gemma2-2b": (
        {
            "architectures": ["Gemma2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "max_position_embeddings": 8192,
            "model_type": "gemma2",
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "vocab_size": 256000,
            **RUN,
        },
        GPT.from_size("gemma2-2b"),
    ),
    "bert-base": (
        {
            "architectures": ["BertForMaskedLM"],
            "attention_probs_dropout_prob": 0.1,
            "gradient_checkpointing": False,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": 768,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "model_type": "bert",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "use_cache": True,
            "vocab_size": 30522,
        },
        BERT.from_size("base", hidden=3072),
    ),
    "vit-base-patch16-224": (
        {
            "architectures": ["ViTForImageClassification"],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": 768,
            "id2label": {str(i): f"class {i}" for i in range(1000)},
            "image_size": 224,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "label2id": {f"class {i}": i for i in range(1000)},
            "layer_norm_eps": 1e-12,
            "model_type": "vit",
            "num_attention_heads": 12,
            "num_channels": 3,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "qkv_bias": True,
        },
        ViT.from_size("B/16", epsilon=1e-12),
    ),
    "t5-small": (T5 | {"n_positions": 512}, EncDec.from_size("small", decoder_depth=6)),
    "t5-v1_1-small": (
        T5
        | {
            "d_ff": 1024,
            "feed_forward_proj": "gated-gelu",
            "num_decoder_layers": 8,
            "num_heads": 6,
            "num_layers": 8,
            "tie_word_embeddings": False,
        },
        EncDec.from_size("v1.1-small", decoder_depth=8),
    ),
}


def filled(model):
    """The model with what it works out written down, so that equal means equal."""
    if not isinstance(model, GPT):
        return model
    hidden, groups = model.hidden or 4 * model.width, model.kv_heads or model.heads
    biases = model.use_bias if model.qkv_bias is None else model.qkv_bias
    size = model.head_dim or model.width // model.heads
    return model.clone(hidden=hidden, kv_heads=groups, head_dim=size, qkv_bias=biases)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name):
    config, want = PUBLISHED[name]
    family, model = model_of(config)
    assert family == config["model_type"]
    assert filled(model) == filled(want)
    keys = described(model)[1]  # and written by us it is the same model
    assert keys["architectures"] == config["architectures"]
    assert filled(model_of(keys)[1]) == filled(model)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_has_one_name(name):
    model = PUBLISHED[name][1].clone(depth=2, **({"decoder_depth": 1} if "t5" in name else {}))
    family, want = PUBLISHED[name][0]["model_type"], expected(model)
    table = rules(family, model)
    ours = [path for rule in table for path in rule.ours]
    theirs = [key for rule in table for key in rule.theirs]
    assert sorted(ours) == sorted(want)
    assert len(set(theirs)) == len(theirs)
    count = sum(x.size for x in want.values())
    saved = (jax.eval_shape(rule.save, *(want[path] for path in rule.ours)) for rule in table)
    assert sum(x.size for arrays in saved for x in arrays) == count
