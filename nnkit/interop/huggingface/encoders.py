"""config.json of BERT, ViT and T5, and `models.BERT`, `ViT` and `EncDec`."""

from __future__ import annotations

from typing import Any

from nnkit.interop.huggingface.keys import Keys, activation, activation_name
from nnkit.models import BERT, EncDec, ViT

__all__ = ["architectures", "read", "written"]

KINDS = {
    "bert": ["BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertModel"],
    "vit": ["ViTForImageClassification", "ViTModel", "ViTForMaskedImageModeling"],
    "t5": ["T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model"],
}


def architectures(family: str) -> list[str]:
    """The classes of transformers whose files a family can be read from.

    >>> architectures("t5")
    ['T5ForConditionalGeneration', 'T5WithLMHeadModel', 'T5Model']
    """
    return KINDS[family]


def read(family: str, keys: Keys) -> dict:
    """The fields of our model from a config.json.

    Args:
      family: its model_type.
      keys: of the file.

    Returns:
      A dict of fields.

    Raises:
      ValueError: naming a key that asks for what our model cannot do.

    >>> read("vit", Keys({"hidden_size": 8, "num_attention_heads": 2}))["classes"]
    2

    Devlin et al., arXiv:1810.04805; Dosovitskiy et al., arXiv:2010.11929; Raffel et al.,
    arXiv:1910.10683; keys: transformers.
    """
    return {"bert": _bert, "vit": _vit, "t5": _t5}[family](keys)


def _classes(keys: Keys) -> int:
    """The number of labels, as transformers counts them."""
    labels = keys.take("id2label")
    number = keys.take("num_labels")
    if labels is not None and number is not None and len(labels) != number:
        raise ValueError(
            f"config.json: num_labels is {number}, expected {len(labels)}: as id2label has"
        )
    return len(labels) if labels is not None else 2 if number is None else number


def _bert(keys: Keys) -> dict:
    look = "BERT here reads one text, in both directions"
    keys.only("is_decoder", False, why=look)
    keys.only("add_cross_attention", False, why=look)
    keys.only("is_encoder_decoder", False, why=look)
    keys.only("position_embedding_type", "absolute", why="BERT's positions here are a table")
    keys.only("tie_word_embeddings", True, why="the head for words is the table of words")
    shares = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    classes = _classes(keys)
    kind = (keys.config.get("architectures") or KINDS["bert"])[0]
    classifies = kind == "BertForSequenceClassification"
    if keys.take("classifier_dropout") is not None and classifies:
        shares["classifier_dropout"] = 0.1
    return {
        "vocabulary": keys.size("vocab_size", 30522),
        "classes": classes if classifies else None,
        "width": keys.size("hidden_size", 768),
        "depth": keys.layers("num_hidden_layers", 12),
        "heads": keys.size("num_attention_heads", 12),
        "hidden": keys.size("intermediate_size", 3072),
        "length": keys.size("max_position_embeddings", 512),
        "types": keys.size("type_vocab_size", 2),
        "activation": keys.activation("hidden_act", "gelu"),
        "dropout": keys.dropout(**shares),
        "epsilon": keys.number("layer_norm_eps", 1e-12),
    }


def _vit(keys: Keys) -> dict:
    keys.only("qkv_bias", True, why="query, key and value have biases here")
    keys.only("attention_probs_dropout_prob", 0.0, 0, why="ViT here drops no attention weights")
    sides = keys.take("image_size", 224)
    patch = keys.take("patch_size", 16)
    patch = patch[0] if isinstance(patch, list) and len(set(patch)) == 1 else patch
    if not isinstance(patch, int):
        raise ValueError(f"config.json: patch_size is {patch!r:.60}, expected one side: a square")
    return {
        "classes": _classes(keys),
        "width": keys.size("hidden_size", 768),
        "depth": keys.layers("num_hidden_layers", 12),
        "heads": keys.size("num_attention_heads", 12),
        "hidden": keys.size("intermediate_size", 3072),
        "patch": patch,
        "image": tuple(sides) if isinstance(sides, list) else sides,
        "channels": keys.size("num_channels", 3),
        "activation": keys.activation("hidden_act", "gelu"),
        "dropout": keys.dropout(hidden_dropout_prob=0.0),
        "epsilon": keys.number("layer_norm_eps", 1e-12),
    }


