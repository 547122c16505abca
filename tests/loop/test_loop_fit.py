"""fit is the loop that its docstring shows, plus bookkeeping."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.loop.labels import CHECKED
from tests.compiles import counted


class Normed(nn.Module):
    """Everything that a loop can get wrong: batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        h = nn.Dense(16, use_bias=False)(x.reshape(x.shape[0], -1))
        h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(h))


SCHEDULE = optax.cosine_decay_schedule(1e-2, 100)
MODEL = Normed()
TASK = nk.supervised(MODEL, nk.losses.cross_entropy, accuracy=nk.metrics.accuracy)
STEP = nk.step(nk.gradient(TASK), optax.adamw(SCHEDULE))


@pytest.fixture(scope="module")
def train():
    return nk.data.embedded("digits", batch_size=100)[0]  # 1437: the 15th batch is ragged


@pytest.fixture
def start(train):
    return lambda step=STEP, seed=0: nk.init(step, jax.random.key(seed), next(iter(train)))


def quiet(*args, **options):
    return nk.fit(*args, progress=False, **options)


def written_out(train, steps):
    """The same training in plain jax, flax and optax: (params, batch statistics, losses)."""
    tx = optax.adamw(SCHEDULE)
    beginning, base = jax.random.split(jax.random.key(0))
    first = next(iter(train))

    @jax.jit
    def begin(key, x):
        variables = MODEL.init({"params": key}, x)
        return variables["params"], variables["batch_stats"]

    def total(params, stats, batch, key):
        logits, new = MODEL.apply(
            {"params": params, "batch_stats": stats},
            batch["x"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = nk.losses.cross_entropy(logits, batch["y"])
        return (losses * batch["mask"]).sum(), new["batch_stats"]

    @jax.jit
    def move(params, stats, opt, count, batch):
        key = jax.random.fold_in(base, count)
        both = jax.value_and_grad(total, has_aux=True)(params, stats, batch, key)
        (loss, stats), slope = both
        n = batch["mask"].sum()
        with jax.numpy_dtype_promotion("standard"):
            change, opt = tx.update(jax.tree.map(lambda g: g / n, slope), opt, params)
            params = optax.apply_updates(params, change)
        return params, stats, opt, loss, n

    params, stats = begin(beginning, first["x"])
    with jax.numpy_dtype_promotion("standard"):
        opt = jax.jit(tx.init)(params)
    losses = []
    for i, batch in zip(range(steps), train.stream()):
        params, stats, opt, loss, n = move(params, stats, opt, jnp.int32(i), batch)
        losses.append(float(loss) / float(n))
    return params, stats, losses


def test_fit_is_the_loop_written_out(train, start):
    params, stats, losses = written_out(train, 100)
    state, rows = quiet(STEP, start(), train, steps=100, log_every=1)
    assert nk.digest(state.params) == nk.digest(params)
    assert nk.digest(state.carry) == nk.digest({"batch_stats": stats})
    # the sum that is only logged may be fused otherwise: one unit in the last place
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=3e-7)
    assert [row["step"] for row in rows] == list(range(1, 101))
    assert int(state.count) == 100


def test_rows_are_means_over_all_examples_since_the_row_before(train, start):
    one, each = quiet(STEP, start(), train, steps=41, log_every=1)
    other, rows = quiet(STEP, start(), train, steps=41, log_every=7)
    assert nk.digest(one) == nk.digest(other)
    weights = [batch["mask"].sum() for _, batch in zip(range(41), train.stream())]
    assert len(set(weights)) > 1
    ends = [row["step"] for row in rows]
    assert ends == [1, 2, 4, 7, 8, 14, 16, 21, 28, 32, 35, 41]
    for a, b, row in zip([0, *ends], ends, rows):
        for name in ("loss", "accuracy"):
            values = [row[name] for row in each[a:b]]
            mean = np.average(np.float64(values), weights=weights[a:b])
            np.testing.assert_allclose(row[name], mean, rtol=1e-6)


def test_hooks_come_every_n_steps_and_at_the_end(train, start):
    calls = []

    def hook(name):
        def called(params, carry):
            calls.append((name, nk.digest((params, carry))))
            return {"split": name, "value": 1.0} if name == "b" else None

        return called

    state, rows = quiet(
        STEP, start(), train, steps=10, every={3: hook("a"), 5: [hook("b"), hook("c")]}
    )
    assert "".join(name for name, _ in calls) == "abcaaabc"  # at the steps 3, 5, 6, 9 and 10
    assert [(row["step"], row["value"]) for row in rows if "split" in row] == [(5, 1.0), (10, 1.0)]
    assert {digest for _, digest in calls[-3:]} == {nk.digest((state.params, state.carry))}
    assert len({digest for _, digest in calls}) == 5


def test_hooks_see_the_average(train, start):
    step = nk.ema(STEP, 0.9)
    seen = []
    state, _ = quiet(step, start(step), train, steps=3, every={3: lambda p, c: seen.append(p)})
    assert nk.digest(seen[0]) == nk.digest(state.average)
    assert nk.digest(seen[0]) != nk.digest(state.inner.params)


def scripted(*values):
    """A hook that reports these accuracies in turn, and how often it was called."""
    left = list(values)
    return left, lambda params, carry: {"split": "test", "accuracy": left.pop(0)}


def test_patience_best_checkpoint_and_the_same_call_again(train, start, tmp_path):
    def go(hook):
        with nk.Run(tmp_path / "a", save_every=5, keep_best=("accuracy", "max")) as run:
            stop = nk.patience("accuracy", 3, mode="max")
            return run, *quiet(
                STEP, start(), train, steps=100, every={10: hook}, stop=stop, run=run
            )

    left, hook = scripted(0.1, 0.5, 0.4, 0.5, 0.3, 0.9)
    run, state, rows = go(hook)
    assert left == [0.9]
    assert rows[-1]["step"] == 50
    assert int(state.count) == 50
    assert run.status == "done"
    best = max((row for row in rows if "split" in row), key=lambda r: (r["accuracy"], r["step"]))
    assert run.checkpoints.best() == best["step"] == 40
    assert run.checkpoints.steps() == [40, 45, 50]
    assert run.checkpoints.info(40)["metrics"] == {"accuracy": 0.5, "test/accuracy": 0.5}
    assert run.checkpoints.info(45)["metrics"] == {}  # nothing was evaluated there

    with counted() as programs:
        again, state_again, rows_again = go(hook)
    assert left == [0.9]
    assert rows_again == rows
    assert nk.digest(state_again) == nk.digest(state)
    assert again.status == "done"
    assert programs.count == 0


def test_patience_is_a_pure_function_of_the_rows():
    values = [0.1, 0.5, 0.4, 0.5, 0.3, 0.6]
    rows = [{"split": "test", "accuracy": a, "loss": 1 - a} for a in values]
    for metric, mode in (("accuracy", "max"), ("loss", "min")):
        stop = nk.patience(metric, 3, mode=mode)
        assert [stop(rows[:n]) for n in range(7)] == [False] * 5 + [True, False]
        assert not nk.patience(metric, 3, mode=mode, split="validation")(rows)
    members = [{"split": "test", "accuracy": np.array([0.0, a])} for a in (0.5, 0.5)]
    assert nk.patience("accuracy", 1, mode="max")(members)


def test_no_implicit_transfer(train, start):
    test = nk.data.embedded("digits", batch_size=100)[1]
    step = nk.skip_nonfinite(nk.ema(STEP, 0.9))
    state = start(step)
    with jax.transfer_guard("disallow"):
        _, rows = quiet(step, state, train, steps=12, every={5: nk.evaluate(TASK, test)})
    assert [row["step"] for row in rows if "split" in row] == [5, 10, 12]


def test_the_host_waits_at_rows_alone(train, start, monkeypatch):
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(1) or get(x))
    state, rows = quiet(STEP, start(), train, steps=40, log_every=40)
    assert [row["step"] for row in rows] == [1, 2, 4, 8, 16, 32, 40]
    looks = 2 + CHECKED  # init and fit each look at their first batch; then labels of the first
    leaves = sum(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(state))
    assert len(fetched) < 7 + looks + leaves + 7  # what is returned is finite; not every step


