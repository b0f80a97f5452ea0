"""Coloured cells: layer × step as a heat map, and matrices."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd

from lca_widgets.charts.parts import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    Panel,
    chart,
    drawable,
    near,
    short,
    tooltip,
)

__all__ = ["CIVIDIS", "MOST_CELLS", "heat_map", "matrix"]

CELL_FOR_TEXT = 10  # pixels
SHORTEST_BAR = 40  # pixels, of a colour bar: its ends' labels still stand apart
MOST_CELLS = 20_000  # of a heat map: a notebook stores each of them as some 100 bytes
# Its lightness grows from end to end, and its middle is grey: signs show without hue too.
CIVIDIS = [
    *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
    *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
]


def heat_map(
    table: pd.DataFrame,
    column: str,
    *,
    x: str = "step",
    y: str = "layer",
    title: str,
    log: bool = True,
    x_label: str = "",
    y_label: str = "",
    height: int = PANEL_HEIGHT,
) -> Panel:
    """Draw a quantity by layer (up) and step (right) as colour.

    Args:
        table: One row a layer and step, with columns ``y``, ``x`` and ``column``; a column
            ``name`` is shown where the mouse rests on a cell.
        column: The quantity.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        title: The panel's title.
        log: Logarithmic colour scale. Values it cannot show are named in the title, and in their
            cells where these are large enough.
        x_label: Text at the horizontal axis; ``x`` if empty.
        y_label: Text at the vertical axis; ``y`` if empty.
        height: Pixels of the vertical axis, about.

    Where nothing is named, the cells are stored as an image of one pixel each: a few kilobytes.
    A map of more steps than pixels, or of very many cells, draws every second, third, … of them.
    """
    steps = _in_order(table[x])
    layers = _in_order(table[y])[::-1]
    columns = min(PANEL_WIDTH, MOST_CELLS // max(1, len(layers)))
    steps = steps[:: max(1, math.ceil(len(steps) / max(1, columns)))]
    cells = table[table[x].isin(steps)]
    drawn, title = drawable(cells, column, title, log)
    # Cells of whole pixels: fractions leave light seams between them.
    cell = (
        max(1, round(PANEL_WIDTH / max(1, len(steps)))),
        max(1, round(height / max(1, len(layers)))),
    )
    axis = alt.Axis(labelOverlap="greedy", labelAngle=0, labelSeparation=10, ticks=False)
    # The whole axes, also where a layer has nothing to draw.
    position: dict[str, Any] = {
        "x": alt.X(f"{x}:O", title=x_label or x, axis=axis, scale=alt.Scale(domain=steps)),
        "y": alt.Y(f"{y}:O", title=y_label or y, axis=axis, scale=alt.Scale(domain=layers)),
    }
    colour = _colour(drawn[column], column, log, length=height - 20)
    if "name" in table or drawn.empty:
        cells_drawn = drawn.assign(**{column: short(drawn[column])})
        panel: Panel = chart(cells_drawn, [x, y, column]).mark_rect()
        panel = panel.encode(**position, color=colour, **tooltip(table, column))
    else:
        grid = (pd.Index(layers).get_indexer(drawn[y]), pd.Index(steps).get_indexer(drawn[x]))
        values = np.full((len(layers), len(steps)), np.nan)
        values[grid] = drawn[column]
        ends = (float(drawn[column].min()), float(drawn[column].max()))
        corner = {x: steps[0], y: layers[0]}
        size = (cell[0] * len(steps), cell[1] * len(layers))
        panel = _image_of(values, ends, log, size, corner, position | {"color": colour}, column)
    if min(cell) >= CELL_FOR_TEXT and (named := _named_cells(cells, x, y, column, log)):
        below = panel.layer if isinstance(panel, alt.LayerChart) else [panel]
        panel = alt.LayerChart(layer=[*below, *(marks.encode(**position) for marks in named)])
    return panel.properties(
        title=title,
        description=_range_of(table, column),
        width=alt.Step(cell[0]),
        height=alt.Step(cell[1]),
    )


def _in_order(places: pd.Series[Any]) -> list[Any]:
    """Numbers by their size, names as the table has them."""
    values = places.unique().tolist()
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def _named_cells(cells: pd.DataFrame, x: str, y: str, column: str, log: bool) -> list[alt.Chart]:
    """Write the values without a colour into their cells."""
    values = cells[column]
    texts = {"∞": values == math.inf, "–": values.isna()} | ({"0": values == 0} if log else {})
    return [
        chart(cells[mask], [x, y]).mark_text(text=text, color="#555")
        for text, mask in texts.items()
        if mask.any()
    ]


def _range_of(table: pd.DataFrame, column: str) -> str:
    if table.empty:
        return "no data"
    return f"{table[column].min():.2g} to {table[column].max():.2g}"


def matrix(
    table: pd.DataFrame,
    column: str,
    *,
    x: str = "column",
    y: str = "row",
    title: str,
    log: bool = True,
    x_label: str = "",
    y_label: str = "",
    height: int = PANEL_HEIGHT,
) -> Panel:
    """Draw a matrix as square cells, its first row above.

    It is stored as an image of one pixel a cell: a few kilobytes, whatever its size.

    Args:
        table: One row an entry, with columns ``x`` and ``y`` (whole numbers) and ``column``.
        column: The entries.
        x: Column of the entries' column index.
        y: Column of their row index.
        title: The panel's title.
        log: Logarithmic colour scale; entries it cannot show are blank and counted in the title.
            Without it the colours of a matrix with negative entries are symmetrical about zero:
            dark below, grey at zero, light above.
        x_label: Text at the horizontal axis.
        y_label: Text at the vertical axis.
        height: Pixels of the vertical axis, about.

    Example:
        >>> hessian = {"row": [0, 0, 1, 1], "column": [0, 1, 0, 1], "entry": [2, -1, -1, 3]}
        >>> matrix(pd.DataFrame(hessian), "entry", title="Hessian", log=False).description
        '2 × 2, -1 to 3'
    """
    drawn, title = drawable(table, column, title, log)
    places = {axis: _whole(table[axis]) for axis in (x, y)}
    rows, columns = len(places[y]), len(places[x])
    most = max(rows, columns)
    # Cells of whole pixels where they fit: others would not be equally large.
    cell = height / most if most > 2 * height else max(1, round(height / most))
    width, height = (max(1, round(cell * count)) for count in (columns, rows))
    values = np.full((rows, columns), np.nan)
    if len(drawn):
        at = ((drawn[axis] - places[axis].start).astype(int) for axis in (y, x))
        values[tuple(at)] = drawn[column]
    ends = _colour_ends(drawn[column], log)
    position: dict[str, Any] = {
        "x": _index_axis(x, places[x], x_label, reverse=False),
        "y": _index_axis(y, places[y], y_label, reverse=True),
    }
    colour = _colour(pd.Series(ends), column, log, length=height - 20, ends=ends)
    corner = {x: places[x].start, y: places[y].start}
    size = (width, height)
    panel = _image_of(values, ends, log, size, corner, position | {"color": colour}, column)
    return panel.properties(
        title=title,
        description=f"{rows} × {columns}, {_size_of(table[column], log)}",
        width=width,
        height=height,
    )


def _image_of(
    values: npt.NDArray[np.float64],
    ends: tuple[float, float],
    log: bool,
    size: tuple[int, int],
    corner: Mapping[str, Any],
    encoding: Mapping[str, Any],
    column: str,
) -> alt.LayerChart:
    """Draw cells as one image over the whole panel.

    The image knows no scale: two unseen marks at one of its corners bring the axes and the colour
    bar.
    """
    image = (
        alt.Chart({"values": [{"image": _png(values, ends, log)}]})
        .mark_image(
            aria=False,
            width=size[0],
            height=size[1],
            align="left",
            baseline="top",
            aspect=False,
            smooth=False,
        )
        .encode(x=alt.value(0), y=alt.value(0), url="image:N")
    )
    unseen = chart(pd.DataFrame({**corner, column: list(ends)}), [*corner, column])
    return alt.LayerChart(
        layer=[image, unseen.mark_point(opacity=0, aria=False).encode(**encoding)]
    )


def _size_of(values: pd.Series[float], log: bool) -> str:
    """Say how large entries are; the tiniest are often rounding errors, and no use to anyone."""
    finite = values[np.isfinite(values)]
    if finite.empty:
        return "no data"
    if log:
        return f"up to {finite.max():.2g}"
    largest = float(finite.abs().max())
    return f"{near(finite.min(), largest)} to {near(finite.max(), largest)}"


def _whole(places: pd.Series[float]) -> range:
    """All indices from the least to the largest."""
    if not (places % 1 == 0).all():
        name, wrong = places.name, places[places % 1 != 0].iloc[0]
        raise ValueError(f"column {name!r} must hold whole numbers (indices), got {wrong}")
    return range(int(places.min()), int(places.max()) + 1) if len(places) else range(1)


def _index_axis(column: str, places: range, label: str, *, reverse: bool) -> Any:
    channel = alt.Y if reverse else alt.X
    # A single index has no whole number but itself within the axis: Vega's ticks fall outside.
    ticks = {"values": [places.start]} if len(places) == 1 else {"tickMinStep": 1, "tickCount": 5}
    return channel(
        f"{column}:Q",
        title=label or None,
        axis=alt.Axis(grid=False, format="d", **ticks),
        scale=alt.Scale(
            domain=[places.start - 0.5, places.stop - 0.5], nice=False, zero=False, reverse=reverse
        ),
    )


def _colour_ends(values: pd.Series[float], log: bool) -> tuple[float, float]:
    """Ends of a matrix's colours: symmetrical about zero where there are negative entries."""
    if values.empty:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        return low, high
    return (-max(-low, high), max(-low, high)) if low < 0 else (0.0, high or 1.0)


