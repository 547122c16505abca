"""Floating-point operations of a function, counted in its jaxpr, loops as often as they run."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from nnkit.cost.operations import of_equation

__all__ = ["Flops", "count", "flops", "transformer"]


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations, by what they are.

    Attributes:
      products: of matrix products and convolutions, 2 per multiply and add.
      others: of all else that computes on floats: 1 per element, a reduction 1 per input.
      recomputed: of both, what a checkpoint computes a second time to save memory.
      products_by: the products by the width of what is multiplied, such as {"bfloat16": 8.0}.
      unknown: what was counted once or not at all, and why; () if all was known.

    >>> found = flops(lambda x: x @ x, jnp.ones((2, 2)))
    >>> found.total, found.recomputed, found.products_by
    (16.0, 0.0, {'float32': 16.0})
    """

    products: float
    others: float
    recomputed: float
    products_by: dict[str, float]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """All that is computed, what is recomputed included."""
        return self.products + self.others

    @property
    def needed(self) -> float:
        """What the mathematics needs: all but what is recomputed."""
        return self.total - self.recomputed


def flops(function: Callable, *args, trips: int | None = None) -> Flops:
    """Floating-point operations of function(*args), counted by walking its jaxpr.

    A scan counts as often as it runs, `cond` as its dearest branch, a while loop as often as its
    bounds say, shard_map on all its devices together. Nothing is run or compiled. A gradient's
    operations are its own: jax.grad(f) counts forward and backward. What is computed and never used
    counts too. XLA's cost analysis counts the body of every loop once, and so is too low for
    scanned programs.

    Args:
      function: any function that JAX can trace.
      *args: trees of arrays [...], or of `jax.ShapeDtypeStruct`.
      trips: how often a while loop runs whose bounds are not in the program; None refuses it.

    Returns:
      A `Flops`.

    Raises:
      TypeError: if it is no function; a Step has two, and the message says which to count.
      ValueError: if a while loop does not say how often it runs, and trips is None.

    >>> def steps(x):
    ...     return jax.lax.scan(lambda h, _: (h @ x, None), x, length=10)[0]
    >>> flops(steps, jnp.ones((4, 4))).products  # 10 products of 2 x 4 x 4 x 4
    1280.0
    >>> grown = jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x @ x)))
    >>> found = flops(jax.grad(grown), jnp.ones((4, 4)))
    >>> found.products, found.recomputed  # 3 are needed, and the first is computed again
    (512.0, 144.0)
    """
    if not callable(function):
        remedy = "give one that JAX can trace"
        if hasattr(function, "update") and hasattr(function, "init"):
            remedy = (
                "count its update: nk.cost.flops(step.update, state, batch), with state = "
                "jax.eval_shape(step.init, jax.random.key(0), batch)"
            )
        raise TypeError(f"flops got {type(function).__name__}, expected a function: {remedy}")
    return count(jax.make_jaxpr(function)(*args), trips=trips)


def count(jaxpr, *, trips: int | None = None) -> Flops:
    """The operations of a program that is traced already.

    Args:
      jaxpr: from `jax.make_jaxpr(function)(*args)`.
      trips: as in `flops`.

    Returns:
      A `Flops`.

    Raises:
      ValueError: as `flops`.

    >>> count(jax.make_jaxpr(jnp.dot)(np.ones(3), np.ones(3))).products
    6.0
    """
    walk = _Walk(trips)
    walk.closed(jaxpr, [walk.fresh() for _ in jaxpr.jaxpr.invars], 1.0, False)
    tally, by = walk.tally, defaultdict(float)
    for (kind, dtype, _), n in tally.items():
        if kind == "products":
            by[dtype] += n
    sums = {k: sum(n for (kind, *_), n in tally.items() if kind == k) for k in _KINDS}
    again = sum(n for (_, _, again), n in tally.items() if again)
    return Flops(
        float(sums["products"]),
        float(sums["others"]),
        float(again),
        dict(by),
        tuple(sorted(walk.unknown)),
    )


_KINDS = ("products", "others")


