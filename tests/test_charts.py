"""Figures display offline as Vega 5, say what they show, and drop nothing in silence."""

import math
import re
import subprocess
import sys

import altair as alt
import pandas as pd
import pytest
import vl_convert

from lca_widgets import charts
from lca_widgets.records import LayerReport, Report, report_table

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
    """What the lines or cells show, the blanks between them left out."""
    main = panel.layer[0] if isinstance(panel, alt.LayerChart) else panel
    return [row["value"] for row in main.data["values"] if row["value"] is not None]


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


# Marks for what no axis shows


def painted(figure, pattern):
    """What the picture's elements that match say of themselves."""
    return re.findall(pattern, figure.svg())


def texts_in(panel, text):
    return painted(charts.figure(panel), f"<text[^>]*>{text}</text>")


def heights(panel):
    """Where the marks at the edges stand, in pixels from above."""
    return [layer["encoding"]["y"]["value"] for layer in panel.to_dict()["layer"][1:]]


def test_a_profile_writes_infinity_and_zero_where_they_occur():
    panel = PANELS["profile"](BROKEN)
    infinite, zero = panel.layer[1], panel.layer[2]
    assert (infinite.mark.text, infinite.data["values"]) == ("∞", [{"layer": 3}])
    assert (zero.mark.text, zero.data["values"]) == ("0", [{"layer": 2}])
    upper, lower = heights(panel)
    assert upper < 20 < charts.PANEL_HEIGHT - 20 < lower
    assert len(texts_in(panel, "∞")) == 1


def test_zero_is_an_ordinary_value_of_a_linear_profile():
    assert [layer.mark.text for layer in PANELS["profile"](BROKEN, log=False).layer[1:]] == ["∞"]


def test_lines_that_are_infinite_at_one_layer_do_not_hide_each_other():
    panel = PANELS["profile"](LAST.replace(1000.0 * 2, math.inf), by="run")
    marks = panel.layer[1:]
    assert [mark.data["values"] for mark in marks] == [[{"layer": 3}], [{"layer": 3}]]
    assert len(set(heights(panel))) == 2
    assert [mark.mark.color for mark in marks] == charts.COLOURS[:2]


def test_a_missing_value_interrupts_the_line_of_a_profile():
    table = pd.DataFrame({"layer": range(1, 6), "value": [1.0, 2.0, math.nan, 3.0, 4.0]})
    whole = table.assign(value=[1.0, 2.0, 2.5, 3.0, 4.0])
    line = r'aria-roledescription="line mark"[^>]* d="([^"]*)"'
    [broken], [unbroken] = (
        painted(charts.figure(PANELS["profile"](rows)), line) for rows in (table, whole)
    )
    assert (broken.count("M"), unbroken.count("M")) == (2, 1)


def test_a_value_alone_between_gaps_is_drawn_also_where_points_are_not():
    values = [1.0] * 60
    values[29:32] = [math.nan, 5.0, math.nan]
    panel = PANELS["profile"](pd.DataFrame({"layer": range(1, 61), "value": values}))
    assert panel.layer[0].mark.point is False
    assert panel.layer[1].data["values"] == [{"layer": 31, "value": 5.0}]


def test_layers_are_counted_in_whole_numbers():
    for layers, ticks in ((3, [1, 2, 3]), (12, [1, 2, 4, 6, 8, 10, 12]), (160, [1, 20, 40])):
        table = pd.DataFrame({"layer": range(1, layers + 1), "value": 1.0})
        axis = PANELS["profile"](table).to_dict()["encoding"]["x"]["axis"]
        assert axis["values"][: len(ticks)] == ticks
        assert axis["format"] == "d"
        assert len(axis["values"]) <= 12


def test_a_log_axis_has_few_ticks_at_exact_powers_of_ten():
    for values, ticks in (([2e-7, 3e-5], [1e-7, 1e-6, 1e-5, 1e-4]), ([1e-300, 1e300], None)):
        table = pd.DataFrame({"layer": [1, 2], "value": values})
        axis = PANELS["profile"](table).to_dict()["encoding"]["y"]["axis"]
        assert axis["values"] == ticks or ticks is None
        assert len(axis["values"]) <= 7


