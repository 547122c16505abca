"""From English to German: a tiny Transformer on multi30k, by beam search.

29,000 captions of pictures in both languages, 1,014 to choose on, 1,000 to test (2016). The
Transformer Tiny of Wu et al. 2021, arXiv:2105.14462 (4 + 4 blocks, width 128, 4 heads, hidden 256,
dropout 0.3, smoothing 0.1, rate 5e-3 after 2,000 updates of warm-up, then as 1 / sqrt, average of
the last weights, beam 5) as a T5-like model: RMS norms before each part, relative positions. One
byte-pair encoding for both languages. The score is BLEU of lower-case text, and which tokens it
counts is said beside it. The published setting takes 8,000 updates of 4,096 tokens.

Run      nnkit train translation
         nnkit train translation --steps 8000 --warmup 2000 --vocabulary 10000
         nnkit generate runs/translation-... --prompt "a man in a red shirt is riding a bicycle ."
Takes    not measured; 128 updates took 7 minutes on 2 CPU cores, beside much other work
Result   not measured (published: BLEU 41.0 after 8,000 updates, tokenised text)
"""

from __future__ import annotations

import dataclasses
import functools

import nnkit as nk

NAME = "multi30k"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment.

    Args:
      steps: updates.
      batch_size: pairs of sentences per update; 128 are about 4,000 tokens of both languages.
      learning_rate: of Adam at the end of the warm-up.
      warmup: updates until then; afterwards the rate falls as 1 / sqrt(update).
      vocabulary: size of the byte-pair encoding.
      width, depth, heads, hidden: of the encoder and of the decoder.
      dropout: share of features hidden while training.
      smoothing: share of the label spread over all tokens.
      length: tokens of a sentence at most; longer pairs are left out of the training (and counted
        on the screen), never of an evaluation.
      decay: of the running average of the weights that is evaluated.
      beam: hypotheses kept.
      penalty: exponent of the length in the score of a hypothesis.
      split: test, or validation to choose settings.
      seed: base of everything random.
    """

    steps: int = 1_000
    batch_size: int = 128
    learning_rate: float = 5e-3
    warmup: int = 400
    vocabulary: int = 4_000
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int = 256
    dropout: float = 0.3
    smoothing: float = 0.1
    length: int = 32
    decay: float = 0.995
    beam: int = 5
    penalty: float = 1.0
    split: str = "test"
    seed: int = 0

    def __post_init__(self):
        nk.checks.typed(self)
        nk.checks.positive(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            vocabulary=self.vocabulary,
            length=self.length,
            beam=self.beam,
        )


def pairs(split: str) -> tuple[list[str], list[str]]:
    """English and German sentences, lower case."""
    from nnkit import data

    found = data.columns(NAME, split=split)
    return [s.lower().strip() for s in found["en"]], [s.lower().strip() for s in found["de"]]


@functools.cache
def tokenizer(config: Config):
    """One byte-pair encoding of both languages, of the training part."""
    from nnkit import data

    source, target = pairs("train")
    return data.BPE.of([*source, *target], config.vocabulary)


def network(config: Config):
    """The model: English tokens and the German ones so far in, logits of the next one out."""
    from nnkit import models

    return models.EncDec(
        vocabulary=len(tokenizer(config)),
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        head_dim=config.width // config.heads,
        hidden=config.hidden,
        dropout=config.dropout,
        begin=tokenizer(config).end,
    )


def encoded(config: Config, split: str):
    """Token ids of both sides of every pair; the target ends with the mark of the end."""
    words, (source, target) = tokenizer(config), pairs(split)
    return (
        [words.encode(text) for text in source],
        [[*words.encode(text), words.end] for text in target],
    )


def fields(config: Config, split: str):
    """{"source", "source_mask", "target", "target_mask"} [n length] of the pairs that fit."""
    from nnkit import data

    both = list(zip(*encoded(config, split)))
    kept = [pair for pair in both if max(map(len, pair)) <= config.length]
    if len(kept) < len(both):
        print(
            f"{split}: {len(both) - len(kept)} of {len(both)} pairs are longer than "
            f"{config.length} tokens and left out"
        )
    found = {}
    for name, side in zip(("source", "target"), zip(*kept)):
        padded = data.pad(side, length=config.length)
        found |= {name: padded["tokens"], f"{name}_mask": padded["token_mask"]}
    return found


def build(config: Config):
    """(step, train, evaluations)."""
    import optax

    from nnkit import data, optim

    train = data.arrays(fields(config, "train"), batch_size=config.batch_size, seed=config.seed)
    held = fields(config, "validation")
    held = data.arrays(held, batch_size=min(100, len(held["source"])), shuffle=False)
    task = nk.seq2seq(network(config), smoothing=config.smoothing)
    rate = optim.inverse_sqrt(config.learning_rate, config.warmup)
    step = nk.ema(nk.step(nk.gradient(task), optax.adam(rate, b2=0.98, eps=1e-9)), config.decay)
    return step, train, {"validation": nk.evaluate(task, held, split="validation")}


def translated(config: Config, params, split: str) -> list[str]:
    """Every source of a part in German, by beam search."""
    import numpy as np

    from nnkit import data, generate

    words, model = tokenizer(config), network(config)
    sources = encoded(config, split)[0]
    padded = data.pad(sources, length=max(map(len, sources)))
    found = []
    for i in range(0, len(sources), 100):
        best = generate.beam(
            model,
            params,
            padded["tokens"][i : i + 100],
            padded["token_mask"][i : i + 100],
            new_tokens=2 * config.length,
            width=config.beam,
            end=words.end,
            penalty=generate.power(config.penalty),
        )
        texts = zip(np.asarray(best.tokens[:, 0]), np.asarray(best.mask[:, 0]))
        found += [
            words.decode(ids[real][:-1] if ids[real][-1] == words.end else ids[real]).strip()
            for ids, real in texts
        ]
    return found


def main(config: Config, folder=None):
    """Train, translate, print the table, return its rows."""
    import jax

    step, train, evaluations = build(config)
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    often = max(config.steps // 4, 1)
    every = {often: evaluations["validation"]}
    with nk.Run(folder, config, experiment="translation", save_every=often) as run:
        state, rows = nk.fit(step, state, train, steps=config.steps, every=every, run=run)
        texts = translated(config, step.weights(state)[0], config.split)
        table = results(config, rows, texts)
        run.conclude(table)
    for source, text, wanted in zip(pairs(config.split)[0][:5], texts, pairs(config.split)[1]):
        print(f"\nen  {source}\nde  {text}\nref {wanted}")
    return table


def results(config: Config, rows, texts=None):
    """BLEU of lower-case text, by sacrebleu's tokens (13a), with its signature."""
    last = [row for row in rows if row.get("split") == "validation"][-1]
    row = {
        "model": f"{config.depth} + {config.depth} blocks of width {config.width}",
        "updates": config.steps,
        "validation nats per token": f"{last['nats']:.3f}",
    }
    if texts is not None:
        score = nk.metrics.bleu(texts, pairs(config.split)[1], lowercase=True)
        row |= {f"{config.split} BLEU": f"{score.score:.2f}", "signature": score.signature}
    return [row]


if __name__ == "__main__":
    nk.cli.launch(__file__)
