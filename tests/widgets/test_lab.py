"""A lab without a browser: what its parts are told is what a reader would see."""

from __future__ import annotations

import time

import pytest

from lca_widgets.experiments import MagnitudeSettings
from lca_widgets.labs import Magnitude
from lca_widgets.training import present_devices
from lca_widgets.widgets.lab import PICTURES_VARIABLE, _LabRun

SMALL = {"depth": 3, "width": 8, "samples": 64, "steps": 5}
PATIENCE = 30  # seconds until a wait counts as hung


@pytest.fixture
def lab():
    lab = Magnitude(**SMALL)
    yield lab
    lab.close()


@pytest.fixture
def finished(lab):
    lab.start()
    assert lab.wait(PATIENCE)
    return lab


def change(panel, name, value):
    """Change a control as the browser does."""
    panel._handle_custom_msg({"type": "change", "name": name, "value": value, "serial": 1}, [])


def press(lab, button):
    lab.toolbar._handle_custom_msg({"type": "press", "name": button}, [])


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def view(lab):
    return lab.toolbar.view


def test_a_lab_trains_nothing_before_it_is_displayed(lab):
    assert not lab.measurements
    lab._repr_mimebundle_()
    assert lab.wait(PATIENCE)
    assert len(lab.measurements) == 6


def test_displaying_it_again_does_not_start_it_again(finished):
    finished._repr_mimebundle_()
    assert finished.chart.run == 1


def test_the_chart_holds_exactly_what_was_measured(finished):
    steps, layers = finished.chart.rows("steps"), finished.chart.rows("layers")
    assert steps.tolist() == [[m.training.step, m.training.loss] for m in finished.measurements]
    assert len(layers) == 6 * 3
    last = finished.measurements[-1].layers[-1]
    expected = [5, 3, last.lambda_max_x, last.lambda_max_g, last.kappa50_x]
    assert layers[-1].tolist() == expected


def test_the_lab_and_its_headless_run_measure_the_same(finished):
    assert finished.measurements == Magnitude.run(**SMALL)


def test_a_change_of_a_control_runs_with_the_new_setting(finished):
    change(finished._control_panel, "depth", 4)
    assert finished.wait(PATIENCE)
    assert finished.chart.run == 2
    assert len(finished.measurements[0].layers) == 4


def test_a_value_out_of_range_is_refused_in_words_and_the_last_run_stays(finished):
    before = finished.measurements
    change(finished._control_panel, "depth", 1000)
    words = "depth must be between 2 and 100, got 1000"
    assert view(finished)["error"] == words
    assert finished._control_panel.error == {"name": "depth", "message": words}
    assert finished.chart.run == 1
    assert finished.measurements == before
    assert finished.state == "depth=3&width=8&steps=5&samples=64"


def test_a_missing_data_folder_is_refused_in_words_and_the_last_run_stays(finished):
    change(finished._control_panel, "data", "/no/such/folder")
    assert finished.wait(PATIENCE)
    assert "data must be 'digits' or a folder" in view(finished)["error"]
    assert "'/no/such/folder': no such folder" in view(finished)["error"]
    assert finished._control_panel.error["name"] == "data"
    assert finished.chart.run == 1
    assert len(finished.measurements) == 6


def test_a_refusal_goes_away_with_the_next_good_value(finished):
    change(finished._control_panel, "depth", 1000)
    change(finished._control_panel, "depth", 4)
    assert view(finished)["error"] == ""
    assert finished._control_panel.error["message"] == ""


def test_a_refused_value_does_not_stand_in_the_way_of_other_controls(finished):
    change(finished._control_panel, "depth", 1000)
    change(finished._control_panel, "init", "he")
    assert finished.wait(PATIENCE)
    assert view(finished)["error"] == ""
    assert finished._control_panel.values["depth"] == 3
    assert finished.state == "depth=3&width=8&init=he&steps=5&samples=64"


def test_run_takes_an_old_refusal_away(finished):
    change(finished._control_panel, "depth", 1000)
    press(finished, "run")
    assert finished.wait(PATIENCE)
    assert view(finished)["error"] == ""


