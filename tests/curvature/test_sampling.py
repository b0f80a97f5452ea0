"""Groups of samples, and intervals that hold the true value as often as they say.

The reference for the first-order errors is a bootstrap that decomposes every resample; for the
intervals it is a population whose spectrum is known.
"""

import dataclasses
import math

import pytest
import torch

from lca_widgets.curvature.sampling import (
    Interval,
    _student,
    group_moments,
    sampling_intervals,
)

CUT = 1e-12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def power_law_rows(n, d=10, seed=0):
    """Gaussian rows whose second moment has the eigenvalues 1, 1/2, …, 1/d."""
    scale = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64) * scale


def intervals_of(rows, groups=32, **settings):
    return sampling_intervals(*group_moments(rows, groups), cut=CUT, **settings)


# Groups


@pytest.mark.parametrize("shape", [(37, 4), (37, 3, 4), (37, 2, 3, 4)])
def test_groups_weighted_by_their_sizes_add_up_to_the_moment_of_all_rows(shape):
    rows = torch.randn(shape, generator=generator(), dtype=torch.float64)
    moments, sizes = group_moments(rows, groups=5)
    assert sorted(sizes) == [7, 7, 7, 8, 8]
    total = sum(size / 37 * moment for size, moment in zip(sizes, moments, strict=True))
    flat = rows.reshape(-1, 4)
    torch.testing.assert_close(total, flat.T @ flat / len(flat))


def test_with_no_more_samples_than_groups_each_is_a_group():
    rows = torch.arange(6.0).reshape(3, 2)
    moments, sizes = group_moments(rows, groups=3)
    assert sizes == [1, 1, 1]
    expected = torch.stack([torch.outer(row, row) for row in rows]).double()
    found = moments[moments[:, 1, 1].argsort()]
    torch.testing.assert_close(found, expected)


def test_the_positions_of_a_sample_stay_in_its_group():
    rows = torch.eye(6, dtype=torch.float64)[:, None].repeat(1, 5, 1)  # sample k is 5 times e_k
    moments, _ = group_moments(rows, groups=6)
    assert sorted(moment.diagonal().argmax().item() for moment in moments) == list(range(6))
    assert moments.count_nonzero() == 6


def test_ordered_rows_are_mixed():
    rows = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])  # as if sorted by class
    moments, _ = group_moments(rows, groups=4)
    assert moments.min() > 0.2
    assert moments.max() < 0.8


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_rows_that_are_no_samples_are_refused(shape):
    with pytest.raises(ValueError, match="rows must be a non-empty tensor"):
        group_moments(torch.zeros(shape))


# What the intervals say


def test_the_estimates_are_those_of_all_samples_together():
    rows = power_law_rows(101)
    intervals = intervals_of(rows, p=(0.3, 0.8))
    values = torch.linalg.eigvalsh(rows.T @ rows / 101).flip(0)
    assert intervals.lambda_max.estimate == pytest.approx(values[0].item())
    assert intervals.kappa[0.3].estimate == pytest.approx((values[0] / values[2]).item())
    assert intervals.kappa[0.8].estimate == pytest.approx((values[0] / values[7]).item())
    assert intervals.level == 0.9


def test_first_order_errors_are_those_of_a_bootstrap_that_decomposes_every_resample():
    scale = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    rows = torch.randn(4000, 4, generator=generator(), dtype=torch.float64) * scale
    moments, sizes = group_moments(rows, groups=100)
    drawn = torch.randint(100, (400, 100), generator=generator(1))
    resampled = torch.linalg.eigvalsh(moments[drawn].mean(dim=1)).flip(-1).log()
    errors = [resampled[:, 0].std().item(), (resampled[:, 0] - resampled[:, 2]).std().item()]
    intervals = sampling_intervals(moments, sizes, cut=CUT, p=(0.75,), resamples=0)
    for interval, error in zip((intervals.lambda_max, intervals.kappa[0.75]), errors, strict=True):
        half_width = math.log(interval.high / interval.low) / 2 / _student(0.9, 99)
        assert half_width == pytest.approx(error, rel=0.15)


