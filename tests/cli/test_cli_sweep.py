"""`nnkit sweep` on runs that take a second."""

import csv
import json

import jax
import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.main import main
from nnkit.cli.settings import field, label, replaced, settings
from nnkit.cli.train import load

TINY = "--steps 12 --batch-size 64 --widths 8 --dropout 0.1".split()


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of a finished sweep of digits, and what was printed."""
    root = tmp_path_factory.mktemp("sweeps")
    words = ["sweep", "digits", "--grid", "learning_rates=1e-5,3e-2", "--seeds", "3", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNKIT_RUNS", str(root))
        assert main(words) == 0
    (folder,) = root.iterdir()
    return folder, words


def test_a_sweep_leaves_a_table_a_verdict_curves_and_every_number(digits):
    folder, _ = digits
    found = json.loads((folder / "sweep.json").read_text())
    assert (found["split"], found["metric"], found["mode"]) == ("validation", "accuracy", "max")
    assert [row["learning_rates"] for row in found["table"]] == ["1e-05", "0.03"]
    assert all(len(row["values"]) == 3 for row in found["table"])
    assert found["table"][1][""] == "<- best mean"
    assert "learning_rates=0.03 - learning_rates=1e-05 = +" in found["said"]
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["step"]) for row in rows)
    assert last == 12
    values = [
        float(row["value"])
        for row in rows
        if row["split"] == "validation" and row["metric"] == "accuracy"
        if int(row["step"]) == last and row["learning_rates"] == "0.03"
    ]
    np.testing.assert_allclose(values, found["table"][1]["values"])
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_a_member_of_the_sweep_is_the_run_of_its_setting_by_itself(digits):
    folder, _ = digits
    module = load("digits")
    config = module.Config(
        steps=12, batch_size=64, widths=(8,), dropout=0.1, learning_rates=(3e-2,)
    )
    train, held = module.batches(config)
    task, step, steps = module.single(config, train)
    step = nk.seeded(step, 2)
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    state, _ = nk.fit(step, state, train, steps=steps, progress=False)
    alone = nk.evaluate(task, held["validation"])(*step.weights(state))["accuracy"]
    table = json.loads((folder / "sweep.json").read_text())["table"]
    assert abs(table[1]["values"][2] - alone) < 0.02  # vmap rounds differently


def test_the_same_command_trains_nothing_again_and_other_settings_have_another_folder(
    digits, capsys, monkeypatch
):
    folder, words = digits
    monkeypatch.setenv("NNKIT_RUNS", str(folder.parent))
    before = (folder / "all" / "metrics.jsonl").read_text()
    assert main(words) == 0
    text = said(capsys)
    assert "2 settings x 3 seeds = 6 runs" in text
    assert "one program: 2 settings x 3 seeds" in text
    assert "learning_rates=0.03 - learning_rates=1e-05 = +" in text
    assert (folder / "all" / "metrics.jsonl").read_text() == before
    assert len(list(folder.parent.iterdir())) == 1


def test_words_and_shapes_are_programs_of_their_own_and_numbers_share_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("NNKIT_RUNS", str(tmp_path))
    grid = ["model=logistic,mlp", "learning_rate=1e-3,1e-2,1e9"]
    words = ["sweep", "mnist1d", "--grid", *grid, "--seeds", "2", "--split", "validation"]
    assert main([*words, "--steps", "4", "--metric", "validation/loss"]) == 0
    text = said(capsys)
    assert "6 settings x 2 seeds = 12 runs" in text
    for name in ("logistic", "mlp"):
        assert f"one program: 3 settings x 2 seeds (model={name})" in text
    (folder,) = tmp_path.iterdir()
    table = json.loads((folder / "sweep.json").read_text())["table"]
    assert [(row["model"], row["learning_rate"]) for row in table] == [
        (m, r) for m in ("logistic", "mlp") for r in ("0.001", "0.01", "1e+09")
    ]
    for name in ("model=logistic", "model=mlp"):
        assert (folder / name / "STATUS").read_text().strip() == "done"


def test_a_number_that_decides_what_the_program_is_gets_programs_of_its_own(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    words = ["sweep", "mine.py", "--grid", "optimizer.rate=0.1,0.2", "power=0,2", "--seeds", "2"]
    assert main(words) == 0
    text = said(capsys)
    assert "power decides what the program is, so each value has its own" in text
    assert "one program: 2 settings x 2 seeds (power=0)" in text
    assert "validation" not in text
    (folder,) = (tmp_path / "runs").iterdir()
    table = json.loads((folder / "sweep.json").read_text())["table"]
    for row in table:
        rate, power = float(row["optimizer.rate"]), float(row["power"])
        want = np.float32((1 - 2 * rate) ** 4) ** 2 * (1 if power == 0 else 2)
        np.testing.assert_allclose(row["values"], want, rtol=1e-4)
    assert table[2]["values"] == pytest.approx(table[2]["values"][:1] * 2)


def test_runs_that_diverge_are_counted_and_do_not_win(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    words = ["sweep", "mine.py", "--seeds", "2", "--grid"]
    assert main([*words, "optimizer.rate=0.1,1e30"]) == 0
    text = said(capsys)
    assert "2 of 4 diverged: optimizer.rate=1e+30 (2 of 2)" in text
    assert "optimizer.rate=0.1 wins: every other setting diverged" in text
    assert main([*words, "optimizer.rate=1e29,1e30"]) == 1
    assert "every" in said(capsys)


def test_an_experiment_without_single_runs_its_main_for_each_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    text = EXPERIMENT.replace("def single", "def one_run").replace("single(", "one_run(")
    (tmp_path / "older.py").write_text(text)
    words = ["sweep", "older.py", "--seeds", "2", "--grid", "optimizer.rate=0.1,0.2"]
    assert main(words) == 0
    assert "a run of its own for each setting" in said(capsys)
    (folder,) = (tmp_path / "runs").iterdir()
    table = json.loads((folder / "sweep.json").read_text())["table"]
    for row, rate in zip(table, (0.1, 0.2)):
        np.testing.assert_allclose(row["values"], (1 - 2 * rate) ** 8, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("digits", "give at least one --grid"),
        ("digits --grid learning_rate=1e-3", "perhaps you meant 'learning_rates'"),
        ("digits --grid learning_rates=1e-3,fast", "'fast', expected a finite number"),
        ("digits --grid learning_rates=1e-3,-1", "learning_rates is -1.0"),
        ("digits --grid steps=1.5", "'1.5', expected an integer"),
        ("digits --grid steps", "expected FIELD=VALUE,VALUE"),
        ("digits --grid steps=1,,2", "expected FIELD=VALUE,VALUE"),
        ("digits --grid steps=1,1", "1 is given twice"),
        ("digits --grid steps=1 steps=2", "given twice"),
        ("digits --grid seeds=1,2", "give --seeds N"),
        ("digits --grid seed=1,2", "base of everything random"),
        ("digits --grid steps=1 --seeds 0", "--seeds 0"),
        ("digits --grid steps=1 --metric brier", "['accuracy', 'loss']"),
        ("digits --grid steps=1 --metric test/los", "the nearest is test/loss"),
        ("digits --grid steps=1 --metric test/los --mode max", "the nearest is test/loss"),
        ("digits --grid steps=1 --metric los --mode max", "the nearest is validation/loss"),
        ("digits --grid learning_rates=1e-3,1e-2 --learning-rates 1e-4", "both decide learning_r"),
        ("digits --grid batch-size=8,9 --batch_size=7", "both decide batch_size"),
        ("mnist1d --grid decay=true,false --no-decay", "--no-decay and --grid decay=... both"),
        ("digits --grid steps=1 --metric brier --mode min", "['accuracy', 'loss']"),
        ("digits --grid steps=1 --metric train/loss", "['test', 'validation']"),
        ("digits --grid steps=1 --folder pyproject.toml", "is a file"),
        ("mnist1d --grid model=cnn,resnet", "one of logistic, mlp, cnn, gru"),
        ("mnist1d --grid decay=yes", "expected true or false"),
        ("mnist1d --grid model.width=1", "model has no field 'width'"),
        ("digist --grid steps=1", "'digits'"),
    ],
)
def test_wrong_words_are_said(words, hint, capsys, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    assert main(["sweep", *words.split()]) == 2
    assert hint in said(capsys)


def test_what_the_experiment_refuses_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    refuses = 'def single(config, train):\n    raise ValueError("too few epochs")\n'
    text = EXPERIMENT.replace(
        "def single(config, train):\n", refuses + "\n\ndef other(config, train):\n"
    )
    assert text != EXPERIMENT
    (tmp_path / "mine.py").write_text(text)
    assert main(["sweep", "mine.py", "--grid", "optimizer.rate=0.1,0.2"]) == 2
    assert "too few epochs" in said(capsys)


def test_what_is_good_of_an_unusual_metric_has_to_be_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    text = EXPERIMENT.partition("def single")[0].replace('{"x": jnp.ones(4)}', PICTURES)
    (tmp_path / "mine.py").write_text(text + UNUSUAL)
    words = ["sweep", "mine.py", "--grid", "optimizer.rate=0.1,0.2", "--metric", "brier"]
    assert main(words) == 2
    assert "--metric brier: say what is good: --mode max or --mode min" in said(capsys)
    old = EXPERIMENT.replace("def single", "def one_run").replace("single(", "one_run(")
    (tmp_path / "mine.py").write_text(old)
    assert main(words) == 2
    assert "say what is good" in said(capsys)


def test_the_memory_that_is_given_is_kept_to(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNKIT_RUNS", raising=False)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    words = ["sweep", "mine.py", "--grid", "optimizer.rate=0.1,0.2", "--seeds", "2"]
    assert main([*words, "--memory", "1e9"]) == 0
    assert "4 members, 4 at a time" in said(capsys)
    assert main([*words, "--memory", "10", "--fresh"]) == 2
    assert "fewer values in one --grid" in said(capsys)


def test_settings_are_every_combination_by_type():
    module = load("mnist1d")
    config = module.Config()
    words = ["model=cnn,gru", "decay=true", "weight_decay=0,1e-3"]
    fields = [field(config, word) for word in words]
    assert [one.traced for one in fields] == [False, False, True]
    found = settings(config, fields)
    assert found == [
        {"model": m, "decay": True, "weight_decay": w} for m in ("cnn", "gru") for w in (0.0, 1e-3)
    ]
    assert label(found[-1]) == "model=gru decay=True weight_decay=0.001"
    assert replaced(config, found[-1]).model == "gru"


EXPERIMENT = '''
"""A weight goes to 0 by gradient descent: its loss is known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import nnkit as nk


