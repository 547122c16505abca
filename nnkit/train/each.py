"""How a function is mapped over members: side by side, one by one, over devices, in chunks."""

from __future__ import annotations

import contextlib
import contextvars
import operator
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnkit.core import trees
from nnkit.parallel import mesh as mesh_of

__all__ = ["chosen", "chunks", "in_turn", "spread", "unrolled"]

# Multiplications in the convolutions of one member's update. On 2 CPU cores vmap was the quicker
# form at 9 million (six networks of experiments/mnist1d.py), unrolled at 61 million (four LeNets
# with batches of 64, 1.5 times as fast): the line is drawn between.
FEW = 20_000_000
UNROLLED = 16  # members, at most: the program and its compile time grow with each

# How many devices members may be spread over: None is any number, 1 none, d exactly d.
_devices: contextvars.ContextVar[int | None] = contextvars.ContextVar("devices", default=None)
_heard: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("heard", default=None)
_left: contextvars.ContextVar[bool] = contextvars.ContextVar("left", default=False)
_places: contextvars.ContextVar[list | None] = contextvars.ContextVar("places", default=None)


def unrolled(f: Callable) -> Callable:
    """As `jax.vmap(f)`, but one member after another inside one program.

    Faster than vmap where a batched operation is slow (a vmapped convolution is a grouped one:
    slower on CPU); compile time and program grow with the number of members.

    Args:
      f: a function of trees of arrays.

    Returns:
      The function of trees with a leading axis [n ...].

    >>> unrolled(lambda x: x * 2)(jnp.arange(3))
    Array([0, 2, 4], dtype=int32)
    """

    def each(*args):
        n, rows = _count(args), trees.plain(args)
        members = [jax.tree.map(operator.itemgetter(i), rows) for i in range(n)]
        found = [f(*trees.keyed(one, args)) for one in members]
        stack = jax.tree.map(lambda *x: jnp.stack(x), *map(trees.plain, found))
        return trees.keyed(stack, found[0])

    return each


def in_turn(f: Callable) -> Callable:
    """As `jax.vmap(f)`, but a loop on the device (`jax.lax.map`): one member's memory at a time.

    Args:
      f: a function of trees of arrays.

    Returns:
      The function of trees with a leading axis [n ...].

    >>> in_turn(lambda x: x * 2)(jnp.arange(3))
    Array([0, 2, 4], dtype=int32)
    """
    return lambda *args: jax.lax.map(lambda xs: f(*xs), args)


