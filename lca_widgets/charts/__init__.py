"""Finished figures: Altair charts from tidy tables, shown offline in JupyterLab.

JupyterLab 4 renders Vega 5 and nothing newer, and Altair's own default asks a content-delivery
network for its JavaScript. A `Figure` is an ordinary Altair chart that compiles itself to Vega 5
when it is displayed, with an SVG picture for readers without a kernel and a text summary.
"""

from lca_widgets.charts.cells import CIVIDIS, MOST_CELLS, heat_map, matrix
from lca_widgets.charts.figures import VEGA_MIME_TYPE, Figure, figure
from lca_widgets.charts.lines import curve, profile
from lca_widgets.charts.parts import COLOURS, PANEL_HEIGHT, PANEL_WIDTH, Panel
from lca_widgets.charts.paths import path
from lca_widgets.charts.results import analysis_figure, history_figure

__all__ = [
    "CIVIDIS",
    "COLOURS",
    "MOST_CELLS",
    "PANEL_HEIGHT",
    "PANEL_WIDTH",
    "VEGA_MIME_TYPE",
    "Figure",
    "Panel",
    "analysis_figure",
    "curve",
    "figure",
    "heat_map",
    "history_figure",
    "matrix",
    "path",
    "profile",
]
