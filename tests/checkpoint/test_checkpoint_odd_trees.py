"""Whatever tree hypothesis thinks of comes back bit by bit, and nothing is written elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest

from nnkit.checkpoint import Checkpoints
from nnkit.core import trees

pytest.importorskip("hypothesis", reason="draws the trees")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Pair(NamedTuple):
    left: Any
    right: Any


NAMES = st.one_of(
    st.sampled_from(["", ".", "..", "/", "a/b", "a.b", "%", "%e", "%2E", "~", "\x00", "ü", "a"]),
    st.text(max_size=5, alphabet=st.characters(exclude_categories=["Cs"])),
    st.integers(0, 3).map(lambda n: "x" * 90 * n),
)
DTYPES = "bool int8 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128"
TYPES = [*DTYPES.split(), *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4)]


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "b" or dtype == ml_dtypes.int4:
        return rng.integers(0, 2, shape).astype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize  # any bits: NaN payloads, -0.0, denormals
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()


LEAVES = arrays() | st.none() | st.integers(-(2**60), 2**60) | st.booleans() | st.floats()
ODD = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(inner, max_size=2),
        st.tuples(inner),
        st.tuples(inner, inner).map(lambda both: Pair(*both)),
    ),
    max_leaves=6,
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=ODD)
def test_odd_trees_come_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("odd")
    with Checkpoints(folder) as saver:
        saver.save(0, tree)
    found = Checkpoints(folder).restore(tree).state
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert trees.digest(found) == trees.digest(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree)):
        assert type(a) is type(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    inside = {p.name for p in folder.iterdir()}
    assert inside == {"00000000", ".run"}
