"""Numbers at their ends: paths of optimizers, extreme inputs, dtypes, and counts beyond 2^24."""

from __future__ import annotations

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import layers, losses, metrics
from nnkit.core.means import Mean
from nnkit.generate import warps
from nnkit.loop.evaluation import read
from reliability.kinds import kind, labelled

x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


# --- fifty steps of an optimizer, from the formula ---
RATE, STEPS = 0.02, 50


def sgd(w, g, m, t, rate=RATE):
    return w - rate * g, m


def momentum(w, g, m, t):
    m = 0.9 * m.get("m", 0) + g
    return w - RATE * m, {"m": m}


def nesterov(w, g, m, t):
    m = 0.9 * m.get("m", 0) + g
    return w - RATE * (g + 0.9 * m), {"m": m}


def direction(g, m, t, eps):
    """Adam's: first moment over the root of the second, both without their bias."""
    first = 0.9 * m.get("first", 0) + 0.1 * g
    second = 0.999 * m.get("second", 0) + 0.001 * g**2
    whole = first / (1 - 0.9**t), second / (1 - 0.999**t)
    return whole[0] / (np.sqrt(whole[1]) + eps), {"first": first, "second": second}


def adam(w, g, m, t, decay=0.0, rate=RATE):
    move, m = direction(g, m, t, 1e-8)
    return w - rate * (move + decay * w), m


def rmsprop(w, g, m, t):
    mean = 0.9 * m.get("mean", 0) + 0.1 * g**2
    return w - RATE * g / np.sqrt(mean + 1e-8), {"mean": mean}


def adagrad(w, g, m, t):
    total = m.get("total", 0.1) + g**2
    return w - RATE * g / np.sqrt(total + 1e-7), {"total": total}


def lion(w, g, m, t):
    old = m.get("m", 0)
    move = np.sign(0.9 * old + 0.1 * g) + 1e-3 * w
    return w - RATE * move, {"m": 0.99 * old + 0.01 * g}


def lamb(w, g, m, t):
    move, m = direction(g, m, t, 1e-6)
    move = move + 0.1 * w
    return w - RATE * np.linalg.norm(w) / np.linalg.norm(move) * move, m


def warmed(w, g, m, t):
    """Adam by a rate that rises over 10 steps and then falls as a cosine."""
    i = t - 1
    rate = RATE * i / 10 if i < 10 else RATE * (1 + np.cos(np.pi * (i - 10) / 40)) / 2
    return adam(w, g, m, t, rate=rate)


PATHS = {
    "sgd": (sgd, optax.sgd(RATE)),
    "momentum": (momentum, optax.sgd(RATE, momentum=0.9)),
    "nesterov": (nesterov, optax.sgd(RATE, momentum=0.9, nesterov=True)),
    "adam": (adam, optax.adam(RATE)),
    "adamw": (functools.partial(adam, decay=0.1), optax.adamw(RATE, weight_decay=0.1)),
    "rmsprop": (rmsprop, optax.rmsprop(RATE)),
    "adagrad": (adagrad, optax.adagrad(RATE)),
    "lion": (lion, optax.lion(RATE)),
    "lamb": (lamb, optax.lamb(RATE, weight_decay=0.1)),
    "a schedule": (warmed, optax.adam(nk.optim.warmup_cosine(RATE, 50, 10))),
}
CURVES = np.array([1.0, 0.1, 3.0])


def followed(tx, dtype) -> np.ndarray:
    """[steps 5] the weights after each update of a Step."""
    start = {"a": jnp.asarray([1.0, -2.0, 0.5], dtype), "b": jnp.asarray([3.0, -1.0], dtype)}
    task = nk.objective(lambda key, batch: start, squares)
    step = nk.step(nk.gradient(task), tx)
    state, found = step.init(jax.random.key(0), {"x": goals(0).astype(dtype)}), []
    update = jax.jit(step.update)
    for t in range(STEPS):
        state, _ = update(state, {"x": goals(t).astype(dtype)})
        found.append(np.concatenate([state.params["a"], state.params["b"]]))
    return np.asarray(found, np.float64)


