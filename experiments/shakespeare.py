"""How well does a small Transformer write Shakespeare, letter by letter? And an LSTM of its size?

tiny_shakespeare: 1,115,394 characters of plays, 65 different ones. nanoGPT's configuration for a
CPU: 4 layers of width 128, 64 characters of context, 2,000 steps of 12 pieces. Trained on the first
nine tenths and evaluated on the last one (validation and test of TFDS), as nanoGPT does, but on
every character of it once: piece after piece, the context of a character being those before it in
its piece. `--size gpu` is nanoGPT's setting for an accelerator (10.7 million parameters).

Run      nnkit train shakespeare
         nnkit train shakespeare --model lstm
         nnkit generate runs/shakespeare-... --prompt "ROMEO:"
Takes    12 and 6 minutes for three seeds on 2 CPU cores, beside other work
Result   GPT 1.772 ± 0.010 nats per character, LSTM 1.738 ± 0.038 (n = 3 seeds): no winner can be
         named; at nanoGPT's own rate of 1e-3 the GPT has 1.906 ± 0.033 (nanoGPT says 1.88);
         2026-11-22; experiments/README.md
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import nnkit as nk

NAME = "tiny_shakespeare"
TEXT = 256  # characters of a sample


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment.

    Args:
      model: gpt, or lstm (two layers with about as many parameters).
      size: cpu (4 layers, width 128, context 64, batch 12, no dropout) or gpu (6 layers, width 384,
        context 256, batch 64, dropout 0.2, 5,000 steps), both nanoGPT's.
      seeds: members of the one program: they differ in first weights and dropout.
      steps: updates; 0: those of the size, 2,000 or 5,000.
      learning_rate: peak rate of AdamW; 100 steps of warm-up, then cosine decay to a tenth.
        nanoGPT has 1e-3; on the validation part 4e-3 and 8e-3 were equally good (LOG.md).
      weight_decay: of the matrices.
      half: compute in bfloat16.
      seed: base of everything random.
    """

    model: Literal["gpt", "lstm"] = "gpt"
    size: Literal["cpu", "gpu"] = "cpu"
    seeds: int = 3
    steps: int = 0
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    half: bool = False
    seed: int = 0

    def __post_init__(self):
        nk.checks.typed(self)
        nk.checks.positive(seeds=self.seeds, learning_rate=self.learning_rate)

    @property
    def updates(self) -> int:
        """The number of updates."""
        return self.steps or {"cpu": 2_000, "gpu": 5_000}[self.size]


def read(split: str) -> str:
    """The text of a part."""
    from nnkit import data

    return "".join(data.columns(NAME, split=split)["text"])


def tokenizer(config: Config):
    """The characters of the training part."""
    from nnkit import data

    return data.Characters.of(read("train"))


def network(config: Config):
    """The model: 65 characters in, logits of the next one out."""
    from nnkit import models

    gpt = models.GPT.from_size({"cpu": "nanogpt-cpu", "gpu": "nanogpt-char"}[config.size])
    if config.model == "gpt":
        return gpt
    width = {"cpu": 224, "gpu": 800}[config.size]
    return models.RecurrentLM(gpt.vocabulary, width=width, depth=2, dropout=gpt.dropout)


def build(config: Config):
    """(step, train, evaluations): the seeds as one Step."""
    import optax

    from nnkit import data, optim

    letters = tokenizer(config)
    length, batch_size = {"cpu": (64, 12), "gpu": (256, 64)}[config.size]
    pieces = {"tokenizer": letters, "length": length, "seed": config.seed}
    train = data.text(read("train"), batch_size=batch_size, stride=1, **pieces)
    held = read("validation") + read("test")
    held = data.text(held, batch_size=min(64, len(held) // length), shuffle=False, **pieces)

    task = nk.causal_lm(network(config))
    matrices = functools.partial(optim.decay_mask, exclude=lambda path: False)
    warmup = min(100, config.updates // 10)
    rate = optim.warmup_cosine(config.learning_rate, config.updates, warmup, final=0.1)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=matrices),
    )
    grad = nk.gradient(nk.half(task) if config.half else task)
    step = nk.ensemble(nk.step(grad, tx), config.seeds, each=nk.in_turn)
    return step, train, {"test": nk.evaluate(nk.stacked(task, each=nk.in_turn), held)}


def writer(config: Config):
    """(params, carry) -> a row with a text that the first member writes, by the same key."""
    import jax
    import numpy as np

    from nnkit import generate

    letters = tokenizer(config)
    model, prompt = generate.sliding(network(config)), np.array([letters.encode("\n")])

    def write(params, carry):
        first = jax.tree.map(lambda x: x[0], params)
        found = generate.sample(
            model, first, prompt, new_tokens=TEXT, key=jax.random.key(config.seed)
        )
        return {"split": "sample", "text": letters.decode(found.tokens[0])}

    return write


def main(config: Config, folder=None):
    """Train the seeds, showing what one of them writes; print the table, return its rows."""
    import jax

    step, train, evaluations = build(config)
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    often, write = config.updates // 4, writer(config)
    before = write(*step.weights(state))["text"]
    every = {often: [evaluations["test"], write]}
    with nk.Run(folder, config, experiment="shakespeare", save_every=often) as run:
        state, rows = nk.fit(step, state, train, steps=config.updates, every=every, run=run)
        table = results(config, rows)
        run.conclude(table)
    for step_number, text in [(0, before), *samples(rows)]:
        print(f"\n--- written after {step_number:,} steps ---\n{text}")
    return table


def samples(rows):
    """(step, text) of the rows that hold one: the first and the last."""
    texts = [(row["step"], row["text"]) for row in rows if row.get("split") == "sample"]
    return [texts[0], texts[-1]]


def results(config: Config, rows):
    """Nats per character of the last tenth, after the last step: mean ± 95 % CI over the seeds."""
    last = [row for row in rows if row.get("split") == "test"][-1]
    return [
        {
            "model": f"{config.model} {config.size}",
            "seeds": config.seeds,
            "steps": config.updates,
            "nats per character": nk.loop.number(last["loss"]),
            "bits per character": nk.loop.number(last["loss"] / math.log(2)),
            "losses": last["loss"].tolist(),
        }
    ]


if __name__ == "__main__":
    nk.cli.launch(__file__)
