"""Training with some layers frozen: the loss still falls, and ends higher."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import supported_layers
from lca_widgets.data import digits
from lca_widgets.experiments.small_networks import digits_mlp, in_one_thread
from lca_widgets.experiments.weight_domination import LayerWeights, layer_weights
from lca_widgets.models import NORMS
from lca_widgets.surgery import freeze
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

__all__ = [
    "FreezingMeasurement",
    "FreezingSettings",
    "FrozenTraining",
    "freezing",
    "frozen_training",
    "patterns",
]


@dataclass(frozen=True)
class FreezingSettings:
    """Settings of a run with frozen layers. No momentum, no weight decay.

    Attributes:
        trained: A digit for each layer, from the input to the output, as the authors name their
            runs: 1 trains it, 0 freezes it. ``"01111"`` freezes the first of five. 2 to 20 digits,
            at least one of them 1. The γ and β of a normalisation are trained whatever it says.
        width: Units of a hidden layer, 2 to 256.
        norm: A name among `lca_widgets.models.NORMS`.
        learning_rate: Step size η of gradient descent, 1e-6 to 1e6.
        steps: Updates, 0 to 10000.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    trained: str = "11111"
    width: int = 64
    norm: str = "batch-fixed"
    learning_rate: float = 0.3
    steps: int = 60
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.trained, str):
            raise TypeError(f"trained must be a text of digits, got {self.trained!r}")
        if not 2 <= len(self.trained) <= 20:
            raise ValueError(f"trained must have 2 to 20 digits, one a layer, got {self.trained!r}")
        if set(self.trained) - {"0", "1"} or "1" not in self.trained:
            raise ValueError(
                "trained must be made of 0 (frozen) and 1 (trained), with at least one layer "
                f"trained, got {self.trained!r}"
            )
        require_integer("width", self.width, low=2, high=256)
        require_one_of("norm", self.norm, NORMS)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_integer("steps", self.steps, low=0, high=10_000)
        require_integer("samples", self.samples, low=8, high=len(digits().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class FreezingMeasurement:
    """One step of a run with frozen layers, beside one of the same network without.

    Attributes:
        training: Step, loss and accuracy.
        layers: One entry a layer, from the input to the output.
        moved: ‖W − W_0‖ / ‖W_0‖ of each layer, W_0 the initial weight.
        full: Step, loss and accuracy of the run that trains all layers.
    """

    training: StepRecord
    layers: tuple[LayerWeights, ...]
    moved: tuple[float, ...]
    full: StepRecord


@in_one_thread
def freezing(settings: FreezingSettings) -> Iterator[FreezingMeasurement]:
    """Train a network with some layers frozen, and beside it the same with none.

    Args:
        settings: The network, its training, and which layers take part.

    Yields:
        ``settings.steps + 1`` measurements, the first at initialisation; fewer if the run diverges,
        the last one saying so.

    Source:
        Huang et al. (2020), whose runs are named by such digits; on other data.

    Example:
        >>> start, end = freezing(FreezingSettings(trained="01", samples=64, steps=1))
        >>> end.moved[0], end.moved[1] > 0, end.layers[0].grad_sigma
        (0.0, True, nan)
    """
    run = _run(settings)
    initial = [weight.clone() for weight in _weights(run.model)]
    full = _run(settings, trained="1" * len(settings.trained))
    for record, other in zip(run, _to_the_end(full), strict=False):
        moved = tuple(
            ((now - then).norm() / then.norm()).item()
            for now, then in zip(_weights(run.model), initial, strict=True)
        )
        yield FreezingMeasurement(record, layer_weights(run.model), moved, other)


def _to_the_end(run: TrainingRun) -> Iterator[StepRecord]:
    """The records of a run, the last one again and again: its twin may go on for longer."""
    for record in run:
        yield record
    yield from itertools.repeat(record)


@dataclass(frozen=True)
class FrozenTraining:
    """How a run with frozen layers ended.

    Attributes:
        trained: A digit for each layer.
        seed: What drew the weights.
        start: Loss at initialisation.
        loss: Loss after the last step.
    """

    trained: str
    seed: int
    start: float
    loss: float

    @property
    def frozen(self) -> int:
        """The number of frozen layers."""
        return self.trained.count("0")


def frozen_training(settings: FreezingSettings) -> FrozenTraining:
    """Train a network with some layers frozen and return where its loss began and ended.

    Example:
        >>> end = frozen_training(FreezingSettings(trained="011", samples=64, steps=3))
        >>> end.frozen, end.loss < end.start
        (1, True)
    """
    records = list(_run(settings))
    return FrozenTraining(settings.trained, settings.seed, records[0].loss, records[-1].loss)


def patterns(layers: int) -> list[str]:
    """Return all patterns that train at least one of some layers, the fewest frozen first.

    Example:
        >>> patterns(2)
        ['11', '01', '10']
    """
    every = ("".join(digits) for digits in itertools.product("01", repeat=layers))
    return sorted(filter(int, every), key=lambda pattern: pattern.count("0"))


def _run(settings: FreezingSettings, trained: str | None = None) -> TrainingRun:
    model = digits_mlp(
        depth=len(settings.trained), width=settings.width, norm=settings.norm, seed=settings.seed
    )
    freeze(model, trained or settings.trained)
    training = TrainingSettings(settings.steps, settings.learning_rate)
    return TrainingRun(model, digits().train.first(settings.samples), training)


def _weights(model: nn.Module) -> list[Tensor]:
    return [layer.weight.detach() for layer in supported_layers(model).values()]
