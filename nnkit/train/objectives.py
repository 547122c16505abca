"""Objectives: what we want. (params, carry, batch, key) -> a loss that is still a `Mean`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnkit.core import keys, trees
from nnkit.core.checks import concrete
from nnkit.core.means import Mean
from nnkit.core.outputs import last
from nnkit.core.ranges import watching
from nnkit.train.each import choose, devices_taken, member_of, over
from nnkit.train.nouns import expect

__all__ = [
    "Objective",
    "adapt",
    "frozen",
    "half",
    "objective",
    "pair",
    "penalised",
    "stacked",
    "supervised",
]


class Objective(NamedTuple):
    """What we want, as two pure functions.

    `params` is what gradients flow to; `carry` is what is carried along: batch statistics, frozen
    weights, a teacher. `key=None` means evaluation: no dropout, running statistics.

    Attributes:
      init: (key, batch) -> (params, carry).
      loss: (params, carry, batch, key) -> (Mean, (carry, metrics)); `metrics` maps names to
        `Mean`s, and a batch is a mapping of arrays [b ...] with an optional "mask" [b].

    >>> fit_line = Objective(
    ...     init=lambda key, batch: (jnp.zeros(()), {}),
    ...     loss=lambda w, carry, b, key: (Mean.of((w * b["x"] - b["y"]) ** 2), (carry, {})),
    ... )
    >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 4.0])}
    >>> fit_line.loss(jnp.float32(0), {}, batch, None)[0].value
    Array(10., dtype=float32)
    """

    init: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[Mean, tuple[Any, Mapping[str, Mean]]]]


def pair(model) -> tuple[Callable, Callable]:
    """A model as two pure functions: init(key, x) and apply(params, carry, x, key).

    A tuple of two functions is returned as it is. A Linen module gets `train=True` (if its call
    takes `train`) and random streams exactly when there is a key.

    Args:
      model: a Linen module, or (init, apply) with init(key, x) -> (params, carry) and
        apply(params, carry, x, key) -> (outputs, carry), where x is [b ...]. A Linen module is
        called with several arguments if x is a tuple of arrays, by name if it is a dict of them.

    Returns:
      (init, apply).

    Raises:
      TypeError: if it is neither.

    >>> init, apply = pair(nn.Dense(3))
    >>> params, carry = init(jax.random.key(0), jnp.ones((2, 4)))
    >>> apply(params, carry, jnp.ones((2, 4)), None)[0].shape
    (2, 3)
    """
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return model
    if isinstance(model, type) or not (hasattr(model, "init") and hasattr(model, "apply")):
        raise TypeError(
            f"model is {model!r:.80}, expected a Flax Linen module (an instance, not the class) "
            "or a tuple (init, apply) of pure functions; write nk.models.MLP((64, 10)), say; NNX "
            "modules enter by nnkit.interop.nnx"
        )
    module: Any = model  # has init and apply, whatever its type
    modal = "train" in inspect.signature(type(model).__call__).parameters

    def init(key, x):
        arguments, named = _inputs(x)
        try:
            variables = dict(module.init({"params": key}, *arguments, **named))
        except Exception as error:
            if not modal and re.search("deterministic|use_running_average", str(error)):
                error.add_note(
                    f"the call of {type(module).__name__} has no argument train, expected "
                    "__call__(self, x, *, train=False): give layers deterministic=not train and "
                    "use_running_average=not train"
                )
            raise
        return variables.pop("params", {}), variables

    def apply(params, carry, x, key):
        train = key is not None
        arguments, named = _inputs(x)
        out = module.apply(
            {"params": params, **carry},
            *arguments,
            **named,
            **({"train": train} if modal else {}),
            **({"rngs": {"dropout": key}, "mutable": list(carry)} if train else {}),
        )
        return (out[0], dict(out[1])) if train else (out, carry)

    return init, apply


def _inputs(x) -> tuple[tuple, dict]:
    """A tuple of arrays is several inputs, a dict inputs by name, anything else is one."""
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


def supervised(
    model, loss: Callable, *, x: str | tuple = "x", y: str | tuple = "y", **metrics
) -> Objective:
    """Learn to give `batch["y"]` for `batch["x"]`: mean of loss(outputs, y) over the mask.

    Outputs narrower than float32 are widened before the loss and the metrics see them.

    Args:
      model: a Linen module or an (init, apply) tuple (see `pair`); x [b ...] -> outputs [b ...].
      loss: (outputs, y) -> [b] one value per example, such as `losses.cross_entropy`; or a
        `Mean` of totals [b] and weights [b], such as `losses.sequence_cross_entropy`, where an
        example counts as much as it weighs (a text by its tokens).
      x: name of the inputs in a batch; a tuple of names gives the model several, in that order:
        x=("tokens", "token_mask") calls model(tokens, token_mask).
      y: name of the targets in a batch; y=("labels", "label_mask") calls
        loss(outputs, labels, label_mask), and the metrics likewise.
      **metrics: (outputs, y) -> [b ...] one value (or one table) per example, or a `Mean` as
        above, logged by name and averaged over the examples that the mask counts.

    Returns:
      An `Objective` whose metrics are "loss", those given, and counters such as "y outside 0..9":
      labels and ids that index nothing, which rows show if there are any.

    Raises:
      KeyError: if a batch lacks a field; the message lists what it has.
      TypeError: if x is uint8 (images not scaled) or the loss is no function.
      ValueError: if the loss is reduced already, or the labels of the first batch do not fit.

    >>> from nnkit import losses, metrics
    >>> task = supervised(nn.Dense(3), losses.cross_entropy, accuracy=metrics.accuracy)
    >>> batch = {"x": jnp.ones((2, 4)), "y": jnp.array([0, 2])}
    >>> params, carry = task.init(jax.random.key(0), batch)
    >>> mean, (carry, log) = task.loss(params, carry, batch, None)
    >>> sorted(log), float(mean.weight)
    (['accuracy', 'loss', 'y outside 0..2'], 2.0)
    """
    begin, apply = pair(model)
    for name, f in {"loss": loss, **metrics}.items():
        if not callable(f):
            raise TypeError(
                f"{name} is {f!r}, expected a function (outputs, y) -> [b], such as nk.losses.mse"
            )
    if "loss" in metrics:
        raise TypeError("'loss' is the name of the loss itself; give the metric another one")

    named = lambda fields: fields if isinstance(fields, tuple) else (fields,)

    def read(batch):
        missing = [name for name in (*named(x), *named(y)) if name not in batch]
        if missing:
            raise KeyError(
                f"the batch has the fields {sorted(batch)}, supervised(x={x!r}, y={y!r}) needs "
                f"{missing[0]!r}: rename the field, or say supervised(..., x=..., y=...)"
            )
        for name in named(x):
            if jnp.result_type(batch[name]) == jnp.uint8:
                raise TypeError(
                    f"{name} is uint8{list(batch[name].shape)}, range 0..255, expected floating "
                    "inputs near unit scale: divide by 255 (token ids: convert to int32)"
                )
        inputs = tuple(batch[name] for name in x) if isinstance(x, tuple) else batch[x]
        return inputs, tuple(batch[name] for name in named(y)), batch.get("mask")

    def init(key, batch):
        inputs, targets, _ = read(batch)
        params, carry = begin(key, inputs)
        word, outputs = last(lambda p, c: apply(p, c, inputs, None)[0], params, carry)
        if word and getattr(loss, "__module__", "") == "nnkit.losses.classify":
            raise ValueError(
                f"the model ends in {word}, but loss={loss.__name__} expected logits: the loss "
                f"takes the {word} itself, leave it out of the model"
            )
        known = [concrete(target) for target in targets]
        if all(target is not None for target in known):  # the real first batch: values as well
            jax.eval_shape(lambda o: loss(o, *known), outputs)
        return params, carry

    def value(params, carry, batch, key):
        inputs, targets, mask = read(batch)
        with watching(batch) as watch:
            outputs, carry = apply(params, carry, inputs, key)
            outputs = jax.tree.map(_widened, outputs)
            log = {"loss": _mean("loss", loss(outputs, *targets), targets[0], mask)}
            for name, f in metrics.items():
                log[name] = _mean(name, f(outputs, *targets), targets[0], mask, keep=True)
        return log["loss"], (carry, log | watch.counts())

    return Objective(init, value)


def _widened(x):
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x


def _mean(name, found, targets, mask, *, keep=False) -> Mean:
    """What a loss or metric gave for each example, [b ...] or a `Mean` of [b], as one `Mean`."""
    parts = (found.total, found.weight) if isinstance(found, Mean) else (found,)
    want = jnp.shape(targets)[:1]
    for part in parts:
        if jnp.shape(part)[:1] != want or not want:
            raise ValueError(
                f"{name} returned shape {jnp.shape(part)}, expected [b ...] with b = "
                f"{want or '?'}: one value per example; leave the mean over the batch to nnkit, "
                "so that masks count"
            )
    if len(parts) == 1:
        return Mean.of(found, mask, keep=keep)
    total, weight = (Mean.of(part, mask, keep=True).total for part in parts)
    return Mean(total, weight)


def objective(init: Callable, loss: Callable) -> Objective:
    """Anybody's own loss: two functions without carry, the mean and the mask are done here.

    Args:
      init: (key, batch) -> params.
      loss: (params, batch, key) -> [b] losses per example, or ([b], {name: [b ...]}) with metrics.

    Returns:
      An `Objective`; for batch statistics and the like build the `Objective` itself.

    Raises:
      ValueError: if the losses are reduced already.

    >>> line = objective(
    ...     lambda key, batch: {"slope": jnp.zeros(())},
    ...     lambda params, batch, key: (params["slope"] * batch["x"] - batch["y"]) ** 2,
    ... )
    >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 4.0])}
    >>> line.loss({"slope": jnp.float32(2)}, {}, batch, None)[0].value
    Array(0., dtype=float32)
    """

    def value(params, carry, batch, key):
        with watching(batch) as watch:
            found = loss(params, batch, key)
        found, metrics = found if isinstance(found, tuple) else (found, {})
        mask = batch.get("mask")
        mean = Mean.of(found, mask)
        log = {name: Mean.of(v, mask, keep=True) for name, v in metrics.items()}
        return mean, (carry, {"loss": mean, **log, **watch.counts()})

    return Objective(lambda key, batch: (init(key, batch), {}), value)


def half(objective: Objective, dtype=jnp.bfloat16, *, keep=("y", "mask")) -> Objective:
    """Compute in `dtype`, keep parameters, gradients, targets and the loss as they are.

    half(float32) is the identity.

    Args:
      objective: any Objective.
      dtype: bfloat16 (float32 switches it off). float16 needs a loss scale and is refused.
      keep: fields of the batch [b ...] that are not converted.

    Returns:
      An Objective.

    Raises:
      ValueError: if dtype is float16 or not a floating type.

    >>> seen = Objective(lambda k, b: (jnp.ones(1), {}), lambda p, c, b, k: (p.dtype, b["x"].dtype))
    >>> half(seen).loss(jnp.ones(1), {}, {"x": jnp.ones(2)}, None)
    (dtype(bfloat16), dtype(bfloat16))

    Kalamkar et al., arXiv:1905.12322; Micikevicius et al., arXiv:1710.03740, section 3.1.
    """
    expect("half", objective, Objective)
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float16 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"half(dtype={dtype}): expected bfloat16, which needs no loss scale")

    def low(tree):
        def cast(x):
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(cast, tree)

    def loss(params, carry, batch, key):
        small = {k: v if k in keep else low(v) for k, v in batch.items()}
        return objective.loss(low(params), carry, small, key)

    return objective._replace(loss=loss)


def penalised(objective: Objective, penalty: Callable, coefficient=1.0) -> Objective:
    """Loss + coefficient * penalty(params). coefficient = 0 is the identity.

    Args:
      objective: any Objective.
      penalty: params -> [] a number, such as `lambda p: optax.tree.norm(p, squared=True)`.
      coefficient: [] weight of the penalty; may be traced, so that `sweep` can vary it.

    Returns:
      An Objective; the metric "loss" stays the loss alone, "penalty" is logged beside it.

    >>> nothing = lambda p, carry, batch, key: (Mean.of(0 * p), (carry, {}))
    >>> zero = Objective(lambda key, batch: (jnp.ones(2), {}), nothing)
    >>> total, _ = penalised(zero, lambda p: (p**2).sum(), 0.5).loss(jnp.ones(2), {}, {}, None)
    >>> float(total.value)
    1.0
    """

    expect("penalised", objective, Objective)

    def loss(params, carry, batch, key):
        mean, (carry, metrics) = objective.loss(params, carry, batch, key)
        extra = jnp.asarray(coefficient * penalty(params)).astype(mean.weight.dtype)
        added = Mean(extra * mean.weight, mean.weight)
        total = Mean(mean.total + added.total, mean.weight)
        return total, (carry, {**metrics, "penalty": added})

    return objective._replace(loss=loss)


def frozen(objective: Objective, trainable: Callable[[str], bool]) -> Objective:
    """Train only the leaves whose path is chosen; the rest ride in the carry.

    frozen(everything trainable) is the identity on the loss.

    Args:
      objective: any Objective.
      trainable: predicate over a path such as "Dense_1/kernel".

    Returns:
      An Objective with carry {"frozen": ..., "inner": ...}.

    Raises:
      ValueError: if no leaf is chosen; the message lists the paths there are.

    >>> task = supervised(nn.Sequential([nn.Dense(4), nn.Dense(2)]), lambda out, y: out.sum(-1))
    >>> task = frozen(task, lambda path: path.startswith("layers_1"))
    >>> params, carry = task.init(jax.random.key(0), {"x": jnp.ones((1, 3)), "y": jnp.ones(1)})
    >>> [path for path, _ in nk.trees.paths(params)]
    ['layers_1/bias', 'layers_1/kernel']
    """

    expect("frozen", objective, Objective)

    def init(key, batch):
        params, carry = objective.init(key, batch)
        chosen, rest = trees.split(params, trainable)
        if not jax.tree.leaves(chosen):
            raise ValueError(
                "frozen: the predicate chooses none of the parameters "
                f"{[path for path, _ in trees.paths(params)]}, expected at least one; let it take "
                'some of these paths: lambda path: path.startswith("head")'
            )
        return chosen, {"frozen": rest, "inner": carry}

    def loss(params, carry, batch, key):
        whole = trees.join(params, carry["frozen"])
        mean, (inner, metrics) = objective.loss(whole, carry["inner"], batch, key)
        return mean, ({"frozen": carry["frozen"], "inner": inner}, metrics)

    return Objective(init, loss)


def adapt(objective: Objective, params, carry=None, *, fresh=lambda path: False) -> Objective:
    """Start from given weights instead of random ones. fresh = everything is the identity.

    Args:
      objective: any Objective.
      params: the weights to start from: the same tree, shapes and dtypes as `init` gives; leaves
        that `fresh` chooses may be missing or of another shape (a new head).
      carry: the carry to start from; None keeps that of `init`.
      fresh: predicate over paths: these leaves keep their random start.

    Returns:
      An Objective. The given arrays are copied, so that donation never deletes them.

    Raises:
      ValueError: if a leaf is missing, left over or of another shape; names the first one.

    >>> task = supervised(nn.Dense(2), lambda out, y: out.sum(-1))
    >>> given = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> task = adapt(task, given, fresh=lambda path: path == "bias")
    >>> task.init(jax.random.key(0), {"x": jnp.ones((1, 3)), "y": jnp.ones(1)})[0]["kernel"].sum()
    Array(6., dtype=float32)
    """

    expect("adapt", objective, Objective)
    if not callable(fresh):
        raise TypeError(
            f"adapt: fresh is {fresh!r:.60}, expected a predicate over paths: "
            'fresh=lambda path: path.startswith("head")'
        )
    if hasattr(params, "params"):
        raise TypeError(
            f"adapt: params is {type(params).__name__}, expected the parameters themselves: give "
            "its .params"
        )

    def init(key, batch):
        own, own_carry = objective.init(key, batch)
        given = dict(trees.paths(params))
        wanted = {path: x for path, x in trees.paths(own) if not fresh(path)}
        extra = {path: x for path, x in given.items() if path in wanted or not fresh(path)}
        problem = trees.difference(extra, wanted)
        if problem:
            raise ValueError(f"adapt: {problem}; name leaves to start anew by fresh=path -> bool")

        def leaf(path, x):
            name = trees.path_name(path)
            return x if fresh(name) else jnp.array(given[name], copy=True)

        started = jax.tree_util.tree_map_with_path(leaf, own)
        if carry is None:
            return started, own_carry
        problem = trees.difference(carry, own_carry)
        if problem:
            raise ValueError(f"adapt: in the carry, {problem}")
        return started, jax.tree.map(lambda x: jnp.array(x, copy=True), carry)

    return objective._replace(init=init)


def stacked(objective: Objective, *, each: Callable | None = None) -> Objective:
    """Evaluate a stack of members at once: params and carry have a leading axis [n].

    For the weights of `ensemble` and `sweep`; the loss has total [n] and weight [n].

    Args:
      objective: the Objective of one member.
      each: how a function is mapped over members: `jax.vmap`, `unrolled`, `in_turn`, `chunks(size)`
        or `spread(mesh)`. None chooses as `sweep` does, but spreads nothing over devices: there
        the compiler goes by where the weights are.

    Returns:
      An Objective to evaluate. Its `init` raises: the members come from `ensemble` or `sweep`.

    Raises:
      TypeError: by `init`.

    >>> loss = lambda w, carry, batch, key: (Mean.of(w * batch["x"]), (carry, {}))
    >>> one = Objective(lambda key, batch: (jnp.ones(()), {}), loss)
    >>> stacked(one).loss(jnp.array([1.0, 2.0]), {}, {"x": jnp.ones(3)}, None)[0].value
    Array([1., 2.], dtype=float32)
    """

    expect("stacked", objective, Objective)

    def init(key, batch):
        raise TypeError(
            "stacked(objective) was given to init, expected the plain objective: it reads weights "
            "that already have a leading axis; train them with ensemble(step, n) or "
            "sweep(recipe, grid) of the plain objective"
        )

    def loss(params, carry, batch, key):
        n = jax.tree.leaves((params, carry))[0].shape[0]
        own = () if key is None else jax.random.split(keys.fold(key, "stacked"), n)

        def one(p, c, k):
            return objective.loss(p, c, batch, None if key is None else k)

        return over(each, None if each else _way(one, params, carry, own), one, params, carry, own)

    return Objective(init, loss)


def _way(f, *args):
    n = len(jax.tree.leaves(args)[0])
    with devices_taken():
        return choose(n, lambda: jax.make_jaxpr(f)(*member_of(args)))