def test_the_second_fit_compiles_nothing(train, start):
    hook = nk.evaluate(TASK, list(train)[:2])
    quiet(STEP, start(), train, steps=3, every={2: hook})
    state = start(seed=1)
    with counted() as programs:
        quiet(STEP, state, train, steps=5, every={2: hook})
    assert programs.count == 0


def test_batches_list_and_generator_are_the_same(train, start):
    batches = list(itertools.islice(train.stream(), 6))
    digests = {
        nk.digest(quiet(STEP, start(), data, steps=6)[0])
        for data in (train, batches, tuple(batches), (batch for batch in batches), train.stream())
    }
    assert len(digests) == 1
    twice, _ = quiet(STEP, start(), batches[:3], steps=6)
    assert int(twice.count) == 6  # a list starts again from its beginning
    assert int(quiet(STEP, start(), batches)[0].count) == 6  # steps=None is one pass
    assert len(train) == 15
    assert int(quiet(STEP, start(), train)[0].count) == 15


def test_grouped_batches_feed_repeat(train, start):
    many = nk.repeat(STEP)
    groups = train.grouped(5)
    state = nk.init(many, jax.random.key(0), next(groups.stream()))
    state, rows = quiet(many, state, groups, steps=2, log_every=1)
    other, each = quiet(STEP, start(), train, steps=10, log_every=1)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(rows[-1]["accuracy"], np.mean([r["accuracy"] for r in each[5:]]))


