"""One step on each layer's own least-squares problem is the back-propagation step."""

import pytest
import torch
from torch import nn

from lca_widgets.models import mlp
from lca_widgets.proximal import LayerProblem, layer_passes, layer_problems

loss_fn = nn.CrossEntropyLoss()


def network(norm="none"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    model = mlp(5, 3, depth=3, width=4, activation="tanh", norm=norm).double()
    return model, (x, y)


@pytest.mark.parametrize("norm", ["none", "batch-fixed"])
def test_one_step_on_the_layers_problem_is_the_back_propagation_step(norm):
    model, batch = network(norm)
    problems = layer_problems(model, loss_fn, batch, step_size=0.3)
    loss_fn(model(batch[0]), batch[1]).backward()
    assert list(problems) == ["linear1", "linear2", "linear3"]
    for name, problem in problems.items():
        weight = model.get_submodule(name).weight
        expected = weight - 0.3 * weight.grad
        assert (problem.step() - expected).abs().max() < 1e-14
        assert (problem.step() - weight).abs().max() > 1e-4


def test_the_step_is_the_gradient_step_of_its_loss_and_the_hessian_that_of_autograd():
    model, batch = network()
    problem = layer_problems(model, loss_fn, batch, step_size=0.3)["linear2"]
    weight = problem.weight.clone().requires_grad_()
    [gradient] = torch.autograd.grad(problem.loss(weight), weight)
    assert torch.allclose(problem.step(rate=0.5), problem.weight - 0.5 * gradient, atol=1e-14)
    hessian = torch.autograd.functional.hessian(problem.loss, weight.detach())
    assert torch.allclose(problem.hessian, hessian.reshape(16, 16), atol=1e-14)


def test_the_solution_is_the_step_preconditioned_by_the_input_moment():
    model, batch = network()
    problem = layer_problems(model, loss_fn, batch, step_size=0.3)["linear1"]
    least_squares = torch.linalg.lstsq(problem.inputs, problem.targets).solution.T
    assert torch.allclose(problem.solution(), least_squares, atol=1e-12)
    assert problem.loss(problem.solution()) < problem.loss(problem.step()) < problem.loss(
        problem.weight
    )  # fmt: skip


def test_rows_average_to_the_gradient_with_and_without_bn():
    for norm in ("none", "batch-fixed"):
        model, batch = network(norm)
        passes = layer_passes(model, loss_fn, batch)
        loss_fn(model(batch[0]), batch[1]).backward()
        for name, seen in passes.items():
            gradient = model.get_submodule(name).weight.grad
            assert torch.allclose(seen.rows.mean(dim=0), gradient.flatten(), atol=1e-14)


def test_a_pass_leaves_the_model_as_it_was():
    model, batch = network("batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_passes(model, loss_fn, batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("step_size", [0, -1.0, float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(step_size):
    model, batch = network()
    with pytest.raises(ValueError, match=r"^step_size must be above 0, got"):
        layer_problems(model, loss_fn, batch, step_size)


def test_a_problem_that_fits_already_does_not_move():
    weight = torch.tensor([[1.0, 2.0]])
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert torch.equal(LayerProblem(weight, x, x @ weight.T).step(), weight)


class Calls(nn.Module):
    """Two layers that are used as a function says."""

    def __init__(self, use):
        super().__init__()
        self.one, self.two = (nn.Linear(5, 5, bias=False) for _ in range(2))
        self._use = use

    def forward(self, x):
        return self._use(self, x)


@pytest.mark.parametrize(
    ("forward", "shape", "words"),
    [
        (lambda m, x: m.one(x), (4, 5), "'two' must be called once in a pass, got 0 calls"),
        (lambda m, x: m.two(m.one(m.one(x))), (4, 5), "'one' must be called once .* got 2 calls"),
        (lambda m, x: (m.one(x), m.two(x))[1], (4, 5), "'one' must influence the loss: .*"),
        (lambda m, x: m.two(m.one(x)).mean(1), (4, 3, 5), r"'one' must get .*, got \[4, 3, 5\]"),
    ],
)
def test_layers_that_are_no_one_product_a_sample_are_refused_by_name(forward, shape, words):
    batch = (torch.ones(shape), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=f"^layer {words}$"):
        layer_passes(Calls(forward), loss_fn, batch)


def test_frozen_weights_and_convolutions_are_refused_by_name():
    model, batch = network()
    model.linear2.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^layer 'linear2' must have a trainable weight"):
        layer_passes(model, loss_fn, batch)
    model = nn.Sequential(nn.Conv1d(1, 2, 3, bias=False), nn.Flatten())
    with pytest.raises(ValueError, match=r"^layer '0' must be linear, got Conv1d$"):
        layer_passes(model, loss_fn, (torch.ones(4, 1, 5), torch.zeros(4, dtype=torch.long)))


def test_a_bias_which_the_problem_would_leave_out_is_refused():
    model = nn.Linear(5, 3).double()
    with pytest.raises(ValueError, match=r"^layer '' must have no bias: "):
        layer_problems(model, loss_fn, network()[1], step_size=0.3)
