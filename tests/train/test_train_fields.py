"""Several inputs, several targets, and losses that weigh their examples."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.core.means import Mean

BATCH = {
    "tokens": jnp.asarray([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]),
    "token_mask": jnp.asarray([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    "labels": jnp.asarray([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]),
}


class Scale(nn.Module):
    """Each token by a weight; the sum of those that count."""

    @nn.compact
    def __call__(self, tokens, mask=None):
        w = self.param("w", nn.initializers.constant(0.5), (1,))
        y = tokens * w[None]
        return y if mask is None else y * mask


def squares(outputs, labels, mask):
    """Mean square per token: totals and weights for each example."""
    return Mean((jnp.square(outputs - labels) * mask).sum(1), mask.sum(1))


def task():
    return nk.supervised(
        Scale(),
        squares,
        x=("tokens", "token_mask"),
        y=("labels", "token_mask"),
        error=lambda o, y, m: jnp.abs(o - y).sum(1),
    )


def test_a_tuple_of_names_is_several_inputs_and_targets():
    params, carry = task().init(jax.random.key(0), BATCH)
    mean, (_, log) = task().loss(params, carry, BATCH, None)
    mask = np.asarray(BATCH["token_mask"])
    each = (np.asarray(BATCH["tokens"]) * 0.5 * mask - np.asarray(BATCH["labels"])) ** 2 * mask
    assert float(mean.total) == pytest.approx(each.sum())
    assert float(mean.weight) == 6  # tokens, not examples
    assert float(log["error"].weight) == 3


def test_every_token_counts_the_same_however_the_batch_is_cut():
    batch = BATCH | {"mask": jnp.asarray([1.0, 1.0, 0.0])}
    whole = nk.gradient(task())
    params, carry = whole.init(jax.random.key(0), batch)
    full, _ = whole.grad(params, carry, batch, jax.random.key(0))
    parts = [
        whole.grad(params, carry, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), None)[0]
        for i in range(3)
    ]
    total = parts[0] + parts[1] + parts[2]
    assert float(total.weight) == float(full.weight) == 4
    np.testing.assert_allclose(total.value["w"], full.value["w"], rtol=1e-6)


def test_a_field_that_is_missing_is_named():
    wrong = nk.supervised(Scale(), squares, x=("tokens", "lengths"), y=("labels", "token_mask"))
    with pytest.raises(KeyError, match=r"needs 'lengths': rename the field"):
        wrong.init(jax.random.key(0), BATCH)


def test_a_loss_that_is_a_scalar_mean_is_refused():
    reduced = lambda o, y, m: Mean((o - y).sum(), m.sum())
    wrong = nk.supervised(Scale(), reduced, x="tokens", y=("labels", "token_mask"))
    params, carry = wrong.init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"loss returned shape \(\), expected \[b \.\.\.\]"):
        wrong.loss(params, carry, BATCH, None)


def test_predict_takes_the_same_names():
    apply = (lambda k, x: ({}, {}), lambda p, c, x, key: (x[0] + x[1], c))
    found = nk.predict(apply, {}, {}, [BATCH], x=("tokens", "token_mask"))
    assert sorted(found) == ["labels", "outputs"]
    np.testing.assert_allclose(found["outputs"], BATCH["tokens"] + BATCH["token_mask"])
    with pytest.raises(KeyError, match="needs 'words'"):
        nk.predict(apply, {}, {}, [BATCH], x=("words",))


def test_a_dict_names_the_inputs_of_a_module():
    init, apply = nk.train.pair(nk.models.GPT(13, 4, width=8, depth=1, heads=2))
    tokens, mask = np.array([[1, 2, 3], [4, 5, 0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    x = {"tokens": tokens, "mask": mask}
    params, carry = jax.jit(init)(jax.random.key(0), x)
    named = apply(params, carry, x, None)[0]
    placed = apply(params, carry, (tokens, mask), None)[0]
    assert (named == placed).all()
