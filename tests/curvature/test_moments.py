"""How exact sums of products are, on values that round to one side, and at what scale."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lca_widgets.curvature.layers import channel_moment_sum
from lca_widgets.curvature.moments import exact_products, mixed, relative_cut, second_moment_sum
from lca_widgets.curvature.patches import ConvGeometry, patch_moment_sum


def softmax_gradients(generator, n, d):
    labels = torch.randint(d, (n,), generator=generator)
    return torch.full((n, d), 1 / d) - nn.functional.one_hot(labels, d)


def standardised_categories(generator, n, d):
    categories = torch.randint(5, (n, d // 5 + 1), generator=generator)
    rows = nn.functional.one_hot(categories, 5).flatten(1)[:, :d].float()
    return (rows - rows.mean(0)) / rows.std(0)


def normalised_background(generator, *shape):
    strokes = torch.rand(shape, generator=generator)
    return torch.where(strokes < 0.8, -0.4242, 3 * strokes)


def raised(generator, *shape):
    return torch.relu(torch.randn(shape, generator=generator)) + 0.3


def low_rank(generator, n, d):
    factors = torch.randn(n, d // 4 + 1, generator=generator), torch.randn(d // 4 + 1, d)
    return factors[0] @ factors[1] + 1


def each_twice(generator, n, d):
    return torch.randn(n, (d + 1) // 2, generator=generator).repeat(1, 2)[:, :d]


ROWS = [
    softmax_gradients,
    standardised_categories,
    normalised_background,
    raised,
    low_rank,
    each_twice,
]


# Channels that repeat make zero eigenvalues.
def repeated(generator, n, channels, *size):
    return raised(generator, n, (channels + 1) // 2, *size).repeat(1, 2, 1, 1)[:, :channels]


# So do the gradients of a softmax at each pixel: one for every tap.
def softmax_pixels(generator, n, channels, *size):
    gradients = softmax_gradients(generator, n * math.prod(size), channels)
    return gradients.view(n, *size, channels).movedim(-1, 1)


def constant(_, *shape):
    return torch.full(shape, 0.7)


IMAGES = [repeated, softmax_pixels, normalised_background, raised, constant]


def assert_noise_below_the_cut(measured, exact, wide):
    measured, exact = torch.linalg.eigvalsh(measured), torch.linalg.eigvalsh(exact)
    largest = exact.max()
    assert (measured - exact).abs().max() <= 3e-6 * largest
    zeros = exact < 1e-12 * largest
    assert (measured[zeros] <= relative_cut(torch.float32, wide=wide) * largest).all()


# All have zero eigenvalues but normalised_background and raised; softmax gradients have one.
@pytest.mark.parametrize("n", [1437, 5000])
@pytest.mark.parametrize("width", [3, 10, 64, 65, 100, 256])
@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_the_noise_of_float32_rows_is_below_the_cut(make, width, n):
    rows = make(torch.Generator().manual_seed(0), n, width)
    exact = rows.double().T @ rows.double()
    assert_noise_below_the_cut(second_moment_sum(rows), exact, wide=width <= 64)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((64, 2, 28, 28), 3),
        ((64, 16, 32, 32), 3),
        ((64, 64, 8, 8), 3),
        ((32, 32, 16, 16), 5),  # errors that many taps share would add up
        ((8, 24, 64, 64), 3),  # too few samples at a time to mix
        ((40, 70, 4, 4), 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", IMAGES, ids=lambda make: make.__name__)
def test_the_noise_of_float32_images_is_below_the_cut(make, shape, kernel):
    images = make(torch.Generator().manual_seed(0), *shape)
    geometry = ConvGeometry.of(nn.Conv2d(shape[1], 2, kernel, padding=kernel // 2))
    for moment in (
        lambda x: channel_moment_sum(x, groups=1),
        lambda x: patch_moment_sum(x, geometry, shape[2:]),
    ):
        assert_noise_below_the_cut(moment(images), moment(images.double()), wide=False)


def test_nor_is_it_above_where_blas_adds_up_otherwise():
    """Every processor has other kernels; MKL has some that all of them share."""
    if os.environ.get("MKL_CBWR"):
        pytest.skip("runs with other kernels already")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "below_the_cut", __file__]
    done = subprocess.run(
        command, env=os.environ | {"MKL_CBWR": "COMPATIBLE"}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("n", [1, 15, 16, 100])
def test_mixing_rows_leaves_their_moment_alone(n):
    rows = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(rows).mT @ mixed(rows), rows.mT @ rows)
    assert mixed(rows).shape == rows.shape
    assert n == 1 or not torch.equal(mixed(rows), rows)
    assert mixed(rows.double()).equal(rows.double())


def test_mixing_takes_no_part_in_the_callers_random_state():
    before = torch.get_rng_state()
    mixed(torch.ones(171, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("width", [8, 100])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 2.0**-41, 2.0**41, 1e30, 3e38])
def test_no_scale_over_or_underflows(scale, width):
    rows = torch.rand(50, width, generator=torch.Generator().manual_seed(0)) * scale
    exact = rows.double().T @ rows.double()
    torch.testing.assert_close(second_moment_sum(rows), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_callers_matmul_precision_is_set_aside_and_put_back(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with exact_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