def test_a_run_that_fails_at_once_does_not_pass_the_old_status_off_as_its_own(finished):
    change(finished._control_panel, "data", "/no/such/folder")
    assert finished.wait(PATIENCE)
    assert (view(finished)["state"], view(finished)["text"]) == ("error", "")


def test_a_device_that_is_not_here_is_offered_disabled_with_the_reason(lab):
    [device] = [control for control in lab.header if control.name == "device"]
    for option in device.options:
        assert (option.disabled_reason is None) == (option.value in present_devices())


def test_a_diverged_run_says_so_in_words(lab):
    lab.set(depth=6, init="he", gain=100.0, learning_rate=1e6)
    assert lab.wait(PATIENCE)
    assert view(lab)["state"] == "diverged"
    assert "diverged" in lab._sentence.value


def test_step_advances_by_one_and_resume_finishes(lab):
    for step in range(3):
        press(lab, "step")
        assert lab._runner.state == "paused"
        wait_until(lambda n=step + 1: len(lab.measurements) == n)
    assert [m.training.step for m in lab.measurements] == [0, 1, 2]
    press(lab, "resume")
    assert lab.wait(PATIENCE)
    assert view(lab)["state"] == "finished"
    assert len(lab.measurements) == 6


def test_stop_keeps_what_was_measured(lab):
    lab.set(steps=100_000)
    wait_until(lambda: len(lab.measurements) >= 3)
    press(lab, "stop")
    kept = len(lab.measurements)
    assert view(lab)["state"] == "stopped"
    assert 3 <= kept < 100_000
    assert len(lab.chart.rows("steps")) == kept
    assert len(lab.table()) == 3 * kept


def test_pin_keeps_a_run_in_chart_table_and_state(finished):
    press(finished, "pin")
    change(finished._control_panel, "init", "he")
    assert finished.wait(PATIENCE)
    assert len(finished.chart.pins) == 1
    assert "1 kept" in finished._runs.value
    assert finished.state.endswith("|depth=3&width=8&steps=5&samples=64")
    press(finished, "unpin")
    assert finished.chart.pins == ()
    assert "|" not in finished.state


def test_a_run_is_pinned_once_however_often_pin_is_pressed(finished):
    press(finished, "pin")
    press(finished, "pin")
    assert "1 kept" in finished._runs.value
    assert finished.state.count("|") == 1


def test_a_lab_whose_view_is_closed_trains_no_further(lab):
    lab.set(steps=100_000)
    wait_until(lambda: lab.measurements)
    lab.chart._handle_custom_msg({"type": "closed"}, [])
    assert view(lab)["state"] == "stopped"


def test_a_pause_does_not_count_in_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    measured = Magnitude.run(**SMALL)
    run = _LabRun(MagnitudeSettings(steps=7))
    run.add(measured[:1], running=True)
    now[0] = 2.0
    run.add(measured[1:2], running=True)
    run.pause()
    now[0] = 1000.0
    run.add(measured[2:3], running=False)  # one step by hand
    now[0] = 2000.0
    run.add(measured[3:4], running=True)
    now[0] = 2002.0
    run.add(measured[4:5], running=True)
    assert run.seconds_left() == pytest.approx(2.0 * (7 - 4))


def test_reset_goes_back_to_the_settings_of_the_beginning(finished):
    change(finished._control_panel, "depth", 4)
    press(finished, "reset")
    assert finished.wait(PATIENCE)
    assert finished._control_panel.values["depth"] == 3
    assert len(finished.measurements[0].layers) == 3


def test_a_preset_sets_its_controls_and_a_change_makes_it_custom(finished):
    change(finished._header_panel, "preset", "He with BN")
    assert finished.wait(PATIENCE)
    assert finished._control_panel.values["init"] == "he"
    assert finished._control_panel.values["norm"] == "batch"
    assert finished._header_panel.values["preset"] == "He with BN"
    change(finished._control_panel, "gain", 2.0)
    assert finished._header_panel.values["preset"] == "custom"


def test_from_state_brings_settings_and_pinned_runs_back(finished):
    press(finished, "pin")
    change(finished._control_panel, "init", "he")
    assert finished.wait(PATIENCE)
    again = Magnitude.from_state(finished.state)
    again.start()
    assert again.wait(PATIENCE)
    assert again.state == finished.state
    assert again.measurements == finished.measurements
    assert again.chart.pins == finished.chart.pins


