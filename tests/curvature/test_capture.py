"""What a capture sees, what it refuses, and that it changes nothing."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from lca_widgets.curvature import (
    Capture,
    FactorCapture,
    LayerCall,
    kronecker_factors,
    supported_layers,
)
from lca_widgets.curvature.capture import uncovered_layers

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def net(norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.ReLU(inplace=True), nn.Linear(5, 3))


def loss_of(model, x=X, y=Y):
    return nn.functional.cross_entropy(model(x), y)


def hooks_on(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        for hook in hooks.values()
    ]


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


def test_sees_each_input_and_each_output_with_its_graph():
    model, gradients = net(), {}
    calls: dict[str, LayerCall] = {}

    def on_call(call):
        calls[call.name] = call
        # A hook on the tensor sees the gradient before an in-place activation overwrites it.
        call.output.register_hook(functools.partial(gradients.__setitem__, call.name))

    with Capture(model, on_call):
        loss_of(model).backward()
    assert list(calls) == ["0", "2"]
    assert calls["0"].layer is model[0]
    assert torch.equal(calls["0"].input, X)
    hidden = torch.relu(X @ model[0].weight.T + model[0].bias)
    torch.testing.assert_close(calls["2"].input, hidden)
    error = (torch.softmax(model(X), dim=1) - nn.functional.one_hot(Y, 3)) / len(X)
    torch.testing.assert_close(gradients["2"], error)
    torch.testing.assert_close(gradients["0"], error @ model[2].weight * (hidden > 0))


def test_the_input_that_it_hands_over_is_cut_off_from_the_graph():
    seen = []
    with Capture(net(), seen.append) as capture:
        capture._model(X.clone().requires_grad_())
    assert [call.input.requires_grad for call in seen] == [False, False]
    assert [call.output.requires_grad for call in seen] == [True, True]


def test_the_calls_of_one_forward_pass_share_it_and_those_of_another_do_not():
    seen = []
    model = Shared()
    with Capture(model, seen.append):
        model(X)
        model(X[:2])
        model.layer(X[:3])  # by itself: a pass of its own
    passes = [call.forward_pass for call in seen]
    assert passes[0] is passes[1]
    assert passes[2] is passes[3]
    assert len(set(passes)) == 3
    assert [forward_pass.samples for forward_pass in passes] == [6, 6, 2, 2, 3]


def test_a_failed_forward_pass_ends_with_its_exception():
    seen = []
    model = net()
    with Capture(model, seen.append):
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(5, 3))
        model[0](X)
    assert [call.forward_pass.samples for call in seen] == [len(X)]


@pytest.mark.parametrize(
    "arguments",
    [
        ((X, 3.0), {}), ((3.0,), {"x": X}), ((), {"x": X, "scale": 2.0}),
        (({"x": X}, 1.0), {}), (([X, X],), {}), ((), {"x": (X, None)}),
    ],
    ids=["positional", "keyword", "keywords", "in a dict", "in a list", "in a tuple"],
)  # fmt: skip
def test_the_samples_are_counted_in_the_first_tensor_argument(arguments):
    class Flexible(nn.Module):
        """Its layer sees two rows a sample."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, *args, **kwargs):
            return self.layer(X.reshape(-1, 2))

    seen = []
    args, kwargs = arguments
    model = Flexible()
    with Capture(model, seen.append):
        model(*args, **kwargs)
    assert [call.forward_pass.samples for call in seen] == [len(X)]


def test_what_the_callback_returns_replaces_the_output():
    model = net()
    with Capture(model, lambda call: torch.zeros_like(call.output), layers=["0"]):
        assert torch.equal(model(X), model[2].bias.expand(6, 3))


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
        assert len(hooks_on(model)) == 4  # two layers, the model before and after
    with pytest.raises(IndexError), watched:
        loss_of(model, y=Y + 1)  # there is no class 3
    assert hooks_on(model) == []

    def failing(call):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Capture(model, failing):
        model(X)
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
    assert hooks_on(twin)
    assert not any(vars(hook) for hook in hooks_on(twin))


def test_a_layer_whose_input_has_no_batch_dimension_is_listed_with_that_reason():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Linear(2, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x + self.token(torch.ones(2)))

    model = Token()
    reason = {"token": "got an input without a batch dimension, of shape (2,)"}
    assert kronecker_factors(model, nn.CrossEntropyLoss(), (X, Y)).skipped == reason
    with FactorCapture(model) as watched:
        loss_of(model).backward()
    assert [layer.name for layer in watched.take()] == ["layer"]
    assert watched.skipped == reason


def test_a_model_that_cannot_be_measured_at_all_is_refused_with_each_layers_reason():
    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    frozen = Frozen(nn.Linear(4, 5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"'0' ran without gradients .*; '1' ran without"):
        kronecker_factors(frozen, nn.CrossEntropyLoss(), (X, Y))


def test_an_input_passed_by_keyword_is_seen():
    model = WithKeyword()
    with FactorCapture(model) as capture:
        loss_of(model).backward()
    [layer] = capture.take()
    torch.testing.assert_close(layer.input_moment, X.double().T @ X.double() / len(X))


def test_an_input_passed_by_a_keyword_of_the_layers_own_is_seen():
    class Named(nn.Linear):
        def forward(self, features):
            return super().forward(features)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Named(4, 3)

        def forward(self, x):
            return self.layer(features=x)

    seen = []
    model = Model()
    with Capture(model, seen.append):
        model(X)
    assert torch.equal(seen[0].input, X)


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
    with pytest.raises(ValueError, match="no linear or convolution layer to measure: ReLU"):
        FactorCapture(nn.ReLU())


def test_lazy_layers_are_refused_until_a_forward_pass_has_made_them():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="run a forward pass before measuring"):
        supported_layers(model)
    model(X)
    assert list(supported_layers(model)) == ["0"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 3), nn.Conv1d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Conv3d(2, 3, 1),
        nn.ConvTranspose1d(2, 3, 1), nn.ConvTranspose2d(2, 3, 1), nn.ConvTranspose3d(2, 3, 1),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 1)),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_every_linear_and_convolution_layer_is_supported(layer):
    model = nn.ModuleDict({"block": nn.Sequential(nn.BatchNorm1d(2), layer)})
    assert supported_layers(model) == {"block.1": layer}
    assert list(uncovered_layers(model)) == ["block.0"]


def test_a_module_under_two_names_is_one_layer():
    model = net()
    model.append(model[0])
    assert list(supported_layers(model)) == ["0", "2"]


def test_a_measurement_inside_a_watched_loop_does_not_feed_the_watching():
    model = net()
    with FactorCapture(model) as capture:
        loss_of(model).backward()
        kronecker_factors(model, nn.CrossEntropyLoss(), (1000 * X, Y))
        with pytest.raises(IndexError):
            kronecker_factors(model, nn.CrossEntropyLoss(), (1000 * X, Y + 1))
        loss_of(model).backward()  # which it sees again
    for layer, d in zip(capture.take(), (4, 5), strict=True):
        assert layer.n == 12
        assert layer.input_moment.shape == (d, d)
        assert layer.input_moment.max() < 100


def test_hooks_of_others_are_left_alone():
    model, calls = net(), []
    handle = model[0].register_forward_hook(lambda *_: calls.append("theirs"))
    with Capture(model, lambda call: None):
        model(X)
    model(X)
    assert calls == ["theirs"] * 2
    assert len(hooks_on(model)) == 1
    handle.remove()
