"""Products with the Hessian, the GGN and the Fisher matrix, against the matrices themselves.

The Hessian's reference is torch's dense one, or differences of gradients. That of the others is
built from the Jacobian, output by output, and the loss's derivatives in closed form. Where theory
says that two matrices are equal, both are compared. In float64, unless a test says so.
"""

import copy
import functools
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lca_widgets.curvature.lanczos import spectral_density, top_eigenvalues, trace
from lca_widgets.curvature.operators import fisher, ggn, hessian
from lca_widgets.models import mlp

N = 10


class Tied(nn.Module):
    """A weight used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


class WithUnused(nn.Module):
    """A layer that is never called."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 3)
        self.used = nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)
    )


def frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


MODELS = {  # model, shape of a sample
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "in-place relu": (lambda: mlp(4, 3, depth=3, width=5), (4,)),
    "frozen weight": (frozen, (4,)),
    "tied weights": (Tied, (4,)),
    "unused layer": (WithUnused, (4,)),
    "convolution, batch norm": (conv, (1, 3, 3)),
    "convolution, batch norm in eval": (lambda: conv().eval(), (1, 3, 3)),
    "batch norm": (lambda: mlp(4, 3, depth=3, width=5, norm="batch"), (4,)),
}
LOSSES = {
    "ce": nn.CrossEntropyLoss(),
    "mse": nn.MSELoss(),
    "bce": nn.BCEWithLogitsLoss(),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def problem(name, loss="ce", dtype=torch.float64):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)  # what eval mode normalises with
        if isinstance(module, nn.ReLU):
            module.inplace = True
    x = torch.randn(N, *shape, dtype=torch.float64)
    y = {
        "ce": torch.randint(3, (N,)),
        "mse": torch.randn(N, 3, dtype=torch.float64),
        "bce": torch.rand(N, 3, dtype=torch.float64),
    }[loss]
    return model.to(dtype), x.to(dtype), y if loss == "ce" else y.to(dtype)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def dense(operator):
    return operator @ torch.eye(operator.dimension, dtype=operator.dtype)


def dense_hessian(model, loss_fn, x, y):
    model = copy.deepcopy(model)
    parameters = trainable(model)
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        values = {
            name: piece.view_as(p)
            for (name, p), piece in zip(parameters.items(), flat.split(sizes), strict=True)
        }
        return loss_fn(functional_call(model, values, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def jacobian(model, x):
    """[N, outputs, d], one output of one sample after the other."""
    model = copy.deepcopy(model)
    parameters = list(trainable(model).values())
    output = model(x)
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    number, parameters, retain_graph=True, materialize_grads=True
                )
            ]
        )
        for number in output.flatten()
    ]
    return torch.stack(rows).view(*output.shape, -1), output.detach()


def loss_derivatives(loss, output, y):
    """∇l_n, ∇²l_n and E[∇l_n ∇l_nᵀ] over the model's labels, in closed form."""
    o = output.shape[1]
    if loss == "ce":
        p = output.softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return p - nn.functional.one_hot(y, o), curvature, curvature
    if loss == "bce":
        p = output.sigmoid()
        return (p - y) / o, torch.diag_embed(p * (1 - p)) / o, torch.diag_embed(p * (1 - p)) / o**2
    unit = torch.eye(o).double().expand(len(output), o, o)
    return 2 * (output - y) / o, 2 * unit / o, 2 * unit / o**2  # y ~ N(f, 1/2)


def assert_close(actual, expected, tolerance=1e-10):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def assert_symmetric(operator):
    v = torch.randn(operator.dimension, 4).double()
    forms = v.T @ (operator @ v)
    assert_close(forms, forms.T)


# The matrices


