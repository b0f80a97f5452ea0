"""The lab of conditioning: κ_50 by layer and step, and the dying and full units behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.conditioning import (
    ConditioningMeasurement,
    ConditioningSettings,
    conditioning,
    summarise,
)
from lca_widgets.labs.controls import ACTIVATION, NORMALISATION, changed_settings, norm_names
from lca_widgets.records import Report, report_table
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conditioning", "conditioning_table", "describe_conditioning"]

_MOMENTS = ("kappa50_x", "kappa50_g")
_LAYER_COLUMNS = (*_MOMENTS, "lambda_max_x", "lambda_max_g")
_CENTRINGS = ("uncentred", "centred")


def describe_conditioning(measurement: ConditioningMeasurement) -> str:
    """Say in a few sentences how well the hidden layers are conditioned, and what is behind it."""
    m, step = measurement, measurement.training.step
    if m.training.diverged:
        return f"The run diverged: the loss is not finite at step {step}. Lower the learning rate."
    found, n = summarise(m), m.layers[0].n
    if math.isnan(found.effective_samples):
        return (
            f"At step {step} the network is dead: no gradient reaches half of its hidden layers. "
            "Lower the learning rate, or change the seed."
        )
    units = ""
    if not math.isnan(found.dying):
        units = (
            f" {percent(found.dying)} of the hidden units are dying (zero for every sample), "
            f"{percent(found.full)} are full (never zero)."
        )
    return (
        f"At step {step} half of the hidden layers have a κ_50(Σ_x) above "
        f"{number(found.kappa50_x)} ({number(found.kappa50_x_centred)} centred) and a κ_50(Σ_g) "
        f"above {number(found.kappa50_g)}. λ_max(Σ_g) of layer 1 is {number(found.growth_g)} times "
        f"that of layer {len(m.layers) - 1}.{units} About {found.effective_samples:.0f} of the {n} "
        "samples carry Σ_g."
    )


def conditioning_table(measurements: Iterable[ConditioningMeasurement]) -> pd.DataFrame:
    """Return a tidy table: step, loss, `LayerReport`'s fields, and the effective samples."""
    found = list(measurements)
    table = report_table(Report(m.training.step, m.layers) for m in found)
    losses = {m.training.step: m.training.loss for m in found}
    table.insert(1, "loss", table["step"].map(losses))
    return table.assign(effective_samples=[n for m in found for n in m.effective_samples])


def _results(measurement: ConditioningMeasurement) -> dict[str, str]:
    found = summarise(measurement)
    return {
        "κ_50(Σ_x)": number(found.kappa50_x),
        "centred": number(found.kappa50_x_centred),
        "κ_50(Σ_g)": number(found.kappa50_g),
        "dying": percent(found.dying),
        "full": percent(found.full),
    }


def _name_run(settings: ConditioningSettings) -> str:
    parts = [f"{settings.init} {settings.depth}×{settings.width}", *norm_names(settings.norm)]
    if settings.activation != "relu":
        parts.append(settings.activation)
    parts.append(f"η {number(settings.learning_rate)}")
    parts += changed_settings(settings, "samples", "seed")
    return ", ".join(parts)


def _step_rows(m: ConditioningMeasurement) -> Iterator[Sequence[float]]:
    for record in m.passed:
        yield record.step, record.loss


