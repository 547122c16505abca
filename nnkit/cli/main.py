"""The command `nnkit`: verbs on experiments and runs. Nothing heavy is imported for --help."""

from __future__ import annotations

import difflib
import importlib
import sys

__all__ = ["main"]

VERBS = {
    "demo": "train 20 runs on real handwritten digits as one program; no download",
    "train": "train EXPERIMENT [--field value]; the same command again resumes",
    "eval": "evaluate the saved weights of RUN, a run folder",
    "sweep": "sweep EXPERIMENT --grid FIELD=VALUE,VALUE --seeds 5: a table, and who wins",
    "generate": "write text with the language model of RUN: --prompt TEXT",
    "export": "write the model of RUN into OUT, for transformers or as StableHLO",
    "plan": "say what EXPERIMENT takes on chips one does not have: --topology v5e:4x4",
    "ls": "list the runs of a folder",
    "verify": "check a run, a checkpoint or a weights file against the digests in it",
    "doctor": "say which versions and devices this machine has, and what is wrong",
}


def usage() -> str:
    """What `nnkit --help` prints.

    >>> print(usage().splitlines()[0])
    nnkit: deep learning as pure functions
    """
    lines = ["nnkit: deep learning as pure functions", "", "usage: nnkit VERB ...", ""]
    lines += [f"  {verb:8} {text}" for verb, text in VERBS.items()]
    lines += ["", "nnkit VERB --help says more. Environment: NNKIT_DATA_DIR (data sets in TFDS"]
    lines += ["format), NNKIT_RUNS (where runs go), NNKIT_CACHE (compiled programs; 0 is off)."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    Args:
      arguments: words after the command; None takes those of the process.

    Returns:
      0 if all went well, 1 if the verb found a fault, 2 if the words were wrong, 130 if it was
      interrupted. SIGTERM while training saves, and ends the process with 143.

    >>> main(["trian"])
    nnkit has no verb 'trian'; perhaps you meant 'train': see nnkit --help
    2
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    verb, *rest = words
    if verb in ("-V", "--version"):
        from nnkit import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"perhaps you meant {near[0]!r}" if near else f"expected {', '.join(VERBS)}"
        print(f"nnkit has no verb {verb!r}; {hint}: see nnkit --help")
        return 2
    place = {
        "demo": "train",
        "train": "train",
        "generate": "generate",
        "export": "export",
        "plan": "plan",
        "sweep": "sweep",
        "verify": "verify",
    }
    place = place.get(verb, "inspect")
    try:
        module = importlib.import_module(f"nnkit.cli.{place}")
        return getattr(module, {"eval": "evaluate", "ls": "list_runs"}.get(verb, verb))(rest) or 0
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
