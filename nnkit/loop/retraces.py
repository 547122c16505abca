"""Programs that compile again because an argument changed: named, and in the end refused."""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nnkit.core import trees

__all__ = ["Watched", "watched"]

LIMIT = 4  # the retrace that raises
COMPILED = "/jax/core/compile/backend_compile_duration"
SHORT = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf", "complex": "c"}


class _Heard(threading.local):
    """How many programs XLA has compiled for this thread, or found in its cache."""

    count = 0


_heard = _Heard()
_listening: list[bool] = []


def _listen() -> None:
    def count(event: str, duration_secs: float, **_) -> None:
        if event == COMPILED:
            _heard.count += 1

    if not _listening:
        _listening.append(True)
        jax.monitoring.register_event_duration_secs_listener(count)


def watched(function: Callable, *, who: str = "", spare: int = 0, **options) -> Watched:
    """As `jax.jit`, and says which argument made it compile again, and refuses the fourth time.

    A shape, a dtype, a weak type, a static value, a key of a dict: whatever makes a new program is
    named with its old and new form in a RuntimeWarning. `Watched.begin()` starts to count anew.

    Args:
      function: of positional arguments.
      who: what the message calls it; its name by default.
      spare: how many more programs are as it should be, such as 1 for a shorter last batch.
      **options: of `jax.jit`.

    Returns:
      A `Watched`, which is called like the function.

    Raises:
      ValueError: from a call, before it compiles, the fourth time that it would.

    >>> double = watched(lambda x: x + x, who="double")
    >>> with warnings.catch_warnings(record=True) as seen:
    ...     warnings.simplefilter("always")
    ...     _ = double(jnp.ones(3)), double(jnp.ones(2))
    >>> print(seen[0].message)
    double compiles again: x changed from f32[3] to f32[2]; give it arguments of one form...
    """
    _listen()
    return Watched(function, who or getattr(function, "__name__", "a function"), spare, options)


