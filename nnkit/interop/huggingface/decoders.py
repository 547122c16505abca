"""config.json of GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 2 and Mixtral, and `models.GPT`."""

from __future__ import annotations

from typing import Any

from nnkit.interop.huggingface.keys import Keys, activation_name
from nnkit.layers import LayerNorm, RMSNorm, ShiftedRMSNorm
from nnkit.models import GPT

__all__ = ["architectures", "family_of", "read", "written"]

KINDS = {  # class of transformers by family
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "mixtral": "Mixtral",
}
# What transformers takes where config.json says nothing; None for what the class computes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocabulary": 32000, "length": 2048, "hidden": 11008, "groups": None},
    "mistral": {"vocabulary": 32000, "length": 131072, "hidden": 14336, "groups": 8},
    "qwen2": {"vocabulary": 151936, "length": 32768, "hidden": 22016, "groups": 32},
    "qwen3": {"vocabulary": 151936, "length": 32768, "hidden": 22016, "groups": 32},
    "gemma2": {"vocabulary": 256000, "length": 8192, "hidden": 9216, "groups": 4},
    "mixtral": {"vocabulary": 32000, "length": 131072, "hidden": 14336, "groups": 8},
}


def architectures(family: str) -> list[str]:
    """The classes of transformers whose files a family can be read from; the first is written.

    >>> architectures("gpt2")
    ['GPT2LMHeadModel', 'GPT2Model']
    """
    head = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    return [KINDS[family] + head, KINDS[family] + "Model"]


def read(family: str, keys: Keys) -> dict:
    """The fields of `models.GPT` from a config.json.

    Args:
      family: its model_type.
      keys: of the file.

    Returns:
      A dict of fields.

    Raises:
      ValueError: naming a key that asks for what our model cannot do.

    >>> read("gpt2", Keys({"n_embd": 8, "n_head": 2, "n_layer": 1}))["width"]
    8

    Radford et al. 2019; Touvron et al., arXiv:2307.09288; keys: transformers.
    """
    return _gpt2(keys) if family == "gpt2" else _llama(family, keys)


