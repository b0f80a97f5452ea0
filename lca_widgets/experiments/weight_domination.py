"""Weight domination: what a few large steps do to the weights of a normalised network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import largest_eigenvalues, supported_layers
from lca_widgets.curvature.weights import smaller_gram
from lca_widgets.data import digits
from lca_widgets.experiments.small_networks import digits_mlp, in_one_thread
from lca_widgets.models import NORMS
from lca_widgets.surgery import freeze
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

__all__ = [
    "DominatedTraining",
    "DominationMeasurement",
    "DominationSettings",
    "LayerWeights",
    "dominated_training",
    "hidden_mean",
    "layer_weights",
    "weight_domination",
]


@dataclass(frozen=True)
class LayerWeights:
    """The size of one layer's weight, and of the mean loss's gradient with respect to it.

    Attributes:
        layer: Position, 1 is nearest to the input.
        name: Qualified name in the model.
        weight_sigma: σ_max(W), the largest singular value.
        weight_norm: ‖W‖, the Frobenius norm.
        grad_sigma: σ_max(∂L/∂W); NaN for a frozen layer.
        grad_norm: ‖∂L/∂W‖; NaN likewise.
    """

    layer: int
    name: str
    weight_sigma: float
    weight_norm: float
    grad_sigma: float
    grad_norm: float

    @property
    def domination(self) -> float:
        """σ_max(∂L/∂W) / σ_max(W): times η, by which part of itself a step changes the weight."""
        return self.grad_sigma / self.weight_sigma if self.weight_sigma else math.nan

    @property
    def sensitivity(self) -> float:
        """σ_max(W)·σ_max(∂L/∂W), which no rescaling of a normalised layer changes."""
        return self.weight_sigma * self.grad_sigma


def layer_weights(model: nn.Module) -> tuple[LayerWeights, ...]:
    """Measure the weights of a model, and the gradients that a backward pass has left in them.

    Args:
        model: Its linear layers are measured, with ``weight.grad`` of the *mean* loss.

    Returns:
        One entry a layer, from the input to the output; NaN for a gradient that is not there, and
        for what is not finite.

    Source:
        Huang et al. (2020), their definition of weight domination.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
        >>> model[0].weight.data = torch.tensor([[3.0, 0, 0], [0, 4, 0]])
        >>> [layer] = layer_weights(model)
        >>> layer.weight_sigma, layer.weight_norm, layer.grad_sigma
        (4.0, 5.0, nan)
    """
    layers = supported_layers(model)
    weights = [layer.weight.detach() for layer in layers.values()]
    grads = [layer.weight.grad for layer in layers.values()]
    matrices = [*weights, *(grad for grad in grads if grad is not None)]
    sizes = iter(_sizes(matrices))
    of_weights = list(itertools.islice(sizes, len(weights)))
    of_grads = [(math.nan, math.nan) if grad is None else next(sizes) for grad in grads]
    return tuple(
        LayerWeights(k, name, *weight, *grad)
        for k, (name, weight, grad) in enumerate(zip(layers, of_weights, of_grads, strict=True), 1)
    )


def _sizes(matrices: Sequence[Tensor]) -> list[tuple[float, float]]:
    """σ_max and Frobenius norm of each matrix."""
    grams = [smaller_gram(matrix[None]) for matrix in matrices]
    largest = largest_eigenvalues(grams)
    return [
        (math.sqrt(max(value, 0.0)), math.sqrt(gram.trace().item()))
        for value, gram in zip(largest, grams, strict=True)
    ]


def hidden_mean(layers: Sequence[LayerWeights], quantity: str) -> float:
    """Return the geometric mean of a quantity over all layers but the last.

    Args:
        layers: From the input to the output.
        quantity: One of `LayerWeights`' numbers; layers where it is NaN are left out.

    Returns:
        The mean; NaN where no layer is left.

    Example:
        >>> layers = [LayerWeights(k, "", 10.0**k, 1.0, 1.0, 1.0) for k in (0, 2, 9)]
        >>> round(hidden_mean(layers, "weight_sigma"), 9)
        10.0
    """
    values = [getattr(layer, quantity) for layer in layers[:-1]]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    if 0 in known:
        return 0.0
    return math.exp(math.fsum(map(math.log, known)) / len(known))


@dataclass(frozen=True)
class DominationSettings:
    """Settings of a run that begins with a few large steps. Without momentum.

    Attributes:
        depth: Linear layers, the output layer included, 2 to 50.
        width: Units of a hidden layer, 2 to 256.
        norm: A name among `lca_widgets.models.NORMS`.
        large_rate: Step size η of the first steps, 1e-6 to 1e6.
        large_steps: How many of the steps are taken at it, 0 to 1000.
        learning_rate: Step size of the steps after them, 1e-6 to 1e6.
        weight_decay: λ of the steps after them, 0 to 1: they follow ∂L/∂W + λW.
        steps: Updates in all, 0 to 10000.
        every: Updates from one measurement to the next, 1 to 10000; the last step, and the one at
            which the large ones are over, are measured too.
        hold_last: Whether the output layer, which nothing normalises, stays as it is during the
            large steps.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    depth: int = 10
    width: int = 64
    norm: str = "batch-fixed"
    large_rate: float = 1000.0
    large_steps: int = 3
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    steps: int = 100
    every: int = 1
    hold_last: bool = True
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("depth", self.depth, low=2, high=50)
        require_integer("width", self.width, low=2, high=256)
        require_one_of("norm", self.norm, NORMS)
        require_in_range("large_rate", self.large_rate, low=1e-6, high=1e6)
        require_integer("large_steps", self.large_steps, low=0, high=1000)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_in_range("weight_decay", self.weight_decay, low=0, high=1)
        require_integer("steps", self.steps, low=0, high=10_000)
        require_integer("every", self.every, low=1, high=10_000)
        require_one_of("hold_last", self.hold_last, [False, True])
        require_integer("samples", self.samples, low=8, high=len(digits().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class DominationMeasurement:
    """One step of such a run.

    Attributes:
        training: Step, loss and accuracy.
        layers: One entry a layer, from the input to the output.
        frozen_loss: Loss at this step of a twin that trains its output layer alone, from the end
            of the large steps on; NaN during them.
    """

    training: StepRecord
    layers: tuple[LayerWeights, ...]
    frozen_loss: float

    def hidden(self, quantity: str) -> float:
        """Return the geometric mean over the hidden layers of one of `LayerWeights`' numbers."""
        return hidden_mean(self.layers, quantity)


@in_one_thread
def weight_domination(settings: DominationSettings) -> Iterator[DominationMeasurement]:
    """Train a network, its first steps at a large rate, and measure every weight at every step.

    When the large steps are over, the run is copied: the copy's hidden layers are frozen, γ and β
    with them, and it is trained along. Where weights dominate their gradients, the two losses are
    the same: the hidden layers do not move, frozen or not.

    Args:
        settings: The network and its training.

    Yields:
        Measurements, the first at initialisation; if the run diverges, the last one says so.

    Source:
        Huang et al. (2020), their experiments on weight domination, on other data.

    Example:
        >>> settings = DominationSettings(depth=3, width=16, samples=64, steps=2, large_steps=1)
        >>> start, large, after = weight_domination(settings)
        >>> large.hidden("weight_norm") > 10 * start.hidden("weight_norm")
        True
        >>> large.frozen_loss == large.training.loss, after.frozen_loss == after.training.loss
        (True, False)
    """
    marks = {settings.large_steps, settings.steps}
    for record, model, frozen_loss in _steps(settings):
        step = record.step
        if step % settings.every == 0 or step in marks or record.diverged:
            yield DominationMeasurement(record, layer_weights(model), frozen_loss)


def _steps(settings: DominationSettings) -> Iterator[tuple[StepRecord, nn.Module, float]]:
    """Every step of the run, the network that it describes, and the loss of the frozen twin."""
    large = min(settings.large_steps, settings.steps)
    model = digits_mlp(
        depth=settings.depth, width=settings.width, norm=settings.norm, seed=settings.seed
    )
    data = digits().train.first(settings.samples)
    if settings.hold_last and large:
        freeze(model, "1" * (settings.depth - 1) + "0")
    run = TrainingRun(model, data, TrainingSettings(large, settings.large_rate))
    for record in run:
        if record.step == large and not record.diverged:
            break  # yielded as the first step at the smaller rate
        yield record, model, math.nan
        if record.diverged:
            return
    freeze(model, "1" * settings.depth)
    run = run.fork(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    twin = run.fork()
    twin.model.requires_grad_(False)  # γ and β too
    freeze(twin.model, "0" * (settings.depth - 1) + "1")
    losses = itertools.chain((record.loss for record in twin), itertools.repeat(math.nan))
    for record, frozen_loss in zip(run, losses, strict=False):  # a twin that diverged is over
        yield record, run.model, frozen_loss


@dataclass(frozen=True)
class DominatedTraining:
    """How a run with large first steps ended, and what they did.

    Attributes:
        large_rate: Step size of the first steps.
        seed: What drew the weights.
        weight_norm: ‖W‖ when they were over, geometric mean over the hidden layers.
        grad_norm: ‖∂L/∂W‖ likewise.
        domination: σ_max(∂L/∂W) / σ_max(W) likewise.
        sensitivity: σ_max(W)·σ_max(∂L/∂W) likewise.
        loss: Loss at the end.
        frozen_loss: The same of the twin whose hidden layers were frozen after the large steps.
    """

    large_rate: float
    seed: int
    weight_norm: float
    grad_norm: float
    domination: float
    sensitivity: float
    loss: float
    frozen_loss: float


def dominated_training(settings: DominationSettings) -> DominatedTraining:
    """Do the run of `weight_domination` and keep its state after the large steps, and its end.

    Example:
        >>> settings = DominationSettings(depth=3, width=16, samples=64, steps=4, large_rate=1e6)
        >>> end = dominated_training(settings)
        >>> abs(end.loss - end.frozen_loss) < 1e-3 < end.sensitivity
        True
    """
    measured = list(weight_domination(replace(settings, every=10_000)))
    end = measured[-1]
    after = next((m for m in measured if m.training.step == settings.large_steps), end)
    return DominatedTraining(
        large_rate=settings.large_rate,
        seed=settings.seed,
        weight_norm=after.hidden("weight_norm"),
        grad_norm=after.hidden("grad_norm"),
        domination=after.hidden("domination"),
        sensitivity=after.hidden("sensitivity"),
        loss=end.training.loss,
        frozen_loss=end.frozen_loss,
    )
