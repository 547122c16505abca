"""`nk.plan`: the real training step, compiled for chips that need not be there."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nnkit.core import trees
from nnkit.core.platforms import compiling_for
from nnkit.cost import layouts
from nnkit.cost.budget import USABLE, Assumptions, budget, roofline
from nnkit.cost.compiling import figures, kept_in, to_stderr, versions
from nnkit.cost.counting import count, transformer
from nnkit.cost.layouts import Layout
from nnkit.cost.plans import Memory, Plan
from nnkit.cost.programs import Collective
from nnkit.cost.search import largest
from nnkit.cost.targets import Target, target
from nnkit.train import Step, shard
from nnkit.train.each import devices_taken, unspread
from nnkit.train.nouns import expect

__all__ = ["plan"]


def plan(
    step: Step,
    batch: Mapping[str, Any],
    topology: str | None = None,
    *,
    mesh: Mapping[str, int] | Mesh | None = None,
    state: Callable | None = None,
    split: PartitionSpec | None = None,
    model=None,
    tokens: float | None = None,
    assume: Mapping[str, float] | Assumptions | None = None,
    chip: Mapping[str, Any] | None = None,
    search: bool | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = to_stderr,
) -> Plan:
    """What training will take, before anything is paid: the real step, compiled without the chips.

    The update of the Step is traced for that kind of chip, sharded, lowered and compiled by the
    chip's own compiler: libtpu for TPUs, the CUDA plugin of JAX for GPUs (extra `plan`), XLA for
    the CPU. Nothing is run. Figures are kept on disk by the hash of the program, so that the second
    time takes seconds. Set JAX_PLATFORMS=cpu where libtpu is installed and no TPU is.

    Args:
      step: any Step, not sharded yet: the plan shards it.
      batch: a mapping of arrays [b ...], or of `jax.ShapeDtypeStruct`.
      topology: "v5e:4x4", "h100:8", "cpu:8"; None: the attached devices. See `cost.target`.
      mesh: sizes of the axes of the mesh, such as {"fsdp": 16}, or an `nk.mesh`, whose devices do
        not count; None: {"data": n} for n devices.
      state: rule (path, leaf, mesh) -> PartitionSpec for the state; None: `rules.expert`,
        `rules.tensor` and `rules.fsdp` for those axes that the mesh has, and whole copies else.
      split: which axes of a batch [b ...] go along which axes of the mesh; None: b along "data",
        "fsdp" and "expert", the next axis along "sequence", as far as the mesh has them.
      model: a model with depth, heads and width, such as models.GPT, for the formula beside the
        count; None: 6 N D with all weights.
      tokens: of the whole training (examples, if a batch has no "tokens"), for hours and cost.
      assume: what cannot be known, see `cost.Assumptions`: {"price": 2.0, "efficiency": 0.4}.
      chip: figures of the chip to replace, see `cost.Chip`.
      search: look for the largest batch that fits, by compiling others; None: if this one does not.
      folder: where figures are kept; None: NNKIT_CACHE/plans (NNKIT_CACHE=0: nowhere).
      say: where progress goes, a function of a line; stderr by default.

    Returns:
      A `Plan`, a frozen dataclass that prints as a table.

    Raises:
      ValueError: if the topology is unknown, the mesh does not multiply out to it, an axis does not
        divide what it splits, or nothing is split over an axis; before anything is compiled.
      ImportError: if the compiler of that chip is not installed.
      TypeError: if the step or the mesh is none, or an assumption has no such name.

    >>> task = nk.supervised(nk.models.MLP((8, 2)), nk.losses.cross_entropy)
    >>> step = nk.step(nk.gradient(task), optax.adam(1e-3))
    >>> batch = {"x": np.ones((16, 4), np.float32), "y": np.zeros(16, np.int32)}
    >>> found = plan(step, batch, "cpu:4", say=lambda line: None)
    >>> found.parameters, [(c.kind, c.group) for c in found.collectives][:1]
    (58, [('all-reduce', 4)])
    """
    expect("plan", step, Step)
    aims = target(topology, **(chip or {}))
    assumed = _assumptions(assume)
    shares = USABLE[aims.chip.kind][0] if assumed.usable is None else assumed.usable
    many = len(aims.devices) if aims.chip.kind == "cpu" else aims.per_chip  # who share a memory
    limit = int(aims.chip.memory * shares / many)
    layout = layouts.layout(aims, mesh, state, split)
    shapes = _abstract(batch)
    get = functools.partial(_compiled, step, layout, aims, kept_in(folder), say)
    made = get(shapes)
    found = made.figures
    memory = _bytes(made, layout, found, limit)
    best = None
    if search or (search is None and (found.get("refused") or memory.peak > limit)):
        best = _search(get, shapes, layout, limit, made)
    units, amount = _amount(shapes)
    theory, what = _formula(model, made.parameters, shapes, amount, units)
    sent = tuple(Collective(*c) for c in found.get("collectives", []))
    roof = None
    if not found.get("refused"):
        moved = sum(c.moved for c in sent)
        numbers = (made.flops.products_by, found["traffic"] or 0.0, moved, len(aims.devices))
        roof = roofline(*numbers, aims.chip, aims.per_chip)
    whole = None
    if tokens is not None and roof is not None:
        chips = len(aims.devices) / aims.per_chip
        whole = budget(tokens, amount, roof.seconds, chips, aims.chip, assumed)
    return Plan(
        topology=topology or f"attached {aims.name}",
        chip=aims.chip,
        devices=len(aims.devices),
        per_chip=aims.per_chip,
        mesh=dict(layout.mesh.shape) if layout.mesh is not None else {},
        batch_size=_rows(shapes),
        amount=amount,
        units=units,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(made.parameters)),
        memory=memory,
        refused=found.get("refused") or "",
        flops=made.flops,
        formula=theory,
        formula_of=what,
        xla_flops=found.get("flops"),
        traffic=found.get("traffic"),
        collectives=sent,
        roofline=roof,
        assume=assumed,
        budget=whole,
        largest=best,
        notes=(*made.flops.unknown, *found.get("unknown", ())),
        compile_seconds=found["seconds"],
        cached=found["cached"],
        versions=versions(),
    )


class _Made(NamedTuple):
    """A step for one batch: shapes of state and weights, operations, the compiler's figures."""

    state: Any
    parameters: Any
    batch: Any
    flops: Any
    figures: dict[str, Any]


