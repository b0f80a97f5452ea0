"""Finished figures: Altair charts from tidy tables, shown offline in JupyterLab.

JupyterLab 4 renders Vega 5 and nothing newer, and Altair's own default asks a content-delivery
network for its JavaScript. A `Figure` is an ordinary Altair chart that compiles itself to Vega 5
when it is displayed, with an SVG picture for readers without a kernel and a text summary.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = [
    "Figure",
    "analysis_figure",
    "curve",
    "figure",
    "heat_map",
    "history_figure",
    "matrix",
    "path",
    "profile",
]

VEGA_LITE_VERSION = "5.21"  # the newest that vl-convert compiles to Vega 5
VEGA_MIME_TYPE = "application/vnd.vega.v5+json"
VEGA_SCHEMA = "https://vega.github.io/schema/vega/v5.json"

PANEL_WIDTH, PANEL_HEIGHT = 300, 150
MANY_LAYERS = 40  # beyond it points would hide the dashes between them
LAYER_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
CELL_FOR_TEXT = 10  # pixels
MOST_CELLS = 20_000  # of a heat map: a notebook stores each of them as some 100 bytes
MANY_POINTS = 60  # of a path: beyond it dots would hide the line
# Okabe and Ito's palette, told apart by most colour-blind readers; dashes are the second cue.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
# What stands before a name in a legend.
SHAPE_SYMBOL: dict[str, Any] = {"symbolStrokeWidth": 0, "symbolSize": 70}
STROKE_SYMBOL: dict[str, Any] = {
    "symbolType": "stroke",
    "symbolStrokeWidth": 2,
    "symbolSize": 300,
}
MARKERS = 7  # of a curve among others: where two are one, the markers still tell
# Its lightness grows from end to end, and its middle is grey: signs show without hue too.
CIVIDIS = [
    *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
    *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
]

# What an analysis is drawn as: title → names and columns of its lines.
ANALYSIS_PANELS = {
    "λ_max(Σ_x)": {"uncentred": "lambda_max_x", "centred": "lambda_max_x_centred"},
    "λ_max(Σ_g)": {"uncentred": "lambda_max_g", "centred": "lambda_max_g_centred"},
    "κ_50(Σ_x)": {"uncentred": "kappa50_x", "centred": "kappa50_x_centred"},
    "κ_50(Σ_g)": {"uncentred": "kappa50_g", "centred": "kappa50_g_centred"},
    "σ_max of weight and gradient": {"W": "weight_sigma", "∂L/∂W": "grad_sigma"},
    "Domination and sensitivity": {
        "ratio ∂L/∂W : W": "domination",
        "product ∂L/∂W · W": "sensitivity",
    },
}
UNIT_SHARES = {"dying": "dying", "full": "full"}
HISTORY_PANELS = {
    "lambda_max_x": "λ_max(Σ_x), layer × step",
    "lambda_max_g": "λ_max(Σ_g), layer × step",
    "kappa50_x": "κ_50(Σ_x), layer × step",
    "domination": "Domination σ(∂L/∂W)/σ(W), layer × step",
    "sensitivity": "Sensitivity σ(W)·σ(∂L/∂W), layer × step",
}


Panel = alt.Chart | alt.LayerChart


class Figure(alt.ConcatChart):
    """Several Altair charts side by side that display themselves offline in JupyterLab."""

    def _repr_mimebundle_(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        import vl_convert

        spec = self.to_dict()
        vega = vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE_VERSION)
        vega["$schema"] = VEGA_SCHEMA
        # JupyterLab's theme decides: on a fixed white a dark theme's text would be lost.
        vega.pop("background", None)
        # SVG instead of canvas: screen readers reach the marks, and the menu exports both.
        vega.setdefault("usermeta", {})["embedOptions"] = {"renderer": "svg"}
        return {
            VEGA_MIME_TYPE: vega,
            "image/svg+xml": self.svg(),
            "text/plain": repr(self),
        }

    def svg(self) -> str:
        """Return the figure as an SVG picture, complete in itself."""
        import vl_convert

        return str(vl_convert.vegalite_to_svg(self.to_dict(), vl_version=VEGA_LITE_VERSION))

    def png(self, scale: float = 1.0) -> bytes:
        """Return the figure as a PNG picture, ``scale`` pixels per unit of length."""
        import vl_convert

        return bytes(
            vl_convert.vegalite_to_png(self.to_dict(), vl_version=VEGA_LITE_VERSION, scale=scale)
        )

    def __repr__(self) -> str:
        """Summarise what is drawn, one line a panel: title, then what its `description` says."""
        places = [getattr(place, "vconcat", [place]) for place in self.concat]
        return "\n".join(
            f"{panel.title}: {panel.description}" for place in places for panel in place
        )


def figure(*panels: Panel | Sequence[Panel], columns: int = 2) -> Figure:
    """Arrange panels in rows of ``columns``.

    Args:
        *panels: What `profile`, `curve`, `heat_map`, `path` and `matrix` return, or other Altair
            charts with a title and a description. A list of panels stands in one place, one above
            the other.
        columns: Places in a row.

    Example:
        >>> table = pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0], "error": [0.5, 0.1]})
        >>> loss, error = (curve(table, name, title=name) for name in ("loss", "error"))
        >>> figure(loss, error)
        loss: 2 → 1
        error: 0.5 → 0.1
    """
    own: dict[str, Any] = dict.fromkeys(("color", "strokeDash", "shape"), "independent")
    places = [
        alt.VConcatChart(vconcat=list(panel)).resolve_scale(**own)
        if isinstance(panel, Sequence)
        else panel
        for panel in panels
    ]
    return Figure(concat=places, columns=columns).resolve_scale(**own)


def profile(
    table: pd.DataFrame,
    column: str,
    *,
    x: str = "layer",
    by: str | None = None,
    title: str,
    log: bool = True,
    x_log: bool = False,
    x_label: str = "",
    y_label: str = "",
    height: int = PANEL_HEIGHT,
) -> Panel:
    """Draw a quantity by layer, or over an index, one line for each value of ``by``.

    Args:
        table: One row a layer and line, with columns ``x``, ``column`` and ``by``; a column
            ``name`` is shown where the mouse rests on a point.
        column: The quantity.
        x: Column of the horizontal axis.
        by: Column that tells the lines apart; ``None`` for a single line.
        title: The panel's title.
        log: Logarithmic axis. Values it cannot show (0, negative, ±∞, NaN) are named in the title
            and interrupt the line; ∞ stands at the upper edge where it occurs, 0 at the lower.
        x_log: Logarithmic horizontal axis; rows without a place on it are counted in the title.
        x_label: Text at the horizontal axis; ``x`` if empty.
        y_label: Text at the vertical axis.
        height: Pixels of the vertical axis.

    Example:
        >>> spectrum = pd.DataFrame({"index": [1, 2, 3], "eigenvalue": [4.0, 1.0, 0.0]})
        >>> panel = profile(spectrum, "eigenvalue", x="index", title="spectrum")
        >>> panel.title, panel.description
        ('spectrum (1 × 0)', '4 → 0')
    """
    return _lines(
        table,
        x,
        column,
        by,
        title=title,
        log=log,
        points=True,
        x_log=x_log,
        labels=(x_label, y_label),
        height=height,
    )


def curve(
    table: pd.DataFrame,
    column: str,
    *,
    x: str = "step",
    by: str | None = None,
    low: str | None = None,
    high: str | None = None,
    shaded: tuple[float, float] | None = None,
    title: str,
    log: bool = False,
    x_log: bool = False,
    x_label: str = "",
    y_label: str = "",
    height: int = PANEL_HEIGHT,
) -> Panel:
    """Draw a quantity over training, one line for each value of ``by``; otherwise as `profile`.

    Args:
        table: One row a point, with columns ``x``, ``column``, ``by``, ``low`` and ``high``.
        column: The quantity.
        x: Column of the horizontal axis.
        by: Column that tells the lines apart; ``None`` for a single line.
        low: Column of the lower end of a translucent band behind each line, such as that of an
            interval; it goes with ``high``.
        high: Column of the upper end of that band.
        shaded: Two places on the horizontal axis; what lies between them is shaded.
        title: The panel's title.
        log: Logarithmic axis; values it cannot show are counted in the title.
        x_log: Logarithmic horizontal axis; rows without a place on it are counted in the title.
        x_label: Text at the horizontal axis; ``x`` if empty.
        y_label: Text at the vertical axis.
        height: Pixels of the vertical axis.

    Raises:
        ValueError: One of ``low`` and ``high`` is missing.

    Example:
        >>> n = pd.DataFrame({"n": [10, 100], "κ": [8.0, 9.0], "from": [5.0, 8.5], "to": [20, 9.5]})
        >>> curve(n, "κ", x="n", low="from", high="to", x_log=True, title="κ").description
        '8 → 9'
    """
    if (low is None) != (high is None):
        raise ValueError(f"low and high go together, got low={low!r} and high={high!r}")
    lines = _lines(
        table,
        x,
        column,
        by,
        title=title,
        log=log,
        points=False,
        x_log=x_log,
        band=(low, high) if low and high else None,
        labels=(x_label, y_label),
        height=height,
    )
    return lines if shaded is None else _with_shade(lines, x, shaded)


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
    drawn, title = _drawable(cells, column, title, log)
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
        cells_drawn = drawn.assign(**{column: _short(drawn[column])})
        panel: Panel = _chart(cells_drawn, [x, y, column]).mark_rect()
        panel = panel.encode(**position, color=colour, **_tooltip(table, column))
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
        _chart(cells[mask], [x, y]).mark_text(text=text, color="#555")
        for text, mask in texts.items()
        if mask.any()
    ]


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
    drawn, title = _drawable(table, column, title, log)
    places = {axis: _whole(table[axis]) for axis in (x, y)}
    rows, columns = len(places[y]), len(places[x])
    most = max(rows, columns)
    # Cells of whole pixels where they fit: others would not be equally large.
    cell = height / most if most > 2 * height else max(1, round(height / most))
    width, height = round(cell * columns), round(cell * rows)
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
    unseen = _chart(pd.DataFrame({**corner, column: list(ends)}), [*corner, column])
    return alt.LayerChart(
        layer=[image, unseen.mark_point(opacity=0, aria=False).encode(**encoding)]
    )


def path(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    backdrop: pd.DataFrame | None = None,
    title: str,
    x_label: str = "",
    y_label: str = "",
    height: int = PANEL_HEIGHT,
) -> alt.LayerChart:
    """Draw the points of a table in their order, a unit being equally long on both axes.

    A ring stands at the first point and a dot at the latest; outside of the picture, a triangle at
    its frame.

    Args:
        table: One row a point, with columns ``x`` and ``y``.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        backdrop: Lines to draw behind, such as contours: rows with the same columns, broken where
            one is NaN. They set the ends of both axes; the path is cut off there.
        title: The panel's title.
        x_label: Text at the horizontal axis; ``x`` if empty.
        y_label: Text at the vertical axis; ``y`` if empty.
        height: Pixels of the vertical axis; fewer where the backdrop is wider than high.

    Example:
        >>> steps = pd.DataFrame({"a": [2.0, 1.0, 0.5], "b": [1.0, -0.5, 0.25]})
        >>> path(steps, x="a", y="b", title="descent").description
        '(2, 1) → (0.5, 0.25), 3 points'
    """
    view = _view_of(table if backdrop is None else backdrop, x, y, backdrop is not None, height)
    width, height, ends = view
    scales = {axis: alt.Scale(domain=ends[axis], nice=False, zero=False) for axis in (x, y)}
    axis = alt.Axis(format="~g", tickCount=5)
    position: dict[str, Any] = {
        "x": alt.X(f"{x}:Q", title=x_label or x, axis=axis, scale=scales[x]),
        "y": alt.Y(f"{y}:Q", title=y_label or y, axis=axis, scale=scales[y]),
    }
    layers = []
    if backdrop is not None:
        layers.append(_strokes(backdrop, x, y, ends, color="#999", strokeWidth=0.8))
    points = {"size": 12} if len(table) <= MANY_POINTS else False
    layers.append(_strokes(table, x, y, ends, color=COLOURS[0], strokeWidth=1.6, point=points))
    known = table[table[x].notna() & table[y].notna()]
    for end, filled in ((known[:1], False), (known[-1:], True)):
        layers += [_end_mark(end, x, y, ends, filled)] if len(end) else []
    return alt.LayerChart(layer=[layer.encode(**position) for layer in layers]).properties(
        title=title,
        description=_path_words(known, x, y, ends),
        width=width,
        height=height,
    )


def _view_of(
    table: pd.DataFrame, x: str, y: str, exact: bool, height: int
) -> tuple[int, int, dict[str, list[float]]]:
    """Size in pixels and ends of the axes, equally many pixels a unit on both."""
    finite = table[np.isfinite(table[x]) & np.isfinite(table[y])]
    ends = {}
    for axis in (x, y):
        low, high = (finite[axis].min(), finite[axis].max()) if len(finite) else (0.0, 1.0)
        margin = 0.0 if exact and high > low else 0.06 * (high - low) or 0.5
        ends[axis] = [float(low - margin), float(high + margin)]
    spans = {axis: high - low for axis, (low, high) in ends.items()}
    unit = min(PANEL_WIDTH / spans[x], height / spans[y])
    if exact:
        return round(unit * spans[x]), round(unit * spans[y]), ends
    for axis, size in ((x, PANEL_WIDTH), (y, height)):
        extra = (size / unit - spans[axis]) / 2
        ends[axis] = [ends[axis][0] - extra, ends[axis][1] + extra]
    return PANEL_WIDTH, height, ends


def _strokes(
    table: pd.DataFrame, x: str, y: str, ends: Mapping[str, Sequence[float]], **mark: Any
) -> alt.Chart:
    """Join rows by lines in their order, broken at NaN, and infinite values at the frame's side."""
    far = {axis: 1e3 * (high - low) for axis, (low, high) in ends.items()}
    rows = pd.DataFrame(
        {
            axis: _short(table[axis].clip(ends[axis][0] - far[axis], ends[axis][1] + far[axis]))
            for axis in (x, y)
        }
    )
    broken = rows.isna().any(axis=1)
    rows = rows.assign(part=broken.cumsum(), order=range(len(rows)))[~broken]
    return (
        _chart(rows, [x, y, "part", "order"])
        .mark_line(clip=True, aria=False, **mark)
        .encode(detail="part:N", order="order:Q")
    )