@functools.cache
def definitions(name, loss):
    model, x, y = problem(name, loss)
    j, output = jacobian(model, x)
    gradient, curvature, moment = loss_derivatives(loss, output, y)
    return {
        "hessian": dense_hessian(model, LOSSES[loss], x, y),
        "ggn": torch.einsum("nad,nab,nbe->de", j, curvature, j) / N,
        "exact": torch.einsum("nad,nab,nbe->de", j, moment, j) / N,
        "empirical": torch.einsum("nad,na,nb,nbe->de", j, gradient, gradient, j) / N,
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_each_matrix_is_that_of_its_definition(name, loss, dtype):
    model, x, y = problem(name, loss, dtype)
    operators = {
        "hessian": hessian(model, LOSSES[loss], (x, y)),
        "ggn": ggn(model, LOSSES[loss], (x, y)),
        "exact": fisher(model, LOSSES[loss], (x, y), fisher="exact"),
        "empirical": fisher(model, LOSSES[loss], (x, y)),
    }
    for kind, expected in definitions(name, loss).items():
        v = torch.randn(len(expected), 4, dtype=torch.float64)
        product = operators[kind] @ v.to(dtype)
        assert product.dtype == operators[kind].dtype == dtype
        assert_close(product.double(), expected @ v.to(dtype).double(), TOLERANCE[dtype])


def test_the_empirical_fisher_is_the_second_moment_of_each_samples_own_gradient():
    model, x, y = problem("tanh")
    gradients = []
    for x_n, y_n in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(x_n[None]), y_n[None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    g = torch.stack(gradients)
    assert_close(dense(fisher(model, nn.CrossEntropyLoss(), (x, y))), g.T @ g / N)


def test_the_sampled_fisher_is_the_exact_one_on_average_and_the_same_for_one_seed():
    model, x, y = problem("tanh")
    arguments = (model, nn.CrossEntropyLoss(), (x, y))
    v = torch.randn(ggn(*arguments).dimension).double()
    exact = fisher(*arguments, fisher="exact") @ v
    sampled = [fisher(*arguments, fisher="sampled", seed=seed) @ v for seed in range(225)]
    assert torch.equal(sampled[0], fisher(*arguments, fisher="sampled", seed=0) @ v)
    assert not torch.equal(sampled[0], sampled[1])
    mean, deviation = torch.stack(sampled).mean(0), torch.stack(sampled).std(0) / 15
    assert ((mean - exact).abs() <= 5 * deviation + 1e-12).all()


def test_sampled_labels_differ_between_batches_and_stay_between_products():
    model, x, y = problem("tanh")
    operator = fisher(model, nn.CrossEntropyLoss(), [(x, y), (x, y)], fisher="sampled")
    v = torch.randn(operator.dimension).double()
    with operator:
        assert torch.equal(operator @ v, operator @ v)
    alone = fisher(model, nn.CrossEntropyLoss(), (x, y), fisher="sampled")
    assert not torch.allclose(operator @ v, alone @ v)


# Where theory says what they are


@pytest.mark.parametrize("outputs", [1, 3])
def test_of_a_linear_model_with_squared_error_hessian_and_ggn_are_the_input_moment(outputs):
    torch.manual_seed(0)
    x, y = torch.randn(N, 4).double(), torch.randn(N, outputs).double()
    model = nn.Linear(4, outputs, bias=False).double()
    expected = torch.kron(torch.eye(outputs).double(), 2 / outputs * x.T @ x / N)
    assert_close(dense(hessian(model, nn.MSELoss(), (x, y))), expected)
    assert_close(dense(ggn(model, nn.MSELoss(), (x, y))), expected)


def test_layer_blocks_of_a_deep_linear_networks_ggn_are_kronecker_products():
    torch.manual_seed(0)
    model = mlp(4, 3, depth=3, width=5, activation="linear").double()
    x, y = torch.randn(N, 4).double(), torch.randn(N, 3).double()
    w1, w2, w3 = (p.detach() for p in model.parameters())
    blocks = {"linear1": (w3 @ w2, x), "linear2": (w3, x @ w1.T),
              "linear3": (torch.eye(3).double(), x @ w1.T @ w2.T)}  # fmt: skip
    for layer, (after, inputs) in blocks.items():
        expected = torch.kron(after.T @ after, inputs.T @ inputs / N) * 2 / 3
        assert_close(dense(ggn(model, nn.MSELoss(), (x, y), layers=[layer])), expected)


@pytest.mark.parametrize("name", MODELS)
def test_of_cross_entropy_the_exact_fisher_is_the_ggn(name):
    model, x, y = problem(name)
    arguments = (model, nn.CrossEntropyLoss(), (x, y))
    assert_close(dense(fisher(*arguments, fisher="exact")), dense(ggn(*arguments)))


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_the_loss_s_reduction_does_not_matter(kind):
    model, x, y = problem("batch norm")
    make = {"hessian": hessian, "ggn": ggn, "fisher": fisher}[kind]
    matrices = [
        dense(make(model, nn.CrossEntropyLoss(reduction=r), (x, y))) for r in ("mean", "sum")
    ]
    summed = functools.partial(nn.functional.cross_entropy, reduction="sum")
    own = [
        dense(make(model, lambda f, y: LOSSES["ce"](f, y), (x, y), reduction="mean")),
        dense(make(model, summed, (x, y), reduction="sum")),
    ]
    for matrix in [matrices[1], *own]:
        assert_close(matrix, matrices[0])


# Parameters and data


@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_layers_pick_their_rows_and_columns_in_the_models_order(make):
    model, x, y = problem("tied weights")
    everything = make(model, LOSSES["ce"], (x, y))
    assert list(everything.parameters) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert everything.shape == (35, 35)
    last = make(model, LOSSES["ce"], (x, y), layers=["last"])
    assert list(last.parameters) == ["last.weight", "last.bias"]
    assert_close(dense(last), dense(everything)[20:, 20:])
    both = make(model, LOSSES["ce"], (x, y), layers=["last", "first"])
    assert_close(dense(both), dense(everything))


def test_a_layer_that_contains_others_stands_for_all_of_them():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    operator = ggn(model, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)), layers=["0"])
    assert list(operator.parameters) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]


