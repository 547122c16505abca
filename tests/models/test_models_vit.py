"""ViT: patches in reading order, images as the model says them, heads and positions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.layers.positions import sinusoidal_2d
from nnkit.models.vit import SIZES, ViT, _patches

SIZE = {"classes": 3, "width": 16, "depth": 2, "heads": 2, "hidden": 24, "patch": 4}


def made(**changes):
    """A model for 8 x 12 images and its parameters (nothing at a start of 0 or 1)."""
    model, rng = ViT(**SIZE | {"image": (8, 12)} | changes), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 12, 3))))
    place = lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.normal(size=x.shape), x.dtype)
    return model, jax.tree.map(place, shapes)


def images(b=2, h=8, w=12, c=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(b, h, w, c)), jnp.float32)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_patches_come_in_reading_order():
    x = np.asarray(images())
    found = np.asarray(_patches(jnp.asarray(x), 4))
    assert found.shape == (2, 6, 48)
    for row in range(2):
        for column in range(3):
            part = x[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert (found[:, 3 * row + column] == part.reshape(2, -1)).all()


@pytest.mark.parametrize("cls", [True, False])
def test_patches_may_change_places_with_their_positions(cls):
    model, params = made(cls=cls)
    x, order = np.asarray(images()), np.random.default_rng(1).permutation(6)
    cut = x.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 4, 4, 3)
    mixed = cut[:, order].reshape(2, 2, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    run = jax.jit(model.apply)
    plain, alone = run(params, x), run(params, mixed)
    assert float(jnp.abs(plain - alone).max()) > 0.01
    places = np.asarray(params["params"]["positions"])
    moved = np.concatenate([places[:, :1], places[:, 1:][:, order]], 1) if cls else places[:, order]
    both = {"params": {**params["params"], "positions": jnp.asarray(moved)}}
    close(run(both, mixed), plain)


def test_the_head_reads_the_class_token_or_the_mean():
    for cls in (True, False):
        model, params = made(cls=cls)
        y, inside = jax.jit(lambda p, x, m=model: m.apply(p, x, intermediates=True))(
            params, images()
        )
        final = np.asarray(inside["final"], np.float64)
        assert final.shape == (2, 6 + cls, 16)
        assert inside["attention_1"].shape == (2, 2, 6 + cls, 6 + cls)
        head = jax.tree.map(lambda w: np.asarray(w, np.float64), params["params"]["head"])
        pooled = final[:, 0] if cls else final.mean(1)
        close(y, pooled @ head["kernel"] + head["bias"])


def test_fixed_positions_need_no_parameters():
    model, params = made(learned=False)
    assert "positions" not in params["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    inside = jax.jit(lambda p: model.apply(p, images(), intermediates=True)[1])(zero)
    close(inside["embedded"][0, 1:], sinusoidal_2d(2, 3, 16), 1e-7)
    assert not np.asarray(inside["embedded"][0, 0]).any()


def test_noise_only_while_training_and_later_blocks_are_skipped_more():
    x, rngs = images(), {"dropout": jax.random.key(0)}
    model, params = made(drop_path=0.5)
    close(jax.jit(model.apply)(params, x), jax.jit(made()[0].apply)(params, x), 0)
    run = jax.jit(
        lambda x, key: model.apply(
            params, x, train=True, intermediates=True, rngs={"dropout": key}
        )[1]
    )
    x = jnp.broadcast_to(x[:1], (64, *x.shape[1:]))
    inside = run(x, rngs["dropout"])
    assert float(jnp.abs(inside["block_0"] - inside["block_0"][:1]).max()) < 1e-5  # rate 0
    same = jnp.abs(inside["block_1"] - inside["block_0"]).max((1, 2)) == 0  # both branches left out
    assert 4 <= int(same.sum()) <= 32  # a quarter of 64


COUNTS = {  # timm, transformers 5.23.0 on the meta device
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/16": 304_326_632,
    "H/14": 632_045_800,
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_parameters(size):
    def count(depth):  # linear in the depth
        model = ViT.from_size(size, depth=depth)
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    one, two = count(1), count(2)
    assert one + (two - one) * (SIZES[size]["depth"] - 1) == COUNTS[size]


BAD = [
    ({}, (2, 3, 8, 12), r"channels come last; write x.transpose\(0, 2, 3, 1\)"),
    ({}, (2, 12, 8, 3), r"expected \[b 8 12 3\] from image=\(8, 12\)"),
    ({}, (2, 8, 12, 1), r"expected \[b 8 12 3\].*channels=c"),
    ({}, (8, 12, 3), r"one image needs a batch axis: x\[None\]"),
    ({"channels": 1}, (2, 8, 12), r"grey images need an axis of channels: x\[..., None\]"),
    ({"patch": 5}, (2, 8, 12, 3), r"height of image=\(8, 12\) is not divisible by patch=5.*2, 4"),
    ({"patch": 8}, (2, 8, 12, 3), r"width of image=\(8, 12\) is not divisible by patch=8"),
    ({"heads": 3}, (2, 8, 12, 3), "width=16 is not divisible by heads=3"),
    ({"drop_path": 1.0}, (2, 8, 12, 3), "drop_path is 1.0, expected a share"),
    ({"image": (8, 0)}, (2, 8, 12, 3), r"image\[1\] is 0"),
    ({"learned": False, "width": 18}, (2, 8, 12, 3), "a width >= 8 divisible by 4"),
]


@pytest.mark.parametrize(("changes", "shape", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(changes, shape, said):
    model = ViT(**SIZE | {"image": (8, 12)} | changes)
    with pytest.raises(ValueError, match=said):
        model.init(jax.random.key(0), jnp.zeros(shape))
    with pytest.raises(KeyError, match="ViT has no size 'S16'; there are 'Ti/16'"):
        ViT.from_size("S16")
