"""The promises of the README about `nnkit demo`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from compiles import counted

import nnkit as nk
from nnkit.cli.train import load

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_trains_prints_a_table_and_leaves_a_run(tmp_path):
    code = "import sys; from nnkit.cli.main import main; sys.exit(main(['demo']))"
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NNKIT_RUNS": str(tmp_path), "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "\r" not in found.stdout
    (folder,) = tmp_path.iterdir()
    for name in ("config.json", "env.json", "metrics.jsonl", "results.json", "checkpoints"):
        assert (folder / name).exists()
    assert (folder / "STATUS").read_text() == "done\n"
    table = json.loads((folder / "results.json").read_text())
    assert len(table) == 4
    assert all(row["runs"] == 5 for row in table)
    assert all("±" in row["test accuracy"] for row in table)
    (best,) = [row for row in table if row["chosen"]]
    assert float(best["test accuracy"].split()[0]) >= 97
    assert best["test accuracy"] in found.stdout
    assert re.search(r"0\.0003 +5 ", found.stdout)


def test_twenty_runs_are_one_compilation_and_each_is_its_single_run():
    digits = load("digits")
    config = digits.Config(steps=100)
    step, train, _ = digits.build(config)
    state = nk.init(step, jax.random.key(config.seed), next(iter(train)))
    with counted() as compiled:
        state, rows = nk.fit(step, state, train, steps=config.steps, progress=False)
    assert compiled.count == 1

    alone = digits.Config(steps=100, learning_rates=(3e-3,), seeds=1, devices=1)
    single, train, _ = digits.build(alone)
    one = nk.init(single, jax.random.key(config.seed), next(iter(train)))
    one, log = nk.fit(single, one, train, steps=config.steps, progress=False)
    member = config.learning_rates.index(3e-3) * config.seeds
    for a, b in zip(rows, log):
        np.testing.assert_allclose(a["loss"][member], b["loss"][0], rtol=1e-6)
    mine = jax.tree.map(lambda x: x[member], step.weights(state)[0])
    only = jax.tree.map(lambda x: x[0], single.weights(one)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), mine, only)
