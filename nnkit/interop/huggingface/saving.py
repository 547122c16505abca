"""A model of ours as a folder that transformers opens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.trees import difference, paths
from nnkit.interop import files, folders
from nnkit.interop.huggingface import names
from nnkit.interop.huggingface.card import readme
from nnkit.interop.huggingface.families import described, expected

__all__ = ["save"]

KEPT = ("id2label", "label2id", "problem_type", "task_specific_params")


def save(
    folder,
    model,
    params,
    *,
    tokenizer=None,
    card: Mapping | str | None = None,
    config: Mapping | None = None,
    max_shard_size: int | str = "5GB",
    dtype=None,
    overwrite: bool = False,
) -> Path:
    """Write a model so that transformers opens it: AutoModel.from_pretrained(folder).

    The folder has model.safetensors (or shards and their index), config.json, README.md, and with a
    tokenizer tokenizer.json, tokenizer_config.json and generation_config.json. It appears whole or
    not at all.

    `models.GPT` is written as GPT-2, Llama, Mistral, Qwen 2, Qwen 3, Gemma 2 or Mixtral, whichever
    has its fields; `BERT`, `ViT` and `EncDec` as BERT, ViT and T5. Biases that a GPT with LayerNorm
    lacks are written as zeros, which is the same function (nanoGPT's form becomes GPT-2's; loaded
    again it has the biases). Shares of dropout beyond those of the family are not written: they
    belong to training.

    Args:
      folder: a new folder.
      model: the Linen module.
      params: its parameters, arrays [...] as `model.init(...)["params"]` has them.
      tokenizer: of `nnkit.data`, or None.
      card: what README.md says: {heading: text, table or settings}, or the whole text.
      config: a config.json whose token ids and names of labels are kept, as of `load`.
      max_shard_size: bytes of a file, or "5GB".
      dtype: of the file; None keeps that of each array.
      overwrite: replace the folder if it exists.

    Returns:
      The folder.

    Raises:
      FileExistsError: if the folder exists.
      TypeError: if transformers has no such model, or safetensors no such dtype.
      ValueError: naming the field that no family has; if parameters are not those of the model; if
        the tokenizer has more tokens than the model.

    >>> import tempfile
    >>> from nnkit import models
    >>> model = models.GPT(vocabulary=11, length=8, width=8, depth=1, heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]]))["params"]
    >>> folder = save(tempfile.mkdtemp() + "/tiny", model, params)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.json', 'model.safetensors']

    Wolf et al., arXiv:1910.03771 (transformers); model cards: Mitchell et al., arXiv:1810.03993.
    """
    family, keys, stored = described(model)
    files.bytes_of(max_shard_size)
    arrays = _filled(model, stored, params)
    keys |= _kept(config, keys) | _ends(family, model, tokenizer, config)
    kinds = {np.dtype(dtype or x.dtype) for x in arrays.values()}
    keys["dtype"] = str(kinds.pop()) if len(kinds) == 1 else "float32"
    with folders.atomic(folder, overwrite) as place:
        wanted = _wanted(family, stored, arrays, dtype)
        files.write(place, wanted, max_shard_size)
        _write_json(place / "config.json", keys)
        if tokenizer is not None:
            _write_tokenizer(place, tokenizer, model)
        if tokenizer is not None or family in ("t5",):
            ends = {k: v for k, v in keys.items() if k.endswith("_token_id")}
            _write_json(place / "generation_config.json", {"_from_model_config": True, **ends})
        count = sum(x.size for x in arrays.values())
        (place / "README.md").write_text(readme(card, Path(folder).name, keys, count))
    return Path(folder)


def _filled(model, stored, params) -> dict[str, Any]:
    """The parameters by path; biases and scales that only the file has are 0 and 1."""
    want = expected(model)
    found = dict(paths(params))
    wrong = difference(
        {path: jax.ShapeDtypeStruct(np.shape(x), np.float32) for path, x in found.items()},
        {path: jax.ShapeDtypeStruct(x.shape, np.float32) for path, x in want.items()},
    )
    if wrong:
        raise ValueError(
            f"params do not fit the {type(model).__name__}: {wrong}; give those of model.init(...)"
            '["params"], without an axis of members'
        )
    for path, shape in expected(stored).items():
        if path in found:
            continue
        one = path.endswith("/scale")
        assert one or path.endswith("/bias"), path
        kind = found["embed/embedding"].dtype
        found[path] = np.full(shape.shape, int(one), kind)
    return found


def _wanted(family, stored, arrays, dtype) -> Iterator[files.Wanted]:
    """The tensors of the file in the order of the table, each made when it is written."""
    last: list = [None, ()]

    def make(rule, i):
        if last[0] is not rule:
            ours = [np.asarray(jax.device_get(arrays[path])) for path in rule.ours]
            last[:] = [rule, rule.save(*ours)]
        found = np.asarray(last[1][i])
        return found if dtype is None else found.astype(jnp.dtype(dtype))

    for rule in names.rules(family, stored):
        ours = [jax.ShapeDtypeStruct(arrays[p].shape, arrays[p].dtype) for p in rule.ours]
        for i, (name, out) in enumerate(zip(rule.theirs, jax.eval_shape(rule.save, *ours))):
            kind = np.dtype(jnp.dtype(dtype) if dtype is not None else out.dtype)
            yield files.Wanted(name, kind, out.shape, lambda rule=rule, i=i: make(rule, i))


def _kept(config, keys) -> dict:
    """Names of labels and token ids from the config.json of a checkpoint that was loaded."""
    found = {k: v for k, v in (config or {}).items() if k in KEPT or k.endswith("_token_id")}
    labels, have = found.get("id2label"), keys.get("id2label")
    if labels is not None and have is not None and len(labels) != len(have):
        raise ValueError(
            f"config has {len(labels)} labels in id2label, but the model has {len(have)} classes"
        )
    return found


def _ends(family, model, tokenizer, config) -> dict:
    """The ids of special tokens: those of the tokenizer or of the config given, else none."""
    known = {k: v for k, v in (config or {}).items() if k.endswith("_token_id")}
    if family == "vit":
        return known
    if tokenizer is not None and len(tokenizer) > model.vocabulary:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary has "
            f"{model.vocabulary}: it is not the tokenizer of these weights"
        )
    roles = {"bos_token_id": "start", "eos_token_id": "end", "pad_token_id": "padding"}
    usual = {key: getattr(tokenizer, role, None) for key, role in roles.items()}
    if family == "t5":  # T5 itself begins with its padding, 0
        del usual["bos_token_id"]
        pad = usual["pad_token_id"]
        usual["pad_token_id"] = model.begin if pad is None else pad
        usual["decoder_start_token_id"] = model.begin
    return {**usual, **known}


def _write_tokenizer(place: Path, tokenizer, model) -> None:
    """tokenizer.json, and the file from which AutoTokenizer learns how to open it."""
    tokenizer.save(place)
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    about["clean_up_tokenization_spaces"] = False
    if getattr(model, "length", None):
        about["model_max_length"] = model.length
    if tokenizer.end is not None:
        name = _token_name(place / "tokenizer.json", tokenizer.end)
        about |= {"eos_token": name} if name else {}
    _write_json(place / "tokenizer_config.json", about)


def _token_name(path: Path, number: int) -> str:
    """The text of a special token, as tokenizer.json has it; "" if it is not there."""
    added = json.loads(path.read_text()).get("added_tokens") or []
    return next((row["content"] for row in added if row.get("id") == number), "")


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
