"""The lab of usable learning rates: which of them train a residual network, with which remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments.final_norm_rates import (
    LOW,
    FinalNormRateSettings,
    final_norm_rates,
)
from lca_widgets.experiments.last_layer import ARMS
from lca_widgets.experiments.learning_rates import RateMeasurement, usable_rates
from lca_widgets.labs.controls import ARRANGEMENT, REMEDIES, changed_settings, residual_name
from lca_widgets.labs.learning_rates import (
    rate_limits,
    rate_panels,
    rate_status,
    rate_table,
    rate_tables,
    rate_words,
)
from lca_widgets.widgets.control_panel import Slider
from lca_widgets.widgets.lab import Lab, Table

__all__ = ["FinalNormRates", "describe_remedies"]


def describe_remedies(measurement: RateMeasurement) -> str:
    """Say in a few sentences at which rates each remedy could be trained with so far."""
    return rate_words(measurement, REMEDIES.__getitem__, LOW)


def _results(m: RateMeasurement) -> dict[str, str]:
    # A column for every arm: kept runs are rows of one table, however far each of them is.
    tried = {summary.norm for summary in m.summaries}
    fits = {arm: ", ".join(map(number, usable_rates(m.summaries, arm))) or "–" for arm in tried}
    return {f"{REMEDIES[arm]} fits at η": fits.get(arm, "") for arm in ARMS}


def _name_run(settings: FinalNormRateSettings) -> str:
    parts = [residual_name(settings), f"{settings.updates} updates"]
    parts += changed_settings(settings, "width", "batch_size", "seeds", "seed")
    return ", ".join(parts)


class FinalNormRates(Lab):
    """Train a residual network with many learning rates, with each remedy of its last layer.

    The progress bar counts trainings; bands reach from the smallest to the largest value over the
    seeds. Settings: `FinalNormRateSettings`.

    Example:
        >>> *_, last = FinalNormRates.run(blocks=2, width=8, rates=1, seeds=1, updates=5)
        >>> len(last.summaries)
        3
    """

    title = "Which learning rates, with which remedy?"
    settings_type = FinalNormRateSettings
    experiment = staticmethod(final_norm_rates)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_remedies)
    results = staticmethod(_results)
    status = staticmethod(rate_status)
    header = (Slider("seed", "seed", 0, 20, help="Of the first training; the others follow."),)
    controls = (
        Slider("blocks", "blocks", 3, 50, help="Residual blocks, of two layers each."),
        ARRANGEMENT,
        Slider("updates", "updates", 10, 300, step=10, help="Steps of each training."),
        Slider("rates", "rates", 2, 20, help="How many, in equal ratios."),
        Slider("lowest", "lowest rate", 0.001, 1.0, log=True, step=0.25),
        Slider("highest", "highest rate", 1.0, 100.0, log=True, step=0.25),
        Slider("seeds", "seeds", 1, 9, help="Trainings with each rate and remedy."),
        Slider("batch_size", "batch size", 16, 512, help="Images a step."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{blocks} blocks, {name}": {"blocks": blocks, "preactivation": preactivation}
        for blocks in (10, 20)
        for name, preactivation in {"post-activation": False, "pre-activation": True}.items()
    }
    tables: ClassVar[Mapping[str, Table]] = rate_tables(ARMS.index)
    limits = staticmethod(rate_limits)
    tabulate = staticmethod(rate_table)
    panels = rate_panels(tuple(REMEDIES[arm] for arm in ARMS), LOW)