def squares(w, batch, key):
    """[b] half the curved distance from goals that change with the batch."""
    a = (jnp.asarray(CURVES, w["a"].dtype)[None] * (w["a"][None] - batch["x"][:, :3]) ** 2).sum(1)
    return (a + ((w["b"][None] - batch["x"][:, 3:]) ** 2).sum(1)) / 2


def goals(t) -> np.ndarray:
    return np.random.default_rng(t).normal(size=(4, 5))


@pytest.mark.parametrize("name", PATHS)
def test_fifty_steps_are_those_of_the_formula(name):
    rule, tx = PATHS[name]
    ws, memory, want = [np.array([1.0, -2.0, 0.5]), np.array([3.0, -1.0])], [{}, {}], []
    for t in range(STEPS):
        mean = goals(t).mean(0)
        slopes = CURVES * (ws[0] - mean[:3]), ws[1] - mean[3:]
        for i, g in enumerate(slopes):
            ws[i], memory[i] = rule(ws[i], g, memory[i], t + 1)
        want.append(np.concatenate(ws))
    np.testing.assert_allclose(followed(tx, np.float32), want, atol=1e-5)
    with x64(True):
        np.testing.assert_allclose(followed(tx, np.float64), want, rtol=0, atol=1e-10)
    assert np.ptp(np.asarray(want), 0).min() > 0.05  # it went somewhere


# --- extreme inputs: finite values and gradients ---
def ends(dtype) -> np.ndarray:
    """[9 4] logits at the ends of a dtype; the last class is the likeliest where it matters."""
    far, most = (1e4, float(jnp.finfo(dtype).max) / 4)
    rows = [[0] * 4, [far] * 4, [-far] * 4, [far, -far, 0, far], [-far, far, 0, -far]]
    rows += [[most] * 4, [-most] * 4, [-most, 0, -most, most], [-np.inf, 0, -np.inf, 1]]
    return np.asarray(rows)


def scores(dtype) -> np.ndarray:
    far, most = (1e4, float(jnp.finfo(dtype).max) / 4)
    return np.asarray([0, far, -far, most, -most, 1e-6, -1e-6, 1])


LAST, BITS = np.full(9, 3), np.asarray([0, 1, 0, 1, 0, 1, 0, 1])
SOFT = np.asarray([[0, 0, 0, 1.0]] * 9, np.float32)
SAME = np.stack([np.zeros(8), np.full(8, 1e-4), np.full(8, 300.0), np.arange(8.0)])  # [4 8]
ORIGIN = np.stack([np.zeros(4), np.full(4, 1e-4), np.full(4, 100.0), np.arange(4.0)])


def normed(make):
    """x [4 8] through a layer with its first parameters."""
    layer = make()

    def f(x):
        kwargs = {"train": False} if "train" in layer.__call__.__code__.co_varnames else {}
        variables = layer.init(jax.random.key(0), x, **kwargs)
        return layer.apply(variables, x, **kwargs)

    return f


def gone(f):
    """Rows that are masked altogether, beside those that are not."""
    return lambda z: Mean.of(f(z), jnp.zeros(len(z), jnp.float32).at[3].set(1)).value[None]


