"""Σ_x and Σ_g against their definition, one sample at a time, and the paper's exact facts.

The reference differentiates each sample's own loss in a call of its own, in float64; it shares no
code with the capture. Where batch normalisation couples the samples, g_n is defined as N · ∂L/∂h_n.
"""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from lca_widgets.curvature import FactorCapture, LayerFactors, layer_spectra
from lca_widgets.models import mlp

N, CLASSES = 12, 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Sequence(nn.Module):
    """Two layers applied at each of T positions, one to their mean."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 4, bias=False)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(1, -2).mean(1))


def feed_forward():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False), nn.Tanh(),
        nn.Linear(5, CLASSES),
    )  # fmt: skip


CASES = {  # model, shape of one sample
    "feed-forward, in-place ReLU": (feed_forward, (4,)),
    "three positions a sample": (Sequence, (3, 4)),
    "two by three positions": (Sequence, (2, 3, 4)),
}


def problem(case, dtype=torch.float64):
    make, shape = CASES[case]
    torch.manual_seed(0)
    model = make().to(dtype)
    return model, torch.randn(N, *shape, dtype=dtype), torch.randint(CLASSES, (N,))


def capture(model, x, y, reduction="mean"):
    with FactorCapture(model, reduction=reduction) as watched:
        nn.functional.cross_entropy(model(x), y, reduction=reduction).backward()
    return {layer.name: layer for layer in watched.take()}


def per_sample(model, x, y):
    """For each layer, its inputs [N, T, d_in] and gradients [N, T, d_out] of each sample's loss."""
    model = copy.deepcopy(model).double()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for x_n, y_n in zip(x.double(), y, strict=True):
        record: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(_, inputs, output, *, name, record=record):
            # The output is passed on as a copy, which an in-place activation may overwrite.
            record[name] = (inputs[0].clone(), output)
            return output.clone()

        handles = [
            m.register_forward_hook(functools.partial(keep, name=name))
            for name, m in layers.items()
        ]
        loss = nn.functional.cross_entropy(model(x_n[None]), y_n[None])
        gradients = torch.autograd.grad(loss, [output for _, output in record.values()])
        for (name, (inputs, _)), gradient in zip(record.items(), gradients, strict=True):
            seen[name].append((inputs[0].reshape(-1, inputs.shape[-1]),
                               gradient[0].reshape(-1, gradient.shape[-1])))  # fmt: skip
        for handle in handles:
            handle.remove()
    return {
        name: (torch.stack([a for a, _ in pairs]).detach(), torch.stack([g for _, g in pairs]))
        for name, pairs in seen.items()
    }


def definition(inputs, gradients):
    """The docstring's sums, one outer product after the other."""
    n, t, _ = inputs.shape
    sigma_x = sum(torch.outer(r, r) for sample in inputs for r in sample) / (n * t)
    sigma_g = sum(torch.outer(r, r) for sample in gradients for r in sample) / n
    return sigma_x, sigma_g