class _Walk:
    """Adds up equations, and numbers values, so that the same value computed twice is noticed.

    Two equations give the same value if they are the same operation on the same values. Inside the
    backward pass of a checkpoint such an equation is a recomputation; elsewhere XLA removes it.
    """

    def __init__(self, trips):
        self.trips = trips
        self.tally: dict[tuple, float] = defaultdict(float)  # (kind, dtype, recomputed?)
        self.unknown: set[str] = set()
        self.ids: dict[Any, int] = {}
        self.meaning: list[Any] = []

    def number(self, meaning) -> int:
        if meaning not in self.ids:
            self.ids[meaning] = len(self.meaning)
            self.meaning.append(meaning)
        return self.ids[meaning]

    def fresh(self) -> int:
        return self.number(("fresh", len(self.meaning)))

    def closed(self, program, inputs, times, again) -> list[int]:
        """Walk a closed or open jaxpr; returns the numbers of its outputs."""
        jaxpr = getattr(program, "jaxpr", program)
        consts = getattr(program, "consts", ()) if jaxpr is not program else ()
        known = {v: self.number(("constant", id(c))) for v, c in zip(jaxpr.constvars, consts)}
        known.update({v: self.fresh() for v in jaxpr.constvars if v not in known})
        known.update(zip(jaxpr.invars, inputs))

        def read(v) -> int:
            if hasattr(v, "val"):  # a literal
                return self.number(("literal", str(v.aval), _text(v.val)))
            return known[v]

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars], times, again)
            known.update(zip(eqn.outvars, outs))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn, inputs, times, again) -> list[int]:
        name = eqn.primitive.name
        if name == "scan":
            return self.scan(eqn, inputs, times, again)
        if name == "while":
            return self.loop(eqn, inputs, times, again)
        if name == "cond":
            return self.branches(eqn, inputs, times, again)
        inner = list(programs_of(eqn.params))
        if name == "pallas_call":
            self.unknown.add("pallas_call: a kernel written by hand is not counted")
            inner = []
        elif inner:
            again = again or bool(eqn.params.get("differentiated"))
            times *= _devices(eqn) if name == "shard_map" else 1
            return self.inside(eqn, inner, inputs, times, again)
        key = (name, tuple(inputs), _parameters(eqn.params))
        seen = key in self.ids
        base = self.number(key)
        n, kind = of_equation(eqn) if name != "pallas_call" else (0.0, "others")
        if kind == "unknown":
            self.unknown.add(f"{name}: not counted")
        elif n:
            dtypes = [v.aval.dtype for v in eqn.invars[:2]]
            dtype = str(max(dtypes, key=lambda d: d.itemsize))
            self.tally[kind, dtype, again and seen] += n * times
        return [self.number(("out", base, i)) for i in range(len(eqn.outvars))]

    def inside(self, eqn, inner, inputs, times, again) -> list[int]:
        """A call (pjit, checkpoint, custom_vjp, shard_map, ...): its first program is what runs."""
        program = inner[0]
        jaxpr = getattr(program, "jaxpr", program)
        n = len(jaxpr.invars)
        given = inputs[len(inputs) - n :] if n <= len(inputs) else inputs
        given = [*given, *(self.fresh() for _ in range(n - len(given)))]
        outs = self.closed(program, given, times, again)
        outs = outs[: len(eqn.outvars)]
        return [*outs, *(self.fresh() for _ in range(len(eqn.outvars) - len(outs)))]

    def scan(self, eqn, inputs, times, again) -> list[int]:
        p = eqn.params
        length, body = p["length"], getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
        # xs and ys have an axis more outside than inside; jax 0.12 says it no other way
        sliced = [_axes(a) > _axes(b) for a, b in zip(eqn.invars, body.invars)]
        carried = sum(_axes(a) == _axes(b) for a, b in zip(eqn.outvars, body.outvars))
        consts = len(sliced) - sum(sliced) - carried
        start, xs = inputs[consts : consts + carried], inputs[consts + carried :]
        carry = [self.number(("carry", length, i, x)) for i, x in enumerate(start)]
        outs = self.closed(
            p["jaxpr"],
            [*inputs[:consts], *carry, *(self._slice(x, length) for x in xs)],
            times * length,
            again,
        )
        last = [self.number(("last", length, x, c)) for x, c in zip(outs, carry)]
        return [*last, *(self.number(("stack", length, x)) for x in outs[carried:])]

    def _slice(self, x, length) -> int:
        """What a scan sees of xs: one value of what an earlier scan stacked, or a slice."""
        meaning = self.meaning[x]
        if meaning[:2] == ("stack", length):
            return meaning[2]
        return self.number(("slice", length, x))

    def loop(self, eqn, inputs, times, again) -> list[int]:
        p = eqn.params
        first, second = p["cond_nconsts"], p["body_nconsts"]
        start = inputs[first + second :]
        n = _trips(eqn, first, second)
        if n is None and self.trips is None:
            raise ValueError(
                "flops: a while loop does not say how often it runs; give trips=..., how often it "
                "does, or write it as lax.scan or lax.fori_loop with fixed bounds"
            )
        if n is None:
            self.unknown.add(f"while: counted {self.trips} times")
            n = self.trips
        body = [self.fresh() for _ in start]
        self.closed(p["cond_jaxpr"], [*inputs[:first], *body], times * n, again)
        self.closed(p["body_jaxpr"], [*inputs[first : first + second], *body], times * n, again)
        return [self.fresh() for _ in eqn.outvars]

    def branches(self, eqn, inputs, times, again) -> list[int]:
        kept, best, worst = self.tally, None, -1.0
        for branch in eqn.params["branches"]:
            self.tally = defaultdict(float)
            self.closed(branch, inputs[1:], times, again)
            if sum(self.tally.values()) > worst:
                best, worst = self.tally, sum(self.tally.values())
        self.tally = kept
        for key, n in (best or {}).items():
            self.tally[key] += n
        base = self.number(("cond", tuple(inputs), len(self.meaning)))
        return [self.number(("out", base, i)) for i in range(len(eqn.outvars))]


