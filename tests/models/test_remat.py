"""Blocks computed again in the backward pass: the same numbers, less memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit import models
from nnkit.models.remat import POLICIES, known

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8)).astype(np.int32)
PICTURES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
SIZE = {"width": 16, "depth": 2, "heads": 2}
ONE = {**SIZE, "depth": 1}
MODELS = {
    "GPT": (models.GPT(11, length=8, **SIZE, dropout=0.2), (TOKENS,)),
    "GPT_experts": (
        models.GPT(11, length=8, **ONE, experts=4, bias_rate=0.1, dropout=0.2, alibi=True),
        (TOKENS, TOKENS > 1),
    ),
    "BERT": (models.BERT(11, length=8, **SIZE, dropout=0.2), (TOKENS, TOKENS > 1)),
    "ViT": (
        models.ViT(3, **SIZE, patch=4, image=8, dropout=0.2, drop_path=0.2),
        (PICTURES,),
    ),
    "EncDec": (
        models.EncDec(11, **ONE, head_dim=8, hidden=24, dropout=0.2),
        (TOKENS, TOKENS[:, :5], TOKENS > 1),
    ),
}


def run(model, inputs):
    """(loss, gradient, carry after) of one training step, dropout included."""
    init, apply = nk.pair(model)
    params, carry = jax.jit(init)(jax.random.key(0), inputs)

    def loss(p):
        y, after = apply(p, carry, inputs, jax.random.key(1))
        return jnp.square(jax.tree.leaves(y)[0] - 0.5).mean(), after

    return jax.value_and_grad(loss, has_aux=True), params


def remats(jaxpr) -> int:
    """How many blocks are computed again: remat primitives, however deep."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("checkpoint", "remat", "remat2"):
            found += 1
            continue
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            found += remats(inner) if hasattr(inner, "eqns") else 0
    return found


def shapes(model, inputs):
    return jax.eval_shape(nk.pair(model)[0], jax.random.key(0), inputs)


def zeros(tree):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)


OFTEN = ("GPT_experts", "EncDec")
SOME = [n if n in OFTEN else pytest.param(n, marks=pytest.mark.nightly) for n in MODELS]


@pytest.mark.parametrize("name", SOME)
def test_every_block_is_computed_again_and_less_is_kept(name):
    """What is kept for the backward pass are the arrays in the function that jax.vjp gives."""
    model, inputs = MODELS[name]
    params, carry = shapes(model, inputs)
    blocks, held = 2 * model.depth if name == "EncDec" else model.depth, {}
    for policy in (None, "everything", "dots", "dots_with_no_batch_dims", "nothing"):
        one = model.clone(remat=policy)
        assert shapes(one, inputs) == (params, carry)

        def loss(p, model=one):
            y, _ = nk.pair(model)[1](p, zeros(carry), inputs, jax.random.key(1))
            return jax.tree.leaves(y)[0].sum()

        back = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        held[policy] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back))
        found = remats(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        assert found == (0 if policy is None else blocks), policy
    assert held["nothing"] < held["dots_with_no_batch_dims"] < held["dots"] < held[None], held


@pytest.mark.parametrize("name", SOME)
def test_the_numbers_are_the_same(name):
    model, inputs = MODELS[name]
    step, params = run(model, inputs)
    again, same = run(model.clone(remat="nothing"), inputs)
    assert nk.digest(params) == nk.digest(same)
    (loss, carry), grad = jax.jit(step)(params)
    (found, after), slope = jax.jit(again)(params)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves((slope, after)), jax.tree.leaves((grad, carry)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("policy", [*POLICIES, jax.checkpoint_policies.dots_saveable])
def test_every_policy_gives_the_same_numbers(policy):
    model, inputs = MODELS["GPT"]
    step, params = run(model, inputs)
    again, _ = run(model.clone(remat=policy), inputs)
    (loss, _), grad = jax.jit(step)(params)
    (found, _), slope = jax.jit(again)(params)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_policy_says_which_there_are(name):
    model, inputs = MODELS[name]
    with pytest.raises(ValueError) as error:
        jax.eval_shape(model.clone(remat="dot").init, jax.random.key(0), *inputs)
    kind = type(model).__name__
    for part in (f"{kind}: remat is 'dot'", "'nothing'", "'everything'", "jax.checkpoint_policies"):
        assert part in str(error.value)
    known(kind, jax.checkpoint_policies.dots_saveable)  # a policy itself is fine


def test_decoding_and_intermediates_do_not_mind():
    model, (tokens,) = models.GPT(11, length=8, **ONE, remat="nothing"), (TOKENS,)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    y = jax.jit(model.apply)(params, tokens)
    inside, found = jax.jit(lambda p, x: model.apply(p, x, intermediates=True))(params, tokens)
    np.testing.assert_allclose(inside, y, rtol=1e-5, atol=1e-5)
    assert found["attention_0"].shape == (2, 2, 8, 8)
    decode = jax.jit(lambda p, x, c: model.apply(p, x, cache=c))
    cached, _ = decode(params, tokens, model.cache(2, 8))
    np.testing.assert_allclose(cached, y, rtol=1e-5, atol=1e-5)
