"""The Transformer models equal those of Hugging Face on the same weights: logits, loss, gradients.

A table says for every parameter of ours which one of theirs it is, and how it is turned; the same
table turns their gradients. All comparisons are float32 at 1e-5 of the largest entry, logits at
real tokens only (at padding theirs may look at everything, ours at nothing).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.make_transformers import drawn
from references.weights import part, read

from nnkit.layers import RMSNorm, gelu_tanh, silu
from nnkit.models.bert import BERT
from nnkit.models.encdec import EncDec
from nnkit.models.gpt import GPT
from nnkit.models.tokens import shift_right
from nnkit.models.vit import ViT

# --- how an array of theirs becomes one of ours ---


def as_is(x):
    return x


def turned(x):
    return x.T


def third(i):
    """One of query, key, value from GPT-2's product for all three, [in 3*out] or [3*out]."""
    return lambda x: np.split(x, 3, -1)[i]


def pixels(x):
    """A convolution over patches [out c h w] as a matrix [h*w*c out]."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def expert(i):
    """Gate (0) or up (1) of all experts [e 2*hidden width], as [e width hidden]."""
    return lambda x: np.split(x, 2, 1)[i].swapaxes(1, 2)


def tilted(x):
    return x.swapaxes(1, 2)


def prefixed(before, after, table):
    return {f"{before}{ours}": (f"{after}{theirs}", how) for ours, (theirs, how) in table.items()}


def affine(ours, theirs, *, kernel=turned, bias=True):
    found = {f"{ours}/kernel": (f"{theirs}.weight", kernel)}
    return found | ({f"{ours}/bias": (f"{theirs}.bias", as_is)} if bias else {})


def norm(ours, theirs, *, bias=True):
    found = {f"{ours}/scale": (f"{theirs}.weight", as_is)}
    return found | ({f"{ours}/bias": (f"{theirs}.bias", as_is)} if bias else {})


# --- the tables: {ours: (theirs, how)} ---


def gpt2(depth):
    block = norm("attention_norm", "ln_1") | norm("mlp_norm", "ln_2")
    for i, name in enumerate(("query", "key", "value")):
        block[f"attention/{name}/kernel"] = ("attn.c_attn.weight", third(i))
        block[f"attention/{name}/bias"] = ("attn.c_attn.bias", third(i))
    block |= affine("attention/out", "attn.c_proj", kernel=as_is)
    block |= affine("mlp/up", "mlp.c_fc", kernel=as_is)
    block |= affine("mlp/down", "mlp.c_proj", kernel=as_is)
    table = {
        "embed/embedding": ("transformer.wte.weight", as_is),
        "positions/embedding": ("transformer.wpe.weight", as_is),
        **norm("norm", "transformer.ln_f"),
    }
    for i in range(depth):
        table |= prefixed(f"block_{i}/", f"transformer.h.{i}.", block)
    return table


def llama(depth, *, tied=False, qkv_bias=False, qk_norm=False, experts=False, post_norm=False):
    """Llama, Mistral, Qwen2, Qwen3, Gemma 2 and Mixtral."""
    flat, plain = partial(norm, bias=False), partial(affine, bias=False)
    block = flat("attention_norm", "input_layernorm")
    for ours, theirs in {"query": "q", "key": "k", "value": "v"}.items():
        block |= affine(f"attention/{ours}", f"self_attn.{theirs}_proj", bias=qkv_bias)
        if qk_norm and ours != "value":
            block |= flat(f"attention/{ours}_norm", f"self_attn.{theirs}_norm")
    block |= plain("attention/out", "self_attn.o_proj")
    if post_norm:
        block |= flat("attention_after", "post_attention_layernorm")
        block |= flat("mlp_norm", "pre_feedforward_layernorm")
        block |= flat("mlp_after", "post_feedforward_layernorm")
    else:
        block |= flat("mlp_norm", "post_attention_layernorm")
    if experts:
        block |= {
            "mlp/router/kernel": ("mlp.gate.weight", turned),
            "mlp/gate": ("mlp.experts.gate_up_proj", expert(0)),
            "mlp/up": ("mlp.experts.gate_up_proj", expert(1)),
            "mlp/down": ("mlp.experts.down_proj", tilted),
        }
    else:
        for name in ("up", "gate", "down"):
            block |= plain(f"mlp/{name}", f"mlp.{name}_proj")
    table = {
        "embed/embedding": ("model.embed_tokens.weight", as_is),
        **flat("norm", "model.norm"),
        **({} if tied else plain("head", "lm_head")),
    }
    for i in range(depth):
        table |= prefixed(f"block_{i}/", f"model.layers.{i}.", block)
    return table


def bert(depth, *, classes=False):
    block = norm("attention_norm", "attention.output.LayerNorm")
    block |= norm("mlp_norm", "output.LayerNorm")
    for name in ("query", "key", "value"):
        block |= affine(f"attention/{name}", f"attention.self.{name}")
    block |= affine("attention/out", "attention.output.dense")
    block |= affine("mlp/up", "intermediate.dense") | affine("mlp/down", "output.dense")
    table = {
        "embed/embedding": ("word_embeddings.weight", as_is),
        "positions/embedding": ("position_embeddings.weight", as_is),
        "token_types/embedding": ("token_type_embeddings.weight", as_is),
        **norm("norm", "LayerNorm"),
    }
    table = prefixed("", "bert.embeddings.", table)
    for i in range(depth):
        table |= prefixed(f"block_{i}/", f"bert.encoder.layer.{i}.", block)
    if classes:
        return table | affine("pooler", "bert.pooler.dense") | affine("head", "classifier")
    table |= affine("transform", "cls.predictions.transform.dense")
    table |= norm("transform_norm", "cls.predictions.transform.LayerNorm")
    return table | {"bias": ("cls.predictions.bias", as_is)}


def vit(depth):
    block = norm("attention_norm", "layernorm_before") | norm("mlp_norm", "layernorm_after")
    for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
        block |= affine(f"attention/{ours}", f"attention.{theirs}_proj")
    block |= affine("mlp/up", "mlp.fc1") | affine("mlp/down", "mlp.fc2")
    table = {
        "cls": ("vit.embeddings.cls_token", as_is),
        "positions": ("vit.embeddings.position_embeddings", as_is),
        **affine("patches", "vit.embeddings.patch_embeddings.projection", kernel=pixels),
        **norm("norm", "vit.layernorm"),
        **affine("head", "classifier"),
    }
    for i in range(depth):
        table |= prefixed(f"block_{i}/", f"vit.layers.{i}.", block)
    return table


def t5(depth, *, gated=False, tied=True):
    flat, plain = partial(norm, bias=False), partial(affine, bias=False)
    table = {"embed/embedding": ("shared.weight", as_is)}
    if not tied:
        table |= plain("head", "lm_head")
    for stack in ("encoder", "decoder"):
        parts = [("attention", "SelfAttention"), ("cross", "EncDecAttention")]
        parts = parts if stack == "decoder" else parts[:1]
        block = {}
        for n, (ours, theirs) in enumerate(parts):
            block |= flat(f"{ours}_norm", f"layer.{n}.layer_norm")
            for name in ("query", "key", "value", "out"):
                block |= plain(f"{ours}/{name}", f"layer.{n}.{theirs}.{name[0]}")
        n, dense = len(parts), f"layer.{len(parts)}.DenseReluDense"
        block |= flat("mlp_norm", f"layer.{n}.layer_norm") | plain("mlp/down", f"{dense}.wo")
        if gated:
            block |= plain("mlp/gate", f"{dense}.wi_0") | plain("mlp/up", f"{dense}.wi_1")
        else:
            block |= plain("mlp/up", f"{dense}.wi")
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[f"{stack}/bias/embedding"] = (first, as_is)
        table |= flat(f"{stack}/norm", f"{stack}.final_layer_norm")
        for i in range(depth):
            table |= prefixed(f"{stack}/block_{i}/", f"{stack}.block.{i}.", block)
    return table


# --- our models of the same configurations ---

SIZE = {"vocabulary": 37, "length": 16, "width": 24, "depth": 2, "heads": 4}
LLAMA = {
    **SIZE,
    "kv_heads": 2,
    "hidden": 40,
    "norm": RMSNorm,
    "epsilon": 1e-6,
    "learned": False,
    "rope": 1e4,
    "activation": silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
GEMMA = {
    "head_dim": 8,
    "activation": gelu_tanh,
    "tied": True,
    "window": (4, None),
    "softcap": 2.0,
    "final_softcap": 3.0,
    "post_norm": True,
    "scale_embedding": True,
}
BERT_SIZE = {"vocabulary": 37, "length": 12, "width": 24, "depth": 2, "heads": 4, "hidden": 40}
T5_SIZE = {
    "vocabulary": 37,
    "width": 24,
    "depth": 2,
    "heads": 4,
    "head_dim": 6,
    "hidden": 40,
    "buckets": 8,
    "max_distance": 12,
}
CASES = {  # name of the file: (ours, table)
    "gpt2": (GPT(**SIZE), gpt2(2)),
    "llama": (GPT(**LLAMA | {"rope": 500.0, "epsilon": 1e-5}), llama(2)),
    "mistral": (GPT(**LLAMA, window=4), llama(2)),
    "qwen2": (
        GPT(**LLAMA | {"tied": True}, qkv_bias=True),
        llama(2, tied=True, qkv_bias=True),
    ),
    "qwen3": (GPT(**LLAMA, head_dim=8, qk_norm=True), llama(2, qk_norm=True)),
    "gemma2": (GPT(**LLAMA | GEMMA), llama(2, tied=True, post_norm=True)),
    "mixtral": (
        GPT(
            **LLAMA | {"hidden": 16, "epsilon": 1e-5, "rope": 1e6},
            experts=4,
            top_k=2,
            with_aux=True,
        ),
        llama(2, experts=True),
    ),
    "bert_mlm": (BERT(**BERT_SIZE), bert(2)),
    "bert_classify": (BERT(**BERT_SIZE, classes=3), bert(2, classes=True)),
    "vit": (
        ViT(5, width=24, depth=2, heads=4, hidden=40, patch=4, image=(8, 12), epsilon=1e-12),
        vit(2),
    ),
    "t5": (EncDec(**T5_SIZE), t5(2)),
    "t5_v1_1": (
        EncDec(**T5_SIZE, activation=gelu_tanh, gated=True, tied=False),
        t5(2, gated=True, tied=False),
    ),
}
PUBLIC = {"bert_mlm": "BERT", "bert_classify": "BERT", "vit": "ViT"}


def nested(flat):
    """A tree of dicts from {"a/b": leaf}."""
    tree = {}
    for path, leaf in flat.items():
        *way, last = path.split("/")
        at = tree
        for name in way:
            at = at.setdefault(name, {})
        at[last] = jnp.asarray(leaf)
    return tree


def ours(name, theirs, table):
    """Their arrays by our names and in our layouts."""
    return {path: how(theirs[key]) for path, (key, how) in table.items()}


def weights(name, about, table):
    found = {key: drawn(key, shape) for key, shape in about["shapes"].items()}
    assert {key for key, _ in table.values()} == set(found), "the table names every parameter"
    if name == "gemma2":  # their norms multiply by 1 + weight
        found = {k: x + np.float32("norm" in k) for k, x in found.items()}
    return nested(ours(name, found, table))


def tokens_loss(logits, labels, shift):
    """Mean cross-entropy over the labels that are not -100."""
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels >= 0
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, jnp.where(kept, labels, 0)[..., None], -1)[..., 0]
    return -jnp.where(kept, chosen, 0).sum() / kept.sum().astype(logits.dtype)


def feed(name, given):
    """Positional inputs of ours, and where the logits count."""
    if name == "vit":
        return (given["pixel_values"].transpose(0, 2, 3, 1),), None
    tokens, mask = given["input_ids"], given["attention_mask"] == 1
    if name.startswith("bert"):
        return (tokens, mask, given["token_type_ids"]), None if "classify" in name else mask
    if name.startswith("t5"):
        labels = given["labels"]
        target = np.asarray(shift_right(np.where(labels < 0, 0, labels), 0))
        return (tokens, target, mask), labels >= 0
    return (tokens, mask), mask


def joined(tree):
    """Biases of query, key and value as one array: that of the key has gradient 0 by symmetry."""
    found = {}
    for path, x in sorted(tree.items()):
        for part_ in ("query", "key", "value"):
            path = path.replace(f"/{part_}/bias", "/query_key_value/bias")
        found.setdefault(path, []).append(np.asarray(x))
    return {path: np.concatenate(x) if len(x) > 1 else x[0] for path, x in found.items()}


def flat(tree, way=""):
    if not isinstance(tree, dict):
        return {way[:-1]: tree}
    return {k: v for name, x in tree.items() for k, v in flat(x, f"{way}{name}/").items()}


@pytest.mark.parametrize("name", CASES)
def test_same_as_transformers(name):
    (model, table), (about, golden) = CASES[name], read(f"transformers_{name}")
    given = part(golden, "inputs/")
    params = weights(name, about, table)
    inputs, real = feed(name, given)
    want = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, want)
    shift = name in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral")

    def run(params):
        logits = model.apply({"params": params}, *inputs)
        logits, aux = logits if isinstance(logits, tuple) else (logits, {})
        return tokens_loss(logits, given["labels"], shift), (logits, aux)

    (loss, (logits, aux)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    seen = (lambda x: x) if real is None else (lambda x: np.asarray(x)[real])
    public = "models." + PUBLIC.get(name, "EncDec" if name.startswith("t5") else "GPT")
    library, kind = about["reference"].split()
    reference = f"{library} {about['version']} {kind}"
    mine = {"logits": seen(logits), "loss": loss, **joined(flat(grads))}
    theirs = {"logits": seen(golden["logits"]), "loss": golden["loss"]}
    theirs |= joined(ours(name, part(golden, "grads/"), table))
    if aux:  # theirs is per layer and counts the choices of a token, ours their shares
        mine["balance"], theirs["balance"] = (
            aux["balance"][0] * model.top_k,
            golden["balance"].sum(),
        )
    error = same(public, reference, mine, theirs)
    print(f"{public} {reference} ({name}): {error:.1e}")
