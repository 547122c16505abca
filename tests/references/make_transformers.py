"""Write the golden numbers of Hugging Face transformers that the Transformer models must equal.

Run      python tests/references/make_transformers.py    (needs torch and transformers, no jax)
Takes    a few seconds on a CPU; nothing is downloaded
Writes   transformers_NAME.npz for every name of `CASES`

Tiny random configurations in evaluation mode, eager attention, float32; padding on the right, and
labels of -100 there. Every parameter is `drawn` from its own name and shape, so a file holds
inputs, logits, loss and all gradients under the names of transformers; a tied weight stands once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from references.weights import filled, write

VOCABULARY, LENGTHS, TIME = 37, (9, 6, 4), 9
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": None,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "pad_token_id": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
CASES = {  # name: (class, its configuration)
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 4},
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
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **DECODER,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
    ),
    "bert_mlm": ("BertForMaskedLM", BERT),
    "bert_classify": ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "vit": (
        "ViTForImageClassification",
        {
            "hidden_size": 24,
            "intermediate_size": 40,
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
}


def drawn(name, shape):
    """The array [shape] of a parameter: as `filled`, GPT-2's norms and stacked experts as such."""
    if ".experts." in name:
        return np.stack([filled(f"{name}.{i}", shape[1:]) for i in range(shape[0])])
    return filled(name.replace("ln_", "norm_"), shape)


def inputs(name):
    """What the model is called with, numpy arrays by the names of transformers."""
    rng = np.random.RandomState(30)
    if name == "vit":
        pixels = rng.standard_normal((3, 3, 8, 12)).astype(np.float32)
        return {"pixel_values": pixels, "labels": rng.randint(0, 5, 3)}
    real = np.arange(TIME) < np.array(LENGTHS)[:, None]
    found = {
        "input_ids": np.where(real, rng.randint(1, VOCABULARY, real.shape), 0),
        "attention_mask": real.astype(np.int64),
    }
    labels = rng.randint(1, VOCABULARY, real.shape)
    if name.startswith("bert"):
        found["token_type_ids"] = (np.arange(TIME) >= 3).astype(np.int64) * real
        chosen = real & (rng.uniform(size=real.shape) < 0.4)
        return {
            **found,
            "labels": rng.randint(0, 3, 3)
            if name == "bert_classify"
            else np.where(chosen, labels, -100),
        }
    if name.startswith("t5"):
        target = np.arange(7) < np.array((5, 7, 2))[:, None]
        return {**found, "labels": np.where(target, labels[:, :7], -100)}
    return {**found, "labels": np.where(real, found["input_ids"], -100)}


def build(name):
    """The model of a case with its weights drawn, and what was changed in it."""
    import torch
    import transformers

    kind, config = CASES[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**config, attn_implementation="eager")
    model = model_class(config).eval()
    note = ""
    if name == "t5_v1_1":  # transformers 5 ties the head here as well; the published model does not
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        note = "lm_head untied by hand"
    if name == "mixtral":
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            value.copy_(torch.from_numpy(drawn(parameter, tuple(value.shape))))
    return model, note


def balance(model, router_logits, mask):
    """The Switch loss of each layer on its own, [layers]."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    c = model.config
    one = [
        load_balancing_loss_func((x,), c.num_local_experts, c.num_experts_per_tok, mask)
        for x in router_logits
    ]
    return np.array([float(x) for x in one], np.float32)


def main():
    import torch
    import transformers

    for name, (kind, config) in CASES.items():
        model, note = build(name)
        arrays = inputs(name)
        asked = {k: torch.from_numpy(v) for k, v in arrays.items()}
        extra = {"output_router_logits": True} if name == "mixtral" else {}
        if extra:
            model.router_aux_loss_coef = 0.0  # the loss below is that of the tokens
        out = model(**asked, **extra)
        out.loss.backward()
        found = {
            f"inputs/{k}": v.astype(np.float32 if v.dtype.kind == "f" else np.int32)
            for k, v in arrays.items()
        }
        found |= {"logits": out.logits, "loss": out.loss}
        found |= {f"grads/{k}": p.grad for k, p in model.named_parameters()}
        if extra:
            found["balance"] = balance(model, out.router_logits, asked["attention_mask"])
        about = {
            "reference": f"transformers {kind}",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "config": config,
            "note": note,
            "shapes": {k: list(p.shape) for k, p in model.named_parameters()},
        }
        write(f"transformers_{name}", about, **found)
        count = sum(p.numel() for p in model.parameters())
        print(f"{name:14s} {count:6d} parameters, loss {float(out.loss):.4f}")


if __name__ == "__main__":
    main()
