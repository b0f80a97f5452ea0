"""Centred moments, weights and rectifiers beside the factors, against their definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lca_widgets.curvature import exact_blocks, kronecker_factors, layer_spectra, measure
from tests.benchmarks.networks import resnet
from tests.curvature.brute_force import assert_close, call, outer
from tests.curvature.test_capture import hooks_on, state_of
from tests.curvature.test_factors import CASES, CONVENTIONS, EVEN_SAME, LOSS, expected, problem


def centred(vectors):
    """The two moments of one layer about their means, one outer product after the other."""
    xs = torch.cat(vectors.inputs)
    gs = torch.cat([g for [(_, g)] in vectors.gradients])
    n = len(vectors.gradients)
    sigma_x = torch.stack([outer(row) for row in xs - xs.mean(dim=0)]).mean(dim=0)
    sigma_g = torch.stack([outer(row) for row in gs - gs.mean(dim=0)]).sum(dim=0) / n
    return sigma_x, vectors.multiplier * sigma_g


def less(moment, mean):
    """The moment without its mean's part, with a group dimension."""
    moment, mean = moment.reshape(-1, *moment.shape[-2:]), mean.reshape(-1, mean.shape[-1])
    return moment - outer_each(mean)


def outer_each(mean):
    return mean.unsqueeze(-1) * mean.unsqueeze(-2)


@EVEN_SAME
@pytest.mark.parametrize(("case", "conv"), CONVENTIONS)
def test_centred_moments_are_those_about_the_means(case, conv):
    definition = expected(case, conv=conv)
    model, *batch = problem(case)
    for layer in kronecker_factors(model, LOSS, tuple(batch), conv=conv, means=True).layers:
        sigma_x, sigma_g = centred(definition[layer.name])
        assert_close(less(layer.input_moment, layer.input_mean), sigma_x, 1e-10)
        assert_close(less(layer.grad_moment, layer.grad_mean), sigma_g, 1e-9)
        assert layer.rows == sum(map(len, definition[layer.name].inputs))


def test_the_constant_of_a_bias_is_its_own_mean():
    model, *batch = problem("feed-forward, in-place ReLU")
    [layer, *_] = kronecker_factors(model, LOSS, tuple(batch), bias=True, means=True).layers
    assert layer.input_mean[-1] == 1
    assert less(layer.input_moment, layer.input_mean)[0, -1].abs().max() < 1e-15


def test_centred_spectra_are_those_of_the_centred_moments():
    model, *batch = problem("convolution 2d, grouped")
    factors = kronecker_factors(model, LOSS, tuple(batch), means=True).layers
    for layer, spectra in zip(factors, layer_spectra(factors), strict=True):
        for spectrum, moment, mean in (
            (spectra.input_centred, layer.input_moment, layer.input_mean),
            (spectra.grad_centred, layer.grad_moment, layer.grad_mean),
        ):
            values = torch.linalg.eigvalsh(less(moment, mean)).flatten().sort(descending=True)
            assert_close(spectrum.eigenvalues, values.values.clamp(min=0), 1e-12)


def test_what_the_mean_alone_makes_is_cut_off_as_noise():
    """After a constant input nothing is left but rounding, which has no rank."""
    x = torch.full((64, 100), 3.0) * torch.linspace(1, 2, 100)
    model = nn.Linear(100, 3)
    [factors] = kronecker_factors(model, LOSS, (x, torch.arange(64) % 3), means=True).layers
    [spectra] = layer_spectra([factors])
    assert spectra.input.rank == 1
    assert spectra.input_centred.rank == 0
    assert spectra.input_centred.kappa(0.5) == math.inf


def test_the_mean_of_a_large_constant_image_leaves_no_noise():
    x = torch.full((2, 3, 224, 224), 0.7)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    [factors] = kronecker_factors(model, LOSS, (x, torch.arange(2)), means=True).layers
    [spectra] = layer_spectra([factors])
    assert spectra.input.rank == 1
    assert spectra.input_centred.rank == 0


def test_an_expectation_over_labels_has_no_mean_gradient():
    model, *batch = problem("feed-forward, in-place ReLU")
    factors = kronecker_factors(model, LOSS, tuple(batch), fisher="exact", means=True).layers
    assert all(layer.grad_mean is None for layer in factors)
    assert all(spectra.grad_centred is None for spectra in layer_spectra(factors))


@pytest.mark.parametrize("options", [{"sharing": "reduce"}, {"parts": 2}], ids=str)
def test_means_of_parts_and_of_reduced_positions_are_refused(options):
    model, *batch = problem("feed-forward, in-place ReLU")
    with pytest.raises(ValueError, match="means=True"):
        kronecker_factors(model, LOSS, tuple(batch), means=True, **options)


# Weights.


def sigma_of(layer, values):
    """σ_max of W in h_group = W_group x_group."""
    if isinstance(layer, nn.Linear):
        return torch.linalg.svdvals(values)[0]
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    groups = values.chunk(layer.groups)
    return max(
        torch.linalg.svdvals((g.transpose(0, 1) if transposed else g).flatten(1))[0] for g in groups
    )