def test_rows_of_skipped_updates_stay_finite(train, start):
    step = nk.skip_nonfinite(STEP)
    batches = list(itertools.islice(train.stream(), 8))
    batches[4] = {**batches[4], "x": np.full_like(batches[4]["x"], np.nan)}
    state, rows = quiet(step, start(step), batches, steps=8, log_every=8)
    assert int(state.count) == 7
    assert rows[-1]["skipped"] == 0.25  # one of the steps 5 to 8
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["accuracy"]) for row in rows)

    plain, each = quiet(STEP, start(), batches[:4] + batches[5:], steps=7, log_every=1)
    np.testing.assert_allclose(rows[-1]["loss"], np.mean([r["loss"] for r in each[4:]]), rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params)):
        np.testing.assert_allclose(a, b, atol=1e-5)  # another program, other roundings


def test_members_give_rows_of_arrays(train):
    task = nk.supervised(nk.models.Linear(10), nk.losses.cross_entropy)
    step = nk.ensemble(nk.seeded(nk.step(nk.gradient(task), optax.sgd(0.1)), 1), 2)
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    _, rows = quiet(step, state, train, steps=4)
    assert rows[-1]["loss"].shape == (2,)
    assert rows[-1]["loss"].dtype == np.float64


def test_run_is_what_its_docstring_says(train, tmp_path):
    test = nk.data.embedded("digits", batch_size=100)[1]
    task = nk.supervised(nk.models.Linear(10), nk.losses.cross_entropy)
    options = {"steps": 20, "learning_rate": 1e-2, "folder": tmp_path / "a", "progress": False}
    found = nk.run(task, train, test, **options)
    assert [r["step"] for r in found.rows if "split" in r] == list(range(2, 21, 2))
    move = nk.step(nk.gradient(task), optax.adamw(optax.cosine_decay_schedule(1e-2, 20)))
    state = nk.init(move, jax.random.key(0), next(iter(train)))
    state, _ = quiet(move, state, train, steps=20)
    assert nk.digest(found.params) == nk.digest(state.params)
    again = nk.run(task, train, test, **options)
    assert nk.digest(again.params) == nk.digest(found.params)
    assert again.rows == found.rows


@pytest.mark.parametrize("name", ["ema", "sweep", "sweep_spread", "shard_run", "shard"])
def test_fit_compiles_one_program_whatever_the_sharding(name):
    from table import STEPS, batch

    step, data = STEPS[name](), [batch(i) for i in range(3)]
    state = nk.init(step, jax.random.key(0), data[0])
    with counted() as programs:
        state, _ = quiet(step, state, data, steps=9, log_every=2)
    # for `shard` jax also compiles the two slices that spread x and y over the devices
    assert programs.count == (3 if name == "shard" else 1)
    with counted() as programs:
        quiet(step, state, data, steps=9, log_every=2)
    assert programs.count == 0
