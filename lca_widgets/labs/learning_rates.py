"""The lab of learning rates: which of them train a network, without and with normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments.learning_rates import (
    FITTED,
    LearningRateSettings,
    RateMeasurement,
    RateSummary,
    learning_rates,
    usable_rates,
)
from lca_widgets.labs.controls import changed_settings, norm_names, normalisation
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LearningRates",
    "describe_rates",
    "rate_limits",
    "rate_panels",
    "rate_status",
    "rate_table",
    "rate_tables",
    "rate_words",
]

_NAMES = ("plain", "normalised")
PLAIN = "none"


def describe_rates(measurement: RateMeasurement) -> str:
    """Say in a few sentences at which rates the networks could be trained so far."""
    return rate_words(measurement, _network, FITTED)


def rate_words(measurement: RateMeasurement, name: Callable[[str], str], fitted_at: float) -> str:
    """Say it of networks with these names, and of the loss that counts as fitted."""
    found = measurement.summaries
    if not found:
        return "The first trainings are under way."
    norms = dict.fromkeys(summary.norm for summary in found)
    parts = [f"{name(norm)} fits at {_rates(usable_rates(found, norm))}" for norm in norms]
    best = [
        f"{number(min(s.loss for s in found if s.norm == norm))} ({name(norm)})" for norm in norms
    ]
    return (
        f"Up to η = {number(found[-1].learning_rate)}: {'; '.join(parts)}. (To fit is to end at a "
        f"loss of at most {fitted_at:g} in most trainings.) Lowest median loss: {', '.join(best)}."
    )


def rate_table(measurements: Iterable[RateMeasurement]) -> pd.DataFrame:
    """Return a tidy table of the trainings' settings and outcomes, one row a training."""
    import pandas as pd

    return pd.DataFrame([asdict(m.settings) | asdict(m.state) for m in measurements])


def _network(norm: str) -> str:
    return norm_names(norm)[0] if norm != PLAIN else "the plain network"


def _rates(rates: Sequence[float]) -> str:
    if not rates:
        return "none of the rates"
    return f"η = {', '.join(map(number, rates))}"


def _results(m: RateMeasurement) -> dict[str, str]:
    fits: dict[str, list[str]] = {name: [] for name in _NAMES}
    for summary in m.summaries:
        if summary.usable:
            fits[_NAMES[summary.norm != PLAIN]].append(number(summary.learning_rate))
    return {f"{name} fits at η": ", ".join(rates) or "–" for name, rates in fits.items()}


def _name_run(settings: LearningRateSettings) -> str:
    parts = [f"{settings.init} {settings.depth}×{settings.width}", *norm_names(settings.norm)]
    parts.append(f"{settings.updates} updates")
    parts += changed_settings(settings, "samples", "seeds", "seed")
    return ", ".join(parts)


def rate_status(settings: Any, m: RateMeasurement) -> str:
    """Say which training is the latest."""
    rate = f"η {number(m.settings.learning_rate)}"
    return f"training {m.training.step + 1} of {settings.steps + 1}, {rate}"


def rate_tables(series: Callable[[str], int]) -> dict[str, Table]:
    """Return the tables of a lab whose networks are drawn as these series."""

    def table(*fields: str) -> Table:
        def rows(m: RateMeasurement) -> Iterator[Sequence[float]]:
            if m.complete:
                summary: RateSummary = m.summaries[-1]
                values = (getattr(summary, field) for field in fields)
                yield summary.learning_rate, series(summary.norm), *values

        return Table(("learning_rate", "series", *fields), rows)

    return {
        "losses": table("loss", "loss_low", "loss_high"),
        "unseen": table("test_accuracy", "test_low", "test_high"),
        "seen": table("accuracy", "accuracy_low", "accuracy_high"),
        "shares": table("fitted"),
    }


def rate_panels(names: Sequence[str], fitted_at: float) -> tuple[Panel, ...]:
    """Return the panels of a lab whose networks have these names."""

    def panel(title: str, table: str, column: str, **options: Any) -> Panel:
        return Panel(
            "line",
            title,
            table,
            "learning_rate",
            column,
            x_label="learning rate η",
            x_log=True,
            by="series",
            names=names,
            **options,
        )

    loss_band = {"log": True, "low": "loss_low", "high": "loss_high"}
    seen, unseen = "Accuracy on the training digits", "Accuracy on unseen digits"
    return (
        panel("Loss after the last update", "losses", "loss", **loss_band),
        panel(f"Share that ends below {fitted_at:g}", "shares", "fitted"),
        panel(seen, "seen", "accuracy", low="accuracy_low", high="accuracy_high"),
        panel(unseen, "unseen", "test_accuracy", low="test_low", high="test_high"),
    )


def rate_limits(settings: Any, first: RateMeasurement) -> dict[str, tuple[float, float]]:
    """Return the ends of a rate lab's axes."""
    return {
        "learning_rate": (settings.lowest, settings.highest),
        "accuracy": (0, 1),
        "test_accuracy": (0, 1),
        "fitted": (0, 1),
    }


class LearningRates(Lab):
    """Train a network with many learning rates, without and with normalisation.

    The progress bar counts trainings; bands reach from the smallest to the largest value over the
    seeds. Settings: `LearningRateSettings`.

    Example:
        >>> *_, last = LearningRates.run(depth=3, width=16, rates=2, seeds=1, updates=5)
        >>> len(last.summaries)
        4
    """

    title = "Which learning rates?"
    settings_type = LearningRateSettings
    experiment = staticmethod(learning_rates)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_rates)
    results = staticmethod(_results)
    status = staticmethod(rate_status)
    header = (Slider("seed", "seed", 0, 20, help="Of the first training; the others follow."),)
    controls = (
        normalisation("batch", "batch-fixed", "layer"),
        Slider("depth", "depth", 2, 30, help="Linear layers, the output layer included."),
        Slider("width", "width", 8, 128, step=8, help="Units of a hidden layer."),
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
        Slider("updates", "updates", 10, 300, step=10, help="Steps of each training."),
        Slider("rates", "rates", 2, 20, help="How many, from 0.02 to 6.3, in equal ratios."),
        Slider("seeds", "seeds", 1, 9, help="Trainings with each rate and network."),
        Slider("samples", "samples", 64, 1437, help="Training digits, all in every step."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{depth} layers: {name}": {"depth": depth, "norm": norm}
        for depth in (10, 20)
        for name, norm in {"BN": "batch", "LayerNorm": "layer"}.items()
    }
    tables: ClassVar[Mapping[str, Table]] = rate_tables(lambda norm: int(norm != PLAIN))
    limits = staticmethod(rate_limits)
    tabulate = staticmethod(rate_table)
    panels = rate_panels(_NAMES, FITTED)