class Watched:
    """A compiled function that knows for which arguments it was compiled. Made by `watched`.

    Attributes:
      retraces: programs made since `begin`, beyond the first and the spare ones.
    """

    def __init__(self, function: Callable, who: str, spare: int, options: dict[str, Any]):
        self.who, self.spare = who, spare
        parameters = list(inspect.signature(function).parameters)
        self._names = parameters
        self._static = _statics(parameters, options)

        def traced(*arguments):
            self._trace(arguments)
            return function(*arguments)

        traced.__name__ = getattr(function, "__name__", "traced").replace("<lambda>", "function")
        self.jitted = jax.jit(traced, **options)
        self.begin()

    def begin(self) -> None:
        """Start to count anew: the next call may be unlike those before."""
        self.retraces = 0
        self._form: dict[str, str] | None = None
        self._places: dict[str, str] = {}
        self._problem: Warning | None = None

    def __call__(self, *arguments):
        if self._form is None:
            self._form = self._forms(arguments)
            self._places = _places(self._names, arguments)
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem
        compiled, known = _heard.count, self.retraces
        result = self.jitted(*arguments)
        if _heard.count != compiled:
            self._compiled(arguments, known)
        return result

    def __getattr__(self, name: str):  # lower, trace, eval_shape, clear_cache
        return getattr(self.jitted, name)

    def _trace(self, arguments) -> None:
        """While tracing: nothing is compiled or consumed yet, so that this may raise."""
        form = self._forms(arguments)
        before, self._form = self._form, form
        if before is not None and form != before:
            self._again(changes(before, form))

    def _compiled(self, arguments, known: int) -> None:
        """After a compilation: one without a new trace is due to where the arguments are."""
        before, self._places = self._places, _places(self._names, arguments)
        if self.retraces != known or before == self._places:
            return
        try:
            self._again(changes(before, self._places))
        except (ValueError, Warning) as problem:  # the result must not be lost: raised next time
            self._problem = problem  # pyright: ignore[reportAttributeAccessIssue]

    def _again(self, changed: str) -> None:
        self.retraces += 1
        n = self.retraces - self.spare
        advice = "give it arguments of one form: pad and mask short batches, convert dtypes"
        if n >= LIMIT:
            raise ValueError(
                f"{self.who} would compile again, the {n}th time: {changed}, expected what it was "
                f"compiled for; {advice}"
            )
        if n > 0:
            warnings.warn(
                f"{self.who} compiles again: {changed}; {advice}; the {LIMIT}th time raises",
                RuntimeWarning,
                stacklevel=2,
            )

    def _forms(self, arguments) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, x in zip(self._names, arguments):
            if name in self._static:
                found[name] = f"{x!r:.60}"
                continue
            leaves, form = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda x: x is None)
            found |= {name + jax.tree_util.keystr(path): _form(leaf) for path, leaf in leaves}
            found[f"the kind of {name}"] = re.sub(r"\bPyTreeDef\b|\*", "", str(form))
        return found


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between two descriptions of arguments, three of them at most.

    Args:
      before: {name: form}.
      now: the same, later.

    Returns:
      Such as "batch['x'] changed from f32[32,8] to f32[31,8]".

    >>> changes({"x": "f32[3]", "y": "i32[]"}, {"x": "f32[2]"})
    'x changed from f32[3] to f32[2]; y went, it was i32[]'
    """
    said = []
    for name in [*before, *(n for n in now if n not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new or (said and name.startswith("the kind of")):
            continue
        if old is None:
            said.append(f"{name} is new, {new:.80}")
        elif new is None:
            said.append(f"{name} went, it was {old:.80}")
        else:
            said.append(f"{name} changed from {old:.80} to {new:.80}")
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return "; ".join(said[:3]) + more


def _statics(names: Sequence[str], options: dict[str, Any]) -> set[str]:
    numbers, words = options.get("static_argnums", ()), options.get("static_argnames", ())
    numbers = (numbers,) if isinstance(numbers, int) else numbers
    words = (words,) if isinstance(words, str) else words
    return {names[i] for i in numbers or ()} | {*(words or ())}


def _form(x) -> str:
    """A leaf [...] as jit sees it: f32[32,8], weak types said."""
    if x is None:
        return "None"
    if isinstance(x, bool | int | float | complex):
        x = np.asarray(x)
        weak = x.dtype != np.bool_
    else:
        weak = bool(getattr(getattr(x, "aval", x), "weak_type", False))
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        return f"{x!r:.60}"
    dtype = x.dtype
    if isinstance(x, np.ndarray | np.generic) and dtype.kind in "iufc":
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    match = re.fullmatch(r"([a-z]+?)(\d+)", str(dtype))
    short = SHORT.get(match[1], match[1]) + match[2] if match else str(dtype)
    return f"{short}[{','.join(map(str, x.shape))}]{' weak' if weak else ''}"


def _places(names: Sequence[str], arguments) -> dict[str, str]:
    """Where the leaves [...] of the arguments are: sharding and layout, by name."""
    found = {}
    for name, argument in zip(names, arguments):
        for path, x in jax.tree_util.tree_flatten_with_path(argument)[0]:
            sharding = getattr(x, "sharding", None)  # a tracer has none
            if isinstance(x, jax.Array) and sharding is not None:
                place = f"{sharding}{'' if getattr(x, 'committed', True) else ' (free)'}"
                layout = "" if trees.is_key(x) else _layout(x)
                found[name + jax.tree_util.keystr(path)] = f"{place}{layout}"
    return found


def _layout(x) -> str:
    """The order of the axes of an array [...] in memory, if it is not the usual one."""
    try:
        layout = x.format.layout
    except Exception:  # deleted, or of a device that does not tell
        return ""
    order = getattr(layout, "major_to_minor", None)
    return "" if order is None or list(order) == sorted(order) else f" with axes in order {order}"
