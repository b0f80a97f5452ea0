"""The lab of frozen layers: any pattern of them, beside the network that trains all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.freezing import FreezingMeasurement, FreezingSettings, freezing
from lca_widgets.labs.controls import changed_settings, norm_names, normalisation
from lca_widgets.widgets.control_panel import Slider, Toggles
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Freezing", "describe_freezing"]

LAYERS = 5  # as in the paper's experiment


def describe_freezing(measurement: FreezingMeasurement) -> str:
    """Say in one or two sentences what the frozen layers cost."""
    m, step = measurement, measurement.training.step
    if m.training.diverged:
        return f"The run diverged: the loss is not finite at step {step}. Lower the learning rate."
    if step == 0:
        return f"At the start the loss is {number(m.training.loss)}."
    still = sum(part == 0 for part in m.moved)
    if not still:
        return (
            f"At step {step} the loss is {number(m.training.loss)}. Freeze a layer to see what its "
            "training is worth."
        )
    return (
        f"{still} of {len(m.moved)} layers are frozen. The loss is {number(m.training.loss)} after "
        f"{step} steps and {number(m.full.loss)} with all layers trained; accuracy "
        f"{percent(m.training.accuracy)} and {percent(m.full.accuracy)}."
    )


def _step_rows(m: FreezingMeasurement) -> Iterator[Sequence[float]]:
    for series, record in enumerate((m.training, m.full)):
        yield m.training.step, series, record.loss, record.accuracy


def _layer_rows(m: FreezingMeasurement) -> Iterator[Sequence[float]]:
    for layer, moved in zip(m.layers, m.moved, strict=True):
        yield m.training.step, layer.layer, moved, layer.domination


def freezing_table(measurements: Iterable[FreezingMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row a step."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "step": m.training.step,
                "loss": m.training.loss,
                "accuracy": m.training.accuracy,
                "loss_all_trained": m.full.loss,
                "accuracy_all_trained": m.full.accuracy,
            }
            | {f"moved_{k}": part for k, part in enumerate(m.moved, start=1)}
            for m in measurements
        ]
    )


def _results(m: FreezingMeasurement) -> dict[str, str]:
    return {"loss, all trained": number(m.full.loss)}


def _name_run(settings: FreezingSettings) -> str:
    parts = [settings.trained, *norm_names(settings.norm), f"η {number(settings.learning_rate)}"]
    parts += changed_settings(settings, "width", "samples", "seed")
    return ", ".join(parts)


def _limits(
    settings: FreezingSettings, first: FreezingMeasurement
) -> dict[str, tuple[float, float]]:
    return {
        "step": (0, settings.steps),
        "layer": (1, len(settings.trained)),
        "accuracy": (0, 1),
        "moved": (0, 0.5),
    }


class Freezing(Lab):
    """Freeze any of five layers and see where the loss ends.

    Settings: `FreezingSettings`.

    Example:
        >>> *_, end = Freezing.run(trained="00001", samples=64, steps=10)
        >>> end.training.loss > end.full.loss
        True
    """

    title = "Frozen layers"
    settings_type = FreezingSettings
    experiment = staticmethod(freezing)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_freezing)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the initial weights."),)
    controls = (
        Toggles(
            "trained",
            "trained layers",
            tuple(str(k) for k in range(1, LAYERS + 1)),
            on="trained",
            off="frozen",
            help="From the input to the output; a layer that is off keeps its initial weights. "
            "γ and β are trained in any case.",
        ),
        Slider("learning_rate", "learning rate", 0.01, 10.0, log=True),
        Slider("steps", "steps", 0, 500, step=10),
        normalisation("none", "batch-fixed", "batch", "layer-fixed"),
        Slider("width", "width", 8, 128, step=8, help="Units of a hidden layer."),
        Slider("samples", "samples", 64, 1437, help="Training digits, all in every step."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "all trained": {"trained": "11111"},
        "first frozen": {"trained": "01111"},
        "first two frozen": {"trained": "00111"},
        "hidden layers frozen": {"trained": "00001"},
        "last frozen": {"trained": "11110"},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "series", "loss", "accuracy"), _step_rows),
        "layers": Table(("step", "layer", "moved", "domination"), _layer_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(freezing_table)
    panels = (
        Panel(
            "line", "loss", "steps", "step", "loss",
            log=True, by="series", names=("this pattern", "all trained"),
        ),
        Panel(
            "line", "training accuracy", "steps", "step", "accuracy",
            by="series", names=("this pattern", "all trained"),
        ),
        Panel(
            "profile", "how far each weight has moved", "layers", "layer", "moved",
            y_label="‖W − W₀‖ : ‖W₀‖",
        ),
        Panel(
            "profile", "ratio σ(∂L/∂W) : σ(W) by layer", "layers", "layer", "domination", log=True
        ),
    )  # fmt: skip