TRAINABLE = [case for case in CASES if "frozen" not in case and "normalisation" not in case]


@EVEN_SAME
@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("case", [*TRAINABLE])
def test_singular_values_of_weights_and_of_their_gradients(case, fisher):
    model, x, y = problem(case)
    measured = measure(model, LOSS, (x, y), fisher=fisher)
    loss = LOSS(call(model, x), y)
    loss.backward()
    assert measured.loss == pytest.approx(loss.item(), rel=1e-12)
    for layer in measured.layers:
        module = model.get_submodule(layer.name)
        assert layer.weight.norm == pytest.approx(module.weight.norm().item(), rel=1e-10)
        for value, of in (
            (layer.weight.sigma, module.weight),
            (layer.weight.grad_sigma, module.weight.grad),
        ):
            assert value == pytest.approx(sigma_of(module, of.detach()).item(), rel=1e-8)


def test_a_batch_in_pieces_has_the_gradient_of_the_whole():
    model, x, y = problem("feed-forward, in-place ReLU", n=12)
    whole = measure(model, LOSS, (x, y))
    pieces = measure(model, LOSS, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-12)
    for a, b in zip(whole.layers, pieces.layers, strict=True):
        assert a.weight.grad_sigma == pytest.approx(b.weight.grad_sigma, rel=1e-9)
        assert (a.units is None) == (b.units is None)
        if a.units:
            assert (a.units.dying, a.units.full) == (b.units.dying, b.units.full)


def test_a_weight_without_a_gradient_of_its_own_has_none():
    model, x, y = problem("frozen first layer, in-place ReLU")
    first, *others = measure(model, LOSS, (x, y)).layers
    assert math.isnan(first.weight.grad_sigma)
    assert first.weight.sigma > 0
    assert all(layer.weight.grad_sigma > 0 for layer in others)


def test_a_parametrised_weight_is_measured_and_its_iteration_put_back():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3))
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    before = state_of(model)
    normalised, plain = measure(model, LOSS, (x, y)).layers
    exact_blocks(model, LOSS, (x, y))
    assert state_of(model) == before
    assert 0.5 < normalised.weight.sigma < 2
    assert math.isnan(normalised.weight.grad_sigma)
    assert plain.weight.grad_sigma > 0


def test_a_weight_that_is_not_finite_shows_as_such():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    [layer] = measure(model, LOSS, (torch.ones(4, 3), torch.arange(4) % 2)).layers
    assert math.isnan(layer.weight.sigma)
    assert math.isnan(layer.weight.norm)
    assert layer.spectra.grad.diverged


# Units and inputs.


def test_layers_come_in_the_order_of_their_first_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    torch.manual_seed(0)
    batch = torch.randn(6, 4), torch.arange(6) % 3
    assert [layer.name for layer in measure(Backwards(), LOSS, batch).layers] == ["first", "last"]


def test_units_are_dying_only_if_they_are_in_every_batch():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
    y = torch.arange(4) % 2
    batches = [(torch.ones(4, 1), y), (-torch.ones(4, 1), y)]
    [first, _] = measure(model, LOSS, batches[:1]).layers
    assert (first.units.dying, first.units.full) == (0.5, 0.5)
    [first, _] = measure(model, LOSS, batches).layers
    assert (first.units.dying, first.units.full) == (0.5, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [8, 200])
def test_inputs_that_are_always_zero_or_constant_are_counted(width, dtype):
    torch.manual_seed(0)
    x = torch.randn(50, width, dtype=dtype)
    x[:, :2] = 0
    x[:, 2:5] = torch.tensor([0.1, -3.0, 1e4], dtype=dtype)
    x[0, 0] = 0
    [layer] = measure(nn.Linear(width, 2).to(dtype), LOSS, (x, torch.arange(50) % 2)).layers
    assert (layer.zero_inputs, layer.constant_inputs) == (2, 3)


def test_measuring_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 10
    LOSS(model(x), y).backward()
    before = state_of(model)
    for fisher in ("empirical", "exact", "sampled"):
        measure(model, LOSS, (x, y), fisher=fisher)
        assert state_of(model) == before
        assert hooks_on(model) == []


def test_a_forward_pass_that_fails_leaves_nothing_behind():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            self.layer(x)
            raise RuntimeError("broken off")

    model = Fails()
    with pytest.raises(RuntimeError, match="broken off"):
        measure(model, LOSS, (torch.ones(4, 3), torch.arange(4) % 2))
    assert hooks_on(model) == []
    assert torch.overrides._get_current_function_mode_stack() == []


def test_every_convolution_of_a_residual_network_has_its_rectifier():
    torch.manual_seed(0)
    layers = measure(resnet(8), LOSS, (torch.randn(8, 3, 8, 8), torch.arange(8) % 10)).layers
    assert [layer.units is not None for layer in layers] == [True] * 7 + [False]