def test_a_map_keeps_the_row_of_a_layer_that_has_no_colour_and_names_its_cells():
    table = PLAIN.assign(value=PLAIN["value"].where(PLAIN["layer"] != 1, math.inf))
    panel = PANELS["heat_map"](table)
    cells = panel.to_dict()["layer"][0]
    assert cells["encoding"]["y"]["scale"]["domain"] == [3, 2, 1]
    assert len(texts_in(panel, "∞")) == 2
    assert [cell["layer"] for cell in panel.layer[1].data["values"]] == [1, 1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [([7.03, 13.1], ["7", "9.6", "13"]), ([2e-9, 8e-5], ["2e-9", "4e-7", "8e-5"]), ([5.0], ["5"])],
)
def test_the_colours_of_a_map_are_labelled_at_both_ends(values, labels):
    table = pd.DataFrame({"step": 1, "layer": range(1, len(values) + 1), "value": values})
    label = r'role-legend-label"[^<]*(.*?)</g>'
    [shown] = painted(charts.figure(PANELS["heat_map"](table)), label)
    assert sorted(re.findall(r">([^<]+)</text>", shown)) == sorted(labels)


def test_a_map_of_very_many_cells_draws_some_of_the_steps():
    table = pd.DataFrame(
        [{"step": s, "layer": k, "value": 1.0} for s in range(300) for k in range(1, 161)]
    )
    assert charts.MOST_CELLS / 2 < len(drawn_values(PANELS["heat_map"](table))) <= charts.MOST_CELLS


@panels
def test_names_are_told_where_the_mouse_rests(make):
    named = PLAIN[PLAIN["step"] == 1].assign(name="net.fc<1>")
    tooltip = "tooltip" in make(named).to_dict()["encoding"]
    assert tooltip == (make is not PANELS["curve"])
    assert "tooltip" not in make(PLAIN).to_dict()["encoding"]
    if tooltip:
        assert "name: net.fc&lt;1&gt;" in charts.figure(make(named)).svg()


# Whole figures


def report(layer, **changes):
    ordinary = dict.fromkeys(LayerReport.__dataclass_fields__, 2.0)
    return LayerReport(**ordinary | {"layer": layer, "name": f"net.fc{layer}"} | changes)


def analysis_table(*layers):
    return report_table([Report(0, layers)]).drop(columns="step")


def summary(figure):
    """Title → what its panel shows."""
    return dict(line.split(": ", 1) for line in repr(figure).splitlines())


def titles(figure):
    return [panel.title for panel in figure.concat]


THREE = [report(1), report(2, dying=0.5), report(3, dying=math.nan, full=math.nan)]
ANALYSIS = analysis_table(*THREE)


def test_an_analysis_is_drawn_quantity_by_quantity():
    figure = charts.analysis_figure(ANALYSIS.assign(lambda_max_x=[1.0, 10.0, 100.0]))
    shown = summary(figure)
    assert list(shown) == [
        "λ_max(Σ_x) by layer",
        "λ_max(Σ_g) by layer",
        "κ_50(Σ_x) by layer",
        "κ_50(Σ_g) by layer",
        "σ_max of weight and gradient by layer",
        "Domination and sensitivity by layer",
        "Share of units by layer (2 of 3 rectified)",
    ]
    assert shown["λ_max(Σ_x) by layer"] == "uncentred 1 → 1e+02; centred 2 → 2"
    bundle(*figure.concat)


@pytest.mark.parametrize(
    ("title", "columns"),
    [
        ("λ_max(Σ_x)", ("lambda_max_x", "lambda_max_x_centred")),
        ("λ_max(Σ_g)", ("lambda_max_g", "lambda_max_g_centred")),
        ("κ_50(Σ_x)", ("kappa50_x", "kappa50_x_centred")),
        ("κ_50(Σ_g)", ("kappa50_g", "kappa50_g_centred")),
        ("σ_max", ("weight_sigma", "grad_sigma")),
        ("Domination", ("domination", "sensitivity")),
        ("Share", ("dying", "full")),
    ],
)
def test_each_panel_of_an_analysis_shows_its_own_columns(title, columns):
    own = ANALYSIS.assign(**{columns[0]: [0.11, 0.5, 0.12], columns[1]: [0.21, 0.5, 0.22]})
    [shown] = [v for k, v in summary(charts.analysis_figure(own)).items() if k.startswith(title)]
    first, second = shown.split("; ")
    assert first.endswith(" 0.11 → 0.12")
    assert second.endswith(" 0.21 → 0.22")