def _gpt2(keys: Keys) -> dict:
    no = "attention is scaled by 1 / sqrt(size of a head) here"
    keys.only("scale_attn_weights", True, why=no)
    keys.only("scale_attn_by_inverse_layer_idx", False, why=no)
    keys.take("reorder_and_upcast_attn")  # an order of operations: equal in float32
    keys.only("add_cross_attention", False, why="a decoder here reads no second sequence")
    keys.only("position_embedding_type", "absolute", why="GPT-2's positions are a learned table")
    length = keys.size("n_positions", 1024)
    keys.only("n_ctx", length, None, why="it is n_positions under its old name")
    return {
        "vocabulary": keys.size("vocab_size", 50257),
        "length": length,
        "width": keys.size("n_embd", 768),
        "depth": keys.layers("n_layer", 12),
        "heads": keys.size("n_head", 12),
        "hidden": keys.take("n_inner"),
        "activation": keys.activation("activation_function", "gelu_new"),
        "epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "tied": bool(keys.take("tie_word_embeddings", True)),
        "dropout": keys.dropout(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
        "init_scale": keys.number("initializer_range", 0.02),
    }


def _llama(family: str, keys: Keys) -> dict:
    wide = 2304 if family == "gemma2" else 4096
    usual, gemma = DEFAULTS[family], family == "gemma2"
    width = keys.size("hidden_size", wide)
    depth = keys.layers("num_hidden_layers", 26 if gemma else 32)
    heads = keys.size("num_attention_heads", 8 if gemma else 32)
    groups = keys.take("num_key_value_heads", usual["groups"])
    size = keys.take("head_dim", {"gemma2": 256, "qwen3": 128}.get(family))
    name = "hidden_activation" if gemma else "hidden_act"
    fields = {
        "vocabulary": keys.size("vocab_size", usual["vocabulary"]),
        "length": keys.size("max_position_embeddings", usual["length"]),
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": heads if groups is None else groups,
        "head_dim": None if size == width // heads and width % heads == 0 else size,
        "hidden": keys.size("intermediate_size", usual["hidden"]),
        "norm": ShiftedRMSNorm if gemma else RMSNorm,
        "epsilon": keys.number("rms_norm_eps", 1e-5 if family == "mixtral" else 1e-6),
        "learned": False,
        "rope": _rope(keys, 1e6 if family == "mixtral" else 1e4),
        "activation": keys.activation(name, "gelu_pytorch_tanh" if gemma else "silu"),
        "gated": True,
        "tied": bool(keys.take("tie_word_embeddings", gemma)),
        "use_bias": False,
        "dropout": keys.dropout(attention_dropout=0.0),
        "window": _window(family, keys, depth),
    }
    if fields["dropout"] and "dropout" not in keys.given:
        raise ValueError(
            f"config.json: attention_dropout is {fields['dropout']}, expected 0.0: dropout here is "
            "after attention and MLP too; say load(..., fields={'dropout': 0.0}) or another share"
        )
    return fields | _particular(family, keys, size or width // heads)


def _particular(family: str, keys: Keys, size: int) -> dict:
    """What one family has and the others have not."""
    both = "biases of attention and MLP go together here, but for Qwen 2"
    if family == "llama":
        bias = bool(keys.take("attention_bias", False))
        keys.only("mlp_bias", bias, why=f"attention_bias is {bias}; {both}")
        return {"use_bias": bias}
    if family == "qwen2":
        keys.only("use_mrope", False, why="positions here are those of one text")
        return {"qkv_bias": True}
    if family == "qwen3":
        keys.only("attention_bias", False, why=both)
        return {"qk_norm": True}
    if family == "gemma2":
        keys.take("hidden_act")  # not read by Gemma 2, which has hidden_activation
        keys.only("attention_bias", False, why=both)
        keys.only("use_bidirectional_attention", None, False, why="a decoder here looks back only")
        scale = keys.number("query_pre_attn_scalar", 256)
        if scale != size:
            raise ValueError(
                f"config.json: query_pre_attn_scalar is {scale:g}, expected head_dim, {size}: "
                "attention is scaled by 1 / sqrt(size of a head) here"
            )
        return {
            "post_norm": True,
            "scale_embedding": True,
            "softcap": keys.take("attn_logit_softcapping", 50.0),
            "final_softcap": keys.take("final_logit_softcapping", 30.0),
        }
    if family == "mixtral":
        return {
            "experts": keys.size("num_local_experts", 8),
            "top_k": keys.size("num_experts_per_tok", 2),
        }
    return {}


def _rope(keys: Keys, usual: float) -> float:
    """The base of the rotation, from `rope_parameters` (transformers 5) or `rope_theta`."""
    found = {"rope_theta": keys.take("rope_theta", usual)}
    for key in ("rope_scaling", "rope_parameters"):
        more = keys.take(key)
        if more is None:
            continue
        plain = isinstance(more, dict) and set(more) <= {"rope_type", "type", "rope_theta"}
        kind = more.get("rope_type", more.get("type", "default")) if plain else None
        if kind != "default":
            raise ValueError(
                f"config.json: {key} is {more!r:.100}, expected None or the rope_type 'default': "
                "the positions of models here are not stretched"
            )
        found |= more
    keys.only("partial_rotary_factor", 1.0, 1, None, why="heads are rotated as a whole here")
    theta = found["rope_theta"]
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        raise ValueError(f"config.json: rope_theta is {theta!r:.60}, expected a number > 0")
    return float(theta)


def _window(family: str, keys: Keys, depth: int):
    """The window of every block: None, a number, or a tuple that goes round."""
    if family == "llama":
        keys.only("sliding_window", None, why="Llama has no window; Mistral has")
        return None
    window = keys.take("sliding_window", None if family == "mixtral" else 4096)
    kinds = keys.take("layer_types")
    if family in ("qwen2", "qwen3"):
        first = keys.take("max_window_layers", 28)
        window = window if keys.take("use_sliding_window", False) else None
        usual = [window is not None and i >= first for i in range(depth)]
    elif family == "gemma2":
        usual = [i % 2 == 0 for i in range(depth)]
    else:
        usual = [window is not None] * depth
    if kinds is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != depth or set(kinds) - set(known):
            raise ValueError(
                f"config.json: layer_types is {kinds!r:.100}, expected {depth} of "
                f"{' and '.join(known)}: one for each of num_hidden_layers"
            )
        usual = [known[kind] for kind in kinds]
    if window is None and any(usual):
        raise ValueError("config.json: layer_types has windows, but sliding_window is None")
    return shortest([window if slides else None for slides in usual])


def shortest(windows: list):
    """The shortest tuple that gives these windows when it goes round; one alone without tuple.

    >>> shortest([4, None, 4, None]), shortest([4, 4])
    ((4, None), 4)
    """
    for n in range(1, len(windows) + 1):
        if all(x == windows[i % n] for i, x in enumerate(windows)):
            return windows[0] if n == 1 else tuple(windows[:n])
    return tuple(windows)


def family_of(model: GPT) -> str:
    """The family whose files a decoder of ours can be written as.

    Args:
      model: a `models.GPT`.

    Returns:
      Its model_type.

    Raises:
      ValueError: naming the field that no family has.

    >>> family_of(GPT.from_size("gpt2")), family_of(GPT.from_size("qwen3-0.6b"))
    ('gpt2', 'qwen3')
    >>> family_of(GPT(vocabulary=5, alibi=True))
    Traceback (most recent call last):
        ...
    ValueError: GPT: alibi is True, which no family of transformers has that is written here; ex...

    Radford et al. 2019; Touvron et al., arXiv:2307.09288; names: transformers.
    """
    kind = model.norm(epsilon=model.epsilon)
    need: dict[str, Any] = {"alibi": False, "capacity": None, "bias_rate": None}
    if isinstance(kind, LayerNorm):
        need |= {"learned": True, "rope": None, "gated": False, "qk_norm": False, "window": None}
        need |= {"softcap": None, "final_softcap": None, "post_norm": False, "experts": None}
        need |= {"scale_embedding": False, "kv_heads": (None, model.heads)}
        need |= {"head_dim": (None, model.width // model.heads)}
        _needs(model, need, "GPT-2, the one family with LayerNorm")
        return "gpt2"
    if not isinstance(kind, RMSNorm | ShiftedRMSNorm) or not getattr(kind, "use_scale", True):
        raise ValueError(
            f"GPT: norm is {model.norm!r:.80}, expected LayerNorm, or RMSNorm with its scale: no "
            "family of transformers that is written here has another"
        )
    need |= {"learned": False, "gated": True}
    if model.rope is None:
        raise ValueError("GPT: rope is None, expected a base such as 1e4: with RMSNorm all have it")
    biases = model.use_bias if model.qkv_bias is None else model.qkv_bias
    if model.post_norm or model.scale_embedding or isinstance(kind, ShiftedRMSNorm):
        need |= {"post_norm": True, "scale_embedding": True, "experts": None, "qk_norm": False}
        need |= {"use_bias": False, "qkv_bias": (None, False)}
        _needs(model, need, "Gemma 2")
        return "gemma2"
    need |= {"softcap": None, "final_softcap": None}
    if model.experts is not None:
        need |= {"use_bias": False, "qkv_bias": (None, False), "qk_norm": False}
        _needs(model, need | _same_window(model), "Mixtral")
        return "mixtral"
    if model.qk_norm:
        need |= {"use_bias": False, "qkv_bias": (None, False)}
        _needs(model, need, "Qwen 3, the one family with qk_norm")
        return "qwen3"
    if biases and not model.use_bias:
        _needs(model, need, "Qwen 2")
        return "qwen2"
    if shortest_of(model) is not None:
        need |= {"use_bias": False, "qkv_bias": (None, False)}
        _needs(model, need | _same_window(model), "Mistral")
        return "mistral"
    _needs(model, need | {"qkv_bias": (None, model.use_bias)}, "Llama")
    return "llama"


def _needs(model: GPT, need: dict, family: str) -> None:
    for field, wanted in need.items():
        value = getattr(model, field)
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if not any(value is x or (x is not None and value == x) for x in allowed):
            raise ValueError(
                f"GPT: {field} is {value!r:.60}, which no family of transformers has that is "
                f"written here; expected {' or '.join(map(repr, allowed))} for {family}"
            )


def _same_window(model: GPT) -> dict:
    one = shortest_of(model)
    return {"window": None} if isinstance(one, tuple) else {}


def shortest_of(model: GPT):
    """The windows of a model, as `shortest` writes them.

    >>> shortest_of(GPT(vocabulary=5, depth=2, window=(4, 4)))
    4
    """
    around = model.window if isinstance(model.window, tuple) else (model.window,)
    return shortest([around[i % len(around)] for i in range(model.depth)])


def written(family: str, model: GPT) -> tuple[dict, GPT]:
    """The keys of config.json that say what a model is, and the model as the file holds it.

    Args:
      family: from `family_of`.
      model: ours.

    Returns:
      (keys, model): for GPT-2 the model has all biases; those that ours lacks are 0 in the file.

    >>> keys, model = written("gpt2", GPT(vocabulary=5, use_bias=False))
    >>> keys["n_embd"], model.use_bias
    (768, True)

    Radford et al. 2019; Touvron et al., arXiv:2307.09288; keys: transformers.
    """
    if family == "gpt2":
        return {
            "vocab_size": model.vocabulary,
            "n_positions": model.length,
            "n_embd": model.width,
            "n_layer": model.depth,
            "n_head": model.heads,
            "n_inner": model.hidden,
            "activation_function": activation_name(model.activation, "gelu_new"),
            "layer_norm_epsilon": model.epsilon,
            "tie_word_embeddings": model.tied,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
            "initializer_range": model.init_scale,
        }, model.clone(norm=LayerNorm, use_bias=True, qkv_bias=None)
    gemma = family == "gemma2"
    found = {
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.length,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads or model.heads,
        "intermediate_size": model.hidden or 4 * model.width,
        "hidden_activation" if gemma else "hidden_act": activation_name(model.activation),
        "rms_norm_eps": model.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope},
        "rope_theta": model.rope,
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
        "initializer_range": model.init_scale,
    }
    if model.head_dim is not None or family not in ("qwen2", "mixtral"):
        found["head_dim"] = model.head_dim or model.width // model.heads
    return found | _windows(family, model) | _specific(family, model), model


def _specific(family: str, model: GPT) -> dict:
    if family == "llama":
        return {"attention_bias": model.use_bias, "mlp_bias": model.use_bias}
    if family == "mixtral":
        return {"num_local_experts": model.experts, "num_experts_per_tok": model.top_k}
    if family == "gemma2":
        return {
            "query_pre_attn_scalar": model.head_dim or model.width // model.heads,
            "attn_logit_softcapping": model.softcap,
            "final_logit_softcapping": model.final_softcap,
        }
    return {}


def _windows(family: str, model: GPT) -> dict:
    if family == "llama":
        return {}
    one = shortest_of(model)
    around = one if isinstance(one, tuple) else (one,)
    sizes = {size for size in around if size is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"GPT: window is {model.window}, expected one size beside None: {KINDS[family]} has one"
        )
    size = next(iter(sizes), None)
    if family in ("mistral", "mixtral"):
        return {"sliding_window": size}
    slides = [around[i % len(around)] is not None for i in range(model.depth)]
    kinds = ["sliding_attention" if x else "full_attention" for x in slides]
    if family == "gemma2":
        return {"sliding_window": size or model.length, "layer_types": kinds}
    found = {"use_sliding_window": size is not None, "sliding_window": size, "layer_types": kinds}
    return found | ({"max_window_layers": slides.index(True)} if any(slides) else {})