def _compiled(step, layout: Layout, aims: Target, folder, say, batch) -> _Made:
    """Trace, shard, lower and compile the update for a batch of these shapes."""
    with compiling_for(aims.chip.kind), devices_taken(), unspread():  # none of this machine
        whole = step
        if layout.mesh is not None:
            whole = shard(step, layout.mesh, batch=layout.split, state=layout.state)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(whole.init, key, batch)
        params = jax.eval_shape(lambda s: whole.weights(s)[0], state)

        def put(path, x):
            place = layout.place(trees.path_name(path), x)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        placed = jax.tree_util.tree_map_with_path(put, state)
        given = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.place_batch(x)), batch
        )

        def update(state, batch):  # a function of its own: jit keeps what it traced, by function
            return whole.update(state, batch)

        traced = jax.jit(update, donate_argnums=0).trace(placed, given)
        layouts.check(layout, (placed, given), traced.jaxpr)
        flops, lowered = count(traced.jaxpr, trips=1), _lowered(traced, aims)
        shape = "" if layout.mesh is None else f" {dict(layout.mesh.shape)}"
        title = f"{aims.name}{shape}, batch {_rows(batch):,}"
        about = f"{title} {aims.chip.about}"
        found = figures(lowered, title, folder, say, about=about)
    return _Made(placed, params, given, flops, found)


def _lowered(traced, aims: Target):
    """The program for the compiler; a step that has devices of its own has none of these."""
    try:
        return traced.lower()
    except ValueError as error:
        if "ncompatible devices" not in str(error):
            raise
        raise ValueError(
            f"the step is spread over devices of its own, which are not those of {aims.name}: "
            "build it without nk.shard, and give the plan mesh=... and state=... instead"
        ) from error