def _end_mark(
    point: pd.DataFrame, x: str, y: str, ends: Mapping[str, Sequence[float]], filled: bool
) -> alt.Chart:
    near = point.assign(**{axis: point[axis].clip(*ends[axis]) for axis in (x, y)})
    inside = bool((near[[x, y]] == point[[x, y]]).all(axis=None))
    return _chart(near, [x, y]).mark_point(
        shape="circle" if inside else "triangle",
        size=60 if filled else 90,
        filled=filled,
        color=COLOURS[0],
        strokeWidth=1.6,
        opacity=1,
    )


def _path_words(known: pd.DataFrame, x: str, y: str, ends: Mapping[str, Sequence[float]]) -> str:
    """First and last point, to a thousandth of the picture: what is next to zero is zero."""
    if known.empty:
        return "no data"

    def place(row: int) -> str:
        numbers = [
            _near(float(known[axis].iloc[row]), ends[axis][1] - ends[axis][0]) for axis in (x, y)
        ]
        return f"({', '.join(numbers)})"

    return f"{place(0)} → {place(-1)}, {len(known)} points"


def _near(value: float, scale: float) -> str:
    """Write two digits of what is left of a value when a thousandth of ``scale`` is nothing."""
    if not math.isfinite(value) or not scale > 0:
        return f"{value:.2g}"
    digits = 3 - math.ceil(math.log10(scale))
    return f"{round(value, digits) + 0.0:.2g}"  # + 0.0: never "-0"