EXTREMES = {
    "cross_entropy": (lambda z: losses.cross_entropy(z, LAST), ends),
    "cross_entropy_soft": (lambda z: losses.cross_entropy(z, SOFT), ends),
    "focal": (lambda z: losses.focal(z, LAST), ends),
    "nll": (lambda z: metrics.nll(z, LAST), ends),
    "brier": (lambda z: metrics.brier(z, LAST), ends),
    "multiclass_hinge": (lambda z: losses.multiclass_hinge(z, LAST[:8]), lambda d: ends(d)[:8]),
    "binary": (lambda z: losses.binary(z, BITS), scores),
    "hinge": (lambda z: losses.hinge(z, BITS), scores),
    "masked": (gone(lambda z: losses.cross_entropy(z, LAST)), ends),
    "softmax": (layers.softmax, ends),
    "log_softmax": (lambda z: jnp.maximum(layers.log_softmax(z), -1e4), ends),
    "temperature": (
        lambda z: jax.nn.softmax(warps.temperature(1e-6)(z.astype(jnp.float32), None)),
        lambda d: ends(d)[:1],
    ),
    "LayerNorm": (normed(layers.LayerNorm), lambda d: SAME),
    "RMSNorm": (normed(layers.RMSNorm), lambda d: SAME),
    "GroupNorm": (normed(lambda: layers.GroupNorm(2)), lambda d: SAME),
    "cosines": (lambda x: losses.cosines(x, jnp.eye(4, dtype=x.dtype)), lambda d: ORIGIN),
    "triplet": (lambda x: losses.triplet(x, x, -x), lambda d: ORIGIN),
    "contrastive": (lambda x: losses.contrastive(x, x, BITS[:4]), lambda d: ORIGIN),
    "sigmoid": (layers.sigmoid, scores),
    "softplus": (layers.softplus, scores),
    "gelu": (layers.gelu, scores),
    "silu": (layers.silu, scores),
}


