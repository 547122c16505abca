"""Numerics."""

from __future__ import annotations

from reliability import nonfinite, parity
from reliability.row import Row

__all__ = ["ROWS"]

ROWS = (
    Row(
        "NU-01",
        "Gradients are finite differences",
        tests=(
            "tests/test_layer_laws.py::test_gradients_are_finite_differences_in_float64",
            "tests/test_laws.py::test_gradients_are_finite_differences",
            "tests/losses/test_losses_classify.py::test_gradient_is_the_finite_difference",
            "tests/losses/test_losses_regress.py::test_gradient_is_the_finite_difference",
            (
                "tests/losses/test_losses_segment.py::"
                "test_gradient_is_the_finite_difference_and_void_has_none"
            ),
            "tests/losses/test_losses_forecast.py::test_gradient_is_the_finite_difference",
            "tests/losses/test_losses_sequence.py::test_ctc_gradient_is_the_finite_difference",
        ),
    ),
    Row(
        "NU-02",
        "Derivatives written by hand are those of the formula",
        tests=(
            "tests/layers/test_layers_recurrent.py::test_fast_is_plain_in_first_and_second_order",
            (
                "tests/layers/test_layers_convolution.py::"
                "test_the_gradient_in_pieces_is_plain_in_every_mode"
            ),
            "tests/layers/test_layers_attention.py::test_forms_agree_to_second_order_in_float64",
        ),
    ),
    Row(
        "NU-03",
        "Layers, models, losses and metrics are those of their references (docs/parity.md)",
        tests=(
            "tests/layers/test_parity_basic.py",
            "tests/layers/test_parity_attention.py",
            "tests/layers/test_parity_recurrent.py",
            "tests/models/test_models_parity.py",
            "tests/models/test_parity_transformers.py",
            "tests/models/test_parity_convolutional.py",
            "tests/models/test_parity_recurrent_models.py",
            "tests/models/test_parity_timeseries.py",
            "tests/models/test_parity_textcnn.py",
        ),
    ),
    Row(
        "NU-04",
        (
            "Fifty steps of nine optimizers and a schedule are those of the formula: 1e-10 in "
            "float64, 1e-5 in float32"
        ),
        tests=(
            "tests/reliability/test_numerics.py::test_fifty_steps_are_those_of_the_formula",
            "tests/optim/test_optim_schedules.py::test_by_the_formula",
        ),
    ),
    Row(
        "NU-05",
        (
            "Fit is a plain loop of jax and optax: 100 losses, parameters, carry and optimizer "
            "equal bit by bit, six kinds of model"
        ),
        run=parity.plain_loop,
        tests=(
            "tests/reliability/test_plain_loop.py::test_fit_is_the_plain_loop",
            (
                "tests/reliability/test_plain_loop.py::"
                "test_the_comparison_notices_a_loss_a_millionth_larger"
            ),
        ),
        nightly=6,
        release=6,
    ),
    Row(
        "NU-06",
        (
            "Extreme inputs have finite values and gradients in float32, bfloat16 and float16; a "
            "softmax of 65536 has no bias"
        ),
        tests=(
            (
                "tests/reliability/test_numerics.py::"
                "test_extreme_inputs_have_finite_values_and_gradients"
            ),
            "tests/reliability/test_numerics.py::test_a_softmax_of_65536_has_no_bias",
            (
                "tests/reliability/test_numerics.py::"
                "test_a_sum_of_a_thousand_tenths_does_not_stop_at_32"
            ),
            "tests/losses/test_losses_classify.py::test_finite_at_extremes",
            (
                "tests/layers/test_layers_attention.py::"
                "test_a_query_that_sees_nothing_gives_zero_and_finite_gradients"
            ),
            "tests/layers/test_layers_norms.py::test_far_from_zero_the_variance_stays_exact",
        ),
    ),
    Row(
        "NU-07",
        (
            "NaN or infinity in a batch, a gradient or a parameter, at 50 steps: raise names "
            "steps and leaf and saves nothing bad, skip is bit by bit as if the batch had not "
            "been seen, rollback goes back to the last copy three times"
        ),
        run=nonfinite.poisoned,
        tests=("tests/reliability/test_nonfinite.py",),
        nightly=150,
        release=150,
    ),
    Row(
        "NU-08",
        "Which dtype computes what, per precision: a snapshot of the program",
        tests=(
            "tests/reliability/test_numerics.py::test_the_dtypes_of_a_step",
            "tests/reliability/test_numerics.py::test_the_snapshot_would_notice",
            "tests/test_laws.py::test_half_computes_in_bfloat16_and_keeps_float32_gradients",
        ),
    ),
    Row(
        "NU-09",
        "Counts and sums are exact beyond 2^24 and 2^31",
        tests=(
            "tests/reliability/test_numerics.py::test_sums_are_exact_beyond_two_to_the_31",
            (
                "tests/reliability/test_numerics.py::"
                "test_tables_of_counts_are_exact_beyond_two_to_the_24"
            ),
            (
                "tests/reliability/test_numerics.py::"
                "test_an_update_counts_and_draws_beyond_two_to_the_24"
            ),
            (
                "tests/reliability/test_numerics.py::"
                "test_streams_of_data_and_keys_go_on_beyond_two_to_the_31"
            ),
        ),
    ),
    Row(
        "NU-10",
        "Six models learn 32 examples by heart, to a loss below 1e-3",
        run=parity.overfit,
        tests=("tests/reliability/test_plain_loop.py::test_a_model_learns_32_examples_by_heart",),
        nightly=6,
        release=6,
    ),
)
