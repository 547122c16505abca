"""The folder of a run, and tables of results."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import nnkit as nk
from nnkit.loop import interval, percent, print_table

TASK = nk.objective(lambda key, b: jnp.float32(0), lambda w, b, key: (w - b["x"]) ** 2)
STEP = nk.ensemble(nk.step(nk.gradient(TASK), optax.sgd(0.1)), 2)
BATCH = {"x": np.float32([1, 1, 3])}


def go(folder, steps=5, config=None, **options):
    state = nk.init(STEP, jax.random.key(0), BATCH)
    hook = nk.evaluate(nk.stacked(TASK), [BATCH])
    with nk.Run(folder, config or {"rate": 0.1, "widths": (3, 4)}, **options) as run:
        return run, *nk.fit(
            STEP, state, [BATCH], steps=steps, every={5: hook}, run=run, progress=False
        )


def plain(rows):
    return [{k: np.asarray(v).tolist() for k, v in row.items()} for row in rows]


def test_metrics_jsonl_are_the_rows(tmp_path):
    run, _, rows = go(tmp_path / "a")
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == plain(rows)
    assert plain(run.rows()) == plain(rows)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5]
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(rows))
    assert rows[-1]["split"] == "test"
    assert rows[-1]["loss"].shape == (2,)


def test_config_and_environment(tmp_path):
    run, *_ = go(tmp_path / "a", experiment="line", keep_best=("loss", "min"))
    record = json.loads((tmp_path / "a" / "config.json").read_text())
    assert record["config"] == {"rate": 0.1, "widths": [3, 4]}
    assert record["experiment"] == "line"
    assert record["keep_best"] == ["loss", "min"]
    assert record["hash"] == run.hash
    assert len(run.hash) == 64
    go(tmp_path / "a", experiment="line", keep_best=("loss", "min"))
    sessions = json.loads((tmp_path / "a" / "env.json").read_text())
    assert len(sessions) == 2
    assert sessions[0]["versions"]["jax"] == jax.__version__
    assert sessions[0]["nnkit"] == nk.__version__
    assert len(sessions[0]["devices"]) == 8
    assert {"time", "command", "commit", "diff", "python", "platform", "cores"} <= set(sessions[0])


def test_the_same_configuration_in_another_order_is_the_same(tmp_path):
    go(tmp_path / "a", config={"a": 1, "b": 2})
    go(tmp_path / "a", config={"b": 2, "a": 1})


def test_the_last_line_may_be_half_written(tmp_path):
    _, state, rows = go(tmp_path / "a")
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    run, again, rows_again = go(tmp_path / "a")
    assert plain(rows_again) == plain(rows)
    assert plain(run.rows()) == plain(rows)
    assert nk.digest(again) == nk.digest(state)


def test_rows_after_the_last_checkpoint_are_logged_again(tmp_path):
    go(tmp_path / "a")
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "time": 1.0, "loss": [0.0, 0.0]}\n')
    run, _, again = go(tmp_path / "a", steps=7)
    assert [row["step"] for row in again] == [1, 2, 3, 4, 5, 5, 6, 7, 7]
    assert again[6]["loss"][0] > 0
    assert plain(run.rows()) == plain(again)


def test_status(tmp_path):
    assert nk.Run(tmp_path / "a").status == "new"

    def break_down():
        with nk.Run(tmp_path / "a") as run:
            assert run.status == "new"
            raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        break_down()
    run = nk.Run(tmp_path / "a")
    assert run.status == "failed: KeyError: 'oops'"
    run, *_ = go(tmp_path / "b")
    assert run.status == "done"


def test_not_a_number_is_written_and_read(tmp_path):
    run = nk.Run(tmp_path / "a")
    run.log({"step": 1, "loss": math.nan, "each": np.array([np.inf, 1.0])})
    (row,) = run.rows()
    assert math.isnan(row["loss"])
    assert row["each"].tolist() == [math.inf, 1.0]


def test_best_is_judged_by_the_first_split_or_the_one_named(tmp_path):
    for name, want in (("accuracy", 1), ("validation/accuracy", 1), ("test/accuracy", 2)):
        run = nk.Run(tmp_path / name.replace("/", "-"), keep_best=(name, "max"), keep_last=1)
        rows = []
        for step, (validation, test) in enumerate([(0.9, 0.1), (0.2, 0.8), (0.3, 0.3)], start=1):
            rows.append({"step": step, "time": 0.0, "split": "validation", "accuracy": validation})
            rows.append({"step": step, "time": 0.0, "split": "test", "accuracy": test})
            run.save(step, {"w": jnp.float32(step)}, rows)
        run.checkpoints.wait()
        assert run.checkpoints.best() == want
        assert run.checkpoints.steps() == [want, 3]


def test_conclude_keeps_the_table(tmp_path, capsys):
    nk.Run(tmp_path / "a").conclude([{"name": "x", "value": 0.5}])
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == [
        {"name": "x", "value": 0.5}
    ]
    assert "0.5" in capsys.readouterr().out


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_interval_is_that_of_scipy(n, confidence):
    x = np.random.default_rng(n).normal(size=n)
    mean, half = interval(x, confidence)
    low, high = stats.t.interval(confidence, n - 1, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)


def test_interval_limits():
    assert interval([1.0, 1.0, 1.0]) == (1.0, 0.0)
    mean, half = interval([0.3])
    assert mean == 0.3
    assert math.isnan(half)


def test_percent_by_hand():
    # t for 2 degrees of freedom and 95 % is 4.3027; s = 1 point; 4.3027 / sqrt(3) = 2.484
    assert percent([0.97, 0.98, 0.99]) == "98.00 ± 2.48 %"
    assert percent([0.98125]) == "98.12 %"
    assert percent([1.0, 1.0]) == "100.00 ± 0.00 %"


def test_print_table(capsys):
    title = "a title that is much longer than the table below it"
    print_table([{"name": "one", "value": 1}, {"name": "[two]", "value": 0.123456789}], title)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]) == title
    assert ["name", "value"] in lines
    assert ["one", "1"] in lines
    assert ["[two]", "0.123457"] in lines
    print_table([])