def test_a_line_without_any_value_is_left_out_and_named():
    figure = charts.analysis_figure(ANALYSIS.assign(lambda_max_g_centred=math.nan))
    assert summary(figure)["λ_max(Σ_g) by layer (centred"] == "not known): uncentred 2 → 2"


def test_values_that_an_analysis_cannot_draw_are_counted_in_its_titles():
    table = ANALYSIS.assign(
        kappa50_g=[2.0, math.inf, math.inf], domination=[0.0, math.nan, 1.0], grad_sigma=math.nan
    )
    drawn = titles(charts.analysis_figure(table))
    assert "κ_50(Σ_g) by layer (2 × ∞)" in drawn
    assert "Domination and sensitivity by layer (1 × 0, 1 × NaN)" in drawn
    assert "σ_max of weight and gradient by layer (∂L/∂W: not known)" in drawn


def test_a_network_that_diverged_altogether_is_still_drawn():
    numbers = ANALYSIS.select_dtypes("number").columns.drop("layer")
    figure = charts.analysis_figure(ANALYSIS.assign(**dict.fromkeys(numbers, math.nan)))
    assert titles(figure)[0] == "λ_max(Σ_x) by layer (6 × NaN)"
    assert len(figure.concat) == 6
    figure.svg()


def test_units_are_drawn_only_where_a_rectifier_is_known():
    without = charts.analysis_figure(ANALYSIS.assign(dying=math.nan, full=math.nan))
    assert not any("units" in title for title in titles(without))
    [shares] = charts.analysis_figure(ANALYSIS).concat[-1:]
    assert shares.to_dict()["encoding"]["y"]["scale"]["domain"] == [0, 1]
    assert shares.description == "dying 2 → 0.5; full 2 → 2"


def history_table(*steps, **changes):
    return report_table(
        Report(step, tuple(report(k, lambda_max_x=10.0**k + step, **changes) for k in (1, 2)))
        for step in steps
    )


def test_a_history_is_drawn_layer_by_step():
    shown = summary(charts.history_figure(history_table(0, 20, 40, dying=0.25)))
    assert list(shown) == [
        "λ_max(Σ_x), layer × step",
        "λ_max(Σ_g), layer × step",
        "κ_50(Σ_x), layer × step",
        "Domination σ(∂L/∂W)/σ(W), layer × step",
        "Sensitivity σ(W)·σ(∂L/∂W), layer × step",
        "Largest share of units in a layer",
    ]
    assert shown["λ_max(Σ_x), layer × step"] == "10 to 1.4e+02"
    assert shown["Largest share of units in a layer"] == "dying 0.25 → 0.25; full 2 → 2"


def test_a_history_shows_the_layer_with_most_dying_units():
    table = history_table(0, 20).assign(dying=[0.1, 0.4, 0.7, math.nan], full=math.nan)
    shown = summary(charts.history_figure(table))
    assert shown["Largest share of units in a layer"] == "dying 0.4 → 0.7"


def test_a_history_of_one_step_is_drawn_by_layer():
    figure = charts.history_figure(history_table(20))
    assert titles(figure)[0] == "λ_max(Σ_x) by layer"
    assert summary(figure)["λ_max(Σ_x) by layer"].startswith("uncentred 30 → 1.2e+02;")


@pytest.mark.parametrize("draw", [charts.analysis_figure, charts.history_figure])
def test_a_table_without_rows_is_empty_panels_and_no_error(draw):
    figure = draw(report_table([]))
    assert set(summary(figure).values()) == {"no data"}
    figure.svg()


def test_a_figure_names_layers_as_they_are():
    table = ANALYSIS.assign(name=["a & <b>", "c", "d"])
    assert "name: a &amp; &lt;b&gt;" in charts.analysis_figure(table).svg()


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
