"""At small scale: what BN does to κ_50, to dying and full units, and what those do to ranks."""

import functools
import math

import pytest
import torch

from lca_widgets.experiments.conditioning import (
    ConditioningSettings,
    conditioning,
    effective_samples,
    matched,
    matched_table,
    summarise,
    unit_ranks,
)
from lca_widgets.experiments.small_networks import float64_digits, float64_mlp
from lca_widgets.training import TrainingRun, TrainingSettings

SEEDS = (0, 1, 2)
TINY = {"depth": 4, "width": 16, "samples": 64}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("LCA_CACHE", "")


@functools.cache
def at_start(**settings):
    """The measurement at initialisation of a network of 20 layers × 32."""
    defaults = {"depth": 20, "width": 32, "samples": 256, "steps": 0}
    [measurement] = conditioning(ConditioningSettings(**(defaults | settings)))
    return measurement


def summaries(**settings):
    return [summarise(at_start(seed=seed, **settings)) for seed in SEEDS]


@functools.cache
def ranks(seed, **settings):
    defaults = {"width": 32, "samples": 256, "steps": 0}
    return unit_ranks(ConditioningSettings(seed=seed, **(defaults | settings)))


@pytest.mark.parametrize("init", ["he", "lecun"])
def test_with_bn_the_inputs_are_better_conditioned_at_the_start_in_every_hidden_layer(init):
    for seed in SEEDS:
        plain, bn = (at_start(norm=norm, init=init, seed=seed) for norm in ("none", "batch"))
        pairs = zip(plain.layers, bn.layers, strict=True)
        ratios = [without.kappa50_x / with_bn.kappa50_x for without, with_bn in pairs]
        assert ratios[0] == 1  # the images themselves
        assert min(ratios[1:]) > 1.02
        assert min(ratios[5:]) > 3


def test_a_part_of_that_is_the_mean_and_a_part_is_not():
    for plain, bn in zip(summaries(norm="none"), summaries(norm="batch"), strict=True):
        gain = math.log(plain.kappa50_x / bn.kappa50_x)
        assert 0.3 * gain < math.log(plain.kappa50_x_centred / bn.kappa50_x_centred) < 0.95 * gain


def test_with_bn_the_gradients_are_better_conditioned_and_have_no_mean():
    for plain, bn in zip(summaries(norm="none"), summaries(norm="batch"), strict=True):
        assert 2 * bn.kappa50_g < plain.kappa50_g
        assert bn.kappa50_g_centred == pytest.approx(bn.kappa50_g, rel=1e-6)
        assert plain.kappa50_g_centred != pytest.approx(plain.kappa50_g, rel=1e-6)


@pytest.mark.parametrize("init", ["he", "lecun"])
def test_no_unit_is_dying_or_full_with_bn_and_some_are_without_at_depth_20(init):
    for found in summaries(norm="batch", init=init):
        assert (found.dying, found.full) == (0, 0)
    for found in summaries(norm="none", init=init):
        assert min(found.dying, found.full) > 0.02


def test_dying_and_full_units_become_more_frequent_with_depth():
    idle = [
        sum(layer.dying + layer.full for layer in layers)
        for seed in SEEDS
        for layers in [at_start(seed=seed).layers[:-1]]
        for layers in (layers[:6], layers[13:])
    ]
    assert all(late > early for early, late in zip(idle[::2], idle[1::2], strict=True))


def test_layer_normalisation_leaves_them_and_the_conditioning_as_they_are_without():
    for plain, normalised in zip(summaries(norm="none"), summaries(norm="layer"), strict=True):
        assert min(normalised.dying, normalised.full) > 0.02
        assert 0.3 < normalised.kappa50_x / plain.kappa50_x < 3


def test_with_bn_the_largest_eigenvalue_of_the_gradients_grows_toward_the_input():
    assert min(found.growth_g for found in summaries(norm="batch")) > 20
    assert max(found.growth_g for found in summaries(norm="none")) < 5


