"""The usable range of learning rates: the loss after a fixed number of steps, rate by rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.data import digits
from lca_widgets.experiments.small_networks import float64_digits, float64_mlp, made_once
from lca_widgets.experiments.sweep import sweep
from lca_widgets.models import INITIALISERS, NORMS
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings, accuracy

__all__ = [
    "FITTED",
    "LearningRateSettings",
    "RateMeasurement",
    "RateSummary",
    "TrainedState",
    "Training",
    "TrainingAtRate",
    "learning_rates",
    "rate_ladder",
    "rate_sweep",
    "require_rates",
    "trained_state",
    "usable_rates",
]

OneTraining = TypeVar("OneTraining", bound="Training")

# The loss from which on a training counts as fitted: guessing among ten digits costs ln 10 = 2.3.
FITTED = 0.1


@dataclass(frozen=True)
class TrainingAtRate:
    """Settings of one training on digits, full-batch, in float64; no momentum, no weight decay.

    Attributes:
        depth: Linear layers, the output layer included, 2 to 50.
        width: Units of a hidden layer, 2 to 256.
        init: A name among `lca_widgets.models.INITIALISERS`.
        norm: A name among `lca_widgets.models.NORMS`.
        learning_rate: Step size η, 1e-6 to 1e6.
        updates: Steps, 1 to 10000.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    depth: int = 10
    width: int = 64
    init: str = "he"
    norm: str = "none"
    learning_rate: float = 0.1
    updates: int = 50
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("depth", self.depth, low=2, high=50)
        require_integer("width", self.width, low=2, high=256)
        require_one_of("init", self.init, INITIALISERS)
        require_one_of("norm", self.norm, NORMS)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_integer("updates", self.updates, low=1, high=10_000)
        require_integer("samples", self.samples, low=8, high=len(digits().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class TrainedState:
    """What one training came to.

    Attributes:
        loss: Loss after the last update; infinite where the training diverged.
        accuracy: On the training digits.
        test_accuracy: On the 360 digits that no training sees, in eval mode.
        fitted_after: Updates until the loss was first at or below `FITTED`; infinite if it never
            was.
    """

    loss: float
    accuracy: float
    test_accuracy: float
    fitted_after: float


@made_once
def trained_state(settings: TrainingAtRate) -> TrainedState:
    """Train a network and say how well it fits; what was trained once is remembered.

    Example:
        >>> trained_state(TrainingAtRate(depth=3, learning_rate=0.3, samples=64)).accuracy
        1.0
    """
    model = float64_mlp(
        settings.init,
        settings.seed,
        depth=settings.depth,
        width=settings.width,
        norm=settings.norm,
    )
    training = TrainingSettings(settings.updates, settings.learning_rate)
    *before, last = TrainingRun(model, float64_digits(settings.samples), training)
    return TrainedState(
        loss=math.inf if last.diverged else last.loss,
        accuracy=last.accuracy,
        test_accuracy=_test_accuracy(model),
        fitted_after=min((r.step for r in [*before, last] if r.loss <= FITTED), default=math.inf),
    )


def _test_accuracy(model: nn.Module) -> float:
    test = digits().test
    model.eval()
    with torch.no_grad():
        return accuracy(model(test.x.double()), test.y)


@dataclass(frozen=True)
class LearningRateSettings:
    """Settings of a sweep of learning rates: a normalised network beside the plain one.

    Attributes:
        norm: The normalisation that is compared with none; a name among
            `lca_widgets.models.NORMS`.
        depth: Linear layers, the output layer included, 2 to 50.
        width: Units of a hidden layer, 2 to 256.
        init: A name among `lca_widgets.models.INITIALISERS`.
        lowest: The smallest rate, 1e-6 to 1e6.
        highest: The largest rate, at least the smallest.
        rates: How many, in equal ratios, 1 to 50. They are rounded to two digits; those that are
            then the same count once.
        seeds: Trainings with each rate and network, 1 to 20.
        updates: Steps of each training.
        samples: Training digits, all in every step.
        seed: Draws the weights of the first; the others' seeds follow it.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    norm: str = "batch"
    depth: int = 10
    width: int = 64
    init: str = "he"
    lowest: float = 0.02
    highest: float = 6.3
    rates: int = 6
    seeds: int = 3
    updates: int = 50
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field; those of the trainings are checked by these."""
        require_rates(self.lowest, self.highest, self.rates, self.seeds)
        self.trainings()

    @property
    def steps(self) -> int:
        """Number of the last training, counted from 0."""
        return len(self.trainings()) - 1

    def trainings(self) -> list[TrainingAtRate]:
        """All trainings: rate by rate the seeds of the plain network, then those of the other."""
        first = TrainingAtRate(
            depth=self.depth,
            width=self.width,
            init=self.init,
            norm=self.norm,
            updates=self.updates,
            samples=self.samples,
            seed=self.seed,
        )
        return [
            replace(first, learning_rate=rate, norm=norm, seed=self.seed + k)
            for rate in rate_ladder(self.lowest, self.highest, self.rates)
            for norm in self._norms()
            for k in range(self.seeds)
        ]

    def _norms(self) -> list[str]:
        return list(dict.fromkeys(("none", self.norm)))


class Training(Protocol):
    """Settings of one training of a sweep."""

    @property
    def norm(self) -> str:
        """What tells the networks of a sweep apart."""

    @property
    def depth(self) -> int:
        """Layers."""

    @property
    def learning_rate(self) -> float:
        """Step size η."""


@dataclass(frozen=True)
class RateSummary:
    """All trainings with one rate and network.

    Attributes:
        norm: The network's normalisation.
        depth: Its depth.
        learning_rate: The rate η.
        loss: Median loss over the seeds; infinite where most trainings diverged.
        loss_low: The smallest.
        loss_high: The largest.
        accuracy: Median accuracy on the training digits.
        accuracy_low: The smallest.
        accuracy_high: The largest.
        test_accuracy: Median accuracy on unseen digits.
        test_low: The smallest.
        test_high: The largest.
        fitted: Share of the trainings that ended at or below the loss that counts as fitted.
    """

    norm: str
    depth: int
    learning_rate: float
    loss: float
    loss_low: float
    loss_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    test_accuracy: float
    test_low: float
    test_high: float
    fitted: float

    @property
    def usable(self) -> bool:
        """Whether most of the trainings ended fitted."""
        return self.fitted > 0.5


@dataclass(frozen=True)
class RateMeasurement:
    """One training of a sweep, and what the sweep has come to with it.

    Attributes:
        training: Its number, counted from 0, with the loss and the accuracy that it ended with.
        settings: Its settings, a frozen dataclass that is a `Training`.
        state: What it came to.
        complete: Whether it is the last one with its rate and network, so that `summaries` has a
            new entry at its end.
        summaries: One entry for each rate and network whose trainings are all done.
    """

    training: StepRecord
    settings: Any
    state: TrainedState
    complete: bool
    summaries: tuple[RateSummary, ...]


def learning_rates(settings: LearningRateSettings) -> Iterator[RateMeasurement]:
    """Train with every rate, without and with normalisation, and yield each training when done.

    The trainings are a `lca_widgets.experiments.sweep`: kept on disk, and not made again.

    Args:
        settings: The networks and the rates.

    Yields:
        ``settings.steps + 1`` measurements, by rate, network and seed.

    Source:
        Bjorck et al. (2018), who trace BN's benefit to the large rates that it allows.

    Example:
        >>> tiny = LearningRateSettings(depth=3, width=16, samples=64, rates=2, seeds=1, updates=5)
        >>> *_, last = learning_rates(tiny)
        >>> [(summary.norm, summary.learning_rate) for summary in last.summaries]
        [('none', 0.02), ('batch', 0.02), ('none', 6.3), ('batch', 6.3)]
    """
    yield from rate_sweep(trained_state, settings.trainings(), settings.seeds, FITTED)


def require_rates(lowest: float, highest: float, rates: int, seeds: int) -> None:
    """Refuse a series of rates, or a number of seeds, that no sweep has.

    Raises:
        TypeError, ValueError: one of them is not accepted; the message names it.
    """
    require_in_range("lowest", lowest, low=1e-6, high=1e6)
    require_in_range("highest", highest, low=lowest, high=1e6)
    require_integer("rates", rates, low=1, high=50)
    require_integer("seeds", seeds, low=1, high=20)


def rate_ladder(lowest: float, highest: float, rates: int) -> list[float]:
    """Return rates in equal ratios, rounded to two digits; those that are then the same, once.

    A rate that is asked for again is to be the same one, however it was reached.

    Example:
        >>> rate_ladder(0.01, 1.0, 5)
        [0.01, 0.032, 0.1, 0.32, 1.0]
    """
    ratio = (highest / lowest) ** (1 / max(1, rates - 1))
    return list(dict.fromkeys(float(f"{lowest * ratio**k:.2g}") for k in range(rates)))


def rate_sweep(
    measure: Callable[[OneTraining], TrainedState],
    trainings: Sequence[OneTraining],
    seeds: int,
    fitted_at: float,
) -> Iterator[RateMeasurement]:
    """Make trainings one after the other, keep them on disk, and sum up those of equal settings.

    Args:
        measure: Makes one training; see `sweep`.
        trainings: All of them; ``seeds`` that differ in nothing but the seed follow each other.
        seeds: How many these are.
        fitted_at: The loss from which on a training counts as fitted.

    Yields:
        A measurement for each training.
    """
    siblings: list[TrainedState] = []
    summaries: tuple[RateSummary, ...] = ()
    for number, state in enumerate(sweep(measure, trainings, TrainedState)):
        siblings.append(state)
        complete = len(siblings) == seeds
        if complete:
            summaries += (_summary(trainings[number], siblings, fitted_at),)
            siblings.clear()
        record = StepRecord(number, state.loss, state.accuracy)
        yield RateMeasurement(record, trainings[number], state, complete, summaries)


def usable_rates(summaries: Iterable[RateSummary], norm: str) -> list[float]:
    """Return the rates at which most trainings of a network ended fitted.

    How many they are depends on that loss and on the number of updates: with more of these, smaller
    rates become usable.

    Example:
        >>> tiny = LearningRateSettings(
        ...     depth=3, width=16, samples=64, lowest=0.001, highest=1.0, rates=2, seeds=1
        ... )
        >>> *_, last = learning_rates(tiny)
        >>> usable_rates(last.summaries, "batch")
        [1.0]
    """
    return [one.learning_rate for one in summaries if one.norm == norm and one.usable]


def _summary(training: Training, states: Sequence[TrainedState], fitted_at: float) -> RateSummary:
    return RateSummary(
        training.norm,
        training.depth,
        training.learning_rate,
        *_middle_and_ends([state.loss for state in states]),
        *_middle_and_ends([state.accuracy for state in states]),
        *_middle_and_ends([state.test_accuracy for state in states]),
        fitted=statistics.fmean(state.loss <= fitted_at for state in states),
    )


def _middle_and_ends(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)
