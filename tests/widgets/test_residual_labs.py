"""The labs of notebooks 07 and 08: what their charts, words and tables are told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from lca_widgets.experiments.final_norm_rates import LOW
from lca_widgets.experiments.last_layer import ARMS
from lca_widgets.labs import FinalNorm, FinalNormRates, LastLayer
from lca_widgets.labs.controls import REMEDIES
from lca_widgets.labs.final_norm import describe_arms
from lca_widgets.labs.final_norm_rates import describe_remedies
from lca_widgets.labs.last_layer import describe_last_layer
from tests.widgets.lab_checks import (
    PATIENCE,
    assert_presets_and_controls_are_of_settings,
    finished_on_screen,
    rows,
)

SMALL = {"blocks": 2, "width": 8, "batch_size": 64}
SETTINGS = {
    LastLayer: SMALL | {"steps": 5, "every": 2},
    FinalNorm: SMALL | {"steps": 4},
    FinalNormRates: SMALL | {"rates": 3, "seeds": 2, "updates": 15},
}

PRE = "pre-activation"

labs = pytest.mark.parametrize("kind", SETTINGS)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("LCA_CACHE", "")


@functools.cache
def ran(kind, **changes):
    return kind.run(**(SETTINGS[kind] | changes))


@labs
def test_a_lab_on_screen_measures_what_its_headless_run_does(kind):
    with finished_on_screen(kind, SETTINGS[kind]) as lab:
        # As texts: a NaN, which stands for what is not measured yet, equals no other.
        assert str(lab.measurements) == str(ran(kind))


@labs
def test_every_preset_and_control_is_of_settings_that_exist(kind):
    assert_presets_and_controls_are_of_settings(kind)


@labs
def test_any_preset_can_follow_any_other(kind):
    for first, second in itertools.permutations(kind.presets.values(), 2):
        settings = dataclasses.replace(kind.settings_type(), **first)
        assert dataclasses.replace(settings, **second) == kind.settings_type(**second)


@labs
def test_every_preset_runs_a_step(kind):
    # As deep as it says, for that is what a preset is about, but narrow.
    short = {"rates": 1, "seeds": 1, "updates": 1} if kind is FinalNormRates else {"steps": 1}
    short |= {"width": 8, "batch_size": 64}
    for preset in kind.presets.values():
        run = kind.run(**(preset | short))
        assert len(run) == kind.settings_type(**(preset | short)).steps + 1
        assert kind.describe(run[-1])


@labs
def test_a_lab_draws_its_run_as_a_finished_figure(kind):
    lab = kind(**SETTINGS[kind])
    lab.start()
    assert lab.wait(PATIENCE)
    assert len(repr(lab.figure()).splitlines()) == len(kind.panels)
    lab.close()


def test_the_classifier_is_drawn_at_every_step_and_all_layers_at_those_with_a_profile():
    run = ran(LastLayer)
    drawn = np.concatenate([rows(LastLayer, "steps", m) for m in run])
    assert drawn[:, 0].tolist() == list(range(6))
    assert drawn[:, 3].tolist() == [m.last.weight_norm for m in run]
    profiles = [rows(LastLayer, "layers", m) for m in run]
    assert [len(profile) for profile in profiles] == [6, 0, 6, 0, 6, 6]
    assert profiles[0][-1, 2] == pytest.approx(run[0].last.lambda_max_x)


def test_centred_values_stand_beside_uncentred_ones():
    m = ran(LastLayer)[0]
    (_, _, *uncentred), (_, _, *centred) = rows(LastLayer, "centrings", m).tolist()
    assert uncentred == [m.last.lambda_max_x, m.last.kappa50_x]
    assert centred == [m.last.lambda_max_x_centred, m.last.kappa50_x_centred]
    assert centred[0] < uncentred[0]


def test_the_words_give_the_size_the_share_of_the_mean_and_the_other_layers():
    m = ran(LastLayer)[0]
    words = describe_last_layer(m)
    share = 1 - m.last.lambda_max_x_centred / m.last.lambda_max_x
    assert f"λ_max {m.last.lambda_max_x:.3g}, of which the mean is {100 * share:.0f} %" in words
    others = np.median([layer.lambda_max_x for layer in m.profile[:-1]])
    times = m.last.lambda_max_x / others
    assert f"median of the other layers' λ_max is {others:.3g}" in words
    assert f"the classifier's is {times:.3g} times that" in words
    assert "median" not in describe_last_layer(ran(LastLayer)[1])
    assert "unseen" in describe_last_layer(ran(LastLayer)[-1])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (20.0, "worse than guessing"),
        (3.0, "worse than guessing"),
        (2.2, "about that of guessing"),
        (1.8, "about that of guessing"),
    ],
)
def test_a_loss_near_or_above_guessing_is_said_to_be_so(loss, words):
    m = ran(LastLayer)[1]
    there = dataclasses.replace(m, training=dataclasses.replace(m.training, loss=loss))
    assert words in describe_last_layer(there)
    low = dataclasses.replace(m, training=dataclasses.replace(m.training, loss=1.6))
    assert "guessing" not in describe_last_layer(low)


def test_a_share_that_is_but_rounding_is_said_to_be_none():
    m = ran(LastLayer)[1]
    same = dataclasses.replace(m.last, lambda_max_x_centred=m.last.lambda_max_x * (1 - 1e-9))
    assert "of which the mean is 0 %" in describe_last_layer(dataclasses.replace(m, last=same))


def test_the_words_do_without_a_ratio_to_layers_whose_inputs_are_zero():
    m = ran(LastLayer)[0]
    zero = tuple(dataclasses.replace(layer, lambda_max_x=0.0) for layer in m.profile)
    words = describe_last_layer(dataclasses.replace(m, profile=zero))
    assert "The median of the other layers' λ_max is 0." in words


def test_diverged_and_dead_runs_are_said_to_be_so():
    m = ran(LastLayer)[1]
    diverged = dataclasses.replace(m, training=dataclasses.replace(m.training, diverged=True))
    assert describe_last_layer(diverged).startswith("The run diverged")
    dead = dataclasses.replace(m, last=dataclasses.replace(m.last, lambda_max_x=0.0))
    assert "the network is dead" in describe_last_layer(dead)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "20 blocks, η 1"),
        ({"final_norm": "batch", "momentum": 0.9}, "20 blocks, LastBN, η 1, momentum 0.9"),
        ({"network": "resnet", "blocks": 9, "seed": 3}, "ResNet-20, η 1, seed 3"),
        (
            {"preactivation": True, "final_norm": "own"},
            "pre-activation 20 blocks, own final BN, η 1",
        ),
    ],
)
def test_a_run_is_named_by_its_network_its_remedy_and_its_rate(settings, name):
    assert LastLayer.name_run(LastLayer.settings_type(**settings)) == name


def test_every_remedy_has_a_name():
    assert list(REMEDIES) == list(ARMS)


def test_arms_are_drawn_as_series_until_they_diverge():
    run = ran(FinalNorm)
    drawn = rows(FinalNorm, "arms", run[1])
    assert drawn[:, :2].tolist() == [[1, 0], [1, 1], [1, 2]]
    assert drawn[:, 2].tolist() == [m.training.loss for m in run[1].arms.values()]
    late = dataclasses.replace(run[2], arms=run[2].arms | {"none": run[1].arms["none"]})
    assert rows(FinalNorm, "arms", late)[:, 1].tolist() == [1, 2]


def test_the_words_name_every_arm():
    run = ran(FinalNorm)
    words = describe_arms(run[1])
    for arm in ("none", "batch", "scale"):
        assert f"{REMEDIES[arm]} {run[1].arms[arm].training.loss:.3g}" in words
    assert "Unseen" not in words
    assert "Unseen images right" in describe_arms(run[-1])


def test_the_words_compare_nothing_with_last_bn():
    m = ran(FinalNorm)[1]
    ratio = m.arms["none"].training.loss / m.arms["batch"].training.loss
    assert f"without a remedy it is {ratio:.3g} times LastBN's" in describe_arms(m)
    batch = m.arms["batch"]
    for loss in (1e9, math.nan):
        lost = dataclasses.replace(batch, training=dataclasses.replace(batch.training, loss=loss))
        words = describe_arms(dataclasses.replace(m, arms=m.arms | {"batch": lost}))
        assert "times LastBN's" not in words
    alone = dataclasses.replace(m, arms={"none": m.arms["none"]})
    assert "times LastBN's" not in describe_arms(alone)


def test_arms_that_diverged_are_said_to_have():
    *_, last = ran(FinalNorm, blocks=20, learning_rate=1e5, steps=60, arms="none,batch")
    assert last.training.diverged
    assert describe_arms(last).startswith("All runs diverged")
    m = ran(FinalNorm)[1]
    none = dataclasses.replace(
        m.arms["none"],
        training=dataclasses.replace(m.arms["none"].training, loss=math.inf, diverged=True),
    )
    words = describe_arms(dataclasses.replace(m, arms=m.arms | {"none": none}))
    assert "nothing diverged" in words
    assert "times LastBN's" not in words


def test_the_arm_table_has_a_row_an_arm_and_step():
    table = FinalNorm.tabulate(ran(FinalNorm))
    assert table[["step", "arm"]].to_numpy().tolist() == [
        [step, arm] for step in range(5) for arm in ("none", "batch", "scale")
    ]
    assert table["unseen"].notna().tolist() == [False] * 12 + [True] * 3


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "20 blocks, η 1"),
        ({"dropout": 0.3, "seed": 2}, "20 blocks, η 1, dropout 0.3, seed 2"),
        ({"arms": "none,batch,single"}, "20 blocks, η 1, nothing : LastBN : LastBN alone"),
    ],
)
def test_a_comparison_is_named_by_its_network_and_by_arms_that_are_not_the_usual_ones(
    settings, name
):
    assert FinalNorm.name_run(FinalNorm.settings_type(**settings)) == name


def test_kept_runs_have_the_same_columns_whichever_arms_they_have():
    usual = FinalNorm.results(ran(FinalNorm)[-1])
    single = ran(FinalNorm, arms="none,batch,single")[-1]
    others = FinalNorm.results(single)
    assert list(usual) == list(others) == [f"loss, {name}" for name in REMEDIES.values()]
    assert others["loss, matched constant"] == ""
    assert others["loss, LastBN alone"] == f"{single.arms['single'].training.loss:.3g}"
    first, *_, last = map(FinalNormRates.results, ran(FinalNormRates))
    assert list(first) == list(last)
    assert not any(first.values())


def chosen(lab, name, value):
    """What the control panel says of a change by the user, and its values after it."""
    panel = lab._control_panel
    panel._receive(panel, {"type": "change", "name": name, "value": value, "serial": 1}, None)
    lab.stop()
    return panel.error["name"], panel.values


def test_arrangements_change_once_the_own_bn_is_given_up():
    own = {"preactivation": True, "final_norm": "own"}
    lab = LastLayer(**(SETTINGS[LastLayer] | own))
    assert chosen(lab, "preactivation", False)[0] == "final_norm"
    assert "a post-activation network has no BN" in lab._control_panel.error["message"]
    error, values = chosen(lab, "final_norm", "none")
    assert (error, values["preactivation"]) == (None, True)  # what was refused is not tried again
    error, values = chosen(lab, "preactivation", False)
    assert (error, values["final_norm"]) == (None, "none")
    lab.close()


def test_blocks_that_make_no_resnet_are_refused_at_their_control():
    lab = LastLayer(**SETTINGS[LastLayer])
    assert chosen(lab, "network", "resnet")[0] == "blocks"
    assert lab._control_panel.error["message"].startswith("blocks must be a multiple of 3")
    lab.close()


def test_a_refused_arm_shows_at_its_control():
    lab = FinalNorm(**SETTINGS[FinalNorm])
    lab.set(arms="none,own")
    assert lab._control_panel.error["name"] == "arms"
    assert lab._control_panel.error["message"].startswith("arms must not have 'own'")
    lab.close()


def test_a_rate_is_drawn_once_all_its_seeds_are_done_as_the_series_of_its_arm():
    run = ran(FinalNormRates)
    counts = [len(list(FinalNormRates.tables["losses"].rows(m))) for m in run]
    assert counts == [0, 1] * 9
    drawn = [rows(FinalNormRates, "shares", m)[0] for m in run if m.complete]
    assert [row[1] for row in drawn] == [0, 1, 2] * 3
    assert FinalNormRates.status(FinalNormRates.settings_type(), run[3]) == (
        f"training 4 of 63, η {run[3].settings.learning_rate:g}"
    )


def test_the_words_say_which_rates_are_usable_with_which_remedy():
    run = ran(FinalNormRates, lowest=0.3, highest=3.0, rates=2, seeds=1, updates=60, width=32)
    first = ran(FinalNormRates)[0]
    assert describe_remedies(first) == "The first trainings are under way."
    words = describe_remedies(run[-1])
    for arm in ("none", "batch", "scale"):
        usable = [s.learning_rate for s in run[-1].summaries if s.norm == arm and s.loss <= LOW]
        expected = ", ".join(f"{rate:g}" for rate in usable)
        said = f"η = {expected}" if usable else "none of the rates"
        assert f"{REMEDIES[arm]} fits at {said}" in words
        assert FinalNormRates.results(run[-1])[f"{REMEDIES[arm]} fits at η"] == (expected or "–")
    assert f"at most {LOW:g}" in words


def test_the_rate_table_has_a_row_for_each_training():
    table = FinalNormRates.tabulate(ran(FinalNormRates))
    assert len(table) == 18
    assert table["final_norm"].tolist()[:6] == ["none", "none", "batch", "batch", "scale", "scale"]
    assert not table["loss"].map(math.isnan).any()