def test_measured_are_the_start_every_so_many_steps_and_the_end_and_each_step_is_told():
    settings = ConditioningSettings(**TINY, steps=7, every=3)
    found = list(conditioning(settings))
    assert [m.training.step for m in found] == [0, 3, 6, 7]
    assert [r.step for m in found for r in m.passed] == list(range(8))
    assert [m.training for m in found] == [m.passed[-1] for m in found]


def test_measuring_does_not_change_the_training():
    settings = ConditioningSettings(**TINY, norm="batch", steps=6, every=1)
    *_, measured = conditioning(settings)
    *_, rarely = conditioning(ConditioningSettings(**TINY, norm="batch", steps=6, every=6))
    assert measured.training == rarely.training
    assert measured.layers == rarely.layers


def test_a_run_that_diverges_ends_with_a_measurement_that_says_so():
    *_, last = conditioning(ConditioningSettings(**(TINY | {"depth": 10}), learning_rate=3.0))
    assert last.training.diverged
    assert any(layer.diverged for layer in last.layers)
    assert math.isnan(summarise(last).kappa50_g)


def test_weights_are_drawn_in_float64():
    model = float64_mlp("he", 0, depth=2, width=8)
    assert not torch.equal(model[0].weight, model[0].weight.float().double())
    again, other = (float64_mlp("he", seed, depth=2, width=8) for seed in (0, 1))
    assert torch.equal(model[0].weight, again[0].weight)
    assert not torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([1, 1, 1, 1], 4), ([1, 0, 0, 0], 1), ([2, 2, 0, 0], 2), ([1, 1, 1, 10], 103**2 / 10003)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-130])
def test_effective_samples_count_the_squares_of_the_gradients(lengths, expected, scale):
    gradients = scale * torch.tensor(lengths, dtype=torch.float64)[:, None]
    assert effective_samples(gradients) == pytest.approx(expected)


def test_effective_samples_of_nothing_are_not_a_number():
    assert math.isnan(effective_samples(torch.zeros(4, 2)))


@functools.cache
def matched_runs():
    settings = ConditioningSettings(depth=5, width=32, samples=128, steps=60)
    runs = matched(settings, norms=["none", "batch"], losses=[1.0, 0.3], steps=[0], seeds=SEEDS)
    return matched_table(runs)


def test_a_loss_is_matched_at_the_first_step_at_or_below_it():
    settings = ConditioningSettings(**TINY, steps=40)
    [found] = matched(settings, norms=["none"], losses=[1.0], steps=[], seeds=[3])
    model = float64_mlp("he", 3, depth=4, width=16)
    losses = [r.loss for r in TrainingRun(model, float64_digits(64), TrainingSettings(40, 0.1))]
    assert found.step == next(step for step, loss in enumerate(losses) if loss <= 1.0)
    assert found.loss == losses[int(found.step)]


def test_a_summary_is_that_of_the_training_at_that_step():
    settings = ConditioningSettings(**TINY, norm="batch", steps=5)
    [found] = matched(settings, norms=["batch"], losses=[], steps=[5], seeds=[0])
    *_, last = conditioning(settings)
    assert found.summary == summarise(last)


def test_the_difference_of_the_inputs_remains_at_equal_loss():
    at_loss = matched_runs()[lambda table: table["by"] == "loss"]
    for _, rows in at_loss.groupby("value"):
        kappa = rows.groupby("norm")["kappa50_x"]
        assert kappa.max()["batch"] < kappa.min()["none"]


def test_fewer_samples_carry_the_gradients_when_the_loss_is_lower():
    at_loss = matched_runs()[lambda table: table["by"] == "loss"]
    for _, rows in at_loss.groupby(["norm", "seed"]):
        carried = rows.sort_values("value")["effective_samples"]
        assert carried.is_monotonic_increasing
        assert carried.iloc[0] < 0.9 * carried.iloc[-1]


