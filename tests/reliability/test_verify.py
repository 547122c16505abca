"""`nnkit verify`: checkpoints, weights and records against their digests (SE-09)."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.cli.main import main
from nnkit.interop import files
from reliability.children import child


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    with nk.Run(folder, {"steps": 2}, keep_last=2) as one:
        for step in (1, 2):
            one.log({"step": step, "loss": np.float32(0.5)})
            one.save(step, {"w": jnp.full(1000, step, jnp.float32)}, [])
    return folder


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weights(folder):
    ones = files.Wanted("w", np.dtype("float32"), (50,), lambda: np.ones(50, np.float32))
    files.write(folder, [ones])
    return folder / "model.safetensors"


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_run_a_folder_of_checkpoints_and_one_of_them(run, capsys):
    for path in (run, run / "checkpoints", run / "checkpoints" / "00000001"):
        assert main(["verify", str(path)]) == 0
        assert "damaged" not in said(capsys)
    flipped(run / "checkpoints" / "00000002" / "manifest.json")
    for path, code in ((run, 1), (run / "checkpoints", 1), (run / "checkpoints" / "00000001", 0)):
        assert main(["verify", str(path)]) == code
    assert "damaged" in said(capsys)


def test_what_a_run_wrote_beside_them(run, capsys):
    log = run / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "lo')  # a kill while it was written
    assert main(["verify", str(run)]) == 0
    log.write_text("{nonsense}\n" + log.read_text())
    assert main(["verify", str(run)]) == 1
    assert "metrics.jsonl line 1 is damaged" in said(capsys)
    log.write_text("")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"steps": 2', '"steps": 3'))
    assert main(["verify", str(run)]) == 1
    assert "changed after the run began" in said(capsys)
    (run / "config.json").write_text("{")
    assert main(["verify", str(run)]) == 1
    assert "cannot be read" in said(capsys)


def test_weights(tmp_path, capsys):
    file = weights(tmp_path)
    for path in (file, tmp_path):
        assert main(["verify", str(path)]) == 0
    assert "only its form" not in said(capsys)
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for path in (file, tmp_path):
        assert main(["verify", str(path)]) == 1
    assert "sha256" in said(capsys)
    file.write_bytes(good[:-1])
    assert main(["verify", str(file)]) == 1
    head = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"\1")
    assert main(["verify", str(file)]) == 0
    assert "no digest was written into it" in said(capsys)


def test_nothing_to_verify(tmp_path, capsys):
    for path, hint in ((tmp_path / "none", "does not exist"), (tmp_path, "has no checkpoints")):
        assert main(["verify", str(path)]) == 2
        assert hint in said(capsys)
    (tmp_path / "text").write_text("hello")
    assert main(["verify", str(tmp_path / "text")]) == 1  # no weights file


def test_it_needs_no_model_and_no_device(run):
    script = "import sys; from nnkit.cli.main import main; code = main(sys.argv[1:])\n"
    script += "import jax; assert 'flax' not in sys.modules; print('code', code)\n"
    ended = child(script, "verify", run, env={"JAX_PLATFORMS": "no_such_device"}).wait(60)
    assert "code 0" in ended.out, ended.err
