"""Compilations, memory and transfers of a run: counted, and drifts of arguments named."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
import tempfile
import textwrap
import traceback
import warnings
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnkit as nk
from nnkit.loop.retraces import watched
from reliability import progress
from reliability.children import child

__all__ = ["cycles", "drifts", "examples", "memory"]

EVENT = "/jax/core/compile/backend_compile_duration"
_open: list[SimpleNamespace] = []


def _heard(event: str, duration_secs: float, **_) -> None:
    for counter in _open:
        counter.count += event == EVENT


@contextlib.contextmanager
def counted():
    """`.count` programs were compiled inside the block."""
    if not _listening:
        _listening.append(True)
        jax.monitoring.register_event_duration_secs_listener(_heard)
    counter = SimpleNamespace(count=0)
    _open.append(counter)
    try:
        yield counter
    finally:
        _open.remove(counter)


_listening: list[bool] = []


class Normed(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        h = nn.Dense(8)(x)
        h = nn.relu(nn.BatchNorm(use_running_average=not train)(h))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(h))


def _batches(shape: tuple[int, ...], *, ids: int = 0, n: int = 40, size: int = 16):
    """Batches of a fixed size, the last with a mask."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, ids, (n, *shape)) if ids else rng.normal(size=(n, *shape))
    x, y = x.astype(np.int32 if ids else np.float32), rng.integers(0, 3, n).astype(np.int32)
    return nk.data.arrays(x, y, batch_size=size, seed=0)


MODELS = {
    "perceptron": lambda: (Normed(), (6,), 0),
    "convolutions": lambda: (nk.models.ConvNet((4, 4), hidden=8, classes=3), (8, 8, 1), 0),
    "recurrent": lambda: (nk.models.RecurrentClassifier(classes=3, width=4), (5, 2), 0),
    "transformer": lambda: (
        nk.models.ViT(classes=3, patch=4, image=8, channels=1, width=8, depth=1, heads=2),
        (8, 8, 1),
        0,
    ),
    "temporal": lambda: (nk.models.TCN(classes=3, channels=(4,), kernel=3), (8, 2), 0),
    "by hand": lambda: (None, (6,), 0),
}


def _task(name: str):
    model, shape, ids = MODELS[name]()
    if model is not None:
        data = _batches(shape, ids=ids)
        return nk.supervised(model, nk.losses.cross_entropy), data

    def loss(w, carry, batch, key):
        losses = nk.losses.cross_entropy(batch["x"] @ w, batch["y"])
        mean = nk.Mean.of(losses, batch.get("mask"))
        return mean, (carry, {"loss": mean})

    return nk.Objective(lambda key, b: (jnp.zeros((6, 3)), {}), loss), _batches(shape)


def examples(count: int, seed: int) -> dict:
    """RC-01: a run compiles one update and one evaluation, and nothing after step 2."""
    failures, most = [], 0
    for trial in range(count):
        name = list(MODELS)[trial % len(MODELS)]
        try:
            task, data = _task(name)
            step = nk.ema(nk.step(nk.gradient(task), optax.adam(1e-3)), 0.9)
            state = nk.init(step, jax.random.key(seed), next(iter(data)))
            at = []
            with counted() as programs:
                hook = lambda params, carry, at=at, p=programs: at.append(p.count)
                every: dict = {1: [nk.evaluate(task, data), hook]}
                nk.fit(step, state, data, steps=12, every=every, progress=False)
        except Exception:
            failures.append(f"trial {trial} ({name}): {traceback.format_exc()[-800:]}")
            continue
        most = max(most, programs.count)
        if programs.count != 2 or at[-1] != at[1]:
            failures.append(f"trial {trial} ({name}): {programs.count} programs, by step {at}")
    return {"count": count, "failures": failures, "most_programs": most}


# -------------------------------------------------------------------------------------- drifts


def _fitted(change):
    """What is said when the third batch of a training is another."""
    rng = np.random.default_rng(0)
    first = {"x": rng.normal(size=(32, 8)).astype(np.float32), "y": np.arange(32, dtype=np.int32)}
    first["y"] %= 3
    task = nk.supervised(nk.models.Linear(3), nk.losses.cross_entropy)
    step = nk.step(nk.gradient(task), optax.sgd(0.1))
    state = nk.init(step, jax.random.key(0), first)
    data = [first, first, first, change(dict(first)), first]
    return _said(lambda: nk.fit(step, state, data, steps=5, progress=False))


