"""What a function reads from outside itself: may its compiled program be used again?"""

from __future__ import annotations

import dataclasses
import dis
import functools
import types
from collections.abc import Callable

import jax

__all__ = ["reads"]

DEPTH = 40  # things within things
MADE = "__init__ __eq__ __repr__ __hash__ __replace__".split()  # by `dataclass`, from the fields


class _Changes(Exception):
    """Something that is read may change without a trace."""


class _Same:
    """Equal to itself alone, and kept alive, so that its address is not used again."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other) -> bool:
        return isinstance(other, _Same) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


def reads(f: Callable) -> tuple | None:
    """The code of a function with all it reads, as a key of a cache; None if that may change.

    Followed are variables around it and, in its own module, global names, through functions,
    classes and containers. What other modules hold counts as unchanging. Arrays of numpy and
    objects of classes that are not frozen may change: then a program must not be used again.

    Args:
      f: a function of anything, such as the recipe of a sweep.

    Returns:
      A hashable tuple, equal for functions that do the same; or None.

    >>> def times(rate):
    ...     return lambda h: h * rate
    >>> reads(times(0.1)) == reads(times(0.1)), reads(times(0.1)) == reads(times(0.2))
    (True, False)
    >>> reads(times(np.ones(3))) is None
    True
    """
    home = str(getattr(f, "__module__", "")).partition(".")[0]
    try:
        found = _Walk(home).key(f, 0)
        hash(found)
    except (_Changes, TypeError, ValueError):  # ValueError: a variable that has no value yet
        return None
    return ("recipe", found)


class _Walk:
    """One walk over what is read. Each thing is visited once."""

    def __init__(self, home: str):
        self.home, self.known, self.held = home, {}, []

    def key(self, x, depth: int):
        """What stands for x in the key."""
        if depth > DEPTH:
            raise _Changes
        if x is None or isinstance(x, bool | int | float | complex | str | bytes):
            return type(x).__name__, repr(x)  # 1, 1.0 and True are equal, and make other programs
        if id(x) not in self.known:
            self.held.append(x)  # so that no other thing gets its address
            self.known[id(x)] = "above"  # a function that reads itself
            self.known[id(x)] = self._key(x, depth + 1)
        return self.known[id(x)]

    def _key(self, x, depth: int):
        if isinstance(x, types.ModuleType | jax.Array):
            return _Same(x)
        if isinstance(x, type):
            return _Same(x), self._class(x, depth)
        if isinstance(x, types.FunctionType):
            return self._function(x, depth)
        if isinstance(x, types.MethodType):
            return self.key(x.__func__, depth), self.key(x.__self__, depth)
        if isinstance(x, types.BuiltinFunctionType):
            return _Same(x) if self._free(x) else self.key(x.__self__, depth)
        if isinstance(x, functools.partial):
            return tuple(self.key(part, depth) for part in (x.func, x.args, x.keywords))
        if isinstance(x, tuple | list):
            return type(x), *(self.key(part, depth) for part in x)
        if isinstance(x, dict):
            return "dict", *((k, self.key(v, depth)) for k, v in x.items())
        if hasattr(x, "__wrapped__") and callable(x):  # jax.jit, functools.wraps
            return type(x).__name__, self.key(x.__wrapped__, depth)
        if type(x).__hash__ in (None, object.__hash__):
            raise _Changes
        hash(x)  # frozen dataclasses and Linen modules, by their fields: a list in one raises
        return x, self.key(type(x), depth)

    def _free(self, x) -> bool:
        """Is a builtin function bound to nothing?"""
        owner = getattr(x, "__self__", None)
        return owner is None or isinstance(owner, types.ModuleType)

    def _mine(self, x) -> bool:
        return str(getattr(x, "__module__", "")).partition(".")[0] == self.home

    def _class(self, x: type, depth: int):
        if not self._mine(x):
            return None
        made = MADE if dataclasses.is_dataclass(x) else ()
        own = {n: v for n, v in vars(x).items() if isinstance(v, types.FunctionType)}
        return tuple((n, self.key(v, depth)) for n, v in own.items() if n not in made)

    def _function(self, f: types.FunctionType, depth: int):
        around = {n: c.cell_contents for n, c in zip(f.__code__.co_freevars, f.__closure__ or ())}
        if self._mine(f):
            names = sorted(_names(f.__code__) & f.__globals__.keys())
            around = {name: f.__globals__[name] for name in names} | around
        values = (around, f.__defaults__, f.__kwdefaults__)
        if not self._mine(f) and not any(values):
            return _Same(f)
        return f.__module__, f.__code__, *(self.key(part, depth) for part in values)


def _names(code: types.CodeType) -> set[str]:
    """Global names that code, and the functions defined in it, look up; not those of attributes."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    looked = [i for i in dis.get_instructions(code) if i.opname.startswith("LOAD")]
    found = {i.argval for i in looked if "GLOBAL" in i.opname or "NAME" in i.opname}
    return found.union(*inner)
