"""Random edits of valid configurations: each trains two steps, or says what is wrong.

A trial takes an experiment of the package with tiny settings, changes one to three fields to
something (right, wrong, absurd or of another type), and hands it over as a user would: in Python,
or on the command line. What was accepted is built whole, traced as it is, and trained for two
steps; programs are shared by passing the rates as numbers, as `nnkit sweep` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import random
import typing

from reliability import progress
from reliability.messages import Score, score, text_of

__all__ = ["edits"]

INF, NAN = math.inf, math.nan
WHOLE = [
    0,
    -1,
    1,
    2,
    3,
    2**31,
    2**63,
    10**30,
    1.5,
    2.0,
    NAN,
    INF,
    "3",
    "many",
    "",
    None,
    True,
    (3,),
]
REAL = [0, 0.0, -1.0, -0.1, 1.0, 0.25, 1e-4, 50, NAN, INF, -INF, 1e300, 1e39, "0.1", "fast", None]
REAL += [True, (0.1,)]
TEXT = ["", "cn", "CNN", "cnn ", "test", "mlp", "gru", "logistic", "trian", 3, None, True, NAN]
MANY = [(), 3, "abc", None, (0,), (-1,), (8,), (8, 8), (8.5,), ("8",), (NAN,), (8, None), ((8,),)]
MANY += [[8], (True,), (0.1, 0.01), (INF,), (1e300,)]
FLAG = ["yes", 1, 0, None, "false", True, False]
TINY = {
    "digits": {"learning_rates": (1e-3,), "seeds": 1, "widths": (8,), "dropout": 0.0, "steps": 2},
    "mnist1d": {"model": "logistic", "seeds": 1, "batch_size": 50, "steps": 2},
}
RATES = ("learning_rates", "learning_rate", "weight_decay")  # may be numbers of the program


def edits(count: int, seed: int) -> dict:
    """Makes `count` edits of valid configurations.

    Args:
      count: trials.
      seed: of the first; trial i is made by `random.Random(f"{seed}-{i}")`.

    Returns:
      {"count", "failures", "trained", "explained", "all 4", "programs"}.
    """
    failures: list[str] = []
    trained = four = 0
    for trial in range(count):
        draw = random.Random(f"{seed}-{trial}")
        name = draw.choice(sorted(TINY))
        door = draw.choice(["python", "python", "words"])
        fields, changed = _edited(draw, name, door)
        label = f"seed={seed} trial={trial} {name} by {door}: {changed!r:.300}"
        try:
            config = _made(name, fields, door)
            loss = _trained(name, config)
        except Exception as error:  # any error must be a message
            text = text_of(error)
            marks = _marks(text, changed)
            four += marks.total == 4
            if marks.total < 3:
                failures.append(f"{label}: {tuple(map(int, marks))} {type(error).__name__}: {text}")
        else:
            trained += 1
            if not math.isfinite(loss):
                failures.append(f"{label}: the loss is {loss}, and nothing was said")
        if trial % 100 == 99:
            progress(f"  {trial + 1} edits: {trained} trained, {len(failures)} failures")
    return {
        "count": count,
        "failures": failures,
        "trained": trained,
        "explained": count - trained,
        "all 4": four,
        "programs": _program.cache_info().currsize,
    }


@functools.cache
def _experiment(name: str):
    from nnkit.cli.train import load

    return load(name)


def _edited(draw: random.Random, name: str, door: str) -> tuple[dict, dict]:
    """(fields of a configuration, those that were changed)."""
    hints = typing.get_type_hints(_experiment(name).Config)
    changed = {}
    for field in draw.sample(sorted(hints), draw.choice([1, 1, 1, 2, 3])):
        kind = hints[field]
        many = typing.get_origin(kind) is tuple
        pool = {int: WHOLE, float: REAL, bool: FLAG}.get(kind, MANY if many else TEXT)
        changed[field] = draw.choice(pool)
    if door == "words" and draw.random() < 0.15:
        word = draw.choice(sorted(hints))
        at = draw.randrange(len(word))
        changed[word[:at] + word[at + 1 :] + draw.choice("sxz")] = 3
    return {**TINY[name], **changed}, changed


def _made(name: str, fields: dict, door: str):
    """The Config, through one of the doors; a refusal on the command line becomes an error."""
    module = _experiment(name)
    if door == "python":
        return module.Config(**fields)
    from nnkit.cli.train import _parsed

    words = []
    for field, value in fields.items():
        flag = "--" + field.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
            continue
        values = value if isinstance(value, tuple | list) else [value]
        words += [flag, *map(str, values)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            return _parsed(module, name, words)[0]
        except SystemExit as ended:
            code = ended.code
    assert code == 2, code
    raise ValueError(" ".join(out.getvalue().replace("│", " ").split()))


def _trained(name: str, config) -> float:
    """The loss after two steps of one run; what cannot be built or traced raises."""
    import jax
    import numpy as np

    module = _experiment(name)
    _, train, _ = module.build(config)
    step = module.single(config, train)[1]
    batch = next(iter(train))
    key = jax.random.key(config.seed)
    begun = jax.eval_shape(lambda key: step.init(key, batch), key)
    jax.eval_shape(step.update, begun, batch)
    rates = {f: getattr(config, f) for f in RATES if hasattr(config, f)}
    fixed = dataclasses.replace(config, **dict.fromkeys(set(rates) - {"learning_rates"}, 0.5))
    if "learning_rates" in rates:
        fixed = dataclasses.replace(fixed, learning_rates=(0.5,))
        rates["learning_rates"] = rates["learning_rates"][0]
    numbers = {f: np.float32(min(max(x, -3e38), 3e38)) for f, x in rates.items()}
    forms = tuple((f, x.shape, str(x.dtype)) for f, x in sorted(batch.items()))
    fixed = dataclasses.replace(fixed, seed=0, seeds=1)
    program = _program(name, _frozen(fixed), forms)
    loss = float(program(numbers, jax.random.clone(key), batch))
    if math.isfinite(loss):
        return loss
    import nnkit as nk  # what the user would see

    state = nk.init(step, key, batch)
    nk.fit(step, state, train, steps=3, progress=False)
    return loss


def _frozen(config):
    """A configuration that can be hashed: a list is as good as a tuple in a field."""
    lists = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return dataclasses.replace(
        config, **{n: tuple(x) for n, x in lists.items() if isinstance(x, list)}
    )


@functools.lru_cache(maxsize=256)
def _program(name: str, config, forms: tuple):
    """(rates, key, batch) -> the loss of the third update, compiled once for all rates."""
    import jax

    module = _experiment(name)

    def run(numbers, key, batch):
        given = {f: (x,) if f == "learning_rates" else x for f, x in numbers.items()}
        step = module.single(dataclasses.replace(config, **given), None)[1]

        def one(state, _):
            state, metrics = step.update(state, batch)
            return state, metrics["loss"].value

        return jax.lax.scan(one, step.init(key, batch), None, length=3)[1][-1]

    return jax.jit(run)


def _marks(text: str, changed: dict) -> Score:
    """The score for the change that the message is about: the one it says most of."""
    best = Score(False, False, False, False)
    for field, value in changed.items():
        names = {field, "--" + field.replace("_", "-"), "--no-" + field.replace("_", "-")}
        for name in sorted(names):
            for said in sorted(_spellings(value)):
                marks = score(text, name, said)
                best = max(best, marks, key=lambda m: m.total)
    return best


def _spellings(value) -> set[str]:
    """How a value may stand in a message: as Python, as typed, an element of it, as a float."""
    found = {repr(value), str(value) or "''", f"'{value}'"}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        found |= {str(float(value)), f"{value:,}"}
    if isinstance(value, bool):
        found |= {str(int(value)), "Unrecognized"}
    if isinstance(value, tuple | list):
        for one in value:
            found |= _spellings(one)
        found |= {"[]", "argument"} if not value else set()
    return {text for text in found if text.strip()}