def _png(values: npt.NDArray[np.float64], ends: tuple[float, float], log: bool) -> str:
    """Address of a PNG picture that holds one pixel a value; what is NaN is transparent."""
    low, high = np.log10(ends) if log else ends
    known = np.isfinite(values)
    shown = np.log10(values, where=known, out=np.zeros_like(values)) if log else values
    share = np.where(known, (shown - low) / (high - low or 1.0), 0.0) * (len(CIVIDIS) - 1)
    stops = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in CIVIDIS])
    rgb = [np.interp(share, range(len(CIVIDIS)), stops[:, k]).round() for k in range(3)]
    pixels = np.stack([*rgb, np.where(known, 255, 0)], axis=-1).astype(np.uint8)
    height, width = values.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits of red, green, blue, α
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in pixels), 9)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _colour(
    values: pd.Series[float],
    column: str,
    log: bool,
    *,
    length: int,
    ends: tuple[float, float] | None = None,
) -> alt.Color:
    """Encode a column as colour from ``ends``, or from its least to its largest value."""
    scale = alt.Scale(
        range=CIVIDIS,
        interpolate="rgb",
        type="log" if log else "linear",
        domain=list(ends) if ends else alt.Undefined,
    )
    return alt.Color(
        f"{column}:Q", scale=scale, title=None, legend=_colour_bar(values, log, length)
    )


def _colour_bar(values: pd.Series[float], log: bool, length: int) -> alt.Legend:
    if not log or values.empty:
        return alt.Legend(format="~g", gradientLength=max(length, SHORTEST_BAR))
    # The ends and the middle: Vega labels powers of ten, of which a narrow range has one or none.
    low, high = float(values.min()), float(values.max())
    middle = math.sqrt(low) * math.sqrt(high)
    plain = low > 1e-3 and high < 1e5
    return alt.Legend(
        values=[low, middle, high] if high > low else [low],
        format=".2~r" if plain else ".1~e",
        gradientLength=max(length, SHORTEST_BAR),
    )
