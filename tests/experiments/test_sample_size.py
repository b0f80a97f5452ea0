"""κ_p against the number of samples: what is too large, infinite, and how far the band reaches."""

import functools
import math

import pytest
import torch

from lca_widgets.data import digits
from lca_widgets.experiments import SampleSizeSettings, sample_size
from lca_widgets.experiments.sample_size import sample_sizes


@functools.cache
def measured(**settings):
    return list(sample_size(SampleSizeSettings(**settings)))


def last(**settings):
    """The largest sample alone."""
    [measurement] = measured(steps=0, **settings)
    return measurement


def test_the_first_layers_moment_is_that_of_the_images():
    m = last(samples=300)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))
    x = digits().train.x[order].double()
    values = torch.linalg.eigvalsh(x[:300].T @ x[:300] / 300).flip(0)
    assert torch.allclose(torch.tensor(m.eigenvalues).double(), values, atol=1e-10)
    assert m.kappa.estimate == pytest.approx((values[0] / values[51]).item(), rel=1e-9)
    every = torch.linalg.eigvalsh(x.T @ x / 1437).flip(0)
    assert m.kappa_all == pytest.approx((every[0] / every[51]).item(), rel=1e-9)
    assert (m.n, m.n_all, m.dimension) == (300, 1437, 64)


def test_fewer_samples_than_the_quantile_needs_make_kappa_infinite():
    for m in measured(layer=3, p=0.5):
        assert math.isinf(m.kappa.estimate) == (m.n < 32)
        assert m.rank <= m.n
    assert m.overstatement == pytest.approx(1, rel=1e-9)


def test_as_many_samples_as_dimensions_overstate_kappa_80_several_fold():
    for seed in range(3):
        assert last(layer=3, samples=64, seed=seed).overstatement > 4
        assert 1 < last(layer=3, samples=512, seed=seed).overstatement < 1.3


def test_lambda_max_needs_far_fewer_samples():
    for seed in range(3):
        m = last(layer=3, samples=64, seed=seed)
        assert 0.6 < m.lambda_max.estimate / m.lambda_max_all < 1.6


def test_the_band_narrows_and_holds_the_value_of_all_samples():
    run = [m for m in measured(layer=3) if m.n >= 256]
    widths = [m.kappa.high / m.kappa.low for m in run]
    assert widths[-1] < 1.5 < widths[0]
    assert sum(m.kappa.low <= m.kappa_all <= m.kappa.high for m in run) >= 0.7 * len(run)


def test_with_bn_every_sample_size_sees_the_statistics_of_all():
    small, whole = (last(layer=2, norm="batch", samples=n, width=16) for n in (100, 1437))
    assert small.kappa_all == whole.kappa_all
    assert small.lambda_max_all != last(layer=2, samples=100, width=16).lambda_max_all


def test_sizes_rise_in_equal_ratios_and_every_one_is_a_record():
    assert sample_sizes(16, 1437, 2) == [16, 152, 1437]
    assert [m.training.step for m in measured(steps=2)] == [0, 1, 2]
    assert [m.n for m in measured(steps=2)] == [16, 152, 1437]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 5}, "layer must be between 1 and 4, got 5"),
        ({"p": 0.0}, r"p must be between 0\.01 and 1, got 0\.0"),
        ({"samples": 15}, "samples must be between 16 and 1437, got 15"),
        ({"steps": 201}, "steps must be between 0 and 200, got 201"),
        ({"depth": 0}, "depth must be between 1 and 20, got 0"),
        ({"width": 1}, "width must be between 2 and 256, got 1"),
        ({"activation": "gelu"}, "activation must be one of .*, got 'gelu'"),
        ({"norm": "instance"}, "norm must be one of .*, got 'instance'"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_settings_that_are_not_accepted_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        SampleSizeSettings(**settings)
