"""The circle: a tiny GPT-2 of transformers loads, writes its text, is fine-tuned, and goes back."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop.torch_side import logits, opened, transformers

import nnkit as nk
from nnkit import generate
from nnkit.cli.main import main
from nnkit.interop import huggingface

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


EXPERIMENT = '''
import dataclasses
import jax, numpy as np, optax
import nnkit as nk
from nnkit import data, models

TEXT = "the quick brown fox\\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Args:
      seed: of everything.
    """

    seed: int = 0


def tokenizer(config):
    return data.Characters.of(TEXT)


def network(config):
    letters = len(tokenizer(config))
    return models.GPT.from_size(
        "nanogpt-cpu", vocabulary=letters, length=24, width=16, depth=1, heads=2
    )


def build(config):
    ids = np.array([tokenizer(config).encode(TEXT)], np.int32)
    train = [{"tokens": ids[:, :-1], "labels": ids[:, 1:]}]
    return nk.step(nk.gradient(nk.causal_lm(network(config))), optax.adam(3e-2)), train, {}


def main(config, folder=None):
    step, train, _ = build(config)
    state = nk.init(step, jax.random.key(config.seed), train[0])
    with nk.Run(folder, config, experiment=__file__, save_every=60) as run:
        nk.fit(step, state, train * 60, steps=60, run=run, progress=False)
'''


def test_a_run_that_is_exported_writes_its_text_there(tmp_path):
    library, _ = transformers()
    (tmp_path / "fox.py").write_text(EXPERIMENT)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main(["train", str(tmp_path / "fox.py"), "--folder", run]) == 0
    assert main(["export", run, out]) == 0
    model = opened(out, "AutoModelForCausalLM")
    tokenizer = library.AutoTokenizer.from_pretrained(out)
    prompts = np.array([tokenizer("the ", add_special_tokens=False)["input_ids"]])
    assert tokenizer.decode(greedy(model, prompts, 15)[0]) == "quick brown fox"


def greedy(theirs, prompts, count):
    """The text that transformers writes."""
    _, torch = transformers()
    given = torch.from_numpy(prompts.astype(int))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = theirs.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
    return out.numpy()[:, prompts.shape[1] :]


def test_there_and_back_again(tmp_path, capsys):
    library, torch = transformers()
    sizes = {"vocab_size": 37, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    theirs = library.GPT2LMHeadModel(
        library.GPT2Config(**sizes, **ends, initializer_range=0.5, attn_implementation="eager")
    ).eval()
    theirs.save_pretrained(tmp_path / "there")

    # it loads, whole
    found = huggingface.load(tmp_path / "there")
    assert "28 tensors loaded; missing: none; unused: none" in capsys.readouterr().out
    model, params = found.model.clone(dropout=0.0), found.params

    # it writes the same text
    prompts = np.random.RandomState(0).randint(0, 37, (3, 5)).astype(np.int32)
    mine = generate.sample(model, params, prompts, new_tokens=12).tokens
    np.testing.assert_array_equal(mine, greedy(theirs, prompts, 12))

    # it is fine-tuned, and the loss falls
    tokens = np.random.RandomState(1).randint(0, 37, (4, 13)).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens[:, :-1]), "labels": jnp.asarray(tokens[:, 1:])}
    step = nk.step(nk.gradient(nk.adapt(nk.causal_lm(model), params)), optax.adam(3e-3))
    state, losses = nk.init(step, jax.random.key(0), batch), []
    update = jax.jit(step.update)
    for _ in range(20):
        state, log = update(state, batch)
        losses.append(float(log["loss"].value))
    assert losses[-1] < 0.7 * losses[0], losses
    tuned, _ = step.weights(state)

    # it is written, and transformers opens it: the same logits, the same text
    out = huggingface.save(tmp_path / "back", model, tuned, config=found.config)
    again = opened(out, "AutoModelForCausalLM")
    wanted = np.asarray(jax.jit(model.apply)({"params": tuned}, batch["tokens"]))
    there = logits(again, input_ids=tokens[:, :-1])
    assert np.abs(there - wanted).max() / np.abs(wanted).max() < 1e-5
    before = logits(theirs, input_ids=tokens[:, :-1])
    assert np.abs(there - before).max() / np.abs(before).max() > 1e-2  # another model by now
    mine = generate.sample(model, tuned, prompts, new_tokens=12).tokens
    np.testing.assert_array_equal(mine, greedy(again, prompts, 12))
