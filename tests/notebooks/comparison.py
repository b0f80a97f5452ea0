"""What strict nbval compares: every text, and none of the pictures drawn from the same numbers.

Loaded with ``-p tests.notebooks.comparison``. Figures and labs print a summary of their rounded
numbers as ``text/plain``; that is compared. Their SVG, Vega and HTML hold full precision, which
differs between processors in the last digits.
"""

from __future__ import annotations

from typing import Any

from lca_widgets.charts import VEGA_MIME_TYPE

NOT_COMPARED = ("image/svg+xml", "text/html", VEGA_MIME_TYPE)


def pytest_collectstart(collector: Any) -> None:
    if hasattr(collector, "skip_compare"):  # nbval's collector of one notebook
        collector.skip_compare += NOT_COMPARED
