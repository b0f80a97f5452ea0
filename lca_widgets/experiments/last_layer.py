"""The last layer of deep residual networks: its conditioning at every step of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import row_spectrum
from lca_widgets.curvature.capture import Capture, LayerCall
from lca_widgets.curvature.moments import sum_dtype
from lca_widgets.curvature.spectrum import largest_eigenvalues
from lca_widgets.data import Split, digit_images
from lca_widgets.experiments.small_networks import in_one_thread
from lca_widgets.models import ResidualNetwork, residual_mlp, resnet
from lca_widgets.surgery import add_final_norm
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings, accuracy

__all__ = [
    "ARMS",
    "NETWORKS",
    "LastLayer",
    "LastLayerMeasurement",
    "LastLayerSettings",
    "LayerInput",
    "last_layer",
    "last_layer_training",
    "layer_inputs",
    "residual_network",
    "residual_run",
    "unseen_accuracy",
]

NETWORKS = ("mlp", "resnet")
# What is done about the classifier's input: nothing; BN (LastBN); a division by the constant that
# gives it LastBN's λ_max; BN before the pooling of a ResNet; the BN that a pre-activation network
# has after its last block; or LastBN as the only BN in the whole network.
ARMS = ("none", "batch", "scale", "before-pooling", "own", "single")


@dataclass(frozen=True)
class LastLayer:
    """The conditioning of a classifier h = W x + b on one batch.

    Attributes:
        lambda_max_x: λ_max(Σ_x), squared input units.
        lambda_max_x_centred: λ_max of Σ_x − E[x] E[x]ᵀ.
        kappa50_x: κ_50 of Σ_x; infinite past the rank.
        kappa50_x_centred: κ_50 of Σ_x − E[x] E[x]ᵀ.
        lambda_max_g: λ_max(Σ_g), squared output-gradient units.
        lambda_max_weight_grad: λ_max of E[vec(g xᵀ) vec(g xᵀ)ᵀ], the second moment of the
            per-sample gradients of W: the layer's exact block, without Kronecker's approximation.
        weight_norm: ‖W‖, its Frobenius norm.
    """

    lambda_max_x: float
    lambda_max_x_centred: float
    kappa50_x: float
    kappa50_x_centred: float
    lambda_max_g: float
    lambda_max_weight_grad: float
    weight_norm: float


def last_layer(x: Tensor, g: Tensor, weight: Tensor) -> LastLayer:
    """Measure a linear layer from its inputs and the gradients at its outputs.

    The weight's gradient of sample n is g_n x_nᵀ. The N×N Gram matrix of these, divided by N, has
    the non-zero spectrum of their second moment::

        K = (X Xᵀ) ∘ (G Gᵀ) / N

    Args:
        x: The layer's inputs, shape ``[N, d]``.
        g: Per-sample output gradients ∂l_n/∂h_n, shape ``[N, C]``: N times the gradient of a mean.
        weight: W, shape ``[C, d]``.

    Returns:
        The numbers; NaN where an input or gradient is not finite.

    Source:
        The quantities are those of Huang et al. (2020); the Gram matrix is derived.

    Example:
        >>> found = last_layer(torch.eye(2), torch.tensor([[2.0], [0.0]]), torch.ones(1, 2))
        >>> found.lambda_max_x, found.lambda_max_weight_grad
        (0.5, 2.0)
    """
    x, g = (rows.detach().to(sum_dtype(rows.device)) for rows in (x, g))
    spectrum, centred = row_spectrum(x), row_spectrum(x - x.mean(dim=0))
    gram = (x @ x.T) * (g @ g.T) / len(x)
    return LastLayer(
        lambda_max_x=spectrum.lambda_max,
        lambda_max_x_centred=centred.lambda_max,
        kappa50_x=spectrum.kappa(0.5),
        kappa50_x_centred=centred.kappa(0.5),
        lambda_max_g=row_spectrum(g).lambda_max,
        lambda_max_weight_grad=largest_eigenvalues([gram])[0],
        weight_norm=weight.detach().norm().item(),
    )


@dataclass(frozen=True)
class LastLayerSettings:
    """Settings of a residual network on images of digits, and its training by SGD.

    Perceptrons are in float64, ResNets in float32. There is no weight decay.

    Attributes:
        network: ``"mlp"``, or ``"resnet"`` of 2·blocks + 2 layers.
        blocks: Residual blocks, 1 to 200; a ResNet's are a multiple of 3.
        width: Units of the classifier's input, 4 to 256. A ResNet has a quarter, a half and all of
            it as channels of its three stages.
        preactivation: Whether BN and ReLU come before the blocks' layers.
        final_norm: A name among `ARMS`; ``"own"`` is for pre-activation, which is without its
            final BN otherwise, and ``"before-pooling"`` for a ResNet.
        dropout: Probability of zeroing right before the classifier, in [0, 1).
        learning_rate: Step size η, 1e-6 to 1e6.
        momentum: In [0, 1).
        steps: Updates, 0 to 100000.
        every: Steps from one profile of all layers to the next; the last step has one, too.
        batch_size: Images a step, 16 to 1437.
        seed: Draws the weights, the batches and the dropout.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    network: str = "mlp"
    blocks: int = 20
    width: int = 32
    preactivation: bool = False
    final_norm: str = "none"
    dropout: float = 0.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    steps: int = 60
    every: int = 5
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_one_of("network", self.network, NETWORKS)
        require_integer("blocks", self.blocks, low=1, high=200)
        if self.network == "resnet" and self.blocks % 3:
            raise ValueError(
                f"blocks must be a multiple of 3 in a ResNet of three stages, got {self.blocks}"
            )
        require_integer("width", self.width, low=4, high=256)
        require_one_of("preactivation", self.preactivation, (False, True))
        require_one_of("final_norm", self.final_norm, ARMS)
        if self.final_norm == "own" and not self.preactivation:
            raise ValueError(
                "final_norm must not be 'own' without preactivation: a post-activation network "
                "has no BN after its last block; 'batch' puts one before the classifier"
            )
        if self.final_norm == "before-pooling" and self.network != "resnet":
            raise ValueError(
                "final_norm must not be 'before-pooling' in a perceptron, which pools nothing; "
                "'batch' puts a BN before its classifier"
            )
        require_in_range("dropout", self.dropout, low=0, high=1, open_high=True)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_in_range("momentum", self.momentum, low=0, high=1, open_high=True)
        require_integer("steps", self.steps, low=0, high=100_000)
        require_integer("every", self.every, low=1)
        require_integer("batch_size", self.batch_size, low=16, high=len(digit_images().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)

    @property
    def depth(self) -> int:
        """Layers on the way from the input to the logits."""
        return 2 * self.blocks + 2

    @property
    def norm(self) -> str:
        """What tells the networks of a sweep apart: ``final_norm``."""
        return self.final_norm

    @property
    def dtype(self) -> torch.dtype:
        """The numbers' type."""
        return torch.float64 if self.network == "mlp" else torch.float32


@dataclass(frozen=True)
class LayerInput:
    """The input of one layer.

    Attributes:
        layer: Its position, 1 is nearest to the input.
        name: Its qualified name.
        lambda_max_x: λ_max(Σ_x); a convolution's by pixels, every position being a sample.
        lambda_max_x_centred: λ_max of Σ_x − E[x] E[x]ᵀ.
    """

    layer: int
    name: str
    lambda_max_x: float
    lambda_max_x_centred: float


@dataclass(frozen=True)
class LastLayerMeasurement:
    """One step of the training, seen at the classifier.

    Attributes:
        training: Step, loss and accuracy on the step's batch.
        last: The classifier's conditioning on that batch.
        profile: The inputs of all layers, from the first to the classifier; empty between
            the steps that have a profile.
        unseen: Accuracy on the 360 images that no training sees, in eval mode; NaN before the end.
    """

    training: StepRecord
    last: LastLayer
    profile: tuple[LayerInput, ...]
    unseen: float


@in_one_thread
def last_layer_training(settings: LastLayerSettings) -> Iterator[LastLayerMeasurement]:
    """Train a residual network and measure its last layer at every step.

    Inputs and gradients are those of the training's own pass.

    Args:
        settings: The network, its training, and how often all layers' inputs are measured.

    Yields:
        ``settings.steps + 1`` measurements, fewer if the run diverges: then the last one says so.

    Source:
        Huang et al. (2020), their experiment on very deep residual networks; on other data.

    Example:
        >>> tiny = LastLayerSettings(blocks=2, width=8, batch_size=64, steps=2, every=2)
        >>> [(m.training.step, len(m.profile)) for m in last_layer_training(tiny)]
        [(0, 6), (1, 0), (2, 6)]
    """
    model, run = residual_run(settings)
    calls: list[LayerCall] = []

    def see(call: LayerCall) -> None:
        calls.append(call)
        if call.layer is model.classifier:
            call.output.retain_grad()

    with Capture(model, see) as capture:
        for record in run:
            classifier = calls[-1]
            gradient = classifier.output.grad
            assert gradient is not None
            is_last = record.step == settings.steps or record.diverged
            profiled = calls if record.step % settings.every == 0 or is_last else []
            if is_last:
                capture.detach()
            yield LastLayerMeasurement(
                record,
                last_layer(classifier.input, len(gradient) * gradient, model.classifier.weight),
                layer_inputs(profiled),
                unseen_accuracy(model, settings) if is_last else math.nan,
            )
            calls.clear()


def residual_run(settings: LastLayerSettings) -> tuple[ResidualNetwork, TrainingRun]:
    """Return the network at initialisation and its training.

    Example:
        >>> model, run = residual_run(LastLayerSettings(blocks=2, width=8, steps=1))
        >>> len(model.blocks), [record.step for record in run]
        (2, [0, 1])
    """
    model = residual_network(settings)
    training = TrainingSettings(
        settings.steps,
        settings.learning_rate,
        momentum=settings.momentum,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    return model, TrainingRun(model, _images(settings, digit_images().train), training)


def residual_network(settings: LastLayerSettings) -> ResidualNetwork:
    """Build the network that the settings ask for; ``"scale"`` is measured on the first images.

    Example:
        >>> residual_network(LastLayerSettings(network="resnet", blocks=3)).classifier
        Linear(in_features=32, out_features=10, bias=True)
    """
    data, arm = digit_images(), settings.final_norm
    final_norms = {"batch": "batch", "single": "batch", "before-pooling": "batch-before-pooling"}
    chosen: dict[str, Any] = {
        "preactivation": settings.preactivation,
        "own_final_norm": arm == "own",
        "block_norm": arm != "single",
        "final_norm": final_norms.get(arm, "none"),
        "dropout": settings.dropout,
        "seed": settings.seed,
        "dtype": settings.dtype,
    }
    model: ResidualNetwork
    if settings.network == "mlp":
        model = residual_mlp(
            data.features, data.classes, blocks=settings.blocks, width=settings.width, **chosen
        )
    else:
        model = resnet(settings.depth, channels=1, width_factor=settings.width / 64, **chosen)
    if settings.final_norm != "scale":
        return model
    inputs = _images(settings, data.train.first(settings.batch_size)).x
    scaled = add_final_norm(model, "scale", inputs, classifier="classifier")
    assert isinstance(scaled, ResidualNetwork)
    return scaled


def layer_inputs(calls: Sequence[LayerCall]) -> tuple[LayerInput, ...]:
    """Measure the inputs of the layers that were called, in the order of the calls."""
    rows = [_rows(call.input) for call in calls]
    moments = [
        values.T @ values / len(values)
        for inputs in rows
        for values in (inputs, inputs - inputs.mean(dim=0))
    ]
    largest = largest_eigenvalues(moments)
    return tuple(
        LayerInput(k + 1, call.name, *largest[2 * k : 2 * k + 2]) for k, call in enumerate(calls)
    )


def unseen_accuracy(model: nn.Module, settings: LastLayerSettings) -> float:
    """Put a network in eval mode and return its accuracy on the test images."""
    test = _images(settings, digit_images().test)
    model.eval()
    with torch.no_grad():
        return accuracy(model(test.x), test.y)


def _images(settings: LastLayerSettings, images: Split) -> Split:
    """Pixels side by side for a perceptron, one channel of 8×8 for a ResNet."""
    x = images.x.to(settings.dtype)
    return Split(x if settings.network == "mlp" else x.reshape(len(x), 1, 8, 8), images.y)


def _rows(x: Tensor) -> Tensor:
    """Every position of a convolution's input as a row of its channels."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, -2)
