"""The same bits again: cut and resumed, changed and watched, edited elsewhere."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit.core import trees
from reliability import determinism
from reliability.kinds import kind, labelled


def test_the_same_command_twice():
    found = determinism.twice(count=1, seed=0, steps=40, anew=False, names=("vae",))
    assert not found["failures"], found
    assert (found["count"], found["runs"]) == (1, 4)  # on 1 and 8 devices, in 2 processes


@pytest.mark.nightly
def test_the_same_command_twice_for_every_kind():
    found = determinism.twice(count=6, seed=0)
    assert not found["failures"], found
    assert (found["count"], found["runs"]) == (6, 24)


def test_cut_and_resumed():
    found = determinism.cut(count=4, seed=0, names=("vae", "bandit"))
    assert not found["failures"], found
    assert found["count"] == 4


def test_a_cut_that_forgets_something_is_noticed(monkeypatch):
    def forgetful(self, step, state, *rest):
        state = jax.tree_util.tree_map_with_path(
            lambda p, x: jnp.zeros_like(x) if "pulls" in trees.path_name(p) else x, state
        )
        return save(self, step, state, *rest)

    save = nk.Run.save
    monkeypatch.setattr(nk.Run, "save", forgetful)
    found = determinism.cut(count=1, seed=0, names=("bandit",))
    assert len(found["failures"]) == 1, found


def test_each_leaf_of_a_state_decides_what_follows():
    found = determinism.leaves(count=100, seed=0, names=("vae", "bandit"))
    assert not found["failures"], found
    assert found["count"] == found["of"] > 20
    assert found["idle"] == 1  # the count of replays


def test_a_leaf_that_decides_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr(determinism, "IDLE", {})
    found = determinism.leaves(count=100, seed=0, names=("bandit",))
    assert [text.split(": ")[1] for text in found["failures"]] == [
        "bandit count changes nothing and is not listed"
    ]


def test_a_flipped_bit_is_found_by_the_replay():
    found = determinism.flipped(count=20, seed=0)
    assert not found["failures"], found
    assert (found["count"], found["false_alarms"]) == (20, 0)


# --- edits elsewhere leave a stream alone ---
class Small(nn.Module):
    """A layer of dropout between two dense ones."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(4)(nn.Dropout(0.3, deterministic=not train)(x))


class Wider(nn.Module):
    """`Small` with one more layer, whose output counts for nothing."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        extra = nn.Dense(3, name="added")(x)
        extra = nn.Dropout(0.5, deterministic=not train, name="more")(extra)
        return Small(name="inner")(x, train=train) + 0 * extra.sum()


class Same(nn.Module):
    """`Small` under the name that it has in `Wider`."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return Small(name="inner")(x, train=train)


@functools.cache
def data(extra=False):
    fields = labelled(8)
    if extra:
        fields["unused"] = np.arange(96)
    return nk.data.arrays(fields, batch_size=16)


@functools.cache
def learner(model=Same, metric=False, wrap=None):
    metrics = {"accuracy": nk.metrics.accuracy} if metric else {}
    task = nk.supervised(model(), nk.losses.cross_entropy, **metrics)
    step = nk.step(nk.gradient(task), optax.sgd(0.1))
    return task, step if wrap is None else wrap(step)


def trained(
    model=Same, *, metric=False, wrap=None, every=None, folder=None, extra=False, **options
):
    """(first weights, last weights) of what `Small` has, trained for 8 steps."""
    _, step = learner(model, metric, wrap)
    state = nk.init(step, jax.random.key(0), next(iter(data(extra))))
    first = jax.device_get(step.weights(state))
    options = {"log_every": 8, "progress": False} | options
    if folder is None:
        state, _ = nk.fit(step, state, data(extra), steps=8, every=every, **options)
    else:
        with nk.Run(folder, {}, save_every=3) as run:
            state, _ = nk.fit(step, state, data(extra), steps=8, every=every, run=run, **options)
    own = lambda w: jax.tree.map(np.asarray, (w[0]["inner"], w[1]))
    return own(first), own(step.weights(state)) + (state,)


def drawing(params, carry):
    """A hook that uses random numbers of every other kind."""
    np.random.default_rng(0).normal()
    return {"split": "own", "drawn": float(jax.random.normal(jax.random.key(0)))}


def evaluation():
    return nk.evaluate(learner()[0], list(data())[:2])


EDITS = {
    "a layer": lambda folder: {"model": Wider},
    "a metric": lambda folder: {"metric": True},
    "an evaluation": lambda folder: {"every": {3: evaluation()}},
    "a log": lambda folder: {"log_every": 1},
    "a hook that draws": lambda folder: {"every": {2: drawing}},
    "a run folder": lambda folder: {"folder": folder},
    "a bar": lambda folder: {"progress": None},
    "another field": lambda folder: {"extra": True},
    "a guard": lambda folder: {"wrap": nk.skip_nonfinite},
    "a replay": lambda folder: {"wrap": functools.partial(nk.replayed, every=2)},
}


