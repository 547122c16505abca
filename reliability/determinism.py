"""DT: the same bits again, whatever is in between. Campaigns (count, seed) -> figures."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit.core import trees
from reliability import progress
from reliability.children import child
from reliability.kinds import KINDS, kind, labelled

__all__ = ["across_devices", "cut", "digests", "flipped", "leaves", "twice"]

MANY = 60  # cuts from which on a run saves after each of its steps
AGAIN = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import nnkit as nk
from jax.sharding import PartitionSpec as P
from reliability.kinds import kind

steps, found = int(sys.argv[1]), {}
for name in sys.argv[2:]:
    one = kind(name)
    for n in (1, 8):
        step = one.step if n == 1 else nk.shard(one.step, nk.mesh(data=8), batch=P("data"))
        state = nk.init(step, jax.random.key(0), next(iter(one.batches)))
        state, rows = nk.fit(step, state, one.batches, steps=steps, log_every=1, progress=False)
        losses = [row["loss"].hex() for row in rows]
        found[f"{name} on {n}"] = [nk.digest(state), len(losses), losses]
print("FOUND" + json.dumps(found))
"""


def twice(
    count: int, seed: int, *, steps: int = 200, anew: bool = True, names=tuple(KINDS)
) -> dict:
    """DT-01: the same script in two new processes, on 1 and on 8 devices: losses and states.

    `count` kinds of model. With `anew` each process compiles for itself, without a cache.
    """
    names = names[:count]
    progress(f"DT-01: {', '.join(names)}")
    said, both = [], []
    with tempfile.TemporaryDirectory() as folder:
        for again in ("a", "b"):
            env = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{again}"} if anew else {}
            both.append(child(AGAIN, steps, *names, env=env))
        for ended in [one.wait(1800) for one in both]:
            lines = [line for line in ended.out.splitlines() if line.startswith("FOUND")]
            if ended.code != 0 or not lines:
                why = f"seed {seed}: exit {ended.code}: {ended.err[-800:]}"
                return {"count": 0, "failures": [why]}
            said.append(json.loads(lines[0].removeprefix("FOUND")))
    failures = [f"seed {seed}: {name}" for name in said[0] if said[0][name] != said[1][name]]
    if any(rows != steps for _, rows, _ in said[0].values()):
        failures.append(f"seed {seed}: not {steps} losses")
    return {"count": len(names), "failures": failures, "runs": 2 * len(said[0]), "steps": steps}


# --- cut and resumed ---
def fitted(name: str, folder: Path, steps: int, **options):
    """(state, rows as text): a run of a kind of model in a folder, continued if it is there."""
    one = kind(name)
    hook = evaluation(name)
    stop = nk.patience("loss", 3, mode="min")
    with nk.Run(folder, {"kind": name}, keep_last=steps, **options) as run:
        state, rows = nk.fit(
            one.step,
            one.start(),
            one.batches,
            steps=steps,
            every={7: hook},
            log_every=1,
            stop=stop,
            run=run,
            progress=False,
        )
    plain = [{k: np.asarray(v).tolist() for k, v in r.items() if k != "time"} for r in rows]
    return nk.digest(state), json.dumps(plain)


@functools.cache
def evaluation(name: str):
    """The evaluation of a kind of model, compiled once."""
    one = kind(name)
    return nk.evaluate(one.task, list(one.batches)[:2])


def only(whole: Path, step: int, folder: Path) -> None:
    """The folder of a run as it was when it had been cut right after the checkpoint at `step`."""
    kept = f"{step:08d}"
    checkpoints = {path.name for path in (whole / "checkpoints").iterdir() if path.name.isdigit()}
    shutil.copytree(whole, folder, ignore=lambda _, names: (checkpoints - {kept}) & set(names))


def cut(count: int, seed: int, *, names: tuple[str, ...] = tuple(KINDS)) -> dict:
    """DT-02: cut after a random step, restored into a fresh state, and run to the end.

    `count` cuts, spread evenly over the kinds of model; every loss, every evaluation and every bit
    of the last state is that of the run that was not cut. From 60 cuts on a run has 60 steps and
    may be cut after any of them; below, it has 20 and is cut after 5, 10 or 15.
    """
    steps, save_every = (60, 1) if count >= MANY else (20, 5)
    failures, done = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for j, name in enumerate(names):
            trials = range(j, count, len(names))
            if not trials:
                continue
            progress(f"DT-02: {name}, {len(trials)} cuts")
            whole = root / f"{name}-whole"
            want = fitted(name, whole, steps, save_every=save_every)
            last = json.loads(want[1])[-1]["step"]
            for trial in trials:
                at = random.Random(f"{seed}-{trial}").randrange(save_every, last, save_every)
                folder = root / f"{name}-{trial}"
                only(whole, at, folder)
                got = fitted(name, folder, steps)
                if got != want:
                    where = "state" if got[0] != want[0] else "rows"
                    failures.append(f"seed {seed} trial {trial}: {name} cut at {at}: {where}")
                done += 1
                shutil.rmtree(folder)
            shutil.rmtree(whole)
    return {"count": done, "failures": failures, "kinds": len(names), "steps": steps}