def _layer_rows(m: ConditioningMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.layers:
        yield m.training.step, layer.layer, *(getattr(layer, name) for name in _LAYER_COLUMNS)


def _centring_rows(m: ConditioningMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.layers:
        for series, suffix in enumerate(("", "_centred")):
            values = (getattr(layer, name + suffix) for name in _MOMENTS)
            yield m.training.step, layer.layer, series, *values


def _unit_rows(m: ConditioningMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.layers[:-1]:
        for series, share in enumerate((layer.dying, layer.full)):
            yield m.training.step, layer.layer, series, share


def _sample_rows(m: ConditioningMeasurement) -> Iterator[Sequence[float]]:
    yield m.training.step, summarise(m).effective_samples


def _limits(
    settings: ConditioningSettings, first: ConditioningMeasurement
) -> dict[str, tuple[float, float]]:
    return {
        "step": (0, settings.steps),
        "layer": (1, len(first.layers)),
        "share": (0, 0.4),
        "effective_samples": (1, settings.samples),
    }


def _presets() -> dict[str, dict[str, Any]]:
    networks = {
        "plain, He": {"norm": "none", "init": "he"},
        "plain, LeCun": {"norm": "none", "init": "lecun"},
        "BN, He": {"norm": "batch", "init": "he"},
        "BN, LeCun": {"norm": "batch", "init": "lecun"},
        "LayerNorm, He": {"norm": "layer", "init": "he"},
    }
    return {
        f"{depth} layers: {name}": {"depth": depth, "width": 64, "activation": "relu"} | network
        for depth in (10, 20)
        for name, network in networks.items()
    }


def _kappa_panel(column: str, title: str) -> Panel:
    return Panel(
        "profile", title, "centrings", "layer", column, log=True, by="series", names=_CENTRINGS
    )


def _map_panel(column: str, title: str) -> Panel:
    return Panel("heatmap", title, "layers", "step", "layer", column, log=True)


class Conditioning(Lab):
    """Watch the conditioning of every layer of a deep network while it trains.

    κ_50 of Σ_x and Σ_g, uncentred and centred, by layer and by step; λ_max; dying and full units;
    and how many samples carry Σ_g. Settings: `ConditioningSettings`.

    Example:
        >>> start, end = Conditioning.run(depth=5, width=16, samples=64, norm="batch", steps=5)
        >>> start.layers[3].dying, start.layers[3].full
        (0.0, 0.0)
    """

    title = "Conditioning, layer by layer"
    settings_type = ConditioningSettings
    experiment = staticmethod(conditioning)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_conditioning)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the initial weights."),)
    controls = (
        Slider("depth", "depth", 3, 30, help="Linear layers, the output layer included."),
        Slider("width", "width", 8, 128, step=8, help="Units of a hidden layer."),
        NORMALISATION,
        Choice(
            "init",
            "init",
            (
                Option("he", "He N(0, 2/fan_in)"),
                Option("lecun", "LeCun U(±1/√fan_in)"),
                Option("orthogonal", "orthogonal"),
            ),
            help="Distribution of the initial weights.",
        ),
        Slider("learning_rate", "learning rate", 0.001, 10.0, log=True),
        Slider("steps", "steps", 0, 500, step=10, help="Gradient-descent updates."),
        ACTIVATION,
        Slider("every", "measured every", 1, 50, help="Steps from one measured step to the next."),
        Slider("samples", "samples", 64, 1437, help="Training digits, all in every step."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = _presets()
    chart_columns = 3
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "loss"), _step_rows),
        "layers": Table(("step", "layer", *_LAYER_COLUMNS), _layer_rows),
        "centrings": Table(("step", "layer", "series", *_MOMENTS), _centring_rows),
        "units": Table(("step", "layer", "series", "share"), _unit_rows),
        "samples": Table(("step", "effective_samples"), _sample_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(conditioning_table)
    panels = (
        _kappa_panel("kappa50_x", "κ_50(Σ_x) by layer"),
        _kappa_panel("kappa50_g", "κ_50(Σ_g) by layer"),
        Panel("line", "loss", "steps", "step", "loss", log=True),
        _map_panel("kappa50_x", "κ_50(Σ_x), layer × step"),
        _map_panel("kappa50_g", "κ_50(Σ_g), layer × step"),
        Panel(
            "profile",
            "Share of units by layer",
            "units",
            "layer",
            "share",
            by="series",
            names=("dying", "full"),
        ),
        Panel("profile", "λ_max(Σ_x) by layer", "layers", "layer", "lambda_max_x", log=True),
        Panel("profile", "λ_max(Σ_g) by layer", "layers", "layer", "lambda_max_g", log=True),
        Panel(
            "line",
            "Samples that carry Σ_g",
            "samples",
            "step",
            "effective_samples",
            log=True,
        ),
    )
