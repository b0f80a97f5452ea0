"""The last layer is measured exactly, without disturbing the training, and does what P8 says."""

import dataclasses
import functools
import math
import statistics

import pytest
import torch
from torch.nn.functional import cross_entropy

from lca_widgets.curvature.capture import Capture
from lca_widgets.data import digit_images
from lca_widgets.experiments.last_layer import (
    ARMS,
    LastLayerSettings,
    last_layer,
    last_layer_training,
    layer_inputs,
    residual_network,
    residual_run,
    unseen_accuracy,
)

SEEDS = (0, 1, 2)
IMAGES = len(digit_images().train)
TINY = {"blocks": 2, "width": 8, "batch_size": 64}


@functools.cache
def trained(**settings):
    return list(last_layer_training(LastLayerSettings(**settings)))


@functools.cache
def at_start(**settings):
    return trained(steps=0, batch_size=IMAGES, **settings)[0]


def eigenvalues(rows):
    """Of the second moment, built sample by sample."""
    moment = sum(torch.outer(row, row) for row in rows.double()) / len(rows)
    return torch.linalg.eigvalsh(moment).flip(0)


@pytest.mark.parametrize(("n", "d", "classes"), [(20, 6, 3), (5, 8, 3), (4, 2, 1), (200, 5, 4)])
def test_every_number_is_that_of_its_definition(n, d, classes):
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, d, generator=generator, dtype=torch.float64) + 1
    layer = torch.nn.Linear(d, classes, dtype=torch.float64)
    labels = torch.arange(n) % classes
    if classes == 1:
        losses = [layer(row).square().sum() for row in x]
    else:
        losses = [cross_entropy(layer(row), label) for row, label in zip(x, labels, strict=True)]
    per_sample = torch.stack(
        [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses]
    )
    # With a bias, its gradient is the output's.
    g = torch.stack([torch.autograd.grad(loss, layer.bias)[0] for loss in losses])

    found = last_layer(x, g, layer.weight)
    values, centred = eigenvalues(x), eigenvalues(x - x.mean(dim=0))
    middle = math.ceil(d / 2) - 1
    assert found.lambda_max_x == pytest.approx(values[0].item(), rel=1e-10)
    assert found.lambda_max_x_centred == pytest.approx(centred[0].item(), rel=1e-10)
    assert found.kappa50_x == pytest.approx((values[0] / values[middle]).item(), rel=1e-8)
    if n - 1 > middle:
        assert found.kappa50_x_centred == pytest.approx((centred[0] / centred[middle]).item())
    assert found.lambda_max_g == pytest.approx(eigenvalues(g)[0].item(), rel=1e-10)
    expected = eigenvalues(per_sample.flatten(1))[0].item()
    assert found.lambda_max_weight_grad == pytest.approx(expected, rel=1e-9)
    assert found.weight_norm == pytest.approx(layer.weight.square().sum().sqrt().item())


def test_what_is_not_finite_has_no_numbers():
    x, g = torch.rand(4, 3), torch.rand(4, 2)
    x[1, 1] = math.nan
    found = last_layer(x, g, torch.ones(2, 3))
    assert math.isnan(found.lambda_max_x)
    assert math.isnan(found.lambda_max_weight_grad)
    assert found.weight_norm == pytest.approx(math.sqrt(6))


@pytest.mark.parametrize("arm", ["none", "batch", "scale"])
def test_measuring_changes_nothing(arm):
    settings = LastLayerSettings(**TINY, final_norm=arm, dropout=0.3, steps=6, every=2)
    model, run = residual_run(settings)
    losses = [record.loss for record in run]
    measured = list(last_layer_training(settings))
    assert [m.training.loss for m in measured] == losses
    assert measured[-1].unseen == unseen_accuracy(model, settings)
    assert measured[-1].last.weight_norm == model.classifier.weight.norm().item()