def chunks(size: int, *, each: Callable = jax.vmap) -> Callable:
    """As `jax.vmap`, but `size` members at a time: activations of `size` members, states of all.

    The chunks are a loop inside the one program. What is left over when `size` does not divide the
    members is one more, smaller chunk. `chunked` finds the size that fits the memory.

    Args:
      size: members side by side, >= 1; that of all or more is `each` itself.
      each: how the members of one chunk are mapped: `jax.vmap` or `unrolled`.

    Returns:
      A transformation to be given as `each=` to `sweep`, `ensemble`, `stacked` or `spread`.

    Raises:
      ValueError: if size < 1.

    >>> chunks(2)(lambda x: x * 2)(jnp.arange(5)).tolist()
    [0, 2, 4, 6, 8]
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"chunks(size={size!r}): expected an integer >= 1, members at a time")

    def mapped(f):
        some = each(f)

        def every(*args):
            whole, rest = divmod(_count(args), size)
            if whole + bool(rest) == 1:
                return some(*args)
            rows = trees.plain(args)
            part = lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:])
            found = jax.lax.map(lambda xs: some(*xs), trees.keyed(jax.tree.map(part, rows), args))
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trees.plain(found))
            if rest:
                tail = jax.tree.map(lambda x: x[whole * size :], rows)
                more = trees.plain(some(*trees.keyed(tail, args)))
                flat = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, more)
            return trees.keyed(flat, found)

        return every

    mapped.__name__ = f"chunks of {size}"
    return mapped


def spread(mesh: Mesh, axis: str = "run", *, each: Callable = in_turn) -> Callable:
    """As `jax.vmap`, with the members divided over the devices of a mesh axis; no communication.

    With `in_turn` on each device a member is computed by the same program as alone, so the result
    is that of the single run to the last bit, on any number of devices.

    Args:
      mesh: from `nk.mesh`, such as mesh(run=8).
      axis: its axis that the members go over; must divide their number.
      each: how the members of one device are mapped: `in_turn`, `jax.vmap`, `unrolled` or
        `chunks(size)`.

    Returns:
      A transformation to be given as `each=` to `sweep`, `ensemble` or `stacked`.

    Raises:
      ValueError: if the mesh has no such axis, or (when called) it does not divide the members.

    >>> spread(nk.mesh(run=4))(lambda x: x * 2)(jnp.arange(8)).tolist()
    [0, 2, 4, 6, 8, 10, 12, 14]
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"spread(axis={axis!r}): the mesh has the axes {mesh.axis_names}")

    def mapped(f):
        over = jax.shard_map(
            each(f),
            mesh=mesh,
            in_specs=PartitionSpec(axis),
            out_specs=PartitionSpec(axis),
            check_vma=False,
        )

        def every(*args):
            if _left.get():
                return jax.vmap(f)(*args)
            n, parts = _count(args), mesh.shape[axis]
            if n % parts:
                raise ValueError(
                    f"spread: {n} members over {parts} devices: use a number of devices that "
                    f"divides {n}"
                )
            return over(*args)

        return every

    mapped.__name__ = f"spread over {mesh.shape[axis]} devices"
    mapped.place = NamedSharding(mesh, PartitionSpec(axis))
    return mapped


def chosen(step, batch) -> list[str]:
    """How the members of a Step are mapped: what `each=None` chose, in words.

    Nothing is run: init and update are traced.

    Args:
      step: a Step with a `sweep` or an `ensemble` in it, however wrapped.
      batch: a batch [b ...] as training has it.

    Returns:
      One sentence for each `sweep` or `ensemble` inside, outermost first; [] if there is none.

    >>> start = lambda key, batch: jax.random.normal(key)
    >>> task = nk.objective(start, lambda w, batch, key: (w - batch["x"]) ** 2)
    >>> one = nk.step(nk.gradient(task), optax.sgd(0.1))
    >>> chosen(nk.ensemble(one, 6), {"x": jnp.ones(3)})
    ['6 members: over 6 devices, on each 1 by vmap']
    >>> chosen(nk.ensemble(one, 6, each=nk.unrolled), {"x": jnp.ones(3)})
    ['6 members: unrolled, as given']
    """
    state = jax.eval_shape(lambda key: step.init(key, batch), jax.random.key(0))
    said: list[str] = []
    token = _heard.set(said)
    try:
        jax.eval_shape(lambda state, batch: step.update(state, batch), state, batch)
    finally:
        _heard.reset(token)
    return list(dict.fromkeys(said))


@contextlib.contextmanager
def devices_taken(parts: int = 1) -> Iterator[None]:
    """Inside, `each=None` spreads members over exactly `parts` devices or over none.

    A mesh of `shard`, or the members of an outer sweep, have the devices already.

    >>> with devices_taken():
    ...     free(8)
    1
    """
    token = _devices.set(parts)
    try:
        yield
    finally:
        _devices.reset(token)


@contextlib.contextmanager
def unspread() -> Iterator[None]:
    """Inside, `spread` is `jax.vmap`: the members are left to the mesh of a plan.

    >>> with unspread():
    ...     jax.make_jaxpr(spread(nk.mesh(run=2))(jnp.sin))(jnp.ones(2)).eqns[0].primitive.name
    'sin'
    """
    token = _left.set(True)
    try:
        yield
    finally:
        _left.reset(token)


def alone(f: Callable) -> Callable:
    """f, inside which no members are spread over devices: those are taken.

    >>> alone(free)(8)
    1
    """

    def apart(*args):
        with devices_taken():
            return f(*args)

    return apart


