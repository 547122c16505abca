"""Fields of a model that cannot be right: refused when it is first used, with value and remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnkit as nk
from nnkit.models import MLP, ConvNet, Linear
from tests.mistakes import descent, first, refused, start, task

X = np.zeros((2, 8, 8, 1), np.float32)
WRONG = {
    "widths 3": (MLP(widths=3), TypeError, ["MLP: widths is 3", "integers >= 1", "widths=(3,)"]),
    "widths 5, 3": (MLP(5, 3), TypeError, ["MLP: widths is 5", "list or tuple", "widths=(5,)"]),
    "widths text": (MLP("64"), TypeError, ["MLP: widths is '64'", "widths=(64, 10)"]),
    "widths None": (MLP(None), TypeError, ["MLP: widths is None", "widths=(64, 10)"]),
    "width a": (
        MLP(widths=("a", 3)),
        TypeError,
        ["MLP: widths[0] is 'a' in ('a', 3)", "an integer >= 1", "widths=(64, 10)"],
    ),
    "width 0": (MLP((8, 0)), ValueError, ["MLP: widths[1] is 0 in (8, 0)", ">= 1", "(64, 10)"]),
    "width 8.0": (MLP((8.0, 3)), TypeError, ["MLP: widths[0] is 8.0", "integer", "(64, 10)"]),
    "width True": (MLP((True, 3)), TypeError, ["widths[0] is True", "integer", "(64, 10)"]),
    "no widths": (MLP(()), ValueError, ["MLP: widths is ()", "at least one", "(64, 10)"]),
    "activation": (MLP((8, 3), "relu"), TypeError, ["activation is 'relu'", "nn.relu"]),
    "dropout 1": (MLP((8, 3), dropout=1.0), ValueError, ["dropout is 1.0", "[0, 1)", "0.5"]),
    "dropout -1": (MLP((8, 3), dropout=-1), ValueError, ["dropout is -1", "[0, 1)", "0.5"]),
    "dropout NaN": (MLP((8, 3), dropout=np.nan), ValueError, ["dropout is nan", "[0, 1)"]),
    "dropout text": (MLP((8, 3), dropout="0.5"), TypeError, ["dropout is '0.5'", "[0, 1)"]),
    "dropout_in 50": (MLP((8, 3), dropout_in=50), ValueError, ["dropout_in is 50", "[0, 1)"]),
    "Linear a": (Linear("a"), TypeError, ["Linear: width is 'a'", "integer >= 1", "width=10"]),
    "Linear 0": (Linear(0), ValueError, ["Linear: width is 0", "integer >= 1", "width=10"]),
    "Linear (3,)": (Linear((3,)), TypeError, ["Linear: width is (3,)", "integer", "width=10"]),
    "channels 8": (ConvNet(8), TypeError, ["ConvNet: channels is 8", "channels=(8,)"]),
    "channels -8": (ConvNet((8, -8)), ValueError, ["channels[1] is -8", "channels=(64, 10)"]),
    "no channels": (ConvNet(()), ValueError, ["channels is ()", "at least one"]),
    "hidden 0": (ConvNet(hidden=0), ValueError, ["ConvNet: hidden is 0", ">= 1", "hidden=10"]),
    "hidden (8,)": (ConvNet(hidden=(8,)), TypeError, ["hidden is (8,)", "integer", "hidden=10"]),
    "classes 2.5": (ConvNet(classes=2.5), TypeError, ["classes is 2.5", "integer", "classes=10"]),
    "dropout 2": (ConvNet(dropout=2), ValueError, ["ConvNet: dropout is 2", "[0, 1)", "0.5"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_field(name):
    model, kind, parts = WRONG[name]
    refused(lambda: start(descent(task(model)), first(2, x=X)), kind, parts)


def test_wrong_field_of_a_model_used_by_itself():
    with pytest.raises(TypeError, match=r"MLP: widths is 3, expected"):
        MLP(widths=3).init(jax.random.key(0), X)
    init, _ = nk.train.pair(MLP((8, 3), dropout=1))
    with pytest.raises(ValueError, match=r"MLP: dropout is 1, expected"):
        init(jax.random.key(0), X)


@pytest.mark.parametrize(
    "model",
    [MLP([4, 3]), MLP(np.array([4, 3])), MLP((np.int64(4), 3)), MLP(range(3, 5)), MLP((3,))],
    ids=["list", "array", "numpy integer", "range", "one layer"],
)
def test_every_kind_of_integers_is_taken(model):
    assert model.init_with_output(jax.random.key(0), X)[0].shape[0] == 2


@pytest.mark.parametrize("share", [0, 0.5, np.float32(0.5), jnp.float32(0.5)])
def test_every_kind_of_number_is_a_share(share):
    assert MLP((4, 3), dropout=share).init_with_output(jax.random.key(0), X)[0].shape == (2, 3)
