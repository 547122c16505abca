"""Successive halving and population based training, against definitions written slowly."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import counted

import nnkit as nk

RATES = [0.001, 0.3, 0.03, 0.2, 0.01, 0.1, 0.05, 2.5]  # the last one diverges


def batch(i: int) -> dict:
    rng = np.random.default_rng(i)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x @ np.float32([1, -2, 3]))}


TASK = nk.objective(
    lambda key, b: {"w": 0.1 * jax.random.normal(key, (3,))},
    lambda p, b, key: (b["x"] @ p["w"] - b["y"]) ** 2,
)


def recipe(h) -> nk.Step:
    return nk.step(nk.gradient(TASK), optax.sgd(h["learning_rate"], momentum=0.5))


def runs(each=nk.in_turn, rates=RATES) -> nk.Step:
    return nk.sweep(recipe, nk.product(learning_rate=rates), each=each)


def trained(step, n, start=None):
    """(state, [losses and their weights [n] of each update])."""
    state = nk.init(step, jax.random.key(5), batch(0)) if start is None else start
    update, log = jax.jit(step.update), []
    for i in range(n):
        state, metrics = update(state, batch(i))
        log.append(jax.device_get(metrics))
    return state, log


@functools.cache
def alone(steps: int):
    """[(digest of the state, losses)] of every member by itself, by one program."""
    init = jax.jit(lambda h: recipe(h).init(jax.random.key(5), batch(0)))
    update = jax.jit(lambda h, state, batch: recipe(h).update(state, batch))
    found = []
    for rate in RATES:
        h = {"learning_rate": jnp.float32(rate)}
        state, losses, states = init(h), [], []
        for i in range(steps):
            state, metrics = update(h, state, batch(i))
            losses.append(float(metrics["loss"].value))
            states.append(nk.digest(state))
        found.append((states, losses))
    return found


def slow_rungs(n, every, keep):
    """[(members, updates)] as the paper's figure 3 has them, in plain words."""
    found, size = [], n
    while True:
        found.append((size, every * n // size))
        if size == 1 or keep == 1:
            return found
        size = max(1, int(size * keep))


def slow_halving(losses, every, keep):
    """How many updates each member gets, from the losses [n t] of the runs by themselves."""
    n, at, running = len(losses), 0, list(range(len(losses)))
    done = dict.fromkeys(running, 0)
    total = len(losses[0])
    for size, length in slow_rungs(n, every, keep):
        running = running[:size]
        stop = total if size == 1 else min(total, at + length)
        for i in running:
            done[i] = stop
        if stop == total:
            return done, sorted(running)
        means = {i: float(np.float32(np.mean(losses[i][at:stop]))) for i in running}
        cost = {i: m if np.isfinite(m) else np.inf for i, m in means.items()}
        running = sorted(running, key=lambda i: (cost[i], i))
        at = stop
    raise AssertionError


@pytest.mark.parametrize(("every", "keep"), [(3, 0.5), (2, 0.4), (4, 0.25)])
def test_halving_is_the_definition(every, keep):
    steps = 25
    losses = [loss for _, loss in alone(steps)]
    done, running = slow_halving(losses, every, keep)
    step = nk.halving(runs(), every=every, keep=keep)
    state, log = trained(step, steps)
    for i in range(len(RATES)):  # to the last bit, in the running or stopped
        assert nk.digest(nk.member(state.inner, i)) == alone(steps)[i][0][done[i] - 1], i
    assert np.flatnonzero(log[-1]["alive"].total).tolist() == running
    seen = [int(m["alive"].total.sum()) for m in log]
    wanted = [size for size, length in slow_rungs(8, every, keep) for _ in range(length)]
    assert seen == (wanted + [wanted[-1]] * steps)[:steps]
    for i in range(len(RATES)):  # metrics of a stopped member weigh nothing
        weights = [float(m["loss"].weight[i]) for m in log]
        assert weights == [6.0] * done[i] + [0.0] * (steps - done[i])


@pytest.mark.parametrize("each", [None, jax.vmap, nk.in_turn])
@pytest.mark.parametrize("kind", ["keep=1", "before the first cut"])
def test_halving_switched_off_is_the_sweep(kind, each):
    knobs = {"every": 2, "keep": 1.0} if kind == "keep=1" else {"every": 50}
    plain, log = trained(runs(each), 6)
    state, log_halved = trained(nk.halving(runs(each), **knobs), 6)
    assert nk.digest(state.inner) == nk.digest(plain)
    assert nk.digest([m["loss"] for m in log_halved]) == nk.digest([m["loss"] for m in log])


def test_population_switched_off_is_the_sweep():
    plain, log = trained(runs(), 6)
    for knobs in ({"share": 0.0, "every": 2}, {"every": 50}):
        step = nk.population(runs(), perturb={"learning_rate": (0.8, 1.2)}, **knobs)
        state, seen = trained(step, 6)
        assert nk.digest(state.inner) == nk.digest(plain)
        assert nk.digest([m["loss"] for m in seen]) == nk.digest([m["loss"] for m in log])


def slow_population(every, share, factors, steps):
    """Rates and losses of each update by loops over members, with the draws of the same key."""
    n, k = len(RATES), int(share * len(RATES))
    h = [np.float32(r) for r in RATES]
    init = jax.jit(lambda h: recipe(h).init(jax.random.key(5), batch(0)))
    update = jax.jit(lambda h, state, batch: recipe(h).update(state, batch))
    states = [init({"learning_rate": jnp.float32(r)}) for r in h]
    base = nk.keys.fold(jax.random.key(5), "population")
    since, losses = [[] for _ in range(n)], []
    for t in range(steps):
        now = []
        for i in range(n):
            states[i], m = update({"learning_rate": jnp.float32(h[i])}, states[i], batch(t))
            now.append(float(m["loss"].value))
            since[i].append(now[-1])
        losses.append(now)
        if (t + 1) % every:
            continue
        means = [np.mean(x) for x in since]
        order = sorted(range(n), key=lambda i: (means[i] if np.isfinite(means[i]) else np.inf, i))
        key = nk.keys.fold(base, t + 1)
        picked = jax.random.randint(nk.keys.fold(key, "source"), (k,), 0, k)
        drawn = jax.random.choice(
            nk.keys.fold(nk.keys.fold(key, "perturb"), "learning_rate"), jnp.float32(factors), (k,)
        )
        old_h, old = list(h), list(states)
        for place, member in enumerate(order[n - k :]):
            source = order[int(picked[place])]
            states[member], h[member] = old[source], old_h[source] * np.float32(drawn[place])
        since = [[] for _ in range(n)]
    return h, losses, states


def test_population_is_the_definition():
    knobs = {"every": 3, "share": 0.25}
    h, losses, states = slow_population(3, 0.25, (0.5, 2.0), 14)
    step = nk.population(runs(), perturb={"learning_rate": (0.5, 2.0)}, **knobs)
    state, log = trained(step, 14)
    np.testing.assert_array_equal(state.inner.grid["learning_rate"], h)
    np.testing.assert_array_equal(np.stack([m["loss"].value for m in log]), np.float32(losses))
    for i, one in enumerate(states):
        assert nk.digest(nk.member(state.inner, i)) == nk.digest(one)
    shown = log[-1]["grid/learning_rate"]
    np.testing.assert_array_equal(shown.value, np.float32(h))
    assert len(set(RATES) - set(np.float32(h).tolist())) > 0  # something was replaced at all


def test_population_may_change_a_setting_by_a_function_and_copies_the_rest():
    grid = {"learning_rate": jnp.array([0.1, 2.5]), "seed": jnp.array([7, 8])}
    step = nk.population(
        nk.sweep(recipe, grid, each=nk.in_turn),
        every=2,
        share=0.5,
        perturb={"learning_rate": lambda key, x: x + 0.05},
    )
    state, _ = trained(step, 2)
    np.testing.assert_allclose(state.inner.grid["learning_rate"], [0.1, 0.15], rtol=1e-6)
    assert state.inner.grid["seed"].tolist() == [7, 7]


@pytest.mark.parametrize("technique", ["halving", "population"])
def test_they_compose_compile_once_and_go_round_wrapped_sweeps(technique):
    def careful(h):
        return nk.skip_nonfinite(nk.ema(recipe(h), 0.5))

    inner = nk.ema(nk.sweep(careful, nk.product(learning_rate=RATES[:4])), 0.9)
    knobs = {"every": 2, "perturb": {"learning_rate": (0.8, 1.2)}, "share": 0.25}
    step = nk.halving(inner, every=2) if technique == "halving" else nk.population(inner, **knobs)
    state = nk.init(step, jax.random.key(0), batch(0))
    update = jax.jit(step.update, donate_argnums=0)
    state, _ = update(state, batch(0))
    later = [batch(i) for i in range(9)]
    with counted() as programs:
        for one in later:
            state, metrics = update(state, one)
    assert programs.count == 0
    params, _ = step.weights(state)
    assert params["w"].shape == (4, 3)
    assert np.isfinite(metrics["loss"].total).all()


def test_halving_goes_over_devices_and_leaves_fewer_members_to_each():
    step = nk.halving(runs(nk.spread(nk.mesh(run=2))), every=2, keep=0.5)
    with pytest.raises(ValueError, match="1 members over 2 devices"):  # the last rung
        trained(step, 1)
    fine = nk.halving(runs(None), every=2)  # chooses: 8 devices, then none for 4, 2, 1
    state, _ = trained(fine, 20)
    plain, _ = trained(nk.halving(runs(), every=2), 20)
    np.testing.assert_allclose(state.inner.inner.params["w"], plain.inner.inner.params["w"], 1e-4)


def wrong(what):
    step = runs()
    start = lambda s: nk.init(s, jax.random.key(0), batch(0))
    single = recipe({"learning_rate": 0.1})
    many = nk.ensemble(single, 3)
    rate = {"learning_rate": (0.8, 1.2)}
    pop = lambda s, **k: nk.population(s, **{"every": 2, "perturb": rate, **k})
    return {
        "every": lambda: nk.halving(step, every=0),
        "keep": lambda: nk.halving(step, every=1, keep=0.0),
        "mode": lambda: nk.halving(step, every=1, mode="best"),
        "metric": lambda: start(nk.halving(step, every=1, metric="accuracy")),
        "one run": lambda: start(nk.halving(single, every=1)),
        "share": lambda: pop(step, share=0.6),
        "name": lambda: start(pop(step, perturb={"rate": (0.8, 1.2)})),
        "no grid": lambda: start(pop(many)),
        "integers": lambda: start(
            pop(nk.sweep(lambda h: single, {"seed": jnp.arange(3)}), perturb={"seed": (0.8, 1.2)})
        ),
        "factors": lambda: pop(step, perturb={"learning_rate": (0.0, 1.2)}),
        "negative": lambda: pop(step, perturb={"learning_rate": (-0.8, 1.2)}),
        "one factor": lambda: pop(step, perturb={"learning_rate": 0.8}),
        "words": lambda: pop(step, perturb={"learning_rate": "fast"}),
        "a list": lambda: pop(step, perturb=["learning_rate"]),
        "no step": lambda: nk.population(TASK, every=1, perturb={}),
    }[what]


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("every", ValueError, ["every=0", "integer >= 1"]),
        ("keep", ValueError, ["keep=0.0", "1 is off"]),
        ("mode", ValueError, ["mode='best'", "'min' or 'max'"]),
        ("metric", KeyError, ["'accuracy'", "['loss']"]),
        ("one run", ValueError, ["leading axis of members", "nk.sweep"]),
        ("share", ValueError, ["share=0.6", "0.2 in the paper"]),
        ("name", KeyError, ["'rate'", "['learning_rate']"]),
        ("no grid", ValueError, ["0 grids", "copies alone"]),
        ("integers", TypeError, ["'seed'", "int32[3]", "a function"]),
        ("factors", ValueError, ["(0.0, 1.2)", "> 0"]),
        ("negative", ValueError, ["'learning_rate'", "(-0.8, 1.2)", "> 0"]),
        ("one factor", ValueError, ["are 0.8", "{'learning_rate': (0.8, 1.2)}"]),
        ("words", ValueError, ["'fast'", "or a function"]),
        ("a list", TypeError, ["perturb=['learning_rate']", "{name: factors}"]),
        ("no step", TypeError, ["Objective", "expected a Step"]),
    ],
)
def test_wrong_input_is_said(what, kind, words):
    with pytest.raises(kind) as caught:
        wrong(what)()
    for word in words:
        assert word in str(caught.value)