@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_a_loss_without_curvature_or_influence_gives_zeros(make):
    model, x, y = problem("unused layer")
    unused = make(model, LOSSES["ce"], (x, y), layers=["unused"])
    assert torch.equal(dense(unused), torch.zeros(9, 9).double())
    if make is not fisher:  # linear in the outputs, which are linear in the weights
        linear = make(model, lambda f, y: f.sum(), (x, y), reduction="sum")
        assert not dense(linear).any()


@pytest.mark.parametrize("make", [hessian, ggn, fisher])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batches_count_by_their_samples(make, reduction):
    model, x, y = problem("tanh")
    loss = nn.CrossEntropyLoss(reduction=reduction)
    v = torch.randn(43, 2).double()
    whole = make(model, loss, (x, y)) @ v
    parts = [(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])]
    assert_close(make(model, loss, parts) @ v, whole)
    assert_close(make(model, loss, [(x, y)]) @ v, whole)
    data = torch.utils.data.TensorDataset(x, y)
    shuffled = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    assert_close(make(model, loss, shuffled) @ v, whole)


def test_shuffled_batches_with_batch_norm_are_the_same_in_every_product():
    model, x, y = problem("batch norm")
    data = torch.utils.data.TensorDataset(x, y)
    operator = hessian(model, LOSSES["ce"], torch.utils.data.DataLoader(data, 4, shuffle=True))
    assert_symmetric(operator)
    assert top_eigenvalues(operator, tolerance=1e-6).values.item() > 0


def test_the_product_is_that_of_the_present_parameters():
    model, x, y = problem("tanh")
    operator = hessian(model, LOSSES["ce"], (x, y))
    dense(operator)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert_close(dense(operator), dense_hessian(model, LOSSES["ce"], x, y))


# Models whose usual kernels have no second derivative, and random ones


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.block(x).mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


@pytest.mark.parametrize("make", [Attention, Recurrent])
def test_attention_and_recurrent_layers(make):
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(N, 5, 4).double(), torch.randint(4, (N,))
    operator = hessian(model, nn.CrossEntropyLoss(), (x, y))
    v = torch.randn(operator.dimension).double()
    assert_close(operator @ v, difference_of_gradients(model, x, y, v), 1e-6)
    arguments = (model, nn.CrossEntropyLoss(), (x, y))
    assert_close(ggn(*arguments) @ v, fisher(*arguments, fisher="exact") @ v)


def difference_of_gradients(model, x, y, v, step=1e-5):
    sizes = [p.numel() for p in model.parameters()]
    gradients = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, piece in zip(moved.parameters(), v.split(sizes), strict=True):
                p.add_(sign * step * piece.view_as(p))
        nn.functional.cross_entropy(moved(x), y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in moved.parameters()]))
    return (gradients[0] - gradients[1]) / (2 * step)


