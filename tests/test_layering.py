"""Imports go down: a file imports only lower ranks, or its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nnkit"
RANK = {
    "core": 0,
    **dict.fromkeys(["layers", "losses", "metrics", "optim", "data", "parallel"], 1),
    **dict.fromkeys(["models", "train", "checkpoint"], 2),
    **dict.fromkeys("loop generate explain compress transfer cost interop".split(), 3),
    "cli": 4,
}


def imports(path: Path):
    """The nnkit modules a file imports, inside functions too: a lazy import is an import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "nnkit.RELATIVE"
        elif isinstance(node, ast.ImportFrom) and node.module == "nnkit":
            yield from (f"nnkit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnkit."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "nnkit")


def violations(package: Path):
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).with_suffix("").parts[0]
        if here == "__init__":
            continue  # the map sees everything, lazily
        for target in imports(path):
            there = target.split(".")[1] if "." in target else "nnkit"
            if there in ("__version__", here) or (there == "nnkit" and RANK[here] == 4):
                continue
            if RANK.get(there, 99) >= RANK[here]:
                yield f"{path.relative_to(package)} (rank {RANK[here]}) imports {target}"


def test_imports_go_down():
    assert not list(violations(PACKAGE))


def test_every_folder_has_a_rank_and_holds_something():
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert folder.name in RANK, folder
            assert len(list(folder.glob("*.py"))) > 1, folder


def test_the_walk_sees_sideways_upward_and_hidden_imports(tmp_path):
    for name in ("losses", "models", "core"):
        (tmp_path / name).mkdir()
    (tmp_path / "losses" / "a.py").write_text("from nnkit.metrics import accuracy\n")
    (tmp_path / "models" / "b.py").write_text("def f():\n    from nnkit import train\n")
    (tmp_path / "core" / "c.py").write_text("from . import means\nimport numpy\n")
    found = list(violations(tmp_path))
    assert found == [
        "core/c.py (rank 0) imports nnkit.RELATIVE",
        "losses/a.py (rank 1) imports nnkit.metrics",
        "models/b.py (rank 2) imports nnkit.train",
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_files_are_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 500


def test_nothing_private_dangerous_or_hidden_is_used():
    banned = ("jax._src", "jax.interpreters", "import pickle", "allow_pickle=True", "shell=True")
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        for word in banned:
            assert word not in text, f"{path} has {word}"
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(text))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"eval", "exec"} & set(calls), path
