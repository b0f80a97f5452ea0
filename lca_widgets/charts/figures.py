"""Panels put together to a figure that displays itself offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from lca_widgets.charts.parts import Panel

__all__ = ["VEGA_MIME_TYPE", "Figure", "figure"]

VEGA_LITE_VERSION = "5.21"  # the newest that vl-convert compiles to Vega 5
VEGA_MIME_TYPE = "application/vnd.vega.v5+json"
VEGA_SCHEMA = "https://vega.github.io/schema/vega/v5.json"


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
        >>> import pandas as pd
        >>> from lca_widgets.charts import curve
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
