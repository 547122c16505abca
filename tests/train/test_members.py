"""Sweeps at size: how members are mapped, chunks, one program for all, members by themselves."""

from __future__ import annotations

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import counted
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit.train import each as ways
from nnkit.train.reads import reads

chunking = importlib.import_module("nnkit.train.chunks")  # nk.train.chunks is a function


def batch(i: int, b: int = 8) -> dict:
    rng = np.random.default_rng(i)
    x = rng.normal(size=(b, 5)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray((x[:, 0] > 0).astype(np.int32))}


class Plain(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.Dense(self.width)(x)))


class Convolved(nn.Module):
    features: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3,))(x[..., None])
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


TASK = nk.supervised(Plain(), nk.losses.cross_entropy)
GRAD = nk.gradient(TASK)


def recipe(h) -> nk.Step:
    return nk.seeded(nk.step(GRAD, optax.adamw(h["learning_rate"])), h["seed"])


LINE = nk.gradient(
    nk.objective(
        lambda key, b: {"w": 0.1 * jax.random.normal(key, (5,))},
        lambda p, b, key: (b["x"] @ p["w"] - b["y"].astype(jnp.float32)) ** 2,
    )
)


def small(h) -> nk.Step:
    return nk.seeded(nk.step(LINE, optax.adam(h["learning_rate"])), h["seed"])


def grid(n: int, low: float = 1e-3) -> dict:
    return {"learning_rate": jnp.geomspace(low, 1e-1, n), "seed": jnp.arange(n)}


def trained(step, n=3, make=batch):
    state = nk.init(step, jax.random.key(1), make(0))
    update = jax.jit(step.update)
    for i in range(n):
        state, metrics = update(state, make(i))
    return state, metrics


# --- the choice ---
def plain_step(model=Plain()):  # noqa: B008
    return nk.step(nk.gradient(nk.supervised(model, nk.losses.cross_entropy)), optax.sgd(0.1))


def test_members_go_over_the_devices_that_divide_them():
    for n, said in [
        (16, "16 members: over 8 devices, on each 2 by vmap"),
        (6, "6 members: over 6 devices, on each 1 by vmap"),
        (11, "11 members: side by side, by vmap"),
    ]:
        assert nk.chosen(nk.ensemble(plain_step(), n), batch(0)) == [said]
    swept = nk.ema(nk.sweep(recipe, grid(4)), 0.9)
    assert nk.chosen(swept, batch(0)) == ["4 members: over 4 devices, on each 1 by vmap"]
    state, _ = trained(swept)
    assert len(state.inner.inner.params["Dense_0"]["kernel"].sharding.device_set) == 4


def test_devices_that_are_taken_are_left_alone():
    side = "members: side by side, by vmap"
    held = nk.shard(nk.ensemble(plain_step(), 4), nk.mesh(data=2), batch=P("data"))
    assert nk.chosen(held, batch(0)) == [f"4 {side}"]
    twice = nk.ensemble(nk.sweep(recipe, grid(4)), 2)
    assert nk.chosen(twice, batch(0)) == [
        "2 members: over 2 devices, on each 1 by vmap",
        f"4 {side}",
    ]
    given = nk.ensemble(nk.sweep(recipe, grid(4)), 2, each=nk.unrolled)
    assert nk.chosen(given, batch(0)) == ["2 members: unrolled, as given", f"4 {side}"]
    assert nk.chosen(plain_step(), batch(0)) == []


def test_large_convolutions_on_cpu_are_unrolled_and_small_ones_are_not(monkeypatch):
    step = nk.ensemble(plain_step(Convolved()), 4)
    assert nk.chosen(step, batch(0)) == ["4 members: side by side, by vmap"]  # and on one device
    monkeypatch.setattr(ways, "FEW", 100)
    step = nk.ensemble(plain_step(Convolved()), 4)
    assert nk.chosen(step, batch(0)) == ["4 members: unrolled"]
    many = nk.ensemble(plain_step(Convolved()), ways.UNROLLED + 1)
    assert nk.chosen(many, batch(0)) == [f"{ways.UNROLLED + 1} members: side by side, by vmap"]
    a, log_a = trained(step)
    b, log_b = trained(nk.ensemble(plain_step(Convolved()), 4, each=nk.unrolled))
    assert nk.digest((a, log_a)) == nk.digest((b, log_b))
    judged = nk.stacked(nk.supervised(Convolved(), nk.losses.cross_entropy))
    text = str(jax.make_jaxpr(lambda p: judged.loss(p, {}, batch(0), None)[0])(a.params))
    assert text.count("conv_general_dilated[") == 4
    assert "feature_group_count=1" in text


