"""The scaling theorems: multiply weights, and compare every layer with what is predicted."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.data import Split, load
from lca_widgets.experiments.magnitude import NO_EPS
from lca_widgets.models import mlp
from lca_widgets.surgery import rescale_
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

__all__ = [
    "Comparison",
    "ScaledLayer",
    "ScalingMeasurement",
    "ScalingRatios",
    "ScalingSettings",
    "compare_scaled",
    "predicted_ratios",
    "scaling",
]

LOSSES = ("linear", "cross-entropy")
NORMS = ("none", "batch-fixed")


@dataclass(frozen=True)
class ScalingSettings:
    """Settings of one network, and of the weights that are multiplied in it.

    Attributes:
        depth: Linear layers K, the output layer included, 2 to 30.
        width: Units of a hidden layer, 2 to 256.
        norm: ``"none"``, or ``"batch-fixed"``: batch normalisation after every hidden layer,
            without γ and β and with ε = 0.
        layer: The layer k whose weight is multiplied, 1 to ``depth``.
        factor: What it is multiplied by, a, 1e-4 to 1e4.
        output_factor: What the output layer's weight is multiplied by besides, 1e-4 to 1e4.
        loss: ``"linear"`` or ``"cross-entropy"``, see `compare_scaled`.
        learning_rate: Step size η of the training before, 1e-6 to 1e6.
        steps: Updates of the network before it is scaled, 0 to 10000: the theorems hold at each.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    depth: int = 8
    width: int = 32
    norm: str = "none"
    layer: int = 4
    factor: float = 3.0
    output_factor: float = 1.0
    loss: str = "linear"
    learning_rate: float = 0.1
    steps: int = 0
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("depth", self.depth, low=2, high=30)
        require_integer("width", self.width, low=2, high=256)
        require_one_of("norm", self.norm, NORMS)
        require_integer("layer", self.layer, low=1, high=self.depth)
        require_in_range("factor", self.factor, low=1e-4, high=1e4)
        require_in_range("output_factor", self.output_factor, low=1e-4, high=1e4)
        require_one_of("loss", self.loss, LOSSES)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_integer("steps", self.steps, low=0, high=10_000)
        # Two samples are normalised to ±1 whatever the weights: they would have no gradient.
        require_integer("samples", self.samples, low=8, high=1437)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)

    @property
    def factors(self) -> tuple[float, ...]:
        """The factors a_1 … a_K of all the layers."""
        factors = [1.0] * self.depth
        factors[self.layer - 1] *= self.factor
        factors[-1] *= self.output_factor
        return tuple(factors)


@dataclass(frozen=True)
class ScalingRatios:
    """By what one layer's tensors are multiplied, according to a theorem.

    Attributes:
        z: ẑ_k / z_k, of what the layer passes on.
        g: ĝ_k / g_k, of its output gradient.
        weight_grad: The same of ∂L/∂W_k.
    """

    z: float
    g: float
    weight_grad: float


@dataclass(frozen=True)
class Comparison:
    """One tensor before and after the scaling, and what was predicted of it.

    Attributes:
        before: Its Frobenius norm before.
        after: Its Frobenius norm after.
        predicted: The factor r by which every entry should have been multiplied.
        deviation: ‖after − r·before‖ / ‖r·before‖ of the whole tensor, 0 for an exact prediction.
    """

    before: float
    after: float
    predicted: float
    deviation: float

    @property
    def ratio(self) -> float:
        """The measured factor of the norm; NaN for a tensor that was zero."""
        return self.after / self.before if self.before else math.nan


@dataclass(frozen=True)
class ScaledLayer:
    """What multiplying weights did to one layer h_k = W_k z_(k-1).

    Attributes:
        layer: k; 1 is nearest to the input.
        z: What the layer passes on, z_k: after normalisation and ReLU; the outputs for k = K.
        g: The gradients ∂l_n/∂h_k of all samples.
        weight_grad: ∂L/∂W_k.
    """

    layer: int
    z: Comparison
    g: Comparison
    weight_grad: Comparison


@dataclass(frozen=True)
class ScalingMeasurement:
    """One network, scaled after some steps of training.

    Attributes:
        training: Step, and the cross-entropy of the network that was not scaled.
        factors: a_1 … a_K.
        norm: As in the settings.
        layers: One entry a layer, from the input to the output.
        mu: μ = ‖ĝ_K‖ / ‖g_K‖, by which the output gradient was multiplied as a whole; the
            predictions contain it.
        mu_low: The smallest of the same ratios of single samples.
        mu_high: The largest of them. Where it is not μ, the theorems' condition does not hold.
    """

    training: StepRecord
    factors: tuple[float, ...]
    norm: str
    layers: tuple[ScaledLayer, ...]
    mu: float
    mu_low: float
    mu_high: float