# --- nothing forgotten, nothing idle ---
BEFORE, AFTER = 7, 5  # updates before a leaf is changed (in the middle of a phase), and after
IDLE = {
    ("cnn", "opt/gradient_step"): "counts phases for a schedule of phases; this one is fixed",
    ("bandit", "count"): "says when to replay an update, and a replay changes nothing",
}


def changed(x):
    """Another value for a leaf [...] of a state: numbers 5 % larger and a bit more, counts by 3."""
    if trees.is_key(x):
        data = jax.random.key_data(x)
        return jax.random.wrap_key_data(data.at[..., -1].add(1), impl=jax.random.key_impl(x))
    if x.dtype == bool:
        return ~x
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x * jnp.asarray(1.05, x.dtype) + jnp.asarray(1e-3, x.dtype)
    return x + jnp.asarray(3, x.dtype)


@functools.cache
def onward(name: str):
    """(state before, its batches, the compiled evaluation): what leaves are changed in."""
    one = kind(name)
    batches = [b for _, b in zip(range(BEFORE + AFTER), one.batches.stream())]
    if name == "vae":  # so that the copy of the guard is needed
        bad = batches[BEFORE + 2]
        batches[BEFORE + 2] = {**bad, "x": np.full_like(bad["x"], np.nan)}
    state = one.start()
    for batch in batches[:BEFORE]:
        state, _ = one.update()(state, batch)
    judge = jax.jit(lambda p, c, b: one.task.loss(p, c, b, None)[1][1])
    return state, batches, judge


def future(name: str, state):
    """(digest by path of the state, digest of all metrics and an evaluation) after 5 updates."""
    one = kind(name)
    _, batches, judge = onward(name)
    seen = []
    for batch in batches[BEFORE:]:
        state, metrics = one.update()(state, batch)
        seen.append(metrics)
    seen.append(judge(*one.step.weights(state), batches[0]))
    hashes = {
        path: trees.leaf_digest(path, trees.to_host(x), str(x.dtype))
        for path, x in trees.paths(state)
    }
    return hashes, nk.digest(seen)


def leaves(count: int, seed: int, *, names: tuple[str, ...] = tuple(KINDS)) -> dict:
    """DT-03: each leaf of a state is changed: what follows changes too, or it is listed as idle.

    `count` leaves at most, drawn from all leaves of the kinds of model.
    """
    places = [(n, path) for n in names for path, _ in trees.paths(onward(n)[0])]
    drawn = random.Random(f"{seed}").sample(places, min(count, len(places)))
    failures, idle, known = [], 0, {}
    for trial, (name, path) in enumerate(sorted(drawn)):
        state = onward(name)[0]
        if name not in known:
            progress(f"DT-03: {name}")
            known[name] = future(name, state)
        other = jax.tree_util.tree_map_with_path(
            lambda p, x, path=path: changed(x) if trees.path_name(p) == path else x, state
        )
        hashes, seen = future(name, other)
        same = seen == known[name][1] and all(
            hashes[p] == digest for p, digest in known[name][0].items() if p != path
        )
        idle += same
        if same != ((name, path) in IDLE):
            said = "changes nothing and is not listed" if same else "is listed as idle and is not"
            failures.append(f"seed {seed} trial {trial}: {name} {path} {said}")
    return {"count": len(drawn), "failures": failures, "of": len(places), "idle": idle}


# --- replays ---
class Fault:
    """A device that flips one bit of one result: at a call, in a leaf, at a place."""

    def __init__(self):
        self.calls, self.at, self.where = 0, -1, (0, 0, 0)

    def __call__(self):
        self.calls += 1
        hit = self.calls == self.at
        leaf, place, bit = self.where
        return np.int32(leaf), np.int32(place), np.uint32(1 << bit if hit else 0)


def flipping(inner: nk.Step, fault: Fault) -> nk.Step:
    """A Step whose results have a bit flipped when the fault says so; all leaves have 32 bits."""
    one = jax.ShapeDtypeStruct((), jnp.int32)
    said = (one, one, jax.ShapeDtypeStruct((), jnp.uint32))

    def update(state, batch):
        new, metrics = inner.update(state, batch)
        flat, form = jax.tree.flatten(trees.plain(new))
        leaf, place, mask = jax.experimental.io_callback(fault, said)

        def hurt(n, x):
            bits = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
            mine = jnp.where(leaf == n, mask, jnp.uint32(0))
            at = place % bits.size
            bits = bits.at[at].set(bits[at] ^ mine)
            return jax.lax.bitcast_convert_type(bits.reshape(x.shape), x.dtype)

        found = [hurt(n, x) for n, x in enumerate(flat)]
        return trees.keyed(jax.tree.unflatten(form, found), state), metrics

    return inner._replace(update=update)


