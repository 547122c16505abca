"""The notebooks run from top to bottom (without the cell that installs, with fewer steps)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "colab"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook client; the kernel is a process of its own
def test_a_notebook_runs(path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        cell.source = re.sub(r"steps=[\d_]+", "steps=20", cell.source)
    monkeypatch.setenv(
        "PYTHONPATH", str(FOLDER.parent) + os.pathsep + os.environ.get("PYTHONPATH", "")
    )
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", skip_cells_with_tag="skip-execution"
    ).execute()
    text = "".join(str(cell.get("outputs", "")) for cell in book.cells)
    assert "image/png" in text  # the learning curves
    assert "±" in text  # the table over seeds