def predicted_ratios(
    factors: Sequence[float], norm: str = "none", mu: float = 1.0
) -> tuple[ScalingRatios, ...]:
    """Return what the scaling theorems say about W_k → a_k W_k, for every layer.

    Without normalisation (and biases), ReLU(a h) = a ReLU(h) for a > 0 gives::

        ẑ_k = (Π_{i≤k} a_i) z_k,  ĝ_k = μ (Π_{i>k} a_i) g_k,  ∂L/∂Ŵ_k = μ (Π_{i≠k} a_i) ∂L/∂W_k

    With batch normalisation (ε = 0) after every hidden layer, the factor of a hidden layer is taken
    out again right behind it; the output layer K has none::

        ẑ_k = z_k,  ĝ_k = μ (a_K / a_k) g_k,  ∂L/∂Ŵ_k = μ (a_K / a_k) ∂L/∂W_k      (k < K)
        ẑ_K = a_K z_K,  ĝ_K = μ g_K,  ∂L/∂Ŵ_K = μ ∂L/∂W_K

    Args:
        factors: a_1 … a_K, all positive.
        norm: ``"none"`` or ``"batch-fixed"``.
        mu: μ > 0, by which the gradient at the network's outputs is multiplied.

    Raises:
        TypeError: a factor or μ is not a number.
        ValueError: no factors, one or a μ that is not positive, or an unknown norm.

    Source:
        derived.

    Example:
        >>> [ratio.weight_grad for ratio in predicted_ratios([1.0, 4.0, 1.0])]
        [4.0, 1.0, 4.0]
        >>> [ratio.weight_grad for ratio in predicted_ratios([1.0, 4.0, 1.0], "batch-fixed")]
        [1.0, 0.25, 1.0]
    """
    require_one_of("norm", norm, NORMS)
    _require_factors(factors)
    require_in_range("mu", mu, low=0, open_low=True)
    return _ratios(factors, norm, mu)


def _ratios(factors: Sequence[float], norm: str, mu: float) -> tuple[ScalingRatios, ...]:
    """As `predicted_ratios`, for any μ: 0, infinite or NaN where a network is dead or diverged."""
    if norm == "batch-fixed":
        *hidden, last = factors
        normalised = [ScalingRatios(1.0, mu * last / a, mu * last / a) for a in hidden]
        return (*normalised, ScalingRatios(last, mu, mu))
    ratios = []
    for k in range(len(factors)):
        before, behind = math.prod(factors[:k]), math.prod(factors[k + 1 :])
        ratios.append(ScalingRatios(before * factors[k], mu * behind, mu * before * behind))
    return tuple(ratios)


def scaling(settings: ScalingSettings) -> Iterator[ScalingMeasurement]:
    """Train a network and, at every step, compare it with a copy whose weights are multiplied.

    All in float64. The training is full-batch gradient descent on the cross-entropy, of the network
    that is not scaled.

    Args:
        settings: The network, its training, and the scaling.

    Yields:
        ``settings.steps + 1`` measurements, the first at initialisation; fewer if the run diverges,
        the last one saying so.

    Source:
        derived.

    Example:
        >>> [measurement] = scaling(ScalingSettings(depth=3, layer=2, factor=4.0, width=8))
        >>> [round(layer.weight_grad.ratio, 12) for layer in measurement.layers]
        [4.0, 1.0, 4.0]
    """
    data = load("digits")
    batch = data.train.first(settings.samples)
    batch = Split(batch.x.double(), batch.y)
    model = _network(settings, data.features, data.classes)
    training = TrainingSettings(settings.steps, settings.learning_rate)
    for record in TrainingRun(model, batch, training):
        layers, mus = compare_scaled(model, batch, settings.factors, settings.loss)
        yield ScalingMeasurement(record, settings.factors, settings.norm, layers, *mus)