def _called(function, *calls, **options):
    """What is said when a function is called with these arguments in turn."""
    f = watched(function, who="f", **options)
    f(*calls[0])
    return _said(lambda: [f(*call) for call in calls[1:]])


def _said(work) -> tuple[list[str], int]:
    """(warnings, programs compiled)."""
    with warnings.catch_warnings(record=True) as seen, counted() as programs:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in seen if "compiles again" in str(w.message)], programs.count


def _placed():
    mesh = nk.mesh(data=2)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    here = jax.device_put(jnp.ones(4), jax.devices()[0])
    return _called(lambda x: x * 2, (here,), (jax.device_put(np.ones(4, np.float32), spread),))


def _fortran(batch):
    return {**batch, "x": np.asfortranarray(batch["x"])}


ONE = np.float32(1)
# name: (what to do, what the message must have; None: nothing is compiled for it)
DRIFTS = {
    "ragged": (
        lambda: _fitted(lambda b: {k: v[:31] for k, v in b.items()}),
        "batch['x'] changed from f32[32,8] to f32[31,8]; batch['y'] changed from i32[32]",
    ),
    "dtype": (
        lambda: _fitted(lambda b: {**b, "y": b["y"].astype(np.int8)}),
        "batch['y'] changed from i32[32] to i8[32]",
    ),
    "weak type": (
        lambda: _called(lambda x, rate: x * rate, (ONE, 0.5), (ONE, ONE)),
        "rate changed from f32[] weak to f32[]",
    ),
    "scalar rate": (
        lambda: _called(lambda x, rate: x * rate, (ONE, ONE), (ONE, jnp.float32(2)), (ONE, 2.0)),
        "rate changed from f32[] to f32[] weak",
    ),
    "static step": (
        lambda: _called(lambda x, step: x + step, (ONE, 1.0), (ONE, 2.0), static_argnums=1),
        "step changed from 1.0 to 2.0",
    ),
    "new lambda": (
        lambda: _called(
            lambda x, g: g(x), (ONE, lambda x: x), (ONE, lambda x: x), static_argnums=1
        ),
        "g changed from <function",
    ),
    "ordered dict": (
        lambda: _fitted(collections.OrderedDict),
        "the kind of batch changed from",
    ),
    "sharding": (_placed, "x changed from"),
    "layout": (lambda: _fitted(_fortran), None),
    "x64": (lambda: _fitted(lambda b: {**b, "x": b["x"].astype(np.float64)}), None),
    "key type": (
        lambda: _called(
            lambda key: jax.random.uniform(key), (jax.random.key(0),), (jax.random.PRNGKey(0),)
        ),
        "key changed from key<fry>[] to u32[2]",
    ),
    "None leaf": (
        lambda: _called(
            lambda batch: batch["x"], ({"x": ONE, "mask": ONE},), ({"x": ONE, "mask": None},)
        ),
        "batch['mask'] changed from f32[] to None",
    ),
}


def drifts(count: int, seed: int) -> dict:
    """RC-02: twelve ways in which arguments drift are normalised, or named with old and new."""
    failures, named = [], 0
    for trial in range(count):
        name = list(DRIFTS)[trial % len(DRIFTS)]
        work, wanted = DRIFTS[name]
        try:
            said, programs = work()
        except Exception:
            failures.append(f"{name}: {traceback.format_exc()[-800:]}")
            continue
        named += wanted is not None
        if wanted is None and (said or programs > 1):  # the one of the first batch
            failures.append(f"{name}: {programs} programs, {said}")
        if wanted is not None and not any(wanted in text for text in said):
            failures.append(f"{name}: expected {wanted!r} in {said}")
    return {"count": count, "failures": failures, "named": named, "normalised": count - named}


# -------------------------------------------------------------------------- memory and cycles

