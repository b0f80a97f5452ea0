"""The panels of a live chart as one finished figure: the same tables, titles and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

    from lca_widgets import charts

__all__ = ["finished_figure"]

TALL = 356  # pixels of a panel of two rows: as high as two of them with what stands between


def finished_figure(
    panels: Sequence[Panel], tables: Mapping[str, pd.DataFrame], columns: int = 2
) -> charts.Figure:
    """Draw what a live chart shows as an Altair figure.

    Args:
        panels: The panels, in reading order.
        tables: The columns of each table, by the table's name.
        columns: Panels side by side.

    Example:
        >>> import pandas as pd
        >>> panel = Panel("line", "loss", "steps", x="step", y="loss", log=True)
        >>> finished_figure([panel], {"steps": pd.DataFrame({"step": [0, 1], "loss": [2.0, 0.5]})})
        loss: 2 → 0.5
    """
    from lca_widgets import charts  # Altair takes seconds to import, and a live lab draws without

    numeric = {name: _numeric(table) for name, table in tables.items()}
    drawn = [_altair(panel, numeric) for panel in panels]
    places = _stacks([panel.rows for panel in panels], columns)
    stacks = [[drawn[k] for k in place] for place in places]
    return charts.figure(
        *(stack if len(stack) > 1 else stack[0] for stack in stacks), columns=columns
    )


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    """The same table of numbers; pandas takes columns without rows for objects."""
    return table.astype({name: float for name, type_ in table.dtypes.items() if type_.kind == "O"})


def _stacks(rows: Sequence[int], columns: int) -> list[list[int]]:
    """Fill a grid as a live chart does, and read it in bands that no tall panel crosses.

    Each band has a stack of panels for each of its columns.
    """
    taken: dict[tuple[int, int], int] = {}
    for panel, height in enumerate(rows):
        place = next(
            (row, column)
            for row in range(2 * len(rows))
            for column in range(columns)
            if not any((row + i, column) in taken for i in range(height))
        )
        taken |= {(place[0] + i, place[1]): panel for i in range(height)}
    stacks = []
    band: list[list[int]] = [[] for _ in range(columns)]
    for row in range(1 + max((row for row, _ in taken), default=-1)):
        for column in range(columns):
            panel = taken.get((row, column), -1)
            if panel >= 0 and panel not in band[column]:
                band[column].append(panel)
        crossed = any(
            (row, column) in taken and taken[row, column] == taken.get((row + 1, column))
            for column in range(columns)
        )
        if not crossed:
            stacks += [stack for stack in band if stack]
            band = [[] for _ in range(columns)]
    return stacks


def _altair(panel: Panel, tables: Mapping[str, pd.DataFrame]) -> charts.Panel:
    from lca_widgets import charts

    table = tables[panel.table]
    labels: dict[str, Any] = {
        "x_label": panel.x_label,
        "y_label": panel.y_label,
        "title": panel.title,
    }
    tall = panel.rows == 2
    size = labels | {"height": TALL if tall else charts.PANEL_HEIGHT}
    if panel.kind == "heatmap":
        return charts.heat_map(table, panel.colour, x=panel.x, y=panel.y, log=panel.log, **size)
    square = labels | {"height": charts.PANEL_WIDTH if tall else charts.PANEL_HEIGHT}
    if panel.kind == "matrix":
        return charts.matrix(
            _latest(table, panel.step), panel.colour, x=panel.x, y=panel.y, log=panel.log, **square
        )
    if panel.kind == "path":
        behind = tables[panel.backdrop] if panel.backdrop else None
        return charts.path(table, x=panel.x, y=panel.y, backdrop=behind, **square)
    scales = size | {"log": panel.log, "x_log": panel.x_log, "x": panel.x}
    if panel.kind == "line":
        return charts.curve(
            _named(table, panel),
            panel.y,
            by=panel.by or None,
            low=panel.low or None,
            high=panel.high or None,
            **scales,
        )
    if panel.by:
        latest = _named(_latest(table, panel.step), panel)
        return charts.profile(latest, panel.y, by=panel.by, **scales)
    return charts.profile(_ends(table, panel.step), panel.y, by="when", **scales)


def _latest(table: pd.DataFrame, step: str) -> pd.DataFrame:
    return table[table[step] == table[step].iloc[-1]] if len(table) else table


def _ends(table: pd.DataFrame, step: str) -> pd.DataFrame:
    """The rows of the first and of the latest step, named in a column ``when``."""
    if table.empty:
        return table.assign(when="")
    first, last = table[step].iloc[0], table[step].iloc[-1]
    ends = table[table[step].isin((first, last))]
    return ends.assign(when=ends[step].map({first: "at start", last: f"{step} {last:.10g}"}))


def _named(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """The lines of a panel by their names, in the names' order."""
    if not panel.by:
        return table
    names = table[panel.by].map(dict(enumerate(panel.names)))
    lines = table.sort_values(panel.by, kind="stable").assign(**{panel.by: names})
    return lines.dropna(subset=panel.by)