def compare_scaled(
    model: nn.Sequential, data: Split, factors: Sequence[float], loss: str = "linear"
) -> tuple[tuple[ScaledLayer, ...], tuple[float, float, float]]:
    """Compare a multi-layer perceptron with a copy whose weights are multiplied.

    The theorems speak of an output gradient that is multiplied by one number μ. The loss decides
    whether that is so:

    * ``"linear"``: l_n = c_n · f_n, with c_n the gradient of sample n's cross-entropy with respect
      to the outputs f_n of the model before the scaling. Before, it gives the gradients of the
      cross-entropy itself; after, the same output gradient: μ = 1, and the theorems are exact.
    * ``"cross-entropy"``: scaled outputs change the softmax, so each sample and each class has a
      factor of its own. The predictions are made with μ = ‖ĝ_K‖ / ‖g_K‖, and are wrong unless the
      outputs stay as they were.

    Args:
        model: As `lca_widgets.models.mlp` makes it, its batch normalisation in train mode, so that
            it uses the batch's statistics. It is left as it is. The predictions are those of ReLU
            (or no activation) and ε = 0: a `Comparison.deviation` then is rounding. With tanh, or
            an ε that is not small beside the variances, it says how far they are off.
        data: Inputs [n, d] of the model's type and labels [n].
        factors: a_1 … a_K, all positive.
        loss: ``"linear"`` or ``"cross-entropy"``.

    Returns:
        One entry a layer; then μ, and the smallest and largest factor of a single sample.

    Raises:
        ValueError: an unknown loss; not as many factors as layers, or one that is not positive; a
            layer with a bias, or batch normalisation in eval mode.

    Source:
        derived.

    Example:
        >>> batch = load("digits").train.first(16)
        >>> batch = Split(batch.x.double(), batch.y)
        >>> model = mlp(64, 10, depth=2, width=8).double()
        >>> layers, _ = compare_scaled(model, batch, [2.0, 8.0])
        >>> [layer.weight_grad.ratio for layer in layers]
        [8.0, 2.0]
    """
    require_one_of("loss", loss, LOSSES)
    _require_factors(factors)
    _require_covered(model)
    scaled = _scaled_copy(model, factors)
    before = _one_pass(copy.deepcopy(model), data)  # a copy: running statistics stay as they are
    after = _one_pass(scaled, data, before.g[-1] if loss == "linear" else None)
    norm_of_each = after.g[-1].norm(dim=1) / before.g[-1].norm(dim=1)
    mu = (after.g[-1].norm() / before.g[-1].norm()).item()
    norm = "batch-fixed" if any(isinstance(m, nn.BatchNorm1d) for m in model) else "none"
    layers = tuple(
        ScaledLayer(
            k + 1,
            _compared(before.z[k], after.z[k], ratios.z),
            _compared(before.g[k], after.g[k], ratios.g),
            _compared(before.weight_grads[k], after.weight_grads[k], ratios.weight_grad),
        )
        for k, ratios in enumerate(_ratios(factors, norm, mu))
    )
    return layers, (mu, norm_of_each.min().item(), norm_of_each.max().item())


def _network(settings: ScalingSettings, features: int, classes: int) -> nn.Sequential:
    model = mlp(
        features,
        classes,
        depth=settings.depth,
        width=settings.width,
        norm=settings.norm,
        seed=settings.seed,
    ).double()
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.eps = NO_EPS
    return model


def _require_covered(model: nn.Sequential) -> None:
    """Refuse biases, and normalisation by statistics that do not know of the factors."""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear) and module.bias is not None:
            raise ValueError(f"model must have no biases, got one in layer {name!r}")
        if isinstance(module, nn.BatchNorm1d) and not module.training:
            raise ValueError(
                f"model must be in train mode, got {name!r} in eval mode: it does not take a "
                "factor out"
            )


def _scaled_copy(model: nn.Sequential, factors: Sequence[float]) -> nn.Sequential:
    scaled = copy.deepcopy(model)
    layers = _linear_layers(scaled)
    if len(factors) != len(layers):
        raise ValueError(f"factors must be {len(layers)}, one a layer, got {len(factors)}")
    for layer, factor in zip(layers, factors, strict=True):
        rescale_(layer, factor)
    return scaled


def _linear_layers(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one forward and one backward pass tell of every layer.

    Attributes:
        z: What it passes on, [n, d_k].
        g: N · ∂L/∂h_k, [n, d_k], L the mean loss.
        weight_grads: ∂L/∂W_k, [d_k, d_(k-1)].
    """

    z: list[Tensor]
    g: list[Tensor]
    weight_grads: list[Tensor]


def _one_pass(model: nn.Sequential, data: Split, output_gradient: Tensor | None = None) -> _Pass:
    """Pass forward and backward; where c = output_gradient is given, the loss is Σ_n c_n · f_n."""
    z: list[Tensor] = []
    h: list[Tensor] = []
    value = data.x
    for module in model:
        if isinstance(module, nn.Linear) and h:
            z.append(value)
        value = module(value)
        if isinstance(module, nn.Linear):
            h.append(value)
    z.append(value)
    if output_gradient is None:
        loss = functional.cross_entropy(value, data.y, reduction="sum")
    else:
        loss = (output_gradient * value).sum()
    weights = [layer.weight for layer in _linear_layers(model)]
    gradients = torch.autograd.grad(loss, [*h, *weights])
    return _Pass(
        [tensor.detach() for tensor in z],
        list(gradients[: len(h)]),
        [gradient / len(data) for gradient in gradients[len(h) :]],
    )


def _compared(before: Tensor, after: Tensor, predicted: float) -> Comparison:
    expected = predicted * before
    size, difference = expected.norm().item(), (after - expected).norm().item()
    # Tensors of a dead network are zero before and after: as predicted.
    deviation = difference / size if size else (0.0 if difference == 0 else math.inf)
    return Comparison(before.norm().item(), after.norm().item(), predicted, deviation)


def _require_factors(factors: Sequence[float]) -> None:
    if not len(factors):
        raise ValueError("factors must be one number for each layer, got none")
    for factor in factors:
        require_in_range("factors", factor, low=0, open_low=True)
