"""What is said about magnitudes, for every kind of profile."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lca_widgets.diagnosis import describe_magnitude, factor_per_layer, magnitude_factors
from lca_widgets.records import LayerRecord, Measurement
from lca_widgets.training import StepRecord


def measured(x, g, *, loss=1.0, step=3, diverged=False):
    """A measurement whose layers have these λ_max(Σ_x) and λ_max(Σ_g)."""
    layers = tuple(
        LayerRecord(
            layer=k, name=f"linear{k}", lambda_max_x=a, lambda_max_g=b, lambda_max=a * b,
            kappa50_x=1.0, kappa50_g=1.0, rank_x=1, rank_g=1, d_in=1, d_out=1, n=8,
            diverged=not math.isfinite(a + b),
        )
        for k, (a, b) in enumerate(zip(x, g, strict=True), start=1)
    )  # fmt: skip
    return Measurement(StepRecord(step, loss, 0.1, diverged), layers)


def geometric(factor, n=6, first=1.0):
    return [first * factor**k for k in range(n)]


FLAT = geometric(1.0)


@given(factor=st.floats(0.01, 100), first=st.floats(1e-50, 1e50), n=st.integers(2, 30))
def test_the_factor_of_a_geometric_sequence_is_its_ratio(factor, first, n):
    assert factor_per_layer(geometric(factor, n, first)) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("lost", [0.0, math.nan, math.inf, -1.0])
def test_lost_layers_take_no_part_and_the_others_keep_their_place(lost):
    assert factor_per_layer([lost, 1.0, lost, 4.0, 8.0, lost]) == pytest.approx(2)


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0, 5.0], [math.nan] * 4])
def test_fewer_than_two_values_have_no_factor(values):
    assert math.isnan(factor_per_layer(values))


def test_a_factor_beyond_the_range_of_a_float_is_infinite_or_zero():
    assert factor_per_layer([1e-300, 1e300]) == math.inf
    assert factor_per_layer([1e300, 1e-300]) == 0


def test_the_forward_factor_leaves_the_data_out_and_the_backward_factor_the_loss():
    x = [1e9, *geometric(2.0, 4)]
    g = [*geometric(1 / 3, 4), 1e9]
    forward, backward = magnitude_factors(measured(x, g))
    assert forward == pytest.approx(2)
    assert backward == pytest.approx(3)  # counted from the output to the input


@pytest.mark.parametrize(
    ("x", "g", "forward", "backward"),
    [
        (FLAT, FLAT, "is about constant (×1)", "is about constant (×1)"),
        (geometric(1 / 6), geometric(6), "shrinks 6-fold", "shrinks 6-fold"),
        (FLAT, geometric(1 / 1.5), "is about constant (×1)", "grows 1.5-fold"),
        (geometric(2), geometric(1 / 3), "grows 2-fold", "grows 3-fold"),
    ],
    ids=["constant", "vanishing", "gradient growing under BN", "exploding"],
)
def test_a_profile_in_words(x, g, forward, backward):
    assert describe_magnitude(measured(x, g)) == (
        f"At step 3, λ_max(Σ_x) {forward} per layer towards the output, "
        f"and λ_max(Σ_g) {backward} per layer towards the input."
    )


def test_the_border_between_constant_and_changing_is_a_fifth():
    assert "Σ_x) is about constant (×1.2)" in describe_magnitude(measured(geometric(1.19), FLAT))
    assert "Σ_x) grows 1.2-fold" in describe_magnitude(measured(geometric(1.21), FLAT))
    assert "Σ_x) shrinks 1.2-fold" in describe_magnitude(measured(geometric(1 / 1.21), FLAT))


def test_a_diverged_run_is_said_to_be_so_with_the_layers_that_are_lost():
    nan = math.nan
    text = describe_magnitude(
        measured([1.0, 2.0, nan, nan], [nan] * 4, loss=nan, step=17, diverged=True)
    )
    assert text == (
        "The run diverged: the loss is not finite at step 17. Σ_x is not finite in layers 3, 4. "
        "Σ_g is not finite in layers 1 to 4. Lower the learning rate or the gain."
    )


def test_a_run_may_diverge_with_finite_layers():
    text = describe_magnitude(measured(FLAT, FLAT, loss=math.inf, diverged=True))
    assert text == (
        "The run diverged: the loss is not finite at step 3. Lower the learning rate or the gain."
    )


def test_a_network_that_vanished_to_zero_is_told_from_one_that_shrinks():
    text = describe_magnitude(measured([1.0, 0.5, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]))
    assert "λ_max(Σ_x) shrinks 2-fold" in text
    assert "λ_max(Σ_g) cannot be followed" in text
    assert text.endswith("Σ_x is exactly 0 in layers 4, 5. Σ_g is exactly 0 in layers 1 to 4.")


def test_a_gradient_that_overflows_under_a_finite_loss_is_named():
    text = describe_magnitude(measured(FLAT, [math.nan, *FLAT[1:]]))
    assert text.endswith("Σ_g is not finite in layer 1.")


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_extreme_factors_end_in_no_error(factor):
    x = [1.0, 1e-150, 1e-150 * factor] if factor > 1 else [1.0, 1e150, 1e150 * factor]
    assert "Σ_x) " in describe_magnitude(measured(x, [1.0] * 3))
    assert "e+200-fold" in describe_magnitude(measured(x, [1.0] * 3))
    assert "-fold" in describe_magnitude(measured([1, 1e-300, 1e300], [1e-300, 1e300, 1]))
    assert "-fold" in describe_magnitude(measured([1, 1e300, 1e-300], [1e300, 1e-300, 1]))


def test_a_shallow_network_has_no_profile():
    text = describe_magnitude(measured([1.0, 2.0], [1.0, 2.0]))
    assert text == "Add layers to see how magnitudes change with depth."
