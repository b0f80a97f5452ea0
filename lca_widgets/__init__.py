"""Layer-wise conditioning analysis of deep networks: estimators, experiments and live labs.

>>> import lca_widgets as lca
>>> lca.Spectrum([4.0, 1.0]).kappa()
4.0
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from lca_widgets.curvature import Spectrum

if TYPE_CHECKING:
    from lca_widgets import charts, data, diagnosis, experiments, labs, models, training


__all__ = [
    "Spectrum",
    "charts",
    "data",
    "diagnosis",
    "experiments",
    "labs",
    "models",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    # Widgets, Altair and pandas load when they are asked for: the estimators need none of them.
    if name in __all__:
        return importlib.import_module(f"lca_widgets.{name}")
    raise AttributeError(f"module 'lca_widgets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
