"""Everything that is measured of a layer: its factors, its weight, and the rectifier behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lca_widgets.curvature.capture import Convolution, LayerCall
from lca_widgets.curvature.distributed import (
    joint_order,
    mean_over_processes,
    reduce_activity,
)
from lca_widgets.curvature.factors import Convention, LayerFactors, measured_factors
from lca_widgets.curvature.layers import Conv
from lca_widgets.curvature.losses import Fisher, LossFunction, Reduction
from lca_widgets.curvature.passes import Labels
from lca_widgets.curvature.rectifiers import RectifierUnits, UnitActivity, merge
from lca_widgets.curvature.spectrum import LayerSpectra, layer_spectra, to_cpu
from lca_widgets.curvature.weights import WeightCapture, WeightNorms

__all__ = ["LayerMeasurement", "ModelMeasurement", "Surroundings", "measure", "measured_layers"]


@dataclass(frozen=True, eq=False)
class LayerMeasurement:
    """One layer, measured.

    Attributes:
        name: The layer's qualified name.
        kind: Its class, ``"Linear"`` or ``"Conv2d"``, say.
        spectra: Spectra of Σ_x and Σ_g, centred ones among them.
        rows: Vectors behind Σ_x: samples times positions.
        grad_rows: Vectors behind Σ_g.
        weight: Size of its weight, and of the loss's gradient with respect to it.
        units: Which of its units are dying or full; ``None`` where no rectifier follows.
        zero_inputs: Inputs that are zero in every row.
        constant_inputs: Inputs that hardly vary about a value that is not zero: their standard
            deviation is below √cut of it (1e-3 for float32 inputs, 3e-4 where those are few).
    """

    name: str
    kind: str
    spectra: LayerSpectra
    rows: int
    grad_rows: int
    weight: WeightNorms
    units: UnitActivity | None
    zero_inputs: int
    constant_inputs: int


@dataclass(frozen=True, eq=False)
class ModelMeasurement:
    """All layers of a model, measured.

    Attributes:
        layers: One entry a measured layer, in the order in which the model first called them.
        skipped: Name and reason of every module with parameters that was not measured.
        loss: The loss, averaged over the samples.
    """

    layers: list[LayerMeasurement]
    skipped: dict[str, str]
    loss: float


class Surroundings:
    """Looks, beside the factors, at the layers' order, weights and rectifiers during passes.

    It is a context to run the model's forward pass in.

    Args:
        takes: As for `weights.WeightCapture`.
    """

    def __init__(self, takes: Callable[[], bool] | None = None) -> None:
        self.order: dict[str, None] = {}
        self.weights = WeightCapture(takes)
        self.activity: dict[str, UnitActivity] = {}
        self.samples = 0.0
        self._units = RectifierUnits()
        self.latest: dict[str, UnitActivity] = {}  # of the forward pass that ended last
        self._losses: list[Tensor] = []

    def __enter__(self) -> Surroundings:
        """Follow units from here on."""
        self._units.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop following them."""
        self.latest = self._units.stop()

    def layer_called(self, call: LayerCall) -> None:
        """Look at a call."""
        self.order.setdefault(call.name)
        self.weights.layer_called(call)
        unit_dim = 1 if isinstance(call.layer, Convolution) else -1
        self._units.layer_called(call.name, call.output, unit_dim)

    def wanted(self) -> list[Tensor]:
        """Return the weights that a gradient can come to."""
        return self.weights.weights

    def end_batch(self, loss: Tensor, gradients: Sequence[Tensor | None], samples: int) -> None:
        """Take in Σ_n l_n of a batch, and its gradients with respect to the weights."""
        self.count(self.latest, samples)
        self._losses.append(loss)
        for weight, gradient in zip(self.weights.weights, gradients, strict=True):
            if gradient is not None:
                self.weights.add_gradient(weight, gradient)

    def count(self, activity: Mapping[str, UnitActivity], samples: int) -> None:
        """Let a pass count, of which this was seen."""
        self.activity = merge([self.activity, activity])
        self.samples += samples

    def reduce(self, device: torch.device, group: ProcessGroup) -> None:
        """Take all processes of a training together; ``samples`` becomes their mean."""
        self.order = dict.fromkeys(joint_order(self.order, group))
        self.activity = reduce_activity(self.activity, device, group)
        self.weights.average(device, group)
        samples = {"samples": torch.tensor([float(self.samples)])}
        self.samples = mean_over_processes(samples, device, group)["samples"].item()

    def total_loss(self) -> float:
        """Return Σ_n l_n over all batches."""
        return sum(loss.item() for loss in self._losses)


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    fisher: Fisher = "empirical",
    conv: Conv = "patch",
    reduction: Reduction | None = None,
    layers: Collection[str] | None = None,
    seed: int = 0,
) -> ModelMeasurement:
    """Measure every layer by passes of its own, as `factors.kronecker_factors` does.

    The arguments, the errors and the promise to change nothing are those of that function. The
    gradient of the weights is that of the data's labels, whichever Fisher is asked for; it costs a
    backward pass more for another than the empirical one.

    Source:
        Huang et al. (2020), for weight domination, dying and full neurons.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> batch = torch.randn(32, 3), torch.arange(32) % 2
        >>> measured = measure(model, nn.CrossEntropyLoss(), batch)
        >>> [layer.units is not None for layer in measured.layers]
        [True, False]
    """
    labels = Labels(loss_fn, fisher, reduction, seed)
    convention = Convention(conv, "expand", bias=False, parts=1, means=True)
    surroundings = Surroundings()
    factors = measured_factors(model, data, labels, convention, layers, surroundings)
    samples = surroundings.samples
    return ModelMeasurement(
        measured_layers(factors.layers, surroundings, gradient_scale=1 / samples),
        factors.skipped,
        surroundings.total_loss() / samples,
    )


def measured_layers(
    factors: Sequence[LayerFactors], surroundings: Surroundings, gradient_scale: float
) -> list[LayerMeasurement]:
    """Join a model's factors and their surroundings, in the order of the layers' first calls.

    Args:
        factors: With their means.
        surroundings: Of the same passes; started afresh.
        gradient_scale: What the sum of the weights' gradients is to be multiplied with.
    """
    by_name = {layer.name: layer for layer in factors}
    ordered = [by_name[name] for name in surroundings.order if name in by_name]
    weights = surroundings.weights.take(gradient_scale)
    counts = _input_counts(ordered)
    return [
        LayerMeasurement(
            name=layer.name,
            kind=layer.kind,
            spectra=spectra,
            rows=layer.rows,
            grad_rows=layer.grad_rows,
            weight=weights[layer.name],
            units=surroundings.activity.get(layer.name),
            zero_inputs=zero,
            constant_inputs=constant,
        )
        for layer, spectra, (zero, constant) in zip(
            ordered, layer_spectra(ordered), counts, strict=True
        )
    ]


def _input_counts(factors: Sequence[LayerFactors]) -> list[tuple[int, int]]:
    """How many inputs of each layer are always zero, and how many else are constant."""
    counts = []
    for layer in factors:
        squares = layer.input_moment.diagonal(dim1=-2, dim2=-1)
        assert layer.input_mean is not None
        zero = squares == 0
        still = squares - layer.input_mean.square() <= layer.cut * squares
        counts.append(torch.stack([zero.sum(), (still & ~zero).sum()]))
    return [(int(zero), int(constant)) for zero, constant in to_cpu(counts)]
