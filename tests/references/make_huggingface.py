"""Write tiny checkpoints of Hugging Face transformers, as its own save_pretrained writes them.

Run      python tests/references/make_huggingface.py    (needs torch and transformers, no jax)
Takes    a few seconds on a CPU; nothing is downloaded
Writes   huggingface/NAME/config.json, model.safetensors and golden.npz for every name of `CASES`

golden.npz has inputs and logits (float32, evaluation mode, eager attention) and, for models that
write, the greedy continuation of two prompts. Every parameter is drawn from its name and shape.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from references.make_transformers import drawn

HERE = Path(__file__).parent / "huggingface"
LIMIT = 60_000  # bytes of a file
VOCABULARY, LENGTHS, TIME, NEW = 41, (9, 6, 4), 9, 8
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
    "eos_token_id": None,
}
CASES = {  # name: (class, its configuration)
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_positions": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
    ),
    "llama": (
        "LlamaForCausalLM",
        {
            **DECODER,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "mistral": ("MistralForCausalLM", {**DECODER, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3ForCausalLM",
        {
            **DECODER,
            "head_dim": 6,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **DECODER,
            "head_dim": 6,
            "query_pre_attn_scalar": 6,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**DECODER, "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 12},
    ),
    "bert": ("BertForMaskedLM", BERT),
    "bert_classify": ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "vit": (
        "ViTForImageClassification",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": [8, 12],
            "patch_size": 4,
            "num_channels": 3,
            "num_labels": 5,
        },
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5_v1_1": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "llama_bfloat16": ("LlamaForCausalLM", DECODER),
}


def inputs(name):
    """What the model is called with, numpy arrays by the names of transformers."""
    rng = np.random.RandomState(41)
    if name == "vit":
        return {"pixel_values": rng.standard_normal((2, 3, 8, 12)).astype(np.float32)}
    real = np.arange(TIME) < np.array(LENGTHS)[:, None]
    found = {
        "input_ids": np.where(real, rng.randint(2, VOCABULARY, real.shape), 0),
        "attention_mask": real.astype(np.int64),
    }
    if name.startswith("bert"):
        found["token_type_ids"] = (np.arange(TIME) >= 3).astype(np.int64) * real
    if name.startswith("t5"):
        written = rng.randint(2, VOCABULARY, (3, 6))
        found["decoder_input_ids"] = np.concatenate([np.zeros((3, 1), int), written], 1)
    return found


def build(name):
    """The model of a case with its weights drawn."""
    import torch
    import transformers

    kind, config = CASES[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**config, attn_implementation="eager")
    model = model_class(config).eval()
    if name == "t5_v1_1":  # transformers 5 ties a new head; that of the published model is not
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    if name == "mixtral":
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            value.copy_(torch.from_numpy(drawn(parameter, tuple(value.shape))))
    return model.to(torch.bfloat16) if name.endswith("bfloat16") else model


def main():
    import torch
    import transformers

    shutil.rmtree(HERE, ignore_errors=True)
    for name in CASES:
        model, arrays = build(name), inputs(name)
        asked = {key: torch.from_numpy(x) for key, x in arrays.items()}
        found = {f"inputs/{k}": x for k, x in arrays.items()}
        with torch.no_grad():
            # transformers sizes T5's cache by the encoder, so that it cannot be used here
            found["logits"] = (
                model(**asked, **({"use_cache": False} if "t5" in name else {}))
                .logits.float()
                .numpy()
            )
            if hasattr(model, "generate") and name not in ("vit", "bert", "bert_classify"):
                prompts = {"input_ids": asked["input_ids"][:, :4]}
                more = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
                more["use_cache"] = not name.startswith("t5")
                found["greedy"] = model.generate(
                    **prompts, attention_mask=torch.ones(3, 4, dtype=torch.long), **more
                ).numpy()
        model.save_pretrained(HERE / name)
        np.savez_compressed(HERE / name / "golden.npz", **found)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        for path in sorted((HERE / name).iterdir()):
            assert path.stat().st_size < LIMIT, (path, path.stat().st_size)
            path.chmod(0o644)
        print(name, transformers.__version__, sorted(p.name for p in (HERE / name).iterdir()))


if __name__ == "__main__":
    main()
