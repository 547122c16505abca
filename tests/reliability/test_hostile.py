"""Files, names and settings made to do harm."""

import json

import pytest

from nnkit.core.documents import document, parsed
from reliability import fuzz, hostile, names


def test_hostile_files_are_refused_in_a_second_and_100_megabytes():
    found = hostile.files(count=99, seed=0)
    assert not found["failures"], found
    assert found["count"] == len(hostile.CASES) >= 40
    assert found["seconds"] < 1
    assert found["megabytes"] < 100


def test_hostile_names_stay_inside_or_are_refused():
    found = names.hostile(count=1000, seed=0)
    assert not found["failures"], found
    assert found["inside"] > 200
    assert found["refused"] > 500


def test_faulty_inputs_are_our_errors():
    found = fuzz.inputs(count=2000, seed=0)
    assert not found["failures"], found
    assert 800 < found["refused"] < 2000
    assert found["seconds"] < 1


def test_a_document_is_bounded(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": [1, 2.5, None, "x"]}))
    assert document(path) == {"a": [1, 2.5, None, "x"]}
    path.write_text('"' + "x" * 2**20 + '"')
    with pytest.raises(ValueError, match=r"has 1,048,578 bytes, expected JSON of at most 1,048,5"):
        document(path)
    assert len(document(path, limit=2**21)) == 2**20
    path.write_text("[" * 33 + "]" * 33)
    with pytest.raises(ValueError, match="is damaged JSON: it has more than 32 levels"):
        document(path)
    assert parsed("[" * 32 + "]" * 32)
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(ValueError, match="the name 'c' comes twice; expected one JSON value: copy"):
        document(path)
    with pytest.raises(ValueError, match="is no plain file, expected one with JSON; remove it"):
        document(tmp_path)
