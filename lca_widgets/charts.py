"""Finished figures: Altair charts from tidy tables, shown offline in JupyterLab.

JupyterLab 4 renders Vega 5 and nothing newer, and Altair's own default asks a content-delivery
network for its JavaScript. A `Figure` is an ordinary Altair chart that compiles itself to Vega 5
when it is displayed, with an SVG picture for readers without a kernel and a text summary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

__all__ = [
    "Figure",
    "analysis_figure",
    "curve",
    "figure",
    "heat_map",
    "history_figure",
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
# Okabe and Ito's palette, told apart by most colour-blind readers; dashes are the second cue.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3]]

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
        panels = self.concat
        return "\n".join(f"{panel.title}: {panel.description}" for panel in panels)


def figure(*panels: alt.Chart | alt.LayerChart, columns: int = 2) -> Figure:
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
) -> alt.Chart | alt.LayerChart:
    """Draw a quantity by layer, one line for each value of ``by``.

    Args:
        table: One row a layer and line, with columns ``layer``, ``column`` and ``by``; a column
            ``name`` is shown where the mouse rests on a point.
        column: The quantity.
        by: Column that tells the lines apart; ``None`` for a single line.
        title: The panel's title.
        log: Logarithmic axis. Values it cannot show (0, negative, ±∞, NaN) are named in the title
            and interrupt the line; ∞ stands at the upper edge where it occurs, 0 at the lower.
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
    panel = _lines(table, x, column, by, title=title, log=log, points=False)
    assert isinstance(panel, alt.Chart)  # only a profile has marks at its edges
    return panel


def heat_map(
    table: pd.DataFrame, column: str, *, title: str, log: bool = True
) -> alt.Chart | alt.LayerChart:
    """Draw a quantity by layer (up) and step (right) as colour.

    Args:
        table: One row a layer and step, with columns ``layer``, ``step`` and ``column``.
        column: The quantity.
        title: The panel's title.
        log: Logarithmic colour scale. Values it cannot show are named in the title, and in their
            cells where these are large enough.

    A map of more steps than pixels, or of very many cells, draws every second, third, … of them.
    """
    steps = sorted(table["step"].unique().tolist())
    layers = sorted(table["layer"].unique().tolist(), reverse=True)
    columns = min(PANEL_WIDTH, MOST_CELLS // max(1, len(layers)))
    steps = steps[:: max(1, math.ceil(len(steps) / max(1, columns)))]
    cells = table[table["step"].isin(steps)]
    drawn, title = _drawable(cells, column, title, log)
    # Cells of whole pixels: fractions leave light seams between them.
    width = max(1, round(PANEL_WIDTH / max(1, len(steps))))
    height = max(1, round(PANEL_HEIGHT / max(1, len(layers))))
    axis = alt.Axis(labelOverlap="greedy", labelAngle=0, labelSeparation=10, ticks=False)
    # The whole axes, also where a layer has nothing to draw.
    position: dict[str, Any] = {
        "x": alt.X("step:O", axis=axis, scale=alt.Scale(domain=steps)),
        "y": alt.Y("layer:O", axis=axis, scale=alt.Scale(domain=layers)),
    }
    scale = alt.Scale(scheme="cividis", type="log" if log else "linear")
    colour = alt.Color(
        f"{column}:Q", scale=scale, title=None, legend=_colour_bar(drawn[column], log)
    )
    panel: alt.Chart | alt.LayerChart = (
        _chart(drawn, ["step", "layer", column])
        .mark_rect()
        .encode(**position, color=colour, **_tooltip(table, column))
    )
    if min(width, height) >= CELL_FOR_TEXT and (named := _named_cells(cells, column, log)):
        panel = alt.LayerChart(layer=[panel, *(marks.encode(**position) for marks in named)])
    return panel.properties(
        title=title,
        description=_range_of(table, column),
        width=alt.Step(width),
        height=alt.Step(height),
    )


def _named_cells(cells: pd.DataFrame, column: str, log: bool) -> list[alt.Chart]:
    """Write the values without a colour into their cells."""
    values = cells[column]
    texts = {"∞": values == math.inf, "–": values.isna()} | ({"0": values == 0} if log else {})
    return [
        _chart(cells[mask], ["step", "layer"]).mark_text(text=text, color="#555")
        for text, mask in texts.items()
        if mask.any()
    ]


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
    # Beside the panels they would be cut off in a notebook whose side bar is open.
    return figure(*panels).configure_legend(orient="bottom")


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


def _compared(
    table: pd.DataFrame, *, title: str, columns: Mapping[str, str]
) -> alt.Chart | alt.LayerChart:
    """Draw several columns as lines of one profile; those that hold no value are only named."""
    known = {line: column for line, column in columns.items() if table[column].notna().any()}
    unknown = [line for line in columns if line not in known]
    if known and unknown:
        title += f" ({', '.join(unknown)}: not known)"
    lines = _stacked(table, known or columns, "line", "value")
    return profile(lines, "value", by="line", title=title)


def _unit_shares(table: pd.DataFrame) -> alt.Chart | alt.LayerChart:
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


def _largest_shares(table: pd.DataFrame) -> alt.Chart | alt.LayerChart:
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
) -> alt.Chart | alt.LayerChart:
    drawn, title = _drawable(table, column, title, log)
    order = list(dict.fromkeys(table[by])) if by else []
    # A profile's missing values stay in as blanks, which interrupt its lines.
    rows = table.assign(**{column: table[column].where(table.index.isin(drawn.index))})
    many = table[x].nunique() > MANY_LAYERS
    lines = _chart(rows if points else drawn, [x, column, *([by] if by else [])])
    panel: alt.Chart | alt.LayerChart = lines.mark_line(
        point={"size": 25} if points and not many else False,
        color=COLOURS[0],
        strokeWidth=1.2 if points and many else 2,
    ).encode(
        x=_position_axis(table, x, points),
        y=_value_axis(drawn, column, log, domain),
        **_told_apart(by, order),
        **(_tooltip(table, column, by) if points else {}),
    )
    if points:
        lonely = _points_alone(rows, x, column, order, by) if many else []
        edges = _edge_marks(table, x, column, by, order, log)
        if lonely or edges:
            panel = alt.LayerChart(layer=[panel, *lonely, *edges])
    return panel.properties(
        title=title,
        description=_ends_of(table, x, column, by),
        width=PANEL_WIDTH,
        height=PANEL_HEIGHT,
    )


