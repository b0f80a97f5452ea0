"""Exact blocks against dense matrices of per-sample gradients from separate backward passes."""

import functools

import pytest
import torch
from torch import nn

from lca_widgets.curvature import (
    compare_blocks,
    exact_blocks,
    kronecker_factors,
    layer_spectra,
)
from lca_widgets.models import mlp

N, CLASSES = 5, 3
LABELS = torch.arange(N) % CLASSES


class TwiceAndSequence(nn.Module):
    """One layer at two positions a sample, called twice; the head at one."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))).mean(1))


class Frames(nn.Module):
    """A convolution that sees the frames of all samples as one batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):  # [N, F, 2, L]
        frames = torch.tanh(self.conv(x.flatten(0, 1))).mean(-1)
        return self.head(frames.unflatten(0, x.shape[:2]).sum(1))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, groups=2, bias=False),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, CLASSES),
    )


CASES = {  # model, shape of a sample
    "one position": (functools.partial(mlp, 6, CLASSES, depth=3, width=5), (6,)),
    "positions, a module called twice": (TwiceAndSequence, (2, 4)),
    "frames as a batch": (Frames, (3, 2, 4)),
    "convolutions": (convolutions, (2, 6, 6)),
}


def problem(case, dtype=torch.float64):
    torch.manual_seed(0)
    make, shape = CASES[case]
    return make().to(dtype), torch.randn(N, *shape, dtype=dtype)


def weighted_gradients(model, x, fisher):
    """Per-sample gradients of each parameter, one row a sample and label, times √p of the label."""
    rows = []
    for n in range(N):
        labels = LABELS[n : n + 1] if fisher == "empirical" else torch.arange(CLASSES)
        for label in labels:
            output = model(x[n : n + 1])
            loss = nn.functional.cross_entropy(output, label[None])
            weight = 1.0 if fisher == "empirical" else output.softmax(1)[0, label].item() ** 0.5
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            rows.append([weight * g.flatten() for g in gradients])
    names = [name for name, _ in model.named_parameters()]
    return {
        name: torch.stack(column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def dense(gradients, names):
    """Eigenvalues of the dense second moment over some parameters, descending."""
    j = torch.cat([gradients[name] for name in names], dim=1)
    return torch.linalg.eigvalsh(j.T @ j / N).flip(0)


def assert_same_spectrum(spectrum, expected, tolerance):
    assert spectrum.dimension == len(expected)
    values = torch.zeros_like(expected)
    values[: len(spectrum.eigenvalues)] = spectrum.eigenvalues[: len(expected)]
    assert (values - expected).abs().max() <= tolerance * expected[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_blocks_and_network_have_the_spectra_of_the_dense_matrices(case, fisher, bias):
    model, x = problem(case)
    gradients = weighted_gradients(model, x, fisher)
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS), fisher=fisher, bias=bias)
    every = [name for name in gradients if bias or name.endswith("weight")]
    assert list(blocks.layers) == [
        name.removesuffix(".weight") for name in every if name.endswith("weight")
    ]
    for layer, spectrum in blocks.layers.items():
        own = [name for name in every if name.startswith(f"{layer}.")]
        assert_same_spectrum(spectrum, dense(gradients, own), 1e-10)
    assert_same_spectrum(blocks.network, dense(gradients, every), 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_a_float32_model_has_them_within_1e_5(case):
    model, x = problem(case)
    exact = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS))
    single = exact_blocks(model.float(), nn.CrossEntropyLoss(), (x.float(), LABELS))
    for name, spectrum in [*exact.layers.items(), ("", exact.network)]:
        found = single.layers.get(name, single.network)
        assert (found.eigenvalues - spectrum.eigenvalues).abs().max() <= 1e-5 * spectrum.lambda_max


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("case", CASES)
def test_the_networks_largest_eigenvalue_lies_between_the_largest_block_and_their_sum(case, fisher):
    model, x = problem(case)
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS), fisher=fisher)
    largest = [spectrum.lambda_max for spectrum in blocks.layers.values()]
    assert max(largest) <= blocks.network.lambda_max * (1 + 1e-12)
    assert blocks.network.lambda_max <= sum(largest) * (1 + 1e-12)
    assert blocks.block_diagonal.lambda_max == max(largest)
    assert blocks.block_diagonal.trace == pytest.approx(blocks.network.trace)
    assert blocks.block_diagonal.dimension == blocks.network.dimension


