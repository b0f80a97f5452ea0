"""The two labs of linear models, without a browser."""

from __future__ import annotations

import math

import pytest

from lca_widgets.labs import LinearTraining, Quadratic
from lca_widgets.labs.linear_training import describe_linear_training
from lca_widgets.labs.quadratic import describe_quadratic

PATIENCE = 30  # seconds until a wait counts as hung

SMALL = {Quadratic: {"steps": 5}, LinearTraining: {"steps": 5}}


@pytest.fixture(params=SMALL, ids=lambda lab_type: lab_type.__name__)
def finished(request):
    lab = request.param(**SMALL[request.param])
    lab.start()
    assert lab.wait(PATIENCE)
    yield lab
    lab.close()


def test_the_lab_measures_what_its_headless_run_does(finished):
    kind = type(finished)
    assert repr(finished.measurements) == repr(kind.run(**SMALL[kind]))  # NaN is not equal to NaN
    assert finished.table()["step"].tolist() == [0, 1, 2, 3, 4, 5]


def test_every_preset_is_accepted_and_differs_from_the_others(finished):
    settings = [finished.settings_type(**preset) for preset in finished.presets.values()]
    assert len({repr(one) for one in settings}) == len(settings)


def test_every_table_has_rows_for_its_panels(finished):
    for panel in finished.panels:
        assert set(panel.columns_used) <= set(finished.tables[panel.table].columns)
        assert len(finished.chart.rows(panel.table))


def test_the_state_string_makes_the_lab_again(finished):
    again = type(finished).from_state(finished.state)
    assert again.state == finished.state == "steps=5"
    again.close()


def test_a_pinned_run_stands_in_the_table_with_its_results(finished):
    finished.pin()
    shown = finished._runs.value
    for column in finished.results(finished.measurements[-1]):
        assert column in shown


def test_a_model_that_needs_classes_is_refused_in_words():
    lab = LinearTraining(data="diabetes", steps=1)
    lab.set(model="softmax")
    assert "model must be 'least-squares' for 'diabetes'" in lab.toolbar.view["error"]
    assert lab._control_panel.error["name"] == "model"
    lab.close()


# What is drawn


def rows(lab_type, table, **settings):
    return [row for m in lab_type.run(**settings) for row in lab_type.tables[table].rows(m)]


@pytest.mark.parametrize("kappa", [1.0, 20.0, 1e4])
def test_contours_are_level_sets_inside_the_picture(kappa):
    points = rows(Quadratic, "contours", kappa=kappa, rotation=25.0, steps=0)
    assert all(abs(value) <= 1.6 or math.isnan(value) for point in points for value in point)
    assert points[0] == (-1.6, -1.6)
    assert (1.6, 1.6) in points
    angle = math.radians(25.0)
    levels = set()
    for x, y in points[4:]:
        if not math.isnan(x):
            flat, steep = (
                x * math.cos(angle) + y * math.sin(angle),
                y * math.cos(angle) - x * math.sin(angle),
            )
            levels.add(round(0.5 * (steep**2 + flat**2 / kappa), 9))
    assert levels == {round(0.5 * (0.25 * k) ** 2, 9) for k in range(1, 7)}
    [start] = rows(Quadratic, "path", kappa=kappa, rotation=25.0, steps=0)
    assert max(map(abs, start)) < 1.6


def test_only_some_steps_of_a_long_run_send_a_profile_and_the_last_one_does():
    steps = {row[0] for row in rows(LinearTraining, "errors", steps=250)}
    assert len(steps) < 130
    assert {0, 250} <= steps


def test_eigenvalues_below_the_cut_are_drawn_as_zeros():
    found = rows(LinearTraining, "spectrum", data="digits", preparation="raw", steps=0)
    for series in (0, 1):
        values = [value for _, line, _, value in found if line == series]
        assert (len(values), values.count(0)) == (65, 3)


def test_errors_below_rounding_do_not_stretch_the_axis():
    for lab_type, settings in ((Quadratic, {"kappa": 1.0}), (LinearTraining, {})):
        found = [row[-1] for row in rows(lab_type, "errors", rate=1.0, **settings)]
        assert min(found) == 1e-17


def test_the_curve_against_the_cut_off_is_sent_once_and_falls():
    found = rows(LinearTraining, "cutoffs", data="breast-cancer", preparation="raw", steps=2)
    assert len(found) == 57
    assert found[0][0] == pytest.approx(1e-16)
    assert found[-1][0] == pytest.approx(1e-2)
    assert [rank for _, _, rank in found] == sorted((rank for _, _, rank in found), reverse=True)
    assert found[0][1] > 1e12


# Words


def last_words(lab_type, **settings):
    return lab_type.describe(lab_type.run(**settings)[-1])


def test_the_words_tell_below_from_above_the_limit():
    below = last_words(Quadratic, kappa=20.0, rate=1.98)
    assert "is below the limit 2." in below
    assert "by 0.980 and along the flat one by 0.901" in below
    above = last_words(Quadratic, rate=2.02)
    assert "above the limit 2, and the path leaves the picture" in above
    assert "diverged" not in above
    assert "and the path will leave the picture" in last_words(Quadratic, rate=2.02, steps=3)
    assert "The run diverged: after" in last_words(Quadratic, rate=3.0, steps=500)
    assert "is above the limit 1.6" not in last_words(
        Quadratic, rate=1.7, method="momentum", momentum=0.2
    )


def test_the_words_on_line_search_name_its_bound():
    words = last_words(Quadratic, method="line-search", kappa=3.0)
    assert "at most ((κ-1)/(κ+1))² = 0.250" in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 1.9}, "η = 1.9/λ_max is below the limit 2/λ_max; κ is 45.5 on 14 of 14"),
        ({"rate": 2.5, "steps": 100}, "The run diverged: after"),
        ({"method": "preconditioned", "rate": 1.0}, "κ plays no part"),
        ({"model": "softmax"}, "above its infimum 0, which no weights attain."),
        ({"model": "softmax", "rate": 1.9}, "times its start, below what this step size allows."),
        (
            {"model": "softmax", "preparation": "raw", "rate": 1.9, "steps": 2},
            "λ_max of the Hessian is 1.1 times its start, above what this step size allows.",
        ),
    ],
)
def test_the_words_on_real_tables_follow_the_run(settings, words):
    measurement = LinearTraining.run(**({"steps": 20} | settings))[-1]
    assert words in describe_linear_training(measurement)


def test_a_continuous_target_has_no_words_on_accuracy():
    assert "classified" not in last_words(LinearTraining, data="diabetes", steps=1)
    assert describe_quadratic is Quadratic.describe
