"""Every bad input that is a test, scored: 80 mistakes, 80 messages, and nothing compiled before.

The cases are the tables of the tests of wrong input. `SPEC` says which of them stand for which
line of the list of bad inputs: 82 lines, each with one case or more, or with a test that is not
about a message (what is only worth a warning, or what is right in nnkit).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from reliability import progress
from reliability.answers import ANSWERS
from reliability.messages import Heard, heard, said, score

__all__ = ["SPEC", "cases", "scored"]

WRONG = "tests/test_wrong_settings.py::"
RUNS = "tests/test_wrong_runs.py::"
FAULTS = "tests/checkpoint/test_checkpoint_faults.py::"
NEWER = FAULTS + "test_manifests_with_their_own_digest_are_checked_too"
LOCKED = "tests/reliability/test_locks.py::test_a_second_process_is_refused_and_told_who_has_it"
SPEC: dict[str, dict[str, list[str]]] = {
    "config": {
        "unknown key": ["commands/field", "commands/field of demo"],
        "nested unknown": ["config/nested field"],
        "wrong type": ["config/steps 1.5", "config/steps True", "config/widths 8"],
        "string number": ["config/steps text", "config/dropout text", "numbers/rate text"],
        "rate <= 0 or NaN": ["numbers/rate 0", "numbers/rate -1", "numbers/rate NaN"],
        "epochs 0": ["config/epochs 0", "numbers/run steps 0"],
        "batch 0": ["config/batch 0", "arrays/batch 0"],
        "dropout 1": ["models/dropout 1"],
        "momentum > 1": ["optimizers/momentum 1.5"],
        "clip <= 0": ["nouns/clipped to 0"],
        "warm-up > total": ["optimizers/warmup above steps"],
        "decay 0": ["optimizers/layerwise decay 0", "optimizers/decay above steps"],
        "conflict": ["config/rate beside tx", "arrays/y twice"],
        "duplicate key": ["config/name twice in JSON", "config/value twice in a grid"],
        "NaN literal": ["commands/rate NaN", "config/decay NaN"],
        "seed": ["arrays/seed 0.5", "arrays/seed -1", "arrays/seed large", "numbers/seed -1"],
    },
    "data": {
        "empty": ["arrays/empty", "input/no batch, fit"],
        "smaller than batch": ["arrays/batch too large"],
        "not divisible by devices": ["nouns/shard of 60 over 8"],
        "missing or extra key": ["input/only the label missing", "later/another field"],
        "object dtype": ["arrays/objects", "arrays/None"],
        "strings": ["arrays/strings", "input/text"],
        "float labels": ["input/float labels"],
        "labels (N,1)": ["arrays/labels (N,1)", "input/labels (n, 1), init"],
        "one-hot for ints": ["input/one-hot of integers"],
        "label = n": ["input/label = classes", "later/label = classes, after init"],
        "label < 0": ["input/label -1", "later/label -1, after init"],
        "255 undeclared": ["later/label 255", "later/label 255, after init"],
        "all equal": [WRONG + "test_all_labels_equal_is_worth_a_look"],
        "NaN or inf": ["arrays/NaN", "input/inf"],
        "uint8 unscaled": ["arrays/uint8", "input/images unscaled, init"],
        "NCHW": ["training/channels first"],
        "no batch axis": ["training/no batch axis", "arrays/scalar"],
        "ragged": ["arrays/ragged"],
        "lengths of x, y": ["arrays/lengths", "input/ragged batch"],
        "int64 beyond int32": ["arrays/int64", "arrays/uint64"],
        "float64": ["tests/data/test_data_inputs.py::test_dtypes_on_the_way_in"],
        "iterator for re-iterable": ["arrays/generator"],
        "ends early": ["numbers/data end early"],
        "ids outside the table": ["training/ids above the table"],
    },
    "model, loss": {
        "outputs != classes": ["input/one-hot of wrong width", "input/label = classes, later"],
        "loss on probabilities": ["training/probabilities", "training/probability"],
        "BCE target outside [0,1]": ["training/target of 2"],
        "(N,1) against (N,)": ["training/outputs (n, 1)"],
        "non-finite initial loss": [
            "tests/test_wrong_input.py::test_check_stops_at_a_first_loss_that_is_not_finite"
        ],
        "nothing trainable": ["nouns/frozen altogether"],
        "unused parameter": [
            "tests/test_wrong_input.py::test_no_gradient_reaches_a_tensor_is_told"
        ],
        "BatchNorm with batch 1": ["training/batch statistics of one"],
        "key missing": ["training/no key", "nouns/raw key"],
        "train flag missing": ["training/no train flag"],
        "integer parameters": ["nouns/integer params"],
        "loss not scalar": ["training/loss of two axes", "nouns/reduced loss"],
        "zero gradient": [WRONG + "test_a_gradient_of_0_is_worth_a_look"],
        "bf16 into a sum": [WRONG + "test_a_sum_of_bfloat16_is_exact"],
    },
    "optimizer": {
        "string rate": ["numbers/rate text"],
        "negative rate": ["numbers/rate -1"],
        "state of other shapes": ["optimizers/state of other sizes"],
        "state of another optimizer": ["optimizers/state of another optimizer"],
        "mask matches nothing": ["optimizers/pattern that matches nothing"],
        "schedule shorter than run": ["optimizers/schedule shorter than the run"],
        "decay on norms": [WRONG + "test_decay_of_norms_is_a_choice"],
        "update changes dtype or tree": [
            "optimizers/update that changes a dtype",
            "optimizers/update that changes the tree",
        ],
    },
    "run, files": {
        "directory is a file": ["runs/folder is a file"],
        "read-only": ["runs/folder that cannot be made"],
        "no parent": [RUNS + "test_parents_are_made"],
        "no space": ["tests/reliability/test_faults.py::test_a_full_disk_is_told_in_numbers"],
        "name with .., /, NUL, 300 chars": ["runs/name with NUL", "runs/name of 300 characters"],
        "other config": ["runs/other configuration"],
        "other model": ["runs/other model"],
        "newer format": [NEWER],
        "locked": [LOCKED],
        "ephemeral disk": [RUNS + "test_a_disk_that_does_not_last_is_told_with_a_remedy"],
        "clock in the past": [
            RUNS + "test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says"
        ],
        "step that is not there": ["runs/step that is not there", "runs/no checkpoint"],
    },
    "devices": {
        "too many": [
            "nouns/mesh of more devices than there are",
            "machine/more devices than there are",
        ],
        "mesh does not multiply": ["devices/mesh of other sizes"],
        "unknown axis": ["nouns/shard over an axis that is not"],
        "does not divide": ["nouns/shard of 60 over 8"],
        "CPU fallback": ["machine/TPU asked, CPU found", "machine/unknown platform"],
        "x64 mismatch": ["runs/wider numbers"],
        "two JAX versions": [
            "tests/parallel/test_hosts.py::test_who_differs_in_what_is_named_everywhere"
        ],
        "out of memory": [WRONG + "test_out_of_memory_names_the_batch_and_a_smaller_one"],
    },
}


def cases() -> dict[str, Callable[[], Heard]]:
    """{table/name: a function that makes the mistake and listens}, in the order of the tables."""
    from nnkit.data import arrays
    from tests import (
        test_wrong_input,
        test_wrong_nouns,
        test_wrong_numbers,
        test_wrong_runs,
        test_wrong_settings,
    )
    from tests.data import test_data_inputs
    from tests.mistakes import descent, first, start, task
    from tests.models import test_models_wrong

    tables = {
        "input": test_wrong_input.DATA,
        "nouns": test_wrong_nouns.ALL,
        "numbers": test_wrong_numbers.NUMBERS,
        **test_wrong_settings.ALL,
        **test_wrong_runs.ALL,
    }
    found = {}
    for table, rows in tables.items():
        for name, row in rows.items():
            found[f"{table}/{name}"] = lambda make=row[0]: heard(make())
    for name, row in test_models_wrong.WRONG.items():
        found[f"models/{name}"] = lambda model=row[0]: heard(
            start(descent(task(model)), first(2, x=test_models_wrong.X))
        )
    for name, row in test_data_inputs.CASES.items():
        given = {"x": test_data_inputs.X, "batch_size": 2, **row[0]}
        found[f"arrays/{name}"] = lambda given=given: heard(lambda: arrays(**given))
    for name, row in test_wrong_numbers.COMMANDS.items():
        found[f"commands/{name}"] = lambda words=row[0]: said(words)
    return found


def scored(count: int, seed: int) -> dict:
    """Makes `count` mistakes in turn, all tables from the front, and scores what is said.

    Args:
      count: mistakes to make; more than there are begin again.
      seed: unused: the tables are fixed.

    Returns:
      {"count", "failures", "cases", "at least 3", "all 4", "less than 4", ...}: every message
      scores 3 of 4 or more, 95 % of them 4, and no program is compiled before.
    """
    known, failures, totals, less, programs, slowest = cases(), [], [], set(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        kept = os.environ.get("NNKIT_RUNS")
        os.environ["NNKIT_RUNS"] = folder
        try:
            for trial in range(count):
                name = list(known)[trial % len(known)]
                found = known[name]()
                marks = score(found.text, *ANSWERS[name])
                totals.append(marks.total)
                less |= {name} if marks.total < 4 else set()
                programs += found.programs
                slowest = max(slowest, found.seconds)
                if found.kind is None or marks.total < 3 or found.programs:
                    failures.append(f"seed={seed} trial={trial} {name}: {tuple(marks)} {found}")
                if trial % 50 == 49:
                    progress(f"  {trial + 1} mistakes")
        finally:
            os.environ.pop("NNKIT_RUNS")
            if kept is not None:
                os.environ["NNKIT_RUNS"] = kept
    four = sum(total == 4 for total in totals)
    if four < 0.95 * count:
        failures.append(f"{four} of {count} messages have all four parts, expected 95 %")
    return {
        "count": count,
        "failures": failures,
        "cases": len(known),
        "at least 3": sum(total >= 3 for total in totals),
        "all 4": four,
        "less than 4": ", ".join(sorted(less)),
        "programs": programs,
        "slowest (s)": round(slowest, 2),
    }
