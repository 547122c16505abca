"""Orders of operations on a folder of checkpoints that hypothesis thinks of, and shortens."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from reliability import sequences

pytest.importorskip("hypothesis", reason="draws the orders of operations")
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(
    order=st.lists(
        st.tuples(st.sampled_from(sequences.OPERATIONS), st.integers(0, 10**6)),
        min_size=8,
        max_size=16,
    ),
    rate=st.sampled_from(["min", "max"]),
)
def test_hypothesis_finds_no_order_that_breaks_a_promise(order, rate):
    with tempfile.TemporaryDirectory() as root:
        machine = sequences.Machine(Path(root), rate)
        for operation, number in order:
            machine.do(operation, number)
        machine.close()
