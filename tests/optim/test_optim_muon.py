"""Muon: singular values, the definition with a loop, torch and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity import same
from references.weights import part, read

import nnkit as nk
from nnkit import losses, models, optim
from nnkit.models.gpt import GPT

rng = np.random.default_rng(0)


def spectrum(shape, values):
    """A random matrix with these singular values."""
    u = np.linalg.qr(rng.normal(size=(shape[0],) * 2))[0][:, : len(values)]
    v = np.linalg.qr(rng.normal(size=(shape[1],) * 2))[0][:, : len(values)]
    return ((u * values) @ v.T).astype(np.float32)


def slow_newton_schulz(x, steps=5):
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (1, 5), (64, 48)])
def test_singular_values_come_near_1(shape):
    f = jax.jit(optim.orthogonalise)
    k = min(shape)
    for values in (np.ones(k), np.linspace(1, 10, k), np.linspace(0.1, 1, k)):
        x = spectrum(shape, values)
        found = np.linalg.svd(f(x), compute_uv=False)
        assert found.min() > 0.5
        assert found.max() < 1.5
        np.testing.assert_allclose(f(x), slow_newton_schulz(x), atol=1e-5)
        np.testing.assert_allclose(f(1e6 * x), f(x), atol=1e-5)  # the scale does not matter
        u, _, v = np.linalg.svd(x, full_matrices=False)  # the singular vectors stay
        kept = u.T @ np.asarray(f(x)) @ v.T
        np.testing.assert_allclose(kept, np.diag(np.diag(kept)), atol=1e-4)


def test_orthogonalise_limits():
    np.testing.assert_array_equal(optim.orthogonalise(jnp.zeros((2, 3))), np.zeros((2, 3)))
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    many = optim.orthogonalise(jnp.asarray(x))
    for i in range(3):
        np.testing.assert_allclose(many[i], slow_newton_schulz(x[i]), atol=1e-5)
    assert optim.orthogonalise(jnp.asarray(x).astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"x has shape \(3,\), expected \(... r c\)"):
        optim.orthogonalise(jnp.ones(3))
    with pytest.raises(ValueError, match="steps=0, expected an int >= 1"):
        optim.orthogonalise(jnp.eye(2), steps=0)


def test_who_is_on_muon():
    matrix, vector = jnp.ones((2, 2)), jnp.ones(2)
    params = {
        "embed": {"embedding": matrix},
        "positions": {"embedding": matrix},
        "patch_embed": {"kernel": matrix},
        "stem": {"kernel": jnp.ones((3, 3, 1, 2))},
        "block_0": {
            "attention": {"query": {"kernel": matrix, "bias": vector}, "out": {"kernel": matrix}},
            "relative_bias": {"embedding": matrix},
            "mlp_norm": {"scale": vector},
            "mlp": {"up": jnp.ones((4, 2, 3)), "router": {"kernel": matrix}},
        },
        "conv_1": {"kernel": jnp.ones((3, 3, 2, 2))},
        "head": {"kernel": matrix},
        "lm_head": {"kernel": matrix},
        "heads_mixed": {"kernel": matrix},  # is no head
    }
    on = {path for path, label in nk.trees.paths(optim.muon_labels(params)) if label == "muon"}
    assert on == {
        "block_0/attention/query/kernel",
        "block_0/attention/out/kernel",
        "block_0/mlp/up",
        "block_0/mlp/router/kernel",
        "conv_1/kernel",
        "heads_mixed/kernel",
    }


def test_a_transformer_has_its_matrices_on_muon_and_nothing_else():
    model = GPT(vocabulary=16, length=8, width=8, depth=2, heads=2, experts=2, top_k=1)
    start = lambda: model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.eval_shape(start)
    labels = dict(nk.trees.paths(optim.muon_labels(params)))
    assert {path.split("/", 1)[1] for path, label in labels.items() if label == "muon"} == {
        *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
        *("mlp/router/kernel", "mlp/up", "mlp/down"),
    }
    decays = dict(nk.trees.paths(optim.decay_mask(params)))
    assert decays == {path: label == "muon" for path, label in labels.items()}  # its head is tied


def run(tx, start, grads):
    """The parameters after the steps whose gradients are stacked in `grads`."""
    state, params = tx.init(start), start
    with jax.numpy_dtype_promotion("standard"):
        update = jax.jit(tx.update)
        for i in range(len(jax.tree.leaves(grads)[0])):
            one = jax.tree.map(lambda g: g[i], grads)  # noqa: B023
            moves, state = update(one, state, params)
            params = optax.apply_updates(params, moves)
    return params


def test_every_leaf_moves_by_the_definition():
    shapes = {
        "dense": {"kernel": (4, 6), "bias": (6,)},
        "conv": {"kernel": (3, 3, 2, 5)},
        "mlp": {"up": (3, 4, 8)},
        "head": {"kernel": (6, 2)},
    }
    draw = lambda s: jnp.asarray(rng.normal(size=s).astype(np.float32))
    is_shape = lambda x: isinstance(x, tuple)
    start = jax.tree.map(draw, shapes, is_leaf=is_shape)
    grads = jax.tree.map(lambda s: draw((3, *s)), shapes, is_leaf=is_shape)
    for rms in (None, 0.2):
        tx = optim.muon(0.1, optax.sgd(0.5), weight_decay=0.2, rms=rms)
        found = dict(nk.trees.paths(run(tx, start, grads)))
        for (path, w), (_, g) in zip(nk.trees.paths(start), nk.trees.paths(grads)):
            w, g, m = np.asarray(w, np.float64), np.asarray(g, np.float64), 0.0
            for one in g:
                if path in ("dense/bias", "head/kernel"):
                    w = w - 0.5 * one
                    continue
                m = 0.95 * m + one
                move = one + 0.95 * m
                rows = [move[i] for i in range(3)] if path == "mlp/up" else [move]
                new = []
                for x in rows:
                    x = x.reshape(-1, x.shape[-1])
                    scale = np.sqrt(max(1, x.shape[1] / x.shape[0]))
                    scale = scale if rms is None else rms * np.sqrt(max(x.shape))
                    new.append(scale * slow_newton_schulz(x))
                w = w - 0.1 * (np.stack(new).reshape(w.shape) + 0.2 * w)
            np.testing.assert_allclose(found[path], w, rtol=1e-4, atol=1e-5)


def test_parity_with_torch():
    """Its rows are our columns: weights there are [out in]. Exact but for its bfloat16."""
    about, given = read("torch_losses_more")
    turned = lambda x: jnp.asarray(np.swapaxes(x, -1, -2).astype(np.float32))
    start = jax.tree.map(turned, part(given, "muon/start/"))
    grads = jax.tree.map(turned, part(given, "muon/grads/"))
    tx = optim.muon(0.1, optax.sgd(1.0), weight_decay=0.1)
    found = {k: x.T for k, x in run(tx, start, grads).items()}
    reference = f"torch {about['torch']} optim.Muon, Newton-Schulz in float64"
    same("optim.muon", reference, found, part(given, "muon/float64/"))
    for k, x in part(given, "muon/bfloat16/").items():
        np.testing.assert_allclose(found[k], x, atol=0.1 * 0.1)  # the rate times some of 8 bits


def test_the_first_step_is_optaxs():
    """Later ones are not: there Nesterov's two terms are both corrected for bias."""
    start = {"w": jnp.asarray(rng.normal(size=(5, 7)).astype(np.float32))}
    grads = {"w": jnp.asarray(rng.normal(size=(2, 5, 7)).astype(np.float32))}
    ours = lambda n: run(optim.muon(0.1, optax.sgd(1.0)), start, {"w": grads["w"][:n]})
    theirs = lambda n: run(optax.contrib.muon(0.1), start, {"w": grads["w"][:n]})
    np.testing.assert_allclose(ours(1)["w"], theirs(1)["w"], atol=1e-6)
    assert np.abs(ours(2)["w"] - theirs(2)["w"]).max() > 1e-3


