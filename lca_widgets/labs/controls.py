"""Controls that several labs have, and how their values are named."""

from __future__ import annotations

from lca_widgets.widgets.control_panel import Choice, Option

__all__ = ["ACTIVATION", "NORMALISATION", "norm_names"]

_NORMS = {"none": "none", "batch": "BN", "batch-fixed": "BN without γ, β"}

NORMALISATION = Choice(
    "norm",
    "normalisation",
    tuple(Option(value, label) for value, label in _NORMS.items()),
    help="Batch normalisation after every hidden linear layer.",
)
ACTIVATION = Choice(
    "activation",
    "activation",
    (Option("relu", "ReLU"), Option("tanh", "tanh"), Option("linear", "linear")),
)


def norm_names(norm: str) -> list[str]:
    """Return what a run's name says about its normalisation: nothing where there is none."""
    return [] if norm == "none" else [_NORMS[norm]]
