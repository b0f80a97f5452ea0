"""The factors beside those of curvlinops, another library's K-FAC, where it is installed.

Its conventions differ from ours by stated constants: with a summed loss its Σ_g is not divided by
N; a mean squared or binary error over C outputs counts C times in its Σ_g. It averages over groups
and pads circular convolutions with zeros: these are not compared. Sampled labels are random in
both, so that only their means can be.
"""

import pytest
import torch
from torch import nn

from lca_widgets.curvature import kronecker_factors
from tests.curvature.brute_force import assert_close

curvlinops = pytest.importorskip("curvlinops", reason="an optional peer")

N, CLASSES = 6, 3


class Pooled(nn.Sequential):
    """Shared over a sequence, then averaged over it."""

    def forward(self, x):
        return super().forward(x).flatten(1, -2).mean(dim=1)


class Unrolled(nn.Sequential):
    """Shared over a sequence whose every position has a label of its own."""

    def forward(self, x):
        return super().forward(x).flatten(0, -2)


class SharedThenDense(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Linear(4, 5), nn.Linear(10, CLASSES, bias=False)

    def forward(self, x):
        return self.last(torch.relu(self.shared(x)).flatten(1))


def perceptron():
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES))


MODELS = {
    "perceptron": (perceptron, (10,)),
    "without biases": (
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Sigmoid(), nn.Linear(6, CLASSES, bias=False)
        ),
        (4,),
    ),
    "convolution, then dense": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 4, padding=4 // 2), nn.ReLU(), nn.Flatten(), nn.Linear(98, CLASSES)
        ),
        (3, 6, 6),
    ),
    "convolutions, pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES),
        ),
        (3, 8, 8),
    ),
    "strided, padded, dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
            nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES),
        ),
        (2, 7, 6),
    ),
    "a shared layer, averaged": (
        lambda: Pooled(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)), (5, 4),
    ),
    "a layer shared over two dimensions": (
        lambda: Pooled(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)), (2, 3, 4),
    ),
    "a shared layer, then dense": (SharedThenDense, (2, 4)),
}  # fmt: skip

LOSSES = {"softmax": nn.CrossEntropyLoss, "squared": nn.MSELoss, "binary": nn.BCEWithLogitsLoss}


def problem(model, loss):
    make, shape = MODELS[model]
    torch.manual_seed(0)
    network = make().double()
    y = torch.randint(CLASSES, (N,))
    if loss != "softmax":
        y = torch.randn(N, CLASSES).double()
    if loss == "binary":
        y = (y > 0).double()
    return network, torch.randn(N, *shape, dtype=torch.float64), y


def theirs(model, loss_fn, batches, fisher, sharing, terms=1):
    operator = curvlinops.KFACLinearOperator(
        model, loss_fn, list(model.parameters()), batches,
        check_deterministic=False, num_data=sum(len(x) for x, _ in batches),
        num_per_example_loss_terms=terms, fisher_type=fisher, kfac_approx=sharing,
    )  # fmt: skip
    operator.compute_kronecker_factors()
    return operator._input_covariances, operator._gradient_covariances


def scale(loss, reduction, n=N):
    """What their Σ_g is multiplied by."""
    if reduction == "sum":
        return n
    return 1 if loss == "softmax" else CLASSES


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("fisher", "theirs_is"), [("empirical", "empirical"), ("exact", "type-2")])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_the_factors_are_those_of_curvlinops(model, loss, sharing, fisher, theirs_is, reduction):
    network, x, y = problem(model, loss)
    loss_fn = LOSSES[loss](reduction=reduction)
    a, g = theirs(network, loss_fn, [(x, y)], theirs_is, sharing)
    ours = kronecker_factors(network, loss_fn, (x, y), fisher=fisher, sharing=sharing).layers
    assert {layer.name for layer in ours} == set(a)
    for layer in ours:
        assert_close(layer.input_moment, a[layer.name], 1e-10)
        assert_close(layer.grad_moment * scale(loss, reduction), g[layer.name], 1e-10)


@pytest.mark.parametrize(("fisher", "theirs_is"), [("empirical", "empirical"), ("exact", "type-2")])
@pytest.mark.parametrize("model", ["perceptron", "convolutions, pooled"])
def test_the_factors_of_uneven_batches_are_those_of_curvlinops(model, fisher, theirs_is):
    network, x, y = problem(model, "softmax")
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    loss_fn = nn.CrossEntropyLoss(reduction="sum")  # its mean weighs batches by their loss's scale
    a, g = theirs(network, loss_fn, batches, theirs_is, "expand")
    for layer in kronecker_factors(network, loss_fn, batches, fisher=fisher).layers:
        assert_close(layer.input_moment, a[layer.name], 1e-10)
        assert_close(layer.grad_moment * N, g[layer.name], 1e-10)


@pytest.mark.parametrize(("fisher", "theirs_is"), [("empirical", "empirical"), ("exact", "type-2")])
def test_positions_with_labels_of_their_own_are_samples_of_their_own(fisher, theirs_is):
    torch.manual_seed(0)
    model = Unrolled(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)).double()
    x, y = torch.randn(N, 2, 4).double(), torch.randint(CLASSES, (N * 2,))
    a, g = theirs(model, nn.CrossEntropyLoss(), [(x, y)], theirs_is, "expand", terms=2)
    for layer in kronecker_factors(model, nn.CrossEntropyLoss(), (x, y), fisher=fisher).layers:
        assert layer.n == N * 2
        assert_close(layer.input_moment, a[layer.name], 1e-10)
        assert_close(layer.grad_moment, g[layer.name], 1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_labels_have_the_mean_of_curvlinops_exact_factor(loss):
    network, x, y = problem("perceptron", loss)
    loss_fn = LOSSES[loss]()
    _, g = theirs(network, loss_fn, [(x, y)], "type-2", "expand")
    draws = torch.stack([
        kronecker_factors(network, loss_fn, (x, y), fisher="sampled", seed=seed)
        .layers[0]
        .grad_moment
        for seed in range(200)
    ])  # fmt: skip
    error = draws.mean(dim=0) - g["0"] / scale(loss, "mean")
    assert (error.abs() <= 5 * draws.std(dim=0) / 200**0.5).all()  # five standard errors
