"""The keys of a config.json, each of them read or known not to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nnkit.layers import activations

__all__ = ["IGNORABLE", "Keys", "activation", "activation_name"]

ACTIVATIONS: dict[str, Callable] = {
    "gelu": activations.gelu,
    "gelu_python": activations.gelu,
    "gelu_new": activations.gelu_tanh,
    "gelu_pytorch_tanh": activations.gelu_tanh,
    "gelu_python_tanh": activations.gelu_tanh,
    "gelu_fast": activations.gelu_tanh,
    "relu": activations.relu,
    "relu2": activations.relu2,
    "silu": activations.silu,
    "swish": activations.silu,
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "mish": activations.mish,
    "relu6": activations.relu6,
}

# Keys that do not change the logits of a given input, and why.
IGNORABLE = {
    **dict.fromkeys(
        "_name_or_path name_or_path transformers_version architectures model_type auto_map "
        "task_specific_params _commit_hash tokenizer_class".split(),
        "origin",
    ),
    **dict.fromkeys(
        "dtype torch_dtype use_cache output_attentions output_hidden_states return_dict "
        "torchscript use_bfloat16 gradient_checkpointing chunk_size_feed_forward "
        "attn_implementation _attn_implementation _attn_implementation_autoset "
        "_experts_implementation experts_implementation output_past cache_implementation "
        "pretraining_tp pruned_heads keys_to_ignore_at_inference tf_legacy_loss".split(),
        "how it is run",
    ),
    **dict.fromkeys(
        "initializer_range initializer_factor output_router_logits router_aux_loss_coef "
        "router_jitter_noise problem_type loss_type".split(),
        "training",
    ),
    **dict.fromkeys(
        "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id "
        "decoder_start_token_id forced_bos_token_id forced_eos_token_id prefix bad_words_ids "
        "suppress_tokens begin_suppress_tokens max_length min_length max_new_tokens do_sample "
        "early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p "
        "typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size num_return_sequences output_scores return_dict_in_generate "
        "exponential_decay_length_penalty remove_invalid_values".split(),
        "generation",
    ),
    **dict.fromkeys(
        "summary_type summary_use_proj summary_activation summary_proj_to_labels "
        "summary_first_dropout _num_labels label2id finetuning_task directionality "
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
        "pooler_type pooler_output_size pooler_act encoder_stride".split(),
        "heads that these models have not",
    ),
}


class Keys:
    """A config.json whose keys are taken one by one; what is left over must be ignorable.

    Args:
      config: the parsed file.
      given: fields of our model that the caller has said, which come before the file.
      ignore: keys that the caller says do not matter.

    >>> keys = Keys({"model_type": "gpt2", "n_embd": 8, "rotary_pct": 0.5})
    >>> keys.take("n_embd", 768)
    8
    >>> keys.finish()
    Traceback (most recent call last):
        ...
    ValueError: config.json: the key 'rotary_pct' is 0.5, which models of type 'gpt2' here do no...

    The keys are those of transformers: Wolf et al., arXiv:1910.03771.
    """

    def __init__(self, config: dict, given: dict | None = None, ignore=()):
        self.config, self.given = config, dict(given or {})
        self.taken: set[str] = set(ignore)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default of transformers."""
        self.taken.add(key)
        return self.config.get(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """The value of a key, an integer from 1 to 2^31 - 1."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"config.json: {key} is {value!r:.60}, expected an integer >= 1")
        if value >= 2**31:
            raise ValueError(f"config.json: {key} is {value:,}, expected an integer < 2^31")
        return value

    def layers(self, key: str, default: int) -> int:
        """The value of a key, a number of layers: at most 1,000."""
        value = self.size(key, default)
        if value > 1_000:
            raise ValueError(f"config.json: {key} is {value:,}, expected at most 1,000 layers")
        return value

    def number(self, key: str, default: float) -> float:
        """The value of a key, a number > 0."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"config.json: {key} is {value!r:.60}, expected a number > 0")
        return float(value)

    def only(self, key: str, *allowed: Any, why: str) -> None:
        """A key that has to be absent, or one of the values that our models can do."""
        value = self.take(key, allowed[0])
        if not any(value is a or (value == a and type(value) is type(a)) for a in allowed):
            raise ValueError(
                f"config.json: {key} is {value!r:.80}, expected "
                f"{' or '.join(map(repr, allowed))}: {why}"
            )

    def activation(self, key: str, default: str) -> Callable:
        """The function of that name."""
        return activation(self.take(key, default), key)

    def dropout(self, **keys: float) -> float:
        """One share for all: the keys with their defaults must agree."""
        found = {key: self.take(key, default) for key, default in keys.items()}
        if "dropout" in self.given:
            return self.given["dropout"]
        if len({float(x or 0) for x in found.values()}) > 1:
            raise ValueError(
                f"config.json: the shares {found} differ, expected one for all: the models here "
                'have one dropout; say which with load(..., fields={"dropout": 0.1}); it does not '
                "change what the model computes in evaluation"
            )
        return float(next(iter(found.values())) or 0)

    def finish(self) -> None:
        """Is every key read, or ignorable?"""
        for key, value in self.config.items():
            if key not in self.taken and key not in IGNORABLE:
                raise ValueError(
                    f"config.json: the key {key!r} is {value!r:.60}, which models of type "
                    f"{self.config.get('model_type')!r} here do not know: it may change what they "
                    f"compute; if it does not, say load(..., ignore_keys=({key!r},))"
                )


def activation(name: Any, key: str = "activation") -> Callable:
    """The function that transformers calls so.

    Args:
      name: such as "gelu_new".
      key: of config.json, for the message.

    Returns:
      A function of `nnkit.layers`.

    Raises:
      ValueError: if there is none.

    >>> activation("gelu_new") is activations.gelu_tanh
    True

    Hendrycks & Gimpel, arXiv:1606.08415 (both forms of GELU).
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"config.json: {key} is {name!r:.60}, expected one of {', '.join(ACTIVATIONS)}: the "
            "activations that exist here under their names"
        )
    return ACTIVATIONS[name]


def activation_name(function: Callable, tanh_form: str = "gelu_pytorch_tanh") -> str:
    """What transformers calls a function of ours.

    Args:
      function: the activation of a model.
      tanh_form: its name for `gelu_tanh`, which differs by family.

    Returns:
      A name.

    Raises:
      ValueError: if it has no name there.

    >>> activation_name(activations.gelu_tanh, "gelu_new")
    'gelu_new'

    Hendrycks & Gimpel, arXiv:1606.08415 (both forms of GELU).
    """
    if function in (activations.gelu_tanh, jax.nn.gelu):  # jax's is the tanh form by default
        return tanh_form
    for name, known in ACTIVATIONS.items():
        if function is known:
            return name
    raise ValueError(
        f"activation is {function!r:.80}, which has no name in transformers; those that have: "
        f"{', '.join(sorted({f.__name__ for f in ACTIVATIONS.values()}))} of nnkit.layers"
    )
