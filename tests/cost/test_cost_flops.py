"""Operations counted in a jaxpr, against the definition: every multiplication looked at."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit.core.platforms import compiling_for, platform
from nnkit.cost import flops, transformer
from nnkit.cost.counting import count

SQUARE = 2.0 * 4 * 4 * 4  # one product of two matrices of 4 x 4


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def products(function, *args, **options):
    return flops(function, *args, **options).products


@pytest.mark.parametrize(
    ("spec", "shapes", "expected"),
    [
        ("i,i->", [(5,), (5,)], 2 * 5),
        ("ij,jk->ik", [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        ("bthd,bshd->bhts", [(2, 3, 4, 5), (2, 6, 4, 5)], 2 * 2 * 4 * 3 * 6 * 5),
        ("i,j->ij", [(3,), (4,)], 2 * 3 * 4),
    ],
)
def test_a_product_is_two_operations_for_each_multiply_and_add(spec, shapes, expected):
    assert products(functools.partial(jnp.einsum, spec), *(ones(*s) for s in shapes)) == expected


def by_looking(size, kernel, stride, pad, spread, holes):
    """(place, weight) pairs of one axis whose input is real, one after another."""
    wide = (size - 1) * spread + 1 + sum(pad)
    places = (wide - ((kernel - 1) * holes + 1)) // stride + 1
    found = 0
    for place, k in itertools.product(range(places), range(kernel)):
        at = place * stride + k * holes - pad[0]
        found += 0 <= at <= (size - 1) * spread and at % spread == 0
    return found


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "spread", "holes", "groups"),
    [
        (8, 3, 1, (0, 0), 1, 1, 1),
        (8, 3, 1, (1, 1), 1, 1, 1),
        (9, 3, 2, (1, 1), 1, 1, 2),
        (9, 3, 2, (0, 1), 1, 2, 4),
        (5, 4, 1, (2, 3), 3, 1, 1),
    ],
)
def test_a_convolution_counts_what_meets_a_real_input(
    size, kernel, stride, pad, spread, holes, groups
):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride,), [pad], (spread,), (holes,), ("NWC", "WIO", "NWC"), groups
        )

    x, w = ones(2, size, 4), ones(kernel, 4 // groups, 8)
    expected = 2 * 2 * 8 * (4 // groups) * by_looking(size, kernel, stride, pad, spread, holes)
    assert products(convolve, x, w) == expected
    for argument in (0, 1):  # each gradient meets the same pairs, whatever form it has
        slope = jax.value_and_grad(lambda *xw: convolve(*xw).sum(), argument)
        assert products(slope, x, w) == 2 * expected


def test_loops_count_as_often_as_they_run():
    x = ones(4, 4)

    def scanned(x, n=10):
        return jax.lax.scan(lambda h, _: (h @ x, None), x, length=n)[0]

    def nested(x):
        return jax.lax.scan(lambda h, _: (scanned(h, 3), None), x, length=5)[0]

    assert products(scanned, x) == 10 * SQUARE
    assert products(nested, x) == 15 * SQUARE
    assert products(lambda x: jax.lax.fori_loop(2, 9, lambda i, h: h @ x, x), x) == 7 * SQUARE
    assert products(lambda x: jax.lax.map(lambda row: x @ row, x), x) == SQUARE
    assert products(jax.vmap(scanned), ones(6, 4, 4)) == 60 * SQUARE


def test_a_while_loop_is_counted_by_its_bounds_or_refused():
    def known(x):
        def body(carry):
            return carry[0] + 3, carry[1] @ x

        return jax.lax.while_loop(lambda c: c[0] < 10, body, (1, x))[1]

    def unknown(x):
        return jax.lax.while_loop(lambda h: h.sum() < 10, lambda h: h @ x, x)

    x = ones(4, 4)
    assert products(known, x) == 3 * SQUARE  # 1, 4, 7
    with pytest.raises(
        ValueError, match=r"a while loop does not say how often it runs; give trips"
    ):
        flops(unknown, x)
    found = flops(unknown, x, trips=2)
    assert found.products == 2 * SQUARE
    assert found.unknown == ("while: counted 2 times",)


def test_of_two_branches_the_dearer_counts():
    def chosen(i, x):
        return jax.lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    assert products(chosen, jax.ShapeDtypeStruct((), jnp.int32), ones(4, 4)) == 2 * SQUARE


def test_a_sharded_function_counts_all_its_devices():
    mesh = nk.mesh(data=4)
    local = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    assert products(local, ones(8, 4), ones(4, 4)) == 2 * SQUARE


def test_a_gradient_is_forward_and_twice_backward():
    model = nk.models.MLP((4, 4))
    x = ones(4, 4)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)

    def loss(params, x):
        return model.apply(params, x).sum()

    forward = products(loss, params, x)
    assert forward == 2 * SQUARE
    assert products(jax.grad(loss), params, x) == 3 * forward - SQUARE  # not by the first input
    assert products(jax.grad(loss, (0, 1)), params, x) == 3 * forward


def block(x, w):
    return jnp.tanh(jnp.tanh(x @ w) @ w)


@pytest.mark.parametrize("depth", [1, 3])
def test_what_a_checkpoint_computes_again_is_told_apart(depth):
    def loss(w, x, wrap=lambda f: f):
        for _ in range(depth):
            x = wrap(block)(x, w)
        return x.sum()

    w = x = ones(4, 4)
    plain = flops(jax.grad(loss), w, x)
    wrapped = flops(jax.grad(functools.partial(loss, wrap=jax.checkpoint)), w, x)
    assert plain.recomputed == 0
    assert wrapped.products == plain.products + 2 * depth * SQUARE
    assert wrapped.recomputed == depth * (2 * SQUARE + 2 * 16)  # two products, two tanh
    assert wrapped.needed == plain.total
    saved = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    kept = flops(jax.grad(functools.partial(loss, wrap=saved)), w, x)
    assert kept.products == plain.products
    assert kept.recomputed == depth * 2 * 16  # the tanh only


def test_recomputation_is_seen_across_scans_over_layers():
    def loss(ws, x, wrap=lambda f: f):
        return jax.lax.scan(lambda h, w: (wrap(block)(h, w), None), x, ws)[0].sum()

    ws, x = ones(5, 4, 4), ones(4, 4)
    plain = flops(jax.grad(loss), ws, x)
    wrapped = flops(jax.grad(functools.partial(loss, wrap=jax.checkpoint)), ws, x)
    assert wrapped.recomputed == 5 * (2 * SQUARE + 2 * 16)
    assert wrapped.needed == plain.total


def test_accumulation_costs_nothing_more():
    model = nk.models.MLP((8, 2))
    gradient = nk.gradient(nk.supervised(model, nk.losses.cross_entropy))
    batch = {"x": np.ones((8, 4), np.float32), "y": np.zeros(8, np.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))

    def counted(g):
        step = nk.step(g, optax.sgd(0.1))
        state = jax.eval_shape(step.init, key, batch)
        return products(step.update, state, batch)

    assert counted(nk.accumulate(gradient, 4)) == counted(gradient) > 0


def test_half_precision_is_told_apart():
    found = flops(lambda x, y: (x @ x).sum() + (y @ y).sum().astype(jnp.float32),
                  ones(4, 4), jax.ShapeDtypeStruct((4, 4), jnp.bfloat16))  # fmt: skip
    assert found.products_by == {"float32": SQUARE, "bfloat16": SQUARE}


def test_what_is_not_known_is_said():
    found = flops(lambda x: jnp.linalg.eigh(x)[0], ones(4, 4))
    assert any("eigh" in note and "not counted" in note for note in found.unknown)


def test_elements_and_sums_count_one_each():
    assert flops(lambda x: jnp.sum(jnp.exp(x) * x), ones(3, 5)).others == 3 * 15
    assert flops(lambda x: x.reshape(-1)[::2].astype(jnp.bfloat16), ones(4, 4)).total == 0


def test_the_compiler_agrees_where_there_is_no_loop_and_counts_a_scan_once(optimised):
    def unrolled(x):
        for _ in range(8):
            x = x @ x
        return x

    def scanned(x):
        return jax.lax.scan(lambda h, _: (h @ h, None), x, length=8)[0]

    x = ones(64, 64)
    own = [jax.jit(f).lower(x).compile().cost_analysis() for f in (unrolled, scanned)]
    own = [(c[0] if isinstance(c, list) else c)["flops"] for c in own]
    assert products(unrolled, x) == products(scanned, x) == pytest.approx(own[0], rel=1e-3)
    assert own[1] == pytest.approx(own[0] / 8, rel=0.01)


def test_gpt2_is_within_five_percent_of_the_formula():
    """The whole step of 124,439,808 parameters, traced as for a TPU; nothing is compiled."""
    model = nk.models.GPT.from_size("gpt2")
    step = nk.step(nk.gradient(nk.half(nk.causal_lm(model))), optax.adamw(3e-4))
    tokens = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
    batch = {"tokens": tokens, "labels": tokens}
    with compiling_for("tpu"):
        state = jax.eval_shape(step.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
        jaxpr = jax.make_jaxpr(step.update)(state, batch)
    params = 124_439_808 - 1024 * 768  # positions are only looked up
    formula = transformer(params, 2 * 1024, depth=12, width=768, length=1024)
    found = count(jaxpr)
    assert found.total == pytest.approx(formula, rel=0.05)
    assert found.products == pytest.approx(formula, rel=1e-3)
    backward = formula - 6 * params * 2048  # of the attention, two thirds of it in float32
    assert found.products_by["float32"] == pytest.approx(backward * 2 / 3, rel=1e-3)
    assert found.recomputed == 0


def test_layers_take_the_form_of_the_chip_that_is_planned_for():
    q = ones(1, 128, 2, 8)

    def traced(kind):
        with compiling_for(kind):
            return products(lambda q: nk.layers.attention(q, q, q, causal=True), q)

    whole = 2 * 2 * 128 * 128 * 2 * 8  # scores and mix, masked or not
    assert traced("tpu") == traced("gpu") == whole
    assert traced("cpu") == whole * 3 / 4  # two parts of 64: the second sees all, the first half
    assert platform() == jax.default_backend()
    expected = r"compiling_for\('npu'\): expected one of cpu, gpu, tpu"
    with pytest.raises(ValueError, match=expected), compiling_for("npu"):
        pass


def test_a_step_is_no_function_and_the_message_says_what_to_count():
    task = nk.objective(lambda key, b: jnp.zeros(4), lambda w, b, key: (b["x"] @ w) ** 2)
    step = nk.step(nk.gradient(task), optax.sgd(0.1))
    batch = {"x": ones(8, 4)}
    with pytest.raises(
        TypeError, match=r"flops got Step.*nk.cost.flops\(step.update, state, batch"
    ):
        flops(step, batch)
    state = jax.eval_shape(step.init, jax.random.key(0), batch)  # as it says
    assert flops(step.update, state, batch).products >= 2 * 2 * 8 * 4
    with pytest.raises(TypeError, match="flops got int, expected a function"):
        flops(3, batch)
