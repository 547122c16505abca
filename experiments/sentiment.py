"""Does reading first help to judge? Masked words before labels, on few labelled sentences.

sst2: 6,920 sentences of movie reviews, good or bad, 872 to choose on and 1,821 to test. A small
BERT learns words from the sentences themselves (masked language modelling, without labels), then
the label from its first token; the same BERT without the first half, TextCNN and a bag of words
beside it. Seeds are one compiled program; the settings were chosen on the validation part.

Run      nnkit train sentiment
         nnkit train sentiment --pretrain_epochs 0
         nnkit train sentiment --model textcnn
Takes    5 minutes for TextCNN, 9 for BERT without reading (three seeds, 2 CPU cores, beside other
         work); reading: not measured
Result   TextCNN 81.79 ± 0.48 %, bag of words 80.94 %, BERT without reading 78.88 ± 0.16 %
         (n = 3 seeds); with reading: not measured; 2026-11-22; experiments/README.md
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import nnkit as nk

NAME = "sst2"
LENGTH = 56  # words of the longest sentence
READ = 32  # words of a sentence that are read before judging; 92 % have no more
WORD_HEAD = ("transform", "transform_norm", "bias")  # parts of the model of masked words alone
CLASS_HEAD = ("pooler", "head")  # parts of the classifier alone


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment.

    Args:
      model: bert (two blocks, width 128) or textcnn (Kim's CNN-rand).
      split: test, or validation to choose settings.
      seeds: members of the one program: they differ in first weights, masks and dropout.
      pretrain_epochs: passes over the sentences with masked words; 0 begins with random weights.
      pretrain_rate: peak rate of AdamW there.
      epochs: passes over the labelled sentences.
      batch_size: sentences per step, of both.
      learning_rate: peak rate of AdamW; warm-up over a tenth of the steps, then linearly to 0.
      weight_decay: of AdamW.
      dropout: share of features hidden while training, of bert; textcnn has a half.
      seed: base of everything random.
    """

    model: Literal["bert", "textcnn"] = "bert"
    split: Literal["test", "validation"] = "test"
    seeds: int = 3
    pretrain_epochs: int = 10
    pretrain_rate: float = 1e-3
    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self):
        nk.checks.typed(self)
        nk.checks.positive(
            seeds=self.seeds,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            pretrain_rate=self.pretrain_rate,
        )


def words(config: Config):
    """Words that the training part has twice; more ids: a mask, and the mark before a sentence."""
    from nnkit import data

    return data.Vocabulary.of(data.columns(NAME, split="train")["sentence"], minimum=2)


def fields(config: Config, split: str):
    """{"tokens", "token_mask" [n LENGTH + 1], "y" [n]}: a mark, then the words."""
    import numpy as np

    from nnkit import data

    known, found = words(config), data.columns(NAME, split=split)
    read = known.encode(found["sentence"], length=LENGTH)
    mark = {"tokens": len(known) + 1, "token_mask": True}
    both = {
        name: np.pad(array, [(0, 0), (1, 0)], constant_values=mark[name])
        for name, array in read.items()
    }
    return {**both, "y": found["label"].astype(np.int32)}


def bert(config: Config, classes: int | None):
    """The encoder with the head for words (None) or for classes."""
    from nnkit import models

    return models.BERT(
        vocabulary=len(words(config)) + 2,
        classes=classes,
        width=128,
        depth=2,
        heads=4,
        length=LENGTH + 1,
        dropout=config.dropout,
    )


def network(config: Config):
    """The classifier."""
    from nnkit import models

    if config.model == "bert":
        return bert(config, 2)
    return models.TextCNN.from_size("rand", vocabulary=len(words(config)) + 2)


