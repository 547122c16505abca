"""Starts of weights: variances, orthogonality, fixed points, 50 layers deep, widths of muP."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nnkit import layers
from nnkit.layers import initialisers as init

key = jax.random.key
SCALED = {  # variance = scale / fan, of [i o] = [300, 200]
    "lecun_normal": 1 / 300,
    "lecun_uniform": 1 / 300,
    "he_normal": 2 / 300,
    "he_uniform": 2 / 300,
    "glorot_normal": 2 / 500,
    "glorot_uniform": 2 / 500,
}


@pytest.mark.parametrize("name", list(SCALED))
def test_the_variance_is_that_of_the_named_fan(name):
    w = np.asarray(getattr(init, name)()(key(0), (300, 200), jnp.float32))
    np.testing.assert_allclose(w.var(), SCALED[name], rtol=0.02)  # 5 standard errors: 0.03
    assert abs(w.mean()) < 5 * np.sqrt(SCALED[name] / w.size)


@pytest.mark.parametrize(("fan", "n"), [("fan_in", 27), ("fan_out", 9 * 64), ("fan_avg", 301.5)])
def test_a_fan_can_be_chosen_and_counts_the_filter(fan, n):
    w = init.variance_scaling(2.0, fan, "normal")(key(0), (3, 3, 3, 64), jnp.float32)
    np.testing.assert_allclose(w.var(), 2 / n, rtol=0.18)  # 5 standard errors


def test_a_cut_normal_has_the_deviation_it_is_asked_for():
    w = np.asarray(init.truncated_normal(0.3)(key(0), (700, 700)))
    np.testing.assert_allclose(w.std(), 0.3, rtol=5e-3)
    assert np.abs(w).max() <= 2 * 0.3 / 0.8796
    cut = np.asarray(jax.nn.initializers.truncated_normal(0.3)(key(0), (700, 700)))
    np.testing.assert_allclose(cut.std(), 0.3 * 0.87962566, rtol=5e-3)  # what it corrects


def test_orthogonal():
    for shape in ((6, 6), (9, 4), (4, 9), (3, 3, 2, 5)):
        w = np.asarray(init.orthogonal()(key(0), shape, jnp.float32)).reshape(-1, shape[-1])
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_delta_orthogonal_keeps_the_norm_of_every_cell():
    w = init.delta_orthogonal()(key(0), (3, 3, 4, 6), jnp.float32)
    x = jax.random.normal(key(1), (2, 5, 5, 4))
    layer = layers.Conv(6, (3, 3), use_bias=False)
    y = layer.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose(jnp.square(y).sum(-1), jnp.square(x).sum(-1), rtol=1e-4)


def test_sparse_has_as_many_zeros_as_asked():
    for shape, zeros in (((20, 30), 18), ((3, 3, 2, 30), 17)):
        w = np.asarray(init.sparse(0.9 if zeros == 18 else 0.94)(key(0), shape)).reshape(-1, 30)
        np.testing.assert_array_equal((w == 0).sum(0), np.full(30, zeros))
    assert len({tuple(column) for column in (w == 0).T}) > 10  # every output its own places
    many = init.sparse(0.5, 0.2)(key(0), (400, 400))
    np.testing.assert_allclose(np.asarray(many)[np.asarray(many) != 0].std(), 0.2, rtol=0.02)
    with pytest.raises(ValueError, match=r"sparse: shape is \(3,\), expected \[\.\.\. i o\]"):
        init.sparse(0.5)(key(0), (3,))
    with pytest.raises(ValueError, match=r"sparse: sparsity is 1.5, expected a share in \[0, 1\)"):
        init.sparse(1.5)
    with pytest.raises(ValueError, match="stddev is 0, expected a finite number > 0"):
        init.truncated_normal(0)


def test_he_and_relu_keep_signal_and_gradient_over_50_layers():
    """E |h_l|^2 = |h_(l-1)|^2, and the same for the gradient: within 10 % after 50 layers.

    The product of 50 layers of one network fluctuates too much to be averaged; the mean factor of a
    layer over 3200 networks, to the power of 50, does not (1 standard error: 5 %).
    """
    many, width = 3200, 32
    start = init.he_normal(batch_axis=0)

    @jax.jit
    def run(k):
        def layer(h, k):
            a, b = jax.random.split(k)
            w = start(a, (many, width, width), jnp.float32)
            z = jnp.einsum("ni,nio->no", h, w)
            g = jax.random.normal(b, z.shape)
            back = jnp.einsum("nio,no->ni", w, jnp.where(z > 0, g, 0))
            y = jax.nn.relu(z)
            size = lambda v: jnp.square(v).sum(-1, keepdims=True)
            factors = (size(y) / size(h)).mean(), size(back).sum() / size(g).sum()
            return y / jnp.sqrt(size(y)), jnp.stack(factors)

        first, k = jax.random.split(k)
        h = jax.random.normal(first, (many, width))
        return jax.lax.scan(layer, h, jax.random.split(k, 50))[1]

    signal, gradient = np.asarray(run(key(0)), np.float64).mean(0) ** 50
    assert abs(signal - 1) < 0.1
    assert abs(gradient - 1) < 0.1


def test_selu_has_its_fixed_point_at_mean_0_and_variance_1():
    width, start = 512, init.lecun_normal()
    k, *rest = jax.random.split(key(0), 51)
    h = jax.random.normal(k, (64, width))
    forward = jax.jit(lambda h, k: layers.selu(h @ start(k, (width, width), jnp.float32)))
    for k in rest:  # 50 layers
        h = forward(h, k)
    np.testing.assert_allclose([h.mean(), h.var()], [0, 1], atol=0.1)
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    x = np.linspace(-12, 12, 200_001)  # the integrals themselves
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    y = scale * np.where(x > 0, x, alpha * np.expm1(x))
    np.testing.assert_allclose([(y * density).sum(), (y**2 * density).sum()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(
        layers.selu(jnp.asarray(x[::100], jnp.float32)), y[::100], 1e-5, 1e-6
    )


def test_scaled_and_mup_tables():
    w = init.scaled(init.he_normal(), 0.5)(key(0), (4, 3), jnp.float32)
    np.testing.assert_allclose(w, 0.5 * init.he_normal()(key(0), (4, 3), jnp.float32))
    for kind in ("input", "hidden", "output"):
        for optimizer in ("adam", "sgd"):
            assert init.mup(kind, 1.0, optimizer=optimizer) == (1, 1)  # off-switch
    assert init.mup("input", 4) == (1, 1)
    assert init.mup("output", 4) == (0.25, 0.25)
    assert init.mup("input", 4, optimizer="sgd") == (1, 4)
    assert init.mup("hidden", 4, optimizer="sgd") == (0.5, 1)
    with pytest.raises(KeyError, match="mup: kind is 'head', expected 'input', 'hidden' or 'outp"):
        init.mup("head", 2)
    with pytest.raises(KeyError, match="mup: optimizer is 'lion', expected 'adam' or 'sgd'"):
        init.mup("input", 2, optimizer="lion")
    with pytest.raises(ValueError, match="ratio is 0, expected a finite number > 0"):
        init.mup("input", 0)


def change(ratio, optimizer, mup):
    """How far three steps move the output of a 3-layer ReLU network, width 32 ratio."""
    width, base = 32 * ratio, 32
    kinds = {"input": (8, width), "hidden": (width, width), "output": (width, 1)}
    fans = {"input": 8, "hidden": base, "output": base}
    factor = {k: init.mup(k, ratio, optimizer=optimizer) for k in kinds}
    plain = {"input": 1.0, "hidden": ratio**-0.5, "output": ratio**-0.5}  # fan-in alone
    keys = dict(zip(kinds, jax.random.split(key(0), 4)[:3]))
    params = {}
    for k, shape in kinds.items():
        stddev = fans[k] ** -0.5 * (factor[k].stddev if mup else plain[k])
        params[k] = stddev * jax.random.normal(keys[k], shape)
    x = jax.random.normal(key(5), (16, 8))

    @jax.jit
    def net(p):
        return jax.nn.relu(jax.nn.relu(x @ p["input"]) @ p["hidden"]) @ p["output"]

    opt = {"adam": optax.adam, "sgd": optax.sgd}[optimizer]({"adam": 1e-3, "sgd": 2e-3}[optimizer])
    first, state = net(params), opt.init(params)
    for _ in range(3):
        slope = jax.jit(jax.grad(lambda p: jnp.square(net(p) - 1).mean()))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
            step, state = opt.update(slope, state)
        rate = {k: factor[k].learning_rate if mup else 1.0 for k in kinds}
        params = {k: params[k] + rate[k] * step[k] for k in kinds}
    return float(jnp.abs(net(params) - first).mean())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_under_mup_wider_networks_learn_alike(optimizer):
    """The coordinate check of the paper (figure 5): 16 times the width, the same change."""
    narrow, wide = change(1, optimizer, True), change(16, optimizer, True)
    assert 0.5 < wide / narrow < 2
    assert change(16, optimizer, False) > 4 * narrow


def test_every_own_name_is_documented():
    for name in init.__all__:
        thing = getattr(init, name)
        if thing.__module__.startswith("nnkit"):
            text = inspect.getdoc(thing)
            assert ">>>" in text
            assert re.search(r"arXiv|\b(19|20)\d\d\b", text.split("\n\n")[-1]), name
