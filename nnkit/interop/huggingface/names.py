"""Our parameters and theirs: one table for each family, read in both directions.

A `Rule` ties some of our arrays to some of theirs by two functions, exact inverses of each other:
nothing is computed, arrays are turned, cut and put together. Names are those that files have:
`canonical` brings the variants (older files, base models without their prefix, the names inside
transformers 5) to them; `ignorable` and `copies` say what else a file may hold, and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnkit.layers import ShiftedRMSNorm

__all__ = ["Rule", "canonical", "copies", "ignorable", "rules"]

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral")


class Rule(NamedTuple):
    """Some arrays of ours, and the arrays of theirs that hold the same numbers.

    Attributes:
      ours: paths, such as "block_0/mlp/up/kernel".
      theirs: names in the file.
      load: (their arrays [...]) -> a tuple of ours.
      save: (our arrays [...]) -> a tuple of theirs; its inverse.

    >>> rule = turned("head/kernel", "lm_head.weight")
    >>> rule.load(np.ones((2, 3)))[0].shape, rule.save(np.ones((3, 2)))[0].shape
    ((3, 2), (2, 3))

    Wolf et al., arXiv:1910.03771 (transformers), whose names these are.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    load: Callable[..., tuple]
    save: Callable[..., tuple]


def same(ours: str, theirs: str) -> Rule:
    """The same array [...]."""
    return Rule((ours,), (theirs,), lambda x: (x,), lambda x: (x,))


def turned(ours: str, theirs: str) -> Rule:
    """Our matrix [in out], theirs [out in]."""
    return Rule((ours,), (theirs,), lambda x: (x.T,), lambda x: (x.T,))


def shifted(ours: str, theirs: str) -> Rule:
    """Our scale [d], theirs less 1."""
    return Rule((ours,), (theirs,), lambda x: (x + x.dtype.type(1),), lambda x: (x - 1,))