@pytest.mark.parametrize("as_batches", [False, True])
@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_dropouts_masks_are_the_same_in_every_product(make, as_batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(N, 4).double(), torch.randint(3, (N,))
    operator = make(model, LOSSES["ce"], [(x, y), (x, y)] if as_batches else (x, y))
    assert_symmetric(operator)
    v = torch.randn(operator.dimension).double()
    with operator:
        one = operator @ v
        assert torch.equal(one, operator @ v)
    torch.rand(1)  # another random state, other masks
    assert not torch.allclose(one, operator @ v)


# Measuring changes nothing


def everything_about(model):
    return [
        copy.deepcopy(dict(model.state_dict())),
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def disturbable():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    model[1].eval()  # a mode for each module
    model[1].train()
    model[3].eval()
    model[4].bias.requires_grad_(False)
    x, y = torch.randn(N, 4), torch.randint(3, (N,))
    nn.functional.cross_entropy(model(x), y).backward()
    return model, x, y


@pytest.mark.parametrize("as_batches", [False, True])
@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_measuring_changes_nothing(make, as_batches):
    model, x, y = disturbable()
    before = everything_about(model)
    data = [(x[:5], y[:5]), (x[5:], y[5:])] if as_batches else (x, y)
    with torch.no_grad():
        operator = make(model, nn.CrossEntropyLoss(), data)
        top_eigenvalues(operator, 2, max_products=200)
        trace(operator, 6)
        spectral_density(operator, probes=1, steps=4)
        assert not torch.is_grad_enabled()
    assert same(before, everything_about(model))


def test_nor_does_an_error_in_the_middle():
    model, x, y = disturbable()
    before = everything_about(model)
    operator = hessian(model, nn.CrossEntropyLoss(), (x, y))
    v = torch.ones(operator.dimension)
    with pytest.raises(ZeroDivisionError), operator:
        (operator @ v) / (1 // 0)
    with pytest.raises(ValueError, match="target"):
        hessian(model, nn.CrossEntropyLoss(), (x, y[:-1])) @ torch.ones(operator.dimension)
    assert same(before, everything_about(model))
    dense(operator)  # and it still works
    assert same(before, everything_about(model))


@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_the_graph_is_kept_inside_with_only(make):
    graphs = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.mark = set()  # lives as long as the graph
            graphs.append(weakref.ref(context.mark))
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient

    model, x, y = problem("tanh")
    model.register_forward_hook(lambda _, __, output: Marked.apply(output))
    operator = make(model, LOSSES["ce"], (x, y))
    v = torch.ones(operator.dimension).double()
    with operator:
        for _ in range(3):
            operator @ v

        assert [graph() is None for graph in graphs] == [False]

    assert graphs[0]() is None
    operator @ v
    operator @ v
    assert [graph() is None for graph in graphs] == [True] * 3


# The whole way


@pytest.mark.parametrize("make", [hessian, ggn, fisher])
@pytest.mark.parametrize("name", ["tanh", "batch norm", "convolution, batch norm in eval"])
def test_eigenvalues_of_a_network(name, make):
    model, x, y = problem(name)
    operator = make(model, LOSSES["ce"], (x, y))
    values = torch.linalg.eigvalsh(dense(operator)).flip(0)
    found = top_eigenvalues(operator, 4, tolerance=1e-11, max_products=300)
    assert_close(found.values, values[:4])
    assert trace(operator, 1000).value == pytest.approx(values.sum().item(), rel=1e-10)


def test_the_hint_is_the_gradient():
    model, x, y = problem("tanh")
    nn.functional.cross_entropy(model(x), y).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    hint = hessian(model, LOSSES["ce"], (x, y)).hint()
    assert_close(torch.nn.functional.normalize(hint, dim=0), gradient / gradient.norm())
    assert not hint.requires_grad
    assert ggn(model, LOSSES["ce"], (x, y)).hint() is None
    assert hessian(model, LOSSES["ce"], [(x, y)]).hint() is None


def test_a_diverged_network_gives_nan():
    model, x, y = problem("tanh")
    with torch.no_grad():
        model[0].weight.fill_(torch.inf)
    assert top_eigenvalues(hessian(model, LOSSES["ce"], (x, y))).values.isnan().all()


# Refusals


def test_refusals_name_argument_value_and_what_is_accepted():
    model, x, y = problem("tanh")
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"layers must be among '0', '1', '2'; got \['fc'\]"):
        hessian(model, loss, (x, y), layers=["fc"])
    with pytest.raises(ValueError, match=r"trainable parameters, got none in layers \['1'\]"):
        hessian(model, loss, (x, y), layers=["1"])
    with pytest.raises(ValueError, match="trainable parameters, got none in ReLU"):
        ggn(nn.ReLU(), loss, (x, y))
    with pytest.raises(ValueError, match="fisher must be one of 'empirical', 'exact', 'sampled'"):
        fisher(model, loss, (x, y), fisher="true")
    with pytest.raises(ValueError, match="seed must be between 0 and"):
        fisher(model, loss, (x, y), seed=-1)
    operator = hessian(model, loss, (x, y))
    with pytest.raises(ValueError, match=r"vector must have shape \[43\] or \[43, m\], got \[42\]"):
        operator @ torch.ones(42)
    with pytest.raises(ValueError, match="data has no batch"):
        hessian(model, loss, []) @ torch.ones(43)


@pytest.mark.parametrize("make", [ggn, fisher])
def test_only_the_hessian_takes_outputs_that_are_no_tensor(make):
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    def loss(output, target):
        return nn.functional.cross_entropy(output[0], target)

    _, x, y = problem("tanh")
    model = Pair(4, 3).double()
    assert dense(hessian(model, loss, (x, y), reduction="mean")).any()
    with pytest.raises(TypeError, match="model must return one tensor, got tuple"):
        make(model, loss, (x, y)) @ torch.ones(15)


def test_the_buffers_of_a_loss_are_put_back():
    class Centred(nn.Module):
        """Keeps a running mean of what it has seen, as self-distillation losses do."""

        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(()))

        def forward(self, output, target):
            self.centre.add_(output.detach().mean())
            return nn.functional.cross_entropy(output, target)

    loss, model = Centred(), nn.Linear(3, 2)
    data = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for make in (hessian, ggn, fisher):
        operator = make(model, loss, data)
        operator @ torch.ones(operator.dimension)
    assert loss.centre == 0
