"""The laws of the design over every row of the table."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import counted
from jax.sharding import PartitionSpec as P
from table import (
    LOSSES,
    OBJECTIVES,
    OF_THE_WHOLE,
    OFF,
    PER_EXAMPLE,
    PLAIN,
    STATEFUL,
    STEPS,
    WEIGHS,
    batch,
    batches_for,
    grid,
    plain_step,
    recipe,
    stacked_batches,
)

import nnkit as nk
from nnkit.core import means

KEY = 11


def close(a, b, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def trained(step, n=4, make=batch, start=None):
    state = nk.init(step, jax.random.key(KEY), make(0)) if start is None else start
    update = jax.jit(step.update)
    for i in range(n):
        state, metrics = update(state, make(i))
    return state, metrics


def rows(table):
    return pytest.mark.parametrize("name", list(table))


# --- every Step ---
@functools.cache
def built(name):
    """(step, batches, donated update, a state on the host): compiled once for all laws of a row."""
    step, make = STEPS[name](), batches_for(name)
    state = nk.init(step, jax.random.key(KEY), make(0))
    return step, make, jax.jit(step.update, donate_argnums=0), state


def own(tree):
    """A copy, to be donated."""
    return jax.tree.map(jnp.copy, tree)


@rows(STEPS)
def test_init_returns_no_aliased_buffers(name):
    step, make, update, state = built(name)
    one, key = make(0), jax.random.key(KEY)
    digest = nk.digest((one, key))
    raw = nk.trees.unaliased(jax.jit(step.init)(jax.random.clone(key), one), key, one)
    for tree in (state, raw):
        places = [p for x in jax.tree.leaves((tree, one)) for p in nk.trees._places(x)]
        assert len(places) == len(set(places))
    update(raw, one)
    assert nk.digest((one, key)) == digest  # the caller's arrays are alive and unchanged


@rows(STEPS)
def test_a_step_keeps_its_form_compiles_once_and_learns(name):
    _, make, update, state = built(name)
    form = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    state, first = update(own(state), make(0))
    later = [make(i) for i in range(1, 5)]
    with counted() as compiled:
        for one in later:
            state, last = update(state, one)
    assert compiled.count == 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == form
    assert all(isinstance(m, nk.Mean) for m in last.values())
    for _ in range(60):
        state, last = update(state, make(0))
    mean = lambda m: np.sum(m.total) / np.sum(m.weight)  # members that stopped weigh nothing
    assert mean(last["loss"]) < mean(first["loss"])


@rows(STEPS)
def test_save_at_step_k_and_resume_is_bitwise_the_same(name, tmp_path):
    _, make, update, start = built(name)
    state = own(start)
    for i in range(2):
        state, _ = update(state, make(i))
    with nk.Checkpoints(tmp_path) as saver:
        saver.save(2, state, position=2)
        again = saver.restore(start).state
    assert nk.digest(again) == nk.digest(state)
    for i in range(2, 4):
        state, a = update(state, make(i))
        again, b = update(again, make(i))
    assert nk.digest((state, a)) == nk.digest((again, b))


@rows(STEPS)
def test_the_same_key_gives_the_same_bits(name):
    step, make, update, start = built(name)
    again = jax.jit(step.init)(jax.random.key(KEY), make(0))
    assert nk.digest(again) == nk.digest(start)
    a, b = update(own(start), make(1)), update(own(start), make(1))
    assert nk.digest(a) == nk.digest(b)


LONG = ("causal_lm", "masked_lm", "seq2seq")  # a Transformer, operation by operation: nightly


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.nightly] if n in LONG else []) for n in OBJECTIVES],
)
def test_jit_changes_nothing_but_rounding(name):
    task, one = OBJECTIVES[name](), batch(1, mask=True)
    params, carry = task.init(jax.random.key(KEY), one)
    grad = nk.gradient(task).grad
    plain = grad(params, carry, one, jax.random.key(5))
    traced = jax.jit(grad)(params, carry, one, jax.random.key(5))
    wide = 3e-2 if name == "half" else 2e-5  # bfloat16 has 8 bits
    close(plain[0], traced[0], rtol=wide, atol=wide)
    close(plain[1][1], traced[1][1], rtol=wide, atol=wide)


# --- off switches ---
@rows(OFF)
def test_switched_off_a_technique_is_the_identity(name):
    make, task = OFF[name]
    task = STATEFUL if task is None else task
    mine, plain = make(), nk.gradient(task)
    for mask in (False, True):
        one, key = batch(1, mask=mask), jax.random.key(3)
        params, carry = plain.init(jax.random.key(KEY), one)
        a, (carry_a, metrics_a) = jax.jit(mine.grad)(params, carry, one, jax.random.clone(key))
        b, (carry_b, metrics_b) = jax.jit(plain.grad)(params, carry, one, key)
        close(a.value, b.value)
        close(carry_a, carry_b)
        close({k: metrics_a[k].value for k in metrics_b}, means.values(metrics_b))


def test_ema_0_repeat_1_and_skip_without_nan_are_the_identity():
    step = plain_step()
    state, _ = trained(step)
    zero = nk.ema(step, 0.0)
    close(zero.weights(trained(zero)[0])[0], step.weights(state)[0])
    close(step.weights(trained(nk.skip_nonfinite(step))[0]), step.weights(state))
    one = nk.repeat(step)
    got, _ = trained(one, make=lambda i: jax.tree.map(lambda x: x[None], batch(i)))
    close(step.weights(got), step.weights(state))


# --- the identities of the design ---
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("n", [2, 16])
def test_accumulate_is_the_full_batch(n, mask):
    one = batch(1, mask=mask)
    params, carry = PLAIN.init(jax.random.key(KEY), one)
    whole, sliced = nk.gradient(PLAIN).grad, nk.accumulate(nk.gradient(PLAIN), n).grad
    full, (_, log) = jax.jit(whole)(params, carry, one, jax.random.key(1))
    parts, (_, log_parts) = jax.jit(sliced)(params, carry, one, jax.random.key(1))
    close(full, parts)
    close(log, log_parts)


def test_the_mean_of_slice_means_is_another_gradient_under_a_mask():
    """What accumulate is not: this is the mistake it exists to avoid."""
    one = batch(1, mask=False) | {"mask": jnp.asarray(np.arange(16) < 10, jnp.float32)}
    params, carry = PLAIN.init(jax.random.key(KEY), one)
    grad = jax.jit(nk.gradient(PLAIN).grad)
    true = grad(params, carry, one, jax.random.key(1))[0].value
    slices = [jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], one) for i in range(2)]
    each = [grad(params, carry, s, jax.random.key(1))[0].value for s in slices]
    naive = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    off = optax.tree.norm(jax.tree.map(jnp.subtract, naive, true)) / optax.tree.norm(true)
    assert off > 0.05


def test_repeat_is_the_loop():
    step = nk.ema(plain_step(), 0.9)
    loop, _ = trained(step, 6)
    many, metrics = trained(nk.repeat(step), 2, stacked_batches)
    close(step.weights(many), step.weights(loop))
    assert float(metrics["loss"].weight) == 3 * 16


@functools.cache
def alone():
    """(weights, loss) of each member of the grid, trained by itself; one program for all."""
    init = jax.jit(lambda h: recipe(h).init(jax.random.key(KEY), batch(0)))
    update = jax.jit(lambda h, state, batch: recipe(h).update(state, batch))
    found = []
    for i in range(8):
        h = jax.tree.map(lambda x, i=i: x[i], grid())
        state = init(h)
        for j in range(4):
            state, metrics = update(h, state, batch(j))
        found.append((recipe(h).weights(state), float(metrics["loss"].value)))
    return found


EACH = {
    "vmap": jax.vmap,
    "unrolled": nk.unrolled,
    "in_turn": nk.in_turn,
    "spread": nk.spread(nk.mesh(run=8)),
}


@pytest.mark.parametrize("each", EACH)
def test_sweep_i_is_the_recipe_of_grid_i(each):
    step = nk.sweep(recipe, grid(), each=EACH[each])
    state, metrics = trained(step)
    for i, (weights, loss) in enumerate(alone()):
        mine = jax.tree.map(lambda x, i=i: x[i], step.weights(state))
        close(mine, weights, rtol=1e-6, atol=1e-6)
        assert abs(float(metrics["loss"].value[i]) - loss) < 1e-6


def test_ensemble_members_differ_and_each_is_a_step():
    step = nk.ensemble(plain_step(), 3)
    state = nk.init(step, jax.random.key(KEY), batch(0))
    for i, key in enumerate(jax.random.split(jax.random.key(KEY), 3)):
        mine = jax.tree.map(lambda x, i=i: x[i], state.params)
        close(mine, plain_step().init(key, batch(0)).params)
    kernel = state.params["Dense_0"]["kernel"]
    assert np.abs(np.asarray(kernel[0] - kernel[1])).max() > 1e-3


@pytest.mark.parametrize("name", ["shard", "shard_fsdp", "shard_run"])
def test_shard_is_the_step(name):
    plain = {
        "shard": nk.ema(plain_step(), 0.9),
        "shard_fsdp": plain_step(),
        "shard_run": nk.sweep(recipe, grid()),
    }[name]
    step = STEPS[name]()
    a, log_a = trained(step)
    b, log_b = trained(plain)
    close(log_a["loss"].value, log_b["loss"].value, rtol=1e-5, atol=1e-6)
    task = nk.stacked(STATEFUL) if name == "shard_run" else STATEFUL
    probe = lambda s, st: task.loss(*s.weights(st), batch(50), None)[0].value
    close(probe(step, a), probe(plain, b), rtol=1e-4, atol=1e-5)
    if name != "shard":
        axis = "data" if name == "shard_fsdp" else "run"
        specs = [x.sharding.spec for x in jax.tree.leaves(a) if hasattr(x.sharding, "spec")]
        assert any(axis in (part or ()) for spec in specs for part in spec)


def test_shard_on_one_device_is_the_identity():
    step = nk.shard(plain_step(), nk.mesh(data=1), batch=P("data"))
    close(plain_step().weights(trained(step)[0]), plain_step().weights(trained(plain_step())[0]))


def test_skip_nonfinite_keeps_the_whole_state_bit_by_bit():
    step = nk.skip_nonfinite(nk.ema(plain_step(), 0.9))
    update = jax.jit(step.update)
    state = nk.init(step, jax.random.key(KEY), batch(0))
    for i in range(3):
        state, _ = update(state, batch(i))
    bad = batch(3)
    bad["x"] = bad["x"].at[2, 1].set(jnp.nan)
    after, metrics = update(state, bad)
    assert nk.digest(after) == nk.digest(state)
    assert float(metrics["skipped"].value) == 1
    assert float(metrics["loss"].weight) == 0
    assert nk.digest(update(after, batch(3))) == nk.digest(update(state, batch(3)))


def test_one_diverging_member_does_not_harm_the_others():
    def recipe(h):
        return nk.skip_nonfinite(nk.step(nk.gradient(PLAIN), optax.sgd(h["scale"])))

    step = nk.sweep(recipe, {"scale": jnp.array([0.1, 3e38])})
    state, _ = trained(step, 5)
    alone, _ = trained(recipe({"scale": jnp.float32(0.1)}), 5)
    close(jax.tree.map(lambda x: x[0], state.inner.params), alone.params)


def test_a_masked_batch_of_nothing_moves_nothing():
    step = nk.step(nk.gradient(PLAIN), optax.sgd(0.1))
    state = nk.init(step, jax.random.key(KEY), batch(0))
    empty = batch(0) | {"mask": jnp.zeros(16)}
    new, _ = jax.jit(step.update)(state, empty)
    close(new.params, state.params, rtol=0, atol=0)


def test_what_stands_under_the_mask_does_not_matter():
    one, key = batch(1, mask=True), jax.random.key(2)
    params, carry = PLAIN.init(jax.random.key(KEY), one)
    other = dict(one, x=jnp.where(one["mask"][:, None] > 0, one["x"], 1e3))
    a = nk.gradient(PLAIN).grad(params, carry, one, jax.random.clone(key))
    b = nk.gradient(PLAIN).grad(params, carry, other, key)
    close(a[0], b[0], rtol=0, atol=0)


def test_per_example_gradients_add_up_and_are_clipped_one_by_one():
    one = batch(1, mask=True)
    params, carry = PLAIN.init(jax.random.key(KEY), one)
    found = nk.per_example(PLAIN, clip=0.3, microbatch=2).grad(
        params, carry, one, jax.random.key(0)
    )
    slow = jax.tree.map(jnp.zeros_like, params)
    grad = jax.jit(nk.gradient(PLAIN).grad)
    for i in range(16):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], one)
        g = grad(params, carry, row, jax.random.key(0))[0].total
        scale = jnp.minimum(1.0, 0.3 / jnp.maximum(optax.tree.norm(g), 1e-30))
        slow = jax.tree.map(lambda s, x, c=scale: s + c * x, slow, g)
    close(found[0].total, slow, rtol=1e-5, atol=1e-5)
    assert float(found[0].weight) == 10


def test_the_noise_of_per_example_has_the_deviation_it_says():
    task = nk.objective(lambda key, b: jnp.zeros(20_000), lambda w, b, key: 0 * b["x"] * w[0])
    g = nk.per_example(task, clip=2.0, noise=1.5).grad(
        jnp.zeros(20_000), {}, {"x": jnp.ones(4)}, jax.random.key(0)
    )
    assert abs(float(g[0].total.std()) / 3.0 - 1) < 0.02


def test_memory_of_per_example_does_not_grow_with_the_batch():
    def temporaries(b):
        one = {"x": jnp.ones((b, 200)), "y": jnp.zeros(b, jnp.int32)}
        task = nk.supervised(nk.models.MLP((400, 3)), nk.losses.cross_entropy)
        params, carry = task.init(jax.random.key(0), one)
        grad = nk.per_example(task, clip=1.0, microbatch=8).grad
        run = jax.jit(grad).lower(params, carry, one, jax.random.key(0)).compile()
        return run.memory_analysis().temp_size_in_bytes

    assert temporaries(512) < 1.2 * temporaries(64) + 512 * 200 * 4


# --- objectives ---
@rows(OBJECTIVES)
def test_evaluation_is_deterministic_and_leaves_the_carry_alone(name):
    task, one = OBJECTIVES[name](), batch(2, mask=True)
    params, carry = task.init(jax.random.key(KEY), one)
    mean, (after, log) = task.loss(params, carry, one, None)
    assert nk.digest(mean) == nk.digest(task.loss(params, carry, one, None)[0])
    assert nk.digest(after) == nk.digest(carry)
    assert float(mean.weight) == 10 * WEIGHS.get(name, 1)
    assert "loss" in log


@rows(OBJECTIVES)
def test_two_halves_of_a_batch_add_to_the_whole(name):
    task, one = OBJECTIVES[name](), batch(2, mask=True)
    params, carry = task.init(jax.random.key(KEY), one)
    whole = task.loss(params, carry, one, None)[0]
    parts = [
        task.loss(params, carry, jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], one), None)[0]
        for i in range(2)
    ]
    wide = 2e-2 if name == "half" else 1e-5
    close(parts[0] + parts[1], whole, rtol=wide)


@rows(OBJECTIVES)
def test_stacked_is_each_member(name):
    task, one = OBJECTIVES[name](), batch(2)
    members = [task.init(jax.random.key(i), one) for i in range(3)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *members)
    found = nk.stacked(task).loss(*stack, one, None)[0].value
    each = [float(task.loss(*m, one, None)[0].value) for m in members]
    np.testing.assert_allclose(found, each, rtol=2e-2 if name == "half" else 1e-5)


def test_half_computes_in_bfloat16_and_keeps_float32_gradients():
    seen = []
    model = (
        lambda key, x: ({"w": jnp.ones((5, 3))}, {}),
        lambda p, c, x, key: (seen.append((x.dtype, p["w"].dtype)) or x @ p["w"], c),
    )
    task = nk.half(nk.supervised(model, nk.losses.cross_entropy))
    params, carry = task.init(jax.random.key(0), batch(0))
    g, _ = nk.gradient(task).grad(params, carry, batch(0), jax.random.key(0))
    assert seen[-1] == (jnp.bfloat16, jnp.bfloat16)
    assert g.total["w"].dtype == g.weight.dtype == jnp.float32


def test_frozen_leaves_do_not_move():
    task = OBJECTIVES["frozen"]()
    step = plain_step(task)
    state = nk.init(step, jax.random.key(KEY), batch(0))
    after, _ = trained(step, 4, start=state)
    assert nk.digest(after.carry["frozen"]) == nk.digest(state.carry["frozen"])
    assert nk.digest(after.params) != nk.digest(state.params)


@pytest.mark.parametrize("name", ["gradient", "accumulate"])  # the others change the gradient
def test_gradients_are_finite_differences(name):
    """Directional derivative in float64."""
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    start, single = jax.device_get((PLAIN.init(jax.random.key(KEY), batch(1))[0], batch(1)))
    wide = lambda tree: jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64) if x.dtype == np.float32 else jnp.asarray(x), tree
    )
    with switch(True):
        whole = nk.gradient(PLAIN)
        g = {"gradient": whole, "accumulate": nk.accumulate(whole, 4)}[name]
        params, one, carry = wide(start), wide(single), {}
        way = jax.tree.map(
            lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
        )
        found, _ = g.grad(params, carry, one, jax.random.key(0))

        def at(t):
            moved = jax.tree.map(lambda p, d: p + t * d, params, way)
            return PLAIN.loss(moved, carry, one, None)[0].value

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        exact = sum(
            jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(found.value), jax.tree.leaves(way))
        )
        np.testing.assert_allclose(exact, slope, rtol=1e-8)


# --- losses and metrics ---
@rows({**LOSSES, **PER_EXAMPLE})
def test_one_value_per_example_that_no_other_example_touches(name):
    f, outputs, targets = {**LOSSES, **PER_EXAMPLE}[name]
    whole = f(outputs, targets)
    assert whole.shape[0] == 8
    assert whole.dtype == jnp.float32
    for i in (0, 5):
        close(f(outputs[i : i + 1], targets[i : i + 1])[0], whole[i])
    close(jax.jit(f)(outputs, targets), whole)
    mapped = jax.vmap(f)(
        outputs.reshape(2, 4, *outputs.shape[1:]), targets.reshape(2, 4, *targets.shape[1:])
    )
    close(mapped.reshape(whole.shape), whole)


@rows(LOSSES)
def test_losses_are_finite_in_bfloat16_and_at_the_ends(name):
    f, outputs, targets = LOSSES[name]
    for scale, dtype in ((1, jnp.bfloat16), (1e4, jnp.float32), (0, jnp.float32)):
        x = (outputs * scale).astype(dtype)
        value, slope = jax.value_and_grad(lambda x: f(x, targets).sum())(x)
        assert np.isfinite(np.asarray(value, np.float32))
        assert np.isfinite(np.asarray(slope, np.float32)).all()
        assert slope.dtype == dtype
    assert f(outputs.astype(jnp.bfloat16), targets).dtype == jnp.float32


@rows(OF_THE_WHOLE)
def test_metrics_of_the_whole_do_not_see_masked_rows_nor_order(name):
    f, outputs, targets = OF_THE_WHOLE[name]
    mask = jnp.asarray([1, 1, 1, 1, 1, 1, 0, 0], jnp.float32)
    few = f(outputs[:6], targets[:6])
    close(f(outputs, targets, mask=mask), few)
    close(jax.jit(lambda o, t: f(o, t, mask=mask))(outputs, targets), few)
    order = jnp.asarray([3, 1, 0, 5, 4, 2])
    close(f(outputs[order], targets[order]), few)