def _size_of(values: pd.Series[float], log: bool) -> str:
    """Say how large entries are; the tiniest are often rounding errors, and no use to anyone."""
    finite = values[np.isfinite(values)]
    if finite.empty:
        return "no data"
    if log:
        return f"up to {finite.max():.2g}"
    largest = float(finite.abs().max())
    return f"{_near(finite.min(), largest)} to {_near(finite.max(), largest)}"


def _whole(places: pd.Series[float]) -> range:
    """All indices from the least to the largest."""
    if not (places % 1 == 0).all():
        name, wrong = places.name, places[places % 1 != 0].iloc[0]
        raise ValueError(f"column {name!r} must hold whole numbers (indices), got {wrong}")
    return range(int(places.min()), int(places.max()) + 1) if len(places) else range(1)


def _index_axis(column: str, places: range, label: str, *, reverse: bool) -> Any:
    channel = alt.Y if reverse else alt.X
    return channel(
        f"{column}:Q",
        title=label or None,
        axis=alt.Axis(grid=False, tickMinStep=1, format="d", tickCount=5),
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


def analysis_figure(table: pd.DataFrame) -> Figure:
    """Draw one analysis of a model by layer: moments, conditioning, weights, dying units.

    Args:
        table: One row a layer, with the fields of `records.LayerReport`.

    Returns:
        Panels of λ_max and κ_50 of Σ_x and Σ_g, uncentred and centred; of σ_max of the weights and
        their gradients; of their ratio and product; and of the dying and full units, where a
        rectifier follows some layer. A line without any value is left out, and named in the title.

    Example:
        >>> from lca_widgets.records import LayerReport
        >>> row = {field: 1.0 for field in LayerReport.__dataclass_fields__} | {"name": "fc"}
        >>> print(analysis_figure(pd.DataFrame([row])).__repr__().splitlines()[0])
        λ_max(Σ_x) by layer: uncentred 1 → 1; centred 1 → 1
    """
    panels = [
        _compared(table, title=f"{title} by layer", columns=columns)
        for title, columns in ANALYSIS_PANELS.items()
    ]
    if _rectified(table):
        panels.append(_unit_shares(table))
    return figure(*panels)


def history_figure(table: pd.DataFrame) -> Figure:
    """Draw how a model's layers change over training.

    Args:
        table: One row a layer and step: ``step``, then the fields of `records.LayerReport`.

    Returns:
        Maps, layer by step, of λ_max(Σ_x), λ_max(Σ_g), κ_50(Σ_x), domination and sensitivity, and
        the largest share of dying and of full units in a layer, where a rectifier follows some
        layer. A single step is drawn by `analysis_figure`.
    """
    if table["step"].nunique() == 1:
        return analysis_figure(table)
    panels = [heat_map(table, column, title=title) for column, title in HISTORY_PANELS.items()]
    if _rectified(table):
        panels.append(_largest_shares(table))
    return figure(*panels)


def _rectified(table: pd.DataFrame) -> bool:
    return bool(table[list(UNIT_SHARES.values())].notna().any(axis=None))


def _compared(table: pd.DataFrame, *, title: str, columns: Mapping[str, str]) -> Panel:
    """Draw several columns as lines of one profile; those that hold no value are only named."""
    known = {line: column for line, column in columns.items() if table[column].notna().any()}
    unknown = [line for line in columns if line not in known]
    if known and unknown:
        title += f" ({', '.join(unknown)}: not known)"
    lines = _stacked(table, known or columns, "line", "value")
    return profile(lines, "value", by="line", title=title)


def _unit_shares(table: pd.DataFrame) -> Panel:
    """Draw the dying and full units, with gaps where no rectifier follows a layer."""
    shares = _stacked(table, UNIT_SHARES, "units", "share")
    known = shares.dropna(subset="share")
    panel = _lines(
        shares, "layer", "share", "units", title="", log=False, points=True, domain=(0, 1)
    )
    return panel.properties(
        title=f"Share of units by layer ({known['layer'].nunique()} of {len(table)} rectified)",
        description=_ends_of(known, "layer", "share", "units"),
    )


def _largest_shares(table: pd.DataFrame) -> Panel:
    shares = _stacked(table, UNIT_SHARES, "units", "share").dropna(subset="share")
    largest = shares.groupby(["step", "units"], sort=False)["share"].max().reset_index()
    title = "Largest share of units in a layer"
    return _lines(
        largest, "step", "share", "units", title=title, log=False, points=False, domain=(0, 1)
    )


def _stacked(table: pd.DataFrame, columns: Mapping[str, str], by: str, value: str) -> pd.DataFrame:
    """Put columns below each other: one row for each of them, named in ``by``."""
    kept = [column for column in ("step", "layer", "name") if column in table]
    parts = []
    for line, column in columns.items():
        part = table[kept].copy()
        part[by], part[value] = line, table[column].astype(float)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _lines(
    table: pd.DataFrame,
    x: str,
    column: str,
    by: str | None,
    *,
    title: str,
    log: bool,
    points: bool,
    domain: Sequence[float] | None = None,
    x_log: bool = False,
    band: tuple[str, str] | None = None,
    labels: tuple[str, str] = ("", ""),
    height: int = PANEL_HEIGHT,
) -> Panel:
    table = table.reset_index(drop=True)  # rows are told apart by their index
    if x_log and (table[x] <= 0).any():
        title += f" ({(table[x] <= 0).sum()} × {x} ≤ 0)"
        table = table[table[x] > 0]
    drawn, title = _drawable(table, column, title, log)
    order = list(dict.fromkeys(table[by])) if by else []
    # A profile's missing values stay in as blanks, which interrupt its lines.
    rows = table.assign(**{column: table[column].where(table.index.isin(drawn.index))})
    many = table[x].nunique() > MANY_LAYERS
    lines = _chart(rows if points else drawn, [x, column, *([by] if by else [])])
    main = lines.mark_line(
        point={"size": 25} if points and not many else False,
        color=COLOURS[0],
        strokeWidth=1.2 if points and many else 2,
    ).encode(
        x=_position_axis(table, x, points, x_log, labels[0]),
        y=_value_axis(_extent(drawn, column, band, log), column, log, domain, labels[1]),
        **_told_apart(by, order, shapes=not points),
        **(_tooltip(table, column, by) if points else {}),
    )
    behind = _bands(drawn, x, band, order, by, log)
    over = []
    if many or not points:
        shown, size = (rows, 10) if points else (drawn, 40)
        over += _points_alone(shown, x, column, order, by, size)
    if points:
        over += _edge_marks(table, x, column, by, order, log, height)
    elif by and len(drawn):
        over.append(_markers(drawn, x, column, by, order))
    panel = alt.LayerChart(layer=[*behind, main, *over]) if behind or over else main
    return panel.properties(
        title=title,
        description=_ends_of(table, x, column, by),
        width=PANEL_WIDTH,
        height=height,
    )


def _position_axis(table: pd.DataFrame, x: str, points: bool, x_log: bool, label: str) -> alt.X:
    axis: dict[str, Any] = {"grid": False, "labelFlush": False, "labelOverlap": True}
    if x_log and len(table):
        axis |= _log_ticks(float(table[x].min()), float(table[x].max()))
    if not x_log:
        axis["tickMinStep"] = 1
    if points and not x_log and len(table) and (table[x] % 1 == 0).all():
        # Layers are whole numbers, whatever room there is between them.
        first, last = int(table[x].min()), int(table[x].max())
        every = next(step for step in LAYER_TICKS if (last - first) / step < 10)
        axis["values"] = [k for k in range(first, last + 1) if k in (1, first) or k % every == 0]
        axis["format"] = "d"
    # The padding keeps marks at the first and the last layer off the frame.
    scale = alt.Scale(
        type="log" if x_log else "linear", zero=False, nice=False, padding=8 if points else 0
    )
    return alt.X(f"{x}:Q", title=label or x, axis=alt.Axis(**axis), scale=scale)


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """Place ticks at powers of ten, or at their multiples by 1, 2 and 5 within a narrow range."""
    if high > 300 * low:
        return _decades(low, high)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{k}") for k in exponents for digit in (1, 2, 5)]
    return {"values": [tick for tick in ticks if low <= tick <= high], "format": "~g"}


def _extent(
    drawn: pd.DataFrame, column: str, band: tuple[str, str] | None, log: bool
) -> pd.Series[float]:
    """All values that an axis has to hold."""
    values = pd.concat([drawn[name] for name in (column, *(band or ()))])
    return values[np.isfinite(values) & ((values > 0) | (not log))]


def _bands(
    drawn: pd.DataFrame,
    x: str,
    band: tuple[str, str] | None,
    order: Sequence[Any],
    by: str | None,
    log: bool,
) -> list[alt.Chart]:
    """Fill what lies between two columns; an end without a place on the axis is the axis' end."""
    if band is None or drawn.empty:
        return []
    low, high = band
    values = _extent(drawn, low, (low, high), log)
    marks = []
    for k, line in enumerate(order or [None]):
        rows = drawn[drawn[by] == line] if by else drawn
        rows = rows.assign(**{name: rows[name].clip(values.min(), values.max()) for name in band})
        marks.append(
            _chart(rows.dropna(subset=[low, high]), [x, low, high])
            .mark_area(color=COLOURS[k % len(COLOURS)], opacity=0.22, aria=False)
            .encode(x=f"{x}:Q", y=alt.Y(f"{low}:Q", title=None), y2=f"{high}:Q")
        )
    return marks


def _with_shade(panel: Panel, x: str, ends: tuple[float, float]) -> alt.LayerChart:
    """Shade what lies between two places, in the panel's whole height, and say so in its words."""
    left, right = ends
    shade = (
        alt.Chart({"values": [{x: left, "right": right}]})
        .mark_rect(color=COLOURS[2], opacity=0.15, aria=False)
        .encode(x=f"{x}:Q", x2="right:Q")
    )
    layers = panel.layer if isinstance(panel, alt.LayerChart) else [panel]
    return alt.LayerChart(layer=[shade, *layers]).properties(
        title=panel.title,
        description=f"{panel.description}; shaded from {left:.2g} to {right:.2g}",
        width=panel.width,
        height=panel.height,
    )


def _value_axis(
    values: pd.Series[float],
    column: str,
    log: bool,
    domain: Sequence[float] | None,
    label: str,
) -> alt.Y:
    axis: dict[str, Any] = {"format": "~g", "tickCount": 5}
    if log and len(values):
        axis = _decades(values.min(), values.max())
    scale = alt.Scale(
        type="log" if log else "linear",
        zero=False,
        domain=list(domain) if domain else alt.Undefined,
    )
    return alt.Y(f"{column}:Q", title=label or None, scale=scale, axis=alt.Axis(**axis))


def _decades(low: float, high: float) -> dict[str, Any]:
    """Place up to seven ticks, at powers of ten where these suffice.

    Vega's own lines between them darken a panel.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    plain = min(first, -last) > -6
    digits = (1, 2, 5) if last - first <= 2 else (1,)
    exponents = [k for k in range(first, last + 1, every) if -308 < k < 308]
    # From text: 10.0**-7 is not the number that 1e-7 is, and would be labelled so.
    values = [float(f"{digit}e{k}") for k in exponents for digit in digits]
    return {
        "values": [value for value in values if value <= float(f"1e{min(last, 308)}")],
        "format": "~g" if plain else ".0e",
    }


def _points_alone(
    rows: pd.DataFrame, x: str, column: str, order: Sequence[Any], by: str | None, size: int
) -> list[alt.Chart]:
    """Draw the values between two blanks, which no line shows."""
    marks = []
    for k, line in enumerate(order or [None]):
        known = (rows[rows[by] == line] if by else rows).sort_values(x)
        values = known[column]
        alone = known[values.notna() & values.shift(1).isna() & values.shift(-1).isna()]
        if len(alone):
            points = _chart(alone, [x, column]).mark_point(
                size=size, filled=True, opacity=1, color=COLOURS[k % len(COLOURS)]
            )
            marks.append(points.encode(x=f"{x}:Q", y=f"{column}:Q", **_tooltip(alone, column)))
    return marks


def _told_apart(by: str | None, order: Sequence[Any], *, shapes: bool = False) -> dict[str, Any]:
    """Encode the lines' names as colour and dash, in the order of the table.

    Where markers bring ``shapes``, the legend shows these and leaves the dashes out.
    """
    if not by:
        return {}
    legend = _legend(order, SHAPE_SYMBOL if shapes else STROKE_SYMBOL)
    return {
        name: channel(f"{by}:N", legend=shown, scale=alt.Scale(domain=order, range=marks))
        for name, channel, marks, shown in (
            ("color", alt.Color, COLOURS, legend),
            ("strokeDash", alt.StrokeDash, DASHES, None if shapes else legend),
        )
    }


def _legend(names: Sequence[Any], symbol: Mapping[str, Any]) -> alt.Legend:
    """Names below a panel: beside it they would be cut off where a notebook has a side bar."""
    longest = max((len(str(name)) for name in names), default=1)
    return alt.Legend(
        title=None,
        orient="bottom",
        columns=max(1, PANEL_WIDTH // (30 + 6 * longest)),
        labelLimit=PANEL_WIDTH - 40,
        **symbol,
    )


def _markers(drawn: pd.DataFrame, x: str, column: str, by: str, order: Sequence[Any]) -> alt.Chart:
    """Mark some points of each line by its shape, those of one line between another's."""
    marked = []
    for k, line in enumerate(order):
        rows = drawn[drawn[by] == line].sort_values(x, kind="stable")
        every = max(1, len(rows) // MARKERS)
        marked.append(rows[k * every // len(order) :: every])
    legend = _legend(order, SHAPE_SYMBOL)
    colour, shape = (
        channel(f"{by}:N", legend=legend, scale=scale)
        for channel, scale in (
            (alt.Color, alt.Scale(domain=order, range=COLOURS)),
            (alt.Shape, alt.Scale(domain=order, range=SHAPES)),
        )
    )
    return (
        _chart(pd.concat(marked), [x, column, by])
        .mark_point(size=40, filled=True, opacity=1, aria=False)
        .encode(x=f"{x}:Q", y=f"{column}:Q", color=colour, shape=shape)
    )


def _tooltip(table: pd.DataFrame, column: str, by: str | None = None) -> dict[str, Any]:
    """What to show where the mouse rests; nothing in tables that name no layers."""
    if "name" not in table:
        return {}
    fields = [*(["step"] if "step" in table else []), "layer", "name", *([by] if by else [])]
    number = alt.Tooltip(f"{column}:Q", format=".3g")
    return {"tooltip": [*(alt.Tooltip(f"{field}:N") for field in fields), number]}


def _edge_marks(
    table: pd.DataFrame,
    x: str,
    column: str,
    by: str | None,
    order: Sequence[Any],
    log: bool,
    height: int,
) -> list[alt.Chart]:
    """Write ∞ at the upper and 0 at the lower edge, where a line has such a value.

    Each line has a row of its own, so that none hides another's.
    """
    marks = []
    for value, text in ((math.inf, "∞"), (0.0, "0")):
        if value == 0 and not log:
            continue
        from_frame = 6
        for k, line in enumerate(order or [None]):
            rows = table[(table[column] == value) & ((table[by] == line) if by else True)]
            if rows.empty:
                continue
            edge = from_frame if value else height - from_frame
            from_frame += 10
            marks.append(
                _chart(rows, [x])
                .mark_text(text=text, color=COLOURS[k % len(COLOURS)], fontWeight="bold")
                .encode(x=f"{x}:Q", y=alt.value(edge))
            )
    return marks


def _chart(table: pd.DataFrame, columns: Sequence[str]) -> alt.Chart:
    # Rows as a plain value: alt.Data validates each of them, and data frames stop at 5000.
    kept = [*columns, *(["name"] if "name" in table and "name" not in columns else [])]
    rows = table[kept].astype(object)
    return alt.Chart({"values": rows.where(rows.notna(), None).to_dict("records")})


def _drawable(table: pd.DataFrame, column: str, title: str, log: bool) -> tuple[pd.DataFrame, str]:
    """Split off the rows that the axis cannot show, and say in the title what they were."""
    values = table[column]
    kinds = {
        "0": (values == 0) & log,
        "negative": (values < 0) & (values != -math.inf) & log,
        "∞": values == math.inf,
        "-∞": values == -math.inf,
        "NaN": values.isna(),
    }
    hidden = [f"{mask.sum()} × {name}" for name, mask in kinds.items() if mask.any()]
    shown = table[~pd.concat(kinds.values(), axis=1).any(axis=1)]
    return shown, f"{title} ({', '.join(hidden)})" if hidden else title


def _short(values: pd.Series[float]) -> pd.Series[float]:
    """Round to four digits, more than a colour or a pixel shows: a notebook stores each of them."""
    return values.map(lambda value: float(f"{value:.4g}"))


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
        return alt.Legend(format="~g", gradientLength=length)
    # The ends and the middle: Vega labels powers of ten, of which a narrow range has one or none.
    low, high = float(values.min()), float(values.max())
    middle = math.sqrt(low) * math.sqrt(high)
    plain = low > 1e-3 and high < 1e5
    return alt.Legend(
        values=[low, middle, high] if high > low else [low],
        format=".2~r" if plain else ".1~e",
        gradientLength=length,
    )


def _ends_of(table: pd.DataFrame, x: str, column: str, by: str | None) -> str:
    """First and last value of each line, to two digits."""
    if table.empty:
        return "no data"
    rows = table.sort_values(x, kind="stable")
    lines = [(line, rows[rows[by] == line]) for line in table[by].unique()] if by else [("", rows)]
    return "; ".join(
        f"{label} {line[column].iloc[0]:.2g} → {line[column].iloc[-1]:.2g}".strip()
        for label, line in lines
    )


def _range_of(table: pd.DataFrame, column: str) -> str:
    if table.empty:
        return "no data"
    return f"{table[column].min():.2g} to {table[column].max():.2g}"
