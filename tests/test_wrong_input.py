"""Data and batches that cannot be right: refused with field, value and remedy, before compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from tests.mistakes import first, fit, labelled, nan, refused, run, start, task

DATA = {
    "no data": (
        lambda: lambda: nk.data.arrays(np.zeros((0, 3), np.float32), batch_size=2),
        ValueError,
        ["x has shape (0, 3)", "0 examples", "at least 1", "check the path"],
    ),
    "no batch, check": (
        lambda: lambda: nk.check(task(), []),
        ValueError,
        ["no batch", "path", "generator"],
    ),
    "no batch, run": (lambda: run(train=[]), ValueError, ["no batch", "path", "generator"]),
    "no batch, fit": (lambda: fit([], steps=3), ValueError, ["after 0 of 3 steps", "re-iterable"]),
    "no batch, evaluate": (
        lambda: lambda: nk.evaluate(task(), [])({}, {}),
        ValueError,
        ["split='test'", "no batch", "path", "generator"],
    ),
    "no batch, predict": (
        lambda: lambda: nk.predict(nk.models.Linear(3), {}, {}, []),
        ValueError,
        ["no batch", "path", "generator"],
    ),
    "batch above the data": (
        lambda: lambda: nk.data.arrays(first()["x"], batch_size=9),
        ValueError,
        ["batch_size is 9", "8 examples", "smaller"],
    ),
    "float labels": (
        lambda: start(batch=first(y=np.zeros(8, np.float32))),
        TypeError,
        ["labels is float32 of shape (8,)", "expected integers (8,)", "labels.astype(int)"],
    ),
    "labels (n, 1), data": (
        lambda: lambda: nk.data.arrays(first()["x"], first()["y"][:, None], batch_size=4),
        ValueError,
        ["y has shape (8, 1)", "(8,)", "y[:, 0]"],
    ),
    "labels (n, 1), init": (
        lambda: start(batch=first(y=first()["y"][:, None])),
        ValueError,
        ["labels has shape (8, 1)", "expected (8,)", "labels[:, 0]"],
    ),
    "label = classes": (
        lambda: start(batch=first(y=np.full(8, 3, np.int32))),
        ValueError,
        ["from 3 to 3", "3 classes (0..2)", "subtract the minimum or widen"],
    ),
    "label -1": (
        lambda: start(batch=first(y=np.arange(8, dtype=np.int32) % 3 - 1)),
        ValueError,
        ["from -1 to 1", "(0..2)", "subtract the minimum"],
    ),
    "label = classes, later": (
        lambda: lambda: nk.check(task(), labelled(0, 1, 2, 3)),
        ValueError,
        ["from 0 to 3", "(0..2)", "widen"],
    ),
    "label -1, later": (
        lambda: run(train=labelled(0, 1, 2, -1)),
        ValueError,
        ["from -1 to 2", "(0..2)", "subtract the minimum"],
    ),
    "one-hot of wrong width": (
        lambda: start(batch=first(y=np.zeros((8, 4), np.float32))),
        ValueError,
        ["labels is float32 of shape (8, 4)", "(8, 3)", "need the same shape"],
    ),
    "one-hot of integers": (
        lambda: start(batch=first(y=np.zeros((8, 3), np.int32))),
        ValueError,
        ["labels has shape (8, 3)", "expected (8,)", "labels.astype(jnp.float32)"],
    ),
    "images unscaled, data": (
        lambda: lambda: nk.data.arrays(np.full((4, 2, 2), 255, np.uint8), batch_size=2),
        TypeError,
        ["x is uint8", "255..255", "(x / 255).astype(np.float32)"],
    ),
    "images unscaled, init": (
        lambda: start(batch=first(x=np.zeros((8, 3), np.uint8))),
        TypeError,
        ["x is uint8[8, 3]", "0..255", "divide by 255"],
    ),
    "fields image and label": (
        lambda: start(batch={"image": first()["x"], "label": first()["y"]}),
        KeyError,
        ["['image', 'label']", "needs 'x'", "rename the field, or say supervised(..., x=..., y="],
    ),
    "only the label missing": (
        lambda: run(train=[{"x": first()["x"]}]),
        KeyError,
        ["['x']", "needs 'y'", "rename"],
    ),
    "NaN": (lambda: start(batch=first(x=nan())), ValueError, ["'x'", "NaN", "row 5", "drop them"]),
    "inf": (lambda: run(train=[first(x=nan(np.inf))]), ValueError, ["'x'", "infinity", "row 5"]),
    "NaN, data": (
        lambda: lambda: nk.data.arrays(nan(), batch_size=2),
        ValueError,
        ["x has 1 NaN", "row 5", "drop or fill"],
    ),
    "all masked": (
        lambda: start(batch=first(mask=np.zeros(8, np.float32))),
        ValueError,
        ["batch['mask']", "all 8", "masked out", "drop"],
    ),
    "empty batch": (lambda: start(batch=first(0)), ValueError, ["empty", "'x': 0", "drop"]),
    "ragged batch": (
        lambda: start(batch=first(y=np.zeros(7, np.int32))),
        ValueError,
        ["differ in length", "'x': 8", "'y': 7", "cut or complete"],
    ),
    "batch is a tuple": (
        lambda: start(batch=(1, 2)),
        TypeError,
        ["a batch is tuple", "mapping", '{"x": ..., "y": ...}'],
    ),
    "text": (
        lambda: start(batch=first(x=np.array(["a"] * 8))),
        TypeError,
        ["batch['x']", "<U1", "expected numbers", "encode"],
    ),
    "scalar field": (
        lambda: start(batch=first(t=np.float32(1))),
        ValueError,
        ["batch['t']", "scalar", "[b ...]", "np.full"],
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_mistake(name):
    refused(*DATA[name])


def test_data_that_end_in_the_middle():
    with pytest.raises(ValueError) as caught:
        fit((first() for _ in range(2)), steps=5)()
    assert "ended after 2 of 5 steps" in str(caught.value)
    assert "re-iterable such as a list" in str(caught.value)


def test_other_data_than_those_of_the_run(tmp_path):
    options = {"steps": 2, "folder": tmp_path / "a"}
    run(train=nk.data.arrays(**first(), batch_size=4, seed=0), **options)()
    with pytest.raises(ValueError) as caught:
        run(train=nk.data.arrays(**first(), batch_size=4, seed=7), **options)()
    assert "seed was 0, is now 7" in str(caught.value)
    assert "use the same data, or another folder" in str(caught.value)


def test_nothing_left_but_masks_in_evaluation():
    masked = [first(mask=np.zeros(8, np.float32))] * 2
    params, carry = task().init(jax.random.key(0), first())
    with pytest.raises(ValueError, match="every example is masked out"):
        nk.evaluate(task(), masked)(params, carry)


def test_no_gradient_reaches_a_tensor_is_told():
    goal = nk.objective(
        lambda key, b: {"used": jnp.ones(()), "spare": jnp.ones(())},
        lambda p, b, key: p["used"] * b["x"],
    )
    lines = nk.check(goal, [{"x": np.linspace(0, 1, 4, dtype=np.float32)}])
    assert lines[-1] == "!!  no gradient reaches spare (1 tensors)"


def test_check_marks_inputs_far_from_unit_scale():
    lines = nk.check(task(), [first(x=1000 * first()["x"])])
    assert lines[0].startswith("!!  x float32[8,3]")
    assert lines[0].endswith("scale it")
    lines = nk.check(task(), [first(x=np.ones((8, 3), np.float32))])
    assert lines[0].startswith("!!  x")


def test_check_stops_at_a_first_loss_that_is_not_finite():
    broken = task(loss=lambda o, y: jnp.log(0 * o[:, 0]) + 0 * o[:, 0])
    with pytest.raises(ValueError, match=r"loss is -inf before the first step; look at inputs"):
        nk.check(broken, [first()])
