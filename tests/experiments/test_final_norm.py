"""The remedies start equal, differ in what they say they do, and train where nothing does not."""

import dataclasses
import functools
import statistics

import pytest
import torch

from lca_widgets.data import digit_images
from lca_widgets.experiments.final_norm import FinalNormSettings, final_norm
from lca_widgets.experiments.final_norm_rates import trained_residual
from lca_widgets.experiments.last_layer import LastLayerSettings, residual_network

SEEDS = (0, 1, 2)
IMAGES = len(digit_images().train)
TINY = {"blocks": 2, "width": 8, "batch_size": 64}


@functools.cache
def loss_of(arm, **settings):
    """The mean of the last ten mini-batch losses."""
    return trained_residual(LastLayerSettings(final_norm=arm, **settings)).loss


def test_all_arms_have_the_same_weights_and_batches():
    trainings = FinalNormSettings(**TINY).trainings()
    networks = {arm: residual_network(one) for arm, one in trainings.items()}
    weights = {
        arm: [m.weight for m in network.modules() if isinstance(m, torch.nn.Linear)]
        for arm, network in networks.items()
    }
    for arm in ("batch", "scale"):
        pairs = zip(weights["none"], weights[arm], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    first = next(final_norm(FinalNormSettings(**TINY)))
    inputs = [m.profile[0].lambda_max_x for m in first.arms.values()]
    assert inputs[0] == inputs[1] == inputs[2]


@pytest.mark.parametrize("blocks", [3, 20])
def test_the_constant_has_the_lambda_max_of_lastbn_and_the_kappa_of_nothing(blocks):
    settings = FinalNormSettings(blocks=blocks, steps=0, batch_size=IMAGES)
    [start] = final_norm(settings)
    none, batch, scale = (start.arms[arm].last for arm in ("none", "batch", "scale"))
    assert scale.lambda_max_x == pytest.approx(batch.lambda_max_x, rel=1e-6)
    assert scale.kappa50_x == pytest.approx(none.kappa50_x, rel=1e-6)
    assert batch.kappa50_x < none.kappa50_x / 4


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_blocks_at_rate_one_end_four_times_lower_with_lastbn(seed):
    none, batch, scale = (
        loss_of(arm, blocks=10, steps=50, seed=seed) for arm in ("none", "batch", "scale")
    )
    assert none > 4 * batch
    assert none > 2 * scale  # the honest third arm trains, too


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resnet_20_at_rate_one_ends_four_times_lower_with_lastbn(seed):
    none, batch, scale = (
        loss_of(arm, network="resnet", blocks=9, steps=40, seed=seed)
        for arm in ("none", "batch", "scale")
    )
    assert none > 4 * batch
    assert none > 1.5 * scale


def test_a_single_bn_is_not_enough_in_a_deep_network():
    assert loss_of("single", blocks=20) > 5 * loss_of("batch", blocks=20)


def test_dropout_does_not_make_lastbn_needless():
    chosen = {"blocks": 20, "dropout": 0.3}
    assert loss_of("none", **chosen) > 5 * loss_of("batch", **chosen)


def test_preactivation_needs_its_final_bn_or_lastbn():
    chosen = {"blocks": 20, "preactivation": True}
    for arm in ("own", "batch"):
        assert loss_of("none", **chosen) > 5 * loss_of(arm, **chosen)


def test_a_gentle_rate_needs_no_remedy():
    chosen = {"blocks": 10, "learning_rate": 0.1}
    assert loss_of("none", **chosen) < loss_of("batch", **chosen) < loss_of("scale", **chosen)


def test_an_arm_that_diverged_stays_where_it_did_while_others_go_on():
    settings = FinalNormSettings(
        "none,batch", blocks=20, learning_rate=5.0, steps=60, preactivation=True
    )
    run = list(final_norm(settings))
    none = [m.arms["none"].training for m in run]
    at = none[-1].step
    assert none[-1].diverged
    assert at < 60
    assert [record.step for record in none] == [min(step, at) for step in range(61)]
    assert run[-1].arms["batch"].training.step == 60
    assert not run[-1].training.diverged
    assert [sorted(m.fresh()) for m in (run[at], run[at + 1])] == [["batch", "none"], ["batch"]]


def test_a_run_is_over_when_all_arms_have_diverged():
    settings = FinalNormSettings("none,batch", learning_rate=1e5)
    *before, last = final_norm(settings)
    assert last.training.diverged
    assert len(before) < 60
    assert not any(m.training.diverged for m in before)


def test_each_step_has_the_first_arms_loss():
    run = list(final_norm(FinalNormSettings("batch,none", **TINY, steps=2)))
    assert [m.training.step for m in run] == [0, 1, 2]
    assert all(m.training.loss == m.arms["batch"].training.loss for m in run)
    assert statistics.fmean(m.training.accuracy for m in run) > 0


def test_every_setting_reaches_every_training():
    other = {
        "network": "resnet",
        "blocks": 6,
        "width": 16,
        "preactivation": True,
        "dropout": 0.2,
        "learning_rate": 0.7,
        "momentum": 0.4,
        "steps": 3,
        "batch_size": 50,
        "seed": 8,
    }
    fields = {field.name for field in dataclasses.fields(FinalNormSettings)}
    assert fields == {"arms", *other}
    trainings = FinalNormSettings("own,batch", **other).trainings()
    assert list(trainings) == ["own", "batch"]
    for arm, one in trainings.items():
        assert dataclasses.asdict(one) == other | {"final_norm": arm, "every": 3}


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"arms": "none,bn"}, ValueError, "arms must be one of 'none', .*, got 'bn'"),
        ({"arms": "none,none"}, ValueError, "arms must each be named once, got 'none,none'"),
        ({"arms": ("none",)}, TypeError, "arms must be a text such as 'none,batch', got"),
        ({"arms": ""}, ValueError, "arms must be one of 'none', .*, got ''"),
        ({"arms": "own"}, ValueError, "arms must not have 'own' without preactivation, got 'own'"),
        ({"arms": "before-pooling"}, ValueError, "arms must not have 'before-pooling' in a"),
        ({"blocks": 0}, ValueError, "blocks must be between 1 and 200, got 0"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        dataclasses.replace(FinalNormSettings(), **settings)
