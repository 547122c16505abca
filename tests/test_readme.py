"""The programs and commands of the README run as written (with fewer steps)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax

import nnkit as nk
from nnkit.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def run(code: str, names: dict) -> dict:
    code = re.sub(r"steps=[\d_]+", "steps=6", code)
    code = re.sub(r"every=\{\d+:", "every={6:", code)
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_six_lines(capsys):
    names = run(blocks("python")[0], {})
    assert "ok  " in capsys.readouterr().out
    assert names["result"].rows[-1]["split"] == "test"


def test_the_programs(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # one of them writes a folder
    names: dict = {}
    one, sixteen, devices, inside, text, models = blocks("python")[1:]
    names = run(one, names)
    assert names["log"][-1]["split"] == "test"
    names = run(sixteen, names)
    assert names["log"][-1]["accuracy"].shape == (16,)
    lines = devices.splitlines()
    setup = "\n".join(line for line in lines if not line.startswith("step ="))
    names = run(setup, names)
    shards = [line for line in lines if line.startswith("step =")]
    assert len(shards) == 3
    batch = next(iter(names["train"]))
    losses = []
    for line in shards:
        step = run(line, names)["step"]
        state = nk.init(step, jax.random.key(0), batch)
        state, metrics = jax.jit(step.update, donate_argnums=0)(state, batch)
        losses.append(np.ravel(metrics["loss"].value)[0])
        devices_used = {d for x in jax.tree.leaves(state) for d in x.sharding.device_set}
        assert len(devices_used) == 8
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    names = run(inside, names)
    assert names["logits"].shape == (2, 64, 65)
    assert {"embedded", "block_0", "attention_0"} <= set(names["inside"])
    names = run(text, names)
    assert " loaded" in capsys.readouterr().out
    found = names["again"]
    assert found.model.vocabulary == len(names["letters"]) == len(found.tokenizer)
    for a, b in zip(*map(jax.tree.leaves, (found.params, names["params"])), strict=True):
        np.testing.assert_array_equal(a, b)
    names = run(models, names)
    assert names["log"][-1]["split"] == "test"


def test_every_python_block_is_run_above():
    assert len(blocks("python")) == 7


def test_commands_and_verbs_exist():
    shell = blocks("sh")
    assert len(shell) == 2
    assert "nnkit demo" in shell[0]
    assert shell[1].rstrip().endswith("pytest")
    for verb in re.findall(r"`nnkit (\w+)", README):
        assert verb in VERBS
    text = (ROOT / ".ci" / "run").read_text()
    assert "command: test" in text


def test_the_versions_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in ("jax>=0.7.2", "flax>=0.11.2", "optax>=0.2.8", "orbax-checkpoint>=0.12.4"):
        assert need in project["dependencies"]
        name, floor = need.split(">=")
        assert f"{name} ≥ {floor}" in README
    assert project["name"] == "nnkit-jax"
    assert not any("<" in need for need in project["dependencies"])
    for extra in "tpu cuda12 cuda13 text hub export track dev all tfds-prepare".split():
        assert extra in project["optional-dependencies"]
        assert f"`{extra}`" in README


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def indented(word: str) -> str:
    """The indented program of the README that has this word."""
    found = [b for b in re.findall(r"(?:^    .*\n)+", README, re.M) if word in b]
    assert len(found) == 1
    return "".join(line[4:] + "\n" for line in found[0].splitlines())


def test_regression_from_a_table_recorded_in_a_run(tmp_path, monkeypatch):
    from nnkit import data, losses, models

    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(200, 3)) * [1, 10, 100]
    rows = [",".join(map(str, [*row, row @ [1, 0.1, 0.01]])) for row in x]
    Path("houses.csv").write_text("\n".join(["a,b,c,price", *rows]) + "\n")
    names = {"nk": nk, "data": data, "losses": losses, "models": models, "config": {"a": 1}}
    run(indented('data.table("houses.csv"'), names)
    names["step"] = nk.step(nk.gradient(names["task"]), optax.adamw(1e-2))
    names["state"] = nk.init(names["step"], jax.random.key(0), next(iter(names["train"])))
    run(indented('nk.Run("runs/mine"').replace('("accuracy", "max")', '("loss", "min")'), names)
    assert names["best"].step == 6
    assert names["best"].metrics["loss"] > 0