def test_a_pasted_state_is_taken_over_and_a_wrong_one_refused(finished):
    change(finished._state_panel, "state", "depth=4&width=8&steps=5&samples=64")
    assert finished.wait(PATIENCE)
    assert finished._control_panel.values["depth"] == 4
    change(finished._state_panel, "state", "depht=4")
    assert "no setting 'depht'" in view(finished)["error"]
    assert finished._state_panel.error["name"] == "state"
    assert finished._control_panel.values["depth"] == 4


def test_the_exported_python_repeats_the_run(finished, capsys):
    scope = {}
    exec(finished.code(), scope)
    assert scope["measurements"] == finished.measurements
    assert "lambda_max_x" in capsys.readouterr().out


def test_csv_export_is_the_table(finished, monkeypatch):
    sent = []
    monkeypatch.setattr(finished.chart, "download", lambda *arguments: sent.append(arguments))
    finished.export_csv()
    [(name, text, mime)] = sent
    assert name == "magnitude-depth=3-width=8-steps=5-samples=64.csv"
    assert mime == "text/csv"
    assert len(text.splitlines()) == 1 + 6 * 3
    assert text.startswith("step,layer,name,lambda_max_x,lambda_max_g")


def test_a_stored_notebook_gets_a_picture_instead_of_a_widget(lab, monkeypatch):
    monkeypatch.setenv(PICTURES_VARIABLE, "1")
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    monkeypatch.delenv(PICTURES_VARIABLE)
    live = lab._repr_mimebundle_()
    assert live["text/plain"] == bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in live


def test_every_control_is_a_setting_and_every_setting_has_a_control(lab):
    names = {control.name for control in (*lab.controls, *lab.header)}
    assert names == set(MagnitudeSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 1}, "depth must be between 2 and 100, got 1"),
        ({"width": 2.5}, "width must be a whole number"),
        ({"init": "hee"}, "init must be one of 'lecun', 'xavier', .*, got 'hee'"),
        ({"learning_rate": 0.0}, "learning_rate must be between 1e-06 and 1e"),
        ({"device": "tpu"}, "device must be one of 'cpu'"),
    ],
)
def test_a_wrong_setting_is_refused_at_construction(settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Magnitude(**settings)


class Deeper(Magnitude):
    """A lab with a button: one layer more, and no further step than the run has come to."""

    actions_label = "From here"
    actions = {  # noqa: RUF012 - as in a lab's own module
        "One layer more": lambda settings, latest: {
            "depth": settings.depth + 1,
            "steps": latest.training.step,
        }
    }


@pytest.fixture
def deeper():
    lab = Deeper(**SMALL)
    yield lab
    lab.close()


def button_of(lab, description):
    [button] = [w for w in descendants(lab) if getattr(w, "description", "") == description]
    return button


def descendants(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from descendants(child)


def test_an_action_changes_the_settings_and_runs(deeper):
    deeper.start()
    assert deeper.wait(PATIENCE)
    button_of(deeper, "One layer more").click()
    assert deeper.wait(PATIENCE)
    assert deeper.state == "depth=4&width=8&steps=5&samples=64"
    assert len(deeper.measurements[0].layers) == 4
    assert deeper._control_panel.values["depth"] == 4


def test_an_action_goes_on_from_where_the_run_is(deeper):
    deeper.start(paused=True)
    press(deeper, "step")
    wait_until(lambda: len(deeper.measurements) == 1)
    press(deeper, "step")
    wait_until(lambda: len(deeper.measurements) == 2)
    deeper.act("One layer more")
    assert deeper.wait(PATIENCE)
    assert deeper._settings.steps == 1


def test_an_action_before_the_first_measurement_does_nothing(deeper):
    deeper.act("One layer more")
    assert deeper.state == "depth=3&width=8&steps=5&samples=64"
    assert not deeper.measurements


def test_an_action_that_a_lab_does_not_have_is_refused_by_name(deeper):
    with pytest.raises(ValueError, match="action must be one of 'One layer more', got 'Fly'"):
        deeper.act("Fly")


def test_a_lab_without_actions_has_no_row_for_them(lab):
    assert not [w for w in descendants(lab) if "From here" in str(getattr(w, "value", ""))]
