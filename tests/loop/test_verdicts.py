"""Comparisons of settings on equal seeds, and their pictures and files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from nnkit import loop

RNG = np.random.default_rng(0)


def test_paired_is_the_paired_t_test():
    a, b = RNG.normal(0.5, 1, 7), RNG.normal(size=7)
    found, reference = loop.paired(a, b), stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert found.mean - found.half == pytest.approx(low, rel=1e-12)
    assert found.mean + found.half == pytest.approx(high, rel=1e-12)
    assert loop.paired([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 1.0)
    assert loop.paired([2.0, 3.0], [1.0, 2.0]) == (1.0, 0.0, 0.0)
    assert np.isnan(loop.paired([2.0], [1.0]).half)
    with pytest.raises(ValueError, match="2 values and 3"):
        loop.paired([1, 2], [1, 2, 3])


def test_a_winner_is_named_only_if_every_interval_leaves_0_out():
    seeds = RNG.normal(0, 0.1, 6)  # the same for all: what pairing takes away
    noise = lambda: RNG.normal(0, 0.005, 6)
    clear = {"a": 0.9 + seeds + noise(), "b": 0.8 + seeds + noise(), "c": 0.7 + seeds + noise()}
    found = loop.verdict(clear)
    assert found.winner == found.best == "a"
    assert found.said.startswith("a wins: a - b = +0.")
    assert "the closest of 2" in found.said
    assert stats.ttest_ind(clear["a"], clear["b"]).pvalue > 0.05  # without pairing it is lost
    turned = loop.verdict({k: -v for k, v in clear.items()}, mode="min")
    assert turned.winner == "a"
    assert turned.against["b"].mean == pytest.approx(-found.against["b"].mean)
    near = {"a": [0.5, 0.7, 0.6], "b": [0.6, 0.6, 0.55], "c": [0.1, 0.1, 0.1]}
    found = loop.verdict(near)
    assert found.best == "a"
    assert found.winner is None
    assert found.said.startswith("no winner can be named: a - b = ")
    assert found.said.endswith("holds 0")


def test_with_more_settings_the_intervals_are_wider():
    base = RNG.normal(size=5)
    values = {"a": base + np.array([0.1, 0.2, 0.15, 0.1, 0.2]), "b": base}
    two = loop.verdict(values).against["b"].half
    five = loop.verdict(values | dict.fromkeys("cde", base - 9)).against["b"].half
    d = values["a"] - base
    for half, comparisons in ((two, 1), (five, 4)):
        t = stats.t.ppf(1 - 0.05 / comparisons / 2, 4)
        assert half == pytest.approx(t * d.std(ddof=1) / np.sqrt(5), rel=1e-9)


def test_what_cannot_be_compared_is_said():
    said = lambda values, **knobs: loop.verdict(values, **knobs).said
    assert "one seed" in said({"a": [1.0], "b": [2.0]})
    assert "nothing to compare" in said({"a": [1.0, 2.0]})
    assert "every setting diverged" in said({"a": [np.nan], "b": [np.inf]})
    assert said({"a": [1.0, 2.0], "b": [9.0, np.nan]}) == "a wins: every other setting diverged"
    with pytest.raises(ValueError, match="seeds per setting"):
        loop.verdict({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(ValueError, match="mode='best'"):
        loop.verdict({"a": [1.0]}, mode="best")


def test_curves_have_the_mean_and_the_band_of_the_seeds(tmp_path):
    values = np.array([[1.0, 1.2, 1.4], [0.5, np.nan, 0.7], [np.nan] * 3])
    figure = loop.curves({"a": ([1, 2, 3], values), "b": ([1], [[2.0, 2.0, 2.0]])}, metric="loss")
    axes = figure.axes[0]
    steps, means = axes.lines[0].get_data()
    assert steps.tolist() == [1, 2]
    np.testing.assert_allclose(means, [1.2, 0.6])
    band = axes.collections[0].get_paths()[0].vertices
    half = stats.t.ppf(0.975, 2) * np.std([1.0, 1.2, 1.4], ddof=1) / np.sqrt(3)
    assert band[band[:, 0] == 1, 1].max() == pytest.approx(1.2 + half)
    assert band[band[:, 0] == 1, 1].min() == pytest.approx(1.2 - half)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no setting"):
        loop.curves({})
    with pytest.raises(ValueError, match="'a' has"):
        loop.curves({"a": ([1, 2], np.ones((3, 2)))})


def test_csv_is_read_back(tmp_path):
    rows = [{"rate": "0.1", "value": 0.5}, {"rate": "a,b", "value": 1.5}]
    loop.write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open() as file:
        assert [dict(r, value=float(r["value"])) for r in csv.DictReader(file)] == rows
    with pytest.raises(ValueError, match="no row"):
        loop.write_csv(tmp_path / "b.csv", [])