GROWTH = """
    import os, sys, jax
    import nnkit as nk
    from reliability import interrupts

    task, step, train, test = interrupts.ingredients()
    page = os.sysconf("SC_PAGE_SIZE")


    def measure(params, carry):
        pages = int(open("/proc/self/statm").read().split()[1])
        print("now", pages * page, len(jax.live_arrays()), flush=True)


    thousands = int(sys.argv[1])
    every = {500: nk.evaluate(task, test), 1000: measure}
    options = dict(steps=1000 * (thousands + 1), every=every, progress=False)
    if sys.argv[2] == "alone":
        nk.fit(step, interrupts.begun(), train, **options)
    else:
        with nk.Run(sys.argv[2], {"a": 1}, save_every=500) as run:
            nk.fit(step, interrupts.begun(), train, run=run, **options)
"""


def memory(count: int, seed: int) -> dict:
    """RC-03: memory and live arrays from step 1,000 on; `count` is thousands of steps.

    Twice: with evaluations and rows alone, and with a checkpoint each 500 steps besides. The bound
    of 5 MiB is on the first; the second is told, as the writers of arrays keep what they may use
    again.
    """
    failures: list[str] = []
    found: dict = {"count": 1000 * count}
    for name in ("alone", "checkpoints"):
        with tempfile.TemporaryDirectory() as folder:
            place = "alone" if name == "alone" else folder
            with child(textwrap.dedent(GROWTH), count, place) as process:
                ended = process.wait(120 + 120 * count)
        seen = [line.split()[1:] for line in ended.out.splitlines() if line.startswith("now ")]
        sizes, arrays = [int(a) / 2**20 for a, _ in seen], [int(b) for _, b in seen]
        if ended.code or len(seen) != count + 1:
            failures.append(f"{name}: ended with {ended.code}: {ended.err[-800:]}")
            continue
        growth, more = max(sizes[1:]) - sizes[0], max(arrays[1:]) - arrays[0]
        if more > 0 or growth > (5 if name == "alone" else 20):
            said = [round(x, 1) for x in sizes]
            failures.append(f"{name}: memory in MiB {said}, arrays {arrays}")
        found[f"rss_growth_{name}_mib"] = round(growth, 2)
        found[f"more_arrays_{name}"] = more
    return {**found, "failures": failures}


CYCLES = """
    import contextlib, gc, sys
    import jax
    gc.disable()
    import nnkit as nk
    from reliability import interrupts

    task, step, train, test = interrupts.ingredients()
    gc.collect()
    gc.enable()
    for trial in range(int(sys.argv[1])):
        hook = nk.evaluate(task, test)
        with nk.Run(sys.argv[2] + "/" + str(trial), {"a": 1}, save_every=10) as run:
            state, _ = nk.fit(step, interrupts.begun(), train, steps=30, every={10: hook},
                              run=run, progress=False)
        nk.predict(nk.models.MLP((16, 10), dropout=0.3), *step.weights(state), test)
        saved = run.checkpoints.restore(state)
        del state, saved, hook
        with contextlib.suppress(ValueError):
            nk.fit(step, interrupts.begun(), iter(list(train)[:3]), steps=9, progress=False)
        with jax.array_garbage_collection_guard("fatal"):
            gc.collect()
        print("pass", trial, flush=True)
"""


def cycles(count: int, seed: int) -> dict:
    """RC-05: arrays go when the last name does, and are never left to the garbage collector."""
    with (
        tempfile.TemporaryDirectory() as folder,
        child(textwrap.dedent(CYCLES), count, folder) as process,
    ):
        ended = process.wait(120 + 10 * count)
    done = ended.out.count("pass ")
    failures = []
    if ended.code or done != count:
        failures.append(f"ended with {ended.code} after {done}: {ended.err[-1200:]}")
    return {"count": done, "failures": failures}


def main() -> None:
    """One campaign by name: python -m reliability.compiles drifts 12 0."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    jax.config.update("jax_num_cpu_devices", 8)
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = {f.__name__: f for f in (examples, drifts, memory, cycles)}[name]
    progress(f"{name}: {count}")
    print(json.dumps(work(count, seed), indent=1))


if __name__ == "__main__":
    main()
