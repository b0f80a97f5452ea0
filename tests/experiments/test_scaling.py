"""The scaling theorems on real networks in float64, entry by entry, and where they end."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lca_widgets.data import Split, digits
from lca_widgets.experiments import ScalingSettings, scaling
from lca_widgets.experiments.scaling import compare_scaled, predicted_ratios
from lca_widgets.models import mlp

QUANTITIES = ("z", "g", "weight_grad")
SMALL = {"depth": 5, "width": 16, "samples": 32}
SEVERAL = (0.3, 7.0, 1.9, 0.02, 5.0)  # a_1 … a_5, the output layer's too


def batch(n=32):
    first = digits().train.first(n)
    return Split(first.x.double(), first.y)


def network(norm="none", eps=1e-300, depth=5, seed=0):
    model = mlp(64, 10, depth=depth, width=16, norm=norm, seed=seed).double()
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.eps = eps
    return model


def measure(**settings):
    *_, last = scaling(ScalingSettings(**(SMALL | settings)))
    return last


def ratios(measurement, quantity):
    return [getattr(layer, quantity).ratio for layer in measurement.layers]


def deviations(layers):
    return [getattr(layer, quantity).deviation for layer in layers for quantity in QUANTITIES]


@pytest.mark.parametrize("norm", ["none", "batch-fixed"])
@pytest.mark.parametrize("layer", [1, 3, 5])
@pytest.mark.parametrize("factor", [0.01, 3.0, 100.0])
def test_the_theorem_holds_for_every_entry_of_every_tensor(norm, layer, factor):
    measurement = measure(norm=norm, layer=layer, factor=factor, output_factor=1.7)
    assert max(deviations(measurement.layers)) < 1e-10
    assert measurement.mu == measurement.mu_low == measurement.mu_high == 1.0


@pytest.mark.parametrize("norm", ["none", "batch-fixed"])
def test_it_holds_with_all_layers_scaled_at_once(norm):
    layers, _ = compare_scaled(network(norm), batch(), SEVERAL)
    assert max(deviations(layers)) < 1e-10


def test_it_holds_at_every_step_of_training():
    measurements = list(scaling(ScalingSettings(**SMALL, norm="batch-fixed", steps=4)))
    assert [m.training.step for m in measurements] == [0, 1, 2, 3, 4]
    assert max(d for m in measurements for d in deviations(m.layers)) < 1e-10
    assert len({m.layers[0].g.before for m in measurements}) == 5  # not one network five times
    assert measurements[-1].training.loss < measurements[0].training.loss


def test_without_normalisation_a_layer_scales_the_gradient_of_every_other_one():
    assert ratios(measure(layer=2), "weight_grad") == pytest.approx([3, 1, 3, 3, 3])
    assert ratios(measure(layer=2), "z") == pytest.approx([1, 3, 3, 3, 3])
    assert ratios(measure(layer=2), "g") == pytest.approx([3, 1, 1, 1, 1])


def test_with_bn_a_layer_divides_its_own_gradient_and_no_other_one():
    normed = measure(layer=2, norm="batch-fixed")
    assert ratios(normed, "weight_grad") == pytest.approx([1, 1 / 3, 1, 1, 1])
    assert ratios(normed, "z") == pytest.approx([1, 1, 1, 1, 1])
    both = measure(layer=2, norm="batch-fixed", output_factor=6.0)
    assert ratios(both, "weight_grad") == pytest.approx([6, 2, 6, 6, 1])


def test_the_tensors_are_those_of_a_backward_pass_of_ones_own():
    model, data = network(), batch()
    layers, _ = compare_scaled(model, data, [1.0, 1.0, 2.0, 1.0, 1.0])
    functional.cross_entropy(model(data.x), data.y).backward()
    weights = [p.grad.norm().item() for p in model.parameters()]
    assert [layer.weight_grad.before for layer in layers] == pytest.approx(weights, rel=1e-12)
    assert layers[-1].z.before == pytest.approx(model(data.x).norm().item(), rel=1e-12)
    h = model(data.x)
    slope = functional.softmax(h, dim=1) - functional.one_hot(data.y, 10)
    assert layers[-1].g.before == pytest.approx(slope.norm().item(), rel=1e-12)
    first_hidden = model[1](model[0](data.x)).norm().item()
    assert layers[0].z.before == pytest.approx(first_hidden, rel=1e-12)


def test_the_whole_tensor_is_compared_not_its_norm():
    """Cross-entropy turns the output gradient: norms near the prediction, entries far from it."""
    turned = measure(loss="cross-entropy", factor=1.5)
    assert turned.layers[0].g.ratio == pytest.approx(turned.layers[0].g.predicted, rel=0.1)
    assert turned.layers[0].g.deviation > 0.05


def test_with_the_real_loss_every_sample_has_a_factor_of_its_own():
    plain = measure(loss="cross-entropy", factor=10.0)
    assert plain.mu_low < 0.5 < plain.mu < plain.mu_high
    assert max(deviations(plain.layers)) > 0.1
    # What goes forward does not care about the loss.
    assert max(layer.z.deviation for layer in plain.layers) < 1e-12


def test_with_bn_the_real_loss_notices_nothing_but_the_output_layer():
    hidden = measure(loss="cross-entropy", factor=10.0, norm="batch-fixed")
    assert max(deviations(hidden.layers)) < 1e-10
    assert hidden.mu_low == pytest.approx(1, abs=1e-9)
    assert hidden.mu_high == pytest.approx(1, abs=1e-9)
    output = measure(loss="cross-entropy", layer=5, factor=10.0, norm="batch-fixed")
    assert max(deviations(output.layers)) > 0.1


def test_a_fixed_epsilon_spoils_the_theorem_where_the_variance_is_as_small():
    factors = [1.0, 0.01, 1.0, 1.0, 1.0]
    layers, _ = compare_scaled(network("batch-fixed", eps=1e-5), batch(), factors)
    assert 1e-2 < layers[1].z.deviation < 0.5
    layers, _ = compare_scaled(network("batch-fixed"), batch(), factors)
    assert layers[1].z.deviation < 1e-12


def test_tanh_has_no_such_theorem():
    model = mlp(64, 10, depth=3, width=16, activation="tanh").double()
    layers, _ = compare_scaled(model, batch(), [3.0, 1.0, 1.0])
    assert layers[0].z.deviation > 0.1


def test_a_network_of_dead_units_is_as_predicted_and_has_no_ratio():
    model = network()
    with torch.no_grad():
        model[2].weight.copy_(-model[2].weight.abs())
    layers, _ = compare_scaled(model, batch(), [3.0, 1.0, 1.0, 1.0, 1.0])
    assert layers[1].z.before == 0
    assert math.isnan(layers[1].z.ratio)
    assert max(deviations(layers)) < 1e-10


def test_the_model_stays_as_it_was():
    model = network("batch-fixed")
    before = copy.deepcopy(model.state_dict())
    compare_scaled(model, batch(), SEVERAL)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_settings_give_the_same_measurements_and_another_seed_others():
    assert measure() == measure()
    assert measure(seed=1).layers[0].z.before != measure().layers[0].z.before


def test_a_run_that_diverges_ends_in_a_record_that_says_so():
    settings = ScalingSettings(**SMALL | {"depth": 10}, learning_rate=1e6, steps=50)
    measurements = list(scaling(settings))
    assert len(measurements) < 51
    assert measurements[-1].training.diverged


def test_predictions_by_hand():
    [first, second, third] = predicted_ratios([2.0, 3.0, 5.0], mu=7.0)
    assert (first.z, second.z, third.z) == (2, 6, 30)
    assert (first.g, second.g, third.g) == (105, 35, 7)
    assert (first.weight_grad, second.weight_grad, third.weight_grad) == (105, 70, 42)
    [first, second, third] = predicted_ratios([2.0, 4.0, 5.0], "batch-fixed", mu=7.0)
    assert (first.z, second.z, third.z) == (1, 1, 5)
    assert (first.g, second.g, third.g) == (17.5, 8.75, 7)
    assert (first.weight_grad, second.weight_grad, third.weight_grad) == (17.5, 8.75, 7)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"depth": 31}, ValueError, "depth must be between 2 and 30, got 31"),
        ({"layer": 9}, ValueError, "layer must be between 1 and 8, got 9"),
        ({"layer": 0}, ValueError, "layer must be between 1 and 8, got 0"),
        ({"factor": -1.0}, ValueError, r"factor must be between 0\.0001 and 10000, got -1\.0"),
        ({"output_factor": 0}, ValueError, r"output_factor must be between .* 10000, got 0"),
        ({"norm": "batch"}, ValueError, "norm must be one of 'none', 'batch-fixed', got 'batch'"),
        ({"loss": "mse"}, ValueError, "loss must be one of 'linear', 'cross-entropy', got 'mse'"),
        ({"samples": 2}, ValueError, "samples must be between 8 and 1437, got 2"),
        ({"steps": 1.5}, TypeError, r"steps must be a whole number \(int\), got 1\.5 .*"),
    ],
)
def test_settings_that_are_not_accepted_are_refused_by_name(settings, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        ScalingSettings(**settings)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ([], "factors must be one number for each layer, got none"),
        ([1.0, 2.0], "factors must be 5, one a layer, got 2"),
        ([1.0, -2.0, 1.0, 1.0, 1.0], r"factors must be above 0, got -2\.0"),
    ],
)
def test_factors_that_do_not_fit_the_network_are_refused(factors, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        compare_scaled(network(), batch(), factors)


def test_networks_that_the_theorems_do_not_cover_are_refused_by_layer():
    with pytest.raises(ValueError, match=r"^model must be in train mode, got 'norm1' in eval mode"):
        compare_scaled(network("batch-fixed").eval(), batch(), SEVERAL)
    compare_scaled(network().eval(), batch(), SEVERAL)  # nothing in it that has a mode
    with pytest.raises(ValueError, match=r"^model must have no biases, got one in layer '0'$"):
        compare_scaled(nn.Sequential(nn.Linear(64, 10).double()), batch(), [2.0])


@pytest.mark.parametrize(("mu", "error"), [("a", TypeError), (-1.0, ValueError), (0, ValueError)])
def test_a_mu_that_is_not_a_positive_number_is_refused(mu, error):
    with pytest.raises(error, match=r"^mu must be "):
        predicted_ratios([2.0], mu=mu)