def optimizer(config: Config, peak: float, steps: int):
    """AdamW, its rate rising for a tenth of the steps and falling to 0."""
    import optax

    from nnkit import optim

    rate = optim.linear(peak, steps, warmup=steps // 10)
    return optax.adamw(rate, weight_decay=config.weight_decay, mask=optim.decay_mask)


def reading(config: Config):
    """(step, train, evaluations) of masked words: the seeds as one Step."""
    train, held = batches(config, "validation", ("tokens", "token_mask"), READ)
    known = words(config)
    task = nk.masked_lm(bert(config, None), mask_id=len(known), special=(0, len(known) + 1))
    steps = max(config.pretrain_epochs, 1) * len(train)
    tx = optimizer(config, config.pretrain_rate, steps)
    step = nk.ensemble(nk.step(nk.gradient(task), tx), config.seeds)
    held = nk.evaluate(nk.stacked(task), held, split="masked words")
    return step, train, {"masked words": held}


def batches(config: Config, split: str, names, length: int = LENGTH):
    """(train, held): batches of the fields of those names, of the training part and of a split."""
    from nnkit import data

    def part(split):
        found = fields(config, split)
        return {
            name: found[name] if name == "y" else found[name][:, : length + 1] for name in names
        }

    train, held = part("train"), part(split)
    size = min(200, len(held["tokens"]))
    return (
        data.arrays(train, batch_size=config.batch_size, seed=config.seed),
        data.arrays(held, batch_size=size, shuffle=False),
    )


def build(config: Config, read=None):
    """(step, train, evaluations) of the labels: the seeds as one Step.

    Args:
      config: the settings.
      read: params [seeds ...] from masked words, for the parts that both models have; None begins
        with random weights.
    """
    import jax

    from nnkit import losses, metrics

    train, held = batches(config, config.split, ("tokens", "token_mask", "y"))
    inputs = ("tokens", "token_mask")
    task = nk.supervised(network(config), losses.cross_entropy, x=inputs, accuracy=metrics.accuracy)
    tx = optimizer(config, config.learning_rate, config.epochs * len(train))
    both = {name: part for name, part in (read or {}).items() if name not in WORD_HEAD}

    def recipe(h):
        begun = task
        if read is not None:
            own = jax.tree.map(lambda x: x[h["seed"]], both)
            begun = nk.adapt(task, own, fresh=lambda path: path.split("/")[0] in CLASS_HEAD)
        return nk.seeded(nk.step(nk.gradient(begun), tx), h["seed"])

    step = nk.sweep(recipe, nk.product(seed=range(config.seeds)))
    evaluation = nk.evaluate(nk.stacked(task), held, split=config.split)
    return step, train, {config.split: evaluation}


def baseline(config: Config) -> float:
    """Accuracy of logistic regression on tf-idf of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from nnkit import data

    train, held = (data.columns(NAME, split=split) for split in ("train", config.split))
    pairs = TfidfVectorizer(ngram_range=(1, 2))
    model = make_pipeline(pairs, LogisticRegression(C=10, max_iter=1000))
    model.fit(train["sentence"], train["label"])
    return float(model.score(held["sentence"], held["label"]))


def main(config: Config, folder=None):
    """Read, then judge; print the table, return its rows."""
    import jax

    read, key = None, jax.random.key(config.seed)
    reads = config.model == "bert" and config.pretrain_epochs > 0
    with nk.Run(folder, config, experiment="sentiment") as run:
        if reads:
            step, train, evaluations = reading(config)
            steps = config.pretrain_epochs * len(train)
            every = {max(steps // 4, 1): list(evaluations.values())}
            with nk.Run(run.folder / "reading", config, save_every=steps) as first:
                state = nk.init(step, key, next(iter(train)))
                state, _ = nk.fit(step, state, train, steps=steps, every=every, run=first)
            read = step.weights(state)[0]
        step, train, evaluations = build(config, read)
        state = nk.init(step, key, next(iter(train)))
        every = {len(train): list(evaluations.values())}
        steps = config.epochs * len(train)
        state, rows = nk.fit(step, state, train, steps=steps, every=every, run=run)
        table = results(config, rows)
        run.conclude(table)
    return table


def results(config: Config, rows):
    """Accuracy after the last step, and that of the bag of words."""
    last = [row for row in rows if row.get("split") == config.split][-1]["accuracy"]
    reads = config.model == "bert" and config.pretrain_epochs > 0
    name = f"{config.model}, read {config.pretrain_epochs} times first" if reads else config.model
    title, bag = f"{config.split} accuracy", baseline(config)
    return [
        {"model": name, title: nk.loop.percent(last), "accuracies": last.tolist()},
        {"model": "bag of words", title: nk.loop.percent([bag]), "accuracies": [bag]},
    ]


if __name__ == "__main__":
    nk.cli.launch(__file__)
