"""The lab of weight domination: weights, gradients, their ratio and their product by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments.weight_domination import (
    DominationMeasurement,
    DominationSettings,
    weight_domination,
)
from lca_widgets.labs.controls import changed_settings, norm_names, normalisation
from lca_widgets.rules import DOMINATED, SENSITIVE
from lca_widgets.widgets.control_panel import Slider, Switch
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WeightDomination", "describe_domination"]

_QUANTITIES = ("weight_sigma", "grad_sigma", "domination", "sensitivity")
_BN = {
    "norm": "batch-fixed",
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "large_rate": 1000.0,
    "large_steps": 3,
    "steps": 100,
    "hold_last": True,
}


def describe_domination(measurement: DominationMeasurement) -> str:
    """Say in one or two sentences whether the weights dominate their gradients."""
    m, step = measurement, measurement.training.step
    if m.training.diverged:
        return (
            f"The run diverged: the loss is not finite at step {step}. Nothing here divides the "
            "gradient when the weights grow. Lower the large rate."
        )
    ratio, product = m.hidden("domination"), m.hidden("sensitivity")
    sizes = (
        f"At step {step} σ_max(∂L/∂W) : σ_max(W) is {number(ratio)} in the hidden layers "
        f"(geometric mean), and their product {number(product)}."
    )
    if ratio < DOMINATED and product > SENSITIVE:
        return f"{sizes} The weights dominate: a step hardly moves them, at no stationary point."
    if ratio < DOMINATED:
        return f"{sizes} Both are small: the gradient itself is gone."
    if math.isnan(m.frozen_loss):
        return sizes
    frozen = (
        f"Frozen hidden layers would have {number(m.frozen_loss)} for a loss of "
        f"{number(m.training.loss)}."
    )
    return f"{sizes} {frozen}"


def _step_rows(m: DominationMeasurement) -> Iterator[Sequence[float]]:
    yield m.training.step, 0, m.training.loss
    if not math.isnan(m.frozen_loss):  # there is no twin during the large steps
        yield m.training.step, 1, m.frozen_loss


def _mean_rows(m: DominationMeasurement) -> Iterator[Sequence[float]]:
    for series, name in enumerate(_QUANTITIES):
        yield m.training.step, series, m.hidden(name)


def _layer_rows(m: DominationMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.layers:
        yield m.training.step, layer.layer, *(getattr(layer, name) for name in _QUANTITIES)


def domination_table(measurements: Iterable[DominationMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row a layer and step."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "step": m.training.step,
                "loss": m.training.loss,
                "frozen_loss": m.frozen_loss,
                "layer": layer.layer,
                "name": layer.name,
                "weight_sigma": layer.weight_sigma,
                "weight_norm": layer.weight_norm,
                "grad_sigma": layer.grad_sigma,
                "grad_norm": layer.grad_norm,
                "domination": layer.domination,
                "sensitivity": layer.sensitivity,
            }
            for m in measurements
            for layer in m.layers
        ]
    )


def _results(m: DominationMeasurement) -> dict[str, str]:
    return {
        "ratio": number(m.hidden("domination")),
        "product": number(m.hidden("sensitivity")),
        "loss, hidden layers frozen": number(m.frozen_loss),
    }


def _name_run(settings: DominationSettings) -> str:
    parts = [f"{settings.depth}×{settings.width}", *norm_names(settings.norm)]
    if settings.large_steps:
        parts.append(f"{settings.large_steps} × η {number(settings.large_rate)}")
    parts.append(f"η {number(settings.learning_rate)}")
    parts += changed_settings(settings, "weight_decay", "samples", "seed", "hold_last")
    return ", ".join(parts)


def _limits(
    settings: DominationSettings, first: DominationMeasurement
) -> dict[str, tuple[float, float]]:
    return {"step": (0, settings.steps), "layer": (1, settings.depth)}


def _heat_map(title: str, column: str) -> Panel:
    return Panel("heatmap", f"{title}, layer × step", "layers", "step", "layer", column, log=True)


class WeightDomination(Lab):
    """Take a few large steps, and watch what becomes of every weight and its gradient.

    σ_max(W) and σ_max(∂L/∂W) by layer and step, their ratio and their product; the loss beside that
    of a twin whose hidden layers are frozen after the large steps. Settings: `DominationSettings`.

    Example:
        >>> *_, end = WeightDomination.run(depth=3, width=16, samples=64, steps=5, large_rate=1e5)
        >>> end.hidden("domination") < 1e-5 < end.hidden("sensitivity")
        True
    """

    title = "Weight domination"
    settings_type = DominationSettings
    experiment = staticmethod(weight_domination)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_domination)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the initial weights."),)
    controls = (
        Slider(
            "large_rate", "large rate η", 0.01, 1e6, log=True, step=0.25, format="{:.1e}",
            help="Step size of the first steps.",
        ),
        Slider("large_steps", "large steps", 0, 20, help="How many there are."),
        Slider(
            "learning_rate", "rate after them", 0.01, 1e6, log=True, step=0.25, format="{:.1e}"
        ),
        Slider(
            "weight_decay", "weight decay", 0.0, 0.1, step=0.002, help="Of the steps after them."
        ),
        Slider("steps", "steps in all", 0, 500, step=10),
        Switch(
            "hold_last",
            "hold the last layer",
            help="It stays as it is during the large steps: no normalisation follows it.",
        ),
        normalisation("none", "batch-fixed", "batch", "layer-fixed", "group-fixed", "weight"),
        Slider("depth", "depth", 2, 20, help="Linear layers, the output layer included."),
        Slider("width", "width", 8, 128, step=8, help="Units of a hidden layer."),
        Slider("samples", "samples", 64, 1437, help="Training digits, all in every step."),
    )  # fmt: skip
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no large step": _BN | {"large_steps": 0},
        "3 steps at η = 100": _BN | {"large_rate": 100.0},
        "3 steps at η = 1000": _BN | {"large_rate": 1000.0},
        "3 steps at η = 10 000": _BN | {"large_rate": 1e4},
        "all at η = 1000, last layer too": _BN
        | {"large_steps": 0, "learning_rate": 1000.0, "hold_last": False},
        "weight decay": _BN | {"large_steps": 1, "weight_decay": 0.01, "steps": 300},
        "without BN": _BN | {"norm": "none", "large_rate": 100.0},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "series", "loss"), _step_rows),
        "means": Table(("step", "series", "size"), _mean_rows),
        "layers": Table(("step", "layer", *_QUANTITIES), _layer_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(domination_table)
    panels = (
        _heat_map("σ_max(W)", "weight_sigma"),
        _heat_map("σ_max(∂L/∂W)", "grad_sigma"),
        _heat_map("ratio, ∂L/∂W : W", "domination"),
        _heat_map("product, W · ∂L/∂W", "sensitivity"),
        Panel(
            "line", "hidden layers, geometric means", "means", "step", "size",
            log=True, by="series", names=("W", "∂L/∂W", "ratio", "product"),
        ),
        Panel(
            "line", "loss", "steps", "step", "loss",
            log=True, by="series", names=("all trained", "hidden frozen"),
        ),
    )  # fmt: skip
