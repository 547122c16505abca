"""The older way to many devices: one sum of totals and weights, under pmap, shard_map and vmap."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import losses, metrics

DEVICES, ROWS = 8, 4
KEY = 5


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(6)(x)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


TASK = nk.supervised(Small(), losses.cross_entropy, accuracy=metrics.accuracy)


def batch(i: int, mask: str = "none") -> dict:
    """[32 5] rows; masks: none, some of every device, or devices of which nothing counts."""
    rng = np.random.default_rng(i)
    x = rng.normal(size=(DEVICES * ROWS, 5)).astype(np.float32)
    one = {"x": x, "y": rng.integers(0, 3, len(x)).astype(np.int32)}
    if mask == "ragged":
        one["mask"] = (rng.random(len(x)) < 0.6).astype(np.float32)
    if mask == "empty":
        one["mask"] = (np.arange(len(x)) < 2 * ROWS + 1).astype(np.float32)
    return one


def per_device(one):
    return jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), one)


def close(a, b, rtol=1e-5, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def step(wrap=lambda g: nk.averaged(g, "devices"), task=TASK):
    return nk.step(wrap(nk.gradient(task)), optax.sgd(0.5, momentum=0.9))


def by_pmap(one):
    """(init, update) over rows of each device; the first device's copy of what comes out."""
    update = jax.pmap(one.update, axis_name="devices")
    first = lambda tree: jax.tree.map(lambda x: x[0], nk.trees.plain(tree))

    def run(n, mask):
        state = jax.pmap(one.init, in_axes=(None, 0))(jax.random.key(KEY), per_device(batch(0)))
        for i in range(n):
            state, log = update(state, per_device(batch(i, mask)))
        copies = jax.tree.leaves(nk.trees.plain(state.params))
        assert all((np.asarray(x) == np.asarray(x)[:1]).all() for x in copies)
        return first(state.params), first(log)

    return run


def by_shard_map(one, checked=True):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    update = jax.jit(
        jax.shard_map(
            one.update,
            mesh=mesh,
            in_specs=(P(), P("devices")),
            out_specs=P(),
            check_vma=checked,
        )
    )

    def run(n, mask):
        state = one.init(jax.random.key(KEY), batch(0))
        for i in range(n):
            state, log = update(state, batch(i, mask))
        return state.params, log

    run.update = update
    return run


def alone(n, mask):
    whole = step(wrap=lambda g: g)
    state = whole.init(jax.random.key(KEY), batch(0))
    update = jax.jit(whole.update)
    for i in range(n):
        state, log = update(state, batch(i, mask))
    return state.params, log


WAYS = {
    "pmap": by_pmap,
    "shard_map": by_shard_map,
    "shard_map_unchecked": lambda one: by_shard_map(one, checked=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_step_on_the_whole_batch(way):
    run = WAYS[way](step())
    for mask in ("none", "ragged", "empty"):
        params, log = run(5, mask)
        want, want_log = alone(5, mask)
        close(params, want)
        close(log, want_log)  # totals and weights, not their ratio alone


def test_the_mean_of_the_devices_means_is_another_gradient():
    """What it is not: the average of averages, which counts a device of one row like one of 60."""
    one, params = batch(1, "empty"), TASK.init(jax.random.key(KEY), batch(0))[0]
    grad = lambda g: lambda p, b: g.grad(p, {}, b, None)[0].value
    plain = nk.gradient(TASK)
    true = jax.jit(grad(plain))(params, one)
    mean = jax.vmap(grad(nk.averaged(plain, "d")), (None, 0), axis_name="d")
    close(jax.tree.map(lambda x: x[3], jax.jit(mean)(params, per_device(one))), true)
    each = [jax.tree.map(lambda x, i=i: x[i], per_device(one)) for i in range(3)]
    naive = jax.tree.map(lambda *x: sum(x) / 3, *[jax.jit(grad(plain))(params, e) for e in each])
    off = optax.tree.norm(jax.tree.map(jnp.subtract, naive, true)) / optax.tree.norm(true)
    assert off > 0.05


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_it_composes_with_accumulate_and_clipped(way):
    wrap = lambda g: nk.clipped(nk.averaged(nk.accumulate(g, 2), "devices"), 0.1)
    params, log = WAYS[way](step(wrap))(3, "ragged")
    whole = step(lambda g: nk.clipped(g, 0.1))
    state, update = whole.init(jax.random.key(KEY), batch(0)), jax.jit(whole.update)
    for i in range(3):
        state, want = update(state, batch(i, "ragged"))
    close(params, state.params)
    close(log["gradient_norm"].value, want["gradient_norm"].value)


def test_a_step_talks_once(optimised):
    """One sum of everything, also with slices: they are added up before anything is sent."""
    for wrap in (lambda g: g, lambda g: nk.accumulate(g, 2)):
        run = by_shard_map(step(lambda g, wrap=wrap: nk.averaged(wrap(g), "devices")))
        state = jax.eval_shape(step().init, jax.random.key(0), batch(0))
        text = run.update.lower(state, batch(0)).compile().as_text()
        kinds = re.findall(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", text)
        assert kinds == ["all-reduce"], kinds


def test_statistics_of_the_batch_are_averaged_and_dropout_differs():
    task = nk.supervised(Normed(), losses.cross_entropy)
    g = nk.averaged(nk.gradient(task), "devices")
    one = per_device(batch(2))
    params, carry = task.init(jax.random.key(KEY), batch(0))
    run = jax.pmap(
        lambda p, c, b, k: g.grad(p, c, b, k),
        axis_name="devices",
        in_axes=(None, None, 0, None),
    )
    mean, (after, _) = run(params, carry, one, jax.random.key(1))
    want = 0.5 * one["x"].mean((0, 1))  # momentum 0.5, from 0
    for i in (0, 7):
        close(after["batch_stats"]["BatchNorm_0"]["mean"][i], want)
    same = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), one)
    alike, _ = run(params, carry, same, jax.random.key(1))
    single, _ = jax.jit(nk.gradient(task).grad)(
        params, carry, jax.tree.map(lambda x: x[0], same), jax.random.key(1)
    )
    a, b = (np.asarray(x.total["Dense_0"]["kernel"]).reshape(-1) for x in (alike, single))
    assert not np.allclose(a[: b.size], DEVICES * b, rtol=1e-3)  # not one mask, eight times
    assert float(mean.weight[0]) == DEVICES * ROWS


def test_without_an_axis_it_says_where_it_belongs():
    one = step()
    with pytest.raises(ValueError) as error:
        jax.jit(one.update)(one.init(jax.random.key(0), batch(0)), batch(0))
    for part in ("axis_name='devices'", "jax.pmap(step.update, axis_name=...)", "nk.shard"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", [None, 3, (), ("a", 1)])
def test_the_name_of_the_axis_is_a_string(name):
    with pytest.raises(TypeError, match="expected the name of the axis of devices"):
        nk.averaged(nk.gradient(TASK), name)


def test_of_a_step_it_says_what_it_takes():
    with pytest.raises(TypeError, match="averaged got Step, expected a Gradient"):
        nk.averaged(step(lambda g: g), "devices")


def test_a_jax_that_does_not_say_what_differs_is_refused(monkeypatch):
    """Better no gradient than one that is summed twice."""
    monkeypatch.setattr(jax, "typeof", lambda x: object())
    one = step()
    with pytest.raises(RuntimeError, match=r"might be summed twice.*check_vma=False"):
        jax.vmap(one.update, (None, 0), axis_name="devices")(
            one.init(jax.random.key(0), batch(0)), per_device(batch(0))
        )
