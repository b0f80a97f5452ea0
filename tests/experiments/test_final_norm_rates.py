"""With a remedy, about ten times larger rates train; and a sweep trains nothing twice."""

import dataclasses
import functools
import math
import statistics

import pytest

from lca_widgets.experiments.final_norm_rates import (
    LAST,
    LOW,
    FinalNormRateSettings,
    final_norm_rates,
    trained_residual,
)
from lca_widgets.experiments.last_layer import LastLayerSettings, residual_run
from lca_widgets.experiments.learning_rates import usable_rates

FEW = {"blocks": 2, "width": 8, "rates": 2, "seeds": 2, "updates": 3}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("LCA_CACHE", "")


@functools.cache
def swept(**settings):
    return list(final_norm_rates(FinalNormRateSettings(**settings)))


def test_both_remedies_move_the_largest_usable_rate_tenfold():
    found = swept(lowest=0.32, highest=3.2, rates=3, seeds=1)[-1].summaries
    none, batch, scale = (usable_rates(found, arm) for arm in ("none", "batch", "scale"))
    assert none == [0.32]
    assert max(batch) == max(scale) == 3.2


def test_trainings_come_by_rate_then_arm_then_seed():
    run = swept(**FEW)
    asked = [(m.settings.learning_rate, m.settings.final_norm, m.settings.seed) for m in run]
    assert asked == [
        (rate, arm, seed)
        for rate in (0.03, 30.0)
        for arm in ("none", "batch", "scale")
        for seed in (0, 1)
    ]
    assert [m.training.step for m in run] == list(range(12))
    assert FinalNormRateSettings(**FEW).steps == 11
    assert [m.complete for m in run] == [False, True] * 6


def test_a_loss_is_the_mean_of_the_last_ten_batches():
    settings = LastLayerSettings(blocks=2, width=8, steps=25, batch_size=64)
    records = list(residual_run(settings)[1])[-LAST:]
    state = trained_residual(settings)
    assert LAST == 10
    assert state.loss == statistics.fmean(record.loss for record in records)
    assert state.accuracy == statistics.fmean(record.accuracy for record in records)


@pytest.mark.parametrize("rate", [30.0, 1e6])
def test_a_training_that_is_lost_has_an_infinite_loss(rate):
    state = trained_residual(LastLayerSettings(learning_rate=rate))
    assert (state.loss, state.fitted_after) == (math.inf, math.inf)


def test_usable_is_what_most_seeds_end_below():
    found = swept(**(FEW | {"rates": 1, "lowest": 1.0, "seeds": 3, "updates": 40, "width": 32}))
    for position, summary in enumerate(found[-1].summaries):
        losses = [m.state.loss for m in found[3 * position : 3 * position + 3]]
        assert summary.fitted == sum(loss <= LOW for loss in losses) / 3
        assert summary.loss == statistics.median(losses)
        assert (summary.norm, summary.depth) == (("none", "batch", "scale")[position], 6)
    assert any(summary.fitted for summary in found[-1].summaries)


def test_a_sweep_is_kept_on_disk_under_all_of_its_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("LCA_CACHE", str(tmp_path))
    one = {**FEW, "rates": 1, "seeds": 1}
    for change, kept in (({}, 3), ({}, 3), ({"updates": 4}, 6), ({"preactivation": True}, 9)):
        list(final_norm_rates(FinalNormRateSettings(**(one | change))))
        assert len(list(tmp_path.iterdir())) == kept


def test_every_setting_reaches_every_training():
    common = {
        "network": "resnet",
        "blocks": 6,
        "width": 16,
        "preactivation": True,
        "batch_size": 50,
    }
    sweep = FinalNormRateSettings(
        "own", **common, lowest=0.5, highest=2.0, rates=1, seeds=2, updates=7, seed=8
    )
    first, second = sweep.trainings()
    expected = LastLayerSettings(
        **common, final_norm="own", learning_rate=0.5, steps=7, every=7, seed=8
    )
    assert first == expected
    assert second == dataclasses.replace(expected, seed=9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": "bn"}, "arms must be one of 'none', .*, got 'bn'"),
        ({"lowest": 0}, "lowest must be between 1e-06 and .*, got 0"),
        ({"lowest": 1.0, "highest": 0.5}, "highest must be between 1 and .*, got 0.5"),
        ({"rates": 0}, "rates must be between 1 and 50, got 0"),
        ({"seeds": 0}, "seeds must be between 1 and 20, got 0"),
        ({"updates": 0}, "updates must be between 1 and 10000, got 0"),
        ({"blocks": 0}, "blocks must be between 1 and 200, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        FinalNormRateSettings(**settings)
