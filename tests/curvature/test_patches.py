"""Patch moments against their definition: the patches, built one by one, and multiplied.

Three routes that share no code: the layer's own forward pass settles what a patch is, the unfolded
patches settle the sums, and the moment must equal theirs. Errors are measured against the inputs'
magnitude. What is not seen here: errors below 1e-12 of it in float64, 1e-6 in float32.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lca_widgets.curvature import patches
from lca_widgets.curvature.patches import (
    ConvGeometry,
    patch_moment_sum,
    patch_sums,
    unfold_patches,
)

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OUT = 2  # output channels of a group

# torch's note on how it computes padding="same" for even kernels
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.fixture(params=["products", "patches"])
def route(request, monkeypatch):
    """Test both ways to the moment: the cheaper one differs little at the sizes of a test."""
    answer = request.param == "patches"
    monkeypatch.setattr(patches, "_patches_cost_less", lambda *_: answer)


def inputs(*shape, dtype=torch.float64, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def output_of(layer, x):
    with torch.no_grad():
        return layer.to(x.dtype)(x)


def weights(layer):
    """Of each group, [G, C_out/G, D], as the docstring of `unfold_patches` says."""
    weight, groups = layer.weight.detach(), layer.groups
    if layer.transposed:
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return weight.unflatten(0, (groups, -1)).flatten(2)


def definition(x, geometry, positions):
    """Σ_n Σ_t p pᵀ in float64."""
    p = unfold_patches(x.double(), geometry, positions)
    return torch.einsum("ngdt,nget->gde", p, p)


def assert_moment(layer, x, tolerance=1e-12):
    geometry, positions = ConvGeometry.of(layer), output_of(layer, x).shape[2:]
    expected = definition(x, geometry, positions)
    moment = patch_moment_sum(x, geometry, positions)
    assert moment.dtype == torch.float64
    assert moment.shape == expected.shape
    # Of the inputs' magnitude, not the moment's own: positions that read nothing but zeros.
    magnitude = (x.double() ** 2).sum(dim=(0, *range(2, x.dim()))).max()
    assert (moment - expected).abs().max() <= tolerance * magnitude


@st.composite
def layers(draw):
    """A convolution and an input for it: any that torch accepts."""
    dims = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 4 if dims < 3 else 2), each(1, 3), each(1, 3)
    groups, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = each(1, 8 if dims < 3 else 5)
    options = {"dilation": dilation, "groups": groups, "stride": stride, "dtype": torch.float64}
    if draw(st.booleans()):
        layer: nn.Module = TRANSPOSED[dims](
            groups * channels, groups * OUT, kernel, padding=each(0, 4),
            output_padding=tuple(
                draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)
            ),
            **options,
        )  # fmt: skip
    else:
        padding = draw(st.sampled_from(["same", "valid", each(0, 3)]))
        if padding == "same":
            options["stride"] = 1
        layer = CONV[dims](
            groups * channels, groups * OUT, kernel, padding=padding,
            padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
            **options,
        )  # fmt: skip
    x = inputs(draw(st.integers(1, 3)), groups * channels, *size, seed=draw(st.integers(0, 99)))
    try:
        positions = output_of(layer, x).shape[2:]
    except RuntimeError:  # a kernel or a reflection larger than the input
        assume(False)
    assume(math.prod(positions) > 0)
    return layer, x


@given(layers())
def test_the_layer_is_its_weights_times_its_patches(case):
    layer, x = case
    y = output_of(layer, x)
    p = unfold_patches(x, ConvGeometry.of(layer), y.shape[2:])
    product = torch.einsum("god,ngdt->ngot", weights(layer), p).reshape(y.shape)
    bias = layer.bias.detach().view(-1, *[1] * (y.dim() - 2))
    torch.testing.assert_close(product, y - bias, rtol=1e-12, atol=1e-12)


@given(layers())
def test_patch_sums_are_the_sums_of_the_patches(case):
    layer, x = case
    geometry, positions = ConvGeometry.of(layer), output_of(layer, x).shape[2:]
    expected = unfold_patches(x, geometry, positions).sum(dim=-1)
    torch.testing.assert_close(patch_sums(x, geometry, positions), expected, rtol=1e-12, atol=1e-12)


@given(case=layers())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_moment_is_that_of_the_patches(route, case):
    assert_moment(*case)


CASES = {
    "3×3, padded": (nn.Conv2d(4, OUT, 3, padding=1), (5, 4, 6, 7)),
    "circular padding": (nn.Conv2d(4, OUT, 3, padding=1, padding_mode="circular"), (5, 4, 6, 7)),
    "same padding, even kernel": (nn.Conv1d(2, OUT, 4, padding="same"), (3, 2, 9)),
    "1×1": (nn.Conv2d(4, OUT, 1), (5, 4, 3, 3)),
    "1×1, strided": (nn.Conv2d(4, OUT, 1, stride=2), (5, 4, 5, 4)),
    "stride 2, last column unread": (nn.Conv2d(3, OUT, 3, stride=2), (2, 3, 8, 8)),
    "stride larger than the kernel": (nn.Conv2d(3, OUT, 2, stride=3), (2, 3, 9, 11)),
    "stride and dilation share a factor": (nn.Conv2d(3, OUT, 3, 4, 2, 2), (2, 3, 13, 17)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (4, 6, 5, 5)),
    "a single position": (nn.Conv2d(2, OUT, 5), (4, 2, 5, 5)),
    "a single sample": (nn.Conv2d(3, OUT, 3, padding=1), (1, 3, 6, 6)),
    "more padding than reach": (nn.Conv2d(3, OUT, 2, padding=4), (2, 3, 4, 4)),
    "dilation beyond the border": (nn.Conv2d(3, OUT, 3, padding=6, dilation=6), (2, 3, 5, 9)),
    "three dimensions": (nn.Conv3d(2, OUT, (3, 2, 3), padding=1), (2, 2, 4, 3, 5)),
    "transposed, stride 2": (nn.ConvTranspose2d(4, OUT, 4, 2, 1), (3, 4, 5, 6)),
    "transposed, much cropped": (nn.ConvTranspose2d(3, OUT, 5, 2, 4), (2, 3, 7, 8)),
    "transposed, dilated": (nn.ConvTranspose1d(3, OUT, 4, 2, 6, dilation=2), (2, 3, 11)),
    "transposed, longer output": (nn.ConvTranspose2d(4, OUT, 3, 2, 1, 1), (3, 4, 5, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_moment_of(case, route):
    layer, shape = CASES[case]
    assert_moment(layer, inputs(*shape))
    assert_moment(layer, inputs(*shape, dtype=torch.float32), 1e-6)


def test_output_size_settles_what_a_transposed_convolution_reads(route):
    layer, x = nn.ConvTranspose1d(2, OUT, 3, stride=3, dtype=torch.float64), inputs(2, 2, 4)
    for length in (12, 13, 14):
        y = layer(x, output_size=[length]).detach()
        assert y.shape[2] == length
        geometry = ConvGeometry.of(layer)
        expected = definition(x, geometry, (length,))
        torch.testing.assert_close(patch_moment_sum(x, geometry, (length,)), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("case", ["3×3, padded", "transposed, stride 2", "1×1"])
def test_squares_that_float32_cannot_hold_are_no_harm(case, scale, route):
    layer, shape = CASES[case]
    x = inputs(*shape, dtype=torch.float32)
    geometry, positions = ConvGeometry.of(layer), output_of(layer, x).shape[2:]
    moment = patch_moment_sum(x * scale, geometry, positions) / scale**2
    expected = definition(x, geometry, positions)
    torch.testing.assert_close(moment, expected, rtol=0, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_multiplied_in_float32(dtype, route):
    layer, shape = CASES["3×3, padded"]
    x = inputs(*shape).to(dtype)
    geometry = ConvGeometry.of(layer)
    expected = definition(x, geometry, (6, 7))
    torch.testing.assert_close(
        patch_moment_sum(x, geometry, (6, 7)), expected, rtol=0, atol=1e-6 * expected.max().item()
    )
    sums = patch_sums(x, geometry, (6, 7))
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, unfold_patches(x.float(), geometry, (6, 7)).sum(dim=-1))


@pytest.mark.parametrize("case", ["3×3, padded", "depthwise", "transposed, stride 2"])
@pytest.mark.parametrize("limits", [{"ROWS": 10}, {"ROWS": 4}, {"VALUES": 1}])
def test_a_batch_larger_than_a_chunk_gives_the_same(case, limits, route, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(patches, name, value)
    layer, shape = CASES[case]
    assert_moment(layer, inputs(*shape))


def test_an_input_that_is_not_contiguous_gives_the_same(route):
    layer, x = nn.Conv2d(4, OUT, 3, padding=1), inputs(5, 4, 6, 7)
    assert_moment(layer, x.contiguous(memory_format=torch.channels_last))
    assert_moment(layer, x.transpose(2, 3))
    assert_moment(layer, x[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", CASES)
def test_a_value_that_is_not_finite_stays_in_the_moment(case, value, dtype, route):
    layer, shape = CASES[case]
    x = inputs(*shape, dtype=dtype)
    positions = output_of(layer, x).shape[2:]
    x[(0,) * len(shape)] = value
    assert not patch_moment_sum(x, ConvGeometry.of(layer), positions).isfinite().all()


def test_the_input_stays_as_it_was(route):
    for layer, shape in CASES.values():
        x = inputs(*shape, dtype=torch.float32)
        before = x.clone()
        patch_moment_sum(x, ConvGeometry.of(layer), output_of(layer, x).shape[2:])
        assert torch.equal(x, before)


@pytest.mark.parametrize("size", [8, 16])
def test_float32_noise_is_far_below_the_relative_cut(size):
    # Half of the channels are combinations of the others, and all have a mean: eigenvalues that
    # should be zero beside a λ_max that hides them. They are cut at 1e-7 λ_max.
    x = inputs(64, 4, size, size, dtype=torch.float32) + 1
    x = torch.einsum("oc,nchw->nohw", inputs(8, 4, dtype=torch.float32), x)
    geometry = ConvGeometry.of(nn.Conv2d(8, OUT, 3, padding=1))
    eigenvalues = torch.linalg.eigvalsh(patch_moment_sum(x, geometry, (size, size)))[0]
    expected = torch.linalg.eigvalsh(definition(x, geometry, (size, size)))[0]
    assert (eigenvalues - expected).abs().max() <= 5e-8 * expected[-1]


def test_a_residual_networks_convolutions_build_no_patches(monkeypatch):
    def refuse(*_):
        raise AssertionError("patches were built")

    monkeypatch.setattr(patches, "unfold_patches", refuse)
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        x = inputs(64, channels, size, size, dtype=torch.float32)
        patch_moment_sum(x, ConvGeometry.of(layer), (size, size))


def test_anything_but_a_convolution_is_refused():
    with pytest.raises(TypeError, match="expected a convolution, got Linear"):
        ConvGeometry.of(nn.Linear(2, 2))
