"""The settings of `nnkit sweep`: --grid field=value,value as values of the fields of a Config."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import types
import typing
from typing import Any, NamedTuple

__all__ = ["Field", "WrongGrid", "field", "label", "replaced", "settings", "switches"]

NOT = {
    "seed": "the base of everything random stays one; --seeds N is for repeated runs",
    "seeds": "give --seeds N",
    "devices": "results do not depend on it",
    "members": "it decides how many models there are in a run",
}


class WrongGrid(Exception):
    """A --grid that cannot be; a sentence for the user.

    >>> str(WrongGrid("no such field"))
    'no such field'
    """


class Field(NamedTuple):
    """A field of a Config by its dotted name, and the values it takes.

    Attributes:
      name: such as "learning_rate" or "optimizer.learning_rate".
      values: as the field has them; a float in a tuple for a field of several.
      traced: may it enter a program as a number: is it a float, or a tuple of floats?

    >>> Field("learning_rate", [0.1, 0.2], True).traced
    True
    """

    name: str
    values: list
    traced: bool


def field(config, text: str) -> Field:
    """One word of --grid, read by the type of the field.

    Args:
      config: a dataclass, whose fields may be dataclasses.
      text: "name=value,value".

    Returns:
      A `Field`.

    Raises:
      WrongGrid: if there is no such field (names the nearest), it cannot be swept, or a value is
        not of its type.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     rate: float = 0.1
    >>> field(Config(), "rate=1e-3,3e-3")
    Field(name='rate', values=[0.001, 0.003], traced=True)
    """
    name, equals, listed = text.partition("=")
    words = [word.strip() for word in listed.split(",")]
    if not equals or not name.strip() or not all(words):
        raise WrongGrid(
            f"--grid {text}: expected FIELD=VALUE,VALUE such as learning_rate=1e-3,3e-3"
        )
    name = name.strip().replace("-", "_")
    kind = _type(config, name)
    if name.rsplit(".", 1)[-1] in NOT and "." not in name:
        raise WrongGrid(f"--grid {name}: {listed} cannot be swept: {NOT[name]}; leave it out")
    values = [_value(name, word, kind) for word in words]
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise WrongGrid(f"--grid {name}: {twice} is given twice, expected once; drop one")
    return Field(name, values, kind is float or _floats(kind))


def switches(kind: type, words: list[str]) -> str:
    """What is wrong if a field that is true or false was given a word: --decay yes. "" if none was.

    Args:
      kind: the class of a Config.
      words: of the command line.

    Returns:
      A sentence for the user, or "".

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     decay: bool = False
    >>> switches(Config, ["--decay", "yes"])
    "--decay was given 'yes', expected --decay alone, or --no-decay; leave the word out"
    """
    hints = typing.get_type_hints(kind)
    names = {name.replace("_", "-") for name, hint in hints.items() if hint is bool}
    for flag, word in itertools.pairwise(words):
        name = flag.removeprefix("--").removeprefix("no-").replace("_", "-")
        if flag.startswith("--") and name in names and not word.startswith("--"):
            alone = f"--{name} alone, or --no-{name}"
            return f"{flag} was given {word!r}, expected {alone}; leave the word out"
    return ""


def settings(config, fields: list[Field]) -> list[dict[str, Any]]:
    """Every combination of values, the last field fastest; each is tried on the Config.

    Args:
      config: the rest of the configuration.
      fields: of the grid; [] is one setting, the configuration as it is.

    Returns:
      [{field: value}].

    Raises:
      WrongGrid: if a field is given twice, or the Config refuses a combination.

    >>> settings(None, [])
    [{}]
    """
    names = [one.name for one in fields]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise WrongGrid(f"--grid {twice} is given twice: list its values once, {twice}=a,b,c")
    found = [dict(zip(names, v)) for v in itertools.product(*(one.values for one in fields))]
    for setting in found:
        try:
            replaced(config, setting)
        except (ValueError, TypeError) as error:
            raise WrongGrid(f"{label(setting)}: {error}") from error
    return found


def replaced(config, setting: dict[str, Any]):
    """The configuration with some fields changed, by dotted names. Values may be traced.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     rate: float = 0.1
    >>> replaced(Config(), {"rate": 0.2})
    Config(rate=0.2)
    """
    for name, value in setting.items():
        first, _, rest = name.partition(".")
        inner = replaced(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: inner})
    return config


def label(setting: dict[str, Any]) -> str:
    """A setting in words.

    >>> label({"learning_rate": 1e-3, "model": "cnn", "rates": (0.1,)})
    'learning_rate=0.001 model=cnn rates=0.1'
    """
    one = lambda v: v[0] if isinstance(v, tuple) and len(v) == 1 else v
    text = lambda v: f"{v:g}" if isinstance(v, float) else str(v).replace(" ", "")
    return " ".join(f"{name}={text(one(v))}" for name, v in setting.items()) or "as it is"


def _type(config, name: str):
    """The type of a field by its dotted name."""
    here, path = config, name.split(".")
    for depth, part in enumerate(path):
        known = {f.name for f in dataclasses.fields(here)} if dataclasses.is_dataclass(here) else {}
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else "name another"
            whose = f"{'.'.join(path[:depth])} has" if depth else "the experiment has"
            there = ", ".join(map(repr, sorted(known))) or "none"
            raise WrongGrid(f"--grid {name}: {whose} no field {part!r}; {hint}; there are {there}")
        kind = typing.get_type_hints(type(here))[part]
        here = getattr(here, part)
    return kind


def _floats(kind) -> bool:
    return typing.get_origin(kind) is tuple and set(typing.get_args(kind)) <= {float, ...}


def _value(name: str, word: str, kind):
    """One value by its type."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if word.lower() == "none" and type(None) in inside:
            return None
        kind = next(k for k in inside if k is not type(None))
        return _value(name, word, kind)
    if origin is typing.Literal:
        if word not in map(str, inside):
            raise WrongGrid(
                f"--grid {name}: {word!r}, expected one of {', '.join(map(str, inside))}"
            )
        return next(x for x in inside if str(x) == word)
    if origin is tuple and inside[1:] == (...,):
        return (_value(name, word, inside[0]),)
    try:
        if kind is bool:
            return {"true": True, "false": False}[word.lower()]
        if kind in (int, float, str):
            found = kind(word)
            if not isinstance(found, float) or math.isfinite(found):
                return found
    except (ValueError, KeyError):
        pass
    said = {bool: "true or false", int: "an integer", float: "a finite number"}.get(kind)
    if said is None:
        raise WrongGrid(f"--grid {name}: a field of type {kind} cannot be swept")
    like = {bool: "true,false", int: "10,20"}.get(kind, "0.1,0.3")
    raise WrongGrid(f"--grid {name}: {word!r}, expected {said}, such as --grid {name}={like}")
