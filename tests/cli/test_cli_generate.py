"""`nnkit generate` on a run of two members that takes a second."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.main import main
from nnkit.cli.restored import NotRestored, language, restored
from nnkit.generate import chain, sample, sliding, temperature

EXPERIMENT = '''
"""A language model of ten letters."""
import dataclasses
import jax, numpy as np, optax
import nnkit as nk
from nnkit import data, losses, models

TEXT = "abcdefghij\\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Args:
      seeds: members.
      seed: of everything.
    """

    seeds: int = 2
    seed: int = 0


def tokenizer(config):
    return data.Characters.of(TEXT)


def network(config):
    return models.GPT(vocabulary=11, length=16, width=8, depth=1, heads=2)


def build(config):
    ids = np.array([tokenizer(config).encode(TEXT)], np.int32)
    train = [{"tokens": ids[:, :-1], "labels": ids[:, 1:]}]
    task = nk.supervised(
        network(config), losses.sequence_cross_entropy, x="tokens", y="labels"
    )
    step = nk.step(nk.gradient(task), optax.adam(3e-2))
    step = nk.ensemble(step, config.seeds) if config.seeds > 1 else step
    return step, train, {}


def main(config, folder=None):
    step, train, _ = build(config)
    state = nk.init(step, jax.random.key(config.seed), train[0])
    with nk.Run(folder, config, experiment=__file__, save_every=30) as run:
        nk.fit(step, state, train * 60, steps=60, run=run, progress=False)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("letters")
    (root / "letters.py").write_text(EXPERIMENT)
    assert main(["train", str(root / "letters.py"), "--folder", str(root / "run")]) == 0
    return root / "run"


def test_greedy_is_the_text_learnt(run, capsys):
    assert main(["generate", str(run), "--prompt", "abc", "--tokens", "7", "--greedy"]) == 0
    out, error = capsys.readouterr()
    assert out == "abcdefghij\n"
    assert error == f"{run} at step 60, the newest checkpoint\n"


def test_drawn_text_is_that_of_sample_for_each_member(run, capsys):
    texts = []
    for member in (0, 1):
        words = ["--prompt", "ab", "--tokens", "9", "--temperature", "3", "--seed", "5"]
        assert main(["generate", str(run), *words, "--member", str(member)]) == 0
        texts.append(capsys.readouterr().out)
        model, params, letters, _ = language(run, member=member)
        found = sample(
            model,
            params,
            letters.encode("ab")[None],
            new_tokens=9,
            key=jax.random.key(5),
            warp=chain(temperature(3.0)),
        )
        assert texts[-1] == "ab" + letters.decode(found.tokens[0]) + "\n"
    assert texts[0] != texts[1]


def test_texts_longer_than_the_model_slide_and_say_so(run, capsys):
    assert main(["generate", str(run), "--prompt", "a", "--tokens", "30", "--greedy"]) == 0
    out, error = capsys.readouterr()
    assert "the model reads 16 tokens at a time: older ones are forgotten" in error
    model, params, letters, _ = language(run)
    found = sample(sliding(model), params, letters.encode("a")[None], new_tokens=30)
    assert out == "a" + letters.decode(found.tokens[0]) + "\n"


def test_all_knobs_and_the_default_prompt(run, capsys):
    words = "--tokens 4 --top-k 3 --top-p 0.9 --min-p 0.01 --latest".split()
    assert main(["generate", str(run), *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("\n") and len(out) == 1 + 4 + 1
    assert main(["generate", str(run), *words]) == 0
    assert capsys.readouterr().out == out


def test_a_folder_of_hugging_face(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--member", "1"]) == 0
    capsys.readouterr()
    words = "--prompt abc --tokens 12 --seed 7 --temperature 2".split()
    assert main(["generate", str(out), *words]) == 0
    text, error = capsys.readouterr()
    assert f"{out}, GPT\n" in error
    assert main(["generate", str(run), *words, "--member", "1"]) == 0
    assert capsys.readouterr().out == text and text.startswith("abc")
    (out / "tokenizer.json").unlink()
    assert main(["generate", str(out), *words]) == 2
    assert "has no tokenizer.json: put the one of the model beside it" in capsys.readouterr().err


WRONG = [
    (["--prompt", "xyz"], "text has 'x' (U+0078) at place 0"),
    (["--prompt", ""], "--prompt is empty, expected a text"),
    (["--temperature", "0"], "--temperature is 0, expected a number > 0; --greedy writes"),
    (["--top-k", "0"], "top_k is 0, expected an integer >= 1"),
    (["--top-p", "1.5"], "top_p is 1.5, expected a number in (0, 1]"),
    (["--min-p", "-1"], "min_p is -1.0, expected a number in [0, 1]"),
    (["--seed", "-1"], "seed is -1, expected 0 to"),
    (["--tokens", "0"], "--tokens is 0, expected at least 1"),
    (["--member", "2"], "member is 2, but the run has 2: expected 0 to 1"),
    (["--tokens", "many"], "invalid int value: 'many'"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_words_are_one_line(run, words, said, capsys):
    assert main(["generate", str(run), *words]) == 2
    out, error = capsys.readouterr()
    assert said in error and "Traceback" not in error and not out


def test_no_run_no_checkpoint_and_no_language_model(run, tmp_path, capsys):
    assert main(["generate"]) == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err
    other = tmp_path / "run"
    shutil.copytree(run, other)
    arrays = sorted((other / "checkpoints").glob("0*"))
    for folder in arrays:
        (folder / "manifest.json").write_text("{")
    assert main(["generate", str(other)]) == 1
    assert "no valid checkpoint" in capsys.readouterr().err
    for folder in arrays:
        shutil.rmtree(folder)
    assert main(["generate", str(other)]) == 2
    assert f"{other} has no checkpoint yet" in capsys.readouterr().err
    file = tmp_path / "letters.py"
    file.write_text(
        EXPERIMENT.replace("def tokenizer", "def letters").replace("tokenizer(", "letters(")
    )
    shutil.copytree(run, tmp_path / "third")
    record = json.loads((run / "config.json").read_text()) | {"experiment": str(file)}
    (tmp_path / "third" / "config.json").write_text(json.dumps(record))
    with pytest.raises(NotRestored, match=r"third has no tokenizer\(config\): it is no language"):
        language(tmp_path / "third")


def test_what_is_restored(run):
    found = restored(run, latest=True)
    params, carry = found.weights
    assert found.said == f"{run} at step 60, the newest checkpoint" and carry == {}
    assert params["embed"]["embedding"].shape == (2, 11, 8)
    model, variables, letters, _ = language(run, member=1)
    table = variables["params"]["embed"]["embedding"]
    np.testing.assert_array_equal(table, params["embed"]["embedding"][1])
    assert isinstance(model, nk.models.GPT) and len(letters) == 11
