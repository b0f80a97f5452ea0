"""Initialisation and magnitude: how λ_max(Σ_x) and λ_max(Σ_g) change by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import FactorCapture, layer_spectra
from lca_widgets.data import load
from lca_widgets.models import ACTIVATIONS, INITIALISERS, NORMS, mlp
from lca_widgets.records import Measurement, layer_records
from lca_widgets.training import TrainingRun, TrainingSettings, present_devices

__all__ = ["MagnitudeSettings", "magnitude"]


@dataclass(frozen=True)
class MagnitudeSettings:
    """Settings of one network and its full-batch training.

    Attributes:
        depth: Linear layers, the output layer included, 2 to 100.
        width: Units of a hidden layer, 2 to 1024.
        init: ``"lecun"``, ``"xavier"``, ``"he"``, ``"orthogonal"`` or ``"normal"``; see
            `lca_widgets.models.mlp`.
        gain: Multiplies every initial weight, 0.001 to 1000.
        activation: ``"relu"``, ``"tanh"`` or ``"linear"``.
        norm: ``"none"``, ``"batch"`` or ``"batch-fixed"`` (no learnable γ and β).
        learning_rate: Step size η of gradient descent, 1e-6 to 1e6.
        steps: Updates, 0 to 100000.
        samples: Training samples, all of them in every step.
        data: ``"digits"``, or a folder of MNIST-format files.
        seed: Draws the weights.
        device: One of `lca_widgets.training.present_devices`.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    depth: int = 20
    width: int = 64
    init: str = "lecun"
    gain: float = 1.0
    activation: str = "relu"
    norm: str = "none"
    learning_rate: float = 0.1
    steps: int = 200
    samples: int = 1024
    data: str = "digits"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading the data."""
        require_integer("depth", self.depth, low=2, high=100)
        require_integer("width", self.width, low=2, high=1024)
        require_one_of("init", self.init, INITIALISERS)
        require_in_range("gain", self.gain, low=1e-3, high=1e3)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_one_of("norm", self.norm, NORMS)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_integer("steps", self.steps, low=0, high=100_000)
        # Batch normalisation needs two samples to have a variance.
        require_integer("samples", self.samples, low=2)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)
        if not isinstance(self.data, str):
            raise TypeError(f"data must be 'digits' or the path of a folder, got {self.data!r}")
        require_one_of("device", self.device, present_devices())


def magnitude(settings: MagnitudeSettings) -> Iterator[Measurement]:
    """Train one network by full-batch gradient descent, measuring every layer at every step.

    Args:
        settings: The network and its training.

    Yields:
        ``settings.steps + 1`` measurements, the first at initialisation; fewer if the run diverges,
        the last one saying so. A measurement takes the training's own forward and backward pass.

    Raises:
        FileNotFoundError: ``settings.data`` is no data set.
        ValueError: the data set has fewer than ``settings.samples`` samples, or is damaged.

    Source:
        Huang et al. (2020), their experiment on the magnitude across layers, on other data.

    Example:
        >>> settings = MagnitudeSettings(depth=3, width=16, samples=64, steps=1)
        >>> start, after = magnitude(settings)
        >>> [layer.name for layer in start.layers]
        ['linear1', 'linear2', 'linear3']
    """
    data = load(settings.data)
    model = mlp(
        data.features,
        data.classes,
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        init=settings.init,
        gain=settings.gain,
        norm=settings.norm,
        seed=settings.seed,
    ).to(settings.device)
    run = TrainingRun(
        model,
        data.train.first(settings.samples).to(settings.device),
        TrainingSettings(settings.steps, settings.learning_rate),
    )
    with FactorCapture(model) as capture:
        for record in run:
            yield Measurement(record, layer_records(layer_spectra(capture.take())))
