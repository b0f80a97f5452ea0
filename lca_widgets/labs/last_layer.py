"""The lab of the last layer: a residual network trains, and its classifier is watched."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.last_layer import (
    LastLayerMeasurement,
    LastLayerSettings,
    last_layer_training,
)
from lca_widgets.labs.controls import (
    ARRANGEMENT,
    NETWORK,
    REMEDIES,
    changed_settings,
    residual_name,
)
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LastLayer", "describe_last_layer"]

GUESSING = math.log(10)  # the cross-entropy of ten equally likely digits
NEAR = 0.25  # of it: how far a mini-batch's loss is from it on the plateau
_CENTRINGS = ("uncentred", "centred")
_AT_ONE = {"learning_rate": 1.0, "momentum": 0.0, "network": "mlp", "preactivation": False}


def describe_last_layer(measurement: LastLayerMeasurement) -> str:
    """Say in a few sentences what the classifier gets, and what the training makes of it."""
    m, step = measurement, measurement.training.step
    if m.training.diverged:
        return f"The run diverged: the loss is not finite at step {step}. Lower the learning rate."
    largest = m.last.lambda_max_x
    if not largest:
        return (
            f"At step {step} the network is dead: the classifier's input is zero for every image."
        )
    mean = max(0.0, round(1 - m.last.lambda_max_x_centred / largest, 4))  # 1e-9 is none
    words = (
        f"At step {step} the classifier's input has λ_max {number(largest)}, of which the mean is "
        f"{percent(mean)}, and κ_50 {number(m.last.kappa50_x)}."
    )
    if m.profile:
        others = statistics.median(layer.lambda_max_x for layer in m.profile[:-1])
        times = f": the classifier's is {number(largest / others)} times that" if others else ""
        words += f" The median of the other layers' λ_max is {number(others)}{times}."
    loss, size = m.training.loss, number(m.last.weight_norm)
    if loss > (1 + NEAR) * GUESSING:
        words += f" The loss, {number(loss)}, is worse than guessing (2.3); ‖W‖ is {size}."
    elif loss > (1 - NEAR) * GUESSING and step:
        words += f" The loss, {number(loss)}, is about that of guessing (2.3); ‖W‖ is {size}."
    if not math.isnan(m.unseen):
        words += f" Of the unseen images {percent(m.unseen)} are right."
    return words


def last_layer_table(measurements: Iterable[LastLayerMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row a step: loss, accuracies and the classifier's numbers."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"step": m.training.step, "loss": m.training.loss, "accuracy": m.training.accuracy}
            | asdict(m.last)
            | {"unseen": m.unseen}
            for m in measurements
        ]
    )


def _results(m: LastLayerMeasurement) -> dict[str, str]:
    return {
        "λ_max(Σ_x)": number(m.last.lambda_max_x),
        "κ_50(Σ_x)": number(m.last.kappa50_x),
        "‖W‖": number(m.last.weight_norm),
        "unseen": percent(m.unseen),
    }


def _name_run(settings: LastLayerSettings) -> str:
    remedy = REMEDIES[settings.final_norm]
    parts = [residual_name(settings), *([remedy] if settings.final_norm != "none" else [])]
    parts.append(f"η {number(settings.learning_rate)}")
    parts += changed_settings(settings, "momentum", "width", "dropout", "batch_size", "seed")
    return ", ".join(parts)


def _step_rows(m: LastLayerMeasurement) -> Iterator[Sequence[float]]:
    yield m.training.step, m.training.loss, m.last.lambda_max_weight_grad, m.last.weight_norm


def _centring_rows(m: LastLayerMeasurement) -> Iterator[Sequence[float]]:
    last = m.last
    yield m.training.step, 0, last.lambda_max_x, last.kappa50_x
    yield m.training.step, 1, last.lambda_max_x_centred, last.kappa50_x_centred


def _layer_rows(m: LastLayerMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.profile:
        yield m.training.step, layer.layer, layer.lambda_max_x


def _limits(
    settings: LastLayerSettings, first: LastLayerMeasurement
) -> dict[str, tuple[float, float]]:
    return {"step": (0, settings.steps), "layer": (1, len(first.profile))}


def _centrings_panel(title: str, column: str) -> Panel:
    return Panel(
        "line", title, "centrings", "step", column, log=True, by="series", names=_CENTRINGS
    )


class LastLayer(Lab):
    """Train a residual network and watch what its classifier gets, and what becomes of it.

    The classifier is measured at every step, in the training's own passes; the inputs of all layers
    every few steps. Settings: `LastLayerSettings`.

    Example:
        >>> start, end = LastLayer.run(blocks=2, width=8, steps=1, final_norm="batch")
        >>> start.last.lambda_max_x < 8
        True
    """

    title = "The last layer of a deep residual network"
    settings_type = LastLayerSettings
    experiment = staticmethod(last_layer_training)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_last_layer)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws weights and batches."),)
    controls = (
        Slider("blocks", "blocks", 3, 50, help="Residual blocks, of two layers each."),
        Slider("learning_rate", "learning rate", 0.01, 10.0, log=True),
        ARRANGEMENT,
        Choice(
            "final_norm",
            "last layer",
            tuple(Option(name, REMEDIES[name]) for name in ("none", "batch", "scale", "own")),
            help="What is done about the classifier's input.",
        ),
        Slider("momentum", "momentum", 0.0, 0.95, step=0.05),
        Slider("steps", "steps", 0, 300, step=10),
        Slider("every", "profile every", 1, 50, help="Steps from one profile of all layers on."),
        Slider("batch_size", "batch size", 16, 512, help="Images a step."),
        NETWORK,
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "20 blocks, η 1": _AT_ONE | {"blocks": 20, "final_norm": "none"},
        "50 blocks, η 1: plateau at ln 10": _AT_ONE | {"blocks": 50, "final_norm": "none"},
        "50 blocks with LastBN": _AT_ONE | {"blocks": 50, "final_norm": "batch"},
        "10 blocks, η 0.1": _AT_ONE | {"blocks": 10, "final_norm": "none", "learning_rate": 0.1},
        "η 0.1, momentum 0.9, as in the paper": _AT_ONE
        | {"blocks": 50, "final_norm": "none", "learning_rate": 0.1, "momentum": 0.9},
        "pre-activation without its final BN": _AT_ONE
        | {"blocks": 50, "final_norm": "none", "preactivation": True},
        "pre-activation with it": _AT_ONE
        | {"blocks": 50, "final_norm": "own", "preactivation": True},
        "ResNet-20, η 1": _AT_ONE | {"network": "resnet", "blocks": 9, "final_norm": "none"},
    }
    chart_columns = 3
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "loss", "lambda_max_weight_grad", "weight_norm"), _step_rows),
        "centrings": Table(("step", "series", "lambda_max_x", "kappa50_x"), _centring_rows),
        "layers": Table(("step", "layer", "lambda_max_x"), _layer_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(last_layer_table)
    panels = (
        Panel("line", "loss", "steps", "step", "loss", log=True),
        _centrings_panel("λ_max(Σ_x), last layer", "lambda_max_x"),
        _centrings_panel("κ_50(Σ_x), last layer", "kappa50_x"),
        Panel("profile", "λ_max(Σ_x) of all layers", "layers", "layer", "lambda_max_x", log=True),
        Panel(
            "line", "λ_max of its weight's gradients", "steps", "step", "lambda_max_weight_grad",
            log=True,
        ),
        Panel("line", "‖W‖, last layer", "steps", "step", "weight_norm", log=True),
    )  # fmt: skip
