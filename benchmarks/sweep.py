"""K small networks as one program, against one after another in JAX and in torch.

Every side is a process of its own that has compiled, and run once, before the clock starts; the
sides take turns, every other round in reverse order. A side trains all K members for the same
number of Adam updates of 64 examples, each member at its own learning rate, from random pictures
that are in memory; what counts is members x updates per second.

    mlp      784-128-10
    lenet    LeNet-5: 6 and 16 channels of 5 x 5, then 120, 84, 10

    together   nk.sweep, the way chosen by itself; as many host devices as cores, on CPU
    vmap, unrolled, in_turn, spread     nk.sweep with each=
    alone      one warm jitted update, member after member
    torch      eager, fused Adam, member after member; benchmarks/sweep_torch.py

Run      JAX_PLATFORMS=cpu python -m benchmarks.sweep
         python -m benchmarks.sweep --models lenet --members 4 --sides together vmap alone
         NNKIT_TORCH_PYTHON=other/bin/python, if torch lives in another environment
Writes   results/sweep_<model>_<K>.json
Targets  torch / together >= 4 at 16 MLPs, >= 3 at 64, >= 1 at 4 LeNets on CPU; >= 20 on a GPU
         (what was reached: benchmarks/README.md)
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.compare import RESULTS, origin

BATCH, BATCHES = 64, 16
SIDES = ("together", "alone", "torch")
WORK = {"mlp": 1600, "lenet": 160}  # members x updates in one turn of a side


def updates(model: str, members: int, work: int) -> int:
    """Updates of each member in one turn."""
    return max(4, work // members)


# --- the parent ---
def child(side: str, model: str, members: int) -> subprocess.Popen:
    """A process that runs a turn for each line it is given."""
    here = Path(__file__).resolve().parents[1]
    python, module = sys.executable, "benchmarks.sweep"
    if side == "torch":
        python, module = os.environ.get("NNKIT_TORCH_PYTHON", python), "benchmarks.sweep_torch"
    words = [python, "-m", module, "--side", side, "--models", model, "--members", str(members)]
    return subprocess.Popen(
        words, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def told(process: subprocess.Popen, line: str | None) -> dict:
    """What a child answers to a line; None waits for its first word."""
    if line is not None:
        process.stdin.write(line + "\n")
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a side ended: {' '.join(process.args)}")
    return json.loads(answer)


def compared(model: str, members: int, sides: list[str], rounds: int, work: int, write: bool):
    """Time the sides in turn; print and keep what came of it."""
    steps = updates(model, members, work)
    children = {side: child(side, model, members) for side in sides}
    try:
        said = {side: told(process, None) for side, process in children.items()}
        seconds = {side: [] for side in sides}
        for i in range(rounds):
            for side in reversed(sides) if i % 2 else sides:
                time.sleep(0.3)  # threads of the one before come to rest
                seconds[side].append(told(children[side], str(steps))["seconds"])
    finally:
        for process in children.values():
            process.stdin.close()
            process.wait(timeout=30)
    row = {"model": model, "members": members, "updates": steps, "batch": BATCH, "sides": said}
    row["per_second"] = {s: members * steps / median(t) for s, t in seconds.items()}
    first = sides[0]
    row["ratios"] = {
        f"{side} / {first}": spread([a / b for a, b in zip(seconds[side], seconds[first])])
        for side in sides[1:]
    }
    row |= {"seconds": seconds, "origin": origin()}
    rates = ", ".join(f"{side} {rate:,.0f}/s" for side, rate in row["per_second"].items())
    print(f"{members} x {model}: {rates}")
    for name, r in row["ratios"].items():
        print(f"    {name} = {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})")
    print(f"    chosen: {'; '.join(said[first].get('chosen', []))}", flush=True)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"sweep_{model}_{members}.json").write_text(json.dumps(row, indent=1) + "\n")
    return row


def spread(ratios: list[float]) -> dict:
    """Median, smallest and largest."""
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


# --- a side in JAX ---
def network(model: str):
    """The Linen module."""
    import flax.linen as nn
    import jax.numpy as jnp

    from nnkit import layers, models

    if model == "mlp":
        return models.MLP((128, 10))

    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool = False):
            x = nn.relu(layers.Conv(6, (5, 5), padding=2)(x))
            x = nn.relu(layers.Conv(16, (5, 5), padding=0)(nn.max_pool(x, (2, 2), (2, 2))))
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = jnp.reshape(x, (x.shape[0], -1))
            for width in (120, 84):
                x = nn.relu(layers.Dense(width)(x))
            return layers.Dense(10)(x)

    return LeNet()


def pictures(model: str) -> list[dict]:
    """The batches, on the host."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (BATCH, 784) if model == "mlp" else (BATCH, 28, 28, 1)
    one = lambda: {"x": rng.normal(size=shape).astype("float32"), "y": rng.integers(0, 10, BATCH)}
    return [
        {k: v.astype("int32") if k == "y" else v for k, v in one().items()} for _ in range(BATCHES)
    ]


