"""A sweep computes each result once, keeps it, and never hands out a stale one."""

import dataclasses
import json
from typing import Any

import pytest

from lca_widgets.experiments import sweep as sweep_function
from lca_widgets.experiments.sweep import CACHE_VARIABLE, _surroundings, cache_folder, sweep
from lca_widgets.training import StepRecord, TrainingSettings

SETTINGS = [TrainingSettings(steps=steps) for steps in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def measure():
    """A function that counts its calls, and passes for one of the package."""

    calls = []

    def measure(settings):
        calls.append(settings.steps)
        return StepRecord(settings.steps, settings.learning_rate / 3, float("nan"))

    counting: Any = measure
    counting.calls = calls
    counting.__module__ = "lca_widgets.experiments.somewhere"
    return counting


def losses(measure, settings=SETTINGS):
    return [record.loss for record in sweep(measure, settings, StepRecord)]


def test_a_second_sweep_reads_what_the_first_one_kept(folder, measure):
    first, second = losses(measure), losses(measure)
    assert first == second == [0.1 / 3] * 3  # every digit
    assert measure.calls == [1, 2, 3]
    assert len(list(folder.iterdir())) == 3


def test_results_come_in_the_order_of_the_settings(folder, measure):
    losses(measure, SETTINGS[2:])
    steps = [record.step for record in sweep(measure, SETTINGS, StepRecord)]
    assert steps == [1, 2, 3]
    assert measure.calls == [3, 1, 2]


def test_changed_settings_are_computed_anew(folder, measure):
    losses(measure)
    changed = [dataclasses.replace(one, learning_rate=0.3) for one in SETTINGS]
    assert losses(measure, changed) == [0.3 / 3] * 3
    assert measure.calls == [1, 2, 3] * 2


def test_a_changed_source_is_computed_anew(folder, measure, monkeypatch):
    losses(measure)
    before = _surroundings()
    changed = (*before[:-1], "another source")
    monkeypatch.setitem(sweep.__globals__, "_surroundings", lambda: changed)
    losses(measure)
    assert measure.calls == [1, 2, 3] * 2


def test_the_source_of_the_whole_package_counts(tmp_path, monkeypatch):
    package = tmp_path / "lca_widgets"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1")
    monkeypatch.setattr("lca_widgets.__file__", str(package / "__init__.py"))
    before = _surroundings.__wrapped__()
    (package / "new.py").write_text("two = 2")
    assert _surroundings.__wrapped__() != before


def test_an_interrupted_sweep_goes_on_where_it_stopped(folder, measure):
    results = iter(sweep(measure, SETTINGS, StepRecord))
    next(results)
    next(results)
    del results
    losses(measure)
    assert measure.calls == [1, 2, 3]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"step": 1}', json.dumps({"other": 1})])
def test_a_damaged_file_is_computed_again(folder, measure, damage):
    losses(measure)
    for path in folder.iterdir():
        path.write_text(damage)
    assert losses(measure) == [0.1 / 3] * 3
    assert measure.calls == [1, 2, 3] * 2


def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(tmp_path, measure, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    assert losses(measure) == losses(measure) == [0.1 / 3] * 3
    assert measure.calls == [1, 2, 3] * 2


def test_an_empty_variable_keeps_nothing(measure, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_folder() is None
    losses(measure)
    losses(measure)
    assert measure.calls == [1, 2, 3] * 2


def test_without_the_variable_it_is_the_users_folder_of_caches(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lca_widgets"


def test_a_function_of_another_package_is_refused_whose_changes_are_not_seen(measure):
    measure.__module__ = "notebook"
    with pytest.raises(ValueError, match="measure must be a function of lca_widgets"):
        sweep(measure, SETTINGS, StepRecord)


def test_the_name_of_the_package_is_the_function():
    assert sweep_function is sweep
