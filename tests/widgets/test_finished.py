"""Finished figures show what the live chart's panels show."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from lca_widgets import charts
from lca_widgets.widgets.finished import finished_figure
from lca_widgets.widgets.live_chart import Panel

STEPS = pd.DataFrame({"step": [0, 10, 20], "loss": [2.0, 1.0, 0.5], "kept": [1.0, 0.5, 0.25]})
LAYERS = pd.DataFrame(
    [
        {"step": step, "layer": layer, "of": of, "value": (10 * of + layer) * 2.0**step}
        for step in (0, 1, 2)
        for layer in (1, 2)
        for of in (1, 0)
    ]
)
CELLS = LAYERS.rename(columns={"layer": "row", "of": "column"})
POINTS = pd.DataFrame({"a": [2.0, 1.0], "b": [1.0, 0.5]})
RING = pd.DataFrame({"a": [-3.0, 3.0, math.nan, 3.0], "b": [-2.0, 2.0, math.nan, 2.0]})
TABLES = {"steps": STEPS, "layers": LAYERS, "cells": CELLS, "points": POINTS, "ring": RING}


def draw(*panels: Panel, columns: int = 2) -> charts.Figure:
    return finished_figure(panels, TABLES, columns)


def line(title: str, **options: Any) -> Panel:
    return Panel("line", title, "steps", "step", "loss", **options)


def only(panel: Panel) -> dict[str, Any]:
    """The specification of the first part of a figure's only panel."""
    spec: dict[str, Any] = draw(panel).to_dict()["concat"][0]
    return spec


def test_every_kind_of_panel_has_its_finished_twin() -> None:
    names = ("forward", "backward")
    figure = draw(
        line("loss", log=True),
        Panel("profile", "by layer", "layers", "layer", "value", log=True),
        Panel("profile", "spectra", "layers", "layer", "value", by="of", names=names),
        Panel("heatmap", "map", "layers", "step", "layer", "value", log=True),
        Panel("matrix", "M", "cells", "column", "row", "value"),
        Panel("path", "descent", "points", "a", "b", backdrop="ring"),
    )
    assert repr(figure).splitlines() == [
        "loss: 2 → 0.5",
        "by layer: at start 11 → 2; step 2 44 → 8",
        "spectra: forward 4 → 8; backward 44 → 48",
        "map: 1 to 48",
        "M: 2 × 2, 4 to 48",
        "descent: (2, 1) → (1, 0.5), 2 points",
    ]
    figure.svg()


def test_the_lines_of_a_panel_have_its_names_in_its_order_and_no_others() -> None:
    drawn = only(Panel("line", "t", "layers", "step", "value", by="of", names=("zero",)))
    [lines] = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "line"]
    assert lines["encoding"]["color"]["scale"]["domain"] == ["zero"]
    both = only(Panel("line", "t", "layers", "step", "value", by="of", names=("zero", "one")))
    [lines] = [layer for layer in both["layer"] if layer["mark"]["type"] == "line"]
    assert lines["encoding"]["color"]["scale"]["domain"] == ["zero", "one"]


def test_scales_bands_and_labels_are_those_of_the_panel() -> None:
    panel = line("t", log=True, low="kept", high="loss", x_log=True, x_label="t", y_label="L")
    band, curve = only(panel)["layer"]
    assert band["mark"]["type"] == "area"
    x, y = curve["encoding"]["x"], curve["encoding"]["y"]
    assert (x["scale"]["type"], x["title"]) == ("log", "t")
    assert (y["scale"]["type"], y["title"]) == ("log", "L")


def test_a_run_of_one_row_is_a_point() -> None:
    [panel] = finished_figure([line("loss")], {"steps": STEPS[:1]}).to_dict()["concat"]
    assert [layer["mark"]["type"] for layer in panel["layer"]] == ["line", "point"]


def test_a_profile_and_a_matrix_show_the_latest_step() -> None:
    panels = [
        Panel("profile", "p", "layers", "layer", "value", by="of", names=("a", "b")),
        Panel("matrix", "m", "cells", "column", "row", "value"),
    ]
    early = {"layers": LAYERS[LAYERS["step"] < 2], "cells": CELLS[CELLS["step"] < 2]}
    assert repr(finished_figure(panels, early)) == "p: a 2 → 4; b 22 → 24\nm: 2 × 2, 2 to 24"


def test_tables_without_rows_are_empty_panels_and_no_error() -> None:
    panels = [
        line("loss"),
        Panel("profile", "p", "layers", "layer", "value"),
        Panel("profile", "q", "layers", "layer", "value", by="of", names=("a",)),
        Panel("heatmap", "h", "layers", "step", "layer", "value"),
        Panel("matrix", "m", "cells", "column", "row", "value"),
        Panel("path", "w", "points", "a", "b", backdrop="ring"),
    ]
    figure = finished_figure(panels, {name: table[:0] for name, table in TABLES.items()})
    assert all(words.endswith("no data") for words in repr(figure).splitlines())
    figure.svg()


def test_tables_made_of_no_rows_are_empty_panels_too() -> None:
    panels = [line("loss", log=True), Panel("matrix", "m", "cells", "column", "row", "value")]
    empty = {name: pd.DataFrame([], columns=list(TABLES[name].columns)) for name in TABLES}
    assert repr(finished_figure(panels, empty)) == "loss: no data\nm: 1 × 1, no data"


def test_panels_one_above_the_other_have_legends_of_their_own() -> None:
    names = ("one", "two")
    tall = line("tall", rows=2)
    first = Panel("line", "a", "layers", "step", "value", by="of", names=names)
    second = Panel("profile", "b", "layers", "layer", "value", by="of", names=names[::-1])
    _, stack = draw(tall, first, second).to_dict()["concat"]
    assert stack["resolve"]["scale"]["color"] == "independent"
    svg = draw(tall, first, second).svg()
    assert [svg.count(f">{name}</text>") for name in names] == [2, 2]


@pytest.mark.parametrize(
    ("rows", "columns", "places"),
    [
        ((1, 1, 1), 2, ["a", "b", "c"]),
        ((2, 1, 1, 1), 2, ["a", "bc", "d"]),
        ((1, 2, 1), 2, ["ac", "b"]),
        ((1, 2, 2, 1), 2, ["ac", "bd"]),
        ((2, 2, 1), 2, ["a", "b", "c"]),
        ((2, 1, 1), 1, ["a", "b", "c"]),
        ((1, 2, 1, 1, 1), 3, ["ad", "b", "ce"]),
    ],
)
def test_a_tall_panel_stands_beside_two_others(
    rows: tuple[int, ...], columns: int, places: list[str]
) -> None:
    panels = [line(title, rows=height) for title, height in zip("abcde", rows, strict=False)]
    figure = draw(*panels, columns=columns)
    stacks = [getattr(place, "vconcat", [place]) for place in figure.concat]
    assert ["".join(panel.title for panel in stack) for stack in stacks] == places
    heights = {panel.title: panel.height for stack in stacks for panel in stack}
    assert all((heights[panel.title] > 300) == (panel.rows == 2) for panel in panels)