def coverage(n, d, repetitions=40, **settings):
    """Shares of samples whose intervals hold the population's λ_max = 1 and κ_80 = 0.8·d."""
    found = [
        intervals_of(power_law_rows(n, d, seed), 16, **settings) for seed in range(repetitions)
    ]
    held = [
        (each.lambda_max.low <= 1 <= each.lambda_max.high, each.kappa[0.8].low <= 0.8 * d <=
         each.kappa[0.8].high) for each in found
    ]  # fmt: skip
    return [sum(hits) / repetitions for hits in zip(*held, strict=True)]


@pytest.mark.parametrize("samples", [2, 8, 32])
def test_intervals_hold_the_true_values_about_as_often_as_they_say(samples):
    largest, kappa = coverage(samples * 10, 10, p=(0.8,), seed=1)
    assert 0.8 <= largest <= 1
    assert 0.8 <= kappa <= 1


def test_without_resamples_the_bias_of_small_eigenvalues_stays():
    largest, kappa = coverage(20, 10, p=(0.8,), resamples=0)
    assert largest >= 0.8
    assert kappa < 0.5


def test_more_samples_and_a_lower_level_make_narrower_intervals():
    def width(interval):
        return interval.high / interval.low

    few, many = (intervals_of(power_law_rows(n)) for n in (100, 10_000))
    sure, unsure = (intervals_of(power_law_rows(100), level=level) for level in (0.99, 0.5))
    for narrow, wide in ((many, few), (unsure, sure)):
        assert width(narrow.lambda_max) < width(wide.lambda_max)
        assert width(narrow.kappa[0.5]) < width(wide.kappa[0.5])


def test_groups_count_with_their_sizes():
    numbers, sizes = torch.tensor([1.0, 2.0, 4.0, 9.0]), [4, 3, 2, 1]
    interval = sampling_intervals(numbers[:, None, None], sizes, cut=CUT).lambda_max
    assert interval.estimate == pytest.approx(2.7)  # (4·1 + 3·2 + 2·4 + 1·9) / 10
    terms = [
        (size / 10 * (x / 2.7 - 1)) ** 2 for size, x in zip(sizes, numbers.tolist(), strict=True)
    ]
    error = math.sqrt(4 / 3 * sum(terms))
    assert interval.high == pytest.approx(2.7 * math.exp(_student(0.9, 3) * error))
    assert interval.low == pytest.approx(2.7 / math.exp(_student(0.9, 3) * error))


def test_the_bias_taken_off_is_that_of_resampled_groups_of_their_sizes():
    # Diagonal moments: the spectrum of a resample is its sorted diagonal.
    sizes = [40, *[5] * 7]
    diagonals = torch.rand(8, 2, generator=generator(), dtype=torch.float64) * 3 + 0.1
    drawn = torch.randint(8, (4000, 8), generator=generator(1))
    weights = torch.tensor(sizes, dtype=torch.float64)[drawn]
    resampled = (weights[..., None] * diagonals[drawn]).sum(1) / weights.sum(1, keepdim=True)
    bias = (resampled.amax(1) / resampled.amin(1)).log().mean().item()
    moments = torch.diag_embed(diagonals)
    plain, corrected = (
        sampling_intervals(moments, sizes, cut=CUT, p=(1.0,), resamples=count).kappa[1.0]
        for count in (0, 4000)
    )
    expected = plain.high * plain.estimate / math.exp(bias)
    assert corrected.high == pytest.approx(expected, rel=0.01)
    assert corrected.high < 0.98 * plain.high


def test_few_resamples_know_the_bias_badly_and_widen_the_interval():
    def width(resamples):
        interval = intervals_of(power_law_rows(1000), p=(0.8,), resamples=resamples).kappa[0.8]
        return interval.high / interval.low

    assert width(0) < width(64) < width(2)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_kappa_does_not_depend_on_the_scale(scale):
    moments, sizes = group_moments(power_law_rows(100))
    plain = sampling_intervals(moments, sizes, cut=CUT).kappa[0.5]
    scaled = sampling_intervals(moments * scale, sizes, cut=CUT).kappa[0.5]
    assert dataclasses.astuple(scaled) == pytest.approx(dataclasses.astuple(plain), rel=1e-6)


