"""`nnkit export` on runs that take a second: what is written opens again and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as exporting

from nnkit.cli.main import main
from nnkit.cli.restored import NotRestored, inputs, restored
from nnkit.interop import huggingface
from nnkit.models import BERT, EncDec, TextCNN

EXPERIMENT = '''
"""A language model of ten letters.

It learns them by heart.
"""
import dataclasses
import jax, numpy as np, optax
import nnkit as nk
from nnkit import data, losses, models

TEXT = "abcdefghij\\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Args:
      kind: gpt or lstm.
      seeds: members.
      steps: updates.
      seed: of everything.
    """

    kind: str = "gpt"
    seeds: int = 2
    steps: int = 60
    seed: int = 0


def tokenizer(config):
    return data.Characters.of(TEXT)


def network(config):
    if config.kind == "lstm":
        return models.RecurrentLM(vocabulary=11, width=8, depth=1)
    shape = {"vocabulary": 11, "length": 16, "width": 8, "depth": 1, "heads": 2}
    return models.GPT.from_size("nanogpt-cpu", **shape)


def build(config):
    ids = np.array([tokenizer(config).encode(TEXT)], np.int32)
    train = [{"tokens": ids[:, :-1], "labels": ids[:, 1:]}]
    task = nk.supervised(network(config), losses.sequence_cross_entropy, x="tokens", y="labels")
    step = nk.step(nk.gradient(task), optax.adam(3e-2))
    return nk.ensemble(step, config.seeds) if config.seeds > 1 else step, train, {}


