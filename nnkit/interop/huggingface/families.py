"""Which model of ours a config.json means, and which config.json a model of ours has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from nnkit.core.trees import paths
from nnkit.interop.huggingface import decoders, encoders
from nnkit.interop.huggingface.keys import Keys
from nnkit.models import BERT, GPT, EncDec, ViT

__all__ = ["described", "expected", "model_of"]

CLASSES = {**dict.fromkeys(decoders.KINDS, GPT), "bert": BERT, "vit": ViT, "t5": EncDec}


def model_of(config: dict, fields: dict | None = None, ignore_keys: Iterable[str] = ()) -> tuple:
    """The model that a config.json describes.

    Args:
      config: the parsed file.
      fields: fields of our model that come before the file, such as {"dropout": 0.0}.
      ignore_keys: keys of the file that the caller says do not matter.

    Returns:
      (family, model).

    Raises:
      ValueError: naming the key, if the type is unknown or a key asks for what ours cannot do.
      TypeError: if the model has no such field.

    >>> family, model = model_of({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1})
    >>> family, model.width
    ('gpt2', 8)

    Wolf et al., arXiv:1910.03771 (transformers), whose keys these are.
    """
    family = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(family, str) or family not in CLASSES:
        raise ValueError(
            f"config.json: model_type is {family!r:.60}, expected one of {', '.join(CLASSES)}: the "
            "families that are read here"
        )
    part = decoders if family in decoders.KINDS else encoders
    known, said = part.architectures(family), config.get("architectures") or []
    if not isinstance(said, list) or not all(isinstance(x, str) for x in said):
        raise ValueError(f"config.json: architectures is {said!r:.60}, expected a list of names")
    if said and said[0] not in known:
        raise ValueError(
            f"config.json: architectures is {said}, expected one of {', '.join(known)}: the "
            f"models of type {family} that are read here"
        )
    if config.get("quantization_config") is not None:
        raise ValueError(
            "config.json: the key 'quantization_config' says that weights are stored as codes, "
            "expected floats; load the checkpoint they were made from"
        )
    keys = Keys(config, fields, ignore_keys)
    found = part.read(family, keys)
    keys.take("quantization_config")
    if family not in ("bert", "vit", "t5"):
        keys.take("id2label")
        keys.take("num_labels")
        keys.only("is_encoder_decoder", False, why="a decoder here reads no second sequence")
        keys.only("is_decoder", False, True, why="it is one or not")
    keys.finish()
    kind = CLASSES[family]
    wrong = sorted(set(fields or {}) - set(kind.__dataclass_fields__))
    if wrong:
        raise TypeError(
            f"fields has {wrong[0]!r}, which {kind.__name__} has not; see its docstring"
        )
    return family, kind(**(found | dict(fields or {})))


def described(model) -> tuple[str, dict, Any]:
    """The family of a model, its config.json, and the model as a file holds it.

    Args:
      model: a `models.GPT`, `BERT`, `ViT` or `EncDec`.

    Returns:
      (family, keys, model): GPT-2 has biases that ours may lack; they are 0 in the file.

    Raises:
      TypeError: if it is another model.
      ValueError: naming the field that no family can express.

    >>> family, keys, _ = described(GPT(vocabulary=5, width=8, heads=2))
    >>> family, keys["architectures"]
    ('gpt2', ['GPT2LMHeadModel'])

    Wolf et al., arXiv:1910.03771 (transformers), whose keys these are.
    """
    if isinstance(model, GPT):
        family = decoders.family_of(model)
        keys, stored = decoders.written(family, model)
        kind = decoders.architectures(family)[0]
    else:
        names = {BERT: "bert", ViT: "vit", EncDec: "t5"}
        if type(model) not in names:
            known = "GPT, BERT, ViT and EncDec"
            raise TypeError(
                f"{type(model).__name__} has no form in transformers; those that have are {known} "
                "of nnkit.models; any model can be exported with --format stablehlo"
            )
        family = names[type(model)]
        keys, stored = encoders.written(family, model)
        kind = encoders.architectures(family)[0]
        if isinstance(model, BERT) and model.classes is not None:
            kind = "BertForSequenceClassification"
    return family, {"architectures": [kind], "model_type": family, **keys}, stored


def expected(model) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter of a model: {path: shape and dtype}; nothing is computed.

    Args:
      model: one of ours.

    Returns:
      {"block_0/mlp/up/kernel": ShapeDtypeStruct, ...}.

    >>> expected(GPT(vocabulary=5, length=3, width=8, heads=2, depth=1))["embed/embedding"].shape
    (5, 8)

    Wolf et al., arXiv:1910.03771 (transformers).
    """
    shapes = jax.eval_shape(lambda: fresh(model, jax.random.key(0)))
    return dict(paths(shapes))


def fresh(model, key):
    """Initial parameters of a model.

    >>> model = GPT(vocabulary=5, length=3, width=8, heads=2, depth=1)
    >>> sorted(jax.eval_shape(lambda: fresh(model, jax.random.key(0))))
    ['block_0', 'embed', 'norm', 'positions']
    """
    token = np.zeros((1, 1), np.int32)
    inputs: tuple = (token, token) if isinstance(model, EncDec) else (token,)
    if isinstance(model, ViT):
        sides = model.image if isinstance(model.image, tuple | list) else (model.image,) * 2
        inputs = (np.zeros((1, *sides, model.channels), np.float32),)
    return model.init(key, *inputs)["params"]
