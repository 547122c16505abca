"""The table of promises is whole, points at tests that exist, and its page is what was seen."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from reliability import page
from reliability.__main__ import ran
from reliability.row import Row
from reliability.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_has_a_test_or_a_campaign():
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.run or row.tests, row.id
        assert row.promise and not row.promise.endswith("."), row.id
        assert bool(row.run) == bool(row.nightly or row.release), f"{row.id}: counts"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_its_tests_exist(row):
    for test in row.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).exists(), test
        assert not name or name.split("[")[0] in functions(ROOT / file), test


def test_the_page_is_written_from_the_results():
    written = (ROOT / "docs" / "reliability.md").read_text()
    assert written == page.page(ROWS, page.results()), "run `python -m reliability write`"


def test_a_broken_promise_is_shown_as_broken(tmp_path, monkeypatch):
    tests = tmp_path / "test_two.py"
    tests.write_text("def test_good(): pass\ndef test_bad(): assert 0\n")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr("reliability.__main__.SHOWN", 1)
    row = Row("CK-00", "two tests pass", tests=(str(tests),))
    assert not ran(row, "nightly", 0, 0.1)
    seen = json.loads((tmp_path / "CK-00.json").read_text())
    assert (seen["tests"], seen["failed"]) == (1, 1)
    text = page.page([row, Row("CK-99", "never run", tests=("x",))], {"CK-00": seen})
    assert "0 of 2 promises kept, 1 not kept, 1 not measured" in text
    assert "**1 failed**" in text and "- CK-00: " in text and "test_bad" in text
    assert "| CK-99 | never run | not measured |" in text


def test_a_campaign_of_too_few_trials_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    row = Row("CK-00", "no such campaign", run=print, nightly=3)
    assert not ran(row, "nightly", 0, 0.01)
    (failure,) = json.loads((tmp_path / "CK-00.json").read_text())["failures"]
    assert failure.startswith("ended with exit code 1")


def test_what_the_readme_promises_was_kept():
    text = (ROOT / "README.md").read_text().split("## A run you can trust")[1].split("\n## ")[0]
    told = [name.strip() for line in text.splitlines() if line.startswith("|")
            for name in line.split("|")[3].split(",")]  # fmt: skip
    names = [name for name in told if name in {row.id for row in ROWS}]
    assert len(names) == len(told) - 2 >= 15  # all but the head of the table
    seen = page.results()
    for name in names:
        assert name in seen, f"{name} is promised and was not measured"
        assert not seen[name]["failed"], f"{name} is promised and is broken"
