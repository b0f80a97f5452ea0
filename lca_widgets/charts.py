"""Finished figures: Altair charts from tidy tables, shown offline in JupyterLab.

JupyterLab 4 renders Vega 5 and nothing newer, and Altair's own default asks a content-delivery
network for its JavaScript. A `Figure` is an ordinary Altair chart that compiles itself to Vega 5
when it is displayed, with an SVG picture for readers without a kernel and a text summary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

__all__ = ["Figure", "curve", "figure", "heat_map", "profile"]

VEGA_LITE_VERSION = "5.21"  # the newest that vl-convert compiles to Vega 5
VEGA_MIME_TYPE = "application/vnd.vega.v5+json"
VEGA_SCHEMA = "https://vega.github.io/schema/vega/v5.json"

PANEL_WIDTH, PANEL_HEIGHT = 300, 150
# Okabe and Ito's palette, told apart by most colour-blind readers; dashes are the second cue.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3]]


class Figure(alt.ConcatChart):
    """Several Altair charts side by side that display themselves offline in JupyterLab."""

    def _repr_mimebundle_(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        import vl_convert

        spec = self.to_dict()
        vega = vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE_VERSION)
        vega["$schema"] = VEGA_SCHEMA
        # SVG instead of canvas: screen readers reach the marks, and the menu exports both.
        vega.setdefault("usermeta", {})["embedOptions"] = {"renderer": "svg"}
        return {
            VEGA_MIME_TYPE: vega,
            "image/svg+xml": vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE_VERSION),
            "text/plain": repr(self),
        }

    def png(self, scale: float = 1.0) -> bytes:
        """Return the figure as a PNG picture, ``scale`` pixels per unit of length."""
        import vl_convert

        return bytes(
            vl_convert.vegalite_to_png(self.to_dict(), vl_version=VEGA_LITE_VERSION, scale=scale)
        )

    def __repr__(self) -> str:
        """Summarise what is drawn, one line a panel: title, then what its `description` says."""
        panels = self.concat
        return "\n".join(f"{panel.title}: {panel.description}" for panel in panels)


def figure(*panels: alt.Chart, columns: int = 2) -> Figure:
    """Arrange panels in rows of ``columns``.

    Args:
        *panels: What `profile`, `curve` and `heat_map` return, or other Altair charts with a title
            and a description.
        columns: Panels in a row.
    """
    return Figure(concat=list(panels), columns=columns).resolve_scale(
        color="independent", strokeDash="independent", shape="independent"
    )


def profile(
    table: pd.DataFrame, column: str, *, by: str | None = None, title: str, log: bool = True
) -> alt.Chart:
    """Draw a quantity by layer, one line for each value of ``by``.

    Args:
        table: One row a layer and line, with columns ``layer``, ``column`` and ``by``.
        column: The quantity.
        by: Column that tells the lines apart; ``None`` for a single line.
        title: The panel's title.
        log: Logarithmic axis. Values it cannot show (0, negative, ±∞, NaN) are named in the title.
    """
    return _lines(table, "layer", column, by, title=title, log=log, points=True)


def curve(
    table: pd.DataFrame,
    column: str,
    *,
    x: str = "step",
    by: str | None = None,
    title: str,
    log: bool = False,
) -> alt.Chart:
    """Draw a quantity over training, one line for each value of ``by``; otherwise as `profile`."""
    return _lines(table, x, column, by, title=title, log=log, points=False)


def heat_map(table: pd.DataFrame, column: str, *, title: str, log: bool = True) -> alt.Chart:
    """Draw a quantity by layer (up) and step (right) as colour.

    Args:
        table: One row a layer and step, with columns ``layer``, ``step`` and ``column``.
        column: The quantity.
        title: The panel's title.
        log: Logarithmic colour scale. Values it cannot show are named in the title.

    A map of more steps than pixels draws every second, third, … of them.
    """
    steps = sorted(table["step"].unique())
    every = max(1, math.ceil(len(steps) / PANEL_WIDTH))
    drawn, title = _drawable(table[table["step"].isin(steps[::every])], column, title, log)
    scale = alt.Scale(scheme="cividis", type="log" if log else "linear")
    axis = alt.Axis(labelOverlap="greedy", labelAngle=0, labelSeparation=10, ticks=False)
    # Cells of whole pixels: fractions leave light seams between them.
    cell_width = max(1, round(PANEL_WIDTH / max(1, len(steps[::every]))))
    cell_height = max(1, round(PANEL_HEIGHT / max(1, table["layer"].nunique())))
    return (
        _chart(drawn, ["step", "layer", column])
        .mark_rect()
        .encode(
            x=alt.X("step:O", axis=axis),
            y=alt.Y("layer:O", sort="descending", axis=axis),
            color=alt.Color(f"{column}:Q", scale=scale, title=None, legend=_colour_bar(log)),
        )
        .properties(
            title=title,
            description=_range_of(table, column),
            width=alt.Step(cell_width),
            height=alt.Step(cell_height),
        )
    )


def _lines(
    table: pd.DataFrame,
    x: str,
    column: str,
    by: str | None,
    *,
    title: str,
    log: bool,
    points: bool,
) -> alt.Chart:
    drawn, title = _drawable(table, column, title, log)
    lines = _chart(drawn, [x, column, *([by] if by else [])]).mark_line(
        point={"size": 25} if points else False, color=COLOURS[0]
    )
    encoding: dict[str, Any] = {
        "x": alt.X(
            f"{x}:Q",
            title=x,
            axis=alt.Axis(tickMinStep=1, grid=False),
            scale=alt.Scale(zero=False, nice=False),
        ),
        "y": alt.Y(
            f"{column}:Q",
            title=None,
            scale=alt.Scale(type="log" if log else "linear", zero=False),
            axis=alt.Axis(format="~g", tickCount=5),
        ),
    }
    if by:
        order = list(dict.fromkeys(table[by]))
        legend = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)
        for name, channel, marks in (
            ("color", alt.Color, COLOURS),
            ("strokeDash", alt.StrokeDash, DASHES),
        ):
            scale = alt.Scale(domain=order, range=marks)
            encoding[name] = channel(f"{by}:N", legend=legend, scale=scale)
    return lines.encode(**encoding).properties(
        title=title,
        description=_ends_of(table, x, column, by),
        width=PANEL_WIDTH,
        height=PANEL_HEIGHT,
    )


def _chart(table: pd.DataFrame, columns: Sequence[str]) -> alt.Chart:
    # Rows as a plain value: alt.Data validates each of them, and data frames stop at 5000.
    return alt.Chart({"values": table[list(columns)].to_dict("records")})


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


def _colour_bar(log: bool) -> alt.Legend:
    return alt.Legend(format=".0e" if log else "~g", gradientLength=PANEL_HEIGHT - 20)


def _ends_of(table: pd.DataFrame, x: str, column: str, by: str | None) -> str:
    """First and last value of each line, to two digits."""
    if table.empty:
        return "no data"
    lines = table.sort_values(x).groupby(by, sort=False) if by else [("", table.sort_values(x))]
    return "; ".join(
        f"{label} {line[column].iloc[0]:.2g} → {line[column].iloc[-1]:.2g}".strip()
        for label, line in lines
    )


def _range_of(table: pd.DataFrame, column: str) -> str:
    if table.empty:
        return "no data"
    return f"{table[column].min():.2g} to {table[column].max():.2g}"