@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    optimizer: Optimizer = Optimizer()
    power: float = 0.0
    seeds: int = 1
    seed: int = 0


def batches(config):
    return [{"x": jnp.ones(4)}], {"test": [{"x": jnp.ones(4)}]}


def single(config, train):
    scale = 2.0 if config.power > 0 else 1.0  # a number that no tracer can stand for
    start = lambda key, batch: jnp.float32(1)
    task = nk.objective(start, lambda w, batch, key: scale * (w * batch["x"]) ** 2)
    slope = nk.gradient(nk.objective(start, lambda w, batch, key: (w * batch["x"]) ** 2))
    return task, nk.step(slope, optax.sgd(config.optimizer.rate)), 4


def main(config, folder=None):
    train, held = batches(config)
    task, step, steps = single(config, train)
    step = nk.ensemble(step, config.seeds)
    hook = nk.evaluate(nk.stacked(task), held["test"])
    state = nk.init(step, jax.random.key(config.seed), train[0])
    with nk.Run(folder, config) as run:
        nk.fit(step, state, train, steps=steps, every={steps: hook}, run=run)
'''

PICTURES = '{"x": jnp.ones((4, 3)), "y": jnp.ones(4, jnp.int32)}'
UNUSUAL = """
def single(config, train):
    losses, metrics = nk.losses, nk.metrics
    task = nk.supervised(nk.models.MLP((2,)), losses.cross_entropy, brier=metrics.brier)
    return task, nk.step(nk.gradient(task), optax.sgd(config.optimizer.rate)), 4


def main(config, folder=None):
    raise AssertionError("single is there")
"""
