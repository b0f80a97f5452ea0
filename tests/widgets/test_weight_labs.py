"""The labs of notebooks 04 and 05: what their charts, words and tables are told."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest

from lca_widgets.experiments.false_minimum import FalseMinimumMeasurement
from lca_widgets.labs import FalseMinimum, Freezing, WeightDomination
from lca_widgets.labs.false_minimum import describe_plateau, kind_of_plateau
from lca_widgets.labs.freezing import describe_freezing
from lca_widgets.labs.weight_domination import describe_domination
from tests.widgets.lab_checks import (
    PATIENCE,
    assert_presets_and_controls_are_of_settings,
    finished_on_screen,
    rows,
)

TINY = {
    WeightDomination: {"depth": 4, "width": 16, "samples": 64, "steps": 6},
    Freezing: {"trained": "01101", "width": 16, "samples": 64, "steps": 4},
    FalseMinimum: {
        "depth": 4, "width": 16, "samples": 64, "plateau_steps": 4, "branch_steps": 3,
        "branches": "lower,rescale",
    },
}  # fmt: skip
PLATEAU = {"depth": 6, "samples": 256, "plateau_steps": 40, "branch_steps": 60, "every": 20}

labs = pytest.mark.parametrize("kind", TINY)


@functools.cache
def ran(kind, **changes):
    return kind.run(**(TINY[kind] | changes))


@labs
def test_a_lab_on_screen_measures_what_its_headless_run_does(kind):
    with finished_on_screen(kind, TINY[kind]) as lab:
        assert len(lab.measurements) == len(ran(kind))
        assert [m.training for m in lab.measurements] == [m.training for m in ran(kind)]
        assert lab.toolbar.view["progress"] == 1


@labs
def test_every_preset_and_control_is_of_settings_that_exist(kind):
    assert_presets_and_controls_are_of_settings(kind)


@labs
def test_presets_of_a_lab_set_the_same_settings(kind):
    first, *others = (preset.keys() for preset in kind.presets.values())
    assert all(keys == first for keys in others)


def test_the_words_tell_domination_from_learning():
    dominated = ran(WeightDomination, large_rate=1e6)[-1]
    learned = WeightDomination.run(large_steps=0, samples=128, depth=4, every=100)[-1]
    assert "The weights dominate" in describe_domination(dominated)
    words = describe_domination(learned)
    assert "dominate" not in words
    assert "Frozen hidden layers would have" in words


def test_a_diverged_run_says_so_in_words():
    for kind, changes in (
        (WeightDomination, {"norm": "none", "large_rate": 1e6, "hold_last": False}),
        (Freezing, {"norm": "none", "learning_rate": 1e6, "steps": 20, "trained": "11111"}),
        (FalseMinimum, {"norm": "none", "learning_rate": 1e6, "train_last": True, "branches": ""}),
    ):
        last = ran(kind, **changes)[-1]
        assert last.training.diverged
        assert "diverged" in kind.describe(last)


def test_a_branch_that_diverges_gets_advice_of_its_own():
    changes = {"norm": "none", "learning_rate": 0.1, "branches": "restart", "new_rate": 1000.0}
    last = ran(FalseMinimum, **changes, train_last=True)[-1]
    assert last.training.diverged
    assert describe_plateau(last).endswith("Lower the rate after the fork.")


def test_the_twins_loss_is_drawn_from_the_end_of_the_large_steps_on():
    drawn = np.concatenate([rows(WeightDomination, "steps", m) for m in ran(WeightDomination)])
    assert drawn[drawn[:, 1] == 1][:, 0].tolist() == [3, 4, 5, 6]


def test_the_words_count_the_frozen_layers():
    start, *_, end = ran(Freezing)
    assert describe_freezing(start).startswith("At the start the loss is")
    assert "Freeze a layer" in describe_freezing(ran(Freezing, trained="11111")[-1])
    assert describe_freezing(end).startswith("2 of 5 layers are frozen.")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "false minimum"),
        ({"branches": "rescale"}, "minimum"),
        ({"norm": "batch", "plateau_steps": 100, "depth": 10}, "dead"),
        ({"norm": "layer-fixed", "depth": 10}, "lost"),
        ({"learning_rate": 0.01, "plateau_steps": 5}, "training"),
        ({"norm": "none", "train_last": True}, "diverged"),
    ],
)
def test_a_state_is_named_by_its_numbers(changes, kind):
    *_, last = FalseMinimum.run(**(PLATEAU | changes))
    assert kind_of_plateau(last) == kind
    verdicts = {
        "false minimum": "No minimum:",
        "minimum": "It has learned its samples",
        "dead": "Dead: ",
        "lost": "Not the weights' size alone",
        "training": "It trains.",
        "diverged": "Only a restart goes on.",
    }
    assert [name for name, words in verdicts.items() if words in describe_plateau(last)] == [kind]
    assert FalseMinimum.results(last)["ended as"] == kind


def test_each_branch_is_a_line_of_its_own_from_the_fork_on():
    drawn = np.concatenate([rows(FalseMinimum, "steps", m) for m in ran(FalseMinimum)])
    lines = {int(s): drawn[drawn[:, 1] == s][:, 0].tolist() for s in np.unique(drawn[:, 1])}
    assert lines == {0: [0, 1, 2, 3, 4], 2: [4, 5, 6, 7], 3: [4, 5, 6, 7]}


@pytest.fixture
def plateau():
    lab = FalseMinimum(**(TINY[FalseMinimum] | {"branches": ""}))
    lab.start()
    assert lab.wait(PATIENCE)
    yield lab
    lab.close()


def test_a_button_forks_the_run_and_the_state_reproduces_it(plateau):
    before = plateau.measurements
    plateau.act("Rescale hidden weights")
    assert plateau.wait(PATIENCE)
    plateau.act("Restart")
    assert plateau.wait(PATIENCE)
    assert plateau.measurements[: len(before)] == before
    assert {m.branch for m in plateau.measurements} == {"plateau", "rescale", "restart"}
    again = FalseMinimum.from_state(plateau.state)
    again.start()
    assert again.wait(PATIENCE)
    assert again.measurements == plateau.measurements
    again.close()


def test_a_button_pressed_again_does_its_branch_once(plateau):
    for action in ("Go on", "Restart", "Go on"):
        plateau.act(action)
        assert plateau.wait(PATIENCE)
    assert plateau._settings.branch_names == ("restart", "wait")


def test_a_button_pressed_on_the_way_forks_the_run_right_there():
    change = FalseMinimum.actions["Restart"]
    settings = FalseMinimum.settings_type(plateau_steps=200)
    *_, latest = ran(FalseMinimum, branches="")
    assert isinstance(latest, FalseMinimumMeasurement)
    assert change(settings, latest) == {"branches": "restart", "plateau_steps": 4}
    again = dataclasses.replace(settings, branches="wait")  # the plateau is only drawn again
    assert change(again, latest) == {"branches": "wait,restart"}
    on_branch = ran(FalseMinimum)[-1]
    assert change(settings, on_branch) == {"branches": "restart"}


def test_all_branches_have_a_button():
    settings = FalseMinimum.settings_type()
    latest = ran(FalseMinimum)[-1]
    pressed = [change(settings, latest)["branches"] for change in FalseMinimum.actions.values()]
    assert pressed == ["wait", "lower", "rescale", "rescale-all", "restart"]


def test_measured_numbers_are_in_the_tables():
    table = WeightDomination.tabulate(ran(WeightDomination))
    assert len(table) == 7 * 4
    assert math.isclose(
        table["sensitivity"].iloc[0], table["weight_sigma"].iloc[0] * table["grad_sigma"].iloc[0]
    )
    branches = FalseMinimum.tabulate(ran(FalseMinimum))
    assert branches["branch"].unique().tolist() == ["plateau", "lower", "rescale"]
