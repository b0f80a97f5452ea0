"""The notebooks in a real JupyterLab: a reader opens one, runs it, drags a slider, presses Stop.

Pictures are judged by what they show (rows painted, marks present), not by pixels. Each test saves
a screenshot under ``tests/browser/screenshots`` to look at.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pytest

from tests.browser.jupyterlab import LabOnScreen
from tests.notebooks.refresh import NOTEBOOKS

SCREENSHOTS = Path(__file__).with_name("screenshots")
NOTEBOOK_03 = "03_initialisation_and_magnitude.ipynb"

pytestmark = pytest.mark.timeout(300)  # a cold kernel on a busy machine imports for half a minute


def screenshot(page_or_part, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page_or_part.screenshot(path=SCREENSHOTS / f"{name}.png")


def assert_panels_are_drawn(lab, count=6):
    """Every panel shows marks of the current run: a curve, or coloured cells."""
    panels = lab.chart.locator("svg[role=img]")
    assert panels.count() == count
    for panel in panels.all():
        curve = panel.locator("[data-series=now] path.curve")
        cells = panel.locator("image[data-cells]:not([data-cells='0'])")
        assert curve.count() + cells.count() >= 1, panel.get_attribute("aria-label")


@pytest.fixture(scope="module")
def run_notebook(open_notebook):
    """`run_notebook(name)`: a notebook with all its cells run, the same one for every test."""

    @cache
    def run_one(name):
        notebook = open_notebook(name)
        notebook.run_all()
        return notebook

    return run_one


def test_notebook_03_runs_restarts_on_a_drag_and_stops(run_notebook):
    notebook = run_notebook(NOTEBOOK_03)
    lab = LabOnScreen(notebook)
    lab.wait_for_rows(run=1)
    lab.wait_for_state("finished")
    assert_panels_are_drawn(lab)

    lab.type("steps", "1000")  # so that Stop comes before the end
    lab.wait_for_state("running")
    first = lab.number("run")
    lab.drag("depth", to=10)
    lab.wait_for_rows(run=first + 1, rows=3 * 11)
    assert lab.control("depth").input_value() == "10"
    assert lab.state() == "running"
    assert_panels_are_drawn(lab)
    screenshot(lab.page, "notebook_03_running")

    lab.press("stop")
    lab.wait_for_state("stopped")
    painted = lab.number("rows")
    lab.page.wait_for_timeout(500)
    assert lab.number("rows") == painted
    assert_panels_are_drawn(lab)
    screenshot(lab.page, "notebook_03_stopped")

    assert notebook.console_errors == []
    assert notebook.cell_errors() == []


@pytest.fixture(scope="module")
def tour(run_notebook):
    """Notebook 00, all its cells run and its lab's first run finished."""
    notebook = run_notebook("00_start_here.ipynb")
    lab = LabOnScreen(notebook)
    lab.wait_for_state("finished")
    return notebook, lab


# Notebook, which of its labs, its panels, a slider, and where to: a logarithmic one to the value's
# logarithm.
DRAGS = [
    ("01_linear_models.ipynb", 0, 3, "rate", 2.5),
    ("01_linear_models.ipynb", 1, 6, "rate", 0.5),
    ("02_curvature_matrices.ipynb", 0, 12, "steps", 20),
    ("02_curvature_matrices.ipynb", 1, 4, "samples", 400),
    ("03_initialisation_and_magnitude.ipynb", 1, 4, "factor", -1),
    ("04_weight_domination.ipynb", 0, 6, "large_rate", 2),
    ("04_weight_domination.ipynb", 1, 4, "learning_rate", -1),
    ("05_false_local_minimum.ipynb", 0, 6, "plateau_steps", 50),
    ("06_bn_and_conditioning.ipynb", 0, 9, "depth", 10),
    ("06_bn_and_conditioning.ipynb", 1, 4, "updates", 20),
    ("07_last_layer_of_resnets.ipynb", 0, 6, "blocks", 10),
    ("08_final_bn_fix.ipynb", 0, 6, "blocks", 10),
    ("08_final_bn_fix.ipynb", 1, 4, "updates", 10),
]