def flipped(count: int, seed: int) -> dict:
    """DT-09: one bit flipped in one of two replays is found; without a flip nothing is."""
    one, fault, failures = kind("vae"), Fault(), []
    step = nk.replayed(flipping(one.step, fault), every=1)
    update = jax.jit(step.update)
    batches = list(one.batches)
    state = nk.init(step, jax.random.key(0), batches[0])
    n = len(jax.tree.leaves(state.inner))
    fault.calls = 0
    alarms = 0
    for trial in range(count):
        rng = random.Random(f"{seed}-{trial}")
        batch = batches[trial % len(batches)]
        fault.at = -1
        state, metrics = update(state, batch)
        alarms += float(metrics["replay_differs"].value) != 0
        fault.where = rng.randrange(n), rng.randrange(2**20), rng.randrange(32)
        fault.at = fault.calls + 1 + rng.randrange(2)
        _, metrics = jax.block_until_ready(update(state, batch))
        if float(metrics["replay_differs"].value) != 1:
            failures.append(f"seed {seed} trial {trial}: leaf, place, bit {fault.where} not found")
    if alarms:
        failures.append(f"seed {seed}: {alarms} of {count} updates without a flip differed")
    if fault.calls != 4 * count:
        failures.append(f"seed {seed}: {fault.calls} rounds of {2 * count} updates, expected twice")
    return {"count": count, "failures": failures, "false_alarms": alarms, "rounds": fault.calls}


# --- other numbers of devices ---
def across_devices(count: int, seed: int, *, steps: int = 100) -> dict:
    """DT-05: `count` of 2, 4 and 8 devices against one, in float32 and in float64.

    The same examples in each batch, a loss within 1e-5 (1e-12) at each step, and the predictions
    of the last model on a probe as close. Parameters are not compared: Adam makes noise of the
    rounding where the true gradient is 0.
    """
    with contextlib.suppress(RuntimeError):  # jax was used before: then it has what it has
        jax.config.update("jax_num_cpu_devices", 8)
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    failures, worst = [], {}
    for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12)):
        progress(f"DT-05: {dtype}")
        with switch(dtype == "float64"):
            first = _trained_on(1, dtype, steps, seed)
            for n in (2, 4, 8)[:count]:
                ids, losses, probe = _trained_on(n, dtype, steps, seed)
                if ids != first[0]:
                    failures.append(f"seed {seed}: {n} devices: other examples")
                off = max(np.abs(losses - first[1]).max(), np.abs(probe - first[2]).max())
                worst[dtype] = max(worst.get(dtype, 0.0), float(off))
                if off > allowed:
                    failures.append(f"seed {seed}: {dtype} on {n} devices: off by {off:.1e}")
    return {"count": len((2, 4, 8)[:count]), "failures": failures, "steps": steps} | {
        f"worst_{dtype}": off for dtype, off in worst.items()
    }


def _trained_on(n: int, dtype: str, steps: int, seed: int):
    """(ids of all batches, losses [steps], outputs on a probe) after training on n devices."""
    model = nk.models.MLP((16, 4))
    task = nk.supervised(model, nk.losses.cross_entropy)
    step = nk.step(nk.gradient(task), optax.adam(1e-2))
    if n > 1:
        step = nk.shard(step, nk.mesh(data=n), batch=P("data"))
    fields = labelled(8)
    data = nk.data.arrays(fields, batch_size=16, seed=seed, id=np.arange(len(fields["y"])))
    wide = lambda batch: {**batch, "x": np.asarray(batch["x"], dtype)}
    state = jax.jit(step.init)(jax.random.key(seed), next(iter(data)))
    state = jax.tree.map(lambda x: _as_wide(x, dtype), state)
    update, ids, losses = jax.jit(step.update), [], []
    for _, batch in zip(range(steps), data.stream()):
        ids.append(batch["id"].tolist())
        state, metrics = update(state, wide(batch))
        losses.append(float(metrics["loss"].value))
    params, carry = jax.device_get(step.weights(state))
    probe = model.apply({"params": params, **carry}, jnp.asarray(fields["x"][:32], dtype))
    return ids, np.asarray(losses), np.asarray(probe, np.float64)


def _as_wide(x, dtype: str):
    if trees.is_key(x) or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(dtype)


def digests(count: int, seed: int) -> dict:
    """DT-08: the digests of `count` kinds of model after 50 updates, to be compared by release.

    They may change with jax and with the platform; a change is told, not failed.
    """
    found = {}
    for name in list(KINDS)[:count]:
        one = kind(name)
        state = one.start(seed)
        for _, batch in zip(range(50), one.batches.stream()):
            state, _ = one.update()(state, batch)
        found[name] = nk.digest(state)[:16]
    told = {"jax": jax.__version__, "platform": jax.default_backend()}
    return {"count": len(found), "failures": [], **told, **found}
