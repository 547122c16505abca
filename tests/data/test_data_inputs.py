"""Bad input: each raises at once, naming field, value, what is allowed and the remedy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nnkit.data import arrays

X = np.ones((4, 2), np.float32)
NAN = np.array([[1.0, 2], [np.nan, np.inf], [1, 1], [1, 1]])

CASES = {
    "empty": ({"x": X[:0]}, ValueError, r"x has shape \(0, 2\), 0 examples.*check"),
    "empty mapping": ({"x": {}}, ValueError, r"no fields.*at least one.*pass"),
    "batch too large": (
        {"batch_size": 5},
        ValueError,
        r"batch_size is 5, but data has only 4 examples; use a smaller batch_size, at most 4",
    ),
    "batch 0": ({"batch_size": 0}, ValueError, r"batch_size is 0, expected 1 to 4; 32"),
    "batch -3": ({"batch_size": -3}, ValueError, r"batch_size is -3, expected 1 to 4"),
    "batch 2.0": ({"batch_size": 2.0}, TypeError, r"batch_size is 2\.0, expected an int from 1"),
    "batch '2'": ({"batch_size": "2"}, TypeError, r"batch_size is '2', expected an int"),
    "batch True": ({"batch_size": True}, TypeError, r"batch_size is True, expected an int"),
    "lengths": ({"y": [0, 1, 2]}, ValueError, r"y has 3 examples, but x has 4.*cut or complete"),
    "NaN": ({"x": NAN}, ValueError, r"x has 2 NaN or inf of 8 values \(first in row 1\).*drop"),
    "NaN in y": ({"y": [0.0, 1, 2, np.nan]}, ValueError, r"y has 1 NaN.*row 3"),
    "labels (N,1)": (
        {"y": np.zeros((4, 1), int)},
        ValueError,
        r"y has shape \(4, 1\), expected \(4,\).*pass y\[:, 0\]",
    ),
    "uint8": (
        {"x": np.full((4, 8, 8, 1), 255, np.uint8)},
        TypeError,
        r"x is uint8, range 255\.\.255, expected scaled floats; scale it: \(x / 255\)",
    ),
    "uint8 by name": ({"x": {"image": np.zeros((4, 8, 8), np.uint8)}}, TypeError, r"image / 255"),
    "strings": ({"x": list("abcd")}, TypeError, r"x has dtype <U1 \(first value .*'a'.*token"),
    "bytes": ({"y": [b"a"] * 4}, TypeError, r"y has dtype .S1.*np.unique"),
    "objects": ({"x": [{}, {}, {}, {}]}, TypeError, r"x has dtype object.*leave it out"),
    "None": ({"x": [None] * 4}, TypeError, r"x has dtype object \(first value None\)"),
    "dates": ({"x": np.zeros(4, "M8[s]")}, TypeError, r"x has dtype datetime64"),
    "ragged": ({"x": [[1, 2], [3]]}, ValueError, r"x is ragged.*pad the rows"),
    "ragged arrays": (
        {"x": np.array([np.ones(2), np.ones(3)], object)},
        ValueError,
        r"x is ragged.*one shape.*pad or resize",
    ),
    "generator": ({"x": (v for v in X)}, TypeError, r"x is a generator.*np\.stack\(list\(x\)\)"),
    "nested": ({"x": {"x": {"a": X}}}, TypeError, r"x is a mapping.*a name of its own"),
    "scalar": ({"x": 3.0}, ValueError, r"x is a scalar.*x\[None\]"),
    "int64": ({"y": [0, 1, 2, 2**31]}, ValueError, r"y has values 0\.\.2147483648.*np\.unique"),
    "uint64": ({"x": np.full(4, 2**63, np.uint64)}, ValueError, r"x has values 92233.*renumber"),
    "float64": ({"x": np.full(4, 1e300)}, ValueError, r"x has the value 1e\+300.*rescale"),
    "mask of ints": ({"mask": [1, 0, 1, 1]}, ValueError, r"mask is int64 .*float or bool.*name"),
    "mask of rank 2": ({"mask": np.ones((4, 2))}, ValueError, r"mask is float64.*\(4,\)"),
    "seed -1": ({"seed": -1}, ValueError, r"seed is -1, expected 0 to 4294967295"),
    "seed large": ({"seed": 2**32}, ValueError, r"seed is 4294967296"),
    "seed 0.5": ({"seed": 0.5}, TypeError, r"seed is 0\.5, expected an int"),
    "shuffle": ({"shuffle": "yes"}, TypeError, r"shuffle is 'yes', expected True or False"),
    "y twice": ({"x": {"x": X}, "y": [0] * 4}, TypeError, r"y was given beside a mapping.*put y"),
    "field twice": ({"x": {"z": X}, "z": X}, TypeError, r"'z' was given twice.*drop one"),
    "name": ({"x": {3: X}}, TypeError, r"a field is named 3, expected a string"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_a_remedy(case):
    options, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        arrays(**{"x": X, "batch_size": 2, **options})


def test_dtypes_on_the_way_in():
    one = {
        "a": np.float64([1, 2]),
        "b": np.int64([1, -(2**31)]),
        "c": [True, False],
        "d": jnp.ones(2, jnp.bfloat16),
        "e": np.uint32([2**32 - 1, 0]),
        "f": np.complex128([1j, 2]),
        "y": np.uint8([3, 255]),
    }
    batches = arrays(one, batch_size=2, shuffle=False)
    kinds = {k: str(s.dtype) for k, s in batches.spec.items()}
    assert kinds == {
        "a": "float32",
        "b": "int32",
        "c": "bool",
        "d": "bfloat16",
        "e": "uint32",
        "f": "complex64",
        "y": "int32",
    }
    batch = next(iter(batches))
    assert batch["b"].tolist() == [1, -(2**31)]
    assert batch["y"].tolist() == [3, 255]
    assert "a was float64, converted to float32" in batches.notes
    assert len(batches.report) == 7


def test_labels_as_pictures_and_tables_of_bytes_pass():
    x = np.ones((2, 4, 4, 1), np.float32)
    assert arrays(x, np.zeros((2, 4, 4), np.uint8), batch_size=1).spec["y"].dtype == np.int32
    assert arrays(np.zeros((2, 9), np.uint8), batch_size=1).spec["x"].dtype == np.uint8
    assert arrays(x, np.ones((2, 1)), batch_size=1).spec["y"].shape == (1, 1)


def test_batches_are_frozen():
    batches = arrays(X, batch_size=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batches.seed = 3
