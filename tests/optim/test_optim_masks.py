"""Parameters chosen by path: on trees with the names of our models, and on a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import losses, models, optim

MATRIX, VECTOR = jnp.ones((2, 2)), jnp.ones(2)


def tree():
    """The names of a small Transformer."""
    block = {
        "attention": {"query": {"kernel": MATRIX, "bias": VECTOR}},
        "attention_norm": {"scale": VECTOR},
        "mlp": {"up": {"kernel": MATRIX}},
        "relative_bias": {"embedding": MATRIX},
    }
    return {
        "embed": {"embedding": MATRIX},
        "positions": {"embedding": MATRIX},
        "cls": jnp.ones((1, 1, 2)),
        "block_0": block,
        "block_1": block,
        "norm": {"scale": VECTOR, "stacked": MATRIX},
        "head": {"kernel": MATRIX, "bias": VECTOR},
    }


def chosen(mask):
    return {path for path, flag in nk.trees.paths(mask) if flag}


def test_decay_falls_on_kernels():
    want = {f"block_{i}/{name}/kernel" for i in (0, 1) for name in ("attention/query", "mlp/up")}
    assert chosen(optim.decay_mask(tree())) == want | {"head/kernel"}
    other = optim.decay_mask(tree(), exclude=lambda path: path.startswith("block"))
    assert "embed/embedding" in chosen(other)
    assert "head/bias" not in chosen(other)


def test_decay_mask_is_a_mask_of_optax():
    """With a gradient of 0 AdamW moves what decays, and nothing else."""
    params = tree()
    tx = optax.adamw(0.1, weight_decay=0.5, mask=optim.decay_mask)
    with jax.numpy_dtype_promotion("standard"):
        moves, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = jax.tree.map(lambda x: bool((x != 0).any()), moves)
    assert chosen(moved) == chosen(optim.decay_mask(params))
    np.testing.assert_allclose(moves["head"]["kernel"], -0.05 * MATRIX, rtol=1e-6)


def test_by_path_gives_each_leaf_to_the_first_pattern():
    params = tree()
    tx = optim.by_path({"^head/": optax.sgd(1.0), "bias": optax.sgd(2.0), "": optax.sgd(3.0)})
    moves = dict(nk.trees.paths(tx.update(params, tx.init(params), params)[0]))
    for path, move in moves.items():
        rate = 1 if path.startswith("head/") else 2 if "bias" in path else 3
        np.testing.assert_array_equal(move, -rate * jnp.ones_like(move))
    one = optim.by_path({"": optax.sgd(3.0)})
    alone, _ = one.update(params, one.init(params), params)
    np.testing.assert_array_equal(alone["cls"], -3 * params["cls"])


def test_by_path_wrong_patterns():
    with pytest.raises(ValueError, match=r"matches none of \['head'\] \(\d+ leaves do not\)"):
        optim.by_path({"head": optax.sgd(1.0)}).init(tree())
    for idle in ("hade", "embed/"):  # matches nothing; is taken by an earlier one
        tx = optim.by_path({"embed": optax.sgd(1.0), idle: optax.sgd(1.0), "": optax.sgd(1.0)})
        with pytest.raises(ValueError, match=f"pattern '{idle}' decides about no leaf"):
            tx.init(tree())
    with pytest.raises(ValueError, match=r"by_path: '\(' is no regular expression"):
        optim.by_path({"(": optax.sgd(1.0)})
    with pytest.raises(ValueError, match="has no pattern"):
        optim.by_path({})


def test_layers_are_read_from_paths():
    want = {"embed": 0, "positions": 0, "cls": 0, "block_0": 1, "block_1": 2, "norm": 3, "head": 3}
    for path, _ in nk.trees.paths(tree()):
        assert optim.layer_of(path, 2) == want[path.split("/")[0]]
    assert optim.layer_of("encoder/block_11/mlp/up/kernel", 12) == 12
    assert optim.layer_of("stage_1_block_0/conv_0/kernel", 4) == 5  # no block of a plain stack
    with pytest.raises(ValueError, match=r"block_1/.* is in block 1, but depth=1: blocks count"):
        optim.layerwise(optax.sgd(1.0), 0.5, 1).init(tree())


def test_layerwise_is_the_rate_of_each_layer():
    """AdamW with decay and a schedule: every layer moves as alone with its own rate."""
    params, rate = tree(), optim.linear(0.1, 10, 2)
    grads = jax.tree.map(lambda x: 0.3 * x + 1, params)
    tx = optim.layerwise(optax.adamw(rate, weight_decay=0.1), 0.5, 2)
    by_layer = {n: optax.adamw(lambda t, n=n: rate(t) * 0.5 ** (3 - n), weight_decay=0.1)
                for n in range(4)}  # fmt: skip
    slow = optax.partition(
        by_layer,
        lambda p: jax.tree_util.tree_map_with_path(
            lambda path, _: optim.layer_of(nk.trees.path_name(path), 2), p
        ),
    )
    with jax.numpy_dtype_promotion("standard"):
        a, b = tx.init(params), slow.init(params)
        for _ in range(3):
            ours, a = tx.update(grads, a, params)
            theirs, b = slow.update(grads, b, params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)
    same = optim.layerwise(optax.sgd(1.0), 1.0, 2)
    assert nk.digest(same.update(grads, same.init(params))[0]) == nk.digest(
        jax.tree.map(lambda x: -x, grads)
    )


def test_layerwise_wrong_numbers():
    for decay in (0, 1.5):
        with pytest.raises(ValueError, match=f"decay={decay}, expected 0 < decay <= 1"):
            optim.layerwise(optax.sgd(1.0), decay, 2)
    with pytest.raises(ValueError, match="depth=0, expected the number of blocks"):
        optim.layerwise(optax.sgd(1.0), 0.5, 0)
    with pytest.raises(ValueError, match=r"no parameter is in a block; the paths are \['w'\]"):
        optim.layerwise(optax.sgd(1.0), 0.5, 2).init({"w": MATRIX})


def test_all_of_it_on_a_model_in_a_step_and_a_sweep():
    """Strict promotion outside, one program, traced rates; layer numbers of one's own."""
    task = nk.supervised(models.MLP((6, 4, 3)), losses.cross_entropy)
    batch = {"x": jnp.ones((4, 5)), "y": jnp.array([0, 1, 2, 0])}
    layer = lambda path, depth: depth + 1 if path.startswith("head") else int(path[6]) + 1

    def recipe(h):
        body = optax.adamw(h["rate"], weight_decay=0.1, mask=optim.decay_mask)
        groups = {"^head/": optax.sgd(h["rate"]), "": body}
        return nk.step(
            nk.gradient(task), optim.layerwise(optim.by_path(groups), h["decay"], 2, layer=layer)
        )

    many = nk.sweep(recipe, nk.product(rate=[1e-3, 1e-2], decay=[0.5, 1.0]))
    state = nk.init(many, jax.random.key(0), batch)
    first = many.weights(state)[0]
    state, log = jax.jit(many.update)(state, batch)
    moved = jax.tree.map(lambda a, b: b - a, first, many.weights(state)[0])
    assert np.isfinite(log["loss"].value).all()
    bias = moved["dense_0"]["bias"]  # no decay: the move is rate * 0.5^2 against rate * 1
    assert (np.abs(bias).sum(-1) > 0).all()
