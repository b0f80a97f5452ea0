"""What a capture sees, what it refuses, and that it changes nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lca_widgets.curvature import Capture, FactorCapture, supported_layers

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def net(norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.ReLU(inplace=True), nn.Linear(5, 3))


def loss_of(model, x=X, y=Y):
    return nn.functional.cross_entropy(model(x), y)


def hooks_on(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def state_of(model):
    """Everything that measuring must leave alone, as comparable bytes and values."""
    tensors = dict(model.state_dict()) | {
        f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None
    }
    return (
        {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        [module.training for module in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
    )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class WithKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(input=x)


def test_sees_each_input_and_each_output_gradient_of_the_mean_loss():
    inputs: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    model = net()
    with Capture(model, inputs.__setitem__, gradients.__setitem__):
        loss_of(model).backward()
    assert torch.equal(inputs["0"], X)
    hidden = torch.relu(X @ model[0].weight.T + model[0].bias)
    torch.testing.assert_close(inputs["2"], hidden)
    error = (torch.softmax(model(X), dim=1) - nn.functional.one_hot(Y, 3)) / len(X)
    torch.testing.assert_close(gradients["2"], error)
    torch.testing.assert_close(gradients["0"], error @ model[2].weight * (hidden > 0))


def test_what_it_passes_on_is_cut_off_from_the_graph():
    seen = []
    model = net()
    with Capture(model, lambda _, x: seen.append(x), lambda _, g: seen.append(g)):
        torch.autograd.grad(loss_of(model), model[0].weight, create_graph=True)
    assert len(seen) == 4
    assert not any(tensor.requires_grad for tensor in seen)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_measuring_changes_nothing_bit_for_bit(mode):
    plain, watched = net(norm=True), net(norm=True)
    states = []
    for model in (plain, watched):
        getattr(model, mode)()
        model[0].eval()  # a mixture of modes stays one
        torch.manual_seed(1)
        if model is watched:
            with FactorCapture(model) as capture:
                loss_of(model).backward()
                capture.take()
        else:
            loss_of(model).backward()
        states.append(state_of(model))
    assert states[0] == states[1]


def test_all_hooks_are_gone_after_an_exception():
    model = net()
    watched = FactorCapture(model)
    with watched:
        assert len(hooks_on(model)) == 2
    with pytest.raises(IndexError), watched:
        loss_of(model, y=Y + 1)  # there is no class 3
    assert hooks_on(model) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_watched_model_does_not_feed_its_capture(duplicate):
    model = net()
    with FactorCapture(model) as capture:
        twin = duplicate(model)
        loss_of(twin, 1000 * X).backward()
        loss_of(model).backward()
        [first, _] = capture.take()
    assert first.n == len(X)
    torch.testing.assert_close(first.input_moment, X.double().T @ X.double() / len(X))


def test_a_replica_that_shares_the_hooks_does_not_feed_the_capture():
    model = net()
    with FactorCapture(model) as capture:
        replica = copy.copy(model[0])  # what data-parallel replication does to each module
        assert replica._forward_hooks is model[0]._forward_hooks
        replica(1000 * X).sum().backward()
        loss_of(model).backward()
    assert capture.take()[0].n == len(X)


def test_a_copy_does_not_hold_on_to_the_capture():
    model = net()
    with FactorCapture(model):
        twin = copy.deepcopy(model)
    assert not [hook for hook in hooks_on(twin) if "_capture" in vars(hook)]


def test_a_module_used_twice_is_refused_by_name():
    model = Shared()
    with (
        pytest.raises(RuntimeError, match=r"layer 'layer' ran again .* a module used twice"),
        FactorCapture(model),
    ):
        model(X)


def test_an_input_without_a_batch_dimension_is_refused_by_name():
    model = net()
    with (
        pytest.raises(ValueError, match=r"layer '0' got an input of shape \(4,\)"),
        FactorCapture(model),
    ):
        model(X[0])


def test_an_input_passed_by_keyword_is_seen():
    model = WithKeyword()
    with FactorCapture(model) as capture:
        loss_of(model).backward()
    [layer] = capture.take()
    torch.testing.assert_close(layer.input_moment, X.double().T @ X.double() / len(X))


def test_forward_passes_without_gradients_are_not_seen():
    model = net()
    with FactorCapture(model) as capture:
        with torch.no_grad():
            model(1000 * X)
            model(1000 * X)
        loss_of(model).backward()
        with torch.inference_mode():
            model(1000 * X)
    assert [layer.n for layer in capture.take()] == [6, 6]


def test_nothing_is_seen_outside_the_context():
    model = net()
    capture = FactorCapture(model)
    loss_of(model).backward()
    with capture:
        pass
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match=r"no gradient came from '0', '2'"):
        capture.take()


def test_a_gradient_that_arrives_after_the_context_is_not_counted_with_a_later_pass():
    model = net()
    capture = FactorCapture(model)
    with capture:
        early = loss_of(model, 1000 * X)
    with capture:
        late = loss_of(model)
        early.backward()
        late.backward()
    fresh = net()
    with FactorCapture(fresh) as reference:
        loss_of(fresh).backward()
    for seen, expected in zip(capture.take(), reference.take(), strict=True):
        torch.testing.assert_close(seen.grad_moment, expected.grad_moment)


def test_layers_are_listed_in_order_and_can_be_chosen():
    model = net()
    assert list(supported_layers(model)) == ["0", "2"]
    with FactorCapture(model, layers=["2"]) as capture:
        loss_of(model).backward()
    assert [layer.name for layer in capture.take()] == ["2"]


def test_an_unknown_layer_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match=r"layers must be among '0', '2'; got \['1'\]"):
        FactorCapture(net(), layers=["0", "1"])


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match=r"no linear layer to measure: ReLU"):
        FactorCapture(nn.ReLU())