def assert_close(actual, expected, tolerance):
    """Compare within ``tolerance`` times the largest entry."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_factors_are_the_moments_of_per_sample_quantities(case, reduction, dtype):
    model, x, y = problem(case, dtype)
    expected = per_sample(model, x, y)
    measured = capture(model, x, y, reduction)
    assert list(measured) == list(expected)
    for name, layer in measured.items():
        sigma_x, sigma_g = definition(*expected[name])
        assert_close(layer.input_moment, sigma_x, TOLERANCE[dtype])
        assert_close(layer.grad_moment, sigma_g, TOLERANCE[dtype])
        assert layer.input_moment.dtype == layer.grad_moment.dtype == torch.float64
        assert layer.n == N


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_with_batch_norm_in_train_mode_g_is_n_times_the_batch_loss_gradient(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)
    ).to(dtype)
    x, y = torch.randn(N, 4, dtype=dtype), torch.randint(CLASSES, (N,))
    measured = capture(model, x, y)["0"]

    twin = copy.deepcopy(model).double()
    h = twin[0](x.double())
    loss = nn.functional.cross_entropy(twin[3](torch.relu(twin[1](h))), y)
    [gradient] = torch.autograd.grad(loss, h)
    assert_close(
        measured.grad_moment, definition(h[:, None], N * gradient[:, None])[1], TOLERANCE[dtype]
    )


def test_two_batches_give_the_mean_of_their_factors_weighted_by_their_samples():
    model, x, y = problem("three positions a sample")
    one, two = capture(model, x[:4], y[:4]), capture(model, x[4:], y[4:])
    with FactorCapture(model) as watched:
        for part in (slice(None, 4), slice(4, None)):
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
    for layer in watched.take():
        a, b = one[layer.name], two[layer.name]
        assert_close(layer.input_moment, (4 * a.input_moment + 8 * b.input_moment) / 12, 1e-12)
        assert_close(layer.grad_moment, (4 * a.grad_moment + 8 * b.grad_moment) / 12, 1e-12)
        assert layer.n == 12


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_batch_norm_two_batches_give_the_factors_of_all_samples_at_once(reduction):
    model, x, y = problem("feed-forward, in-place ReLU")
    whole = capture(model, x, y, reduction)
    with FactorCapture(model, reduction=reduction) as watched:
        for part in (slice(None, 4), slice(4, None)):
            loss = nn.functional.cross_entropy(model(x[part]), y[part], reduction=reduction)
            loss.backward()
    for layer in watched.take():
        assert_close(layer.input_moment, whole[layer.name].input_moment, 1e-10)
        assert_close(layer.grad_moment, whole[layer.name].grad_moment, 1e-10)


def test_take_starts_afresh():
    model, x, y = problem("feed-forward, in-place ReLU")
    alone = capture(model, x[4:], y[4:])
    with FactorCapture(model) as watched:
        nn.functional.cross_entropy(model(x[:4]), y[:4]).backward()
        watched.take()
        nn.functional.cross_entropy(model(x[4:]), y[4:]).backward()
        for layer in watched.take():
            assert torch.equal(layer.input_moment, alone[layer.name].input_moment)
            assert torch.equal(layer.grad_moment, alone[layer.name].grad_moment)


def test_take_after_a_forward_pass_alone_names_what_is_missing():
    model, x, _ = problem("feed-forward, in-place ReLU")
    with FactorCapture(model) as watched:
        model(x)
        with pytest.raises(RuntimeError, match=r"forward and a backward pass .* '0', '2', '4'"):
            watched.take()


def test_a_forward_pass_without_backward_pass_leaves_no_trace_in_later_results():
    model, x, y = problem("feed-forward, in-place ReLU")
    expected = capture(model, x, y)
    watched = FactorCapture(model)
    with watched:
        model(1000 * x)
    with watched:
        nn.functional.cross_entropy(model(x), y).backward()
    for layer in watched.take():
        assert layer.n == N
        assert torch.equal(layer.input_moment, expected[layer.name].input_moment)


def test_take_between_a_forward_and_its_backward_pass_leaves_that_batch_to_the_next():
    model, x, y = problem("feed-forward, in-place ReLU")
    expected = capture(model, 2 * x, y)
    with FactorCapture(model) as watched:
        nn.functional.cross_entropy(model(x), y).backward()
        loss = nn.functional.cross_entropy(model(2 * x), y)
        assert watched.take()[0].n == N
        loss.backward()
        for layer in watched.take():
            assert layer.n == N
            assert torch.equal(layer.input_moment, expected[layer.name].input_moment)


def test_a_second_backward_pass_over_the_same_graph_counts_once():
    model, x, y = problem("feed-forward, in-place ReLU")
    expected = capture(model, x, y)["0"]
    with FactorCapture(model) as watched:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
    assert torch.equal(watched.take()[0].grad_moment, expected.grad_moment)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_input_gives_non_finite_moments_and_no_error(value):
    model, x, y = problem("feed-forward, in-place ReLU")
    x[0, 0] = value
    measured = capture(model, x, y)
    assert not measured["0"].input_moment.isfinite().all()
    assert all(layer.grad.diverged for layer in layer_spectra(list(measured.values())))


def test_the_cut_follows_the_precision_of_the_activations():
    cuts = {
        dtype: capture(*problem("three positions a sample", dtype))["first"].cut
        for dtype in TOLERANCE
    }
    assert cuts == {torch.float64: 1e-12, torch.float32: 1e-7}


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        FactorCapture(feed_forward(), reduction="none")


def test_where_all_inputs_are_one_the_layer_block_is_the_kronecker_product():
    # E[(x xᵀ) ⊗ (g gᵀ)] factorises exactly for a constant x: independence holds.
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES, bias=False).double()
    x = torch.randn(1, 4, dtype=torch.float64).expand(N, 4)
    y = torch.randint(CLASSES, (N,))
    inputs, gradients = per_sample(model, x, y)[""]
    vectors = torch.einsum("nti,ntj->nij", inputs, gradients).reshape(N, -1)
    [layer] = layer_spectra(list(capture(model, x, y).values()))
    block = torch.linalg.eigvalsh(vectors.T @ vectors / N).flip(0)
    torch.testing.assert_close(layer.kronecker.eigenvalues[:2], block[:2])


# Two exact scaling theorems, W_k → a_k W_k, without and with batch normalisation.

FACTORS = (0.5, 3.0, 0.25, 2.0)


def scaled(model, factors, mu=1.0):
    """λ_max(Σ_x) and λ_max(Σ_g) of every layer after scaling the weights, loss times μ."""
    torch.manual_seed(1)
    x, targets = torch.randn(64, 6).double(), torch.randn(64, CLASSES).double()
    with torch.no_grad():
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.mul_(factor)
    with FactorCapture(model) as watched:
        # A linear loss: its gradient with respect to the outputs does not see their scale.
        (mu * (model(x) * targets).sum(dim=1).mean()).backward()
    spectra = layer_spectra(watched.take())
    return [s.input.lambda_max for s in spectra], [s.grad.lambda_max for s in spectra]


def product(values):
    return functools.reduce(lambda a, b: a * b, values, 1.0)


def test_plain_relu_scaling_reaches_every_later_input_and_every_earlier_gradient():
    build = functools.partial(mlp, 6, CLASSES, depth=4, width=8, seed=3)
    x, g = scaled(build().double(), (1, 1, 1, 1))
    x_hat, g_hat = scaled(build().double(), FACTORS, mu=5.0)
    for k in range(4):
        assert x_hat[k] == pytest.approx(product(FACTORS[:k]) ** 2 * x[k], rel=1e-10)
        assert g_hat[k] == pytest.approx((5 * product(FACTORS[k + 1 :])) ** 2 * g[k], rel=1e-10)


def test_batch_norm_scaling_stays_within_its_layer():
    def build():
        model = mlp(6, CLASSES, depth=4, width=8, seed=3, norm="batch").double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eps = 1e-300  # exact only with ε = 0, which this is in float64
        return model

    factors = (*FACTORS[:3], 1.0)  # nothing normalises the last layer
    x, g = scaled(build(), (1, 1, 1, 1))
    x_hat, g_hat = scaled(build(), factors)
    for k in range(4):
        assert x_hat[k] == pytest.approx(x[k], rel=1e-10)
        assert g_hat[k] == pytest.approx(g[k] / factors[k] ** 2, rel=1e-10)


def trace_ratios(init, seed):
    """Squared magnitude of the 6th layer's input over the first's, and of the gradients back."""
    torch.manual_seed(1000 + seed)  # another stream than the weights', or both correlate
    model = mlp(128, 128, depth=6, width=128, init=init, seed=seed)
    x, targets = torch.randn(2, 64, 128)
    with FactorCapture(model) as watched:
        (model(x) * targets).sum(dim=1).mean().backward()
    layers: list[LayerFactors] = watched.take()
    return [
        layers[-1].input_moment.trace() / layers[0].input_moment.trace(),
        layers[0].grad_moment.trace() / layers[-1].grad_moment.trace(),
    ]


@pytest.mark.parametrize(("init", "factor"), [("lecun", 1 / 6), ("he", 1.0)])
def test_a_relu_layer_multiplies_squared_magnitudes_in_both_directions_by(init, factor):
    # The mean over all weights is exact; one network of this width is off by a third in five
    # layers, 32 networks by a fifteenth, and their fifth root, one layer, by less than two percent.
    ratios = torch.tensor([trace_ratios(init, seed) for seed in range(32)]).mean(dim=0)
    for per_layer in (ratios ** (1 / 5)).tolist():
        assert per_layer == pytest.approx(factor, rel=0.06)


def test_an_orthogonal_linear_network_is_an_isometry():
    torch.manual_seed(0)
    model = mlp(16, 16, depth=8, width=16, init="orthogonal", activation="linear").double()
    x, targets = torch.randn(2, 40, 16, dtype=torch.float64)
    with FactorCapture(model) as watched:
        (model(x) * targets).sum(dim=1).mean().backward()
    first, *others = layer_spectra(watched.take())
    for layer in others:  # the initialiser draws in float32
        torch.testing.assert_close(
            layer.input.eigenvalues, first.input.eigenvalues, rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            layer.grad.eigenvalues, first.grad.eigenvalues, rtol=1e-5, atol=0
        )
