"""A model as a program that runs without this library: StableHLO, weights and a signature."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as exporting

from nnkit.core.trees import paths
from nnkit.interop import files, folders

__all__ = ["export"]

PROGRAM = """import numpy as np
from jax import export
from safetensors.numpy import load_file

run = export.deserialize(bytearray(open("model.stablehlo", "rb").read())).call
outputs = run(load_file("model.safetensors"), {inputs})
print({name: x.shape for name, x in outputs.items()})
"""


def export(
    model_or_function: nn.Module | Callable,
    params,
    inputs: Mapping[str, Any],
    folder,
    *,
    constraints: Sequence[str] = (),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model so that a process with jax and safetensors alone can run it.

    The folder has model.stablehlo (the program, from `jax.export`), model.safetensors (the weights
    by path, {"block_0/mlp/up/kernel": ...}), signature.json (names, shapes and dtypes of inputs and
    outputs, versions) and README.md with a program of six lines. The folder appears whole or not at
    all. The extra `export` (flatbuffers) is needed here and there. The models of this library leave
    the batch open, not the length of a sequence.

    Args:
      model_or_function: a Linen module, called as model.apply({"params": params}, **inputs); or a
        function (params, **inputs) -> outputs.
      params: a tree of arrays [...]; for a module that carries more, all its variables:
        {"params": ..., "batch_stats": ...}.
      inputs: by name, (shape, dtype) or anything with both, such as {"tokens": (("b", 64),
        "int32")}. Names in a shape are sizes left open: the batch, mostly.
      folder: a new folder.
      constraints: what holds for open sizes, such as ("t >= 2", "t <= 64").
      platforms: where the program may run.
      overwrite: replace the folder if it exists.
      about: more for signature.json, and lines for README.md: {setting: value}.

    Returns:
      The folder.

    Raises:
      FileExistsError: if the folder exists.
      ImportError: if flatbuffers is not installed.
      TypeError: if an input has no shape or dtype.
      ValueError: if a platform is unknown, or the program cannot leave a size open.

    >>> import tempfile
    >>> f = lambda params, x: x @ params["w"]
    >>> place = tempfile.mkdtemp() + "/linear"
    >>> folder = export(f, {"w": jnp.ones((3, 2))}, {"x": (("b", 3), "float32")}, place)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'model.safetensors', 'model.stablehlo', 'signature.json']

    JAX documentation, "Exporting and serializing staged-out computations"; StableHLO, openxla.org.
    """
    _flatbuffers()
    unknown = sorted({*platforms} - {"cpu", "cuda", "rocm", "tpu"})
    if unknown or isinstance(platforms, str) or not platforms:
        raise ValueError(
            f"platforms is {platforms!r:.60}, expected a list of cpu, cuda, rocm and tpu"
        )
    weights = {path: jnp.asarray(x) for path, x in paths(params)}
    specs = _specs(inputs, tuple(constraints))
    with folders.atomic(folder, overwrite) as place:
        exported = _lowered(_flat(model_or_function, params), weights, specs, tuple(platforms))
        program = exported.serialize()
        (place / "model.stablehlo").write_bytes(program)
        files.write(place, [_wanted(*pair) for pair in weights.items()], 2**62)
        signature = _signature(exported, specs, weights, about)
        signature["sha256"] = {"model.stablehlo": hashlib.sha256(program).hexdigest()}
        (place / "signature.json").write_text(json.dumps(signature, indent=2) + "\n")
        (place / "README.md").write_text(_readme(Path(folder).name, specs, signature, about))
    return Path(folder)


def _flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "jax.export writes programs with flatbuffers, which is not installed: "
            "pip install 'nnkit-jax[export]'"
        ) from error


