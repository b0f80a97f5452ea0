"""The labs of notebook 06: what their charts, words and tables are told."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from lca_widgets.labs import Conditioning, LearningRates
from lca_widgets.labs.conditioning import describe_conditioning
from lca_widgets.labs.learning_rates import describe_rates
from tests.widgets.lab_checks import (
    PATIENCE,
    assert_presets_and_controls_are_of_settings,
    finished_on_screen,
    rows,
)

TINY = {"depth": 4, "width": 16, "samples": 64, "steps": 5, "every": 2}
FEW = {"depth": 3, "width": 16, "samples": 64, "rates": 3, "seeds": 2, "updates": 40}

labs = pytest.mark.parametrize(("kind", "settings"), [(Conditioning, TINY), (LearningRates, FEW)])


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("LCA_CACHE", "")


@functools.cache
def ran(kind, **changes):
    return kind.run(**((TINY if kind is Conditioning else FEW) | changes))


@labs
def test_a_lab_on_screen_measures_what_its_headless_run_does(kind, settings):
    with finished_on_screen(kind, settings) as lab:
        assert lab.measurements == ran(kind)


@labs
def test_every_preset_and_control_is_of_settings_that_exist(kind, settings):
    assert_presets_and_controls_are_of_settings(kind)


@labs
def test_a_lab_draws_its_run_as_a_finished_figure(kind, settings):
    lab = kind(**settings)
    lab.start()
    assert lab.wait(PATIENCE)
    titles = [line.split(":")[0] for line in repr(lab.figure()).splitlines()]
    assert len(titles) == len(kind.panels)
    lab.close()


def test_centred_values_stand_beside_uncentred_ones():
    m = ran(Conditioning)[0]
    drawn = rows(Conditioning, "centrings", m)
    for layer in m.layers:
        uncentred, centred = drawn[drawn[:, 1] == layer.layer][:, 3].tolist()
        assert (uncentred, centred) == (layer.kappa50_x, layer.kappa50_x_centred)
    assert (drawn[drawn[:, 2] == 0][1:, 3] > drawn[drawn[:, 2] == 1][1:, 3]).all()


def test_the_loss_of_every_step_is_drawn_though_few_are_measured():
    run = ran(Conditioning)
    assert [m.training.step for m in run] == [0, 2, 4, 5]
    drawn = np.concatenate([rows(Conditioning, "steps", m) for m in run])
    assert drawn[:, 0].tolist() == list(range(6))


def test_units_are_drawn_of_the_layers_that_have_a_rectifier():
    m = ran(Conditioning, depth=20)[0]
    drawn = rows(Conditioning, "units", m)
    assert sorted(set(drawn[:, 1])) == list(range(1, 20))
    assert drawn[drawn[:, 2] == 0][:, 3].tolist() == [layer.dying for layer in m.layers[:-1]]
    assert drawn[:, 3].max() > 0


def test_the_words_give_the_medians_and_the_units():
    m = ran(Conditioning, norm="batch")[0]
    words = describe_conditioning(m)
    assert "0 % of the hidden units are dying" in words
    assert "of the 64 samples carry Σ_g" in words
    kappas = [layer.kappa50_x for layer in m.layers[1:]]
    assert f"a κ_50(Σ_x) above {np.median(kappas):.3g}" in words
    assert "dying" not in describe_conditioning(ran(Conditioning, activation="tanh")[0])


def test_a_diverged_run_says_so_in_words():
    *_, last = ran(Conditioning, depth=10, learning_rate=3.0, steps=40)
    assert describe_conditioning(last).startswith("The run diverged")
    assert Conditioning.results(last)["κ_50(Σ_g)"] == "–"


def test_a_network_that_no_gradient_reaches_is_said_to_be_dead():
    *_, last = ran(Conditioning, learning_rate=10.0, steps=40)
    assert not last.training.diverged
    assert describe_conditioning(last).startswith("At step 40 the network is dead")


def test_the_conditioning_table_has_a_row_for_each_layer_and_measured_step():
    table = Conditioning.tabulate(ran(Conditioning))
    assert table[["step", "layer"]].to_numpy().tolist() == [
        [step, layer] for step in (0, 2, 4, 5) for layer in (1, 2, 3, 4)
    ]
    assert table["loss"].nunique() == 4
    assert table["effective_samples"].between(1, 64).all()


def test_a_rate_is_drawn_once_all_its_seeds_are_done():
    run = ran(LearningRates)
    counts = [len(list(LearningRates.tables["losses"].rows(m))) for m in run]
    assert counts == [0, 1] * 6
    rate, series, middle, low, high = rows(LearningRates, "losses", run[3])[0]
    assert (rate, series) == (run[3].settings.learning_rate, 1)
    losses = [m.state.loss for m in run[2:4]]
    assert (low, high) == (min(losses), max(losses))
    assert middle == pytest.approx(sum(losses) / 2)


def test_the_status_counts_trainings():
    settings = LearningRates.settings_type(**FEW)
    assert LearningRates.status(settings, ran(LearningRates)[3]) == "training 4 of 12, η 0.02"


def test_the_words_say_which_rates_are_usable():
    run = ran(LearningRates)
    assert describe_rates(run[0]) == "The first trainings are under way."
    words = describe_rates(run[-1])
    for network, norm in (("the plain network", "none"), ("BN", "batch")):
        usable = [s.learning_rate for s in run[-1].summaries if s.norm == norm and s.usable]
        expected = ", ".join(f"{rate:g}" for rate in usable)
        assert f"{network} fits at η = {expected}" in words
    assert usable
    assert LearningRates.results(run[-1])["normalised fits at η"] == expected


def test_the_rate_table_has_a_row_for_each_training():
    table = LearningRates.tabulate(ran(LearningRates))
    assert len(table) == 12
    assert table["norm"].tolist() == ["none", "none", "batch", "batch"] * 3
    assert not table["loss"].map(math.isnan).any()
