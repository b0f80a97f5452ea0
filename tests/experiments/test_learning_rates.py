"""At small scale: with BN, larger learning rates train; and a sweep trains nothing twice."""

import dataclasses
import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lca_widgets.experiments.learning_rates import (
    FITTED,
    LearningRateSettings,
    TrainingAtRate,
    learning_rates,
    trained_state,
    usable_rates,
)
from lca_widgets.experiments.small_networks import float64_digits, float64_mlp
from lca_widgets.training import TrainingRun, TrainingSettings

PATIENCE = 20  # seconds until a wait counts as hung
TINY = {"depth": 6, "width": 32, "samples": 64, "rates": 4, "seeds": 3, "updates": 40}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("LCA_CACHE", "")


@functools.cache
def swept(**changes):
    return list(learning_rates(LearningRateSettings(**(TINY | changes))))


def test_with_bn_the_upper_end_of_the_usable_rates_is_higher():
    found = swept()[-1].summaries
    plain, bn = (usable_rates(found, norm) for norm in ("none", "batch"))
    assert plain
    assert max(bn) > 3 * max(plain)


def test_trainings_come_by_rate_then_network_then_seed():
    run = swept()
    assert [m.training.step for m in run] == list(range(24))
    assert LearningRateSettings(**TINY).steps == 23
    asked = [(m.settings.learning_rate, m.settings.norm, m.settings.seed) for m in run]
    assert asked[:7] == [
        *((0.02, "none", seed) for seed in (0, 1, 2)),
        *((0.02, "batch", seed) for seed in (0, 1, 2)),
        (0.14, "none", 0),
    ]
    assert asked[-1] == (6.3, "batch", 2)


def test_a_state_is_that_of_the_training():
    settings = TrainingAtRate(depth=3, width=16, samples=64, updates=30, learning_rate=1.0)
    state = trained_state(settings)
    run = TrainingRun(
        float64_mlp("he", 0, depth=3, width=16), float64_digits(64), TrainingSettings(30, 1.0)
    )
    records = list(run)
    assert (state.loss, state.accuracy) == (records[-1].loss, records[-1].accuracy)
    assert state.fitted_after == next(r.step for r in records if r.loss <= FITTED)
    assert 0.3 < state.test_accuracy < 1


def test_a_training_that_diverges_has_an_infinite_loss_and_is_never_fitted():
    state = trained_state(TrainingAtRate(depth=10, width=16, samples=64, learning_rate=3.0))
    assert (state.loss, state.fitted_after) == (math.inf, math.inf)


def test_a_summary_has_the_median_and_the_ends_of_its_trainings():
    run = swept()
    first = run[2].summaries[-1]
    losses = sorted(m.state.loss for m in run[:3])
    assert [first.loss_low, first.loss, first.loss_high] == losses
    assert first.test_low <= first.test_accuracy <= first.test_high
    assert first.fitted == sum(loss <= FITTED for loss in losses) / 3
    assert [m.complete for m in run[:4]] == [False, False, True, False]
    assert [len(m.summaries) for m in run[:4]] == [0, 0, 1, 1]
    assert len(run[-1].summaries) == 8


def test_a_rate_is_usable_if_most_of_its_trainings_end_fitted():
    base = swept()[2].summaries[-1]
    shares = {0.1: 1 / 3, 0.2: 0.5, 0.3: 2 / 3, 0.4: 1.0}
    found = [dataclasses.replace(base, learning_rate=r, fitted=f) for r, f in shares.items()]
    assert usable_rates(found, "none") == [0.3, 0.4]
    assert usable_rates(found, "batch") == []


def test_rates_are_round_and_in_equal_ratios():
    settings = LearningRateSettings(lowest=0.01, highest=1.0, rates=5)
    rates = [one.learning_rate for one in settings.trainings()[::6]]
    assert rates == [0.01, 0.032, 0.1, 0.32, 1.0]
    assert [r.learning_rate for r in LearningRateSettings(rates=1, seeds=1).trainings()] == [
        0.02, 0.02,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({"lowest": 0.1, "highest": 0.11, "rates": 6}, [0.1, 0.11]),
        ({"lowest": 0.1, "highest": 0.1, "rates": 3}, [0.1]),
    ],
)
def test_a_rate_that_is_rounded_to_another_one_counts_once(ends, expected):
    settings = LearningRateSettings(
        **ends, depth=2, width=4, samples=8, seeds=2, updates=1, norm="layer"
    )
    run = list(learning_rates(settings))
    assert len(run) == settings.steps + 1 == 4 * len(expected)
    asked = [(s.learning_rate, s.norm) for s in run[-1].summaries]
    assert asked == [(rate, norm) for rate in expected for norm in ("none", "layer")]


def test_without_a_normalisation_there_is_one_network():
    settings = LearningRateSettings(norm="none", rates=2, seeds=2)
    assert [one.norm for one in settings.trainings()] == ["none"] * 4
    assert settings.steps == 3


def test_a_training_is_made_once(monkeypatch):
    calls = []
    original = TrainingRun.__iter__

    def counted(run):
        calls.append(run)
        return original(run)

    monkeypatch.setattr(TrainingRun, "__iter__", counted)
    settings = LearningRateSettings(**(TINY | {"rates": 2, "seeds": 1, "updates": 3}), seed=77)
    first, second = (list(learning_rates(settings)) for _ in range(2))
    assert first == second
    assert len(calls) == 4


def test_the_same_training_is_waited_for_and_another_one_is_not(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    calls = []
    original = TrainingRun.__iter__

    def held(run):
        calls.append(run)
        if len(calls) == 1:
            begun.set()
            assert go_on.wait(PATIENCE)
        return original(run)

    monkeypatch.setattr(TrainingRun, "__iter__", held)
    one = TrainingAtRate(depth=2, width=4, samples=8, updates=1, seed=78)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(trained_state, one)
        assert begun.wait(PATIENCE)
        second = threads.submit(trained_state, one)
        try:
            threads.submit(trained_state, dataclasses.replace(one, seed=79)).result(PATIENCE / 2)
            assert not second.done()
        finally:
            go_on.set()
        assert first.result(PATIENCE) == second.result(PATIENCE)
    assert len(calls) == 2


def test_a_sweep_is_kept_on_disk_under_all_of_its_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("LCA_CACHE", str(tmp_path))
    tiny = TINY | {"rates": 1, "seeds": 1, "updates": 3}
    list(learning_rates(LearningRateSettings(**tiny)))
    assert len(list(tmp_path.iterdir())) == 2
    list(learning_rates(LearningRateSettings(**tiny)))
    assert len(list(tmp_path.iterdir())) == 2
    list(learning_rates(LearningRateSettings(**(tiny | {"updates": 4}))))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"norm": "bn"}, ValueError, "norm must be one of 'none', .*, got 'bn'"),
        ({"depth": 1}, ValueError, "depth must be between 2 and 50, got 1"),
        ({"lowest": 0}, ValueError, "lowest must be between 1e-06 and .*, got 0"),
        ({"lowest": 1.0, "highest": 0.5}, ValueError, "highest must be between 1 and .*, got 0.5"),
        ({"rates": 0}, ValueError, "rates must be between 1 and 50, got 0"),
        ({"seeds": 21}, ValueError, "seeds must be between 1 and 20, got 21"),
        ({"updates": 0}, ValueError, "updates must be between 1 and 10000, got 0"),
        ({"samples": 7}, ValueError, "samples must be between 8 and 1437, got 7"),
        ({"seed": 1.5}, TypeError, r"seed must be a whole number \(int\), got 1\.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        LearningRateSettings(**settings)
