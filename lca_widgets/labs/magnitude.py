"""The lab of initialisation and magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lca_widgets.diagnosis import describe_magnitude, magnitude_factors
from lca_widgets.experiments import MagnitudeSettings, magnitude
from lca_widgets.labs.controls import ACTIVATION, NORMALISATION, changed_settings, norm_names
from lca_widgets.records import Measurement, layer_table
from lca_widgets.training import present_devices
from lca_widgets.widgets.control_panel import Choice, Entry, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

__all__ = ["Magnitude"]

_RELU = {"activation": "relu", "gain": 1.0}


_LAYER_COLUMNS = ("layer", "lambda_max_x", "lambda_max_g", "kappa50_x")


def _step_rows(measurement: Measurement) -> list[list[float]]:
    return [[measurement.training.step, measurement.training.loss]]


def _layer_rows(measurement: Measurement) -> list[list[float]]:
    step = measurement.training.step
    return [
        [step, *(getattr(layer, column) for column in _LAYER_COLUMNS)]
        for layer in measurement.layers
    ]


def _limits(settings: MagnitudeSettings, first: Measurement) -> dict[str, tuple[float, float]]:
    return {"step": (0, settings.steps), "layer": (1, len(first.layers))}


def _results(measurement: Measurement) -> dict[str, str]:
    forward, backward = magnitude_factors(measurement)
    return {
        "λ_max(Σ_x), × per layer to the output": f"{forward:.2g}",
        "λ_max(Σ_g), × per layer to the input": f"{backward:.2g}",
    }


def _name_run(settings: MagnitudeSettings) -> str:
    parts = [f"{settings.init} {settings.depth}×{settings.width}"]
    if settings.gain != 1:
        parts.append(f"gain {settings.gain:.3g}")
    parts += norm_names(settings.norm)
    if settings.activation != "relu":
        parts.append(settings.activation)
    parts.append(f"η {settings.learning_rate:.3g}")
    parts += changed_settings(settings, "samples", "data", "seed", "device")
    return ", ".join(parts)


def _device_options() -> tuple[Option, ...]:
    present = present_devices()
    usual = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}
    more = {name: name.upper() for name in present if name not in usual}
    return tuple(
        Option(name, label, None if name in present else "PyTorch finds no such device here")
        for name, label in (usual | more).items()
    )


class Magnitude(Lab):
    """Watch how an initialisation scales activations and gradients from layer to layer.

    A multi-layer perceptron is trained by full-batch gradient descent; at every step λ_max(Σ_x),
    λ_max(Σ_g) and κ_50(Σ_x) of every layer are drawn. Settings: `MagnitudeSettings`.

    Example:
        >>> measurements = Magnitude.run(depth=4, width=16, samples=64, steps=2)
        >>> len(measurements)
        3
    """

    title = "Initialisation and magnitude"
    settings_type = MagnitudeSettings
    experiment = staticmethod(magnitude)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_magnitude)
    results = staticmethod(_results)
    header = (
        Slider("seed", "seed", 0, 20, help="Draws the initial weights."),
        Choice("device", "device", _device_options()),
    )
    controls = (
        Slider("depth", "depth", 2, 30, help="Linear layers, the output layer included."),
        Slider("width", "width", 8, 256, step=8, help="Units of a hidden layer."),
        Choice(
            "init",
            "init",
            (
                Option("lecun", "LeCun U(±1/√fan_in)"),
                Option("xavier", "Xavier"),
                Option("he", "He N(0, 2/fan_in)"),
                Option("orthogonal", "orthogonal"),
                Option("normal", "normal N(0, 1/fan_in)"),
            ),
            help="Distribution of the initial weights.",
        ),
        Slider("gain", "gain", 0.1, 3.0, log=True, help="Multiplies every initial weight."),
        ACTIVATION,
        NORMALISATION,
        Slider("learning_rate", "learning rate", 0.001, 10.0, log=True),
        Slider("steps", "steps", 0, 500, step=10, help="Gradient-descent updates."),
        Slider("samples", "samples", 64, 1437, help="Training samples, all in every step."),
        Entry("data", "data", help="digits, or a folder of MNIST-format files; press Enter."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "LeCun: vanishing": _RELU | {"init": "lecun", "norm": "none"},
        "He: constant": _RELU | {"init": "he", "norm": "none"},
        "LeCun with BN": _RELU | {"init": "lecun", "norm": "batch"},
        "He with BN": _RELU | {"init": "he", "norm": "batch"},
        "tanh, exploding gradient": {
            "init": "normal",
            "activation": "tanh",
            "norm": "none",
            "gain": 3.0,
        },
        "20 layers × 256": _RELU | {"init": "lecun", "norm": "none", "depth": 20, "width": 256},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "loss"), _step_rows),
        "layers": Table(("step", *_LAYER_COLUMNS), _layer_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(layer_table)
    panels = (
        Panel("profile", "λ_max(Σ_x) by layer", "layers", "layer", "lambda_max_x", log=True),
        Panel("line", "loss", "steps", "step", "loss", log=True),
        Panel("profile", "λ_max(Σ_g) by layer", "layers", "layer", "lambda_max_g", log=True),
        Panel(
            "heatmap",
            "λ_max(Σ_x), layer × step",
            "layers",
            "step",
            "layer",
            "lambda_max_x",
            log=True,
        ),
        Panel("profile", "κ_50(Σ_x) by layer", "layers", "layer", "kappa50_x", log=True),
        Panel(
            "heatmap",
            "λ_max(Σ_g), layer × step",
            "layers",
            "step",
            "layer",
            "lambda_max_g",
            log=True,
        ),
    )
