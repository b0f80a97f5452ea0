"""Lines: a quantity over the layers (`profile`) or over anything else (`curve`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lca_widgets.charts.parts import (
    COLOURS,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    Panel,
    chart,
    drawable,
    tooltip,
)

__all__ = ["curve", "drawn_lines", "ends_of", "profile"]

MANY_LAYERS = 40  # beyond it points would hide the dashes between them
LAYER_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
# The second cue beside the colours, and the third.
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
    return drawn_lines(
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
    lines = drawn_lines(
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


def drawn_lines(
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
    """Draw one line for each value of ``by``; ``labels`` are the axes'."""
    table = table.reset_index(drop=True)  # rows are told apart by their index
    if x_log and (table[x] <= 0).any():
        title += f" ({(table[x] <= 0).sum()} × {x} ≤ 0)"
        table = table[table[x] > 0]
    drawn, title = drawable(table, column, title, log)
    order = list(dict.fromkeys(table[by])) if by else []
    # A profile's missing values stay in as blanks, which interrupt its lines.
    rows = table.assign(**{column: table[column].where(table.index.isin(drawn.index))})
    many = table[x].nunique() > MANY_LAYERS
    lines = chart(rows if points else drawn, [x, column, *([by] if by else [])])
    main = lines.mark_line(
        point={"size": 25} if points and not many else False,
        color=COLOURS[0],
        strokeWidth=1.2 if points and many else 2,
    ).encode(
        x=_position_axis(table, x, points, x_log, labels[0]),
        y=_value_axis(_extent(drawn, column, band, log), column, log, domain, labels[1]),
        **_told_apart(by, order, shapes=not points),
        **(tooltip(table, column, by) if points else {}),
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
        description=ends_of(table, x, column, by),
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
            chart(rows.dropna(subset=[low, high]), [x, low, high])
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
            points = chart(alone, [x, column]).mark_point(
                size=size, filled=True, opacity=1, color=COLOURS[k % len(COLOURS)]
            )
            marks.append(points.encode(x=f"{x}:Q", y=f"{column}:Q", **tooltip(alone, column)))
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
        chart(pd.concat(marked), [x, column, by])
        .mark_point(size=40, filled=True, opacity=1, aria=False)
        .encode(x=f"{x}:Q", y=f"{column}:Q", color=colour, shape=shape)
    )


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
                chart(rows, [x])
                .mark_text(text=text, color=COLOURS[k % len(COLOURS)], fontWeight="bold")
                .encode(x=f"{x}:Q", y=alt.value(edge))
            )
    return marks


def ends_of(table: pd.DataFrame, x: str, column: str, by: str | None) -> str:
    """First and last value of each line, to two digits."""
    if table.empty:
        return "no data"
    rows = table.sort_values(x, kind="stable")
    lines = [(line, rows[rows[by] == line]) for line in table[by].unique()] if by else [("", rows)]
    return "; ".join(
        f"{label} {line[column].iloc[0]:.2g} → {line[column].iloc[-1]:.2g}".strip()
        for label, line in lines
    )
