"""EncDec: the decoder looks back, padding and a cache change nothing, the source is read once."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import models
from nnkit.models.encdec import SIZES, EncDec

SIZE = {"vocabulary": 13, "width": 16, "depth": 2, "heads": 2, "head_dim": 6, "hidden": 24}
SIZE |= {"buckets": 6, "max_distance": 8}
VARIANTS = {
    "t5": EncDec(**SIZE),
    "v1_1": EncDec(**SIZE, gated=True, tied=False, decoder_depth=1),
}
variants = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def made(name):
    """A variant, its parameters (nothing at a start of 0 or 1), and its compiled pass."""
    model, rng = VARIANTS[name], np.random.default_rng(0)
    one = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), one, one))
    place = lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.normal(size=x.shape), x.dtype)
    params = jax.tree.map(place, shapes)
    return model, params, jax.jit(functools.partial(model.apply, params))


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 13, shape), jnp.int32)


def close(a, b, tolerance=3e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


SOURCE, TARGET = drawn(2, 6), drawn(2, 7, seed=1)
REAL = jnp.arange(6)[None] < jnp.array([[6], [4]])


def test_the_decoder_looks_back_only_and_at_all_of_the_source():
    model, params, _ = made("v1_1")
    some = jnp.asarray(np.random.default_rng(1).normal(size=13), jnp.float32)
    source, target = jnp.arange(5)[None], jnp.arange(5, 12)[None]  # no token twice

    def at(table, i):
        tree = {"params": {**params["params"], "embed": {"embedding": table}}}
        return model.apply(tree, source, target)[0, i] @ some

    slope = jax.jit(jax.grad(at))
    for i in (0, 3, 6):
        size = np.abs(np.asarray(slope(params["params"]["embed"]["embedding"], i))).max(1)
        assert (size[5 + i + 1 :] == 0).all()
        assert (size[: 5 + i + 1] > 0).all()


@variants
def test_padding_changes_nothing(name):
    run = made(name)[2]
    y = run(SOURCE, TARGET, REAL)
    other = run(jnp.where(REAL, SOURCE, 5), TARGET, REAL)
    assert (other == y).all()
    alone = run(SOURCE[1:, :4], TARGET[1:], jnp.ones((1, 4), bool))
    close(y[1:], alone)
    mask = jnp.broadcast_to(jnp.arange(7) < 3, (2, 7))
    short = run(SOURCE, TARGET, REAL, mask)
    close(short[:, :3], y[:, :3])
    left = run(SOURCE, jnp.roll(TARGET, 4, 1), REAL, mask[:, ::-1])
    close(left[:, 4:], y[:, :3])


@functools.cache
def made_encoded(name):
    model, params, _ = made(name)
    return jax.jit(lambda ids: model.apply(params, ids, REAL, method="encode"))(SOURCE)


@variants
@pytest.mark.parametrize("padded", [False, True])
def test_decoding_with_a_cache_is_the_whole_forward_pass(name, padded):
    """A prompt of three places (of two real ones, padded), then one token after the other."""
    model, params, run = made(name)
    whole, n = run(SOURCE, TARGET, REAL), 3 - padded
    encoded = made_encoded(name)
    cache = jax.jit(lambda x: model.apply(params, x, 9, REAL, method="start"))(encoded)
    step = jax.jit(
        lambda ids, mask, cache: model.apply(
            params, ids, target_mask=mask, cache=cache, method="decode"
        )
    )
    prompt = jnp.broadcast_to(jnp.arange(3) < n, (2, 3))
    logits, cache = step(TARGET[:, :3], prompt, cache)
    close(logits[:, :n], whole[:, :n])
    for i in range(n, 7):
        logits, cache = step(TARGET[:, i : i + 1], jnp.ones((2, 1), bool), cache)
        close(logits[:, 0], whole[:, i])


def test_the_cache_holds_what_the_decoder_needs_of_the_source():
    model, params, run = made("t5")
    encoded = made_encoded("t5")
    cache = jax.jit(lambda x: model.apply(params, x, 9, REAL, method="start"))(encoded)
    assert cache["cross_1"]["k"].shape == (2, 6, 2, 6) and cache["block_0"]["k"].shape[1] == 9
    decode = jax.jit(lambda x: model.apply(params, TARGET, x, REAL, method="decode"))
    close(decode(encoded), run(SOURCE, TARGET, REAL))
    with pytest.raises(ValueError, match="got both of encoded and cache"):
        model.apply(params, TARGET, encoded, cache=cache, method="decode")
    with pytest.raises(ValueError, match="got neither of encoded and cache"):
        model.apply(params, TARGET, method="decode")


def test_intermediates_are_arrays_by_name():
    model, params, run = made("v1_1")
    ask = jax.jit(lambda p: model.apply(p, SOURCE, TARGET, REAL, intermediates=True))
    y, inside = ask(params)
    close(y, run(SOURCE, TARGET, REAL))
    want = {"encoder_embedded", "encoder_block_0", "encoder_block_1", "encoded", "embedded"}
    want |= {"encoder_attention_0", "encoder_attention_1", "block_0", "attention_0", "cross_0"}
    assert set(inside) == want | {"final"}
    assert inside["cross_0"].shape == (2, 2, 7, 6)
    assert not np.asarray(inside["cross_0"])[1, :, :, 4:].any()  # padding of the source
    close(inside["cross_0"].sum(-1), np.ones((2, 2, 7)))


@pytest.mark.parametrize(("name", "apart"), [("t5", False), ("v1_1", True)])
def test_what_is_shared_is_one_leaf(name, apart):
    tree = made(name)[1]["params"]
    shapes = [x.shape for x in jax.tree.leaves(tree)]
    assert shapes.count((13, 16)) == 1 and ("head" in tree) == apart
    assert shapes.count((6, 2)) == 2  # one relative bias for each stack
    assert all(set(map_) == {"kernel"} for map_ in tree["encoder"]["block_0"]["attention"].values())


def test_shift_right_by_definition():
    ids = np.asarray(TARGET)
    found = np.asarray(models.shift_right(TARGET, 5))
    for b in range(2):
        assert found[b].tolist() == [5, *ids[b, :-1].tolist()]
    with pytest.raises(ValueError, match=r"tokens has shape \(\), expected \[b t\]"):
        models.shift_right(jnp.int32(3))


def test_dropout_is_off_unless_training():
    model, params, run = made("t5")
    ask = lambda key: model.apply(params, SOURCE, TARGET, REAL, train=True, rngs={"dropout": key})
    noisy, y = jax.jit(ask), run(SOURCE, TARGET, REAL)
    a, b = noisy(jax.random.key(0)), noisy(jax.random.key(1))
    assert float(jnp.abs(a - y).max()) > 0.01
    assert float(jnp.abs(a - b).max()) > 0.01
    close(noisy(jax.random.key(0)), a, 0)


COUNTS = {  # transformers 5.23.0 on the meta device, v1.1 with its head apart
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "v1.1-small": 76_961_152,
    "v1.1-base": 247_577_856,
    "v1.1-large": 783_150_080,
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_parameters(size):
    one = jnp.zeros((1, 2), jnp.int32)

    def count(depth):  # linear in the depth
        model = EncDec.from_size(size, depth=depth)
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), one, one))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    small, more = count(1), count(2)
    assert small + (more - small) * (SIZES[size]["depth"] - 1) == COUNTS[size]


IDS = np.zeros((2, 3), int)
BAD = [
    ({}, (IDS + 13, IDS), ValueError, "tokens run from 13 to 13, but the vocabulary has 13 rows"),
    ({}, (IDS, IDS - 1), ValueError, "tokens run from -1 to -1"),
    ({"begin": 13}, (IDS, IDS), ValueError, "begin is 13, but the vocabulary has 13 tokens"),
    ({}, (IDS, IDS[0]), ValueError, r"expected \[b t\]"),
    ({}, (IDS, IDS[:1]), ValueError, r"target_in has shape \(1, 3\).*one target for each source"),
    ({}, (IDS, IDS, np.ones((2, 4), bool)), ValueError, r"source: mask has shape \(2, 4\)"),
    ({}, (IDS, IDS, None, np.ones((2, 4), bool)), ValueError, r"target: mask has shape \(2, 4\)"),
    ({}, (IDS.astype(np.float32), IDS), TypeError, r"source: tokens is float32\[2, 3\]"),
    ({"dropout": -1}, (IDS, IDS), ValueError, "dropout is -1"),
    ({"depth": 0}, (IDS, IDS), ValueError, "depth is 0"),
    ({"buckets": 5}, (IDS, IDS), ValueError, "buckets=5"),
]


@pytest.mark.parametrize(("changes", "inputs", "kind", "said"), BAD)
def test_wrong_input_is_said_before_anything_compiles(changes, inputs, kind, said):
    with pytest.raises(kind, match=said):
        EncDec(**SIZE | changes).init(jax.random.key(0), *inputs)
    with pytest.raises(KeyError, match="EncDec has no size '3b'; there are 'small'"):
        EncDec.from_size("3b")
