"""Controls that several labs have, and how their values are named."""

from __future__ import annotations

from typing import Any

from lca_widgets.widgets.control_panel import Choice, Option
from lca_widgets.widgets.state import changes

__all__ = [
    "ACTIVATION",
    "ARRANGEMENT",
    "NETWORK",
    "NORMALISATION",
    "REMEDIES",
    "changed_settings",
    "norm_names",
    "normalisation",
    "residual_name",
]

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


# The names of `lca_widgets.experiments.last_layer.ARMS`.
REMEDIES = {
    "none": "nothing",
    "batch": "LastBN",
    "scale": "matched constant",
    "before-pooling": "BN before pooling",
    "own": "own final BN",
    "single": "LastBN alone",
}
ARRANGEMENT = Choice(
    "preactivation",
    "arrangement",
    (Option(False, "post-activation"), Option(True, "pre-activation")),
    help="Where BN and ReLU are: behind the layers of a block, or before them.",
)
NETWORK = Choice(
    "network",
    "network",
    (Option("mlp", "perceptron"), Option("resnet", "ResNet")),
    help="A ResNet has three stages: its blocks are a multiple of 3.",
)


def residual_name(settings: Any) -> str:
    """Return what a run's name says about a residual network.

    Example:
        >>> from lca_widgets.experiments import LastLayerSettings
        >>> residual_name(LastLayerSettings(network="resnet", blocks=9, preactivation=True))
        'pre-activation ResNet-20'
    """
    name = f"{settings.blocks} blocks"
    if settings.network == "resnet":
        name = f"ResNet-{2 * settings.blocks + 2}"
    return f"pre-activation {name}" if settings.preactivation else name


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
