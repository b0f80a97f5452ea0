"""Figures display offline as Vega 5, say what they show, and drop nothing in silence."""

import math
import subprocess
import sys

import pandas as pd
import pytest
import vl_convert

from lca_widgets import charts

VEGA = "application/vnd.vega.v5+json"
TABLE = pd.DataFrame(
    [
        {"step": step, "layer": layer, "run": run, "value": 10.0**layer * (step + 1)}
        for run in ("plain", "BN")
        for step in (0, 1)
        for layer in (1, 2, 3)
    ]
)
PLAIN = TABLE[TABLE["run"] == "plain"]
LAST = TABLE[TABLE["step"] == 1]
BROKEN = pd.DataFrame(
    {"step": [0] * 6, "layer": range(1, 7), "value": [1.0, 0.0, math.inf, math.nan, -2.0, 100.0]}
)

PANELS = {
    "profile": lambda table, **kw: charts.profile(table, "value", title="v", **kw),
    "curve": lambda table, **kw: charts.curve(table, "value", x="layer", title="v", **kw),
    "heat_map": lambda table, **kw: charts.heat_map(table, "value", title="v", **kw),
}
panels = pytest.mark.parametrize("make", PANELS.values(), ids=PANELS)


def bundle(*drawn):
    return charts.figure(*drawn)._repr_mimebundle_()


def drawn_values(panel):
    return [row["value"] for row in panel.data["values"]]


def texts(value):
    """All strings in a nest of dictionaries and lists."""
    if isinstance(value, dict):
        return [t for v in value.values() for t in texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in texts(v)]
    return [value] if isinstance(value, str) else []


@panels
def test_a_figure_displays_as_vega_5_with_a_picture_and_a_summary(make):
    shown = bundle(make(PLAIN[PLAIN["step"] == 1]))
    assert set(shown) == {VEGA, "image/svg+xml", "text/plain"}
    assert shown[VEGA]["$schema"] == "https://vega.github.io/schema/vega/v5.json"
    assert shown[VEGA]["usermeta"]["embedOptions"]["renderer"] == "svg"
    assert shown[VEGA]["marks"]
    assert shown["image/svg+xml"].startswith("<svg")


def test_a_figure_asks_the_network_for_nothing():
    spec = bundle(PANELS["profile"](LAST, by="run"), PANELS["heat_map"](PLAIN))[VEGA]
    addresses = [text for text in texts(spec) if "://" in text]
    assert addresses == ["https://vega.github.io/schema/vega/v5.json"]
    assert not any("url" in data for data in spec["data"])


def test_the_vega_spec_renders_as_it_is():
    spec = bundle(PANELS["profile"](LAST, by="run"))[VEGA]
    assert vl_convert.vega_to_svg(spec).startswith("<svg")


def test_the_summary_gives_each_panel_the_ends_of_its_lines_or_its_range():
    figure = charts.figure(
        charts.profile(LAST, "value", by="run", title="by layer"),
        charts.curve(PLAIN[PLAIN["layer"] == 2], "value", title="by step"),
        charts.heat_map(PLAIN, "value", title="map"),
    )
    assert repr(figure) == (
        "by layer: plain 20 → 2e+03; BN 20 → 2e+03\nby step: 1e+02 → 2e+02\nmap: 10 to 2e+03"
    )
    assert figure._repr_mimebundle_()["text/plain"] == repr(figure)


@panels
def test_values_that_a_log_axis_cannot_show_are_named_in_the_title(make):
    panel = make(BROKEN, log=True)
    assert panel.title == "v (1 × 0, 1 × negative, 1 × ∞, 1 × NaN)"
    assert drawn_values(panel) == [1.0, 100.0]
    assert panel.title in bundle(panel)["image/svg+xml"]


@panels
def test_a_linear_axis_shows_zero_and_negative_values(make):
    panel = make(BROKEN, log=False)
    assert panel.title == "v (1 × ∞, 1 × NaN)"
    assert drawn_values(panel) == [1.0, 0.0, -2.0, 100.0]


@panels
def test_minus_infinity_is_named(make):
    table = BROKEN.assign(value=[1.0, -math.inf, -math.inf, 2.0, 3.0, 4.0])
    assert make(table, log=False).title == "v (2 × -∞)"
    assert make(table, log=True).title == "v (2 × -∞)"


@panels
def test_a_title_says_nothing_where_everything_is_shown(make):
    assert make(PLAIN[PLAIN["step"] == 1]).title == "v"


@panels
def test_nothing_to_show_is_an_empty_panel_and_no_error(make):
    assert repr(charts.figure(make(BROKEN[:0]))) == "v: no data"
    bundle(make(BROKEN[:0]))
    nothing = make(BROKEN[2:4])
    assert nothing.title == "v (1 × ∞, 1 × NaN)"
    bundle(nothing)


def test_a_log_axis_is_one_only_if_asked_for():
    for log, kind in ((True, "log"), (False, "linear")):
        encoding = PANELS["profile"](LAST, by="run", log=log).to_dict()["encoding"]
        assert encoding["y"]["scale"]["type"] == kind
        encoding = PANELS["heat_map"](PLAIN, log=log).to_dict()["encoding"]
        assert encoding["color"]["scale"]["type"] == kind


def test_lines_are_told_apart_by_colour_and_dash_in_the_order_of_the_table():
    encoding = PANELS["profile"](LAST, by="run").to_dict()["encoding"]
    for channel in ("color", "strokeDash"):
        assert encoding[channel]["field"] == "run"
        assert encoding[channel]["scale"]["domain"] == ["plain", "BN"]
    assert len({str(mark) for mark in encoding["strokeDash"]["scale"]["range"]}) == 6


def test_more_than_five_thousand_rows_are_drawn():
    table = pd.DataFrame({"step": range(6000), "value": range(6000)})
    assert len(drawn_values(charts.curve(table, "value", title="v"))) == 6000


def test_png_is_a_png_whose_size_follows_the_scale():
    figure = charts.figure(PANELS["profile"](LAST, by="run"))
    sizes = []
    for scale in (1.0, 2.0):
        picture = figure.png(scale)
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(int.from_bytes(picture[16:20], "big"))  # the header's width
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=2)


def test_measuring_imports_neither_charts_nor_widgets_nor_scikit_learn():
    check = (
        "import lca_widgets, sys\n"
        "from lca_widgets import data, diagnosis, experiments, models, records, training\n"
        "unwanted = {'altair', 'pandas', 'ipywidgets', 'anywidget', 'sklearn', 'vl_convert'}\n"
        "print(*(unwanted & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == []
