"""How exact sums of products are, on values that round to one side, and at what scale."""

import pytest
import torch
from torch import nn

from lca_widgets.curvature.layers import channel_moment_sum
from lca_widgets.curvature.moments import exact_products, relative_cut, second_moment_sum
from lca_widgets.curvature.patches import ConvGeometry, patch_moment_sum


def softmax_gradients(generator, n, d):
    labels = torch.randint(d, (n,), generator=generator)
    return torch.full((n, d), 1 / d) - nn.functional.one_hot(labels, d)


def normalised_background(generator, *shape):
    strokes = torch.rand(shape, generator=generator)
    return torch.where(strokes < 0.8, -0.4242, 3 * strokes)


def raised(generator, *shape):
    return torch.relu(torch.randn(shape, generator=generator)) + 0.3


def low_rank(generator, n, d):
    factors = torch.randn(n, d // 4 + 1, generator=generator), torch.randn(d // 4 + 1, d)
    return factors[0] @ factors[1] + 1


ROWS = [softmax_gradients, normalised_background, raised, low_rank]


# Channels that repeat make zero eigenvalues.
def repeated(generator, n, channels, *size):
    return raised(generator, n, (channels + 1) // 2, *size).repeat(1, 2, 1, 1)[:, :channels]


IMAGES = [repeated, normalised_background, raised, lambda _, *shape: torch.full(shape, 0.7)]


def assert_noise_below_the_cut(measured, exact, wide):
    measured, exact = torch.linalg.eigvalsh(measured), torch.linalg.eigvalsh(exact)
    assert (measured - exact).abs().max() <= 3e-6 * exact.max()
    zeros = exact < 1e-12 * exact.max()
    assert (measured[zeros] < relative_cut(torch.float32, wide=wide) * exact.max()).all()


# All have zero eigenvalues but the two in the middle: softmax gradients one, low rank most.
@pytest.mark.parametrize("width", [3, 10, 64, 65, 100, 256])
@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_the_noise_of_float32_rows_is_below_the_cut(make, width):
    rows = make(torch.Generator().manual_seed(0), 1437, width)
    exact = rows.double().T @ rows.double()
    assert_noise_below_the_cut(second_moment_sum(rows), exact, wide=width <= 64)


@pytest.mark.parametrize(
    "shape", [(64, 1, 28, 28), (64, 3, 32, 32), (64, 16, 32, 32), (64, 64, 8, 8)], ids=str
)
@pytest.mark.parametrize("make", IMAGES, ids=["repeated", "background", "raised", "constant"])
def test_the_noise_of_float32_images_is_below_the_cut(make, shape):
    images = make(torch.Generator().manual_seed(0), *shape)
    geometry = ConvGeometry.of(nn.Conv2d(shape[1], 2, 3, padding=1))
    for moment in (
        lambda x: channel_moment_sum(x, groups=1),
        lambda x: patch_moment_sum(x, geometry, shape[2:]),
    ):
        assert_noise_below_the_cut(moment(images), moment(images.double()), wide=False)


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