@pytest.mark.parametrize("network", [TINY, {"network": "resnet", "blocks": 3, "width": 16}])
def test_the_measured_network_is_bit_for_bit_the_other(monkeypatch, network):
    chosen = network | {"batch_size": 64, "final_norm": "batch", "dropout": 0.3}
    settings = LastLayerSettings(**chosen, momentum=0.5, learning_rate=0.3, steps=4, every=2)
    model, run = residual_run(settings)
    list(run)
    measured, measured_run = residual_run(settings)
    module = last_layer.__globals__  # the package's name for the module is the function's
    monkeypatch.setitem(module, "residual_run", lambda settings: (measured, measured_run))
    list(last_layer_training(settings))
    others = measured.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in model.state_dict().items())
    for one, other in zip(model.parameters(), measured.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert measured.head.dropout.passes == 5  # not those of the test images


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.5},
        {"dropout": 0.3},
        {"learning_rate": 0.5},
        {"preactivation": True},
        {"batch_size": 32},
        {"width": 9},
        {"seed": 1},
        {"final_norm": "batch"},
        {"final_norm": "single"},
    ],
)
def test_every_setting_reaches_the_training(change):
    def losses(**settings):
        return [m.training.loss for m in trained(**(TINY | {"steps": 2} | settings))]

    plain = {"final_norm": "batch"} if change.get("final_norm") == "single" else {}
    assert losses(**change)[-1] != losses(**plain)[-1]


def test_the_seed_draws_the_batches_too():
    pixels = [trained(**TINY, steps=0, seed=seed)[0].profile[0].lambda_max_x for seed in (0, 1)]
    assert pixels[0] != pixels[1]


def test_a_measurement_is_of_the_steps_own_batch():
    settings = LastLayerSettings(**TINY, steps=1)
    model, run = residual_run(settings)
    inputs, gradients = [], []
    model.classifier.register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))
    model.classifier.register_full_backward_hook(lambda _, __, grads: gradients.append(grads[0]))
    for record, measured in zip(run, last_layer_training(settings), strict=True):
        # The loss is a mean over 64 images; that of one image has a gradient 64 times as large.
        expected = last_layer(inputs[-1], 64 * gradients[-1], model.classifier.weight)
        assert measured.training == record
        assert dataclasses.astuple(measured.last) == pytest.approx(
            dataclasses.astuple(expected), rel=1e-9
        )


def test_all_layers_are_profiled_at_the_start_every_k_steps_and_at_the_end():
    run = trained(**TINY, steps=5, every=2)
    assert [len(m.profile) for m in run] == [6, 0, 6, 0, 6, 6]
    profile = run[2].profile
    assert [layer.layer for layer in profile] == list(range(1, 7))
    assert [layer.name for layer in profile][::5] == ["stem.0", "classifier"]
    assert profile[-1].lambda_max_x == pytest.approx(run[2].last.lambda_max_x)
    assert profile[-1].lambda_max_x_centred == pytest.approx(run[2].last.lambda_max_x_centred)
    assert [math.isnan(m.unseen) for m in run] == [True] * 5 + [False]


