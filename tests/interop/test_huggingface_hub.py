"""Ids of the hub: what is asked for, and what is said if nothing answers. Nobody is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nnkit.interop import huggingface

HERE = Path(__file__).parents[1] / "references" / "huggingface"


def said(path, kind, **options):
    """The message of a load that fails."""
    with pytest.raises(kind) as caught:
        huggingface.load(path, **options)
    return str(caught.value)


def test_a_hub_id(monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(HERE / "gpt2")

    monkeypatch.setattr(hub, "snapshot_download", download)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "local_files_only": True}
    found = huggingface.load("someone/tiny", **options)
    assert asked.pop("name") == "someone/tiny"
    assert {key: asked[key] for key in options} == options
    there = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    never = ["pytorch_model.bin", "modeling.py", "consolidated.safetensors", "onnx/config.json"]
    filters = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(hub.utils.filter_repo_objects(there + never, **filters)) == there
    assert found.model.width == 16
    assert "someone/tiny: 28 tensors loaded" in capsys.readouterr().out


def test_a_hub_that_does_not_answer(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

    def fails(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(hub, "snapshot_download", download)

    fails(OSError("no route to host"))
    text = said("someone/tiny", ConnectionError)
    assert "was not found in the hub or in the cache (OSError: no route to host)" in text
    assert "download it where there is a network and give the folder" in text
    text = said("someone/tiny", ConnectionError, local_files_only=True)
    assert "was not found in the cache" in text

    class RepositoryNotFoundError(Exception):
        pass

    fails(RepositoryNotFoundError("404"))
    assert "check the name" in said("someone/tiny", FileNotFoundError)


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "a/b/c", ""])
def test_a_path_that_is_none(path):
    assert "is no folder; expected one with config.json" in said(path, FileNotFoundError)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'nnkit-jax[hub]'" in said("someone/tiny", ImportError)