def free(n: int) -> int:
    """Over how many devices n members may be spread: the most that divide n.

    >>> free(6), free(1)
    (6, 1)
    """
    only = _devices.get()
    if only is not None:
        return only if n % only == 0 else 1
    if jax.process_count() > 1 or not jax.sharding.get_abstract_mesh().empty:
        return 1  # inside a shard_map, or a program of many processes: give `each=spread(mesh)`
    return max(d for d in range(1, min(n, len(jax.devices())) + 1) if n % d == 0)


def over(each: Callable | None, way: Way | None, f: Callable, *args):
    """f over the members of args [n ...] by `each`, or by `way` where `each` is None.

    What is inside does not spread its own members over devices once more.
    """
    n = _count(args)
    heard = _heard.get()
    if heard is not None:
        name = getattr(each, "__name__", "a transformation")
        heard.append(f"{n} members: {way.said if way else f'{name}, as given'}")
    places, found = _places.get(), each or way or jax.vmap
    if places is not None:
        places.append(None if _left.get() else getattr(found, "place", None))
    with devices_taken():
        return found(f)(*args)


@contextlib.contextmanager
def placed() -> Iterator[Callable]:
    """Gives a function that puts a tree [n ...] where the members inside of the block were put.

    A technique that remembers something for each member keeps it there from the start, so that the
    second update finds it where the first one did, and compiles nothing.

    >>> with placed() as along:
    ...     pass
    >>> along(jnp.arange(2)).tolist()
    [0, 1]
    """
    places: list = []
    outer, token = _places.get(), _places.set(places)

    def along(tree):
        if not places or places[0] is None:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, places[0]), tree)

    try:
        yield along
    finally:
        _places.reset(token)
        if outer is not None:
            outer.extend(places)


class Way:
    """A way that was chosen: the transformation, and what it is in words.

    >>> Way(2, 6, "vmap").said
    'over 2 devices, on each 3 by vmap'
    """

    def __init__(self, parts: int, n: int, kind: str):
        self.parts, self.kind = parts, kind
        self.place = NamedSharding(mesh_of(run=parts), PartitionSpec("run")) if parts > 1 else None
        own = f"on each {n // parts} by {kind}" if kind != "unrolled" else f"on each {n} unrolled"
        self.said = f"over {parts} devices, {own}" if parts > 1 else _alone(kind)

    def __call__(self, f: Callable) -> Callable:
        one = {"vmap": jax.vmap, "unrolled": unrolled, "in turn": in_turn}[self.kind]
        if self.parts == 1:
            return one(f)
        return spread(mesh_of(run=self.parts), each=one)(f)


def choose(n: int, program: Callable[[], object]) -> Way:
    """The way for n members: see `sweep`. `program` gives the jaxpr of one member's update."""
    convolved = 0
    if jax.default_backend() == "cpu" and n > 1:
        token = _heard.set(None)  # this is no trace of the program itself
        try:
            convolved = multiplications(program())
        finally:
            _heard.reset(token)
    if convolved:  # not over the cores: a convolution uses them all, and two would wait for threads
        return Way(1, n, "unrolled" if convolved > FEW and n <= UNROLLED else "vmap")
    return Way(free(n), n, "vmap")


def multiplications(jaxpr) -> int:
    """Multiplications in the convolutions of a jaxpr, its loops counted as one round.

    >>> f = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
    >>> multiplications(jax.make_jaxpr(f)(jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))))
    1350
    """
    total = 0
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = equation.params["dimension_numbers"].rhs_spec[0]  # the axis of its outputs
            out = np.prod(equation.outvars[0].aval.shape, dtype=np.int64)
            total += int(out * np.prod(kernel, dtype=np.int64) // kernel[outputs])
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(part, "jaxpr", part), "eqns"):
                    total += multiplications(part)
    return total


def member_of(args):
    """The shapes of one member of trees [n ...]."""
    one = lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype)
    return jax.tree.map(one, args)


def _alone(kind: str) -> str:
    return kind if kind in ("unrolled", "in turn") else f"side by side, by {kind}"


def _count(args) -> int:
    return len(jax.tree.leaves(args)[0])
