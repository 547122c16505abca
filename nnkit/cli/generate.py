"""`nnkit generate`: text from the language model of a run, or of a folder of weights."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys

from nnkit.cli.restored import NotRestored, language, of_transformers

__all__ = ["generate"]


def generate(words: list[str]) -> int:
    """nnkit generate RUN --prompt TEXT: the text goes to the terminal while it is written.

    RUN is a run folder whose experiment has `network(config)` and `tokenizer(config)`, or a folder
    in the format of Hugging Face (config.json, model.safetensors, tokenizer.json), such as
    `nnkit export` makes. What is no text, such as which checkpoint it is, goes to stderr.

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> generate(["no-such-run"])  # and, to stderr: no-such-run is no run folder: it has no config
    2
    """
    try:
        asked = _parser().parse_args(words)
    except SystemExit as ended:  # --help, or words that are wrong: said by argparse
        return int(ended.code or 0)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what is said while loading is no text
            model, params, tokenizer, said = opened(asked.run, asked.latest, asked.member)
        pieces, notes = _pieces(model, params, tokenizer, asked)
    except NotRestored as error:
        print(error, file=sys.stderr)
        return error.code
    except (ImportError, KeyError, TypeError, ValueError) as error:  # words that cannot be
        print(error.args[0] if error.args else error, file=sys.stderr)
        return 2
    print("\n".join([said, *notes]), file=sys.stderr, flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def opened(folder: str, latest: bool = False, member: int = 0) -> tuple:
    """The language model of a folder: (model, parameters, tokenizer, a sentence on it).

    Args:
      folder: of a run, or in the format of Hugging Face.
      latest: of a run: take the newest checkpoint, not the best.
      member: of a run: which one of its weights [n ...].

    Returns:
      (model, params, tokenizer, said).

    Raises:
      NotRestored: if it is neither, or lacks a tokenizer.

    >>> opened("no-such-run")
    Traceback (most recent call last):
        ...
    nnkit.cli.restored.NotRestored: no-such-run is no run folder: it has no config.json; `nnkit...
    """
    if not of_transformers(folder):
        return language(folder, latest, member)
    from nnkit.cli.train import cache_programs
    from nnkit.interop import huggingface

    cache_programs()
    found = huggingface.load(folder)
    if found.tokenizer is None:
        raise NotRestored(f"{folder} has no tokenizer.json: put the one of the model beside it")
    return found.model, found.params, found.tokenizer, f"{folder}, {type(found.model).__name__}"


def _prompt(asked, tokenizer) -> str:
    """What the text goes on from; numbers that cannot be are said in the words of the terminal."""
    if asked.temperature is not None and not asked.temperature > 0:
        raise ValueError(
            f"--temperature is {asked.temperature:g}, expected a number > 0; --greedy writes the "
            "likeliest token every time"
        )
    if asked.tokens < 1:
        raise ValueError(f"--tokens is {asked.tokens}, expected at least 1")
    prompt = asked.prompt
    if prompt is None:
        prompt = "" if tokenizer.start is not None else "\n"
        try:
            tokenizer.encode(prompt)
        except ValueError:
            raise ValueError(
                "give --prompt TEXT: the tokenizer has no line break to begin with"
            ) from None
    if not prompt and tokenizer.start is None:
        raise ValueError("--prompt is empty, expected a text to go on from")
    return prompt


def _pieces(model, params, tokenizer, asked):
    """(pieces of text, notes): the prompt is the first piece, if the text goes on from it."""
    import jax

    from nnkit import generate as writing
    from nnkit.core.keys import seed

    prompt = _prompt(asked, tokenizer)
    decoder, notes = writing.decoder(model), []
    draws = (asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    if asked.greedy and any(number is not None for number in draws):
        notes.append("--greedy: temperature, top-k, top-p and min-p are not used")
    foreign = of_transformers(asked.run)  # then the prompt is read as transformers reads it
    reads = len(tokenizer.encode(prompt, special=foreign)) + asked.tokens - 1
    if decoder.length is not None and reads > decoder.length:
        decoder = writing.sliding(model)
        notes.append(
            f"the model reads {model.length} tokens at a time: older ones are forgotten, and each "
            "token takes longer"
        )
    warps = [writing.temperature(0.8 if asked.temperature is None else asked.temperature)]
    warps += [writing.top_k(asked.top_k)] if asked.top_k is not None else []
    warps += [writing.top_p(asked.top_p)] if asked.top_p is not None else []
    warps += [writing.min_p(asked.min_p)] if asked.min_p is not None else []
    drawn = {"key": jax.random.key(seed(asked.seed)), "warp": writing.chain(*warps)}
    pieces = writing.stream(
        decoder,
        params,
        prompt,
        tokenizer,
        new_tokens=asked.tokens,
        special=foreign,
        **({} if asked.greedy else drawn),
    )
    return (itertools.chain([prompt], pieces) if decoder.continues else pieces), notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnkit generate", description="Text from the language model of RUN.", allow_abbrev=False
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, or one with config.json and model.safetensors")
    add("--prompt", help="what the text goes on from (default: its beginning, or a new line)")
    add("--tokens", type=int, default=200, help="the most tokens to write (default: 200)")
    add("--temperature", type=float, help="sharper below 1 (default: 0.8)")
    add("--top-k", type=int, help="only the K likeliest tokens", metavar="K")
    add("--top-p", type=float, help="only the likeliest tokens that reach P", metavar="P")
    add("--min-p", type=float, help="only tokens P times as likely as the best", metavar="P")
    add("--seed", type=int, default=0, help="another seed, another text (default: 0)")
    add("--member", type=int, default=0, help="of an ensemble or a sweep (default: 0)")
    add("--greedy", action="store_true", help="the likeliest token every time")
    add("--latest", action="store_true", help="the newest checkpoint, not the best")
    return parser
