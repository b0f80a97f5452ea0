"""The figures of an analysis and of a watched training."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from lca_widgets.charts.cells import heat_map
from lca_widgets.charts.figures import Figure, figure
from lca_widgets.charts.lines import drawn_lines, ends_of, profile
from lca_widgets.charts.parts import Panel

__all__ = ["analysis_figure", "history_figure"]

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
    panel = drawn_lines(
        shares, "layer", "share", "units", title="", log=False, points=True, domain=(0, 1)
    )
    return panel.properties(
        title=f"Share of units by layer ({known['layer'].nunique()} of {len(table)} rectified)",
        description=ends_of(known, "layer", "share", "units"),
    )


def _largest_shares(table: pd.DataFrame) -> Panel:
    shares = _stacked(table, UNIT_SHARES, "units", "share").dropna(subset="share")
    largest = shares.groupby(["step", "units"], sort=False)["share"].max().reset_index()
    title = "Largest share of units in a layer"
    return drawn_lines(
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
