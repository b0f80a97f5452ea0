"""Figures display offline as Vega 5, say what they show, and drop nothing in silence."""

import base64
import json
import math
import re
import subprocess
import sys
import zlib

import altair as alt
import numpy as np
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


def named(table):
    """With names, of which a map makes cells that can be pointed at, and not an image."""
    return table if "name" in table else table.assign(name="fc")


PANELS = {
    "profile": lambda table, **kw: charts.profile(table, "value", title="v", **kw),
    "curve": lambda table, **kw: charts.curve(table, "value", x="layer", title="v", **kw),
    "heat_map": lambda table, **kw: charts.heat_map(named(table), "value", title="v", **kw),
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


def test_a_displayed_figure_takes_its_background_from_the_theme_and_its_picture_is_white():
    shown = bundle(charts.profile(pd.DataFrame({"layer": [1], "v": [1.0]}), "v", title="v"))
    assert "background" not in shown[charts.VEGA_MIME_TYPE]
    assert 'fill="white"' in shown["image/svg+xml"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2.0, 4.0, [1, 2, 5, 10]),
        (0.5, 4.0, [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (1.0, 1000.0, [1, 10, 100, 1000]),
    ],
)
def test_a_logarithmic_axis_of_one_or_two_decades_has_ticks_between_them(low, high, ticks):
    table = pd.DataFrame({"layer": [1, 2], "v": [low, high]})
    [panel] = charts.figure(charts.profile(table, "v", title="v")).to_dict()["concat"]
    assert panel["encoding"]["y"]["axis"]["values"] == ticks


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


def test_a_map_without_names_is_an_image_with_the_first_layer_below():
    table = PLAIN.assign(value=PLAIN["value"].where(PLAIN["layer"] != 1, math.inf))
    panel = charts.heat_map(table, "value", title="v")
    cells = pixels(panel)
    assert cells.shape[:2] == (3, 2)
    assert (cells[..., 3] == [[255, 255], [255, 255], [0, 0]]).all()
    light = lightness(cells)
    assert light[0, 1] > light[0, 0] > light[1, 1] > light[1, 0]
    assert len(texts_in(panel, "∞")) == 2
    assert panel.description == PANELS["heat_map"](table).description
    places = panel.to_dict()["layer"][1]["encoding"]
    assert (places["x"]["scale"]["domain"], places["y"]["scale"]["domain"]) == ([0, 1], [3, 2, 1])


@pytest.mark.parametrize("log", [False, True])
def test_a_map_is_as_large_and_has_the_same_colours_as_an_image_and_as_cells(log):
    plain, cells = (
        charts.figure(charts.heat_map(table, "value", title="v", log=log)).svg()
        for table in (PLAIN, named(PLAIN))
    )
    head = r'^<svg[^>]* width="\d+" height="\d+"'
    assert re.findall(head, plain) == re.findall(head, cells)
    image = pixels(charts.heat_map(PLAIN, "value", title="v", log=log))
    shown = {
        tuple(int(part) for part in rgb.split(","))
        for rgb in re.findall(r'aria-roledescription="rect mark"[^>]*fill="rgb\(([^)]*)\)"', cells)
    }
    assert len(shown) == 6
    for colour in image[..., :3].reshape(-1, 3).astype(int):
        assert min(np.abs(colour - np.array(rgb)).max() for rgb in shown) <= 1


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
    if make is not PANELS["heat_map"]:
        assert "tooltip" not in make(PLAIN).to_dict()["encoding"]
    if tooltip:
        assert "name: net.fc&lt;1&gt;" in charts.figure(make(named)).svg()


def test_rows_that_share_an_index_are_told_apart():
    twice = pd.concat([BROKEN[:1], BROKEN[1:2].set_axis([0])])
    assert drawn_values(PANELS["profile"](twice)) == [1.0]


# Bands, logarithmic horizontal axes, lonely points

SAMPLES = pd.DataFrame(
    [
        {"n": n, "of": of, "value": size, "low": size / 2, "high": size * 2}
        for of, size in (("Σ_x", 10.0), ("Σ_g", 500.0))
        for n in (10, 100, 1000)
    ]
)
BAND = {"x": "n", "low": "low", "high": "high", "title": "v"}


def test_a_band_lies_behind_each_line_in_its_colour():
    panel = charts.curve(SAMPLES, "value", by="of", log=True, **BAND)
    areas = [layer for layer in panel.layer if layer.mark.type == "area"]
    assert list(panel.layer[:2]) == areas
    assert [area.mark.color for area in areas] == charts.COLOURS[:2]
    assert [row["high"] for area in areas for row in area.data["values"]] == [20.0] * 3 + [1e3] * 3
    [ticks] = [layer["encoding"]["y"]["axis"]["values"] for layer in panel.to_dict()["layer"][2:3]]
    assert ticks == [1, 10, 100, 1000]  # they hold the bands, not the lines alone


def test_an_end_of_a_band_that_has_no_place_is_the_end_of_the_axis():
    table = SAMPLES[:3].assign(low=[0.0, 5.0, -1.0], high=[math.inf, 20.0, math.nan])
    [area] = charts.curve(table, "value", log=True, **BAND).layer[:1]
    assert [(row["low"], row["high"]) for row in area.data["values"]] == [(5.0, 20.0)] * 2


def test_half_a_band_is_refused():
    with pytest.raises(ValueError, match="low='low' and high=None"):
        charts.curve(SAMPLES, "value", x="n", low="low", title="v")


def test_a_range_is_shaded_behind_the_lines_and_named_in_words():
    panel = charts.curve(SAMPLES, "value", x="n", by="of", title="v", x_log=True, shaded=(10, 50))
    plain = charts.curve(SAMPLES, "value", x="n", by="of", title="v", x_log=True)
    shade, *lines = panel.layer
    assert shade.mark.type == "rect"
    assert shade.data["values"] == [{"n": 10, "right": 50}]
    assert len(lines) == len(plain.layer)
    assert repr(charts.figure(panel)) == f"{charts.figure(plain)!r}; shaded from 10 to 50"
    assert charts.figure(panel).svg().count("<svg") == 1


@pytest.mark.parametrize("draw", [charts.curve, charts.profile])
def test_what_has_no_place_on_a_logarithmic_horizontal_axis_is_counted_in_the_title(draw):
    table = pd.DataFrame({"n": [0, 1, 10, 1000], "value": [4.0, 3.0, 2.0, 1.0]})
    panel = draw(table, "value", x="n", x_log=True, log=False, title="v")
    assert panel.title == "v (1 × n ≤ 0)"
    assert drawn_values(panel) == [3.0, 2.0, 1.0]
    spec = (panel.layer[0] if isinstance(panel, alt.LayerChart) else panel).to_dict()
    assert spec["encoding"]["x"]["scale"]["type"] == "log"
    assert spec["encoding"]["x"]["axis"]["values"] == [1, 10, 100, 1000]


def test_a_narrow_logarithmic_axis_has_ticks_between_powers_of_ten():
    table = pd.DataFrame({"n": [15, 150], "value": [1.0, 2.0]})
    axis = charts.curve(table, "value", x="n", x_log=True, title="v").to_dict()["encoding"]["x"]
    assert axis["axis"]["values"] == [20, 50, 100]


def test_a_line_of_one_point_is_a_point():
    [one] = charts.curve(PLAIN[:1], "value", title="v").layer[1:]
    assert (one.mark.type, one.data["values"]) == ("point", [{"step": 0, "value": 10.0}])


def test_curves_on_top_of_one_another_have_their_own_markers_in_turn():
    table = pd.concat([pd.DataFrame({"step": range(70), "value": 1.0, "by": k}) for k in "ab"])
    marks = charts.curve(table, "value", by="by", title="v").layer[-1]
    places = {k: {row["step"] for row in marks.data["values"] if row["by"] == k} for k in "ab"}
    assert places == {"a": set(range(0, 70, 10)), "b": set(range(5, 70, 10))}
    shapes = marks.to_dict()["encoding"]["shape"]["scale"]
    assert len(set(shapes["range"])) == len(charts.COLOURS)


def test_a_profile_over_another_column_is_labelled_as_wished():
    table = pd.DataFrame({"index": [1, 2, 3], "value": [3.0, 2.0, 1.0]})
    panel = charts.profile(table, "value", x="index", title="v", x_label="i", y_label="λ_i")
    encoding = panel.to_dict()["encoding"]
    assert (encoding["x"]["field"], encoding["x"]["title"]) == ("index", "i")
    assert encoding["y"]["title"] == "λ_i"
    assert panel.description == "3 → 1"


def test_the_lines_of_a_summary_stand_in_the_order_of_the_table():
    table = pd.concat([pd.DataFrame({"step": range(40), "value": 1.0, "by": k}) for k in "dbca"])
    words = charts.curve(table, "value", by="by", title="v").description
    assert [line[0] for line in words.split("; ")] == list("dbca")


# Matrices

SIGNED = pd.DataFrame(
    {"row": [0, 0, 1, 1], "column": [0, 1, 0, 1], "entry": [4.0, -1.0, 0.0, -2.0]}
)


def pixels(panel):
    """The image of a matrix as it is stored: [rows, columns, (red, green, blue, α)]."""
    [row] = panel.layer[0].data["values"]
    png = base64.b64decode(row["image"].removeprefix("data:image/png;base64,"))
    width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))
    start = png.index(b"IDAT")
    size = int.from_bytes(png[start - 4 : start], "big")
    lines = np.frombuffer(zlib.decompress(png[start + 4 : start + 4 + size]), np.uint8)
    return lines.reshape(height, 1 + 4 * width)[:, 1:].reshape(height, width, 4)


