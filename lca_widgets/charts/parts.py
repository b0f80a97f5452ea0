"""What panels of every kind share: size, palette, data that can be drawn, tooltips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

__all__ = [
    "COLOURS",
    "PANEL_HEIGHT",
    "PANEL_WIDTH",
    "Panel",
    "chart",
    "drawable",
    "near",
    "short",
    "tooltip",
]

PANEL_WIDTH, PANEL_HEIGHT = 300, 150
# Okabe and Ito's palette, told apart by most colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
Panel = alt.Chart | alt.LayerChart


def chart(table: pd.DataFrame, columns: Sequence[str]) -> alt.Chart:
    """Begin a chart of some columns of a table, and of the layers' names if it has them."""
    # Rows as a plain value: alt.Data validates each of them, and data frames stop at 5000.
    kept = [*columns, *(["name"] if "name" in table and "name" not in columns else [])]
    rows = table[kept].astype(object)
    return alt.Chart({"values": rows.where(rows.notna(), None).to_dict("records")})


def drawable(table: pd.DataFrame, column: str, title: str, log: bool) -> tuple[pd.DataFrame, str]:
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


def short(values: pd.Series[float]) -> pd.Series[float]:
    """Round to four digits, more than a colour or a pixel shows: a notebook stores each of them."""
    return values.map(lambda value: float(f"{value:.4g}"))


def near(value: float, scale: float) -> str:
    """Write two digits of what is left of a value when a thousandth of ``scale`` is nothing."""
    if not math.isfinite(value) or not scale > 0:
        return f"{value:.2g}"
    digits = 3 - math.ceil(math.log10(scale))
    return f"{round(value, digits) + 0.0:.2g}"  # + 0.0: never "-0"


def tooltip(table: pd.DataFrame, column: str, by: str | None = None) -> dict[str, Any]:
    """What to show where the mouse rests; nothing in tables that name no layers."""
    if "name" not in table:
        return {}
    fields = [*(["step"] if "step" in table else []), "layer", "name", *([by] if by else [])]
    number = alt.Tooltip(f"{column}:Q", format=".3g")
    return {"tooltip": [*(alt.Tooltip(f"{field}:N") for field in fields), number]}
