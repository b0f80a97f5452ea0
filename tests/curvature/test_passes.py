"""Measurements' own passes: which data they take, and that nothing about the model changes."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lca_widgets.curvature import kronecker_factors
from lca_widgets.curvature.passes import batches, run, samples_in, undisturbed

N = 6
LOSS = nn.CrossEntropyLoss()
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Busy(nn.Module):
    """All that a forward pass can change: statistics, random state, spectral norm's vectors."""

    calls: Tensor
    cache: Tensor | None
    transient: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", None)
        self.register_buffer("transient", torch.zeros(2), persistent=False)
        self.first = parametrizations.spectral_norm(nn.Linear(4, 5))
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.last = nn.Linear(5, 3)

    def forward(self, x, fail=False):
        self.calls += 1
        self.cache = torch.randn(3)  # a buffer that was None
        self.transient = self.transient + 1  # a new tensor in its place
        h = self.drop(self.norm(self.first(x)).relu_())
        if fail:
            raise KeyboardInterrupt
        return self.last(h)


def busy():
    torch.manual_seed(0)
    model = Busy()
    model.last.requires_grad_(False)
    model.norm.eval()
    LOSS(model(X), Y).backward()
    model.norm.train()
    model.drop.train()
    model.first.eval()
    model.cache = None
    return model


def state_of(model):
    """Everything that measuring must leave alone, as comparable bytes and values."""

    def of(tensor):
        return None if tensor is None else (id(tensor), tensor.detach().numpy().tobytes())

    return {
        "parameters": {name: of(p) for name, p in model.named_parameters()},
        "gradients": {name: of(p.grad) for name, p in model.named_parameters()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "buffers": {
            (name, key): of(buffer)
            for name, module in model.named_modules()
            for key, buffer in module._buffers.items()
        },
        "modes": [module.training for module in model.modules()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ],
        "random state": torch.get_rng_state().numpy().tobytes(),
        "gradients on": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_measuring_changes_nothing_bit_for_bit(around, fisher):
    model = busy()
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    before = state_of(model)
    with around():
        kronecker_factors(model, LOSS, loader, fisher=fisher)
    assert state_of(model) == before


def failing_loader():
    yield X, Y
    torch.rand(3)
    raise OSError("disk")


@pytest.mark.parametrize(
    ("data", "loss", "error"),
    [
        (({"x": X, "fail": True}, Y), LOSS, KeyboardInterrupt),
        ((X, Y + 1), LOSS, IndexError),
        (failing_loader(), LOSS, OSError),
        ([(X, Y), (X, Y[:2])], LOSS, ValueError),
    ],
    ids=["model", "loss", "loader", "sizes"],
)
def test_an_exception_in_the_middle_changes_nothing_either(data, loss, error):
    model = busy()
    before = state_of(model)
    with pytest.raises(error):
        kronecker_factors(model, loss, data)
    assert state_of(model) == before


def test_under_no_grad_the_factors_are_the_same():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    expected = kronecker_factors(model, LOSS, (X, Y)).layers
    with torch.no_grad():
        actual = kronecker_factors(model, LOSS, (X, Y)).layers
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.grad_moment, b.grad_moment)
        assert not a.grad_moment.requires_grad


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_training_step_may_be_measured_between_its_forward_and_backward_pass(mode):
    torch.manual_seed(0)
    model = getattr(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), mode)()
    twin = copy.deepcopy(model)
    loss = LOSS(model(X), Y)
    kronecker_factors(model, LOSS, (X, Y))
    loss.backward()
    LOSS(twin(X), Y).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_buffer_made_during_the_measurement_is_gone_afterwards():
    class Late(nn.Linear):
        def forward(self, x):
            self.register_buffer("late", torch.ones(1))
            return super().forward(x)

    model = Late(4, 3)
    kronecker_factors(model, LOSS, (X, Y))
    assert dict(model.named_buffers()) == {}


def test_two_measurements_in_train_mode_see_the_same_dropout():
    model = busy()
    one, two = (kronecker_factors(model, LOSS, (X, Y)).layers for _ in range(2))
    assert torch.equal(one[1].input_moment, two[1].input_moment)