def _axes(v) -> int:
    return len(getattr(v.aval, "shape", ()))


def programs_of(params) -> Iterable[Any]:
    """The jaxprs among the parameters of an equation, the one that runs first.

    >>> [one] = programs_of({"jaxpr": jax.make_jaxpr(jnp.sin)(1.0)})
    """
    first = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    for name in [*first, *(k for k in params if k not in first)]:
        value = params.get(name)
        for x in value if isinstance(value, list | tuple) else (value,):
            if hasattr(getattr(x, "jaxpr", x), "eqns"):
                yield x


def _parameters(params) -> str:
    return ";".join(f"{k}={params[k]!r}" for k in sorted(params))


def _text(value) -> str:
    try:
        return repr(np.asarray(value).tolist())
    except TypeError:
        return str(id(value))


def _devices(eqn) -> int:
    """On how many devices the body of a shard_map runs; its shapes are those of one."""
    mesh, p = eqn.params["mesh"], eqn.params
    axes = p.get("manual_axes") or [a for a in mesh.axis_names if a not in p.get("auto", ())]
    return math.prod(dict(mesh.shape)[a] for a in axes)


def _trips(eqn, first, second) -> int | None:
    """The trip count of `while i < n: i += step` where start, n and step are in the program."""
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    given = eqn.invars[first + second :]
    if len(cond.jaxpr.eqns) != 1 or cond.jaxpr.eqns[0].primitive.name not in ("lt", "gt"):
        return None
    test = cond.jaxpr.eqns[0]
    sides = list(test.invars) if test.primitive.name == "lt" else list(test.invars)[::-1]
    places = {v: i for i, v in enumerate(cond.jaxpr.invars[first:])}
    bounds = dict(zip(cond.jaxpr.constvars, cond.consts))
    bounds |= dict(zip(cond.jaxpr.invars[:first], eqn.invars[:first]))

    def value(v):
        if hasattr(v, "val"):
            return int(v.val)
        if v in bounds:
            return value(bounds[v]) if hasattr(bounds[v], "aval") else int(bounds[v])
        if v in places:  # carried along unchanged
            i = places[v]
            if body.jaxpr.outvars[i] is body.jaxpr.invars[second + i]:
                return value(given[i])
        raise LookupError(v)

    try:
        i = places[sides[0]]
        start, stop = value(given[i]), value(sides[1])
        made = {v: e for e in body.jaxpr.eqns for v in e.outvars}[body.jaxpr.outvars[i]]
        if made.primitive.name != "add" or body.jaxpr.invars[second + i] not in made.invars:
            return None
        step = next(int(v.val) for v in made.invars if hasattr(v, "val"))
        return max(0, -(-(stop - start) // step))
    except (KeyError, LookupError, TypeError, ValueError, StopIteration):
        return None


def transformer(parameters: int, tokens: int, *, depth: int, width: int, length: int) -> float:
    """The formula for one update of a Transformer, to be set beside what is counted.

    6 N D + 12 L d T D: each of N weights is multiplied with each of D tokens once forward and twice
    backward, and each token meets T others in each of L blocks of width d, masked or not.

    Args:
      parameters: N, weights that are multiplied: all but tables that are only looked up.
      tokens: D, tokens of a batch.
      depth: L, blocks.
      width: d, heads times the size of a head.
      length: T, tokens of a sequence.

    Returns:
      Floating-point operations.

    >>> transformer(124_000_000, 1024, depth=12, width=768, length=1024) / 1e9
    877.820116992

    Kaplan et al., arXiv:2001.08361, section 2.1; attention: Chowdhery et al., arXiv:2204.02311,
    appendix B.
    """
    return 6.0 * parameters * tokens + 12.0 * depth * width * length * tokens
