"""Rates against optax and their formulas, with peaks that are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import losses, optim

STEPS = np.arange(0, 41)


def along(rate):
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(STEPS)))


def slow_wsd(t, peak, steps, warmup, decay, final, power):
    if t < warmup:
        return peak * t / warmup
    if t <= steps - decay:
        return peak
    return peak * (1 - (1 - final) * min(1, (t - (steps - decay)) / decay) ** power)


SLOW = {
    "cosine": (
        optim.warmup_cosine(0.3, 30, 6, 0.1),
        lambda t: optax.warmup_cosine_decay_schedule(0.0, 0.3, 6, 30, 0.03)(t),
    ),
    "cosine alone": (
        optim.warmup_cosine(0.3, 30),
        lambda t: optax.cosine_decay_schedule(0.3, 30)(t),
    ),
    "linear": (
        optim.linear(0.3, 30, 6, 0.1),
        lambda t: min(0.3 * t / 6, max(0.03, 0.3 - 0.27 * (t - 6) / 24)),
    ),
    "linear alone": (optim.linear(0.3, 30), lambda t: optax.linear_schedule(0.3, 0.0, 30)(t)),
    "wsd": (optim.wsd(0.3, 30, 6, 9), lambda t: slow_wsd(t, 0.3, 30, 6, 9, 0.0, 1.0)),
    "wsd sqrt": (
        optim.wsd(0.3, 30, 6, 9, 0.1, power=0.5),
        lambda t: slow_wsd(t, 0.3, 30, 6, 9, 0.1, 0.5),
    ),
    "wsd without decay": (optim.wsd(0.3, 30, 6, 0), lambda t: 0.3 * min(1, t / 6)),
    "wsd all decay": (optim.wsd(0.3, 30, 0, 30), lambda t: max(0, 0.3 * (1 - t / 30))),
    "inverse_sqrt": (
        optim.inverse_sqrt((512 * 9) ** -0.5, 9),  # the paper's formula, d = 512
        lambda t: 512**-0.5 * min(t**-0.5, t * 9**-1.5) if t else 0.0,
    ),
}


@pytest.mark.parametrize("name", list(SLOW))
def test_by_the_formula(name):
    rate, slow = SLOW[name]
    want = [float(slow(int(t))) for t in STEPS]
    np.testing.assert_allclose(along(rate), want, rtol=1e-5, atol=1e-8)
    assert rate(3).dtype == rate(jnp.int32(3)).dtype == jnp.float32
    assert rate(np.int64(2**23)).shape == ()


def test_every_number_may_be_traced():
    for make in (
        lambda p: optim.warmup_cosine(p[0], 30, p[1], p[2]),
        lambda p: optim.linear(p[0], 30, p[1], p[2]),
        lambda p: optim.wsd(p[0], 30, p[1], 9, p[2], power=0.5),
        lambda p: optim.inverse_sqrt(p[0], p[1]),
    ):
        numbers = (0.3, 6, 0.1)
        got = jax.jit(lambda p, t: make(p)(t))(numbers, jnp.int32(25))  # noqa: B023
        np.testing.assert_allclose(got, make(numbers)(25), rtol=1e-6)
        slope = jax.grad(lambda p: make((p, 6, 0.1))(25))(0.3)  # noqa: B023
        np.testing.assert_allclose(slope, make((1.0, 6, 0.1))(25), rtol=1e-6)
    knee = jax.grad(lambda p: optim.wsd(0.3, 30, 6, 9, power=p)(21))(0.5)
    assert np.isfinite(knee)  # where the decay begins


def test_a_sweep_of_peaks_is_one_program_and_each_member_runs_alone():
    def start(key, batch):
        return {"w": jnp.ones(3)}

    def loss(params, batch, key):
        return losses.mse(batch["x"] @ params["w"], batch["y"])

    task = nk.objective(start, loss)
    recipe = lambda h: nk.step(nk.gradient(task), optax.adamw(optim.warmup_cosine(h["peak"], 8, 2)))
    batch = {"x": jnp.eye(3), "y": jnp.zeros(3)}
    peaks = [0.01, 0.1]
    many = nk.sweep(recipe, {"peak": jnp.array(peaks)})
    state, update = many.init(jax.random.key(0), batch), jax.jit(many.update)
    for _ in range(5):
        state, _ = update(state, batch)
    for i, peak in enumerate(peaks):
        one = recipe({"peak": peak})
        alone, move = one.init(jax.random.key(0), batch), jax.jit(one.update)
        for _ in range(5):
            alone, _ = move(alone, batch)
        ours = jax.tree.map(lambda x: x[i], many.weights(state)[0])  # noqa: B023
        np.testing.assert_allclose(ours["w"], one.weights(alone)[0]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: optim.warmup_cosine(-1.0, 9), "peak is -1.0, expected a finite number > 0"),
        (lambda: optim.warmup_cosine(1.0, 9, 9), "warmup=9 and steps=9, expected warmup < steps"),
        (lambda: optim.linear(1.0, 9, -1), "linear: warmup=-1, expected a number of steps >= 0"),
        (lambda: optim.linear(1.0, 9, 1, 2.0), "final=2.0, expected a share of the peak, 0 <= fi"),
        (lambda: optim.wsd(1.0, 9, 4, 6), "warmup=4 and decay=6, expected decay >= 0 and"),
        (lambda: optim.wsd(1.0, 9, 4, 2, power=0), "power is 0, expected a finite number > 0"),
        (lambda: optim.inverse_sqrt(1.0, 0), "inverse_sqrt: warmup=0, expected an int >= 1"),
    ],
)
def test_wrong_numbers(make, match):
    with pytest.raises(ValueError) as error:
        make()
    assert match in str(error.value)
