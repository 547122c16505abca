"""ETTh1: the loader by the forecast that repeats, the floor by the ridge, and a short run."""

import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.train import load


@pytest.fixture(scope="module")
def etth1():
    return load("etth1")


@pytest.mark.parametrize(("horizon", "mse", "mae"), [(96, 1.2944, 0.7132), (192, 1.3249, 0.7331)])
def test_repeat_over_all_windows_is_the_known_number(etth1, data_dir, horizon, mse, mae):
    config = etth1.Config(model="repeat", horizon=horizon)
    _, _, test = etth1.parts(config)
    assert test.examples == 2880 - horizon + 1
    row = etth1.fixed(config)[1]
    assert (round(row["loss"], 4), round(row["mae"], 4)) == (mse, mae)


def test_parts_are_those_of_the_reference(etth1, data_dir):
    config = etth1.Config()
    train, validation, test = etth1.parts(config)
    assert (train.examples, validation.examples, test.examples) == (8192, 2785, 2785)
    assert not train.masked
    np.testing.assert_allclose(train.source.values.std(0), 1, atol=0.01)  # 17 rows are left out
    # the look-back of the first window of a part is the end of the part before
    np.testing.assert_array_equal(validation.source.values[:336], train.source.values[-336:])
    np.testing.assert_array_equal(test.source.values[:336], validation.source.values[-336:])
    assert len(test.source.values) == 2880 + 336


def test_the_ridge_is_the_floor(etth1, data_dir):
    row = etth1.fixed(etth1.Config(model="ridge"))[1]
    assert row["loss"] <= 0.370
    assert row["mae"] <= 0.392
    assert row["penalty"] == 1000.0


def test_rates_fall_as_published(etth1, data_dir):
    recipe = etth1.RECIPES["patchtst"]
    rate = etth1.schedule(recipe, steps=64)
    found = [float(rate(64 * epoch)) / recipe.learning_rate for epoch in range(7)]
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0.9, 0.81, 0.729], rtol=1e-5)
    assert float(rate(64 * 4 - 1)) == pytest.approx(1e-4)
    rate = etth1.schedule(etth1.RECIPES["dlinear"], steps=256)
    found = [float(rate(256 * epoch)) / 5e-3 for epoch in range(5)]
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.25, 0.125], rtol=1e-5)


def test_of_each_seed_the_best_epoch_on_validation_counts(etth1):
    def row(split, loss):
        return {"split": split, "loss": np.array(loss), "mae": np.array(loss) / 2}

    rows = [
        {"step": 1, "loss": np.array([9.0, 9.0])},
        row("validation", [3.0, 1.0]), row("test", [0.7, 0.5]),
        row("validation", [2.0, 4.0]), row("test", [0.8, 0.1]),
    ]  # fmt: skip
    (found,) = etth1.results(etth1.Config(model="dlinear", seeds=2), rows, 64_704)
    assert found["best epochs"] == [2, 1]
    assert found["test MSEs"] == [0.8, 0.5]
    assert found["test MAEs"] == [0.4, 0.25]
    assert found["published"] == ".375 / .399"


def test_a_short_run_is_written_and_read(etth1, data_dir, tmp_path, monkeypatch):
    real = etth1.parts

    def few(config, batch_size=128):
        train, *later = real(config, batch_size)
        cut = lambda b, rows: nk.data.windows(
            b.source.values[:rows], length=336, horizon=96, batch_size=32, shuffle=False
        )
        return cut(train, 336 + 95 + 64), *[cut(b, 336 + 95 + 40) for b in later]

    monkeypatch.setattr(etth1, "parts", few)
    config = etth1.Config(model="dlinear", seeds=2, epochs=2)
    (row,) = etth1.main(config, tmp_path / "run")
    assert row["parameters"] == 64_704
    assert row["epochs"] == 2
    assert "±" in row["test MSE"]
    assert len(row["test MSEs"]) == 2
    again = etth1.main(config, tmp_path / "run")  # finished: the same table from its log
    assert again == [row]
    (row,) = etth1.main(etth1.Config(model="seasonal"), tmp_path / "seasonal")
    assert row["seeds"] == 1


def test_wrong_settings_are_said(etth1):
    with pytest.raises(ValueError, match="horizon is 0, expected a finite number > 0"):
        etth1.Config(horizon=0)
    with pytest.raises(ValueError, match="epochs is 0"):
        etth1.Config(epochs=0)