HALF = pytest.param(jnp.float16, marks=pytest.mark.nightly)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, HALF])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_inputs_have_finite_values_and_gradients(name, dtype):
    f, make = EXTREMES[name]
    with np.errstate(over="ignore"):
        x = jnp.asarray(make(dtype), dtype)

    def both(x):
        return f(x), jax.grad(lambda x: f(x).astype(jnp.float32).sum())(x)

    value, slope = jax.jit(both)(x)
    assert np.isfinite(np.asarray(value, np.float32)).all(), value
    finite = np.isfinite(np.asarray(slope, np.float32)) | np.isinf(np.asarray(x, np.float32))
    assert finite.all(), slope
    assert slope.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_softmax_of_65536_has_no_bias(dtype):
    """Logits as that dtype holds them; the sum of 65536 terms is another matter."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(16, 65536)), dtype)
    y = np.arange(16) * 4096
    loss = np.asarray(jax.jit(losses.cross_entropy)(z, y), np.float64)
    wide = np.asarray(z, np.float64)
    want = np.log(np.exp(wide).sum(-1)) - wide[np.arange(16), y]
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert abs((loss / want - 1).mean()) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_sum_of_a_thousand_tenths_does_not_stop_at_32(dtype):
    mean = Mean.of(jnp.full(1000, 0.1, dtype))
    tenth = float(jnp.asarray(0.1, dtype))
    assert mean.total.dtype == jnp.float32
    np.testing.assert_allclose(float(mean.total), 1000 * tenth, rtol=1e-6)


# --- which dtype does what ---
def program(step, batch):
    """{operation: {dtypes of its floating inputs}} of an update, all that is called included."""
    state = jax.eval_shape(step.init, jax.random.key(0), batch)
    found = collections.defaultdict(set)

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            kinds = {str(v.aval.dtype) for v in equation.invars if hasattr(v.aval, "dtype")}
            found[equation.primitive.name] |= {k for k in kinds if "float" in k}
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
                if is_program(inner):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(step.update)(state, batch).jaxpr)
    return dict(found)


def is_program(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def one_batch():
    return {name: jnp.asarray(x[:16]) for name, x in labelled(8).items()}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = layers.BatchNorm()(layers.Dense(16)(x), train=train)
        return layers.Dense(4)(layers.Dropout(0.3)(layers.relu(x), train=train))


def under(precision):
    task = nk.supervised(Net(), losses.cross_entropy)
    task = nk.half(task) if precision == "bfloat16" else task
    return nk.step(nk.gradient(task), optax.adamw(1e-2))


WIDE = {"float32"}
SNAPSHOT = {  # what computes in which dtype: a change here is a change of the numbers
    "float32": {"dot_general": WIDE, "exp": WIDE, "log": WIDE, "reduce_sum": WIDE, "sqrt": WIDE},
    "bfloat16": {
        "dot_general": {"bfloat16"},  # the matrices alone are narrow
        "exp": WIDE,  # the softmax of the loss
        "log": WIDE,
        "sqrt": WIDE,  # moments and the update
    },
    "float64": {name: {"float64"} for name in ("dot_general", "exp", "log", "sqrt")},
}
BESIDE = {"float64": WIDE}  # running statistics, the rate of dropout, counts


@pytest.mark.parametrize("precision", SNAPSHOT)
def test_the_dtypes_of_a_step(precision):
    batch = jax.device_get(one_batch())
    with x64(precision == "float64"):
        batch["x"] = batch["x"].astype("float64" if precision == "float64" else "float32")
        found = program(under(precision), jax.tree.map(jnp.asarray, batch))
    for name, dtypes in SNAPSHOT[precision].items():
        assert found[name] == dtypes, name
    allowed = BESIDE.get(precision, set()).union(*SNAPSHOT[precision].values())
    assert set().union(*found.values()) == allowed  # nothing else is anywhere


def test_the_snapshot_would_notice():
    task = nk.supervised(Net(), lambda z, y: losses.cross_entropy(z.astype(jnp.float16), y))
    found = program(nk.step(nk.gradient(task), optax.sgd(0.1)), one_batch())
    assert "float16" in set().union(*found.values())


# --- beyond 2^24 and 2^31 ---
def test_sums_are_exact_beyond_two_to_the_31():
    """Sums of batches are added in float64: to 2^53 every count is exact."""
    parts = [2.0**24, 2.0**24 - 1, 2.0**23 + 1, 1.0, 3.0] * 200
    sums = [{"n": Mean(np.float32(x), np.float32(1))} for x in parts]
    assert read(*sums)["n"] == sum(int(x) for x in parts) / len(parts)
    assert sum(int(x) for x in parts) > 2**32
    many = [{"n": Mean(np.float32(2.0**24 - 1), np.float32(2.0**24 - 1))} for _ in range(400)]
    assert read(*many)["n"] == 1.0
    one_more = [*many, {"n": Mean(np.float32(1), np.float32(0))}]
    assert read(*one_more)["n"] == (400 * (2**24 - 1) + 1) / (400 * (2**24 - 1))


def test_tables_of_counts_are_exact_beyond_two_to_the_24():
    table = {"confusion": Mean(np.full((2, 2), 2.0**24 - 1, np.float32), np.float32(2.0**24 - 1))}
    one = {"confusion": Mean(np.eye(2, dtype=np.float32), np.float32(1))}
    found = read(*[table] * 3, one)["confusion"] * (3 * (2**24 - 1) + 1)
    np.testing.assert_allclose(found, 3 * (2**24 - 1) + np.eye(2), rtol=1e-15)


@pytest.mark.parametrize("done", [2**24, 2**24 + 1, 2**31 - 2])
def test_an_update_counts_and_draws_beyond_two_to_the_24(done):
    one = kind("bandit")
    state = nk.step(nk.gradient(one.task), one.tx).init(jax.random.key(0), next(iter(one.batches)))
    state = dataclasses.replace(state, count=jnp.int32(done))
    after, metrics = counting()(state, next(iter(one.batches)))
    assert int(after.count) == done + 1
    other = dataclasses.replace(state, count=jnp.int32(done + 1))
    _, others = counting()(other, next(iter(one.batches)))
    assert float(metrics["loss"].total) != float(others["loss"].total)  # other draws


@functools.cache
def counting():
    one = kind("bandit")
    return jax.jit(nk.step(nk.gradient(one.task), one.tx).update)


def test_streams_of_data_and_keys_go_on_beyond_two_to_the_31():
    data = kind("vae").batches
    far = [next(data.stream(start)) for start in (2**33, 2**33 + 1, 2**33)]
    assert np.array_equal(far[0]["x"], far[2]["x"])
    assert not np.array_equal(far[0]["x"], far[1]["x"])
    marks = [0, 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1]
    keys = [nk.keys.fold(jax.random.key(0), "data", mark) for mark in marks]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) == 7
