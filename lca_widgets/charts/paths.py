"""The path of a run in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lca_widgets.charts.parts import COLOURS, PANEL_HEIGHT, PANEL_WIDTH, chart, near, short

__all__ = ["path"]

MANY_POINTS = 60  # of a path: beyond it dots would hide the line


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
            axis: short(table[axis].clip(ends[axis][0] - far[axis], ends[axis][1] + far[axis]))
            for axis in (x, y)
        }
    )
    broken = rows.isna().any(axis=1)
    rows = rows.assign(part=broken.cumsum(), order=range(len(rows)))[~broken]
    return (
        chart(rows, [x, y, "part", "order"])
        .mark_line(clip=True, aria=False, **mark)
        .encode(detail="part:N", order="order:Q")
    )


def _end_mark(
    point: pd.DataFrame, x: str, y: str, ends: Mapping[str, Sequence[float]], filled: bool
) -> alt.Chart:
    inner = point.assign(**{axis: point[axis].clip(*ends[axis]) for axis in (x, y)})
    inside = bool((inner[[x, y]] == point[[x, y]]).all(axis=None))
    return chart(inner, [x, y]).mark_point(
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
            near(float(known[axis].iloc[row]), ends[axis][1] - ends[axis][0]) for axis in (x, y)
        ]
        return f"({', '.join(numbers)})"

    return f"{place(0)} → {place(-1)}, {len(known)} points"
