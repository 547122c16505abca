"""Weights exchanged with Hugging Face: files of transformers read and written, without torch.

GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 2, Mixtral, BERT, ViT and T5, by tables of names:

    found = huggingface.load("openai-community/gpt2")   # a folder, or an id of the hub
    logits = found.model.apply({"params": found.params}, tokens)
    huggingface.save("mine", found.model, params, tokenizer=found.tokenizer)

| module | what |
|---|---|
| `names` | our parameters and theirs, one table per family, read both ways |
| `decoders`, `encoders`, `keys`, `families` | config.json and the fields of our models |
| `files` | the safetensors format |
| `loading`, `saving`, `card` | load; save and the model card |
"""

from nnkit.interop.huggingface.loading import Pretrained, Report, load
from nnkit.interop.huggingface.saving import save

__all__ = ["Pretrained", "Report", "load", "save"]
