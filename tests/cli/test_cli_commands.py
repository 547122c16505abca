"""The verbs of `nnkit` on a run that takes a second."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import nnkit as nk
from nnkit.cli import inspect
from nnkit.cli.main import VERBS, main
from nnkit.cli.train import default_folder, load

ROOT = Path(nk.__file__).parents[1]
WORDS = "--steps 4 --seeds 1 --learning-rates 1e-3".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNKIT_RUNS", str(root))
        assert main(["train", "digits", *WORDS]) == 0
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def runs(finished, tmp_path, monkeypatch):
    """A copy of it to change, alone in NNKIT_RUNS."""
    folder = tmp_path / "runs" / finished.name
    shutil.copytree(finished, folder)
    monkeypatch.setenv("NNKIT_RUNS", str(folder.parent))
    return folder


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def in_child(words):
    """Output of a command, which heavy modules it imported, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(
        "import sys\nfrom nnkit.cli.main import main\n"
        f"code = main({words!r})\n"
        "heavy = [m for m in ('jax', 'flax', 'numpy', 'orbax', 'tensorflow') if m in sys.modules]\n"
        "print('HEAVY', *heavy)\nraise SystemExit(code)"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert done.returncode == 0, done.stderr
    text, _, heavy = done.stdout.rpartition("HEAVY")
    return text, heavy.split(), seconds


def test_help_is_quick():
    found = [in_child(["--help"]) for _ in range(3)]
    assert min(seconds for _, _, seconds in found) < 0.5
    assert found[0][0].startswith("nnkit: deep learning as pure functions")
    assert all(f"\n  {verb} " in found[0][0] for verb in VERBS)
    assert found[0][1] == []


def test_help_of_an_experiment_needs_no_jax():
    done = python(
        "import sys\nfrom nnkit.cli.main import main\n"
        "try:\n    code = main(['train', 'digits', '--help'])\n"
        "finally:\n    print('JAX', 'jax' in sys.modules)\nraise SystemExit(code)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("JAX False\n")
    text = " ".join(done.stdout.replace("│", " ").split())
    for part in ("--learning-rates", "each > 0", "--fresh", "--folder", "Which learning rate"):
        assert part in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"nnkit {verb}" in said(capsys).replace("nnkit train digits", f"nnkit {verb}")


def test_no_words_and_version(capsys):
    assert main([]) == 2
    assert "usage: nnkit VERB" in said(capsys)
    assert main(["--version"]) == 0
    assert said(capsys) == nk.__version__


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian digits", "'train'"),
        ("evla runs/a", "'eval'"),
        ("train digist", "'digits'"),
        ("train no-such.py", "no-such.py"),
        ("eval no-such-run", "nnkit ls"),
        ("verify no-such-run", "no checkpoints"),
        ("doctor now", "usage: nnkit doctor"),
        ("eval", "usage: nnkit eval RUN"),
        ("verify", "usage: nnkit verify RUN"),
    ],
)
def test_wrong_words(words, hint, capsys):
    assert main(words.split()) == 2
    assert hint in said(capsys)


def test_the_folder_holds_what_the_documentation_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints",
        "results.json",
        "STATUS",
    }
    record = json.loads((finished / "config.json").read_text())
    assert record["experiment"] == "digits"
    assert record["config"]["steps"] == 4
    assert record["config"]["learning_rates"] == [1e-3]
    (row,) = json.loads((finished / "results.json").read_text())
    assert row["learning rate"] == "0.001"
    assert row["test accuracy"].endswith(" %")


