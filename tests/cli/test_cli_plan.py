"""`nnkit plan`: words in, a table and an exit status out."""

import pytest

from nnkit.cli.main import main

WORDS = ["plan", "digits", "--topology", "cpu:1", "--seeds", "1"]


def run(capsys, *words):
    code = main([*words])
    out = capsys.readouterr().out
    return code, out, " ".join(out.split())


def test_an_experiment_is_planned_as_it_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path))
    code, out, said = run(capsys, *WORDS, "--tokens", "1e5")
    assert code == 0
    assert out.startswith("plan ")
    assert "cpu:1: 1 device, no mesh" in said
    assert "fits yes" in said
    assert "budget 1e+05 examples" in said
    code, _, said = run(capsys, *WORDS, "--tokens", "1e5")
    assert "from the cache" in said
    code, _, said = run(capsys, *WORDS, "--usable", "1e-7", "--batch", "64")
    assert code == 1
    assert "fits NO" in said
    assert "largest batch" in said


def test_a_published_size_needs_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path))
    words = ["plan", "nanogpt-cpu", "--topology", "cpu:2", "--mesh", "fsdp=2", "--batch", "2"]
    code, _, said = run(capsys, *words)
    assert code == 0
    assert "parameters 804,096" in said
    assert "fsdp=2" in said
    assert "all-gather" in said
    assert "6 N D + 12 L d T D" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "--topology", "cpu:1"], "there is no experiment 'nothing'"),
        (["gpt3", "--topology", "cpu:1"], "or a size of GPT: nanogpt-cpu, nanogpt-char, gpt2, "),
        (["digits", "--topology", "cpu:8", "--mesh", "fspd=8"], "perhaps you meant 'fsdp'"),
        (["digits", "--topology", "v5:2x2"], "there is no chip 'v5'"),
        (["digits", "--topology", "cpu:2", "--mesh", "fsdp"], "--mesh is 'fsdp', expected axes"),
        (["digits", "--topology", "cpu:2", "--mesh", ","], "--mesh is empty, expected axes"),
        (["digits", "--topology", "cpu:2", "--mesh", "data=2,data=2"], "--mesh is 'data=2,data=2'"),
        (["digits", "--topology", "cpu:2", "--batch", "0"], "--batch is 0, expected a number >= 1"),
        (["gpt2", "--topology", "cpu:2", "--steps", "3"], "gpt2 is a model and has no field"),
        (
            ["digits", "--topology", "cpu:4", "--mesh", "data=3"],
            "3 devices, the topology cpu:4 has 4",
        ),
        (["digits", "--topology", "cpu:1", "--overhead", "0.5"], "overhead=0.5: the site takes"),
    ],
)
def test_wrong_words_are_said_with_status_two(capsys, words, message):
    code, _, said = run(capsys, "plan", *words)
    assert code == 2
    assert message in said


def test_the_runs_of_the_demo_are_planned_on_many_devices(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path))
    small = ["plan", "digits", "--seeds", "1", "--widths", "8", "--topology", "cpu:4"]
    code, _, said = run(capsys, *small, "--mesh", "run=4")
    assert code == 0
    assert "cpu:4: 4 devices, run=4" in said
    assert "parameters 2,440" in said  # four runs of 64 x 8 + 8 + 8 x 10 + 10


EXPERIMENT = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0

def main(config, folder=None):
    raise AssertionError

def build(config):
    from nnkit import data
    return None, data.tfds("mnist", split="train", batch_size=8), {}
"""


def test_a_plan_downloads_nothing_and_asks_for_the_compiler_first(capsys, monkeypatch, tmp_path):
    import importlib.util

    import tensorflow_datasets as tfds

    (tmp_path / "mine.py").write_text(EXPERIMENT)
    monkeypatch.setenv("NNKIT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", pytest.fail)
    mine = ["plan", str(tmp_path / "mine.py"), "--topology"]
    code, _, said = run(capsys, *mine, "cpu:1")
    assert code == 2
    assert f"mnist is not in {tmp_path}" in said
    assert "nothing is downloaded here: set NNKIT_DATA_DIR" in said
    real = importlib.util.find_spec
    absent = lambda name: None if "libtpu" in name else real(name)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    code, _, said = run(capsys, *mine, "v5e:2x2")
    assert code == 2
    assert "libtpu, which is not installed" in said


def test_help_names_every_assumption(capsys):
    assert main(["plan", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("--topology", "--mesh", "--tokens", "--price", "--watts", "--efficiency"):
        assert name in said
