"""What do the names of people sound like to a small Transformer? Karpathy's makemore.

makemore_names: 32,033 first names of the United States, 26 letters. Every name is a text of its
own, from a mark to a mark: the model learns letters and where to end. makemore's configuration of
the Transformer (4 layers, width 64, 4 heads; 5e-4, decay 0.01) on the split of the data set;
against counts of n-grams, the additive constant and the order chosen on the validation part.

Run      nnkit train names
         nnkit generate runs/names-... --prompt "ma" --tokens 14
Takes    11 minutes for three seeds on 2 CPU cores, beside other work
Result   2.030 ± 0.010 nats per letter of the test part (n = 3 seeds), the best counts (4-gram)
         2.104; 80.5 % of 2,000 names are new; 2026-11-22; experiments/README.md
         (makemore's Transformer: about 1.92, from memory, another split and longer training)
"""

from __future__ import annotations

import dataclasses

import nnkit as nk

NAME = "makemore_names"
LENGTH = 16  # the longest name has 15 letters; one more for the mark


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment.

    Args:
      seeds: members of the one program: they differ in first weights.
      steps: updates.
      batch_size: names per step.
      learning_rate: of AdamW, constant as in makemore.
      weight_decay: of the matrices.
      width, depth, heads: of the GPT.
      seed: base of everything random.
    """

    seeds: int = 3
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    width: int = 64
    depth: int = 4
    heads: int = 4
    seed: int = 0

    def __post_init__(self):
        nk.checks.typed(self)
        nk.checks.positive(
            seeds=self.seeds,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )


def names(split: str) -> list[str]:
    """The names of a part."""
    from nnkit import data

    return "".join(data.columns(NAME, split=split)["text"]).split()


def tokenizer(config: Config):
    """The mark (a line break), and the letters."""
    from nnkit import data

    return data.Characters.of("\n" + "".join(names("train")))


def network(config: Config):
    """The model: a mark and letters in, logits of what follows out."""
    from nnkit import models

    return models.GPT(
        vocabulary=len(tokenizer(config)),
        length=LENGTH,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
    )


def fields(config: Config, split: str):
    """{"tokens": mark and name, "labels": name and mark} [n LENGTH], with a mask for the rest."""
    from nnkit import data

    letters = tokenizer(config)
    whole = data.pad([letters.encode(f"\n{name}\n") for name in names(split)], LENGTH + 1)
    tokens, mask = whole["tokens"], whole["token_mask"]
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "label_mask": mask[:, 1:]}


def build(config: Config):
    """(step, train, evaluations): the seeds as one Step."""
    import optax

    from nnkit import data, optim

    train = data.arrays(
        fields(config, "train"), batch_size=config.batch_size, seed=config.seed, shuffle=True
    )
    held = {}
    for split in ("validation", "test"):
        part = fields(config, split)
        size = min(500, len(part["tokens"]))
        held[split] = data.arrays(part, batch_size=size, shuffle=False)
    task = nk.causal_lm(network(config))
    tx = optax.adamw(
        config.learning_rate, b2=0.99, weight_decay=config.weight_decay, mask=optim.decay_mask
    )
    step = nk.ensemble(nk.step(nk.gradient(task), tx), config.seeds)
    members = nk.stacked(task)
    return step, train, {name: nk.evaluate(members, x, split=name) for name, x in held.items()}


def ngram(config: Config, order: int, more: float):
    """(split) -> nats per letter of counts of `order` letters, `more` added to each."""
    import numpy as np

    v = len(tokenizer(config))

    def contexts(split):
        """The `order` - 1 letters before every label, as one number, and the labels."""
        found = fields(config, split)
        padded = np.pad(found["tokens"], [(0, 0), (max(order - 2, 0), 0)])  # 0 is the mark
        code = np.zeros_like(found["labels"], np.int64)
        for back in range(order - 1):
            code = code * v + padded[:, back : back + LENGTH]
        return code[found["label_mask"]], found["labels"][found["label_mask"]]

    counts = np.zeros((v ** (order - 1), v))
    np.add.at(counts, contexts("train"), 1)
    p = (counts + more) / (counts + more).sum(1, keepdims=True)
    return lambda split: float(-np.log(p[contexts(split)]).mean())


def baseline(config: Config):
    """(order, constant, nats per letter of the test part): the best on the validation part."""
    tried = {
        (order, more): ngram(config, order, more)
        for order in (1, 2, 3, 4, 5)
        for more in (0.01, 0.1, 0.3, 1.0)
    }
    best = min(tried, key=lambda which: tried[which]("validation"))
    return (*best, tried[best]("test"))


def written(config: Config, params, count: int = 2000):
    """Names that the first member writes, each from the mark to the mark."""
    import jax
    import numpy as np

    from nnkit import generate

    letters = tokenizer(config)
    mark = int(letters.encode("\n")[0])
    first = jax.tree.map(lambda x: x[0], params)
    found = generate.sample(
        network(config),
        first,
        np.full((count, 1), mark),
        new_tokens=LENGTH - 1,
        key=jax.random.key(config.seed),
        end=mark,
    )
    return [letters.decode(ids).split("\n")[0] for ids in np.asarray(found.tokens)]


def main(config: Config, folder=None):
    """Train the seeds, print the table and some names, return the rows."""
    import jax

    step, train, evaluations = build(config)
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    often = max(config.steps // 5, 1)
    every = {often: list(evaluations.values())}
    best = ("validation/loss", "min")
    with nk.Run(folder, config, experiment="names", save_every=often, keep_best=best) as run:
        state, rows = nk.fit(step, state, train, steps=config.steps, every=every, run=run)
        table = results(config, rows)
        run.conclude(table)
    found, known = written(config, step.weights(state)[0]), set(names("train"))
    fresh = sum(name not in known for name in found) / len(found)
    print(f"{100 * fresh:.1f} % of {len(found)} names are new, such as", " ".join(found[:30]))
    return table


def results(config: Config, rows):
    """Nats per letter (marks at the end counted) of the test part, after the last step."""
    last = [row for row in rows if row.get("split") == "test"][-1]
    order, more, counted = baseline(config)
    return [
        {
            "model": f"GPT {config.depth} x {config.width}",
            "test nats per letter": nk.loop.number(last["loss"]),
            "losses": last["loss"].tolist(),
        },
        {
            "model": f"{order}-gram, {more} added",
            "test nats per letter": f"{counted:.4f}",
            "losses": [counted],
        },
    ]


if __name__ == "__main__":
    nk.cli.launch(__file__)
