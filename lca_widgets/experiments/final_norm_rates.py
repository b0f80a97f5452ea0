"""The learning rates that each remedy of the last layer makes usable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lca_widgets._checks import require_integer
from lca_widgets.experiments.final_norm import FinalNormSettings
from lca_widgets.experiments.last_layer import LastLayerSettings, residual_run, unseen_accuracy
from lca_widgets.experiments.learning_rates import (
    FITTED,
    RateMeasurement,
    TrainedState,
    rate_ladder,
    rate_sweep,
    require_rates,
)
from lca_widgets.experiments.small_networks import made_once

__all__ = ["LOW", "FinalNormRateSettings", "final_norm_rates", "trained_residual"]

LAST = 10  # mini-batch losses that are averaged at a training's end
LOST = 100.0  # a loss that no training comes back from: it counts as diverged
LOW = 0.2  # the loss from which on a rate counts as usable: guessing costs ln 10 = 2.3


@dataclass(frozen=True)
class FinalNormRateSettings:
    """Settings of a sweep of learning rates: a residual network with each remedy.

    Attributes:
        arms: As in `final_norm.FinalNormSettings`; so are all that are not named here.
        network: As there.
        blocks: As there.
        width: As there.
        preactivation: As there.
        lowest: The smallest rate, 1e-6 to 1e6.
        highest: The largest rate, at least the smallest.
        rates: How many, in equal ratios, 1 to 50; see `learning_rates.rate_ladder`.
        seeds: Trainings with each rate and remedy, 1 to 20.
        updates: Steps of each training, 1 to 10000.
        batch_size: As there.
        seed: Of the first training; the others' follow it.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    arms: str = "none,batch,scale"
    network: str = "mlp"
    blocks: int = 10
    width: int = 32
    preactivation: bool = False
    lowest: float = 0.03
    highest: float = 30.0
    rates: int = 7
    seeds: int = 3
    updates: int = 60
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field; those of the trainings are checked by these."""
        require_rates(self.lowest, self.highest, self.rates, self.seeds)
        require_integer("updates", self.updates, low=1, high=10_000)
        self.trainings()

    @property
    def steps(self) -> int:
        """Number of the last training, counted from 0."""
        return len(self.trainings()) - 1

    def trainings(self) -> list[LastLayerSettings]:
        """All trainings: rate by rate the seeds of the first arm, then those of the next."""
        first = FinalNormSettings(
            self.arms,
            network=self.network,
            blocks=self.blocks,
            width=self.width,
            preactivation=self.preactivation,
            steps=self.updates,
            batch_size=self.batch_size,
            seed=self.seed,
        ).trainings()
        return [
            replace(one, learning_rate=rate, seed=self.seed + k)
            for rate in rate_ladder(self.lowest, self.highest, self.rates)
            for one in first.values()
            for k in range(self.seeds)
        ]


def final_norm_rates(settings: FinalNormRateSettings) -> Iterator[RateMeasurement]:
    """Train with every rate and remedy, and yield each training when done.

    A rate is usable if most of its trainings end at a loss of at most `LOW`. The trainings are a
    `lca_widgets.experiments.sweep`: kept on disk, and not made again.

    Args:
        settings: The networks, the remedies and the rates.

    Yields:
        ``settings.steps + 1`` measurements, by rate, remedy and seed; the summaries' ``norm`` is
        the remedy.

    Source:
        derived.

    Example:
        >>> tiny = FinalNormRateSettings("batch", blocks=2, rates=2, seeds=1, updates=5)
        >>> *_, last = final_norm_rates(tiny)
        >>> [(summary.norm, summary.learning_rate) for summary in last.summaries]
        [('batch', 0.03), ('batch', 30.0)]
    """
    yield from rate_sweep(trained_residual, settings.trainings(), settings.seeds, LOW)


@made_once
def trained_residual(settings: LastLayerSettings) -> TrainedState:
    """Train a residual network and say how well it fits, averaged over the last ten batches.

    A loss above 100 counts as infinite. What was trained once is remembered.

    Example:
        >>> trained_residual(LastLayerSettings(blocks=2, steps=20)).test_accuracy > 0.5
        True
    """
    model, run = residual_run(settings)
    records = list(run)
    end = records[-LAST:]
    loss = statistics.fmean(record.loss for record in end)
    return TrainedState(
        loss=loss if loss < LOST else math.inf,  # NaN is not below either
        accuracy=statistics.fmean(record.accuracy for record in end),
        test_accuracy=unseen_accuracy(model, settings),
        fitted_after=min((r.step for r in records if r.loss <= FITTED), default=math.inf),
    )