def test_kappa_stays_at_least_one():
    intervals = intervals_of(torch.randn(200, 6, generator=generator()), p=(0.01, 0.5))
    assert intervals.kappa[0.01] == Interval(1.0, 1.0, 1.0)  # λ_max / λ_max
    assert intervals.kappa[0.5].low >= 1


def test_the_same_seed_gives_the_same_intervals_and_torchs_own_state_stays():
    before = torch.get_rng_state()
    rows = power_law_rows(100)
    first, again, other = (intervals_of(rows, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.kappa != other.kappa
    assert torch.equal(before, torch.get_rng_state())


# Where there is nothing to say


def test_kappa_past_the_rank_is_unknown():
    intervals = intervals_of(power_law_rows(6), p=(0.9,))  # of 10 dimensions
    assert intervals.kappa[0.9] == Interval(math.inf, 1.0, math.inf)
    assert intervals.lambda_max.low < intervals.lambda_max.estimate < intervals.lambda_max.high


def test_a_rank_that_resamples_lose_leaves_kappa_without_a_lower_bound():
    interval = intervals_of(power_law_rows(10), p=(1.0,)).kappa[1.0]
    assert interval.low == 1
    assert interval.estimate < interval.high < math.inf


def test_a_moment_that_is_not_finite_gives_nan():
    moments, sizes = group_moments(power_law_rows(50))
    moments[3, 1, 2] = math.inf
    intervals = sampling_intervals(moments, sizes, cut=CUT, p=(0.5, 0.8))
    numbers = [
        dataclasses.astuple(each) for each in (intervals.lambda_max, *intervals.kappa.values())
    ]
    assert list(intervals.kappa) == [0.5, 0.8]
    assert all(math.isnan(number) for triple in numbers for number in triple)


def test_zero_moments_have_a_largest_eigenvalue_of_zero():
    intervals = sampling_intervals(torch.zeros(5, 3, 3), [2] * 5, cut=CUT)
    assert intervals.lambda_max == Interval(0.0, 0.0, 0.0)
    assert intervals.kappa[0.5] == Interval(math.inf, 1.0, math.inf)


# Arguments

GOOD = {"moments": torch.eye(2).expand(5, 2, 2), "sizes": [1] * 5, "cut": 0.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"moments": torch.eye(2)}, r"moments must have the shape \[K, d, d\], got \(2, 2\)"),
        ({"moments": torch.zeros(5, 2, 3)}, r"moments must have the shape .* got \(5, 2, 3\)"),
        ({"moments": torch.zeros(3, 2, 2)}, "moments must hold at least 4 groups, got 3"),
        ({"sizes": [1] * 4}, "sizes must be 5 numbers, one a group, got 4"),
        ({"sizes": [1, 1, 0, 1, 1]}, r"sizes\[2\] must be at least 1, got 0"),
        ({"cut": 1.0}, "cut must be at least 0 and below 1, got 1.0"),
        ({"level": 1}, "level must be above 0 and below 1, got 1"),
        ({"p": (0.5, 0)}, r"p must be in \(0, 1\], got 0"),
        ({"resamples": 1}, "resamples must be 0 or at least 2, got 1"),
        ({"resamples": -1}, "resamples must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        sampling_intervals(**(GOOD | wrong))


@pytest.mark.parametrize(("level", "freedom", "quantile"), [
    (0.9, 3, 2.353), (0.9, 31, 1.696), (0.95, 3, 3.182), (0.95, 10, 2.228), (0.99, 31, 2.744),
])  # fmt: skip
def test_quantiles_of_students_distribution(level, freedom, quantile):
    assert _student(level, freedom) == pytest.approx(quantile, rel=0.01)  # printed tables