def lightness(rgb):
    return np.asarray(rgb, float)[..., :3] @ [0.2126, 0.7152, 0.0722]


def test_a_matrix_has_its_first_row_above_and_larger_entries_lighter():
    light = lightness(pixels(charts.matrix(SIGNED, "entry", title="H", log=False)))
    assert light[0, 0] > light[1, 0] > light[0, 1] > light[1, 1]
    axis = charts.matrix(SIGNED, "entry", title="H").to_dict()["layer"][1]["encoding"]["y"]
    assert axis["scale"]["domain"] == [-0.5, 1.5]
    assert axis["scale"]["reverse"]


def test_zero_is_grey_and_in_the_middle_where_a_matrix_has_both_signs():
    panel = charts.matrix(SIGNED, "entry", title="H", log=False)
    scale = panel.to_dict()["layer"][1]["encoding"]["color"]["scale"]
    assert scale["domain"] == [-4, 4]
    red, green, blue, _ = pixels(panel)[1, 0].astype(int)
    assert max(red, green, blue) - min(red, green, blue) < 16
    positive = charts.matrix(
        SIGNED.assign(entry=[4.0, 1.0, 0.0, 2.0]), "entry", title="F", log=False
    )
    assert positive.to_dict()["layer"][1]["encoding"]["color"]["scale"]["domain"] == [0, 4]


