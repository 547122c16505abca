"""The experiments on language, at toy size on real text: they train, write, judge and translate."""

import json

import numpy as np
import pytest

import nnkit as nk
from nnkit.cli import main
from nnkit.cli.train import load


@pytest.fixture
def shakespeare(data_dir, monkeypatch):
    module = load("shakespeare")
    letters, text = module.tokenizer(module.Config()), module.read("validation")
    parts = {"train": text[:6000], "validation": text[6000:6400], "test": text[6400:6700]}
    monkeypatch.setattr(module, "read", parts.get)
    monkeypatch.setattr(module, "tokenizer", lambda config: letters)
    return module


@pytest.mark.parametrize("model", ["gpt", pytest.param("lstm", marks=pytest.mark.nightly)])
def test_shakespeare_learns_and_writes(shakespeare, model, tmp_path, capsys):
    config = shakespeare.Config(model=model, seeds=2, steps=8)
    (row,) = shakespeare.main(config, tmp_path / "run")
    assert max(row["losses"]) < np.log(65)
    assert row["losses"][0] != row["losses"][1]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows if row.get("split") == "sample"]
    assert len(texts) == 4
    assert all(len(text) == shakespeare.TEXT for text in texts)
    said = capsys.readouterr().out
    assert "--- written after 0 steps ---" in said
    assert "--- written after 8 steps ---" in said


@pytest.mark.nightly
def test_a_run_with_texts_in_its_log_is_listed(shakespeare, tmp_path, capsys):
    shakespeare.main(shakespeare.Config(seeds=1, steps=4), tmp_path / "run")
    said = capsys.readouterr().out
    assert "nan" not in said
    assert " ± " not in said
    assert main(["ls", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "done" in said
    assert "test accuracy" in said


def test_shakespeare_is_the_text_and_the_size_of_nanogpt(data_dir):
    module = load("shakespeare")
    sizes = [len(module.read(split)) for split in ("train", "validation", "test")]
    assert sizes == [1_003_854, 55_770, 55_770]
    assert len(module.tokenizer(module.Config())) == module.network(module.Config()).vocabulary


@pytest.fixture
def names(data_dir, monkeypatch):
    module = load("names")
    every = module.names("train")
    parts = {"train": every[:300], "validation": every[300:350], "test": every[350:420]}
    monkeypatch.setattr(module, "names", parts.get)
    return module


def test_counts_of_letters_are_those_of_a_slow_count(names):
    config, more = names.Config(), 0.3
    text = [f"\n\n{name}\n" for name in names.names("train")]
    v, counts = len(names.tokenizer(config)), {}
    for line in text:
        for i in range(2, len(line)):
            key = line[i - 2 : i]
            counts.setdefault(key, {}).setdefault(line[i], 0)
            counts[key][line[i]] += 1
    nats = []
    for name in names.names("test"):
        line = f"\n\n{name}\n"
        for i in range(2, len(line)):
            seen = counts.get(line[i - 2 : i], {})
            nats.append(-np.log((seen.get(line[i], 0) + more) / (sum(seen.values()) + v * more)))
    assert names.ngram(config, 3, more)("test") == pytest.approx(np.mean(nats), rel=1e-9)


def test_names_are_learned_and_the_run_is_evaluated_and_writes(
    names, tmp_path, capsys, monkeypatch
):
    """`nnkit eval` and `nnkit generate`, too, on the run of an experiment with several members."""
    config = names.Config(seeds=2, steps=30, batch_size=32, width=16, depth=1, heads=2)
    model, counted = names.main(config, tmp_path / "run")
    assert max(model["losses"]) < np.log(27)
    assert 2 < counted["losses"][0] < np.log(27)
    found = names.written(config, _params(names, config), count=7)
    assert len(found) == 7
    assert all(len(name) < names.LENGTH for name in found)
    assert " names are new, such as " in capsys.readouterr().out
    monkeypatch.setattr("nnkit.cli.train.load", lambda name: names)
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "test nats per letter" in capsys.readouterr().out
    words = ["--prompt", "\nma", "--tokens", "5", "--member", "1"]
    assert main(["generate", str(tmp_path / "run"), *words]) == 0
    assert capsys.readouterr().out.startswith("\nma")


def _params(module, config):
    import jax

    step, train, _ = module.build(config)
    return step.weights(nk.init(step, jax.random.key(0), next(iter(train))))[0]


@pytest.fixture
def sentiment(data_dir, monkeypatch):
    module = load("sentiment")
    real = nk.data.columns
    few = {"train": 96, "validation": 20, "test": 30}

    def columns(name, *, split):
        found = real(name, split=split)
        return {key: values[: few[split]] for key, values in found.items()}

    monkeypatch.setattr(nk.data, "columns", columns)
    return module


def test_what_was_read_is_where_judging_begins(sentiment):
    import jax

    config = sentiment.Config(seeds=2, batch_size=32)
    step, train, _ = sentiment.reading(config)
    read = step.weights(nk.init(step, jax.random.key(3), next(iter(train))))[0]
    step, train, _ = sentiment.build(config, read)
    begun = step.weights(nk.init(step, jax.random.key(4), next(iter(train))))[0]
    for name in {*read} & {*begun}:
        jax.tree.map(np.testing.assert_array_equal, read[name], begun[name])
    assert {*begun} - {*read} == {*sentiment.CLASS_HEAD}
    assert {*read} - {*begun} == {*sentiment.WORD_HEAD}


@pytest.mark.parametrize("model", ["bert", pytest.param("textcnn", marks=pytest.mark.nightly)])
def test_sentences_are_judged(sentiment, model, tmp_path):
    config = sentiment.Config(model=model, seeds=2, pretrain_epochs=1, epochs=1, batch_size=32)
    rows = sentiment.main(config, tmp_path / "run")
    right = np.array(rows[0]["accuracies"]) * 30  # a share of the 30 sentences there are
    assert right.shape == (2,)
    np.testing.assert_allclose(right, right.round(), atol=1e-4)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    seen = [row["loss"] for row in map(json.loads, lines) if "split" not in row]
    assert seen and np.isfinite(np.array(seen, float)).all()
    assert (tmp_path / "run/reading/metrics.jsonl").exists() == (model == "bert")


@pytest.fixture
def translation(data_dir, monkeypatch):
    module = load("translation")
    few = {"train": 150, "validation": 20, "test": 6}
    real = module.pairs
    monkeypatch.setattr(
        module, "pairs", lambda split: tuple(side[: few[split]] for side in real(split))
    )
    return module


def test_sentences_are_translated(translation, tmp_path, capsys):
    pytest.importorskip("tokenizers", reason="byte-pair encoding is learned by `tokenizers`")
    small = {"vocabulary": 300, "width": 16, "depth": 1, "heads": 2, "hidden": 32, "length": 60}
    config = translation.Config(steps=4, batch_size=16, warmup=2, beam=2, **small)
    (row,) = translation.main(config, tmp_path / "run")
    assert row["signature"].startswith("nrefs:1|case:lc|eff:no|tok:13a")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    nats = [row["loss"] for row in map(json.loads, lines) if "split" not in row]
    assert nats[-1] < nats[0]
    words = translation.tokenizer(config)
    source, target = translation.encoded(config, "test")
    english, german = translation.pairs("test")
    assert [words.decode(ids) for ids in source] == english
    assert [words.decode(ids[:-1]) for ids in target] == german
    assert {ids[-1] for ids in target} == {words.end}
    capsys.readouterr()