def test_inputs_made_in_inference_mode_are_measured():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    expected = kronecker_factors(model, LOSS, (X, Y)).layers
    with torch.inference_mode():
        batch = X.clone(), Y.clone()
        actual = kronecker_factors(model, LOSS, batch).layers
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.grad_moment, b.grad_moment)


def test_a_reentrant_checkpoint_is_refused_and_not_passed_over():
    class Reentrant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inside = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return checkpoint(self.inside, self.first(x), use_reentrant=True)

    model = Reentrant()
    before = state_of(model)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)checkpoint.*use_reentrant"):
        kronecker_factors(model, LOSS, (X, Y))
    assert state_of(model) == before


# Data.


@pytest.mark.parametrize(
    "inputs",
    [X, (X,), [X], {"x": X}],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_inputs_are_one_tensor_arguments_or_keyword_arguments(inputs):
    class Model(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    model = Model(nn.Linear(4, 3))
    assert torch.equal(run(model, inputs), model(X))
    [layer] = kronecker_factors(model, LOSS, (inputs, Y)).layers
    torch.testing.assert_close(layer.input_moment, X.double().T @ X.double() / N)


def test_arguments_keep_their_structure():
    seen = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, features, names):
            seen.append((features, names))
            return self.layer(features["a"][0])

    kronecker_factors(Model(), LOSS, (({"a": [X]}, ["first", 2, None]), Y))
    [(features, names)] = seen
    assert names == ["first", 2, None]
    assert isinstance(features["a"], list)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y), [(X, Y)], iter([(X, Y)]), [[X, Y]], ((X, Y) for _ in range(1)),
        DataLoader(TensorDataset(X, Y), batch_size=N),
    ],
    ids=["batch", "list", "iterator", "lists", "generator", "loader"],
)  # fmt: skip
def test_data_is_one_batch_or_an_iterable_of_them(data):
    [(inputs, target)] = batches(data, nn.Linear(4, 3))
    assert torch.equal(inputs, X)
    assert torch.equal(target, Y)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "data has no batch: the loader is empty"),
        (iter(()), ValueError, "data has no batch"),
        (DataLoader(TensorDataset(X[:2], Y[:2]), batch_size=3, drop_last=True),
         ValueError, "data has no batch"),
        (X, TypeError, "data must be one batch .* got Tensor"),
        ({"x": X}, TypeError, "data must be .* got dict"),
        (None, TypeError, "data must be .* got NoneType"),
        ([X, Y], ValueError, r"data must yield pairs \(inputs, target\), got Tensor"),
        ([(X, Y, Y)], ValueError, "data must yield pairs .* got tuple of 3"),
        ((X, Y, Y), ValueError, "data must yield pairs .* got tuple of 3"),
        ((X[:0], Y[:0]), ValueError, "batch without samples"),
        ((1.0, 2.0), ValueError, "tensors with a batch dimension"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        kronecker_factors(nn.Linear(4, 3), LOSS, data)


def test_a_loader_that_is_used_up_is_refused():
    once = iter([(X, Y)])
    kronecker_factors(nn.Linear(4, 3), LOSS, once)
    with pytest.raises(ValueError, match="used up by an earlier run"):
        kronecker_factors(nn.Linear(4, 3), LOSS, once)


@pytest.mark.parametrize(
    ("inputs", "target", "count"),
    [
        (X, Y, N), (X, None, N), (X, {"y": Y}, N), ({"x": X, "scale": torch.tensor(1.0)}, 1.0, N),
        ((torch.tensor(2.0), X), None, N), (X, torch.tensor(1.0), N),
        # A list of targets, one a sample: the first's boxes are no samples.
        (X, [{"boxes": torch.zeros(2, 4)} for _ in range(N)], N),
    ],
    ids=["tensor", "no target", "mapping", "scalars", "arguments", "scalar target", "boxes"],
)  # fmt: skip
def test_the_number_of_samples_is_the_first_dimension(inputs, target, count):
    assert samples_in(inputs, target) == count


def test_undisturbed_lets_gradients_through_and_restores_the_random_state():
    model = nn.Linear(1, 1)
    before = torch.get_rng_state()
    with torch.no_grad(), undisturbed(model):
        assert torch.is_grad_enabled()
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
