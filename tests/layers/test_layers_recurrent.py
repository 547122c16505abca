"""RNN, LSTM, GRU: against loops in numpy, fast against plain, masks, states, the probe."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit import layers
from nnkit.layers import GRU, LSTM, RNN, Bidirectional, Stacked, detach, probe

B, T, D, F = 3, 6, 2, 4
BEFORE = functools.partial(GRU, reset="before")
PEEPHOLE = functools.partial(LSTM, peephole=True)
PROJECTED = functools.partial(LSTM, projection=3)
FAST = {"lstm": LSTM, "gru": GRU, "gru before": BEFORE}
ALL = {**FAST, "rnn": RNN, "peephole": PEEPHOLE, "projection": PROJECTED}
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
ways = pytest.mark.parametrize("reverse", [False, True])
x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def holes():
    """[b t]: no padding, padding at both ends and in the middle, nothing else."""
    return np.array([[1] * 6, [0, 1, 1, 0, 1, 0], [0] * 6], bool)


def drawn(layer, x, dtype=jnp.float32):
    """Variables with no zero in them."""
    made = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(x, jnp.float32))
    leaves, tree = jax.tree.flatten(made)
    return jax.tree.unflatten(
        tree, [jnp.asarray(numbers(*v.shape, seed=i + 1), dtype) for i, v in enumerate(leaves)]
    )


def started(layer, dtype=jnp.float32):
    zeros = layer.start(B)
    return {k: jnp.asarray(numbers(*v.shape, seed=9), dtype) for k, v in zeros.items()}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def one(layer, w, x, state):
    """One step of one example, in numpy from the equations: the next state."""
    z, h = x @ w["kernel_in"] + w["bias"], state["h"]
    u, f = w["kernel_rec"], layer.features
    if isinstance(layer, RNN):
        return {"h": np.tanh(z + h @ u)}
    if isinstance(layer, LSTM):
        a, c = (z + h @ u).reshape(4, f), state["c"]
        p = w.get("peephole", np.zeros((3, f)))
        i, forget, g = sigmoid(a[0] + p[0] * c), sigmoid(a[1] + p[1] * c), np.tanh(a[2])
        c = forget * c + i * g
        h = sigmoid(a[3] + p[2] * c) * np.tanh(c)
        return {"h": h @ w["kernel_proj"] if layer.projection else h, "c": c}
    (zr, zu, zn), (ur, uu, un) = z.reshape(3, f), np.split(u, 3, 1)
    cr, cu, cn = w.get("bias_rec", np.zeros(3 * f)).reshape(3, f)
    r, share = sigmoid(zr + h @ ur + cr), sigmoid(zu + h @ uu + cu)
    inner = r * (h @ un + cn) if layer.reset == "after" else (r * h) @ un
    return {"h": (1 - share) * np.tanh(zn + inner) + share * h}


def walked(layer, w, x, mask, state):
    """Loops over examples and real steps: (y, state)."""
    y, last = np.zeros((B, T, layer.start(1)["h"].shape[1])), {k: [] for k in state}
    for b in range(B):
        now = {k: v[b] for k, v in state.items()}
        for t in reversed(range(T)) if layer.reverse else range(T):
            if mask[b, t]:
                now = one(layer, w, x[b, t], now)
                y[b, t] = now["h"]
        for k, v in now.items():
            last[k].append(v)
    return y, {k: np.stack(v) for k, v in last.items()}


@every
@ways
def test_layer_is_the_loop(make, reverse):
    with x64(True):
        layer, x = make(F, reverse=reverse), numbers(B, T, D)
        variables, state = drawn(layer, x, jnp.float64), started(layer, jnp.float64)
        mask = holes()
        found = layer.apply(variables, jnp.asarray(x), jnp.asarray(mask), state)
        plain = jax.tree.map(np.asarray, (variables["params"], state))
        wanted = walked(layer, plain[0], x, mask, plain[1])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
@pytest.mark.parametrize(("reverse", "masked"), [(False, True), (True, True), (True, False)])
def test_fast_is_plain_in_first_and_second_order(make, reverse, masked):
    with x64(True):
        x = jnp.asarray(numbers(B, T, D))
        mask = jnp.asarray(holes()) if masked else None
        fast, plain = (make(F, reverse=reverse, form=form) for form in ("fast", "plain"))
        at = (drawn(fast, x, jnp.float64), x, started(fast, jnp.float64))
        weight = jnp.asarray(numbers(B, T, F, seed=5))

        def total(layer, variables, x, state):
            y, last = layer.apply(variables, x, mask, state)
            return (y * weight).sum() + sum((v**2).sum() for v in last.values())

        def slope(layer):
            return jax.grad(functools.partial(total, layer), (0, 1, 2))

        def bend(layer):
            size = lambda *at: sum((g**3).sum() for g in jax.tree.leaves(slope(layer)(*at)))
            return jax.grad(size, (0, 1, 2))(*at)

        orders = {
            "value": lambda layer: layer.apply(at[0], x, mask, at[2]),
            "gradient": lambda layer: slope(layer)(*at),
            "reverse over reverse": bend,
            "forward over reverse": lambda layer: jax.jvp(slope(layer), at, at)[1],
        }
        for name, order in orders.items():
            a, b = jax.jit(lambda order=order: (order(fast), order(plain)))()
            for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
                error = np.abs(u - v).max() / np.abs(v).max()
                assert error <= 1e-12, f"{name}: {error}"


def test_forward_mode_is_for_the_plain_form():
    x = jnp.asarray(numbers(B, T, D), jnp.float32)
    variables = drawn(LSTM(F), x)
    run = lambda form: lambda x: LSTM(F, form=form).apply(variables, x)[0]
    _, along = jax.jvp(run("plain"), (x,), (jnp.ones_like(x),))
    _, back = jax.vjp(run("fast"), x)
    weight = jnp.asarray(numbers(B, T, F), jnp.float32)
    np.testing.assert_allclose((along * weight).sum(), back(weight)[0].sum(), rtol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(run("fast"), (x,), (x,))


@every
def test_padding_counts_for_nothing_wherever_it_stands(make):
    layer, x, mask = make(F), numbers(B, T, D).astype(np.float32), holes()
    variables = drawn(layer, x)

    def total(variables, x):
        y, state = layer.apply(variables, x, jnp.asarray(mask))
        return (y**2).sum() + (state["h"] ** 3).sum(), (y, state)

    clean = jax.value_and_grad(total, has_aux=True)(variables, jnp.asarray(x))
    x[~mask] = np.nan
    spoilt = jax.value_and_grad(total, has_aux=True)(variables, jnp.asarray(x))
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)
    y, state = clean[0][1]
    assert not y[~mask].any()
    short = layer.apply(variables, jnp.asarray(x[1:2, mask[1]]))  # the padding cut out
    np.testing.assert_allclose(short[0], y[1:2, mask[1]], rtol=1e-6)
    np.testing.assert_allclose(short[1]["h"], state["h"][1:2], rtol=1e-6)
    assert not state["h"][2].any()  # all padding: the state of the start


@every
def test_two_windows_with_the_state_handed_on_are_one_sequence(make):
    layer, x = make(F), jnp.asarray(numbers(B, T, D), jnp.float32)
    variables = drawn(layer, x)
    whole, end = layer.apply(variables, x)
    first, state = layer.apply(variables, x[:, :2])
    second, last = layer.apply(variables, x[:, 2:], state=state)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=2e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), last, end)


def test_detach_cuts_the_gradient_between_windows():
    layer, x = GRU(F), jnp.asarray(numbers(B, T, D), jnp.float32)
    variables = drawn(layer, x)

    def second(x, cut):
        state = layer.apply(variables, x[:, :3])[1]
        return layer.apply(variables, x[:, 3:], state=cut(state))[0].sum()

    assert jax.grad(second)(x, lambda state: state)[:, :3].any()
    slope = jax.grad(second)(x, detach)
    assert not slope[:, :3].any()
    assert slope[:, 3:].any()


@pytest.mark.parametrize(
    ("make", "reverse"), [(LSTM, False), (GRU, False), (BEFORE, True), (RNN, True)]
)
def test_no_step_sees_a_later_one(make, reverse):
    layer, x = make(F, reverse=reverse), jnp.asarray(numbers(1, T, D), jnp.float32)
    variables = drawn(layer, x)
    slope = jax.jacrev(lambda x: layer.apply(variables, x)[0][0].sum(-1))(x)[:, 0]  # [t t d]
    for t in range(T):
        for s in range(T):
            sees = s >= t if reverse else s <= t
            assert bool(slope[t, s].any()) == sees, (t, s)


def test_bidirectional_is_two_layers_and_ends_at_each_sequence():
    both, x = Bidirectional(LSTM(F)), jnp.asarray(numbers(B, T, D), jnp.float32)
    params = drawn(both, x)["params"]
    mask = jnp.arange(T)[None] < jnp.array([6, 3, 1])[:, None]
    y, state = both.apply({"params": params}, x, mask)
    for b, n in enumerate([6, 3, 1]):  # flipped by hand, without padding
        right, end = LSTM(F).apply({"params": params["forward"]}, x[b : b + 1, :n])
        flipped, start = LSTM(F).apply({"params": params["backward"]}, x[b : b + 1, :n][:, ::-1])
        wanted = jnp.concatenate([right, flipped[:, ::-1]], -1)
        np.testing.assert_allclose(y[b : b + 1, :n], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["forward"]["h"][b], end["h"][0], rtol=1e-5)
        np.testing.assert_allclose(state["backward"]["h"][b], start["h"][0], rtol=1e-5)
    assert jax.tree.map(jnp.shape, both.start(B)) == jax.tree.map(jnp.shape, state)


def linear_network(recurrent_init):
    layer = RNN(F, activation=lambda a: a, use_bias=False, recurrent_init=recurrent_init)
    x = jnp.asarray(numbers(F, 30, D), jnp.float32)
    return layer, layer.init(jax.random.key(1), x), x


def test_probe_of_a_linear_network_is_the_norm_of_the_power_of_its_matrix():
    layer, variables, x = linear_network(nn.initializers.normal(0.4))
    # example i asks for unit i of the last state: together the Frobenius norm of the Jacobian
    norms = probe(layer, variables, lambda out: jnp.trace(out[1]["h"]), x)["h"]  # [f t]
    power, u = np.eye(F), np.asarray(variables["params"]["kernel_rec"], np.float64)
    for t in reversed(range(30)):
        found = np.sqrt((np.asarray(norms[:, t], np.float64) ** 2).sum())
        np.testing.assert_allclose(found, np.linalg.norm(power), rtol=1e-5)
        power = power @ u


def test_an_orthogonal_linear_network_keeps_the_norm():
    layer, variables, x = linear_network(nn.initializers.orthogonal())
    norms = probe(layer, variables, lambda out: out[1]["h"][:, 0].sum(), x)["h"]
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


@pytest.mark.parametrize("make", [LSTM, BEFORE, RNN])
def test_probe_is_the_slope_by_each_state_and_leaves_the_call_alone(make):
    stack, x = Stacked([make(F), make(3)]), jnp.asarray(numbers(B, T, D), jnp.float32)
    variables, mask = drawn(stack, x), jnp.asarray(holes())
    loss = lambda out: (out[0] ** 2).sum()
    norms = probe(stack, variables, loss, x, mask)
    assert sorted(norms) == ["layers_0/h", "layers_1/h"]
    assert all(not norm[~mask].any() and norm.shape == (B, T) for norm in norms.values())
    # cut the sequence open before step 3: what flows into y_t of layer 0 flows into the state too
    layer, params = make(F), {"params": variables["params"]["layers_0"]}
    one_layer = lambda out: (out[0][:, 3:] ** 2).sum()
    wanted = probe(layer, params, one_layer, x)["h"][:, 2]
    _, state = layer.apply(params, x[:, :3])
    tail = lambda h: (layer.apply(params, x[:, 3:], state={**state, "h": h})[0] ** 2).sum()
    found = jnp.linalg.norm(jax.grad(tail)(state["h"]), axis=-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert list(stack.init(jax.random.key(0), x)) == ["params"]


def test_probe_needs_a_recurrent_layer():
    variables = nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="Dense contains no recurrent layer; it looks into RNN"):
        probe(nn.Dense(2), variables, jnp.sum, jnp.ones((1, 2)))


def test_recurrent_dropout_hides_the_same_units_at_every_step():
    layer = RNN(200, activation=lambda a: a, recurrent_init=layers.eye(), recurrent_dropout=0.5)
    x, state = jnp.zeros((1, 4, 1)), {"h": jnp.ones((1, 200))}
    variables = layer.init(jax.random.key(0), x)
    key = {"dropout": jax.random.key(3)}
    y, _ = layer.apply(variables, x, None, state, train=True, rngs=key)
    alive = y[0, 0] > 0
    assert 0.3 < alive.mean() < 0.7
    for t in range(4):  # kept units double at every step, the others are gone
        np.testing.assert_array_equal(y[0, t], jnp.where(alive, 2.0 ** (t + 1), 0))
    np.testing.assert_array_equal(layer.apply(variables, x, None, state)[0], 1)


@pytest.mark.parametrize("make", [LSTM, GRU, BEFORE])
def test_gates_see_the_thinned_state(make):
    x = jnp.asarray(numbers(B, T, D), jnp.float32)
    layer = make(F, recurrent_dropout=0.5)
    variables, key = drawn(layer, x), {"dropout": jax.random.key(0)}
    thin, _ = layer.apply(variables, x, train=True, rngs=key)
    whole, _ = layer.apply(variables, x)
    np.testing.assert_allclose(thin[:, 0], whole[:, 0], rtol=1e-5)  # h_0 = 0: nothing to hide
    assert not np.allclose(thin[:, 1:], whole[:, 1:], atol=1e-3)


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_between_layers(locked):
    through = RNN(50, activation=lambda a: a, recurrent_init=nn.initializers.zeros)
    one = through.clone(kernel_init=layers.eye())
    stack = Stacked([through, one], dropout=0.5, locked=locked)
    x = jnp.asarray(numbers(1, 5, D), jnp.float32)
    variables = stack.init(jax.random.key(0), x)
    below, _ = through.apply({"params": variables["params"]["layers_0"]}, x)
    y, _ = stack.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(y != 0)
    np.testing.assert_allclose(y, np.where(kept, 2 * below, 0), rtol=1e-5)
    assert (kept == kept[:, :1]).all() == locked
    np.testing.assert_allclose(stack.apply(variables, x)[0], below, rtol=1e-5)


def test_first_weights():
    x = jnp.ones((1, 2, D))
    params = LSTM(8, forget_bias=2.0).init(jax.random.key(0), x)["params"]
    bias = params["bias"].reshape(4, 8)
    np.testing.assert_array_equal(bias, np.array([0, 2, 0, 0])[:, None] * np.ones((4, 8)))
    for gate in jnp.split(params["kernel_rec"], 4, -1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
    irnn = RNN(8, nn.relu, recurrent_init=layers.eye(0.9)).init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(irnn["kernel_rec"], 0.9 * np.eye(8, dtype=np.float32))
    assert sorted(GRU(8).init(jax.random.key(0), x)["params"]) == [
        "bias", "bias_rec", "kernel_in", "kernel_rec",
    ]  # fmt: skip
    assert "bias_rec" not in BEFORE(8).init(jax.random.key(0), x)["params"]
    assert list(RNN(8, use_bias=False).init(jax.random.key(0), x)["params"]) == [
        "kernel_in", "kernel_rec",
    ]  # fmt: skip


X = jnp.ones((2, 5, 3))


@pytest.mark.parametrize(
    ("layer", "args", "error", "message"),
    [
        (LSTM(0), (X,), ValueError, "LSTM: features is 0, expected an integer >= 1"),
        (GRU("8"), (X,), TypeError, "GRU: features is '8', expected an integer >= 1"),
        (LSTM(4, projection=0), (X,), ValueError, "LSTM: projection is 0, expected an integer"),
        (RNN(4, activation="tanh"), (X,), TypeError, "RNN: activation is 'tanh', expected a fun"),
        (GRU(4, reset="inside"), (X,), ValueError, "GRU: reset is 'inside', expected 'after' (to"),
        (GRU(4, form="quick"), (X,), ValueError, "GRU: form is 'quick', expected one of fast, p"),
        (RNN(4, recurrent_dropout=2), (X,), ValueError, "recurrent_dropout is 2, expected a sha"),
        (RNN(4), (X[..., 0],), ValueError, "RNN: x has shape (2, 5), expected [b t d] with at"),
        (RNN(4), (X[:, :0],), ValueError, "RNN: x has shape (2, 0, 3), expected [b t d] with at"),
        (LSTM(4), (X.astype(int),), TypeError, "LSTM: x is int32, expected floats"),
        (LSTM(4), (X, X[:1, :, 0]), ValueError, "mask has shape (1, 5), expected (b t) with b = 2"),
        (
            LSTM(4),
            (X, None, {"h": jnp.zeros((2, 4))}),
            ValueError,
            "LSTM: state is {'h': (2, 4)}, expected {'h': (2, 4), 'c': (2, 4)}",
        ),
        (GRU(4), (X, None, {"h": jnp.zeros((1, 4))}), ValueError, "GRU: state is {'h': (1, 4)}, e"),
        (Bidirectional(nn.Dense(4)), (X,), TypeError, "expected a layer with a field `reverse`"),
        (Bidirectional(RNN(4, reverse=True)), (X,), ValueError, "forward has reverse=True, expect"),
        (Stacked([]), (X,), ValueError, "Stacked: there is no layer, expected at least one"),
        (Stacked([RNN(4)], dropout=1.0), (X,), ValueError, "Stacked: dropout is 1.0, expected a"),
        (Stacked([RNN(4)]), (X, None, ()), ValueError, "Stacked: state has 0 parts, expected 1"),
        (
            LSTM(4, projection=3, recurrent_init=layers.eye()),
            (X,),
            ValueError,
            "eye: the shape is (3, 4), expected a square (f, f)",
        ),
    ],
)
def test_mistakes(layer, args, error, message):
    with pytest.raises(error) as caught:
        layer.init(jax.random.key(0), *args)
    assert message in str(caught.value)


def test_other_features_than_the_weights_were_made_for():
    variables = LSTM(4).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 2\), expected 3 features"):
        LSTM(4).apply(variables, X[..., :2])