def _position_axis(table: pd.DataFrame, x: str, points: bool) -> alt.X:
    axis: dict[str, Any] = {"grid": False, "labelFlush": False, "labelOverlap": True}
    if points and len(table):  # layers are whole numbers, whatever room there is between them
        first, last = int(table[x].min()), int(table[x].max())
        every = next(step for step in LAYER_TICKS if (last - first) / step < 10)
        axis["values"] = [k for k in range(first, last + 1) if k in (1, first) or k % every == 0]
        axis["format"] = "d"
    # The padding keeps marks at the first and the last layer off the frame.
    scale = alt.Scale(zero=False, nice=False, padding=8 if points else 0)
    return alt.X(f"{x}:Q", title=x, axis=alt.Axis(tickMinStep=1, **axis), scale=scale)


def _value_axis(
    drawn: pd.DataFrame, column: str, log: bool, domain: Sequence[float] | None
) -> alt.Y:
    axis: dict[str, Any] = {"format": "~g", "tickCount": 5}
    if log and len(drawn):
        axis = _decades(drawn[column].min(), drawn[column].max())
    scale = alt.Scale(
        type="log" if log else "linear",
        zero=False,
        domain=list(domain) if domain else alt.Undefined,
    )
    return alt.Y(f"{column}:Q", title=None, scale=scale, axis=alt.Axis(**axis))


def _decades(low: float, high: float) -> dict[str, Any]:
    """Place up to seven ticks at powers of ten: Vega's own lines between them darken a panel."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    plain = min(first, -last) > -6
    exponents = range(first, last + 1, every)
    return {
        # From text: 10.0**-7 is not the number that 1e-7 is, and would be labelled so.
        "values": [float(f"1e{k}") for k in exponents if -308 < k < 309],
        "format": "~g" if plain else ".0e",
    }


def _points_alone(
    rows: pd.DataFrame, x: str, column: str, order: Sequence[Any], by: str | None
) -> list[alt.Chart]:
    """Draw the values between two blanks, which no line shows."""
    marks = []
    for k, line in enumerate(order or [None]):
        known = (rows[rows[by] == line] if by else rows).sort_values(x)
        values = known[column]
        alone = known[values.notna() & values.shift(1).isna() & values.shift(-1).isna()]
        if len(alone):
            points = _chart(alone, [x, column]).mark_point(
                size=10, filled=True, color=COLOURS[k % len(COLOURS)]
            )
            marks.append(points.encode(x=f"{x}:Q", y=f"{column}:Q", **_tooltip(alone, column)))
    return marks


def _told_apart(by: str | None, order: Sequence[Any]) -> dict[str, Any]:
    """Encode the lines' names as colour and dash, in the order of the table."""
    if not by:
        return {}
    legend = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)
    return {
        name: channel(f"{by}:N", legend=legend, scale=alt.Scale(domain=order, range=marks))
        for name, channel, marks in (
            ("color", alt.Color, COLOURS),
            ("strokeDash", alt.StrokeDash, DASHES),
        )
    }


def _tooltip(table: pd.DataFrame, column: str, by: str | None = None) -> dict[str, Any]:
    """What to show where the mouse rests; nothing in tables that name no layers."""
    if "name" not in table:
        return {}
    fields = [*(["step"] if "step" in table else []), "layer", "name", *([by] if by else [])]
    number = alt.Tooltip(f"{column}:Q", format=".3g")
    return {"tooltip": [*(alt.Tooltip(f"{field}:N") for field in fields), number]}


def _edge_marks(
    table: pd.DataFrame, x: str, column: str, by: str | None, order: Sequence[Any], log: bool
) -> list[alt.Chart]:
    """Write ∞ at the upper and 0 at the lower edge, where a line has such a value.

    Each line has a row of its own, so that none hides another's.
    """
    marks = []
    for value, text, from_edge in ((math.inf, "∞", 1), (0.0, "0", -1)):
        if value == 0 and not log:
            continue
        for k, line in enumerate(order or [None]):
            rows = table[(table[column] == value) & ((table[by] == line) if by else True)]
            if rows.empty:
                continue
            edge = 0 if from_edge > 0 else PANEL_HEIGHT
            marks.append(
                _chart(rows, [x])
                .mark_text(text=text, color=COLOURS[k % len(COLOURS)], fontWeight="bold")
                .encode(x=f"{x}:Q", y=alt.value(edge + from_edge * (6 + 10 * k)))
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


def _colour_bar(values: pd.Series[float], log: bool) -> alt.Legend:
    length = PANEL_HEIGHT - 20
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
    lines = table.sort_values(x).groupby(by, sort=False) if by else [("", table.sort_values(x))]
    return "; ".join(
        f"{label} {line[column].iloc[0]:.2g} → {line[column].iloc[-1]:.2g}".strip()
        for label, line in lines
    )


def _range_of(table: pd.DataFrame, column: str) -> str:
    if table.empty:
        return "no data"
    return f"{table[column].min():.2g} to {table[column].max():.2g}"
