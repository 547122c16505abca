"""RecurrentClassifier, RecurrentLM and TCN: masks, states, causality, sizes, mistakes; the task."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.cli.train import load
from nnkit.layers import GRU, RNN, detach, probe
from nnkit.models import TCN, RecurrentClassifier, RecurrentLM, receptive_field

B, T, D = 3, 6, 4
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 11, (B, T)).astype(np.int32)
LENGTHS = (6, 4, 1)
MASK = np.arange(T)[None] < np.array(LENGTHS)[:, None]

CLASSIFIERS = {
    "last": RecurrentClassifier(3, width=5, depth=2),
    "mean both ways": RecurrentClassifier(3, width=5, bidirectional=True, pool="mean"),
    "max gru": RecurrentClassifier(3, layer=GRU, width=5, pool="max"),
    "last both ways": RecurrentClassifier(3, layer=RNN, width=5, bidirectional=True),
    "tokens": RecurrentClassifier(
        3, layer=functools.partial(GRU, reset="before"), width=5, vocabulary=11
    ),
    "tcn": TCN(3, channels=(5, 6), kernel=3),
    "tcn tokens": TCN(3, channels=(5, 5), kernel=2, vocabulary=11),
}


def drawn(model, *inputs):
    """Variables with no zero in them, without compiling the initialisers."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    draw = np.random.default_rng(2)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.4 * draw.normal(size=v.shape), v.dtype) for v in leaves]
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_padding_on_either_side_is_cutting_it_off(name):
    model = CLASSIFIERS[name]
    x = IDS if model.vocabulary else X
    variables = drawn(model, jnp.asarray(x))
    run = jax.jit(model.apply)
    for mask in (MASK, MASK[:, ::-1]):
        y = run(variables, jnp.asarray(x), jnp.asarray(mask))
        other = np.where(mask[..., None], x, 99) if x.ndim == 3 else np.where(mask, x, 7)
        np.testing.assert_array_equal(run(variables, jnp.asarray(other), jnp.asarray(mask)), y)
        for b in (0, 1):
            alone = run(variables, jnp.asarray(x[b : b + 1, mask[b]]))
            np.testing.assert_allclose(y[b : b + 1], alone, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_sequence_without_steps_has_the_summary_zero(name):
    model = CLASSIFIERS[name]
    x = jnp.asarray(IDS if model.vocabulary else X)
    variables = drawn(model, x)
    nothing = jnp.zeros((B, T), bool)
    run = jax.jit(jax.value_and_grad(lambda v: model.apply(v, x, nothing)[0].sum()))
    y, slopes = run(variables)
    bias = variables["params"]["head"]["bias"]
    np.testing.assert_allclose(y, bias.sum(), atol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))


def test_pools_are_what_they_say():
    make = lambda pool: RecurrentClassifier(3, width=5, pool=pool)
    variables = drawn(make("last"), jnp.asarray(X))
    for pool, summary in {
        "last": lambda h, n: h[n - 1],
        "mean": lambda h, n: h[:n].mean(0),
        "max": lambda h, n: h[:n].max(0),
    }.items():
        _, inside = make(pool).apply(variables, jnp.asarray(X), MASK, intermediates=True)
        for b, n in enumerate(LENGTHS):
            wanted = summary(inside["hidden"][b], n)
            np.testing.assert_allclose(inside["pooled"][b], wanted, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_hands_its_state_on_and_sees_no_later_token(tied):
    model = RecurrentLM(11, width=5, depth=2, tied=tied)
    variables = drawn(model, jnp.asarray(IDS))
    whole = model.apply(variables, jnp.asarray(IDS))
    assert whole.shape == (B, T, 11)
    logits, state = model.apply(variables, jnp.asarray(IDS[:, :2]), state=model.start(B))
    again, _ = model.apply(variables, jnp.asarray(IDS[:, 2:]), state=detach(state))
    found = jnp.concatenate([logits, again], 1)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    later = IDS.copy()
    later[:, 3:] = (later[:, 3:] + 1) % 11
    moved = model.apply(variables, jnp.asarray(later))
    np.testing.assert_array_equal(moved[:, :3], whole[:, :3])
    assert (moved[:, 3] != whole[:, 3]).any()
    assert ("head" in variables["params"]) != tied
    (pair, inside) = model.apply(
        variables, jnp.asarray(IDS), state=model.start(B), intermediates=True
    )
    np.testing.assert_allclose(pair[0], whole, rtol=1e-6)
    assert inside["hidden"].shape == (B, T, 5)


def test_published_sizes():
    """Zaremba et al.: 2 layers of 200, 650, 1500; the medium model is known as 20M, large 66M."""
    found = {}
    for size in ("small", "medium", "large"):
        model = RecurrentLM.from_size(size, vocabulary=10_000)
        made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        found[size] = sum(math.prod(x.shape) for x in jax.tree.leaves(made))
    assert found == {"small": 4_651_600, "medium": 19_775_200, "large": 66_022_000}
    for size, d, wanted in (("adding", 2, 70_369), ("copying", 1, 12_530)):  # 70K in the paper
        made = jax.eval_shape(TCN.from_size(size).init, jax.random.key(0), jnp.ones((1, 2, d)))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(made)) == wanted
    with pytest.raises(KeyError, match="RecurrentLM has no size 'huge'; there are 'small'"):
        RecurrentLM.from_size("huge", vocabulary=9)