@functools.cache
def unedited():
    return trained()


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_leaves_other_streams_alone(edit, tmp_path, capsys):
    """First weights, orders and dropout are those without the edit: 8 steps end alike.

    The compiled program may be another one, whose roundings differ; another stream of dropout, or
    another order, moves weights by 1e-2.
    """
    first, last = trained(**EDITS[edit](tmp_path / "run"))
    assert nk.digest(first) == nk.digest(unedited()[0])
    pairs = zip(jax.tree.leaves(last[:2]), jax.tree.leaves(unedited()[1][:2]))
    assert max(np.abs(x - y).max() for x, y in pairs) < 1e-6
    if edit not in ("a layer", "a metric", "another field", "a guard", "a replay"):
        assert nk.digest(last[2]) == nk.digest(unedited()[1][2])  # the same program: the same bits


def test_another_seed_or_rate_of_dropout_is_not_the_same(monkeypatch):
    """What the test above would see if a stream had moved."""
    _, step = learner(wrap=functools.partial(nk.seeded, seed=1))
    state = nk.init(step, jax.random.key(0), next(iter(data())))
    state = step.weights(state)[0]["inner"]
    off = jax.tree.map(lambda x, y: np.abs(x - y).max(), state, unedited()[0][0])
    assert max(jax.tree.leaves(off)) > 1e-2


@pytest.mark.parametrize("times", [0, 2])
def test_evaluating_changes_nothing(times):
    _, step = learner()
    state = nk.init(step, jax.random.key(0), next(iter(data())))
    before = nk.digest(state)
    for _ in range(times):
        evaluation()(*step.weights(state))
        nk.predict(Same(), *step.weights(state), data())
    assert nk.digest(state) == before
    state, _ = nk.fit(step, state, data(), steps=8, log_every=8, progress=False)
    assert nk.digest(state) == nk.digest(unedited()[1][2])


# --- the replay itself ---
@pytest.fixture
def as_users_compile():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("as_users_compile")
def test_a_replay_is_computed_and_is_one_piece_of_program():
    """Every matrix product stands in the body of the loop, once: not outside, and not merged."""
    one, products = kind("vae"), {}
    plain = nk.step(nk.gradient(one.task), optax.sgd(0.1))
    for name, step in (("plain", plain), ("replayed", nk.replayed(plain, every=1))):
        state = jax.eval_shape(step.init, jax.random.key(0), next(iter(one.batches)))
        update = jax.jit(lambda s, b, step=step: step.update(s, b))
        text = update.lower(state, next(iter(one.batches))).compile().as_text()
        entry = text[text.index("\nENTRY") :]
        found = [len(re.findall(r"= \S+ dot\(", part)) for part in (text, entry)]
        products[name] = found + [len(re.findall(r"= .* while\(", entry))]
    assert products["plain"][0] > 0
    assert products["replayed"][0] == products["plain"][0]
    assert products["replayed"][1:] == [0, 1]


def test_off_it_is_the_very_same_step_and_on_the_same_numbers():
    one = kind("vae")
    assert nk.replayed(one.step, every=None) is one.step
    step = nk.replayed(one.step, every=3)
    states = [one.start(), nk.init(step, jax.random.key(5), next(iter(one.batches)))]
    assert nk.digest(states[0]) == nk.digest(states[1].inner)
    update = jax.jit(step.update)
    for _, batch in zip(range(7), one.batches.stream()):
        states = [one.update()(states[0], batch)[0], update(states[1], batch)[0]]
    assert nk.digest(states[0]) == nk.digest(states[1].inner)


def test_fit_stops_when_a_replay_differs_and_between_replays_nothing_is_computed_twice(tmp_path):
    one, fault = kind("bandit"), determinism.Fault()
    plain = nk.step(nk.gradient(one.task), one.tx)
    step = nk.replayed(determinism.flipping(plain, fault), every=5)
    start = lambda: nk.init(step, jax.random.key(0), next(iter(one.batches)))
    options = {"steps": 12, "log_every": 20, "progress": False}
    _, rows = nk.fit(step, start(), one.batches, **options)
    assert fault.calls == 12 + 2
    assert all(row["replay_differs"] == 0 for row in rows)
    fault.calls, fault.at, fault.where = 0, 6, (3, 0, 20)  # the second round of update 5
    with (
        pytest.raises(
            RuntimeError, match=r"1 of the updates from step 5 to 8 .* same ones"
        ) as seen,
        nk.Run(tmp_path / "a", {}, save_every=4) as run,
    ):
        nk.fit(step, start(), one.batches, run=run, **options)
    assert "--xla_gpu_deterministic_ops=true" in str(seen.value)
    assert run.checkpoints.steps() == [4]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_replay_every_so_many_updates(every):
    with pytest.raises(ValueError, match=r"every=.* expected an integer >= 1, or None, which is"):
        nk.replayed(kind("vae").step, every=every)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64, jnp.int8])
def test_bits_are_compared_and_not_numbers(dtype):
    from nnkit.train import guards

    differ = lambda a, b: bool(guards._differ({"x": a}, {"x": b}))
    x = jnp.asarray([1, 0, 3], dtype)
    assert not differ(x, x)
    assert differ(x, x.at[2].set(2))
    if jnp.issubdtype(dtype, jnp.inexact):
        assert differ(x, x.at[1].set(-x[1]))  # -0 is other bits than 0
        bad = x.at[0].set(jnp.nan)
        assert not differ(bad, bad)