def _bytes(made: _Made, layout: Layout, found: dict, limit: int) -> Memory:
    def params(path, x):
        return _local(x, layout.place("params/" + trees.path_name(path), x))

    weights = jax.tree.leaves(jax.tree_util.tree_map_with_path(params, made.parameters))
    own = ("arguments", "outputs", "aliased", "temporaries", "peak")
    numbers = {name: int(found.get(name) or 0) for name in own}
    if found.get("refused"):
        numbers["peak"] = int(found.get("needed") or 0)
        limit = int(found.get("limit") or limit)
    state = sum(_local(x, x.sharding) for x in jax.tree.leaves(made.state))
    batch = sum(_local(x, x.sharding) for x in jax.tree.leaves(made.batch))
    return Memory(parameters=sum(weights), state=state, batch=batch, limit=limit, **numbers)


def _local(x, sharding) -> int:
    """Bytes of a leaf on one device; a key is its data."""
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return math.prod(data.shape) * data.dtype.itemsize
    return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _abstract(batch) -> Any:
    """The batch as shapes, with the dtypes that JAX will give them."""
    if not isinstance(batch, Mapping) or not batch:
        raise TypeError(f"plan: the batch is {type(batch).__name__}, expected a mapping of arrays")

    def shape(x):
        dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
        return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(dtype))

    found = {name: jax.tree.map(shape, x) for name, x in batch.items()}
    sizes = {path: x.shape[:1] for path, x in trees.paths(found)}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(f"plan: the fields of the batch differ in length: {sizes}")
    return found


def _rows(batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _amount(batch) -> tuple[str, int]:
    for name in ("tokens", "target_in"):
        if name in batch:
            return "tokens", math.prod(batch[name].shape)
    return "examples", _rows(batch)


def _formula(model, params, batch, amount: int, units: str) -> tuple[float, str]:
    """The formula, and what it is: with attention if the model says what it is made of."""
    n = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    fields = ("depth", "heads", "width")
    if model is None or not all(hasattr(model, name) for name in fields) or units != "tokens":
        return 6.0 * n * amount, f"6 N D with N all weights, D {units}"
    paths = trees.paths(params)
    looked = [x for path, x in paths if path.endswith("positions/embedding")]
    if not getattr(model, "tied", True):
        looked += [x for path, x in paths if path.endswith("embed/embedding")]
    used = n - sum(math.prod(x.shape) for x in looked)
    experts = getattr(model, "experts", None)
    if experts:
        table = sum(
            math.prod(x.shape) for p, x in paths if "/mlp/" in p and x.shape[:1] == (experts,)
        )
        used -= table * (experts - model.top_k) // experts
    width = model.heads * (getattr(model, "head_dim", None) or model.width // model.heads)
    t = batch["tokens"].shape[1]
    total = transformer(used, amount, depth=model.depth, width=width, length=t)
    return total, "6 N D + 12 L d T D"


def _assumptions(assume) -> Assumptions:
    if isinstance(assume, Assumptions):
        return assume
    names = list(Assumptions.__dataclass_fields__)
    for name in assume or {}:
        if name not in names:
            raise TypeError(f"plan: there is no assumption {name!r}, expected {', '.join(names)}")
    return Assumptions(**(assume or {}))


def _search(get, batch, layout: Layout, limit: int, first: _Made) -> tuple[int, int | None]:
    """The largest batch that fits, and the smallest that does not."""
    start = _rows(batch)

    def resized(b):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), batch)

    def peak(b):
        found = first.figures if b == start else get(resized(b)).figures
        if found.get("refused"):  # a message rounds what is needed, perhaps down to the limit
            return max(found.get("needed") or math.inf, limit + 1)
        return found["peak"]

    return largest(peak, limit, start=start, granule=_granule(get, resized, layout.pieces, start))


def _granule(get, resized, pieces: int, start: int) -> int:
    """Batch sizes are multiples of it: the least divisor of this one that the step can take."""
    step, layout = get.args[:2]
    for b in range(pieces, start, pieces):
        if start % b:
            continue
        whole = step if layout.mesh is None else shard(
            step, layout.mesh, batch=layout.split, state=layout.state
        )  # fmt: skip
        key = jax.eval_shape(lambda: jax.random.key(0))
        try:
            with devices_taken(), unspread():
                jax.eval_shape(lambda k, x, s=whole: s.update(s.init(k, x), x), key, resized(b))
        except ValueError:
            continue
        return b
    return start
