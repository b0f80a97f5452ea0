"""Layer-wise conditioning analysis of deep networks: estimators, experiments and live labs.

>>> import lca_widgets as lca
>>> lca.Spectrum([4.0, 1.0]).kappa()
4.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lca_widgets.curvature import Spectrum

if TYPE_CHECKING:
    from lca_widgets import (
        charts,
        data,
        diagnosis,
        exercises,
        experiments,
        labs,
        linear_models,
        models,
        surgery,
        training,
    )
    from lca_widgets.analysis import load
    from lca_widgets.monitor import analyze, watch
    from lca_widgets.surgery import add_final_norm


__all__ = [
    "Spectrum",
    "add_final_norm",
    "analyze",
    "charts",
    "data",
    "diagnosis",
    "exercises",
    "experiments",
    "labs",
    "linear_models",
    "load",
    "models",
    "surgery",
    "training",
    "watch",
]

# Where the functions are that load when they are asked for.
_HOMES = {
    "add_final_norm": "surgery",
    "analyze": "monitor",
    "load": "analysis",
    "watch": "monitor",
}


def __getattr__(name: str) -> Any:
    # Widgets, Altair and pandas load when they are asked for: the estimators need none of them.
    if name in _HOMES:
        return getattr(importlib.import_module(f"lca_widgets.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"lca_widgets.{name}")
    raise AttributeError(f"module 'lca_widgets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
