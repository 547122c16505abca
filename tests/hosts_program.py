"""What the processes of test_hosts*.py run: python hosts_program.py SCENARIO PORT N I FOLDER [...].

The same `train` is called by the test itself, with the 8 devices of one process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import nnkit as nk

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(44, 16)).astype(np.float32), RNG.integers(0, 16, 44).astype(np.int32)


class Watched:
    """A source that remembers which of its rows were read."""

    def __init__(self, n):
        self.n, self.log = n, []

    def __len__(self):
        return self.n

    def take(self, indices):
        self.log.append(np.asarray(indices).tolist())
        return {"x": X[indices], "y": Y[indices]}


def parts(devices=8):
    """(task, step, train, test): 64 hidden units with dropout, weights and moments split."""
    import optax
    from jax.sharding import PartitionSpec as P

    model = nk.models.MLP((64, 16), dropout=0.1)
    task = nk.supervised(model, nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)
    step = nk.ema(nk.step(nk.gradient(task), optax.adamw(1e-2)), 0.9)
    split = {"batch": P("data"), "state": nk.rules.fsdp}
    step = nk.shard(step, nk.mesh(data=devices), **split)
    train = nk.data.Batches(Watched(44), 8, seed=1)
    test = nk.data.Batches(Watched(20), 16, shuffle=False)
    return task, step, train, test


def train(folder, die=None, steps=8, config=None):
    """(rows, read): the log, and the rows of the training data read by `fit`, batch by batch."""
    task, step, batches, test = parts()
    state = nk.init(step, jax.random.key(0), next(iter(batches)))
    _ = batches.fingerprint
    batches.source.log.clear()
    with nk.Run(folder, config or {"learning_rate": 1e-2}, save_every=4) as run:

        def dies(params, carry):
            run.checkpoints.wait()
            if die == jax.process_index():
                os.kill(os.getpid(), signal.SIGKILL)

        every = {2: nk.evaluate(task, test)} | ({5: dies} if die is not None else {})
        state, rows = nk.fit(
            step, state, batches, steps=steps, every=every, run=run, log_every=1, progress=False
        )
    return rows, batches.source.log, (task, state, test)


def target(devices):
    """A state of zeros of the same form, over some devices."""
    _, step, batches, _ = parts(devices)
    state = nk.init(step, jax.random.key(3), next(iter(batches)))
    return state


def again(source, folder):
    """Restore the newest checkpoint of a folder onto all devices, and save it in another."""
    found = nk.Checkpoints(source).restore(target(jax.device_count()))
    with nk.Checkpoints(folder) as saver:
        saver.save(found.step, found.state, position=found.position)
    return nk.Checkpoints(folder).info()["digest"]


def state_of(devices):
    """A state with something of every kind: split and whole leaves, keys, integers, bfloat16."""
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = nk.mesh(data=devices)

    def make():
        return {
            "rows": jax.random.normal(jax.random.key(7), (32, 24)),
            "columns": jax.random.normal(jax.random.key(8), (4, 16), jnp.bfloat16),
            "whole": jnp.arange(5),
            "empty": jnp.zeros((0, 3)),
            "key": jax.random.key(9),
            "count": jnp.int32(3),
        }

    specs = {"rows": P("data"), "columns": P(None, "data")}
    places = {name: NamedSharding(mesh, specs.get(name, P())) for name in jax.eval_shape(make)}
    return jax.jit(make, out_shardings=places)()


def save(folder, name):
    """Save that state from all devices there are."""
    with nk.Checkpoints(Path(folder) / name) as saver:
        saver.save(1, state_of(jax.device_count()))
    return saved(folder, name)


def saved(folder, name):
    """The digest of a checkpoint."""
    return nk.Checkpoints(Path(folder) / name).info(1)["digest"]


def restored(folder, name, devices=None):
    """The digest of what is restored onto all devices, each shard compared with what it must be."""
    import jax.numpy as jnp

    like = state_of(devices or jax.device_count())
    plain = lambda tree: nk.trees.plain(tree)
    zeros = jax.tree.map(
        lambda x: jax.jit(jnp.zeros_like, out_shardings=x.sharding)(x), plain(like)
    )
    found = nk.Checkpoints(Path(folder) / name).restore(nk.trees.keyed(zeros, like), 1).state
    for (path, a), (_, b) in zip(nk.trees.paths(plain(found)), nk.trees.paths(plain(like))):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (path, a.sharding, b.sharding)
        for one, two in zip(a.addressable_shards, b.addressable_shards):
            same = np.asarray(one.data).tobytes() == np.asarray(two.data).tobytes()
            assert (same, one.index) == (True, two.index), path
    return saved(folder, name)


def words():
    """What the processes say to each other, and when they differ."""
    i, hosts, said = jax.process_index(), nk.hosts, {}

    def caught(name, work):
        try:
            said[name] = work()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    caught("count", lambda: [hosts.count(), hosts.first(), len(jax.devices())])
    caught("gathered", lambda: hosts.gathered({"i": i, "text": "ä" * (i + 1)}))
    caught("shared", lambda: hosts.shared({"from": i}))
    caught("agree", lambda: hosts.agree({"a": [1, float("nan")], "b": None}))
    caught("differ", lambda: hosts.agree({"rate": 0.1 * (i + 1), "code": "0f"}, "the run"))
    caught("field", lambda: hosts.agree({"steps": 3} if i else {}))
    caught("fine", lambda: hosts.unanimous(lambda: i))
    caught("fails", lambda: hosts.unanimous(lambda: 1 // i))  # in process 0
    caught("twice", lambda: [hosts.start(), hosts.start(num_processes=2)])
    caught("other", lambda: hosts.start(process_id=1 - i))
    caught("barrier", lambda: [hosts.barrier("x"), hosts.barrier("x")])
    caught("alone", lambda: None if i else hosts.barrier("only one", timeout=1))
    task, step, batches, _ = parts()

    def apart():
        import optax

        lonely = nk.step(nk.gradient(task), optax.sgd(0.1))
        state = nk.init(lonely, jax.random.key(0), next(iter(batches)))
        nk.fit(lonely, state, batches, steps=1, progress=False)

    caught("apart", apart)
    caught("keys", lambda: nk.init(step, jax.random.key(i), next(iter(batches))))
    state = nk.init(step, jax.random.key(0), next(iter(batches)))
    lists = [{"x": X[i : i + 8], "y": Y[i : i + 8]}]
    caught("lists", lambda: nk.fit(step, state, lists, steps=1, progress=False))
    other = nk.data.Batches(Watched(44), 8, seed=1 + i)
    caught("seeds", lambda: nk.fit(step, state, other, steps=1, progress=False))
    return said


def main():
    scenario, port, n, i, folder, *rest = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(os.environ["DEVICES"]))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", os.environ["NNKIT_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    wait = int(os.environ.get("WAIT", "60"))
    if scenario == "late":
        jax.devices()
    nk.hosts.start(f"localhost:{port}", int(n), int(i), timeout=wait, heartbeat=10)
    folder = Path(folder)
    if scenario == "train":
        rows, read, (_, state, test) = train(folder / "many", int(rest[0]) if rest else None)
        more = {}
        if (folder / "one").exists():
            more["again"] = again(folder / "one" / "checkpoints", folder / "again")
            say = nk.loop.predict(nk.models.MLP((64, 16), dropout=0.1), state.average, {}, test)
            more["predicted"] = say["outputs"][:2].tolist()
        rows = [{k: v for k, v in row.items() if k != "time"} for row in rows]
        found = {"rows": rows, "read": read, **more}
    elif scenario == "config":
        train(folder / "many", config={"learning_rate": 0.01 * (int(i) + 1)})
        found = None
    elif scenario == "save":
        found = save(folder, rest[0])
    elif scenario == "restore":
        found = [[restored(folder, name), saved(folder, name)] for name in rest]
    else:
        found = words()
    (folder / f"found-{i}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