def test_the_colours_of_a_matrix_grow_lighter_from_end_to_end():
    stops = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in charts.CIVIDIS]
    assert (np.diff(lightness(stops)) > 8).all()


def test_entries_that_a_logarithmic_matrix_cannot_show_are_blank_and_counted():
    panel = charts.matrix(SIGNED, "entry", title="H", log=True)
    assert panel.title == "H (1 × 0, 2 × negative)"
    assert (pixels(panel)[..., 3] == [[255, 0], [0, 0]]).all()
    decades = SIGNED.assign(entry=[1.0, 10.0, 100.0, 1e4])
    light = lightness(pixels(charts.matrix(decades, "entry", title="H", log=True))).ravel()
    linear = lightness(pixels(charts.matrix(decades, "entry", title="H", log=False))).ravel()
    assert light[1] - light[0] > 20
    assert linear[1] - linear[0] < 2


def test_cells_are_square_whatever_the_shape_of_a_matrix():
    wide = pd.DataFrame([{"row": i, "column": j, "entry": 1.0} for i in range(3) for j in range(6)])
    panel = charts.matrix(wide, "entry", title="W")
    assert (panel.width, panel.height) == (150, 75)
    assert panel.description == "3 × 6, up to 1"


@pytest.mark.parametrize("draw", [charts.matrix, charts.heat_map])
def test_two_thousand_cells_are_stored_in_a_few_kilobytes(draw):
    values = np.random.default_rng(0).normal(size=(45, 45))
    table = pd.DataFrame(
        [{"row": i, "column": j, "entry": values[i, j]} for i in range(45) for j in range(45)]
    )
    shown = bundle(draw(table, "entry", x="column", y="row", title="H", log=False))
    assert len(json.dumps(shown)) < 60_000


@pytest.mark.parametrize("wrong", [0.5, math.nan])
def test_indices_of_a_matrix_that_are_no_whole_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=f"column 'row' must hold whole numbers .* got {wrong}"):
        charts.matrix(SIGNED.assign(row=[0, wrong, 1, 1]), "entry", title="H")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(1, 10), (1, 1000), (1000, 1)], ids=str)
def test_a_matrix_may_be_a_single_row_or_column(shape, log):
    places = dict(zip(("row", "column"), np.indices(shape).reshape(2, -1), strict=True))
    entries = pd.DataFrame(places | {"entry": np.arange(1.0, 1 + np.prod(shape))})
    panel = charts.matrix(entries, "entry", title="m", log=log)
    assert bundle(panel)["text/plain"].startswith(f"m: {shape[0]} × {shape[1]}, ")
    assert min(panel.width, panel.height) >= 1
    single = "y" if shape[0] == 1 else "x"
    assert panel.layer[1].to_dict()["encoding"][single]["axis"]["values"] == [0]


def test_rounding_errors_do_not_enter_the_words_on_a_matrix():
    noisy = SIGNED.assign(entry=[4.0, -3e-17, 0.0, 2.0])
    assert charts.matrix(noisy, "entry", title="H", log=False).description == "2 × 2, 0 to 4"


