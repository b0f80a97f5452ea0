"""Large steps under normalisation: weights grow by Pythagoras, gradients fall, layers stop."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lca_widgets.experiments.weight_domination import (
    DominationSettings,
    dominated_training,
    layer_weights,
    weight_domination,
)
from lca_widgets.models import mlp

SMALL = DominationSettings(depth=4, width=16, samples=128, steps=12, large_steps=2)


def run(**changes):
    return list(weight_domination(dataclasses.replace(SMALL, **changes)))


def test_sizes_are_those_of_a_dense_decomposition():
    model = mlp(6, 3, depth=3, width=5)
    model(torch.randn(8, 6)).square().mean().backward()
    for layer, module in zip(
        layer_weights(model), [m for m in model if hasattr(m, "weight")], strict=True
    ):
        weight, grad = module.weight.detach().double(), module.weight.grad.double()
        assert layer.weight_sigma == pytest.approx(torch.linalg.svdvals(weight)[0].item())
        assert layer.weight_norm == pytest.approx(weight.norm().item())
        assert layer.grad_sigma == pytest.approx(torch.linalg.svdvals(grad)[0].item())
        assert layer.grad_norm == pytest.approx(grad.norm().item())
        assert layer.sensitivity == pytest.approx(layer.weight_sigma * layer.grad_sigma)
        assert layer.domination == pytest.approx(layer.grad_sigma / layer.weight_sigma)


def test_a_weight_without_a_gradient_has_none_and_one_that_is_not_finite_shows_so():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.data.fill_(math.nan)
    first, second = layer_weights(model)
    assert math.isnan(first.grad_sigma)
    assert math.isnan(second.weight_sigma)


def test_measuring_changes_nothing():
    model = mlp(6, 3, depth=2, width=5)
    model(torch.randn(8, 6)).square().mean().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    layer_weights(model)
    for parameter, (value, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert torch.equal(parameter.grad, grad)


def test_hidden_weights_grow_at_right_angles_to_their_gradients():
    for before, after in zip(run()[:2], run()[1:3], strict=True):
        for old, new in zip(before.layers[:-1], after.layers[:-1], strict=True):
            expected = math.hypot(old.weight_norm, 1000.0 * old.grad_norm)
            assert new.weight_norm == pytest.approx(expected, rel=1e-4)


def test_ten_times_the_rate_makes_the_ratio_a_hundred_times_smaller_and_leaves_the_product():
    one, ten = (
        dominated_training(dataclasses.replace(SMALL, large_steps=1, large_rate=r))
        for r in (1e4, 1e5)
    )
    assert ten.weight_norm / one.weight_norm == pytest.approx(10, rel=0.01)
    assert ten.grad_norm / one.grad_norm == pytest.approx(0.1, rel=0.2)
    assert ten.domination / one.domination == pytest.approx(0.01, rel=0.2)
    assert 0.5 < ten.sensitivity / one.sensitivity < 2


@pytest.mark.parametrize("seed", range(3))
def test_dominated_layers_train_as_frozen_ones_do(seed):
    end = dominated_training(dataclasses.replace(SMALL, large_rate=1e5, steps=32, seed=seed))
    assert end.domination < 1e-5
    assert end.sensitivity > 0.1
    assert abs(end.loss - end.frozen_loss) < 0.01
    fresh = dominated_training(dataclasses.replace(SMALL, large_steps=0, steps=32, seed=seed))
    assert fresh.frozen_loss - fresh.loss > 0.3


def test_the_output_layer_is_held_during_the_large_steps_alone():
    held, free = run(hold_last=True), run(hold_last=False)
    sizes = [m.layers[-1].weight_norm for m in held]
    assert sizes[0] == sizes[1] == sizes[2] != sizes[3]
    assert free[1].layers[-1].weight_norm > 5 * sizes[0]


def test_the_twin_parts_from_the_run_when_the_large_steps_are_over():
    measured = run(large_rate=1.0)
    assert [math.isnan(m.frozen_loss) for m in measured] == [True] * 2 + [False] * 11
    assert measured[2].frozen_loss == measured[2].training.loss
    assert measured[3].frozen_loss != measured[3].training.loss


def test_the_twin_trains_its_output_layer_alone_whatever_the_normalisation():
    # With β it could go on; without learnable γ and β it is the same network.
    changes = {"large_steps": 0, "steps": 10}
    assert run(norm="batch", **changes)[-1].frozen_loss == pytest.approx(
        run(norm="batch-fixed", **changes)[-1].frozen_loss, rel=1e-4
    )


def test_few_measurements_are_some_of_all_of_them():
    every, few = run(), run(every=5)
    assert [m.training.step for m in few] == [0, 2, 5, 10, 12]
    assert few == [m for m in every if m.training.step in (0, 2, 5, 10, 12)]


def test_weight_decay_brings_the_weights_back():
    still, back = (
        run(weight_decay=decay, steps=102)[-1].hidden("weight_norm") for decay in (0, 0.02)
    )
    assert back == pytest.approx(still * 0.98**100, rel=0.02)


def test_a_run_that_diverges_ends_and_says_so():
    *before, last = run(norm="none", depth=8, large_rate=1e6, hold_last=False)
    assert last.training.diverged
    assert not any(m.training.diverged for m in before)
    assert last.training.step < SMALL.steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 1}, "depth must be between 2 and 50, got 1"),
        ({"norm": "instance"}, "norm must be one of 'none', 'batch'"),
        ({"large_rate": 0.0}, "large_rate must be between 1e-06 and 1e\\+06, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be between 0 and 1, got -1.0"),
        ({"every": 0}, "every must be between 1 and 10000, got 0"),
        ({"hold_last": "yes"}, "hold_last must be one of False, True, got 'yes'"),
        ({"samples": 2000}, "samples must be between 8 and 1437, got 2000"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        DominationSettings(**changes)
