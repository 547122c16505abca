"""The loop adds no numerics: fit is a plain loop of jax and optax, bit by bit."""

import pytest

from reliability import parity


@pytest.mark.parametrize("count", [3, pytest.param(6, marks=pytest.mark.nightly)])
def test_fit_is_the_plain_loop(count):
    found = parity.plain_loop(count=count, seed=0)
    assert not found["failures"], found
    assert found["count"] == count
    assert found["steps"] == 100


def test_the_comparison_notices_a_loss_a_millionth_larger(monkeypatch):
    init, losses = parity.PLAIN["bandit"]

    def louder(*inputs):
        each, carry = losses(*inputs)
        return each * 1.000001, carry

    monkeypatch.setattr(parity, "PLAIN", {"bandit": (init, louder)})
    found = parity.plain_loop(count=1, seed=0, steps=5)
    assert len(found["failures"]) == 2, found


def test_a_model_learns_32_examples_by_heart():
    found = parity.overfit(count=1, seed=0)
    assert not found["failures"], found


@pytest.mark.nightly
def test_six_models_learn_32_examples_by_heart():
    found = parity.overfit(count=6, seed=0)
    assert not found["failures"], found