def _specs(inputs: Mapping[str, Any], constraints: tuple[str, ...]) -> dict:
    """{name: ShapeDtypeStruct}; the names of open sizes are those of one scope."""
    if not isinstance(inputs, Mapping) or not inputs:
        raise TypeError(
            f'inputs is {inputs!r:.60}, expected {{name: (shape, dtype)}}, such as {{"tokens": '
            '(("b", 64), "int32")}'
        )
    scope = exporting.SymbolicScope(constraints)
    found = {}
    for name, spec in inputs.items():
        shape, dtype = getattr(spec, "shape", None), getattr(spec, "dtype", None)
        if shape is None and isinstance(spec, tuple | list) and len(spec) == 2:
            shape, dtype = spec
        if dtype is None or not isinstance(shape, tuple | list):
            raise TypeError(
                f"inputs[{name!r}] is {spec!r:.60}, expected (shape, dtype), such as "
                '(("b", 64), "int32")'
            )
        text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        sizes = exporting.symbolic_shape(text, scope=scope) if shape else ()
        found[name] = jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))
    return found


def _flat(model_or_function, params) -> Callable:
    """(weights by path, inputs by name) -> outputs by name."""
    tree = jax.tree.structure(params)
    names = [path for path, _ in paths(params)]

    def run(weights, inputs):
        whole = jax.tree.unflatten(tree, [weights[name] for name in names])
        if isinstance(model_or_function, nn.Module):
            variables = whole if "params" in whole else {"params": whole}
            outputs = model_or_function.apply(variables, **inputs)
        else:
            outputs = model_or_function(whole, **inputs)
        named = dict(paths(outputs))
        return {"output": named[""]} if set(named) == {""} else named

    return run


def _lowered(run, weights, specs, platforms):
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    try:
        with _no_places():
            return exporting.export(jax.jit(run), platforms=platforms)(shapes, specs)
    except Exception as error:
        open_sizes = [name for name, spec in specs.items() if _names(spec.shape)]
        text = f"{type(error).__name__}: {error}"
        if not open_sizes or not ("DimensionOperation" in text or "_DimExpr" in text):
            raise
        raise ValueError(
            f"the program does something that depends on the open sizes of {open_sizes}: "
            f"{str(error).strip().splitlines()[0]:.300} Give them as numbers, or say more, as with "
            'constraints=("t >= 2",)'
        ) from error


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
    """Programs do not say in which files of this machine their lines are."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _names(shape) -> list[str]:
    return [str(size) for size in shape if not isinstance(size, int)]


def _wanted(name, array) -> files.Wanted:
    make = lambda: np.asarray(jax.device_get(array))
    return files.Wanted(name, np.dtype(array.dtype), array.shape, make)


def _signature(exported, specs, weights, about) -> dict:
    row = lambda x: {
        "shape": [size if isinstance(size, int) else str(size) for size in x.shape],
        "dtype": str(x.dtype),
    }
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "call": "outputs = program(weights, inputs): dicts of arrays by name",
        "inputs": {name: row(x) for name, x in specs.items()},
        "outputs": {name: row(x) for name, x in outputs.items()},
        "weights": {name: row(x) for name, x in weights.items()},
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "about": {name: str(value) for name, value in (about or {}).items()},
    }


def _readme(name, specs, signature, about) -> str:
    zeros = []
    for key, spec in specs.items():
        shape = tuple(size if isinstance(size, int) else 2 for size in spec.shape)
        zeros.append(f'"{key}": np.zeros({shape}, "{spec.dtype}")')
    program = PROGRAM.replace("{inputs}", "{" + ", ".join(zeros) + "}")
    lines = [f"# {name}", "", "Runs with jax, safetensors and flatbuffers alone:", ""]
    lines += ["```python", program.rstrip("\n"), "```", ""]
    for kind in ("inputs", "outputs"):
        lines += [f"## {kind}", ""]
        for key, row in signature[kind].items():
            lines.append(f"- {key}: {row['dtype']} [{' '.join(map(str, row['shape']))}]")
        lines.append("")
    lines += [f"- {key}: {value}" for key, value in (about or {}).items()]
    return "\n".join(lines).rstrip("\n") + "\n"