@pytest.mark.parametrize(("name", "index", "count", "slider", "value"), DRAGS)
def test_a_lab_finishes_and_answers_a_drag(run_notebook, name, index, count, slider, value):
    notebook = run_notebook(name)
    lab = LabOnScreen(notebook, index)
    lab.wait_for_end()
    assert_panels_are_drawn(lab, count)
    first = lab.number("run")
    lab.drag(slider, to=value)
    lab.wait_for_rows(run=first + 1)
    lab.wait_for_end()
    assert_panels_are_drawn(lab, count)
    screenshot(lab.screen, f"{name[:2]}_lab_{index + 1}")
    assert notebook.cell_errors() == []
    assert notebook.console_errors == []


def test_a_step_size_above_the_limit_is_seen_to_diverge(run_notebook):
    lab = LabOnScreen(run_notebook("01_linear_models.ipynb"))
    lab.type("rate", "2.5")
    lab.wait_for_state("diverged")
    assert "the path leaves the picture" in lab.screen.inner_text()


def test_a_question_folds_its_hints_and_an_unanswered_one_says_so(run_notebook):
    notebook = run_notebook("01_linear_models.ipynb")
    fold = notebook.page.locator("details", has_text="Hint 1").first
    fold.scroll_into_view_if_needed()
    assert fold.get_attribute("open") is None
    fold.locator("summary").click()
    assert fold.get_attribute("open") is not None
    assert notebook.page.get_by_text("not answered yet").count() >= 5


def test_a_pressed_toggle_freezes_a_layer(run_notebook):
    lab = LabOnScreen(run_notebook("04_weight_domination.ipynb"), 1)
    lab.wait_for_end()
    first = lab.number("run")
    lab.control("trained").locator("[data-toggle='0']").click()  # off at the start: on
    lab.wait_for_rows(run=first + 1)
    lab.wait_for_end()
    assert "1 of 5 layers are frozen" in lab.screen.inner_text()
    screenshot(lab.screen, "04_toggled")


def test_a_run_on_its_plateau_is_forked_by_a_button(run_notebook):
    lab = LabOnScreen(run_notebook("05_false_local_minimum.ipynb"))
    lab.wait_for_end()
    first = lab.number("run")
    lab.screen.get_by_role("button", name="Rescale all weights").click()
    lab.wait_for_rows(run=first + 1)
    lab.wait_for_end()
    assert "with all weights rescaled to their initial norms" in lab.screen.inner_text()
    assert "rescale-all" in lab.control("state").input_value()
    screenshot(lab.screen, "05_forked")


def test_csv_export_downloads_the_table(tour, tmp_path):
    _, lab = tour
    with lab.page.expect_download() as download:
        lab.page.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "run.csv")
    rows = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert len(rows) == 401 * 10
    assert float(rows[0]["lambda_max_x"]) > 0


def test_a_refused_depth_is_explained_and_the_last_run_stays(tour):
    notebook, lab = tour
    run, rows = lab.number("run"), lab.number("rows")
    lab.type("depth", "1000")
    lab.page.get_by_text("depth must be between 2 and 100, got 1000").first.wait_for()
    assert (lab.number("run"), lab.number("rows")) == (run, rows)
    assert_panels_are_drawn(lab)
    screenshot(lab.page, "notebook_00_refused")
    assert notebook.console_errors == []


def test_without_a_kernel_a_lab_shows_as_a_picture(open_notebook):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = open_notebook(path.name)  # opened, nothing run
        pictures = notebook.page.locator(".jp-OutputArea-output img")
        pictures.first.scroll_into_view_if_needed()
        assert "model not found" not in notebook.page.inner_text(".jp-Notebook")
        screenshot(notebook.page, f"{path.stem[:2]}_stored")
