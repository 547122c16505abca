"""Checkpoints that transformers wrote: loaded, run, and written again bit by bit.

The files are made by tests/references/make_huggingface.py; transformers is not needed here.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import layers
from nnkit.core.trees import paths
from nnkit.interop import files, huggingface
from nnkit.interop.huggingface.families import expected
from nnkit.interop.huggingface.keys import IGNORABLE
from nnkit.interop.huggingface.loading import _nested
from nnkit.models import BERT, GPT, EncDec, ViT

HERE = Path(__file__).parents[1] / "references" / "huggingface"
CASES = sorted(path.parent.name for path in HERE.glob("*/config.json"))
DECODERS = [name for name in CASES if "bert" not in name and name != "vit" and "t5" not in name]


def golden(name):
    with np.load(HERE / name / "golden.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def feed(model, found):
    """Inputs of ours from those of transformers, and where logits count."""
    given = {key.removeprefix("inputs/"): x for key, x in found.items() if "/" in key}
    if isinstance(model, ViT):
        return (given["pixel_values"].transpose(0, 2, 3, 1),), ...
    tokens, mask = given["input_ids"].astype(np.int32), given["attention_mask"] == 1
    if isinstance(model, BERT):
        kinds = given["token_type_ids"].astype(np.int32)
        return (tokens, mask, kinds), mask if model.classes is None else ...
    if isinstance(model, EncDec):
        return (tokens, given["decoder_input_ids"].astype(np.int32), mask), ...
    return (tokens, mask), mask


@partial(jax.jit, static_argnums=0)
def run(model, params, inputs):
    return model.apply({"params": params}, *inputs)


def test_there_is_a_checkpoint_of_every_family():
    kinds = {json.loads((HERE / name / "config.json").read_text())["model_type"] for name in CASES}
    assert kinds == set("gpt2 llama mistral qwen2 qwen3 gemma2 mixtral bert vit t5".split())


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_every_bit_back(name, tmp_path, capsys):
    found = huggingface.load(HERE / name)
    want = golden(name)
    inputs, real = feed(found.model, want)
    logits = np.asarray(run(found.model, found.params, inputs).astype(jnp.float32))[real]
    theirs = want["logits"][real]
    error = np.abs(logits - theirs).max() / np.abs(theirs).max()
    assert error < (0.03 if name.endswith("bfloat16") else 1e-5), error
    out = huggingface.save(tmp_path / "out", found.model, found.params, config=found.config)
    old, new = files.tensors(HERE / name), files.tensors(out)
    assert set(old) == set(new)
    for key, tensor in old.items():
        assert (tensor.dtype, tensor.shape) == (new[key].dtype, new[key].shape), key
        assert files.read(tensor).tobytes() == files.read(new[key]).tobytes(), key
    assert found.report.loaded and set(found.report.loaded) == set(old)
    assert not found.report.missing and not found.report.unused and not found.report.ignored
    assert f"{len(old)} tensors loaded; missing: none; unused: none" in capsys.readouterr().out
    same_config(found.config, json.loads((out / "config.json").read_text()))
    again = huggingface.load(out, quiet=True)
    assert again.model == found.model
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, found.params))


def same_config(old, new):
    """What both say is the same; T5 tells scaled outputs as transformers 4 did."""
    tied = "scale_decoder_outputs" if old["model_type"] == "t5" else "tie_word_embeddings"
    for key in old.keys() & new.keys():
        assert new[key] == old[tied if key == "tie_word_embeddings" else key], key
    sizes = {key for key, value in old.items() if isinstance(value, int) and value > 1}
    assert sizes - set(IGNORABLE) - {"max_window_layers"} <= new.keys()
    assert {"architectures", "model_type", "dtype"} <= new.keys()


@pytest.mark.parametrize("name", DECODERS)
def test_dtype_is_kept_or_asked_for(name):
    kept = huggingface.load(HERE / name, quiet=True).params
    want = jnp.bfloat16 if name.endswith("bfloat16") else jnp.float32
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype(want)}
    other = huggingface.load(HERE / name, dtype="float16", quiet=True).params
    assert {x.dtype for x in jax.tree.leaves(other)} == {jnp.dtype("float16")}


def renamed(folder, out, change):
    """A copy of a checkpoint whose tensors are {name: array} after `change`."""
    arrays = change({name: files.read(x) for name, x in files.tensors(folder).items()})
    out.mkdir()
    wanted = [files.Wanted(k, x.dtype, x.shape, lambda x=x: x) for k, x in arrays.items()]
    files.write(out, wanted)
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def stripped(prefix):
    return lambda arrays: {k.removeprefix(prefix): x for k, x in arrays.items()}


def gamma(arrays):
    return {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for k, x in arrays.items()
    }


def fused(arrays):
    """Mixtral as inside transformers 5: the experts of a layer in two arrays."""
    rest = {
        k.replace("block_sparse_moe", "mlp"): x for k, x in arrays.items() if ".experts." not in k
    }
    for i in range(2):
        layer = f"model.layers.{i}.block_sparse_moe.experts"
        one = lambda e, w, layer=layer: arrays[f"{layer}.{e}.{w}.weight"]
        both = [np.concatenate([one(e, "w1"), one(e, "w3")]) for e in range(3)]
        rest[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.stack(both)
        rest[f"model.layers.{i}.mlp.experts.down_proj"] = np.stack([one(e, "w2") for e in range(3)])
    return rest


def inside(arrays):
    """ViT by the names inside transformers 5."""
    pairs = {"encoder.layer": "layers", "attention.attention.query": "attention.q_proj"}
    pairs |= {f"attention.attention.{k}": f"attention.{k[0]}_proj" for k in ("key", "value")}
    pairs |= {"attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1"}
    pairs |= {"output.dense": "mlp.fc2"}
    found = {}
    for name, x in arrays.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        found[name] = x
    return found


def with_buffers(arrays):
    """What older files of GPT-2 hold besides: masks, and the head, which is tied."""
    more = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.uint8) for i in range(2)}
    more["h.0.attn.masked_bias"] = np.float32(-1e4).reshape(())
    return (
        stripped("transformer.")(arrays)
        | more
        | {"lm_head.weight": arrays["transformer.wte.weight"]}
    )


VARIANTS = {  # name: (checkpoint, how its names were in another version, how many do not matter)
    "the first file of GPT-2": ("gpt2", with_buffers, 4),
    "a base model of Llama": ("llama", lambda x: stripped("model.")(x), 0),
    "Llama with frequencies": (
        "llama",
        lambda x: x | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)},
        1,
    ),
    "the first files of BERT": ("bert", gamma, 0),
    "BERT with its other heads": (
        "bert",
        lambda x: (
            x
            | {
                "bert.embeddings.position_ids": np.arange(12)[None],
                "cls.seq_relationship.weight": np.ones((2, 16), np.float32),
                "bert.pooler.dense.bias": np.ones(16, np.float32),
                "cls.predictions.decoder.weight": x["bert.embeddings.word_embeddings.weight"],
            }
        ),
        4,
    ),
    "BERT with the copy alone": (
        "bert",
        lambda x: {
            k.replace("cls.predictions.bias", "cls.predictions.decoder.bias"): v
            for k, v in x.items()
        },
        0,
    ),
    "Mixtral inside transformers 5": ("mixtral", fused, 0),
    "ViT inside transformers 5": ("vit", inside, 0),
    "T5 with copies of its table": (
        "t5",
        lambda x: (
            x | {f"{s}.embed_tokens.weight": x["shared.weight"] for s in ("encoder", "decoder")}
        ),
        2,
    ),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_other_names_of_the_same_tensors(case, tmp_path):
    name, change, ignored = VARIANTS[case]
    one = huggingface.load(HERE / name, quiet=True)
    two = huggingface.load(renamed(HERE / name, tmp_path / "x", change), quiet=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, two.params))
    assert jax.tree.structure(one.params) == jax.tree.structure(two.params)
    assert len(two.report.ignored) == ignored
    assert all(two.report.ignored.values())


def test_shards(tmp_path):
    found = huggingface.load(HERE / "qwen3", quiet=True)
    out = huggingface.save(tmp_path / "out", found.model, found.params, max_shard_size="6KB")
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((out / files.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(found.params))
    again = huggingface.load(out, quiet=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, found.params))


def drawn(model):
    """Parameters of a model, quickly."""
    rng = np.random.RandomState(0)
    draw = lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype)
    return _nested({path: draw(x) for path, x in expected(model).items()})


@pytest.mark.parametrize("form", ["nanogpt", "alone"])
def test_a_gpt_without_biases_is_gpt2_with_zeros(form, tmp_path):
    changes = {"vocabulary": 11, "length": 8, "width": 16, "depth": 1, "heads": 2}
    model = GPT.from_size("nanogpt-cpu", **changes, tied=form != "alone", dropout=0.1)
    tokens = jnp.array([[1, 2, 3]])
    params = drawn(model)
    out = huggingface.save(tmp_path / "out", model, params)
    found = huggingface.load(out, quiet=True)
    config = json.loads((out / "config.json").read_text())
    assert (config["activation_function"], config["model_type"]) == ("gelu", "gpt2")
    assert found.model.use_bias and found.model.dropout == 0.1
    assert not found.params["block_0"]["mlp"]["up"]["bias"].any()
    assert not found.params["norm"]["bias"].any()
    ours, theirs = run(model, params, (tokens,)), run(found.model, found.params, (tokens,))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_gemma_with_plain_scales_is_written_less_one(tmp_path):
    model = GPT.from_size(
        "gemma2-2b", vocabulary=11, length=8, width=16, depth=2, heads=2, kv_heads=1, head_dim=8,
        hidden=24, window=(4, None), norm=layers.RMSNorm,
    )  # fmt: skip
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    params = drawn(model)
    params["norm"]["scale"] = jnp.linspace(0.6, 1.9, 16)
    found = huggingface.load(huggingface.save(tmp_path / "out", model, params), quiet=True)
    np.testing.assert_array_equal(found.params["norm"]["scale"], params["norm"]["scale"] - 1)
    ours, theirs = run(model, params, (tokens,)), run(found.model, found.params, (tokens,))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_another_head_is_drawn_only_if_asked(tmp_path, capsys):
    asked = {"fields": {"classes": 4, "dropout": 0.0}, "allow_unused": ("cls.*",)}
    asked |= {"allow_missing": ("pooler/*", "head/*")}
    first = r"4 missing, first 'bert.pooler.dense.weight' \[16 16\] \(here pooler/kernel\); 5"
    with pytest.raises(ValueError, match=first):
        huggingface.load(HERE / "bert", fields={"classes": 4})
    with pytest.raises(ValueError, match=r"pooler/kernel and 3 more are missing .* random key"):
        huggingface.load(HERE / "bert", **asked)
    one, two = (huggingface.load(HERE / "bert", **asked, key=jax.random.key(3)) for _ in range(2))
    out = capsys.readouterr().out
    assert "missing: 4 (pooler/kernel, pooler/bias, head/kernel, ... 1 more), freshly drawn" in out
    assert "unused: 5 (cls.predictions" in out
    assert one.params["head"]["kernel"].shape == (16, 4)
    np.testing.assert_array_equal(one.params["head"]["kernel"], two.params["head"]["kernel"])
    assert set(one.report.missing) == {
        p for p, _ in paths(one.params) if p[0] in "ph" and "/" in p
    } - {"positions/embedding"}
    with pytest.raises(ValueError, match=r"allow_missing has 'haed/\*', which matches none"):
        huggingface.load(HERE / "bert", allow_missing=("haed/*",))


def test_an_unscaled_t5_with_a_tied_head(tmp_path):
    """transformers 5 makes a new T5 v1.1 so; the head is then read from the table of tokens."""
    out = renamed(
        HERE / "t5_v1_1",
        tmp_path / "x",
        lambda x: {k: v for k, v in x.items() if k != "lm_head.weight"},
    )
    found = huggingface.load(out, quiet=True)
    np.testing.assert_array_equal(
        found.params["head"]["kernel"], found.params["embed"]["embedding"].T
    )
    config = json.loads((out / "config.json").read_text()) | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"1 missing, first 'lm_head.weight'"):
        huggingface.load(out)