def _t5(keys: Keys) -> dict:
    keys.only("is_encoder_decoder", True, why="EncDec has both halves")
    keys.only("is_decoder", False, why="EncDec has both halves")
    said = keys.take("feed_forward_proj", "relu")
    gated = isinstance(said, str) and said.startswith("gated-")
    name = said.removeprefix("gated-") if isinstance(said, str) else said
    name = "gelu_new" if said == "gated-gelu" else name
    keys.only("dense_act_fn", name, why=f"feed_forward_proj is {said!r}")
    keys.only("is_gated_act", gated, why=f"feed_forward_proj is {said!r}")
    tied = keys.take("tie_word_embeddings", True) is not False
    tied = keys.take("scale_decoder_outputs", tied)  # what transformers 5 writes of it
    for key in ("n_positions", "classifier_dropout", "num_labels", "id2label"):
        keys.take(key)  # T5 has no table of positions; the others belong to classifiers
    depth, first = keys.layers("num_layers", 6), keys.take("decoder_start_token_id")
    return {
        "begin": int((keys.take("pad_token_id") or 0) if first is None else first),
        "vocabulary": keys.size("vocab_size", 32128),
        "width": keys.size("d_model", 512),
        "depth": depth,
        "decoder_depth": keys.layers("num_decoder_layers", depth),
        "heads": keys.size("num_heads", 8),
        "head_dim": keys.size("d_kv", 64),
        "hidden": keys.size("d_ff", 2048),
        "activation": activation(name, "feed_forward_proj"),
        "gated": gated,
        "tied": bool(tied),
        "buckets": keys.size("relative_attention_num_buckets", 32),
        "max_distance": keys.size("relative_attention_max_distance", 128),
        "dropout": keys.dropout(dropout_rate=0.1),
        "epsilon": keys.number("layer_norm_epsilon", 1e-6),
    }


def written(family: str, model: BERT | ViT | EncDec) -> tuple[dict, Any]:
    """The keys of config.json that say what a model is, and the model as the file holds it.

    Args:
      family: "bert", "vit" or "t5".
      model: ours.

    Returns:
      (keys, model).

    Raises:
      ValueError: naming the field that the family has not.

    >>> written("bert", BERT.from_size("tiny"))[0]["hidden_size"]
    128

    Devlin et al., arXiv:1810.04805; Dosovitskiy et al., arXiv:2010.11929; Raffel et al.,
    arXiv:1910.10683; keys: transformers.
    """
    name = type(model).__name__
    for field in ("learned", "cls"):
        if getattr(model, field, True) is not True:
            raise ValueError(
                f"{name}: {field} is False, which transformers' {family} has not; expected True"
            )
    if isinstance(model, EncDec):
        return _t5_written(model), model
    found = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden or 4 * model.width,
        "hidden_act": activation_name(model.activation, "gelu_new"),
        "hidden_dropout_prob": model.dropout,
        "layer_norm_eps": model.epsilon,
    }
    if isinstance(model, BERT):
        found |= {
            "vocab_size": model.vocabulary,
            "max_position_embeddings": model.length,
            "type_vocab_size": model.types,
            "attention_probs_dropout_prob": model.dropout,
        }
    else:
        found |= {
            "image_size": list(model.image) if isinstance(model.image, tuple) else model.image,
            "patch_size": model.patch,
            "num_channels": model.channels,
            "attention_probs_dropout_prob": 0.0,
            "qkv_bias": True,
        }
    if model.classes is not None:
        labels = {str(i): f"LABEL_{i}" for i in range(model.classes)}
        found |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    return found, model


def _t5_written(model: EncDec) -> dict:
    name = activation_name(model.activation, "gelu_new")
    if model.gated and name == "gelu":
        raise ValueError(
            "EncDec: activation is the exact gelu, gated, which transformers' T5 has not (its "
            "gated-gelu is gelu_tanh); expected gelu_tanh"
        )
    proj = "gated-gelu" if (model.gated, name) == (True, "gelu_new") else name
    return {
        "vocab_size": model.vocabulary,
        "d_model": model.width,
        "d_kv": model.head_dim,
        "d_ff": model.hidden,
        "num_layers": model.depth,
        "num_decoder_layers": model.decoder_depth or model.depth,
        "num_heads": model.heads,
        "relative_attention_num_buckets": model.buckets,
        "relative_attention_max_distance": model.max_distance,
        "dropout_rate": model.dropout,
        "layer_norm_epsilon": model.epsilon,
        "feed_forward_proj": proj if proj == "gated-gelu" or not model.gated else f"gated-{name}",
        "tie_word_embeddings": model.tied,
        "is_encoder_decoder": True,
    }