def test_splitting_the_weight_changes_nothing(monkeypatch):
    model, x = problem("convolutions")
    whole = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS))
    monkeypatch.setattr("lca_widgets.curvature.blocks.VALUES", 1)
    split = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS))
    torch.testing.assert_close(split.network.eigenvalues, whole.network.eigenvalues)


def test_one_constant_input_makes_the_kronecker_approximation_exact():
    # E[(x xᵀ) ⊗ (g gᵀ)] factorises where x is the same in every sample.
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES, bias=False).double()
    x = torch.randn(1, 4, dtype=torch.float64).expand(N, 4)
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS), fisher="exact")
    factors = kronecker_factors(model, nn.CrossEntropyLoss(), (x, LABELS), fisher="exact")
    [comparison] = compare_blocks(blocks, layer_spectra(factors.layers), p=1 / 6)
    assert comparison.lambda_max_ratio == pytest.approx(1)
    assert comparison.kappa_ratio == pytest.approx(1)


def test_kronecker_differs_from_the_block_where_inputs_and_gradients_depend_on_each_other():
    model, x = problem("one position")
    data = x, LABELS
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), data)
    spectra = layer_spectra(kronecker_factors(model, nn.CrossEntropyLoss(), data).layers)
    for comparison, layer in zip(compare_blocks(blocks, spectra), spectra, strict=True):
        expected = layer.input.lambda_max * layer.grad.lambda_max
        assert comparison.lambda_max_ratio == expected / blocks.layers[layer.name].lambda_max
        assert abs(comparison.lambda_max_ratio - 1) > 0.01


def test_comparing_other_layers_is_refused():
    model, x = problem("one position")
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS), layers=["linear1"])
    spectra = layer_spectra(kronecker_factors(model, nn.CrossEntropyLoss(), (x, LABELS)).layers)
    with pytest.raises(ValueError, match=r"spectra must be of the layers \['linear1'\]"):
        compare_blocks(blocks, spectra)


def test_several_batches_are_refused():
    model, x = problem("one position")
    with pytest.raises(ValueError, match=r"batch must be one batch .* got 2"):
        exact_blocks(model, nn.CrossEntropyLoss(), [(x, LABELS), (x, LABELS)])


def test_an_input_that_is_changed_in_place_later_is_refused_by_name():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)
            self.layer.weight.requires_grad_(False)  # else autograd itself refuses

        def forward(self, x):
            x = x.clone()
            y = self.layer(x)
            x.zero_()
            return y

    with pytest.raises(RuntimeError, match="layer 'layer': its input was changed in place"):
        exact_blocks(Overwrites(), nn.CrossEntropyLoss(), (torch.randn(N, 4), LABELS))


def test_a_diverged_model_gives_diverged_spectra():
    model, x = problem("one position")
    x[0, 0] = float("nan")
    blocks = exact_blocks(model, nn.CrossEntropyLoss(), (x, LABELS))
    assert blocks.network.diverged
    assert all(spectrum.diverged for spectrum in blocks.layers.values())


def test_modules_without_a_block_are_listed_with_the_reason():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = (
                nn.Linear(4, 4),
                nn.LayerNorm(4),
                nn.Linear(4, CLASSES),
            )
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.norm(self.first(x)))

    blocks = exact_blocks(Normalised(), nn.CrossEntropyLoss(), (torch.randn(N, 4), LABELS))
    assert list(blocks.layers) == ["first", "last"]
    assert blocks.skipped == {
        "norm": "LayerNorm is neither a linear nor a convolution layer",
        "unused": "was not called as a module in the forward pass",
    }


def test_layers_that_share_a_weight_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="layers '0' and '1' share a weight"):
        exact_blocks(model, nn.CrossEntropyLoss(), (torch.randn(N, 3), LABELS))


def test_a_loss_that_reaches_no_layer_is_refused():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, CLASSES), nn.LayerNorm(CLASSES)

        def forward(self, x):
            return self.norm(self.layer(x).detach())

    for measure in (exact_blocks, kronecker_factors):
        with pytest.raises(ValueError, match="'layer' the loss does not depend on its output"):
            measure(Behind(), nn.CrossEntropyLoss(), (torch.randn(N, 4), LABELS))