def test_a_convolutions_input_is_measured_pixel_by_pixel():
    model = residual_network(LastLayerSettings(network="resnet", blocks=3, width=16))
    calls = []
    with Capture(model, calls.append), torch.no_grad():
        model(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = layer_inputs(calls)
    assert len(found) == 8
    for call, layer in zip(calls[:-1], found, strict=False):
        rows = torch.stack(
            [image[:, i, j] for image in call.input for i in range(8) for j in range(8)]
            if call.input.shape[-1] == 8
            else [pixel for image in call.input for pixel in image.flatten(1).T]
        )
        assert layer.lambda_max_x == pytest.approx(eigenvalues(rows)[0].item(), rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_classifiers_input_grows_tenfold_from_8_to_56_layers(seed):
    sizes = [
        at_start(network="resnet", blocks=blocks, seed=seed).last.lambda_max_x
        for blocks in (3, 9, 27)
    ]
    assert sizes[2] > 10 * sizes[0]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("blocks", [3, 9, 27])
def test_with_lastbn_it_stays_below_12(blocks, seed):
    found = at_start(network="resnet", blocks=blocks, seed=seed, final_norm="batch").last
    assert found.lambda_max_x < 12
    assert found.lambda_max_x_centred == pytest.approx(found.lambda_max_x, rel=1e-4)


@pytest.mark.parametrize("blocks", [3, 20, 100])
def test_lastbn_makes_the_trace_the_number_of_features(blocks):
    settings = LastLayerSettings(blocks=blocks, final_norm="batch")
    images = digit_images().train.x.double()
    trace = residual_network(settings).features(images).square().mean(dim=0).sum().item()
    assert trace == pytest.approx(settings.width, rel=1e-3)
    assert trace <= settings.width
    assert at_start(blocks=blocks, final_norm="batch").last.lambda_max_x < 9


@pytest.mark.parametrize("blocks", [20, 50, 100])
def test_the_perceptrons_come_near_the_law_of_the_reflected_walk(blocks):
    law = 2 / math.pi * 32 * blocks
    assert 0.6 < at_start(blocks=blocks).last.lambda_max_x / law < 1.1


@pytest.mark.parametrize(
    "settings", [{"blocks": 3}, {"blocks": 50}, {"network": "resnet", "blocks": 27}]
)
def test_three_quarters_of_the_size_is_the_mean(settings):
    last = at_start(**settings).last
    assert 1 - last.lambda_max_x_centred / last.lambda_max_x > 0.7


def test_in_preactivation_only_the_classifier_stands_out_and_not_with_the_final_bn():
    profiles = {
        arm: [
            layer.lambda_max_x
            for layer in at_start(blocks=50, preactivation=True, final_norm=arm).profile
        ]
        for arm in ("none", "own")
    }
    *others, last = profiles["none"]
    assert last > 10 * max(others)
    *others, last = profiles["own"]
    assert last < max(others)


def test_in_postactivation_the_blocks_first_layers_get_large_inputs_too():
    profile = [layer.lambda_max_x for layer in at_start(blocks=50).profile]
    firsts, seconds = profile[1:-1:2], profile[2:-1:2]
    assert profile[-3] > 0.9 * profile[-1]
    assert statistics.median(firsts) > 10 * statistics.median(seconds)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_a_large_rate_the_loss_rises_the_features_collapse_and_the_weight_dominates(seed):
    run = trained(blocks=50, seed=seed, steps=40, every=40)
    losses = [m.training.loss for m in run]
    norms = [m.last.weight_norm for m in run]
    assert max(losses[:5]) > 5 * losses[0]
    assert norms[5] > 5 * norms[0]
    assert min(m.last.lambda_max_x for m in run[:10]) < run[0].last.lambda_max_x / 100
    assert abs(statistics.fmean(losses[20:]) - math.log(10)) < 0.5
    assert max(norms[20:]) < 1.05 * min(norms[20:])
    fixed = trained(blocks=50, seed=seed, steps=40, every=40, final_norm="batch")
    assert max(m.training.loss for m in fixed) < 1.2 * fixed[0].training.loss
    assert fixed[-1].unseen > 0.85 > 0.5 > run[-1].unseen


def test_a_diverged_run_ends_with_a_measurement_that_says_so():
    *_, last = trained(**TINY, learning_rate=1e6, preactivation=True, steps=60)
    assert last.training.diverged
    assert not math.isfinite(last.training.loss)
    assert last.training.step < 60
    assert last.profile


def test_every_arm_trains():
    for arm in ARMS:
        network = {"network": "resnet", "blocks": 3, "width": 16} if "pool" in arm else TINY
        chosen = {"preactivation": arm == "own", "steps": 1, "batch_size": 64}
        assert len(trained(**(network | chosen), final_norm=arm)) == 2


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"network": "cnn"}, ValueError, "network must be one of 'mlp', 'resnet', got 'cnn'"),
        ({"blocks": 0}, ValueError, "blocks must be between 1 and 200, got 0"),
        ({"network": "resnet"}, ValueError, "blocks must be a multiple of 3 .*, got 20"),
        ({"width": 2}, ValueError, "width must be between 4 and 256, got 2"),
        ({"preactivation": "yes"}, ValueError, "preactivation must be one of False, True"),
        ({"final_norm": "bn"}, ValueError, "final_norm must be one of 'none', .*, got 'bn'"),
        ({"final_norm": "own"}, ValueError, "final_norm must not be 'own' without preactivation"),
        ({"final_norm": "before-pooling"}, ValueError, "'before-pooling' in a perceptron"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be between 1e-06 and"),
        ({"momentum": 1.0}, ValueError, "momentum must be at least 0 and below 1, got 1.0"),
        ({"steps": 1.5}, TypeError, r"steps must be a whole number \(int\), got 1\.5"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"batch_size": 8}, ValueError, "batch_size must be between 16 and 1437, got 8"),
        ({"seed": -1}, ValueError, "seed must be between 0 and"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        dataclasses.replace(LastLayerSettings(), **settings)