@pytest.mark.parametrize(("kernel", "levels"), [(2, 1), (3, 2), (2, 3)])
def test_receptive_field_is_where_the_gradient_ends(kernel, levels):
    reach = receptive_field(kernel, levels)
    model, x = TCN(1, channels=(4,) * levels, kernel=kernel), jnp.ones((1, reach + 3, 2))
    variables = jax.tree.map(jnp.abs, drawn(model, x))  # every relu is open
    seen = jax.grad(lambda x: model.apply(variables, x).sum())(x)[0].any(-1)
    assert seen.tolist() == [False] * 3 + [True] * reach


def test_no_output_of_a_tcn_sees_a_later_step():
    model, x = TCN(2, channels=(4, 4), kernel=3, pool="each"), jnp.asarray(X[:1])
    variables = jax.tree.map(jnp.abs, drawn(model, x))  # every relu is open
    slope = jax.jacrev(lambda x: model.apply(variables, x)[0].sum(-1))(x)[:, 0]  # [t t d]
    above = np.triu(np.ones((T, T), bool), 1)
    assert not slope[above].any()
    assert slope[np.eye(T, dtype=bool)].any(-1).all()


def test_probe_looks_into_models():
    model = CLASSIFIERS["last both ways"]
    variables = drawn(model, jnp.asarray(X))
    norms = probe(model, variables, jnp.sum, jnp.asarray(X), MASK)
    assert sorted(norms) == ["layers/layers_0/backward/h", "layers/layers_0/forward/h"]
    assert all((norm > 0).tolist() == MASK.tolist() for norm in norms.values())


@pytest.mark.parametrize(
    ("model", "args", "error", "message"),
    [
        (RecurrentClassifier(0), (X,), ValueError, "classes is 0, expected an integer >= 1"),
        (RecurrentClassifier(3, depth=0), (X,), ValueError, "depth is 0, expected an integer"),
        (RecurrentClassifier(3, layer="lstm"), (X,), TypeError, "layer is 'lstm', expected a fu"),
        (RecurrentClassifier(3, pool="first"), (X,), ValueError, "pool is 'first', expected one"),
        (RecurrentClassifier(3, dropout=1), (X,), ValueError, "dropout is 1, expected a share"),
        (RecurrentClassifier(3), (X[..., 0],), ValueError, "x has shape (3, 6), expected [b t d]"),
        (RecurrentClassifier(3), (X, MASK[:, 1:]), ValueError, "mask has shape (3, 5), expected"),
        (RecurrentClassifier(3, vocabulary=9), (X[..., 0],), TypeError, "expected integer ids"),
        (RecurrentClassifier(3, vocabulary=9), (IDS,), ValueError, "but the vocabulary has 9 row"),
        (RecurrentLM(9), (IDS,), ValueError, "but the vocabulary has 9 rows (0 to 8)"),
        (RecurrentLM(9), (IDS[0],), ValueError, "RecurrentLM: tokens has shape (6,), expected"),
        (RecurrentLM(11), (IDS, None, ()), ValueError, "state has 0 parts, expected 2"),
        (TCN(3, pool="mean"), (X,), ValueError, "TCN: pool is 'mean', expected one of last, eac"),
        (TCN(3, channels=24), (X,), TypeError, "TCN: channels is 24, expected integers >= 1"),
        (TCN(3, kernel=0), (X,), ValueError, "TCN: kernel is 0, expected an integer >= 1"),
        (TCN(3), (X[..., 0],), ValueError, "TCN: x has shape (3, 6), expected [b t d]"),
    ],
)
def test_mistakes(model, args, error, message):
    with pytest.raises(error) as caught:
        model.init(jax.random.key(0), *args)
    assert message in str(caught.value)


def test_traced_ids_outside_the_vocabulary_give_nan():
    model = RecurrentLM(11, width=5)
    variables = drawn(model, jnp.asarray(IDS))
    y = jax.jit(model.apply)(variables, jnp.asarray([[1, 11, 2]]))
    assert np.isfinite(y[:, 0]).all()
    assert np.isnan(y[:, 1:]).all()


def test_the_experiment_runs_at_toy_size(tmp_path):
    experiment = load("vanishing_gradient")
    counts = {}
    for name, model in experiment.models().items():
        made = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 5, 2)))
        counts[name] = sum(math.prod(x.shape) for x in jax.tree.leaves(made))
    assert max(counts.values()) / min(counts.values()) < 1.025, counts
    config = experiment.Config(length=8, seeds=2, batch_size=4, steps=2, test=20, devices=1)
    table = experiment.main(config, tmp_path / "run")
    assert [row["cell"] for row in table] == ["rnn", "rnn", "lstm", "lstm", "gru", "gru"]
    assert sum(bool(row["chosen"]) for row in table) == 3
    norms = json.loads((tmp_path / "run" / "probe.json").read_text())
    runs = [run for when in norms.values() for cell in when.values() for run in cell]
    assert len(runs) == 2 * 3 * 2
    assert all(len(run) == 8 and run[-1] == 1 for run in runs)
    assert (tmp_path / "run" / "vanishing_gradient.png").stat().st_size < 60_000


def test_a_layer_that_is_no_class_is_named():
    model = RecurrentLM(11, width=8, layer=GRU(8))
    with pytest.raises(TypeError, match=r"expected a function of the width .*not an instance"):
        model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