def test_multiplications_of_convolutions_are_counted_inside_of_everything():
    def f(x, w):
        def one(x, _):
            return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME"), None

        return jax.lax.scan(jax.checkpoint(one), x, None, length=3)[0].sum()

    x, w = jnp.ones((2, 3, 4, 4)), jnp.ones((3, 3, 3, 3))
    forward = 2 * 3 * 16 * 27
    assert ways.multiplications(jax.make_jaxpr(f)(x, w)) == forward
    assert ways.multiplications(jax.make_jaxpr(jax.jit(f))(x, w)) == forward
    assert ways.multiplications(jax.make_jaxpr(jax.grad(f))(x, w)) >= 2 * forward


# --- chunks ---
@pytest.mark.parametrize("size", [1, 3, 9])
def test_chunks_are_the_members(size):
    whole, log = trained(nk.sweep(small, grid(7), each=jax.vmap))
    state, seen = trained(nk.sweep(small, grid(7), each=nk.chunks(size)))
    for a, b in zip(
        jax.tree.leaves(nk.trees.plain((whole, log))),
        jax.tree.leaves(nk.trees.plain((state, seen))),
    ):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), 1e-5, 1e-6)


def test_chunks_of_members_unrolled_are_the_members_to_the_last_bit():
    whole, log = trained(nk.sweep(small, grid(5), each=nk.in_turn))
    part, seen = trained(nk.sweep(small, grid(5), each=nk.chunks(2, each=nk.unrolled)))
    assert nk.digest((whole, log)) == nk.digest((part, seen))
    over = nk.spread(nk.mesh(run=2), each=nk.chunks(2, each=nk.unrolled))
    six, log = trained(nk.sweep(small, grid(6), each=nk.in_turn))
    spread, seen = trained(nk.sweep(small, grid(6), each=over))
    assert nk.digest((six, log)) == nk.digest((spread, seen))


def wide(h) -> nk.Step:
    task = nk.supervised(Plain(64), nk.losses.cross_entropy)
    return nk.step(nk.gradient(task), optax.adam(h["learning_rate"]))


@pytest.mark.usefixtures("optimised")
def test_chunked_finds_the_size_that_fits_and_no_larger_one():
    large, rates = batch(0, 512), {"learning_rate": jnp.geomspace(1e-4, 1e-1, 24)}
    make = functools.partial(nk.chunked, wide, rates, large)
    free = make(limit_bytes=10**9)
    assert free.size == 24
    assert free.peak < 10**9
    assert free.working > 512 * 64 * 4  # at least one layer of activations
    limit = free.peak // 3
    found = make(limit_bytes=limit)
    assert 1 <= found.size < 24
    assert found.peak <= limit
    assert "24 members" in str(found)
    assert f"{found.size} at a time" in str(found)
    state = nk.init(found.step, jax.random.key(0), large)
    program = jax.jit(found.step.update, donate_argnums=0).lower(state, large).compile()
    m = program.memory_analysis()
    taken = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    assert taken + m.temp_size_in_bytes == found.peak
    both = make(limit_bytes=limit, mesh=nk.mesh(run=8))  # three on each device
    assert both.size == 3
    with pytest.raises(ValueError, match=r"even one at a time.*nk\.rounds\(grid, \d+\)"):
        make(limit_bytes=free.state * 12)


def test_chunked_takes_the_whole_where_chunks_need_more(monkeypatch):
    """A loop over chunks keeps copies of the states: eight small members need less at once."""
    needs = {1: 515, 2: 512, 3: 510, 4: 505, 8: 477}
    monkeypatch.setattr(chunking, "_peak", lambda step, batch: needs[step])
    monkeypatch.setattr(chunking, "_kept", lambda step, batch, n: 50)
    monkeypatch.setattr(chunking, "sweep", lambda recipe, grid, each: int(each.__name__[10:]))
    make = lambda limit: nk.chunked(recipe, grid(8), batch(0), limit_bytes=limit)
    for limit in (477, 480, 514, 520, 10**6):
        assert (make(limit).size, make(limit).peak) == (8, 477)
    assert make(480).working == (477 - 400) // 8
    with pytest.raises(ValueError, match=r"need 477 B or more.*nk\.rounds\(grid, 7\)"):
        make(470)