def turns(side: str, model: str, members: int):
    """(a function: steps -> nothing, when done; what was chosen)."""
    import jax
    import optax

    if side in ("together", "spread"):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    import nnkit as nk
    from nnkit import losses

    net, batches = network(model), [jax.device_put(b) for b in pictures(model)]
    grad = nk.gradient(nk.supervised(net, losses.cross_entropy))
    recipe = lambda h: nk.seeded(nk.step(grad, optax.adam(h["learning_rate"])), h["seed"])
    rates = jax.numpy.geomspace(1e-4, 1e-3, members)
    grid = {"learning_rate": rates, "seed": jax.numpy.arange(members)}
    if side == "alone":
        hs = [jax.tree.map(lambda x, i=i: x[i], grid) for i in range(members)]
        init = jax.jit(lambda h: recipe(h).init(jax.random.key(0), batches[0]))
        update = jax.jit(lambda h, s, b: recipe(h).update(s, b), donate_argnums=1)
        states = [init(h) for h in hs]

        def turn(steps):
            for i, h in enumerate(hs):
                for t in range(steps):
                    states[i], _ = update(h, states[i], batches[t % BATCHES])
            jax.block_until_ready(states)

        return turn, ["one warm program, member after member"]
    each = {
        "together": lambda: None,
        "vmap": lambda: jax.vmap,
        "unrolled": lambda: nk.unrolled,
        "in_turn": lambda: nk.in_turn,
        "spread": lambda: nk.spread(nk.mesh(run=len(jax.devices())), each=jax.vmap),
    }[side]()
    step = nk.sweep(recipe, grid, each=each)
    update = jax.jit(step.update, donate_argnums=0)
    held = [nk.init(step, jax.random.key(0), batches[0])]

    def turn(steps):
        for t in range(steps):
            held[0], _ = update(held[0], batches[t % BATCHES])
        jax.block_until_ready(held[0])

    return turn, nk.chosen(step, batches[0])


def serve(turn, chosen: list[str]) -> None:
    """Answer every line with the seconds of a turn."""
    began = time.perf_counter()
    turn(2)
    print(json.dumps({"chosen": chosen, "compile": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        turn(int(line))
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet"], choices=tuple(WORK))
    parser.add_argument("--members", nargs="+", type=int, help="default: 1 4 16 64; 4 LeNets")
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=int, help="members x updates in one turn")
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        return serve(*turns(asked.side, asked.models[0], asked.members[0]))
    run = functools.partial(compared, sides=asked.sides, rounds=asked.rounds, write=not asked.dry)
    for model in asked.models:
        for members in asked.members or {"mlp": [1, 4, 16, 64], "lenet": [4]}[model]:
            run(model, members, work=asked.work or WORK[model])
    return None


if __name__ == "__main__":
    main()