def test_ls(runs, capsys):
    assert main(["ls"]) == 0
    text = said(capsys)
    for part in ("digits", "done", "4", "test", "loss", "accuracy"):
        assert part in text
    with open(runs / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "sp')  # killed while writing
    (runs / "STATUS").write_text("failed: KeyboardInterrupt: \n")
    assert main(["ls", str(runs.parent)]) == 0
    text = said(capsys)  # a narrow column may break the status in two
    assert "failed:" in text
    assert "KeyboardInterrupt" in text
    (runs / "config.json").write_text("{")
    assert main(["ls"]) == 0


def test_eval_gives_the_logged_numbers(finished, capsys):
    assert main(["eval", str(finished)]) == 0
    text = said(capsys)
    (row,) = json.loads((finished / "results.json").read_text())
    assert "at step 4" in text
    assert row["validation accuracy"] in text
    assert row["test accuracy"] in text


def test_eval_takes_the_best_checkpoint_where_one_is_kept(runs, capsys, monkeypatch):
    module = load("digits")
    config = module.Config(learning_rates=(1e-3,), seeds=1, steps=6)
    step, train, _ = module.build(config)
    best = ("validation/accuracy", "max")
    folder = runs.parent / "best"
    with nk.Run(folder, config, experiment="digits", save_every=2, keep_best=best) as run:
        accuracies = [0.2, 0.9, 0.1]

        def hook(params, carry):
            return {"split": "validation", "accuracy": accuracies.pop(0)}

        state = nk.init(step, jax.random.key(0), next(iter(train)))
        nk.fit(step, state, train, steps=6, every={2: hook}, run=run, progress=False)
    assert main(["eval", str(folder)]) == 0
    assert "at step 4" in said(capsys)
    assert main(["eval", str(folder), "--latest"]) == 0
    assert "at step 6" in said(capsys)


def test_eval_of_a_run_without_an_experiment(tmp_path, capsys):
    nk.Run(tmp_path / "a", {"x": 1})
    assert main(["eval", str(tmp_path / "a")]) == 2
    assert "was not made by an experiment" in said(capsys)


def test_verify(runs, capsys):
    assert main(["verify", str(runs)]) == 0
    assert "ok" in said(capsys)
    arrays = runs / "checkpoints" / "00000004"
    largest = max(
        (p for p in arrays.rglob("*") if p.is_file() and p.name != "manifest.json"),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert main(["verify", str(runs)]) == 1
    text = said(capsys)
    assert "damaged" in text
    assert largest.name in text
    assert "sha256" in text
    assert main(["verify", str(runs / "checkpoints")]) == 1


def test_doctor(capsys, monkeypatch, tmp_path):
    assert main(["doctor"]) == 0
    text = said(capsys)
    for part in (f"nnkit {nk.__version__}", "stack", "8 x cpu", "nnx imports", "NNKIT_DATA_DIR"):
        assert part in text
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("NNKIT_DATA_DIR", str(tmp_path))
    have = inspect._version
    monkeypatch.setattr(inspect, "_version", lambda n: None if n == "tyro" else have(n))
    assert main(["doctor"]) == 1
    text = said(capsys)
    assert "has 1 data sets" in text
    assert "wrong tyro is not installed" in text


@pytest.mark.parametrize(("jax_version", "flax_version", "name"), [
    ("0.7.2", "0.11.2", "the lowest supported"),
    ("0.10.2", "0.12.8", "Python 3.11"),
    ("0.9.0", "0.12.0", "between the tested ones"),
])  # fmt: skip
def test_stack(jax_version, flax_version, name):
    assert name in inspect.stack(jax_version, flax_version)


def test_fresh_makes_a_second_folder_with_the_same_numbers(runs, capsys):
    assert main(["train", "digits", *WORDS, "--fresh"]) == 0
    other = runs.with_name(runs.name + "-2")
    assert sorted(runs.parent.iterdir()) == [runs, other]
    assert digests(runs) == digests(other)
    assert (other / "results.json").read_text() == (runs / "results.json").read_text()


def digests(folder):
    manifest = json.loads((folder / "checkpoints" / "00000004" / "manifest.json").read_text())
    return manifest["digest"]


def test_config_json_runs_again_identically(runs, tmp_path):
    record = json.loads((runs / "config.json").read_text())
    module = load(record["experiment"])
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    config = module.Config(**fields)
    assert default_folder("digits", config).name == runs.name
    module.main(config, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(runs)


def test_an_experiment_from_a_file(tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(
        '"""Does it run?"""\n'
        "import dataclasses\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n"
        '    """Settings.\n\n    Args:\n      size: how large.\n    """\n\n'
        "    size: int = 3\n\n\n"
        "def main(config, folder=None):\n"
        "    print(f'size {config.size} in {folder.name}')\n"
    )
    assert main(["train", str(file), "--size", "5", "--folder", str(tmp_path / "here")]) == 0
    assert "size 5 in here" in said(capsys)
    file.write_text("x = 1\n")
    with pytest.raises(AttributeError, match="has no Config; an experiment has Config and main"):
        load(str(file))


def test_a_diverged_run_is_one_line(tmp_path, capsys):
    file = tmp_path / "idea.py"
    file.write_text(
        "import dataclasses\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n    size: int = 3\n\n\n"
        "def main(config, folder=None):\n"
        "    raise FloatingPointError('the loss is nan at step 7')\n"
    )
    assert main(["train", str(file), "--folder", str(tmp_path / "here")]) == 1
    assert capsys.readouterr().out.endswith("the loss is nan at step 7\n")