def main(config, folder=None):
    step, train, _ = build(config)
    state = nk.init(step, jax.random.key(config.seed), train[0])
    with nk.Run(folder, config, experiment=__file__, save_every=config.steps) as run:
        nk.fit(step, state, train * 60, steps=config.steps, run=run, progress=False)
        run.conclude([{"split": "train", "nats": 0.25}])
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the file of the experiment and two runs of it."""
    root = tmp_path_factory.mktemp("letters")
    (root / "letters.py").write_text(EXPERIMENT)
    train = ["train", str(root / "letters.py"), "--folder"]
    assert main([*train, str(root / "run")]) == 0
    single = ["--kind", "lstm", "--seeds", "1", "--steps", "2"]
    assert main([*train, str(root / "lstm"), *single]) == 0
    return root


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["export", *map(str, words)]) == code
    return capsys.readouterr().out


def test_huggingface(root, tmp_path, capsys):
    out = tmp_path / "out"
    text = said(capsys, root / "run", out)
    assert f"{root / 'run'} at step 60, the newest checkpoint, member 0 of 2" in text
    assert f"{out}: GPT2LMHeadModel; README.md, config.json, generation_config.json" in text
    capsys.readouterr()
    assert main(["generate", str(out), "--prompt", "abc", "--tokens", "7", "--greedy"]) == 0
    assert capsys.readouterr().out.endswith("abcdefghij\n")
    config = json.loads((out / "config.json").read_text())
    assert config["activation_function"] == "gelu"
    assert (config["vocab_size"], config["n_positions"], config["eos_token_id"]) == (11, 16, None)
    card = (out / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\npipeline_tag: "text-generation"\n')
    assert "A language model of ten letters." in card and "- steps: 60" in card
    assert "| train | 0.25 |" in card and "- experiment: letters.py" in card
    assert str(root) not in card  # nothing of this machine


def test_the_member_that_was_asked_for(root, tmp_path, capsys):
    params = restored(root / "run").weights[0]
    for member in (0, 1):
        said(capsys, root / "run", tmp_path / f"{member}", "--member", member)
        found = huggingface.load(tmp_path / f"{member}", quiet=True).params
        want = params["embed"]["embedding"][member]
        np.testing.assert_array_equal(found["embed"]["embedding"], want)
    text = said(capsys, root / "run", tmp_path / "2", "--member", 2, code=2)
    assert "member is 2, but the run has 2: expected 0 to 1" in text
    text = said(capsys, root / "lstm", tmp_path / "2", "--member", 1, code=2)
    assert "member is 1, but the run has 1 model" in text


@pytest.mark.parametrize("name", ["run", "lstm"])
def test_stablehlo(name, root, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="jax.export needs it; the extra `export`")
    from safetensors.numpy import load_file

    out = tmp_path / "out"
    text = said(capsys, root / name, out, "--format", "stablehlo")
    assert f"{out}: a program of tokens [b 10]; README.md" in text
    run = exporting.deserialize(bytearray((out / "model.stablehlo").read_bytes())).call
    tokens = jnp.arange(30).reshape(3, 10) % 11
    outputs = run(load_file(out / "model.safetensors"), {"tokens": tokens})
    found = restored(root / name)
    model, (params, _) = found.module.network(found.config), found.weights
    params = jax.tree.map(lambda x: x[0], params) if name == "run" else params
    mine = jax.jit(model.apply)({"params": params}, tokens)
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(outputs)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    about = json.loads((out / "signature.json").read_text())["about"]
    assert about["experiment"] == "letters.py"


def test_what_cannot_be_written(root, tmp_path, capsys):
    out = tmp_path / "out"
    text = said(capsys, root / "lstm", out, code=2)
    assert "RecurrentLM has no form in transformers" in text and "--format stablehlo" in text
    assert not out.exists()
    text = said(capsys, tmp_path / "nowhere", out, code=2)
    assert "is no run folder" in text
    (tmp_path / "there").mkdir()
    text = said(capsys, root / "run", tmp_path / "there", code=2)
    assert f"{tmp_path / 'there'} exists, and nothing is overwritten" in text
    assert main(["export", str(root / "run")]) == 2
    assert main(["export", "--help"]) == 0
    assert main(["export", str(root / "run"), str(out), "--format", "onnx"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def network(config):", "def net(config):", "has no network(config), which gives"),
        ("def network(config):", "def network(config, words):", "has no network(config)"),
        ('"width": 8', '"width": 6', "are not those of network(config): params/block_0/"),
        ("    return models.GPT", "    return 3 or models.GPT", "network(config) gave int"),
    ],
)
def test_an_experiment_that_lacks_something(old, new, words, root, tmp_path, capsys):
    run = Path(shutil.copytree(root / "run", tmp_path / "run"))
    text = EXPERIMENT.replace("network(config), losses", "trained(config), losses")
    trained = text[text.index("def network") : text.index("def build")]
    text = text.replace(old, new) + "\n\n" + trained.replace("def network", "def trained")
    (tmp_path / "idea.py").write_text(text)
    record = json.loads((run / "config.json").read_text())
    record["experiment"] = str(tmp_path / "idea.py")
    (run / "config.json").write_text(json.dumps(record))
    found = said(capsys, run, tmp_path / "out", code=2)
    assert words in found
    assert not (tmp_path / "out").exists()


def test_inputs_by_the_names_of_a_batch():
    tokens, mask = np.zeros((2, 4), np.int32), np.ones((2, 4), bool)
    pairs = {"source": tokens, "target": tokens, "source_mask": mask, "target_mask": mask}
    model = EncDec(vocabulary=5, width=4, depth=1, heads=1, head_dim=4, hidden=4)
    of = lambda batch: SimpleNamespace(train=[batch])
    assert sorted(inputs(of(pairs), model, "run")) == ["source", "source_mask", "target_in"]
    words = {"tokens": tokens, "token_mask": mask, "labels": tokens}
    assert sorted(inputs(of(words), BERT(vocabulary=5), "run")) == ["mask", "tokens"]
    cnn = TextCNN.from_size("rand", vocabulary=5)
    assert "tokens" in inputs(of({"x": tokens}), cnn, "run")
    with pytest.raises(NotRestored, match=r"is called with 'target_in', but its batches have"):
        inputs(of({"source": tokens}), model, "run")
