"""The networks to analyse: structure, scale of the weights, seeds, refusals."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from lca_widgets.models import INITIALISERS, NORMS, WeightNormalised, mlp

FAN_IN, FAN_OUT = 400, 200
small = partial(mlp, 5, 3, depth=3, width=4)


def hidden_weight(init, **settings):
    """A weight of shape [200, 400] of a network initialised so."""
    return weights(mlp(FAN_IN, 2, depth=2, width=FAN_OUT, init=init, **settings))[0]


def weights(model):
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("norm", "activation", "names"),
    [
        ("none", "relu", ["linear1", "activation1", "linear2", "activation2", "linear3"]),
        ("batch", "tanh", ["linear1", "norm1", "activation1", "linear2", "norm2", "activation2",
                           "linear3"]),
    ],
)  # fmt: skip
def test_layers_are_named_in_order(norm, activation, names):
    assert [name for name, _ in small(norm=norm, activation=activation).named_children()] == names


def test_layers_have_the_sizes_asked_for_and_no_biases():
    model = small()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in layers] == [(4, 5), (4, 4), (3, 4)]
    assert all(m.bias is None for m in layers)
    assert model(torch.ones(7, 5)).shape == (7, 3)


def test_depth_one_is_a_linear_classifier():
    assert [name for name, _ in mlp(5, 3, depth=1, width=9, norm="batch").named_children()] == [
        "linear1"
    ]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("relu", [0.0, 2.0]), ("tanh", [math.tanh(-1), math.tanh(2)]), ("linear", [-1.0, 2.0])],
)
def test_the_activation_is_the_one_asked_for(activation, expected):
    module = small(activation=activation).get_submodule("activation1")
    torch.testing.assert_close(module(torch.tensor([-1.0, 2.0])), torch.tensor(expected))


@pytest.mark.parametrize(
    ("norm", "parameters"), [("none", None), ("batch", ["weight", "bias"]), ("batch-fixed", [])]
)
def test_batch_norm_comes_with_or_without_gamma_and_beta(norm, parameters):
    model = small(norm=norm)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    if parameters is None:
        assert norms == []
    else:
        assert len(norms) == 2  # none after the output layer
        assert all([name for name, _ in m.named_parameters()] == parameters for m in norms)
        assert all(m.track_running_stats for m in norms)


@pytest.mark.parametrize(
    ("norm", "kind", "groups", "parameters"),
    [
        ("layer", nn.LayerNorm, 1, 2),
        ("layer-fixed", nn.LayerNorm, 1, 0),
        ("group-fixed", nn.GroupNorm, 8, 0),
    ],
)
def test_other_norms_give_each_sample_mean_zero_and_variance_one(norm, kind, groups, parameters):
    model = mlp(5, 3, depth=2, width=32, norm=norm)
    assert isinstance(model.norm1, kind)
    assert len(list(model.norm1.parameters())) == parameters
    grouped = model.norm1(torch.randn(4, 32)).unflatten(1, (groups, -1))
    torch.testing.assert_close(grouped.mean(2), torch.zeros(4, groups), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        grouped.var(2, correction=0), torch.ones(4, groups), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize(("width", "groups"), [(64, 8), (36, 4), (9, 1), (8, 1)])
def test_no_group_has_a_single_unit(width, groups):
    assert mlp(5, 3, depth=2, width=width, norm="group-fixed").norm1.num_groups == groups


def test_weight_normalisation_is_pytorchs_with_a_scale_of_root_two():
    model = mlp(5, 3, depth=3, width=4, norm="weight")
    kinds = [type(module) for name, module in model.named_children() if "linear" in name]
    assert kinds == [WeightNormalised, WeightNormalised, nn.Linear]
    layer = nn.Linear(5, 4, bias=False)
    layer.weight.data = model.linear1.weight.data.clone()
    reference = nn.utils.parametrizations.weight_norm(layer)
    reference.parametrizations.weight.original0.data.fill_(math.sqrt(2))
    x = torch.randn(7, 5)
    torch.testing.assert_close(model.linear1(x), reference(x))


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_a_factor_of_a_normalised_layer_changes_nothing(norm):
    model = mlp(5, 3, depth=3, width=32, norm=norm).double()
    for module in model:
        if hasattr(module, "eps"):
            setattr(module, "eps", 1e-12)  # noqa: B010 - torch's stubs know no ε of a module
    x = torch.randn(16, 5, dtype=torch.float64)
    before = model(x)
    model.linear2.weight.data.mul_(100)
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("lecun", 1 / (3 * FAN_IN)),
        ("xavier", 2 / (FAN_IN + FAN_OUT)),
        ("he", 2 / FAN_IN),
        ("normal", 1 / FAN_IN),
        ("orthogonal", 1 / FAN_IN),  # rows of length 1
    ],
)
def test_variance_of_the_initial_weights(init, variance):
    weight = hidden_weight(init)
    # 80000 draws: the sample variance is within 2 %, that is four standard errors.
    assert weight.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(weight.mean().item()) < 4 * math.sqrt(variance / weight.numel())


@pytest.mark.parametrize(
    ("init", "bound"),
    [("lecun", 1 / math.sqrt(FAN_IN)), ("xavier", math.sqrt(6 / (FAN_IN + FAN_OUT)))],
)
def test_uniform_weights_fill_their_interval(init, bound):
    largest = hidden_weight(init).abs().max().item()
    assert 0.999 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("init", ["he", "normal"])
def test_normal_weights_have_normal_tails(init):
    weight = hidden_weight(init)
    beyond = (weight.abs() > 2 * weight.std()).double().mean().item()
    assert beyond == pytest.approx(0.0455, abs=0.004)


def test_orthogonal_rows_are_orthonormal():
    weight = hidden_weight("orthogonal")
    torch.testing.assert_close(weight @ weight.T, torch.eye(FAN_OUT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", INITIALISERS)
def test_gain_multiplies_every_weight(init):
    plain, scaled = small(init=init), small(init=init, gain=3.0)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(b, 3 * a)


def test_initialisers_differ():
    weights = [hidden_weight(init) for init in INITIALISERS]
    for k, weight in enumerate(weights):
        assert not any(torch.allclose(weight, other) for other in weights[:k])


@pytest.mark.parametrize("init", INITIALISERS)
def test_the_seed_decides_the_weights_and_the_global_random_state_does_not(init):
    before = torch.get_rng_state()
    first = small(init=init, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = small(init=init, seed=1), small(init=init, seed=2)
    for a, b, c in zip(weights(first), weights(again), weights(other), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    torch.set_rng_state(before)


def test_layers_of_one_network_differ():
    first, second, third = weights(mlp(4, 4, depth=3, width=4))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": 2.0}, TypeError, r"depth must be a whole number \(int\), got 2\.0 \(float\)"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be between 0 and 9223372036854775807, got -1"),
        ({"gain": 0}, ValueError, "gain must be above 0, got 0"),
        ({"gain": math.nan}, ValueError, "gain must be above 0, got nan"),
        ({"gain": math.inf}, ValueError, "gain must be finite and above 0, got inf"),
        ({"init": "kaiming"}, ValueError, "init must be one of 'lecun', .*, got 'kaiming'"),
        ({"norm": None}, ValueError, "norm must be one of 'none', 'batch', .*, got None"),
        ({"activation": "gelu"}, ValueError, "activation must be one of 'relu', .*, got 'gelu'"),
    ],
)
def test_refusals_name_the_argument_the_value_and_what_is_accepted(settings, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        mlp(5, 3, **({"depth": 2, "width": 4} | settings))


@pytest.mark.parametrize(("features", "classes", "word"), [(0, 3, "features"), (5, 1, "classes")])
def test_a_network_needs_features_and_two_classes(features, classes, word):
    with pytest.raises(ValueError, match=f"^{word} must be at least "):
        mlp(features, classes, depth=2, width=4)
