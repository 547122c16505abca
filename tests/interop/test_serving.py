"""Exported programs, run by processes that cannot import this library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as exporting

from nnkit.interop import serving
from nnkit.models import GPT, EncDec, RecurrentLM, ViT

pytest.importorskip("flatbuffers", reason="jax.export needs it; the extra `export`")

TINY = GPT(vocabulary=13, length=8, width=16, depth=1, heads=2)
CHILD = """
import os, sys
for name in ("nnkit", "flax", "optax"):
    sys.modules[name] = None
PROGRAM
for n in sys.argv[1:]:
    given = dict(np.load(f"given_{n}.npz"))
    np.savez(f"got_{n}.npz", **run(load_file("model.safetensors"), given))
"""


def in_another_process(folder, batches):
    """The outputs of the README's program by batch size, from a process without nnkit."""
    program = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in program.splitlines() if line]) == 6
    (folder / "run.py").write_text(CHILD.replace("PROGRAM", program))
    for n, given in batches.items():
        np.savez(folder / f"given_{n}.npz", **given)
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH") if k in os.environ}
    child = subprocess.run(
        [sys.executable, "run.py", *map(str, batches)],
        cwd=folder,
        env={**inherited, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    return {n: dict(np.load(folder / f"got_{n}.npz")) for n in batches}, child.stdout


def close(mine, theirs):
    scale = np.abs(mine).max()
    np.testing.assert_allclose(np.asarray(mine) / scale, theirs / scale, atol=1e-6)


def initial(model, *inputs):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.randn(*x.shape), x.dtype), shapes)


def test_a_language_model_without_this_library(tmp_path):
    params = initial(TINY, jnp.ones((1, 8), jnp.int32))
    inputs = {"tokens": (("b", 8), "int32"), "mask": (("b", 8), "bool")}
    folder = serving.export(TINY, params, inputs, tmp_path / "out", about={"trained on": "nothing"})
    rng, batches = np.random.RandomState(0), {}
    for n in (2, 5):
        tokens = rng.randint(0, 13, (n, 8)).astype(np.int32)
        batches[n] = {"tokens": tokens, "mask": np.arange(8)[None] < rng.randint(1, 9, (n, 1))}
    found, out = in_another_process(folder, batches)
    assert "{'output': (2, 8, 13)}" in out
    for n, given in batches.items():
        mine = jax.jit(TINY.apply)({"params": params}, given["tokens"], given["mask"])
        close(mine, found[n]["output"])
    signature = json.loads((folder / "signature.json").read_text())
    assert signature["inputs"]["tokens"] == {"shape": ["b", 8], "dtype": "int32"}
    assert signature["outputs"] == {"output": {"shape": ["b", 8, 13], "dtype": "float32"}}
    assert signature["weights"]["embed/embedding"]["shape"] == [13, 16]
    assert signature["platforms"] == ["cpu", "cuda", "tpu"]
    assert signature["jax"] == jax.__version__
    assert signature["about"] == {"trained on": "nothing"}
    assert "- trained on: nothing" in (folder / "README.md").read_text()
    with pytest.raises(FileExistsError, match="nothing is overwritten unasked"):
        serving.export(TINY, params, inputs, folder)


def loaded(folder):
    """The program in this process."""
    from safetensors.numpy import load_file

    run = exporting.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call
    weights = load_file(folder / "model.safetensors")
    return lambda **inputs: run(weights, inputs)


def test_other_models_and_functions(tmp_path):
    vit = ViT(3, width=16, depth=1, heads=2, hidden=16, patch=4, image=8)
    lstm = RecurrentLM(vocabulary=13, width=8, depth=1)
    t5 = EncDec(vocabulary=13, width=8, depth=1, heads=2, head_dim=4, hidden=8)
    token, picture = jnp.ones((3, 4), jnp.int32), jnp.ones((3, 8, 8, 3))
    cases = {
        "vit": (vit, {"x": picture}),
        "lstm": (lstm, {"tokens": token}),
        "t5": (t5, {"source": token, "target_in": token}),
    }
    for name, (model, given) in cases.items():
        params = initial(model, *given.values())
        specs = {k: (("b", *x.shape[1:]), x.dtype) for k, x in given.items()}
        folder = serving.export(model, params, specs, tmp_path / name, platforms=("cpu",))
        found = loaded(folder)(**given)
        mine = jax.tree.leaves(jax.jit(model.apply)({"params": params}, **given))
        for x, y in zip(mine, jax.tree.leaves(found)):
            close(x, y)


def test_a_function_with_named_outputs_and_open_sizes(tmp_path):
    def f(params, x, y):
        return {"sum": x + y * params["scale"], "parts": (x, y)}

    specs = {"x": (("b", "t"), "float32"), "y": (("b", "t"), "float32")}
    params = {"scale": jnp.full((), 3.0)}
    folder = serving.export(
        f, params, specs, tmp_path / "f", constraints=("t <= 4",), platforms=("cpu",)
    )
    run = loaded(folder)
    found = run(x=jnp.ones((2, 3)), y=jnp.ones((2, 3)))
    assert sorted(found) == ["parts/0", "parts/1", "sum"]
    np.testing.assert_array_equal(found["sum"], np.full((2, 3), 4.0))
    with pytest.raises(ValueError, match=r"t <= 4|shape"):
        run(x=jnp.ones((2, 5)), y=jnp.ones((2, 5)))


def test_a_sequence_of_any_length_is_no_program_here(tmp_path):
    params = initial(TINY, jnp.ones((1, 8), jnp.int32))
    inputs = {"tokens": (("b", "t"), "int32")}
    options = {"constraints": ("t >= 2", "t <= 8"), "platforms": ("cpu",)}
    with pytest.raises(ValueError, match=r"open sizes of \['tokens'\].*Give them as numbers"):
        serving.export(TINY, params, inputs, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_wrong_words(tmp_path, monkeypatch):
    f, params = lambda params, x: x, {"w": jnp.ones(1)}
    good = {"x": (("b", 3), "float32")}
    export = lambda inputs=good, **more: serving.export(f, params, inputs, tmp_path / "o", **more)
    with pytest.raises(TypeError, match=r"inputs\['x'\] is 3, expected \(shape, dtype\)"):
        export({"x": 3})
    with pytest.raises(TypeError, match=r"inputs is \[\], expected \{name"):
        export([])
    with pytest.raises(ValueError, match="platforms is 'cpu', expected a list"):
        export(platforms="cpu")
    with pytest.raises(ValueError, match=r"platforms is \('gpu',\)"):
        export(platforms=("gpu",))

    def halves(params, x):
        return x if x.shape[0] > 3 else x[:1]

    with pytest.raises(
        ValueError, match=r"depends on the open sizes of \['x'\].*Give them as numbers"
    ):
        serving.export(halves, params, good, tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"pip install 'nnkit-jax\[export\]'"):
        export()
