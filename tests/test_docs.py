"""Every public name: what it does, shapes, what it raises, an example that runs, its source.

The examples themselves are run by `--doctest-modules`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import parity
import pytest

import nnkit as nk

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "core layers losses metrics optim data parallel models train checkpoint loop generate cost"
).split()
ALGORITHMS = "layers losses metrics models optim generate".split()
TECHNIQUES = {"half", "clipped", "sam", "per_example", "ema", "ensemble", "patience", "interval"}


def public():
    for package in PACKAGES:
        module = importlib.import_module(f"nnkit.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            ours = getattr(thing, "__module__", "nnkit").startswith("nnkit")  # or jax's, as it is
            if callable(thing) and not inspect.ismodule(thing) and ours:
                yield pytest.param(package, name, thing, id=f"{package}.{name}")
    for door in ("huggingface", "nnx", "serving"):
        module = importlib.import_module(f"nnkit.interop.{door}")
        for name in module.__all__:
            yield pytest.param("interop", name, getattr(module, name), id=f"interop.{door}.{name}")
    for part in ("means", "trees", "keys", "checks"):
        module = importlib.import_module(f"nnkit.core.{part}")
        for name in module.__all__:
            yield pytest.param("core", name, getattr(module, name), id=f"core.{part}.{name}")
    for name in nk.hosts.__all__:
        yield pytest.param("parallel", name, getattr(nk.hosts, name), id=f"hosts.{name}")
    for name in nk.rules.__all__:
        yield pytest.param("parallel", name, getattr(nk.rules, name), id=f"rules.{name}")


@pytest.mark.parametrize(("package", "name", "thing"), list(public()))
def test_a_public_name_is_documented(package, name, thing):
    text = inspect.getdoc(thing) or ""
    assert text, "no docstring"
    assert re.match(r"[A-Z\d(|]|[a-z]\S* ", text), "the first line says what it does"
    assert ">>>" in text, "no example"
    exception = isinstance(thing, type) and issubclass(thing, Exception)
    if inspect.isfunction(thing):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
        for parameter in parameters:
            assert re.search(rf"^\s*\*{{0,2}}{parameter}: ", text, re.M), (
                f"no Args entry {parameter}"
            )
        if parameters and package in ("core", "layers", "losses", "metrics", "models", "train"):
            assert re.search(r"\[[^\]]*\]|Step|Objective|Gradient|int|tree", text), "no shapes"
        body = inspect.getsource(thing).split('"""')[-1]
        if re.search(r"^\s+raise ", body, re.M):
            assert "Raises:" in text, "it raises, and does not say so"
    if (package in ALGORITHMS or name in TECHNIQUES) and not exception:
        last = text.split("\n\n")[-1]
        assert re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|\b(1[789]|20)\d\d\b", last), "no source"


def test_every_function_and_model_has_a_row_of_laws():
    table = "".join(path.read_text() for path in (ROOT / "tests").glob("table*.py"))
    for package in ("layers", "losses", "metrics", "models"):
        module = importlib.import_module(f"nnkit.{package}")
        for name in module.__all__:
            if not getattr(getattr(module, name), "__module__", "nnkit").startswith("nnkit"):
                continue  # jax's, as it is
            assert re.search(rf"{package}\.{name}\b|\"{name}\"", table), f"{package}.{name}: no row"
    for name in nk.train.__all__:
        if name[0].islower() and name not in ("pair", "stacked"):
            assert f"nk.{name}" in table, f"train.{name}: no row"


def test_the_map_names_what_it_exports():
    for name in nk.__all__:
        assert getattr(nk, name) is not None
    listed = set(re.findall(r"`(\w+)`", nk.__doc__))
    for name in nk.train.__all__:
        if name not in (
            "pair",
            "product",
            "in_turn",
            "unrolled",
            "spread",
            "objective",
            "supervised",
        ):
            assert name in listed | {"gradient", "step"}, f"{name} is not on the map"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = nk.nothing


def test_every_public_name_is_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    for name in nk.train.__all__:
        assert f"`{name}`" in text, name


def test_the_short_name_is_never_offered_for_installation():
    for path in [*ROOT.glob("*.md"), *ROOT.rglob("nnkit/**/*.py"), *ROOT.glob("colab/*")]:
        if path.is_file():
            assert not re.search(r"pip install (-\S+ )*['\"]?nnkit(?!-jax)\b", path.read_text()), (
                path
            )


def test_every_layer_and_model_is_in_the_table_of_parity():
    text = (ROOT / "docs" / "parity.md").read_text()
    for name in parity.named():
        assert f"`{name}`" in text, f"{name}: write docs/parity.md again (tests/parity.py says how)"
