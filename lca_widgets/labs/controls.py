"""Controls that several labs have, and how their values are named."""

from __future__ import annotations

from typing import Any

from lca_widgets.widgets.control_panel import Choice, Option
from lca_widgets.widgets.state import changes

__all__ = ["ACTIVATION", "NORMALISATION", "changed_settings", "norm_names", "normalisation"]

_NORMS = {
    "none": "none",
    "batch": "BN",
    "batch-fixed": "BN without γ, β",
    "layer": "LayerNorm",
    "layer-fixed": "LayerNorm without γ, β",
    "group-fixed": "GroupNorm without γ, β",
    "weight": "weight normalisation",
}


def normalisation(*norms: str) -> Choice:
    """Return the control that chooses among some names of `lca_widgets.models.NORMS`."""
    return Choice(
        "norm",
        "normalisation",
        tuple(Option(norm, _NORMS[norm]) for norm in norms),
        help="After every hidden linear layer.",
    )


NORMALISATION = normalisation("none", "batch", "batch-fixed", "layer")
ACTIVATION = Choice(
    "activation",
    "activation",
    (Option("relu", "ReLU"), Option("tanh", "tanh"), Option("linear", "linear")),
)


def norm_names(norm: str) -> list[str]:
    """Return what a run's name says about its normalisation: nothing where there is none."""
    return [] if norm == "none" else [_NORMS[norm]]


def changed_settings(settings: Any, *names: str) -> list[str]:
    """Return what a run's name says about some settings: those that differ from the defaults.

    Example:
        >>> from lca_widgets.experiments import DominationSettings
        >>> changed_settings(DominationSettings(weight_decay=0.1, depth=5), "weight_decay", "seed")
        ['weight decay 0.1']
    """
    return [
        f"{name.replace('_', ' ')} {value}"
        for name, value in changes(settings).items()
        if name in names
    ]
