"""Controls that several labs have, and how their values are named."""

from __future__ import annotations

from lca_widgets.widgets.control_panel import Choice, Option

__all__ = ["ACTIVATION", "NORMALISATION", "norm_names", "normalisation"]

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