@pytest.mark.parametrize("n", [1, 2, 7, 24, 100])
def test_chunked_finds_the_largest_of_any_growing_memory(n, monkeypatch):
    asked = []
    monkeypatch.setattr(chunking, "_peak", lambda step, batch: asked.append(step) or 10 + step**2)
    monkeypatch.setattr(chunking, "_kept", lambda step, batch, n: 0)
    monkeypatch.setattr(chunking, "sweep", lambda recipe, grid, each: int(each.__name__[10:]))
    even = {-(-n // parts) for parts in range(1, n + 1)}
    for size in even:
        asked.clear()
        found = nk.chunked(recipe, grid(n), batch(0), limit_bytes=10 + size**2)
        assert found.size == size
        assert len(asked) == len(set(asked)) <= 2 + len(even).bit_length()


def test_chunked_says_what_does_not_divide_and_rounds_are_even():
    with pytest.raises(ValueError, match="7 members over 2 devices"):
        nk.chunked(recipe, grid(7), batch(0), mesh=nk.mesh(run=2))
    parts = nk.rounds(grid(10), 4)
    assert [len(part["seed"]) for part in parts] == [4, 4, 2]
    assert np.concatenate([part["seed"] for part in parts]).tolist() == list(range(10))
    with pytest.raises(ValueError, match="size=0"):
        nk.rounds(grid(3), 0)
    with pytest.raises(ValueError, match="size=0"):
        nk.chunks(0)


def test_product_names_the_field_that_is_no_number():
    with pytest.raises(TypeError, match=r"product: rate is \['a', 'b'\], expected numbers"):
        nk.product(seed=[0, 1], rate=["a", "b"])


# --- one program ---
def test_neither_a_member_nor_a_second_sweep_of_the_same_shape_compiles_again():
    batches = [batch(i) for i in range(4)]
    test = nk.evaluate(nk.stacked(TASK), batches[:1])

    def whole(values):
        step = nk.sweep(recipe, values)
        state = nk.init(step, jax.random.key(0), batches[0])
        return nk.fit(step, state, batches, steps=8, every={4: test}, progress=False)

    first, second = grid(4), jax.device_put(grid(4, low=2e-2))
    with counted() as once:
        a, rows = whole(first)
    assert once.count > 0
    with counted() as again:
        b, others = whole(second)
    assert again.count == 0
    np.testing.assert_allclose(a.grid["learning_rate"], first["learning_rate"])
    np.testing.assert_allclose(b.grid["learning_rate"], second["learning_rate"])
    assert not np.allclose(rows[-1]["loss"], others[-1]["loss"])
    alone, _ = trained_by(recipe({k: v[1] for k, v in second.items()}), batches, 8)
    np.testing.assert_allclose(
        nk.member(b, 1).params["Dense_0"]["kernel"], alone.params["Dense_0"]["kernel"], 1e-4, 1e-5
    )
    parts = nk.rounds(grid(8), 4)
    with counted() as rest:
        for part in map(jax.device_put, parts):
            whole(part)
    assert rest.count <= 4  # cutting the grid; no program of training


def trained_by(step, batches, n):
    state = nk.init(step, jax.random.key(0), batches[0])
    return nk.fit(step, state, batches, steps=n, progress=False)


def test_what_a_recipe_reads_decides_whether_its_program_is_used_again():
    def by(decay):
        return lambda h: nk.step(GRAD, optax.adamw(h["learning_rate"], weight_decay=decay))

    same = lambda a, b: nk.sweep(a, grid(2)).update is nk.sweep(b, grid(2)).update
    assert same(by(0.1), by(0.1))
    assert not same(by(0.1), by(0.2))
    assert not same(by(1), by(1.0))  # equal, and another program
    listed = [0.1]
    read = lambda h: by(listed[0])(h)
    before = nk.sweep(read, grid(2)).update
    listed[0] = 0.2
    assert nk.sweep(read, grid(2)).update is not before  # the list changed
    assert reads(by(np.ones(1))) is None

    class Mutable:
        decay = 0.1

    held = Mutable()
    assert reads(lambda h: by(held.decay)(h)) is None
    assert reads(recipe) is not None


def test_a_global_name_that_changes_makes_another_program(monkeypatch):
    before = nk.sweep(recipe, grid(2)).update
    assert nk.sweep(recipe, grid(2)).update is before
    monkeypatch.setitem(globals(), "GRAD", nk.clipped(GRAD, 0.1))
    assert nk.sweep(recipe, grid(2)).update is not before


# --- members that diverge ---
@pytest.mark.parametrize("each", [None, jax.vmap, nk.in_turn, nk.unrolled, nk.chunks(2)])
@pytest.mark.parametrize("careful", [False, True])
def test_a_member_that_diverges_does_not_touch_the_others(each, careful):
    def risky(h):
        step = nk.step(LINE, optax.sgd(h["scale"]))
        return nk.skip_nonfinite(step) if careful else step

    tame = nk.sweep(risky, {"scale": jnp.array([0.1, 0.2, 0.3, 0.4])}, each=each)
    wild = nk.sweep(risky, {"scale": jnp.array([0.1, 3e38, 0.3, 0.4])}, each=each)
    a, _ = trained(tame, 5)
    b, log = trained(wild, 5)
    for i in (0, 2, 3):
        assert nk.digest(nk.member(a, i)) == nk.digest(nk.member(b, i))
    if careful:
        assert np.isfinite(b.inner.params["w"]).all()
        assert log["skipped"].total.tolist() == [0, 1, 0, 0]
    else:
        assert not np.isfinite(log["loss"].value[1])


def test_fit_says_who_diverged(capsys):
    def risky(h):
        return nk.step(LINE, optax.sgd(h["scale"]))

    step = nk.sweep(risky, {"scale": jnp.array([0.1, 3e38, 2e38, 0.4])})
    state = nk.init(step, jax.random.key(0), batch(0))
    nk.fit(step, state, [batch(i) for i in range(3)], steps=6, progress=True)
    assert "2 of 4 diverged: scale=3e+38; scale=2e+38" in capsys.readouterr().out


def test_diverged_knows_skipped_and_stopped_members():
    row = {"loss": np.array([1.0, np.nan, np.nan, 0.5]), "skipped": np.array([0, 1, 1, 1.0])}
    assert nk.loop.diverged(row) == "3 of 4 diverged"
    row = {"loss": np.array([1.0, np.nan, np.nan]), "alive": np.array([1.0, 0.0, 1.0])}
    assert nk.loop.diverged(row, {"a": np.arange(3.0)}) == "1 of 3 diverged: a=2"
    many = {"loss": np.full(9, np.nan)}
    assert nk.loop.diverged(many, {"a": np.arange(9.0)}).endswith("a=3; and 5 more")


# --- one member ---
def test_a_member_is_the_state_of_its_single_run_and_its_checkpoint(tmp_path):
    step = nk.sweep(small, grid(3), each=nk.in_turn)
    state, _ = trained(step)
    folders = nk.loop.save_members(tmp_path, state, 3)
    for i, folder in enumerate(folders):
        single = small({k: v[i] for k, v in grid(3).items()})
        fresh = nk.init(single, jax.random.key(1), batch(0))
        found = nk.Checkpoints(folder).restore(fresh)
        assert found.step == 3
        assert nk.digest(found.state) == nk.digest(nk.member(state, i))
        a, _ = jax.jit(single.update)(found.state, batch(3))  # and goes on as that run
        b, _ = jax.jit(step.update)(state, batch(3))
        assert nk.digest(a) == nk.digest(nk.member(b, i))


def test_best_is_the_best_and_never_one_that_is_not_finite():
    step = nk.sweep(small, grid(3), each=jax.vmap)
    state, _ = trained(step)
    found = nk.best(step, state, [np.nan, 0.2, 0.1])
    assert found.index == 2
    assert nk.digest(found.params) == nk.digest(nk.member(step.weights(state)[0], 2))
    assert nk.best(step, state, np.array([np.inf, 0.2, 0.1]), mode="max").index == 1
    for scores, knobs, words in [
        ([np.nan] * 3, {}, "no score of 3 is finite"),
        ([0.1], {}, r"shape \(1,\), expected \(3,\)"),
        ([0.1] * 3, {"mode": "best"}, "mode='best'"),
    ]:
        with pytest.raises(ValueError, match=words):
            nk.best(step, state, scores, **knobs)
    with pytest.raises(IndexError, match="member 3 of 3: expected 0 to 2"):
        nk.member(state, 3)
    with pytest.raises(ValueError, match="'b' has shape"):
        nk.member({"a": jnp.ones(2), "b": jnp.ones(())}, 0)


def test_an_attribute_is_no_global_name(monkeypatch):
    monkeypatch.setitem(globals(), "tanh", [np.ones(3)])  # which may change without a trace
    assert reads(lambda h: jnp.tanh(h["rate"])) is not None  # asks jnp for it, not this module
    monkeypatch.setitem(globals(), "rate", [np.ones(3)])
    assert reads(lambda h: h["rate"] * rate) is None  # noqa: F821


def test_a_member_of_a_technique_of_members():
    step = nk.population(nk.sweep(small, grid(3)), every=2, perturb={"learning_rate": (0.5, 2.0)})
    state = step.init(jax.random.key(0), batch(0))
    assert nk.digest(nk.member(state, 2)) == nk.digest(nk.member(state.inner, 2))
    with pytest.raises(TypeError, match=r"one of its columns .* such as row"):
        nk.best(step, state, {"step": 1, "loss": [1.0]})


def test_a_shard_that_splits_nothing_is_refused():
    step = recipe({"learning_rate": 1e-3, "seed": 0})
    with pytest.raises(
        ValueError, match=r"4 devices would all do the same work; .* batch=P\('data'"
    ):
        nk.shard(step, nk.mesh(data=4))
    with pytest.raises(TypeError, match=r"expected a rule .* such as rules.fsdp"):
        nk.shard(step, nk.mesh(data=4), state=P("data"))
    assert nk.shard(step, nk.mesh(data=1)).init