def test_it_learns_in_a_sweep_of_traced_rates():
    task = nk.supervised(models.MLP((16, 16, 3)), losses.cross_entropy)
    x = rng.normal(size=(32, 5)).astype(np.float32)
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(x[:, :3].argmax(-1))}
    recipe = lambda h: nk.step(
        nk.gradient(task),
        optim.muon(optim.wsd(h["rate"], 40, 5, 10), optax.adamw(h["rate"]), momentum=h["beta"]),
    )
    many = nk.sweep(recipe, nk.product(rate=[0.01, 0.03], beta=[0.9, 0.95]))
    state, update = nk.init(many, jax.random.key(0), batch), jax.jit(many.update)
    logs = []
    for _ in range(40):
        state, log = update(state, batch)
        logs.append(np.asarray(log["loss"].value))
    assert (logs[-1] < 0.5 * logs[0]).all()


def test_wrong_input():
    params = {"dense": {"kernel": jnp.eye(2), "bias": jnp.ones(2)}}
    with pytest.raises(TypeError, match=r"rest is 0\.001, expected an optimizer"):
        optim.muon(0.02, 1e-3)
    with pytest.raises(ValueError, match=r"momentum=1\.0, expected 0 <= momentum < 1"):
        optim.muon(0.02, optax.sgd(1.0), momentum=1.0)
    with pytest.raises(ValueError, match=r"no parameter is a hidden matrix; the paths are \['b"):
        optim.muon(0.02, optax.sgd(1.0)).init({"bias": jnp.ones(2)})
    tx = optim.muon(0.02, optax.sgd(1.0), labels=lambda p: jax.tree.map(lambda _: "muon", p))
    with pytest.raises(ValueError, match=r"dense/bias has shape \(2,\), expected a matrix \[i o\]"):
        tx.init(params)
