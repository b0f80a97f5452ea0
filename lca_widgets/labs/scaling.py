"""The lab of the scaling theorems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments import ScalingSettings, scaling
from lca_widgets.experiments.scaling import ScaledLayer, ScalingMeasurement
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Scaling"]

QUANTITIES = ("z", "g", "weight_grad")
MEASURED, PREDICTED = 0, 1
# Beyond it a prediction is wrong; rounding in float64 stays far below.
EXACT = 1e-6

_ONE_LAYER = {
    "depth": 8,
    "layer": 4,
    "factor": 3.0,
    "output_factor": 1.0,
    "norm": "none",
    "loss": "linear",
}

_LAYER_COLUMNS = ("step", "layer", "series", *(f"{quantity}_ratio" for quantity in QUANTITIES))
_DEVIATION_COLUMNS = ("step", "layer", "series", "deviation")


def _layer_rows(measurement: ScalingMeasurement) -> list[list[float]]:
    rows: list[list[float]] = []
    for layer in measurement.layers:
        found = [getattr(layer, quantity) for quantity in QUANTITIES]
        start = [measurement.training.step, layer.layer]
        rows.append([*start, MEASURED, *(comparison.ratio for comparison in found)])
        rows.append([*start, PREDICTED, *(comparison.predicted for comparison in found)])
    return rows


def _deviation_rows(measurement: ScalingMeasurement) -> list[list[float]]:
    return [
        [measurement.training.step, layer.layer, series, getattr(layer, quantity).deviation]
        for layer in measurement.layers
        for series, quantity in enumerate(QUANTITIES)
    ]


def _tabulate(measurements: Iterable[ScalingMeasurement]) -> pd.DataFrame:
    import pandas as pd

    columns = ("before", "after", "ratio", "predicted", "deviation")
    return pd.DataFrame(
        [
            {"step": measurement.training.step, "layer": layer.layer, "a": a}
            | {
                f"{quantity}_{column}": getattr(getattr(layer, quantity), column)
                for quantity in QUANTITIES
                for column in columns
            }
            for measurement in measurements
            for layer, a in zip(measurement.layers, measurement.factors, strict=True)
        ]
    )


def _limits(settings: ScalingSettings, first: ScalingMeasurement) -> dict[str, tuple[float, float]]:
    # One scale for all moderate factors, so that a drag moves the curve and not the axis.
    return {"layer": (1, settings.depth)} | {f"{name}_ratio": (0.1, 10) for name in QUANTITIES}


def _largest_deviation(layers: Iterable[ScaledLayer]) -> float:
    return max(getattr(layer, quantity).deviation for layer in layers for quantity in QUANTITIES)


def _describe(measurement: ScalingMeasurement) -> str:
    if measurement.training.diverged:
        return (
            f"The training before the scaling diverged at step {measurement.training.step}: "
            "nothing is left to compare. Lower the learning rate."
        )
    return f"{_what_was_done(measurement)} {_what_came_of_it(measurement)}"


def _what_was_done(measurement: ScalingMeasurement) -> str:
    scaled = {k: a for k, a in enumerate(measurement.factors, start=1) if a != 1}
    if not scaled:
        return "Nothing is scaled."
    done = " and ".join(f"W_{k} by {number(a)}" for k, a in scaled.items())
    return f"You multiplied {done}. The theorem: {_theorem(measurement, scaled)}."


def _theorem(measurement: ScalingMeasurement, scaled: Mapping[int, float]) -> str:
    if measurement.norm == "none":
        return "a layer's factor multiplies the weight gradient of every layer but its own"
    depth = len(measurement.layers)
    parts = []
    if any(k < depth for k in scaled):
        parts.append("BN takes the factor out again, and only the layer's own gradient is divided")
    if depth in scaled:
        parts.append("no BN follows the output layer: its factor multiplies all gradients below it")
    return "; ".join(parts)


def _what_came_of_it(measurement: ScalingMeasurement) -> str:
    deviation = _largest_deviation(measurement.layers)
    if deviation < EXACT:
        return (
            f"All tensors are as predicted, entry by entry (largest deviation {number(deviation)})."
        )
    low, high = number(measurement.mu_low), number(measurement.mu_high)
    return (
        "The gradients are not as predicted: the scaled outputs changed the loss's own gradient, "
        f"by a factor between {low} and {high} from sample to sample, so there is no single μ."
    )


def _results(measurement: ScalingMeasurement) -> dict[str, str]:
    return {
        "largest deviation": number(_largest_deviation(measurement.layers)),
        "μ of single samples": f"{number(measurement.mu_low)} to {number(measurement.mu_high)}",
    }


def _name_run(settings: ScalingSettings) -> str:
    norm = "plain" if settings.norm == "none" else "BN"
    parts = [f"{norm} {settings.depth}×{settings.width}"]
    parts.append(f"W_{settings.layer} × {number(settings.factor)}")
    if settings.output_factor != 1:
        parts.append(f"W_{settings.depth} × {number(settings.output_factor)}")
    if settings.loss != "linear":
        parts.append(settings.loss)
    return ", ".join(parts)


def _ratio_panel(quantity: str, title: str) -> Panel:
    return Panel(
        "profile",
        title,
        "layers",
        "layer",
        f"{quantity}_ratio",
        log=True,
        by="series",
        names=("measured", "predicted"),
    )


class Scaling(Lab):
    """Multiply the weights of one layer and see every other layer's signal and gradient.

    Measured ratios of ‖z_k‖, ‖g_k‖ and ‖∂L/∂W_k‖, after over before, beside what the scaling
    theorems predict, and the deviation of the whole tensors. Settings: `ScalingSettings`.

    Example:
        >>> [measurement] = Scaling.run(depth=3, width=8, layer=2, factor=4.0)
        >>> [layer.weight_grad.ratio for layer in measurement.layers]
        [4.0, 1.0, 4.0]
    """

    title = "Scaling a layer"
    settings_type = ScalingSettings
    experiment = staticmethod(scaling)
    name_run = staticmethod(_name_run)
    describe = staticmethod(_describe)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the weights."),)
    controls = (
        Slider("layer", "layer k", 1, 20, help="The layer whose weight is multiplied."),
        Slider("factor", "factor a", 0.01, 100.0, log=True, help="W_k becomes a·W_k."),
        Slider(
            "output_factor",
            "factor of the output layer",
            0.01,
            100.0,
            log=True,
            help="Multiplies the output layer's weight besides.",
        ),
        Choice(
            "norm",
            "norm",
            (Option("none", "none (plain)"), Option("batch-fixed", "BN, ε = 0")),
            help="Batch normalisation after every hidden layer, without γ and β.",
        ),
        Choice(
            "loss",
            "loss",
            (
                Option("linear", "linear (μ = 1)"),
                Option("cross-entropy", "cross-entropy"),
            ),
            help="A loss linear in the outputs gives them the gradient that they had before.",
        ),
        Slider("depth", "depth", 2, 20, help="Linear layers, the output layer included."),
        Slider("width", "width", 8, 64, step=8, help="Units of a hidden layer."),
        Slider("steps", "steps before", 0, 100, help="Gradient-descent updates before scaling."),
        Slider("learning_rate", "learning rate", 0.001, 1.0, log=True, help="Of those updates."),
        Slider("samples", "samples", 8, 256, step=8, help="Digits, all of them in every pass."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "plain: one layer × 3": _ONE_LAYER,
        "BN: one layer × 3": _ONE_LAYER | {"norm": "batch-fixed"},
        "BN: and the output × 10": _ONE_LAYER | {"norm": "batch-fixed", "output_factor": 10.0},
        "plain: the real loss": _ONE_LAYER | {"factor": 10.0, "loss": "cross-entropy"},
        "BN: the real loss": _ONE_LAYER
        | {"norm": "batch-fixed", "factor": 10.0, "loss": "cross-entropy"},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "layers": Table(_LAYER_COLUMNS, _layer_rows),
        "deviations": Table(_DEVIATION_COLUMNS, _deviation_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(_tabulate)
    panels = (
        _ratio_panel("weight_grad", "∂L/∂W_k, after : before"),
        _ratio_panel("z", "z_k, after : before"),
        _ratio_panel("g", "g_k, after : before"),
        Panel(
            "profile",
            "deviation from the theorem",
            "deviations",
            "layer",
            "deviation",
            log=True,
            by="series",
            names=("z", "g", "∂L/∂W"),
        ),
    )