def fused(ours: tuple[str, ...], theirs: str) -> Rule:
    """Several of ours side by side along the last axis: GPT-2's query, key and value."""
    n = len(ours)
    cut = lambda x: tuple(
        x[..., i * (x.shape[-1] // n) : (i + 1) * (x.shape[-1] // n)] for i in range(n)
    )
    return Rule(ours, (theirs,), cut, lambda *xs: (_of(xs).concatenate(xs, -1),))


def pixels(ours: str, theirs: str, patch: int) -> Rule:
    """Our matrix [patch*patch*channels out] over a patch, their convolution [out c patch patch]."""
    return Rule(
        (ours,),
        (theirs,),
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        lambda x: (x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1),),
    )


def one_by_one(ours: str, theirs: tuple[str, ...]) -> Rule:
    """Our experts in one array [experts in out], theirs a matrix [out in] each."""
    return Rule(
        (ours,),
        theirs,
        lambda *xs: (_of(xs).stack([x.T for x in xs]),),
        lambda x: tuple(x[i].T for i in range(len(theirs))),
    )


def stacked(ours: tuple[str, ...], theirs: str) -> Rule:
    """Our arrays [experts in out], theirs one [experts n*out in], one behind the other."""
    n = len(ours)
    cut = lambda x: tuple(
        x[:, i * (x.shape[1] // n) : (i + 1) * (x.shape[1] // n)].swapaxes(1, 2) for i in range(n)
    )
    join = lambda *xs: (_of(xs).concatenate([x.swapaxes(1, 2) for x in xs], 1),)
    return Rule(ours, (theirs,), cut, join)


def _of(xs) -> Any:
    """numpy for numpy arrays, else jax.numpy, which works on shapes alone too."""
    return np if all(isinstance(x, np.ndarray) for x in xs) else jnp


def affine(ours: str, theirs: str, *, bias: bool = True, kernel=turned) -> list[Rule]:
    """Kernel and bias of a map."""
    found = [kernel(f"{ours}/kernel", f"{theirs}.weight")]
    return found + ([same(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def norm(ours: str, theirs: str, *, bias: bool = True, scale=same) -> list[Rule]:
    """Scale and bias of a norm."""
    found = [scale(f"{ours}/scale", f"{theirs}.weight")]
    return found + ([same(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def gpt2(depth: int, *, tied: bool = True) -> list[Rule]:
    """GPT-2, whose maps are [in out] in the file as here."""
    found = [
        same("embed/embedding", "transformer.wte.weight"),
        same("positions/embedding", "transformer.wpe.weight"),
    ]
    parts = ("query", "key", "value")
    for i in range(depth):
        us, them = f"block_{i}", f"transformer.h.{i}"
        found += norm(f"{us}/attention_norm", f"{them}.ln_1")
        for kind in ("kernel", "bias"):
            name = f"{them}.attn.c_attn.{'weight' if kind == 'kernel' else kind}"
            found.append(fused(tuple(f"{us}/attention/{part}/{kind}" for part in parts), name))
        found += affine(f"{us}/attention/out", f"{them}.attn.c_proj", kernel=same)
        found += norm(f"{us}/mlp_norm", f"{them}.ln_2")
        found += affine(f"{us}/mlp/up", f"{them}.mlp.c_fc", kernel=same)
        found += affine(f"{us}/mlp/down", f"{them}.mlp.c_proj", kernel=same)
    found += norm("norm", "transformer.ln_f")
    return found + ([] if tied else [turned("head/kernel", "lm_head.weight")])


def llama(
    depth: int,
    *,
    tied: bool = False,
    qkv_bias: bool = False,
    bias: bool = False,
    qk_norm: bool = False,
    post_norm: bool = False,
    experts: int = 0,
    together: bool = False,
    minus_one: bool = False,
) -> list[Rule]:
    """Llama, Mistral, Qwen 2 and 3, Gemma 2 and Mixtral.

    `together` is the form of the experts inside transformers 5; `minus_one` says that our norms
    hold the scale itself where Gemma's files hold its distance from 1.
    """
    scale = shifted if minus_one else same
    flat = lambda ours, theirs: norm(ours, theirs, bias=False, scale=scale)
    found = [same("embed/embedding", "model.embed_tokens.weight")]
    for i in range(depth):
        us, them = f"block_{i}", f"model.layers.{i}"
        found += flat(f"{us}/attention_norm", f"{them}.input_layernorm")
        for ours, theirs in {"query": "q", "key": "k", "value": "v"}.items():
            place = f"{us}/attention/{ours}"
            found += affine(place, f"{them}.self_attn.{theirs}_proj", bias=qkv_bias)
            if qk_norm and ours != "value":
                found += flat(f"{place}_norm", f"{them}.self_attn.{theirs}_norm")
        found += affine(f"{us}/attention/out", f"{them}.self_attn.o_proj", bias=bias)
        if post_norm:
            found += flat(f"{us}/attention_after", f"{them}.post_attention_layernorm")
            found += flat(f"{us}/mlp_norm", f"{them}.pre_feedforward_layernorm")
            found += flat(f"{us}/mlp_after", f"{them}.post_feedforward_layernorm")
        else:
            found += flat(f"{us}/mlp_norm", f"{them}.post_attention_layernorm")
        if experts:
            found += mixture(f"{us}/mlp", f"{them}.block_sparse_moe", experts, together)
            continue
        for name in ("gate", "up", "down"):
            found += affine(f"{us}/mlp/{name}", f"{them}.mlp.{name}_proj", bias=bias)
    found += flat("norm", "model.norm")
    return found + ([] if tied else [turned("head/kernel", "lm_head.weight")])


def mixture(ours: str, theirs: str, experts: int, together: bool) -> list[Rule]:
    """Router and experts of Mixtral."""
    found = affine(f"{ours}/router", f"{theirs}.gate", bias=False)
    if together:
        both = (f"{ours}/gate", f"{ours}/up")
        return [
            *found,
            stacked(both, f"{theirs}.experts.gate_up_proj"),
            stacked((f"{ours}/down",), f"{theirs}.experts.down_proj"),
        ]
    for part, letter in {"gate": "w1", "down": "w2", "up": "w3"}.items():
        names = tuple(f"{theirs}.experts.{e}.{letter}.weight" for e in range(experts))
        found.append(one_by_one(f"{ours}/{part}", names))
    return found


def bert(depth: int, *, classes: bool = False) -> list[Rule]:
    """BERT with its head for words, or for classes."""
    words = {"embed": "word", "positions": "position", "token_types": "token_type"}
    found = [
        same(f"{ours}/embedding", f"bert.embeddings.{theirs}_embeddings.weight")
        for ours, theirs in words.items()
    ]
    found += norm("norm", "bert.embeddings.LayerNorm")
    for i in range(depth):
        us, them = f"block_{i}", f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            found += affine(f"{us}/attention/{name}", f"{them}.attention.self.{name}")
        found += affine(f"{us}/attention/out", f"{them}.attention.output.dense")
        found += norm(f"{us}/attention_norm", f"{them}.attention.output.LayerNorm")
        found += affine(f"{us}/mlp/up", f"{them}.intermediate.dense")
        found += affine(f"{us}/mlp/down", f"{them}.output.dense")
        found += norm(f"{us}/mlp_norm", f"{them}.output.LayerNorm")
    if classes:
        return found + affine("pooler", "bert.pooler.dense") + affine("head", "classifier")
    found += affine("transform", "cls.predictions.transform.dense")
    found += norm("transform_norm", "cls.predictions.transform.LayerNorm")
    return [*found, same("bias", "cls.predictions.bias")]


def vit(depth: int, patch: int) -> list[Rule]:
    """ViT with its classifier."""
    conv = lambda ours, theirs: pixels(ours, theirs, patch)
    found = [
        same("cls", "vit.embeddings.cls_token"),
        same("positions", "vit.embeddings.position_embeddings"),
        *affine("patches", "vit.embeddings.patch_embeddings.projection", kernel=conv),
    ]
    for i in range(depth):
        us, them = f"block_{i}", f"vit.encoder.layer.{i}"
        found += norm(f"{us}/attention_norm", f"{them}.layernorm_before")
        for name in ("query", "key", "value"):
            found += affine(f"{us}/attention/{name}", f"{them}.attention.attention.{name}")
        found += affine(f"{us}/attention/out", f"{them}.attention.output.dense")
        found += norm(f"{us}/mlp_norm", f"{them}.layernorm_after")
        found += affine(f"{us}/mlp/up", f"{them}.intermediate.dense")
        found += affine(f"{us}/mlp/down", f"{them}.output.dense")
    return [*found, *norm("norm", "vit.layernorm"), *affine("head", "classifier")]


def t5(depth: int, decoder_depth: int, *, gated: bool = False, tied: bool = True) -> list[Rule]:
    """T5 and T5 v1.1."""
    flat = lambda ours, theirs: norm(ours, theirs, bias=False)
    plain = lambda ours, theirs: affine(ours, theirs, bias=False)
    found = [same("embed/embedding", "shared.weight")]
    for stack, blocks in {"encoder": depth, "decoder": decoder_depth}.items():
        parts = {"attention": "SelfAttention", "cross": "EncDecAttention"}
        if stack == "encoder":
            del parts["cross"]
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found.append(same(f"{stack}/bias/embedding", first))
        for i in range(blocks):
            us, them = f"{stack}/block_{i}", f"{stack}.block.{i}.layer"
            for n, (ours, theirs) in enumerate(parts.items()):
                for name in ("query", "key", "value", "out"):
                    found += plain(f"{us}/{ours}/{name}", f"{them}.{n}.{theirs}.{name[0]}")
                found += flat(f"{us}/{ours}_norm", f"{them}.{n}.layer_norm")
            n, maps = len(parts), {"up": "wi", "down": "wo"}
            maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else maps
            for ours, theirs in maps.items():
                found += plain(f"{us}/mlp/{ours}", f"{them}.{n}.DenseReluDense.{theirs}")
            found += flat(f"{us}/mlp_norm", f"{them}.{n}.layer_norm")
        found += flat(f"{stack}/norm", f"{stack}.final_layer_norm")
    return found + ([] if tied else [turned("head/kernel", "lm_head.weight")])


def rules(family: str, model, *, together: bool = False) -> list[Rule]:
    """The table of a model of ours.

    Args:
      family: "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral", "bert", "vit" or
        "t5".
      model: `models.GPT`, `BERT`, `ViT` or `EncDec`, as that family has it.
      together: experts in one array, as inside transformers 5.

    Returns:
      A list of `Rule`, which names every parameter of the model once.

    >>> from nnkit import models
    >>> table = rules("gpt2", models.GPT(vocabulary=5, width=4, depth=1, heads=1))
    >>> table[4].ours[0], table[4].theirs
    ('block_0/attention/query/kernel', ('transformer.h.0.attn.c_attn.weight',))

    Wolf et al., arXiv:1910.03771 (transformers), whose names these are.
    """
    if family == "gpt2":
        return gpt2(model.depth, tied=model.tied)
    if family in DECODERS:
        return llama(
            model.depth,
            tied=model.tied,
            qkv_bias=model.use_bias if model.qkv_bias is None else model.qkv_bias,
            bias=model.use_bias,
            qk_norm=model.qk_norm,
            post_norm=model.post_norm,
            experts=model.experts or 0,
            together=together,
            minus_one=family == "gemma2" and not isinstance(model.norm(), ShiftedRMSNorm),
        )
    if family == "bert":
        return bert(model.depth, classes=model.classes is not None)
    if family == "vit":
        return vit(model.depth, model.patch)
    depths = (model.depth, model.decoder_depth or model.depth)
    return t5(*depths, gated=model.gated, tied=model.tied)


_BASE_DECODER = (r"^(?=(embed_tokens|layers|norm)\.)", "model.")
_VARIANTS = {  # substitutions, one after the other
    "gpt2": [(r"^(?=(wte|wpe|h|ln_f)\.)", "transformer.")],
    **{family: [_BASE_DECODER] for family in DECODERS},
    "mixtral": [_BASE_DECODER, (r"\.mlp\.(?=(gate|experts)\.)", ".block_sparse_moe.")],
    "bert": [
        (r"^(?=(embeddings|encoder|pooler)\.)", "bert."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ],
    "vit": [
        (r"^(?=(embeddings|encoder|layers|layernorm|pooler)\.)", "vit."),
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ],
    "t5": [],
}


def canonical(family: str, name: str) -> str:
    """The name that files have today, from that of an older file or of a base model.

    Args:
      family: see `rules`.
      name: as it stands in a file.

    Returns:
      A name of the tables.

    >>> canonical("gpt2", "h.0.ln_1.weight")
    'transformer.h.0.ln_1.weight'
    >>> canonical("bert", "bert.embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'

    Wolf et al., arXiv:1910.03771 (transformers), whose names these are.
    """
    for old, new in _VARIANTS[family]:
        name = re.sub(old, new, name)
    return name


_ROTARY = {r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "frequencies, a buffer"}
_IGNORABLE = {
    "gpt2": {r"transformer\.h\.\d+\.attn\.(bias|masked_bias)": "the causal mask, a buffer"},
    **dict.fromkeys(DECODERS, _ROTARY),
    "bert": {
        r"bert\.embeddings\.(position_ids|token_type_ids)": "0, 1, 2, ..., a buffer",
        r"cls\.seq_relationship\.(weight|bias)": "the head for the next sentence",
    },
    "vit": {
        r"vit\.pooler\.dense\.(weight|bias)": "a pooler, which the classifier does not read",
        r"vit\.embeddings\.mask_token": "for masked pictures only",
    },
    "t5": {
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
            "never used: the cross-attention has no bias"
        ),
    },
}


def ignorable(family: str, model, name: str) -> str:
    """Why a tensor of a file does not matter for the model; "" if it may.

    Args:
      family: see `rules`.
      model: ours.
      name: canonical.

    Returns:
      A reason, or "".

    >>> ignorable("gpt2", None, "transformer.h.3.attn.masked_bias")
    'the causal mask, a buffer'

    Wolf et al., arXiv:1910.03771 (transformers), whose names these are.
    """
    for pattern, why in _IGNORABLE[family].items():
        if re.fullmatch(pattern, name):
            return why
    if family == "bert" and model.classes is None and name.startswith("bert.pooler.dense."):
        return "the pooler, which the head for words does not read"
    return ""


def copies(family: str, model) -> dict[str, str]:
    """Names under which a file may hold a tied tensor a second time: {copy: original}.

    Args:
      family: see `rules`.
      model: ours.

    Returns:
      A dict; either of the two names is enough, and if both are there they must be equal.

    >>> from nnkit import models
    >>> copies("gpt2", models.GPT(vocabulary=5))
    {'lm_head.weight': 'transformer.wte.weight'}

    Press & Wolf, arXiv:1608.05859 (tied embeddings).
    """
    if family == "bert":
        return (
            {
                "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                "cls.predictions.decoder.bias": "cls.predictions.bias",
            }
            if model.classes is None
            else {}
        )
    if family == "vit":
        return {}
    table = {"gpt2": "transformer.wte.weight", "t5": "shared.weight"}
    original = table.get(family, "model.embed_tokens.weight")
    found = {"lm_head.weight": original} if model.tied else {}
    if family == "t5":
        found |= {f"{stack}.embed_tokens.weight": original for stack in ("encoder", "decoder")}
    return found
