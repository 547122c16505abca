"""The Transformer models equal those of Hugging Face on the same weights: logits, loss, gradients.

The tables of `interop.huggingface.names` say for every parameter of ours which one of theirs it is,
and how it is turned; the same tables turn their gradients. All comparisons are float32 at 1e-5 of
the largest entry, logits at real tokens only (at padding theirs may look at everything, ours at
nothing).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.make_transformers import drawn
from references.weights import part, read

from nnkit.interop.huggingface.names import canonical, rules
from nnkit.layers import RMSNorm, ShiftedRMSNorm, gelu_tanh, silu
from nnkit.models.bert import BERT
from nnkit.models.encdec import EncDec
from nnkit.models.gpt import GPT
from nnkit.models.tokens import shift_right
from nnkit.models.vit import ViT

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
    "norm": ShiftedRMSNorm,
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
CASES = {  # name of the file: ours
    "gpt2": GPT(**SIZE),
    "llama": GPT(**LLAMA | {"rope": 500.0, "epsilon": 1e-5}),
    "mistral": GPT(**LLAMA, window=4),
    "qwen2": GPT(**LLAMA | {"tied": True}, qkv_bias=True),
    "qwen3": GPT(**LLAMA, head_dim=8, qk_norm=True),
    "gemma2": GPT(**LLAMA | GEMMA),
    "mixtral": GPT(
        **LLAMA | {"hidden": 16, "epsilon": 1e-5, "rope": 1e6}, experts=4, top_k=2, with_aux=True
    ),
    "bert_mlm": BERT(**BERT_SIZE),
    "bert_classify": BERT(**BERT_SIZE, classes=3),
    "vit": ViT(5, width=24, depth=2, heads=4, hidden=40, patch=4, image=(8, 12), epsilon=1e-12),
    "t5": EncDec(**T5_SIZE),
    "t5_v1_1": EncDec(**T5_SIZE, activation=gelu_tanh, gated=True, tied=False),
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


def family(name):
    return name.split("_")[0]


def table(name, model):
    return rules(family(name), model, together=True)


def ours(theirs, rows):
    """Their arrays by our names and in our layouts."""
    found = {}
    for rule in rows:
        found |= zip(rule.ours, rule.load(*(theirs[key] for key in rule.theirs)))
    return found


def by_canonical(name, arrays):
    return {canonical(family(name), key): x for key, x in arrays.items()}


def weights(name, about, rows):
    found = by_canonical(name, {key: drawn(key, shape) for key, shape in about["shapes"].items()})
    assert {key for rule in rows for key in rule.theirs} == set(found), "every parameter is named"
    return nested(ours(found, rows))


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
    model, (about, golden) = CASES[name], read(f"transformers_{name}")
    given, rows = part(golden, "inputs/"), table(name, model)
    params = weights(name, about, rows)
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
    theirs |= joined(ours(by_canonical(name, part(golden, "grads/")), rows))
    if aux:  # theirs is per layer and counts the choices of a token, ours their shares
        mine["balance"], theirs["balance"] = (
            aux["balance"][0] * model.top_k,
            golden["balance"].sum(),
        )
    error = same(public, reference, mine, theirs)
    print(f"{public} {reference} ({name}): {error:.1e}")
