"""The JavaScript half of each widget, with its Python half, in a blank page.

What these tests see: the message contract from end to end, and the picture that comes of it. What
they cannot see: JupyterLab around it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from lca_widgets.widgets.control_panel import (
    Choice,
    ControlPanel,
    Entry,
    Option,
    Slider,
    Switch,
    Toggles,
)
from lca_widgets.widgets.live_chart import LiveChart, Panel
from lca_widgets.widgets.toolbar import Toolbar

Mount = Callable[..., Any]

TABLES = {"steps": ("step", "loss"), "layers": ("step", "layer", "lambda")}
LOSS = Panel("line", "loss", "steps", x="step", y="loss", log=True)
BY_LAYER = Panel("profile", "λ by layer", "layers", x="layer", y="lambda", log=True)
MAP = Panel("heatmap", "λ map", "layers", x="step", y="layer", colour="lambda", log=True)
LIMITS = {"step": (0, 10), "layer": (1, 3)}


def layers(step: int, *values: float) -> list[list[float]]:
    return [[step, layer + 1, value] for layer, value in enumerate(values)]


class ChartOnPage:
    """A mounted chart, in the words of its tests."""

    def __init__(self, mount: Mount, *panels: Panel, tables: Any = TABLES, **options: Any) -> None:
        self.chart = LiveChart(panels or (LOSS, BY_LAYER, MAP), tables)
        self.mounted = mount(self.chart, "spec", **options)
        self.mounted.deliver()
        self.page: Page = self.mounted.page

    def painted(self) -> dict[str, str]:
        self.mounted.settle()
        data: dict[str, str] = self.mounted.root.evaluate("(root) => ({...root.dataset})")
        return data

    def series(self, kind: str, panel: str = "loss") -> Any:
        return self.page.locator(f"svg[data-panel='{panel}'] g[data-series={kind}]")

    def y_ticks(self, panel: str = "loss") -> list[str]:
        ticks = self.page.locator(f"svg[data-panel='{panel}'] .y-tick")
        found: list[str] = ticks.all_text_contents()
        return found


@pytest.fixture
def chart(mount: Mount) -> ChartOnPage:
    return ChartOnPage(mount)


# ---------------------------------------------------------------- live chart


def test_rows_are_painted_in_every_panel(chart: ChartOnPage) -> None:
    chart.chart.begin("depth 3", LIMITS)
    for step in range(5):
        chart.chart.append(steps=[step, 2.0 / (step + 1)], layers=layers(step, 1, 0.1, 0.01))
    assert chart.painted()["rows"] == "20"
    assert chart.painted()["run"] == "1"
    assert chart.series("now").get_attribute("data-points") == "5"
    assert chart.series("now", "λ by layer").get_attribute("data-points") == "3"
    image = chart.page.locator("svg[data-panel='λ map'] image[visibility=visible]")
    assert image.get_attribute("data-cells") == "15"
    assert image.get_attribute("href").startswith("data:image/png")


def test_a_burst_of_rows_is_one_paint(chart: ChartOnPage) -> None:
    chart.chart.begin("", LIMITS)
    before = int(chart.painted()["paints"])
    chart.page.evaluate(
        """() => { for (let step = 0; step < 100; step++) {
          const bytes = new Uint8Array(new Float32Array([step / 10, 0.5]).buffer);
          model.receive({type: "rows", run: 1, tables: [["steps", 1]]},
                        [btoa(String.fromCharCode(...bytes))]); } }"""
    )
    after = chart.painted()
    assert after["rows"] == "100"
    assert int(after["paints"]) == before + 1


def test_the_old_picture_stays_until_the_new_run_has_rows(chart: ChartOnPage) -> None:
    chart.chart.begin("old", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [1, 0.5]])
    chart.chart.begin("new", LIMITS)
    painted = chart.painted()
    assert (painted["run"], painted["rows"]) == ("1", "2")
    expect(chart.page.locator("[data-legend=now]")).to_have_text("now: old")
    chart.chart.append(steps=[[0, 1.0]])
    painted = chart.painted()
    assert (painted["run"], painted["rows"]) == ("2", "1")
    expect(chart.page.locator("[data-legend=now]")).to_have_text("now: new")


def test_rows_of_an_older_run_are_ignored(chart: ChartOnPage) -> None:
    chart.chart.begin("old", LIMITS)
    chart.chart.append(steps=[0, 1.0])
    chart.chart.begin("new", LIMITS)
    chart.chart.append(steps=[0, 1.0])
    late = {"type": "rows", "run": 1, "tables": [["steps", 1]]}
    chart.chart.send(late, [np.zeros(2, "<f4").tobytes()])
    painted = chart.painted()
    assert (painted["run"], painted["rows"]) == ("2", "1")


def test_a_reloaded_page_shows_everything(chart: ChartOnPage, mount: Mount) -> None:
    chart.chart.begin("first", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [1, 0.5]], layers=layers(0, 1, 2, 3))
    chart.chart.pin("pinned run")
    chart.chart.begin("second", LIMITS)
    chart.chart.append(steps=[[0, 1.0]])
    again = mount(chart.chart, "spec")
    again.settle()
    assert again.root.get_attribute("data-rows") == "0"
    again.deliver()  # the page said that it is ready; Python answers
    again.settle()
    assert again.root.get_attribute("data-rows") == "1"
    expect(chart.page.locator("[data-legend=pin]")).to_have_text("pinned: pinned run")
    assert chart.series("pin").get_attribute("data-points") == "2"


def test_two_views_share_the_rows(chart: ChartOnPage) -> None:
    chart.page.evaluate("() => { widget.render({model, el: document.getElementById('root')}); }")
    chart.chart.begin("", LIMITS)
    chart.chart.append(steps=[0, 1.0])
    chart.mounted.settle()
    roots = chart.page.locator(".lca-chart")
    assert [roots.nth(i).get_attribute("data-rows") for i in range(2)] == ["1", "1"]


def test_pinned_runs_differ_by_dash_marker_and_grey(chart: ChartOnPage) -> None:
    for label in ("a", "b", "c"):
        chart.chart.begin(label, LIMITS)
        chart.chart.append(steps=[[step, 1.0 + step] for step in range(9)])
        chart.chart.pin(label)
    chart.mounted.settle()
    look = """(groups) => groups.map((g) => [g.getAttribute("stroke"),
        g.querySelector(".curve").getAttribute("stroke-dasharray"),
        g.querySelector(".markers").getAttribute("d").replace(/[\\d. -]+/g, " ")])"""
    looks = chart.series("pin").evaluate_all(look)
    assert len(looks) == 3
    for cue in zip(*looks, strict=True):
        assert len(set(cue)) == 3
    chart.chart.unpin()
    chart.mounted.settle()
    assert chart.series("pin").count() == 0


def test_infinite_zero_and_missing_values_are_drawn_at_the_edge(chart: ChartOnPage) -> None:
    chart.chart.begin("", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [2, np.inf], [5, 0.0], [8, np.nan], [9, 2.0]])
    chart.mounted.settle()
    now = chart.series("now")
    for sort in ("infinite", "zero", "nan"):
        assert now.get_attribute(f"data-{sort}") == "1"
    frame = chart.page.locator("svg[data-panel=loss] .axes rect").bounding_box()
    top = now.locator(".edge.infinite").bounding_box()
    bottom = now.locator(".edge.zero").bounding_box()
    assert top["y"] - frame["y"] < 6
    assert frame["y"] + frame["height"] - bottom["y"] - bottom["height"] < 6
    names = chart.page.locator("svg[data-panel=loss] .edge-name").all_text_contents()
    assert sorted(names) == ["0", "NaN", "∞"]
    assert now.locator(".curve").get_attribute("d").count("M") == 2  # the line is broken there


def test_special_cells_of_a_heat_map_are_hatched_and_named(chart: ChartOnPage) -> None:
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=layers(0, 1, np.inf, 0) + layers(1, 2, np.inf, np.nan))
    chart.mounted.settle()
    panel = chart.page.locator("svg[data-panel='λ map']")
    cells = {sort: panel.locator(f".special .{sort}") for sort in ("infinite", "zero", "nan")}
    counts = {sort: found.get_attribute("data-cells") for sort, found in cells.items()}
    assert counts == {"infinite": "2", "zero": "1", "nan": "1"}
    assert len({found.get_attribute("fill") for found in cells.values()}) == 3
    names = panel.locator(".key-special").all_text_contents()
    assert sorted(names) == ["0", "NaN", "∞"]


def test_a_heat_map_has_the_first_layer_below_and_larger_values_lighter(
    chart: ChartOnPage,
) -> None:
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=layers(0, 1e-4, 1e-2, 1.0))
    chart.mounted.settle()
    luminance = chart.page.evaluate(
        """async () => {
          const image = new Image();
          image.src = document.querySelector("image[visibility=visible]").getAttribute("href");
          await image.decode();
          const context = document.createElement("canvas").getContext("2d");
          context.drawImage(image, 0, 0);
          return [0, 1, 2].map((y) => { const [r, g, b] = context.getImageData(0, y, 1, 1).data;
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; }); }"""
    )
    assert luminance[0] > luminance[1] + 20 > luminance[2] + 40


def test_values_below_float32_have_their_place_on_a_log_axis(mount: Mount) -> None:
    chart = ChartOnPage(mount, BY_LAYER)
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=layers(0, 1e-80, 1e-60, 1e-40))
    chart.mounted.settle()
    ticks = chart.y_ticks("λ by layer")
    assert "10⁻⁸⁰" in ticks
    assert 3 <= len(ticks) <= 9  # forty decades, thinned out
    assert chart.series("now", "λ by layer").get_attribute("data-zero") is None


def test_axes_grow_and_do_not_shrink_within_a_run(mount: Mount) -> None:
    chart = ChartOnPage(mount, BY_LAYER)
    chart.chart.begin("", LIMITS)
    seen = []
    for step, values in enumerate([(1, 2, 3), (1e-4, 1, 2), (1, 2, 3), (1, 2, 9e3)]):
        chart.chart.append(layers=layers(step, *values))
        chart.mounted.settle()
        seen.append(chart.y_ticks("λ by layer"))
    assert seen[0] != seen[1]
    assert "10⁻⁴" in seen[1]
    assert seen[2] == seen[1]
    assert {"10⁻⁴", "10⁴"} <= set(seen[3])  # wider at the top, as wide as ever below
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=layers(0, 1, 2, 3))
    chart.mounted.settle()
    assert chart.y_ticks("λ by layer") == seen[0]


def test_the_x_axis_stands_still_while_rows_arrive(mount: Mount) -> None:
    chart = ChartOnPage(mount, LOSS)
    chart.chart.begin("", LIMITS)
    ends = []
    for step in range(3):
        chart.chart.append(steps=[step * 4, 1.0])
        chart.mounted.settle()
        path = chart.series("now").locator(".curve").get_attribute("d")
        ends.append(path.split("h")[0])
    assert len(set(ends)) == 1


def test_a_profile_shows_the_latest_step_and_the_first(mount: Mount) -> None:
    chart = ChartOnPage(mount, BY_LAYER)
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=layers(0, 1, 1, 1) + layers(1, 5, 5, 5))
    chart.chart.append(layers=layers(2, 1e-3, 1e-2, 1e-1))
    chart.mounted.settle()
    start, now = (
        chart.series(kind, "λ by layer").locator(".curve").bounding_box()
        for kind in ("start", "now")
    )
    assert start["height"] < 3 < now["height"]
    assert start["y"] < now["y"]


def test_hovering_reads_the_nearest_value_and_the_pinned_one(mount: Mount) -> None:
    chart = ChartOnPage(mount, BY_LAYER)
    chart.chart.begin("old", LIMITS)
    chart.chart.append(layers=layers(0, 1, 2e-4, 3))
    chart.chart.pin("kept")
    chart.chart.begin("new", LIMITS)
    chart.chart.append(layers=layers(0, 1, 3.2e-4, 3))
    chart.mounted.settle()
    box = chart.page.locator("svg[data-panel='λ by layer'] .axes rect").bounding_box()
    chart.page.mouse.move(box["x"] + box["width"] / 2 + 5, box["y"] + 40)
    readout = chart.page.locator(".lca-chart-readout")
    expect(readout).to_contain_text("layer 2 · 3.2e-4")
    expect(readout).to_contain_text("kept: 2.0e-4")
    chart.page.mouse.move(box["x"], box["y"] + box["height"] + 300)
    expect(readout).to_be_hidden()


def test_hovering_a_heat_map_reads_the_cell(mount: Mount) -> None:
    chart = ChartOnPage(mount, MAP)
    chart.chart.begin("", LIMITS)
    chart.chart.append(layers=[row for step in range(11) for row in layers(step, 1, 20, 300)])
    chart.mounted.settle()
    box = chart.page.locator("svg[data-panel='λ map'] .axes rect").bounding_box()
    chart.page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 5)
    expect(chart.page.locator(".lca-chart-readout")).to_have_text("step 10, layer 3 · 300")


def test_panels_are_images_with_a_spoken_summary(chart: ChartOnPage) -> None:
    chart.chart.begin("", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [1, 0.25]], layers=layers(0, 1, np.inf, 3))
    for name, words in {
        "loss": "Latest, step 1: 0.25",
        "λ by layer": "1 infinite",
        "λ map": "1 cells ∞",
    }.items():
        panel = chart.page.locator(f"svg[role=img][data-panel='{name}']")
        expect(panel).to_have_attribute("aria-label", re.compile(words))


def test_summaries_are_renewed_once_a_second(chart: ChartOnPage) -> None:
    chart.chart.begin("", LIMITS)
    chart.mounted.settle()
    chart.page.evaluate(
        """() => { window.renewed = 0; new MutationObserver((all) => { renewed += all.length; })
          .observe(document.querySelector("svg[data-panel=loss]"),
                   {attributes: true, attributeFilter: ["aria-label"]}); }"""
    )
    for step in range(10):
        chart.chart.append(steps=[step, 0.5 + step])
        chart.mounted.settle()
    chart.page.wait_for_timeout(1100)
    assert 1 <= chart.page.evaluate("renewed") <= 3
    label = chart.page.locator("svg[data-panel=loss]").get_attribute("aria-label")
    assert "step 9: 9.5" in label


def test_a_chart_beside_controls_takes_the_room_that_is_left(mount: Mount) -> None:
    chart = ChartOnPage(mount)
    chart.mounted.settle()
    widths = chart.page.evaluate(
        """async () => {
          const [row, side, host] = [0, 0, 0].map(() => document.createElement("div"));
          row.style.cssText = "display:flex;width:800px";
          side.style.cssText = "width:230px";
          row.append(side, host);
          document.body.append(row);
          widget.render({model, el: host});
          host.removeAttribute("style");  // as ipywidgets' layout does after each render
          const seen = [];
          for (const width of [800, 1000, 700]) {
            row.style.width = `${width}px`;
            for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
            seen.push([side.clientWidth, host.clientWidth, host.querySelector("svg").clientWidth]);
          }
          return seen; }"""
    )
    assert [(side, host) for side, host, _ in widths] == [(230, 570), (230, 770), (230, 470)]
    assert all(panel <= host for _, host, panel in widths)


def test_a_chart_above_others_keeps_its_height(chart: ChartOnPage) -> None:
    chart.mounted.settle()
    height = chart.page.evaluate(
        """() => { const [column, host] = [0, 0].map(() => document.createElement("div"));
          column.style.cssText = "display:flex;flex-direction:column;width:800px";
          host.style.overflow = "hidden";  // as JupyterLab's widgets have it
          column.append(host);
          document.body.append(column);
          widget.render({model, el: host});
          return host.clientHeight; }"""
    )
    assert height > 2 * 176


def test_a_narrow_page_has_one_column(chart: ChartOnPage, page: Page) -> None:
    tops = "(all) => new Set(all.map((p) => p.getBoundingClientRect().top)).size"
    chart.mounted.settle()
    assert page.locator(".lca-chart-panel").evaluate_all(tops) == 2
    page.evaluate("document.getElementById('root').style.width = '400px'")
    chart.mounted.settle()
    assert page.locator(".lca-chart-panel").evaluate_all(tops) == 3


SERIES_TABLES = {
    "n": ("step", "n", "of", "value", "low", "high"),
    "cells": ("step", "column", "row", "entry"),
    "points": ("step", "a", "b"),
    "ring": ("a", "b"),
}
NAMES = ("measured", "predicted", "bound")
SERIES = Panel("line", "series", "n", "n", "value", by="of", names=NAMES, log=True)
BANDS = Panel(
    "line", "bands", "n", "n", "value", by="of", names=NAMES, low="low", high="high", x_log=True
)
LATEST = Panel("profile", "latest", "n", "n", "value", by="of", names=NAMES)
MATRIX = Panel("matrix", "matrix", "cells", "column", "row", "entry", rows=2)
PATH = Panel("path", "path", "points", "a", "b", backdrop="ring", rows=2)
FREE_PATH = Panel("path", "free", "points", "a", "b")
RING = [[-3, -1], [3, -1], [np.nan, np.nan], [-3, 1], [3, 1]]


def samples(step: int, *values: float) -> list[list[float]]:
    """One row for n = 1, 10, 100 of each line."""
    return [
        [step, 10**k, of, value * 2.0**-k, value * 2.0**-k / 2, value * 2.0**-k * 2]
        for k in range(3)
        for of, value in enumerate(values)
    ]


def cells(step: int, *lines: list[float]) -> list[list[float]]:
    return [[step, j, i, entry] for i, line in enumerate(lines) for j, entry in enumerate(line)]


@pytest.fixture
def series(mount: Mount) -> Callable[..., ChartOnPage]:
    """A chart of these panels over the tables of series, cells and points."""

    def show(*panels: Panel, **options: Any) -> ChartOnPage:
        chart = ChartOnPage(mount, *panels, tables=SERIES_TABLES, **options)
        chart.chart.begin("new")
        return chart

    return show


def test_series_differ_by_colour_dash_and_marker_and_are_named_under_the_title(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(SERIES)
    chart.chart.append(n=samples(0, 1, 2, 4))
    chart.mounted.settle()
    look = """(groups) => groups.map((g) => [g.dataset.name, g.getAttribute("stroke"),
        g.querySelector(".curve").getAttribute("stroke-dasharray"),
        g.querySelector(".markers").getAttribute("d").replace(/[\\d. -]+/g, " ")])"""
    looks = chart.series("now", "series").evaluate_all(look)
    assert [name for name, *_ in looks] == list(NAMES)
    assert all(len(set(cue)) == 3 for cue in zip(*looks, strict=True))
    legend = chart.page.locator(".names").bounding_box()
    frame = chart.page.locator(".axes rect").bounding_box()
    assert chart.page.locator(".names text").all_text_contents() == list(NAMES)
    assert legend["y"] + legend["height"] <= frame["y"] + 1


def test_a_legend_names_the_lines_that_there_are_and_makes_room_for_more(
    series: Callable[..., ChartOnPage],
) -> None:
    three = tuple(f"a rather long name {k}" for k in range(3))
    chart = series(Panel("line", "series", "n", "n", "value", by="of", names=three), width=330)
    chart.chart.append(n=[[0, n, 1, 1, 1, 1] for n in (1, 2)])
    chart.mounted.settle()
    names, frame = chart.page.locator(".names text"), chart.page.locator(".axes rect")
    assert names.all_text_contents() == [three[1]]
    before = frame.bounding_box()["height"]
    chart.chart.append(n=[[0, n, 2, 2, 2, 2] for n in (1, 2)])
    chart.mounted.settle()
    assert names.all_text_contents() == [three[1], three[2]]
    assert frame.bounding_box()["height"] < before


def test_series_on_top_of_one_another_have_their_markers_in_turn(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(SERIES)
    chart.chart.append(n=[[0, n, of, 1, 1, 1] for n in range(70) for of in range(2)])
    chart.mounted.settle()
    starts = chart.page.locator("g[data-series=now] .markers").evaluate_all(
        "(all) => all.map((m) => m.getAttribute('d').match(/M[\\d.]+/g).map((x) => +x.slice(1)))"
    )
    assert [len(xs) for xs in starts] == [7, 7]
    between = abs(starts[0][0] - starts[1][0])
    assert between == pytest.approx((starts[0][1] - starts[0][0]) / 3, abs=4)


def test_the_names_of_series_wrap_where_there_is_little_room(
    series: Callable[..., ChartOnPage],
) -> None:
    long = tuple(f"eigendirection {k}, predicted" for k in range(3))
    chart = series(Panel("line", "series", "n", "n", "value", by="of", names=long), width=330)
    chart.mounted.settle()
    boxes = [text.bounding_box() for text in chart.page.locator(".names text").all()]
    assert len({box["y"] for box in boxes}) == 3
    frame = chart.page.locator(".axes rect").bounding_box()
    assert max(box["y"] + box["height"] for box in boxes) <= frame["y"] + 1
    assert frame["height"] > 60


def test_pinned_series_are_grey_with_the_dashes_of_their_own_line(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(SERIES)
    chart.chart.append(n=samples(0, 1, 2, 4))
    chart.chart.pin("old")
    chart.chart.begin("now")
    chart.chart.append(n=samples(0, 1, 3, 9))
    chart.mounted.settle()
    dashes = "(all) => all.map((g) => g.querySelector('.curve').getAttribute('stroke-dasharray'))"
    assert chart.series("pin", "series").evaluate_all(dashes) == chart.series(
        "now", "series"
    ).evaluate_all(dashes)
    greys = chart.series("pin", "series").evaluate_all(
        "(all) => all.map((g) => g.getAttribute('stroke'))"
    )
    assert all(grey[1:3] == grey[3:5] == grey[5:7] for grey in greys)


def test_a_profile_of_series_draws_the_latest_step_alone(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(LATEST)
    chart.chart.append(n=samples(0, 1, 2, 4) + samples(1, 1, 2))
    chart.mounted.settle()
    points = "(all) => all.map((g) => g.dataset.points)"
    assert chart.series("now", "latest").evaluate_all(points) == ["3", "3", "0"]
    assert chart.series("start", "latest").count() == 0
    assert chart.page.locator("[data-legend=start]").count() == 0


def test_bands_lie_behind_their_lines_on_a_logarithmic_horizontal_axis(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(BANDS)
    chart.chart.append(n=[*samples(0, 4, 8), [0, 0, 0, 5, 5, 5]])  # n = 0 has no place
    chart.mounted.settle()
    assert chart.page.locator(".x-tick").all_text_contents() == ["1", "10", "100"]
    places = chart.page.locator(".x-tick").evaluate_all(
        "(all) => all.map((t) => +t.getAttribute('x'))"
    )
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.5)
    now = chart.series("now", "bands")
    assert now.evaluate_all("(all) => all.map((g) => g.dataset.points)") == ["3", "3", "0"]
    bands = chart.page.locator(".marks > *").evaluate_all(
        "(all) => all.map((e) => e.getAttribute('class'))"
    )
    assert bands[:2] == ["band", "band"]
    band = chart.page.locator(".band[data-name=measured]").bounding_box()
    curve = now.first.locator(".curve").bounding_box()
    assert band["y"] < curve["y"]
    assert band["y"] + band["height"] > curve["y"] + curve["height"]


def test_hovering_reads_every_series_at_the_same_place(series: Callable[..., ChartOnPage]) -> None:
    chart = series(BANDS)
    chart.chart.append(n=samples(0, 4, 8, 16))
    chart.mounted.settle()
    box = chart.page.locator(".axes rect").bounding_box()
    chart.page.mouse.move(box["x"] + box["width"] / 2 + 4, box["y"] + 30)
    lines = chart.page.locator(".lca-chart-readout div").all_text_contents()
    assert lines == ["n 10", "measured: 2", "predicted: 4", "bound: 8"]


def test_a_matrix_has_square_cells_and_its_first_row_above(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(MATRIX)
    chart.chart.append(cells=cells(0, [9, 9, 9]) + cells(1, [4, 0, -1], [0, -4, 0]))
    chart.mounted.settle()
    image = chart.page.locator("image[visibility=visible]")
    assert image.get_attribute("data-cells") == "6"  # of the latest step
    size = {name: float(image.get_attribute(name)) for name in ("x", "y", "width", "height")}
    assert size["width"] / 3 == pytest.approx(size["height"] / 2)
    texts = {name: chart.page.locator(f".key-{name}").text_content() for name in ("low", "high")}
    assert texts == {"low": "-4", "high": "4"}
    grey = chart.page.evaluate(
        """async () => {
          const image = new Image();
          image.src = document.querySelector("image[visibility=visible]").getAttribute("href");
          await image.decode();
          const context = document.createElement("canvas").getContext("2d");
          context.drawImage(image, 0, 0);
          return [[0, 0], [1, 0], [2, 0], [1, 1]].map(([x, y]) =>
            [...context.getImageData(x, y, 1, 1).data.slice(0, 3)]); }"""
    )
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in grey]
    assert light[0] > light[1] + 20 > light[2] + 20 > light[3] + 20
    assert max(grey[1]) - min(grey[1]) < 16  # zero is grey
    ticks = chart.page.locator(".y-tick")
    assert ticks.all_text_contents() == ["0", "1"]
    assert ticks.first.bounding_box()["y"] < ticks.last.bounding_box()["y"]


def test_hovering_a_matrix_reads_row_and_column(series: Callable[..., ChartOnPage]) -> None:
    chart = series(MATRIX)
    chart.chart.append(cells=cells(3, [1, 2, 3], [4, 5, 6]))
    chart.mounted.settle()
    box = chart.page.locator(".axes rect").bounding_box()
    chart.page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 5)
    readout = chart.page.locator(".lca-chart-readout")
    expect(readout).to_have_text("column 2, row 0 · 3")
    chart.page.mouse.move(box["x"] + 5, box["y"] + box["height"] - 5)
    expect(readout).to_have_text("column 0, row 1 · 4")


def test_a_unit_is_equally_long_on_both_axes_of_a_path(series: Callable[..., ChartOnPage]) -> None:
    chart = series(PATH, FREE_PATH)
    chart.chart.append(points=[[0, 2, 0.5], [1, 1, -0.5]], ring=RING)
    chart.mounted.settle()
    frame = chart.page.locator("svg[data-panel=path] .axes rect").bounding_box()
    assert frame["width"] / 6 == pytest.approx(frame["height"] / 2, rel=0.03)
    for panel in ("path", "free"):
        marks = chart.page.locator(f"svg[data-panel={panel}] circle")
        [ring, dot] = [
            [float(mark.get_attribute(name)) for name in ("cx", "cy")] for mark in marks.all()
        ]
        assert ring[0] - dot[0] == pytest.approx(dot[1] - ring[1], abs=0.3)  # both a unit


def test_a_path_is_cut_off_at_its_backdrop_with_an_arrow_to_what_is_outside(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(PATH)
    chart.chart.append(points=[[0, 2, 0.5], [1, 0, 1e30], [2, np.nan, 1], [3, 1e9, 0]], ring=RING)
    chart.mounted.settle()
    now = chart.series("now", "path")
    assert now.get_attribute("data-points") == "1"
    assert now.locator(".first").count() == 1
    frame = chart.page.locator(".axes rect").bounding_box()
    arrow = now.locator(".latest.outside").bounding_box()
    assert 0 <= frame["x"] + frame["width"] - arrow["x"] - arrow["width"] < 6
    assert chart.page.locator(".backdrop").get_attribute("d").count("M") == 2
    numbers = re.findall(r"-?[\d.]+", now.locator(".curve").get_attribute("d"))
    assert all(abs(float(number)) < 2000 for number in numbers)
    label = chart.page.locator("svg[data-panel=path]")
    expect(label).to_have_attribute("aria-label", re.compile("latest is outside of the picture"))


def test_hovering_a_path_reads_the_nearest_point(series: Callable[..., ChartOnPage]) -> None:
    chart = series(PATH)
    chart.chart.append(points=[[0, 2, 0.5], [7, -2, -0.5]], ring=RING)
    chart.mounted.settle()
    box = chart.page.locator(".latest").bounding_box()
    chart.page.mouse.move(box["x"] + 12, box["y"] - 4)
    lines = chart.page.locator(".lca-chart-readout div").all_text_contents()
    assert lines == ["step 7", "a -2, b -0.5"]


def test_new_kinds_speak_of_what_they_show(series: Callable[..., ChartOnPage]) -> None:
    chart = series(SERIES, MATRIX, PATH)
    chart.chart.append(
        n=samples(0, 1, 2, 4), cells=cells(5, [1, np.inf]), points=[[0, 2, 0.5]], ring=RING
    )
    for name, words in {
        "series": "3 lines. measured: latest, n 100: 0.25.",
        "matrix": "1 rows, 2 columns at step 5. .* 1 cells ∞",
        "path": "1 points, from a 2, b 0.5 to a 2, b 0.5",
    }.items():
        panel = chart.page.locator(f"svg[role=img][data-panel='{name}']")
        expect(panel).to_have_attribute("aria-label", re.compile(words))


def test_a_tall_panel_stands_beside_two_others(series: Callable[..., ChartOnPage]) -> None:
    chart = series(MATRIX, SERIES, BANDS, LATEST)
    chart.mounted.settle()

    def boxes() -> Any:
        return [panel.bounding_box() for panel in chart.page.locator(".lca-chart-panel").all()]

    tall, above, below, last = boxes()
    assert (tall["y"], tall["x"]) == (above["y"], last["x"])
    assert tall["y"] + tall["height"] == below["y"] + below["height"] < last["y"]
    assert above["x"] == below["x"] > tall["x"]
    chart.page.evaluate("document.getElementById('root').style.width = '400px'")
    chart.mounted.settle()
    narrow = boxes()
    assert len({box["x"] for box in narrow}) == 1
    assert narrow[0]["height"] > 2 * narrow[1]["height"]
    assert [box["y"] for box in narrow] == sorted(box["y"] for box in narrow)


def test_fixed_ends_of_a_value_hold_from_the_first_row(mount: Mount) -> None:
    chart = ChartOnPage(mount, LOSS)
    chart.chart.begin("", LIMITS | {"loss": (1e-6, 1.0)})
    chart.chart.append(steps=[0, 0.5])
    chart.mounted.settle()
    ticks = chart.y_ticks()
    assert ticks[0] == "10⁻⁶"
    assert ticks[-1] == "10⁰"
    chart.chart.append(steps=[1, 50.0])
    chart.mounted.settle()
    assert chart.y_ticks()[-1] == "10²"


def test_a_reloaded_page_shows_the_new_kinds_again(
    series: Callable[..., ChartOnPage], mount: Mount
) -> None:
    chart = series(SERIES, MATRIX, PATH)
    chart.chart.append(n=samples(0, 1, 2), cells=cells(0, [1, 2]), points=[[0, 2, 0]], ring=RING)
    again = mount(chart.chart, "spec")
    again.deliver()
    again.settle()
    assert again.root.get_attribute("data-rows") == str(6 + 2 + 1 + 5)
    assert chart.series("now", "series").count() == 3
    assert chart.page.locator("image[visibility=visible]").get_attribute("data-cells") == "2"
    assert chart.series("now", "path").get_attribute("data-points") == "1"


def test_an_exported_svg_places_tall_panels_as_the_page_does(
    series: Callable[..., ChartOnPage], tmp_path: Path
) -> None:
    chart = series(PATH, SERIES, BANDS, MATRIX)
    chart.chart.append(n=samples(0, 1, 2), cells=cells(0, [1, 0]), points=[[0, 2, 0]], ring=RING)
    with chart.page.expect_download() as download:
        chart.chart.export("svg", "run.svg")
    download.value.save_as(tmp_path / "run.svg")
    root = ET.parse(tmp_path / "run.svg").getroot()
    panels = root.findall("{http://www.w3.org/2000/svg}svg")
    places = [(int(panel.get("x")), int(panel.get("y"))) for panel in panels]
    assert places == [(12, 34), (452, 34), (452, 254), (12, 474)]
    assert int(root.get("height")) == 34 + 4 * 220 + 12


def test_every_one_of_sixty_updates_of_fifty_rows_is_painted(
    series: Callable[..., ChartOnPage],
) -> None:
    chart = series(SERIES, LATEST, MATRIX, PATH)
    chart.chart.append(ring=RING)
    chart.mounted.settle()
    chart.page.evaluate(
        """async () => {
          const text = (rows) => btoa(String.fromCharCode(
            ...new Uint8Array(new Float32Array(rows.flat()).buffer)));
          const fifty = (row) => Array.from({length: 50}, (_, i) => row(i));
          for (let step = 0; step < 60; step++) {
            const wave = (i) => Math.exp(-step / 40) * Math.cos(step + i / 50);
            const rows = [fifty((i) => [step, 50 * step + i, i % 3, 2 + wave(i), 1, 2]),
              fifty((i) => [step, i % 10, Math.floor(i / 10), wave(i)]),
              fifty((i) => [step, 2 * wave(i), wave(i - 25)])].map(text);
            model.receive({type: "rows", run: 1,
              tables: [["n", 50], ["cells", 50], ["points", 50]]}, rows);
            await new Promise(requestAnimationFrame); } }"""
    )
    assert chart.painted()["rows"] == str(60 * 150 + 5)
    assert int(chart.painted()["paints"]) >= 60


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colours_of_series_can_be_read_on_both_themes(
    series: Callable[..., ChartOnPage], theme: str
) -> None:
    names = tuple("abcdef")
    chart = series(Panel("line", "t", "n", "n", "value", by="of", names=names), theme=theme)
    chart.chart.append(n=samples(0, 1, 2, 3, 4, 5, 6))
    chart.mounted.settle()
    strokes = chart.series("now", "t").evaluate_all(
        "(all) => all.map((g) => g.getAttribute('stroke'))"
    )
    assert len(set(strokes)) == 6
    back = {"light": 1.0, "dark": ((0x11 / 255 + 0.055) / 1.055) ** 2.4}[theme]
    for stroke in strokes:
        parts = [int(stroke[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        high, low = max(light, back), min(light, back)
        assert (high + 0.05) / (low + 0.05) >= 3.0, stroke  # WCAG 1.4.11


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_can_be_read_on_both_themes(mount: Mount, theme: str) -> None:
    chart = ChartOnPage(mount, theme=theme)
    for label in ("a", "b", "c", "d"):
        chart.chart.begin(label, LIMITS)
        chart.chart.append(steps=[[0, 1.0], [1, 2.0]], layers=layers(0, 1, 2, 3))
        chart.chart.pin(label)
    chart.mounted.settle()
    contrasts = chart.page.evaluate(
        """() => {
          const rgb = (colour) => { const c = document.createElement("canvas").getContext("2d");
            c.fillStyle = getComputedStyle(document.body).backgroundColor; c.fillRect(0, 0, 1, 1);
            c.fillStyle = colour; c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data; };
          const light = (colour) => { const [r, g, b] = [...rgb(colour)].map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const back = light("transparent");
          const ratio = (c) => { const [a, b] = [light(c), back].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05); };
          const marks = [...document.querySelectorAll("g[data-series]")];
          return { marks: Math.min(...marks.map((g) => ratio(getComputedStyle(g).stroke))),
            text: ratio(getComputedStyle(document.querySelector("svg text")).fill) }; }"""
    )
    assert contrasts["marks"] >= 3.0  # WCAG 1.4.11
    assert contrasts["text"] >= 4.5


def test_an_exported_svg_is_one_picture_of_all_panels(chart: ChartOnPage, tmp_path: Path) -> None:
    chart.chart.begin("depth <3> & more", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [1, 0.5]], layers=layers(0, 1, 2, 3))
    with chart.page.expect_download() as download:
        chart.chart.export("svg", "run.svg")
    assert download.value.suggested_filename == "run.svg"
    download.value.save_as(tmp_path / "run.svg")
    root = ET.parse(tmp_path / "run.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert [panel.get("data-panel") for panel in root.findall(f"{svg}svg")] == [
        "loss",
        "λ by layer",
        "λ map",
    ]
    assert len(root.findall(f".//{svg}image[@visibility='visible']")) == 1
    assert "now: depth <3> & more" in [text.text for text in root.iter(f"{svg}text")]


def test_an_exported_png_has_the_picture(chart: ChartOnPage, tmp_path: Path) -> None:
    chart.chart.begin("", LIMITS)
    chart.chart.append(steps=[[0, 1.0], [1, 0.5]])
    with chart.page.expect_download() as download:
        chart.chart.export("png", "run.png")
    download.value.save_as(tmp_path / "run.png")
    content = (tmp_path / "run.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 2 * (2 * 440 + 24)
    assert len(content) > 10_000  # more than an empty sheet


def test_a_downloaded_text_is_the_text(chart: ChartOnPage, tmp_path: Path) -> None:
    with chart.page.expect_download() as download:
        chart.chart.download("run.csv", "step,λ\n0,1e-80\n", "text/csv")
    download.value.save_as(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text("utf-8") == "step,λ\n0,1e-80\n"


def test_a_disposed_chart_leaves_nothing_behind(chart: ChartOnPage) -> None:
    chart.page.evaluate("unmount()")
    assert chart.page.evaluate("model.listening") == 0
    assert chart.page.locator(".lca-chart").count() == 0


def test_a_chart_whose_last_view_is_closed_says_so(chart: ChartOnPage) -> None:
    closed: list[bool] = []
    chart.chart.on_closed(lambda: closed.append(True))
    chart.mounted.deliver()
    assert not closed
    chart.page.evaluate("unmount()")
    chart.mounted.deliver()
    assert closed == [True]


# ---------------------------------------------------------------- control panel

CONTROLS = [
    Slider("depth", "depth", 1, 50, format="{:d} layers", help="Number of linear layers."),
    Slider("rate", "step size η", 1e-4, 10.0, log=True, format="η = {:.3g}"),
    Choice("device", "device", (Option("cpu", "CPU"), Option("cuda", "GPU", "no GPU here"))),
    Choice("batch", "batch", (Option(16, "16"), Option(64, "64"))),
    Switch("norm", "batch normalisation"),
    Toggles("trained", "trained layers", tuple("12345"), on="trained", off="frozen"),
    Entry("seed", "seed"),
]


class PanelOnPage:
    """A mounted control panel, in the words of its tests."""

    def __init__(self, mount: Mount) -> None:
        values = {"depth": 20, "rate": 0.1, "seed": "0"}
        self.panel = ControlPanel(CONTROLS, values)
        self.mounted = mount(self.panel, "controls", "values", "place", "error", width=230)
        self.page: Page = self.mounted.page
        self.heard: list[dict[str, Any]] = []
        self.panel.on_change(lambda values, name: self.heard.append(values))

    def input(self, name: str) -> Any:
        return self.page.locator(f"[data-name={name}]")

    def box(self, name: str) -> Any:
        return self.page.locator(f"[data-box={name}]")

    def toggle(self, name: str, index: int) -> Any:
        return self.input(name).locator(f"[data-toggle='{index}']")

    def type(self, name: str, text: str) -> list[dict[str, Any]]:
        self.box(name).fill(text)
        self.box(name).press("Enter")
        return self.mounted.deliver()

    def drag(self, name: str, positions: list[float]) -> None:
        box = self.input(name).bounding_box()
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] * positions[0], y)
        self.page.mouse.down()
        for position in positions[1:]:
            self.page.mouse.move(box["x"] + box["width"] * position, y)
            self.page.wait_for_timeout(15)


@pytest.fixture
def controls(mount: Mount) -> PanelOnPage:
    return PanelOnPage(mount)


def test_every_control_has_a_name_a_spoken_value_and_a_description(controls: PanelOnPage) -> None:
    page = controls.page
    for role, name in [
        ("slider", "depth"),
        ("textbox", "depth, value"),
        ("combobox", "device"),
        ("switch", "batch normalisation"),
        ("group", "trained layers"),
        ("button", "3, trained"),
        ("textbox", "seed"),
    ]:
        expect(page.get_by_role(role, name=name, exact=True)).to_be_visible()
    expect(controls.input("depth")).to_have_attribute("aria-valuetext", "20 layers")
    expect(controls.input("rate")).to_have_attribute("aria-valuetext", "η = 0.1")
    expect(controls.input("depth")).to_have_accessible_description("Number of linear layers.")
    page.locator("label", has_text="seed").click()
    expect(controls.input("seed")).to_be_focused()


def test_a_log_slider_sends_and_speaks_the_value_itself(controls: PanelOnPage) -> None:
    controls.input("rate").focus()
    controls.page.keyboard.press("ArrowRight")
    controls.mounted.deliver()
    assert controls.heard[-1]["rate"] == pytest.approx(0.112)
    expect(controls.input("rate")).to_have_attribute("aria-valuetext", "η = 0.112")
    expect(controls.box("rate")).to_have_value("0.112")
    controls.page.keyboard.press("End")
    controls.page.wait_for_timeout(150)
    controls.mounted.deliver()
    assert controls.heard[-1]["rate"] == 10.0


def test_typing_beyond_the_range_sends_the_typed_value(controls: PanelOnPage) -> None:
    controls.type("depth", "1000")
    assert controls.heard[-1]["depth"] == 1000
    expect(controls.box("depth")).to_have_value("1000")


def test_a_long_number_is_written_so_that_the_box_shows_all_of_it(controls: PanelOnPage) -> None:
    controls.type("rate", "1000000")
    assert controls.heard[-1]["rate"] == 1e6
    box = controls.box("rate")
    expect(box).to_have_value("1e6")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.parametrize("text", ["many", "", "1e", "Infinity"])
def test_what_is_no_number_is_refused_in_place_and_not_sent(
    controls: PanelOnPage, text: str
) -> None:
    assert controls.type("depth", text) == []
    expect(controls.box("depth")).to_have_attribute("aria-invalid", "true")
    expect(controls.box("depth")).to_have_accessible_description(re.compile("is not a number"))
    controls.type("depth", "7")
    assert controls.heard[-1]["depth"] == 7
    expect(controls.box("depth")).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(("text", "value"), [("0,5", 0.5), ("2e-3", 0.002), (" 3 ", 3.0)])
def test_numbers_are_understood_as_people_type_them(
    controls: PanelOnPage, text: str, value: float
) -> None:
    controls.type("rate", text)
    assert controls.heard[-1]["rate"] == value


def test_a_drag_sends_about_ten_values_a_second_and_the_last_one(controls: PanelOnPage) -> None:
    controls.drag("depth", [0.2 + 0.01 * i for i in range(60)])
    controls.page.mouse.up()
    controls.page.wait_for_timeout(150)
    sent = controls.mounted.deliver()
    times = [message["at"] for message in sent]
    assert 3 <= len(sent) <= 2 + (times[-1] - times[0]) / 100 + 1
    assert min(np.diff(times)) >= 90
    assert sent[-1]["value"] == int(controls.input("depth").input_value()) > sent[0]["value"]


def test_a_value_from_python_does_not_fight_the_drag(controls: PanelOnPage) -> None:
    controls.drag("depth", [0.2, 0.4, 0.8])
    held = controls.input("depth").input_value()
    controls.panel.set_values({"depth": 2})
    assert controls.input("depth").input_value() == held
    controls.page.mouse.up()
    controls.page.wait_for_timeout(150)
    controls.mounted.deliver()  # the answers: now Python's value is the user's
    assert controls.input("depth").input_value() == held
    assert controls.panel.values["depth"] == int(held)
    controls.panel.set_values({"depth": 2})
    assert controls.input("depth").input_value() == "2"


def test_a_late_answer_does_not_move_the_slider_back(controls: PanelOnPage) -> None:
    controls.input("depth").focus()
    controls.page.keyboard.press("ArrowRight")
    first = controls.page.evaluate("model.sent.splice(0)")
    controls.page.wait_for_timeout(120)
    controls.page.keyboard.press("ArrowRight")
    for message in first:
        controls.panel._handle_custom_msg(message, [])  # Python still believes 21
    assert controls.input("depth").input_value() == "22"
    controls.mounted.deliver()
    assert controls.panel.values["depth"] == 22


def test_a_correction_by_python_is_shown_after_the_answer(controls: PanelOnPage) -> None:
    controls.panel.on_change(lambda values, name: controls.panel.set_values({"depth": 50}))
    controls.type("depth", "1000")
    expect(controls.box("depth")).to_have_value("50")


def test_values_from_python_are_shown_and_not_sent_back(controls: PanelOnPage) -> None:
    controls.panel.set_values({"depth": 5, "rate": 1.0, "batch": 64, "norm": True, "seed": "7"})
    controls.panel.set_values({"trained": "01111"})
    assert controls.input("depth").input_value() == "5"
    assert float(controls.input("rate").input_value()) == pytest.approx(0.0)
    expect(controls.input("batch")).to_have_value("64")
    expect(controls.input("norm")).to_be_checked()
    expect(controls.input("seed")).to_have_value("7")
    for index, pressed in enumerate(["false", "true", "true", "true", "true"]):
        expect(controls.toggle("trained", index)).to_have_attribute("aria-pressed", pressed)
    assert controls.mounted.deliver() == []


def test_choice_switch_and_entry_send_their_values(controls: PanelOnPage) -> None:
    controls.input("batch").select_option("64")
    controls.input("norm").press("Space")
    controls.input("seed").fill("12")
    controls.input("seed").press("Enter")
    controls.mounted.deliver()
    assert [controls.heard[-1][name] for name in ("batch", "norm", "seed")] == [64, True, "12"]
    assert len(controls.heard) == 3


def test_toggles_send_all_their_digits(controls: PanelOnPage) -> None:
    controls.toggle("trained", 0).click()
    controls.toggle("trained", 2).press("Space")
    controls.toggle("trained", 3).press("Enter")  # faster than Python answers
    controls.page.wait_for_timeout(150)
    assert controls.mounted.deliver()[-1]["value"] == "01001"
    controls.toggle("trained", 0).click()
    controls.page.wait_for_timeout(150)
    controls.mounted.deliver()
    assert controls.heard[-1]["trained"] == "11001"


def test_a_toggle_says_and_shows_its_state_by_more_than_colour(controls: PanelOnPage) -> None:
    button = controls.toggle("trained", 2)
    for name, pressed, border in [("trained", "true", "solid"), ("frozen", "false", "dashed")]:
        expect(button).to_have_accessible_name(f"3, {name}")
        expect(button).to_have_attribute("title", f"3, {name}")
        expect(button).to_have_attribute("aria-pressed", pressed)
        expect(button).to_have_css("border-style", border)
        button.click()
    expect(button).to_have_accessible_name("3, trained")


def test_a_device_that_is_not_there_is_shown_disabled_with_the_reason(
    controls: PanelOnPage,
) -> None:
    option = controls.input("device").locator("option", has_text="GPU")
    expect(option).to_be_disabled()
    expect(option).to_have_text("GPU (no GPU here)")


def test_an_error_marks_its_control_and_is_taken_back(controls: PanelOnPage) -> None:
    controls.panel.show_error("depth", "at most 200 layers, not 1000")
    expect(controls.box("depth")).to_have_attribute("aria-invalid", "true")
    expect(controls.page.get_by_text("at most 200 layers")).to_be_visible()
    expect(controls.input("seed")).not_to_have_attribute("aria-invalid", "true")
    controls.panel.show_error("trained", "one layer at least must be trained")
    for marked in (controls.input("trained"), controls.toggle("trained", 4)):
        expect(marked).to_have_attribute("aria-invalid", "true")
        expect(marked).to_have_accessible_description(re.compile("one layer at least"))
    controls.panel.show_error(None, "the data are missing")
    expect(controls.page.get_by_role("alert")).to_have_text("the data are missing")
    expect(controls.box("depth")).not_to_have_attribute("aria-invalid", "true")
    controls.panel.show_error(None, "")
    expect(controls.page.get_by_role("alert")).to_be_empty()


def test_every_control_is_reached_by_tab_and_shows_the_focus(controls: PanelOnPage) -> None:
    reached = []
    for _ in range(13):
        controls.page.keyboard.press("Tab")
        reached.append(
            controls.page.evaluate(
                """() => { const e = document.activeElement;
                  const { name, box, toggle } = e.dataset;
                  return [name ?? (box ? `box ${box}` : `toggle ${toggle}`),
                          getComputedStyle(e).outlineStyle]; }"""
            )
        )
    assert {name for name, _ in reached} == {
        "depth", "box depth", "rate", "box rate", "device", "batch", "norm", "seed",
        *(f"toggle {index}" for index in range(5)),
    }  # fmt: skip
    assert {outline for _, outline in reached} == {"solid"}


def test_keys_on_a_control_are_not_the_notebooks(controls: PanelOnPage) -> None:
    # JupyterLab takes the arrow keys from a focused slider unless the slider itself says no.
    own = "(all) => all.every((e) => e.dataset.lmSuppressShortcuts === 'true')"
    inputs = controls.page.locator("input, select, button")
    assert inputs.count() == 13
    assert inputs.evaluate_all(own)


def test_a_narrow_column_is_wide_enough(controls: PanelOnPage) -> None:
    assert controls.mounted.root.evaluate("(root) => root.scrollWidth - root.clientWidth") <= 0


def test_many_toggles_wrap_in_a_narrow_column(mount: Mount) -> None:
    panel = ControlPanel([Toggles("trained", "trained", tuple(map(str, range(1, 31))))])
    mounted = mount(panel, "controls", "values", "place", "error", width=250)
    assert mounted.root.evaluate("(root) => root.scrollWidth - root.clientWidth") <= 0


def test_a_disposed_panel_listens_no_more(controls: PanelOnPage) -> None:
    controls.page.evaluate("unmount()")
    assert controls.page.evaluate("model.listening") == 0


# ---------------------------------------------------------------- toolbar


class ToolbarOnPage:
    """A mounted toolbar, in the words of its tests."""

    def __init__(self, mount: Mount) -> None:
        self.toolbar = Toolbar()
        self.mounted = mount(self.toolbar, "view")
        self.page: Page = self.mounted.page
        self.heard: list[str] = []
        self.toolbar.on_press(self.heard.append)

    def button(self, label: str) -> Any:
        return self.page.get_by_role("button", name=label, exact=True)


@pytest.fixture
def bar(mount: Mount) -> ToolbarOnPage:
    return ToolbarOnPage(mount)


def test_buttons_press_in_python_and_disabled_ones_do_not(bar: ToolbarOnPage) -> None:
    bar.button("Run").click()
    bar.button("Stop").click(force=True)
    bar.mounted.deliver()
    assert bar.heard == ["run"]
    expect(bar.button("Stop")).to_have_attribute("aria-disabled", "true")


def test_pause_becomes_resume_and_keeps_the_focus(bar: ToolbarOnPage) -> None:
    bar.toolbar.show(state="running")
    bar.button("Pause").press("Enter")
    bar.mounted.deliver()
    bar.toolbar.show(state="paused")
    expect(bar.button("Resume")).to_be_focused()
    bar.button("Resume").press("Space")
    bar.mounted.deliver()
    assert bar.heard == ["pause", "resume"]


def test_keys_on_a_button_are_not_the_notebooks(bar: ToolbarOnPage) -> None:
    own = "(all) => all.every((e) => e.dataset.lmSuppressShortcuts === 'true')"
    buttons = bar.page.get_by_role("button")
    assert buttons.count() == 7
    assert buttons.evaluate_all(own)


def test_a_press_is_seen_at_once(bar: ToolbarOnPage) -> None:
    bar.button("Run").click()
    before = bar.page.evaluate("document.querySelector('[data-name=run]').dataset.pressed")
    assert before == ""
    expect(bar.button("Run")).not_to_have_attribute("data-pressed", "")


def test_progress_and_text_are_shown(bar: ToolbarOnPage) -> None:
    expect(bar.page.get_by_role("progressbar")).to_be_hidden()
    bar.toolbar.show("running", "step 132/200 · loss 0.123 · 2 s left", 0.66)
    expect(bar.page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "66")
    expect(bar.page.locator(".lca-toolbar-text")).to_have_text(
        "step 132/200 · loss 0.123 · 2 s left"
    )
    assert bar.mounted.root.get_attribute("data-state") == "running"


def test_only_changes_of_state_and_errors_are_announced(bar: ToolbarOnPage) -> None:
    bar.page.evaluate(
        """() => { window.said = []; const live = document.querySelector("[role=status]");
          new MutationObserver(() => said.push(live.textContent))
            .observe(live, {childList: true, characterData: true, subtree: true}); }"""
    )
    for step in range(10):
        bar.toolbar.show("running", f"step {step}", step / 10)
    bar.toolbar.show("finished", "loss 0.1")
    bar.toolbar.show("error", "depth: at most 200")
    bar.toolbar.show("error", "width: at least 1")
    assert bar.page.evaluate("said") == [
        "Running",
        "Finished: loss 0.1",
        "Error: depth: at most 200",
        "Error: width: at least 1",
    ]


def test_a_diverged_run_says_so_in_words_with_an_icon(bar: ToolbarOnPage) -> None:
    bar.toolbar.show("diverged", "step 41/200")
    text = bar.page.locator(".lca-toolbar-text")
    expect(text).to_have_text("diverged · step 41/200")
    expect(text.locator("svg")).to_be_visible()
    bar.toolbar.show("running", "step 1/200")
    assert text.locator("svg").count() == 0


def test_an_error_with_a_line_of_its_own_is_said_once(bar: ToolbarOnPage) -> None:
    bar.toolbar.show("error", "", error="data: no such folder")
    expect(bar.page.locator(".lca-toolbar-error")).to_have_text("data: no such folder")
    expect(bar.page.locator(".lca-toolbar-text")).to_be_empty()


def test_a_disposed_toolbar_listens_no_more(bar: ToolbarOnPage) -> None:
    bar.page.evaluate("unmount()")
    assert bar.page.evaluate("model.listening") == 0