def test_a_loss_that_is_not_reached_is_not_a_number():
    settings = ConditioningSettings(**TINY, steps=1)
    missed, start = matched(settings, norms=["none"], losses=[1e-3], steps=[0], seeds=[0])
    assert math.isnan(missed.step)
    assert math.isnan(missed.summary.kappa50_x)
    assert (start.by, start.step) == ("step", 0)


@pytest.mark.parametrize("trained", [{}, {"steps": 30, "learning_rate": 0.03}])
def test_dying_and_full_units_bound_the_ranks(trained):
    for seed in SEEDS:
        for unit in ranks(seed, **trained):
            assert unit.rank_x <= unit.bound_x <= unit.width - unit.dying
            assert unit.rank_g <= unit.bound_g <= unit.width - unit.dying


def test_dying_units_are_nearly_all_of_the_zero_eigenvalues():
    units = [unit for seed in SEEDS for unit in ranks(seed)]
    dying, zeros = sum(u.dying for u in units), sum(u.width - u.rank_x for u in units)
    assert dying > 50
    assert 0.9 * zeros <= dying <= zeros


def test_full_units_cost_rank_where_what_they_copy_has_a_small_one():
    # Of ten classes Σ_g has rank 9: the last hidden layer's full units share these.
    costly = [unit for seed in range(6) for unit in ranks(seed)[-1:] if unit.full > 9]
    assert costly
    for unit in costly:
        assert unit.bound_g == unit.width - unit.dying - unit.full + 9
        assert unit.rank_g < unit.width - unit.dying


def test_taking_dying_units_out_lowers_kappa_by_a_small_part():
    deep = [unit for seed in SEEDS for unit in ranks(seed)[9:] if unit.dying]
    assert len(deep) > 10
    # Without one unit of 32 the median eigenvalue is still number 16.
    assert all(unit.kappa50_x_living < unit.kappa50_x for unit in deep if unit.dying > 1)
    bn = max(found.kappa50_x for found in summaries(norm="batch"))
    explained = [
        math.log(unit.kappa50_x / unit.kappa50_x_living) / math.log(unit.kappa50_x / bn)
        for unit in deep
        if math.isfinite(unit.kappa50_x)
    ]
    assert sorted(explained)[len(explained) // 2] < 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "batch"}, "norm must be one of 'none', got 'batch'"),
        ({"activation": "tanh"}, "activation must be one of 'relu', got 'tanh'"),
    ],
)
def test_ranks_are_bounded_for_plain_relu_networks_only(settings, words):
    with pytest.raises(ValueError, match=words):
        unit_ranks(ConditioningSettings(**settings, steps=0))


def test_a_run_that_diverges_has_no_ranks():
    settings = ConditioningSettings(**(TINY | {"depth": 10}), learning_rate=3.0)
    *_, last = conditioning(settings)
    assert last.training.diverged
    words = (
        r"learning_rate must be small enough for 100 steps, got 3\.0: .* not finite at "
        rf"step {last.training.step}\. Lower the learning rate"
    )
    with pytest.raises(ValueError, match=words):
        unit_ranks(settings)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"depth": 2}, ValueError, "depth must be between 3 and 50, got 2"),
        ({"width": 300}, ValueError, "width must be between 2 and 256, got 300"),
        ({"init": "best"}, ValueError, "init must be one of 'lecun', .*, got 'best'"),
        ({"norm": "bn"}, ValueError, "norm must be one of 'none', .*, got 'bn'"),
        ({"activation": "gelu"}, ValueError, "activation must be one of .*, got 'gelu'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be between 1e-06 and .*, got 0"),
        ({"steps": 0.5}, TypeError, r"steps must be a whole number \(int\), got 0\.5"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"samples": 1438}, ValueError, "samples must be between 8 and 1437, got 1438"),
        ({"seed": -1}, ValueError, "seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        ConditioningSettings(**settings)