# Paths

SQUARE = pd.DataFrame({"a": [0.0, 4.0, 4.0, 0.0, 0.0], "b": [0.0, 0.0, 2.0, 2.0, 0.0]})
SPIRAL = pd.DataFrame({"a": [3.0, 1.0, 2.0, 1.5], "b": [1.0, 0.5, 0.25, 1e-17]})


def scales(panel):
    encoding = panel.to_dict()["layer"][0]["encoding"]
    return [encoding[axis]["scale"]["domain"] for axis in ("x", "y")]


@pytest.mark.parametrize("backdrop", [None, SQUARE])
@pytest.mark.parametrize("height", [150, 320])
def test_a_unit_is_equally_long_on_both_axes_of_a_path(backdrop, height):
    panel = charts.path(SPIRAL, x="a", y="b", backdrop=backdrop, title="p", height=height)
    (left, right), (low, high) = scales(panel)
    assert panel.width / (right - left) == pytest.approx(panel.height / (high - low), rel=0.01)
    assert panel.width <= charts.PANEL_WIDTH
    assert panel.height <= height


def test_a_backdrop_sets_the_ends_of_the_axes():
    far = pd.DataFrame({"a": [1.0, 100.0], "b": [1.0, -50.0]})
    panel = charts.path(far, x="a", y="b", backdrop=SQUARE, title="p")
    assert scales(panel) == [[0, 4], [0, 2]]
    first, last = panel.layer[2:]
    assert (first.mark.shape, last.mark.shape) == ("circle", "triangle")
    assert last.data["values"] == [{"a": 4.0, "b": 0.0}]


def test_a_path_is_drawn_in_the_order_of_its_rows_and_broken_at_nan():
    broken = pd.concat([SPIRAL, pd.DataFrame({"a": [math.nan], "b": [1.0]}), SPIRAL[:2]])
    drawing = r'<path[^>]* d="(M[^"]*L[^"]*)"[^>]*stroke="#0072B2"'
    lines = painted(charts.figure(charts.path(broken, x="a", y="b", title="p")), drawing)
    turns = [re.findall(r"[ML](-?[\d.]+),", line) for line in lines]
    assert sorted(len(xs) for xs in turns) == [2, 4]
    xs = [float(x) for x in max(turns, key=len)]
    assert xs[0] > xs[2] > xs[3] > xs[1]  # 3, 1, 2, 1.5: to and fro


def test_the_words_on_a_path_take_what_is_next_to_nothing_for_zero():
    assert charts.path(SPIRAL, x="a", y="b", title="p").description == "(3, 1) → (1.5, 0), 4 points"
    assert charts.path(SPIRAL[:0], x="a", y="b", title="p").description == "no data"
    lost = pd.DataFrame({"a": [1.0, math.inf], "b": [1.0, 2.0]})
    assert charts.path(lost, x="a", y="b", title="p").description == "(1, 1) → (inf, 2), 2 points"
    bundle(
        charts.path(SPIRAL[:0], x="a", y="b", title="p"), charts.path(lost, x="a", y="b", title="p")
    )


# Whole figures


def test_panels_above_one_another_are_summarised_one_by_one():
    parts = [PANELS["profile"](PLAIN[PLAIN["step"] == 1]).properties(title=k) for k in "abc"]
    figure = charts.figure(parts[0], parts[1:])
    assert [line[0] for line in repr(figure).splitlines()] == ["a", "b", "c"]
    figure.svg()


def test_each_panel_of_a_stack_has_the_colours_and_names_of_its_own_lines():
    names = [("one", "two"), ("three", "four")]
    stack = [PANELS["profile"](LAST.replace({"plain": a, "BN": b}), by="run") for a, b in names]
    legends = painted(charts.figure(stack), r'role-legend-label"[^<]*(.*?)</g>')
    shown = [name for legend in legends for name in re.findall(r">([^<]+)</text>", legend)]
    assert sorted(shown) == ["four", "one", "three", "two"]
    lines = painted(charts.figure(stack), r'aria-roledescription="line mark"[^>]*stroke="([^"]*)"')
    assert lines == charts.COLOURS[:2] * 2


def test_two_panels_fit_beside_one_another_in_a_narrow_notebook():
    long = LAST.replace({"plain": "eigendirection 1, predicted", "BN": "eigendirection 2"})
    line = PANELS["profile"](long, by="run")
    pairs = [(PANELS["heat_map"](PLAIN), charts.matrix(SIGNED, "entry", title="H")), (line, line)]
    for pair in pairs:
        [width] = painted(charts.figure(*pair), r'^<svg[^>]* width="(\d+)"')
        assert int(width) < 840  # what JupyterLab leaves with its side bar open on 1280 pixels


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
