"""Initialisation and magnitude: how λ_max(Σ_x) and λ_max(Σ_g) change by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import Capture, FactorCapture, LayerCall, LayerSpectra, layer_spectra
from lca_widgets.data import Dataset, Split, load
from lca_widgets.diagnosis import factor_per_layer, magnitude_factors
from lca_widgets.models import ACTIVATIONS, INITIALISERS, NORMS, mlp
from lca_widgets.records import Measurement, layer_records
from lca_widgets.training import TrainingRun, TrainingSettings, present_devices

__all__ = [
    "InitialisationFactors",
    "LayerSimulation",
    "MagnitudeSettings",
    "initial_spectra",
    "initialisation_factors",
    "magnitude",
    "saturation",
    "simulate_layer",
    "simulate_normalised_layers",
    "wide_network_factors",
]

# Variance of a weight times its layer's inputs, d σ_w², where a layer is square.
SQUARE_LAYER_VARIANCES = {
    "lecun": 1 / 3,
    "xavier": 1.0,
    "he": 2.0,
    "orthogonal": 1.0,
    "normal": 1.0,
}
QUADRATURE_NODES = 1001
# PyTorch refuses ε = 0. Added to a variance that is not zero itself, this changes no bit of it.
NO_EPS = torch.finfo(torch.float64).tiny
FARTHEST_NORMAL = 12.0  # the density of a normal number beyond it is below 1e-31


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
        norm: A name among `lca_widgets.models.NORMS`.
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
    model = _network(settings, data).to(settings.device)
    run = TrainingRun(
        model,
        data.train.first(settings.samples).to(settings.device),
        TrainingSettings(settings.steps, settings.learning_rate),
    )
    with FactorCapture(model) as capture:
        for record in run:
            yield Measurement(record, layer_records(layer_spectra(capture.take())))


@dataclass(frozen=True)
class InitialisationFactors:
    """How one untrained network changes magnitudes from layer to layer.

    Attributes:
        init: Its initialiser.
        activation: Its activation.
        seed: What drew its weights.
        forward: Measured factor per layer of λ_max(Σ_x) towards the output.
        backward: Measured factor per layer of λ_max(Σ_g) towards the input.
        forward_theory: The same of a very wide network, see `wide_network_factors`.
        backward_theory: Likewise.
    """

    init: str
    activation: str
    seed: int
    forward: float
    backward: float
    forward_theory: float
    backward_theory: float


def initialisation_factors(
    settings: MagnitudeSettings | None = None,
    *,
    inits: Sequence[str] = tuple(INITIALISERS),
    activations: Sequence[str] = tuple(ACTIVATIONS),
    seeds: Sequence[int] = (0, 1, 2),
) -> Iterator[InitialisationFactors]:
    """Measure the factor per layer of every initialiser with every activation, untrained.

    Args:
        settings: All else about the networks; without normalisation. ``None``: the defaults.
        inits: Names among `lca_widgets.models.INITIALISERS`.
        activations: Names among `lca_widgets.models.ACTIVATIONS`.
        seeds: One network for each.

    Yields:
        One record a network, activation by activation, initialiser by initialiser.

    Raises:
        ValueError: an unknown name, or settings with a normalisation, for which there is no theory
            here.

    Source:
        Glorot and Bengio (2010), He et al. (2015); measured as in `magnitude`.

    Example:
        >>> settings = MagnitudeSettings(depth=6, samples=64)
        >>> [row] = initialisation_factors(settings, inits=["he"], activations=["relu"], seeds=[0])
        >>> row.forward_theory, row.backward_theory
        (1.0, 1.0)
    """
    settings = settings or MagnitudeSettings()
    require_one_of("norm", settings.norm, ["none"])
    for activation in activations:
        for init in inits:
            theory = wide_network_factors(init, activation, settings.gain, settings.depth)
            for seed in seeds:
                network = replace(settings, init=init, activation=activation, seed=seed, steps=0)
                measured = magnitude_factors(next(magnitude(network)))
                yield InitialisationFactors(init, activation, seed, *measured, *theory)


def wide_network_factors(
    init: str, activation: str, gain: float = 1.0, depth: int = 20
) -> tuple[float, float]:
    r"""Return the factors per layer of a very wide network of square layers.

    In a wide layer the units' inputs are Gaussian, of mean square q_k. With s = d σ_w² gain² and
    z ~ N(0, 1) the mean squares of activations and gradients follow::

        q_(k+1) = s · E[φ(√q_k z)²],    E[g_k²] = s · E[φ'(√q_k z)²] · E[g_(k+1)²]

    from q_1 = s, for standardised data. ReLU: ½ s in both directions, at every layer. Linear: s.
    tanh has no such number: the factors depend on q_k, and are fitted over the layers as those of
    a measured network are.

    Args:
        init: A name among `lca_widgets.models.INITIALISERS`.
        activation: ``"relu"``, ``"tanh"`` or ``"linear"``.
        gain: Multiplies every weight.
        depth: Linear layers K, at least 3.

    Returns:
        The factor of E[x²] towards the output, fitted over the inputs of layers 2 … K, and that of
        E[g²] towards the input, over the outputs of layers K-1 … 1.

    Raises:
        ValueError: an unknown name, a gain that is not positive, or fewer than three layers.

    Source:
        Poole et al. (2016) and Schoenholz et al. (2017) for tanh; He et al. (2015) for ReLU.

    Example:
        >>> wide_network_factors("he", "relu")
        (1.0, 1.0)
        >>> [round(factor, 2) for factor in wide_network_factors("he", "tanh")]
        [0.99, 1.08]
    """
    require_one_of("init", init, SQUARE_LAYER_VARIANCES)
    require_one_of("activation", activation, ACTIVATIONS)
    require_in_range("gain", gain, low=0, open_low=True)
    require_integer("depth", depth, low=3)
    s = SQUARE_LAYER_VARIANCES[init] * gain * gain
    if activation != "tanh":
        factor = s / 2 if activation == "relu" else s
        return factor, factor
    q, squares, slopes = s, [], []
    for _ in range(depth - 1):
        square, slope = _tanh_means(q)
        squares.append(square)
        slopes.append(slope)
        q = s * square
    # The gradient of layer k passes the activation of layer k: not that of the layer behind it.
    gradients = np.cumprod([1.0, *(s * slope for slope in slopes[-2::-1])])
    return factor_per_layer(squares), factor_per_layer(gradients.tolist())


def _tanh_means(q: float) -> tuple[float, float]:
    """Return E[tanh(√q z)²] and E[tanh'(√q z)²] of a standard normal z."""
    # In t, with z = c·sinh(t), the sums resolve the tanh (wide 1/√q) and the Gaussian (wide 1).
    c = min(1.0, 1 / math.sqrt(q))
    end = math.asinh(FARTHEST_NORMAL / c)
    t, spacing = np.linspace(-end, end, QUADRATURE_NODES, retstep=True)
    z = c * np.sinh(t)
    weights = spacing * c * np.cosh(t) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    squares = np.tanh(math.sqrt(q) * z) ** 2
    return float(weights @ squares), float(weights @ (1 - squares) ** 2)


@dataclass(frozen=True)
class LayerSimulation:
    """What one wide, random ReLU layer h = W x does to mean squares.

    Attributes:
        linear: E[h²] / E[x²]; d σ_w² in theory.
        rectified: E[ReLU(h)²] / E[h²]; ½ in theory.
        forward: E[ReLU(h)²] / E[x²], the product of the two.
        backward: E[(Wᵀ (ReLU'(h) ∘ u))²] / E[u²] for a gradient u that arrives behind the ReLU;
            ½ d σ_w² in theory.
    """

    linear: float
    rectified: float
    forward: float
    backward: float


def simulate_layer(
    init: str = "lecun", width: int = 1000, samples: int = 200, seed: int = 0
) -> LayerSimulation:
    """Draw one wide, square layer and measure what it does to mean squares, both ways.

    Its inputs are what a layer inside a network gets, the positive parts of Gaussian numbers; the
    gradient that arrives behind it is Gaussian, and independent of the weights. In float64.

    Args:
        init: A name among `lca_widgets.models.INITIALISERS`.
        width: Units d.
        samples: Inputs and gradients.
        seed: Draws the weights, the inputs and the gradients.

    Returns:
        The ratios; NaN where all that one divides by is cut off, as a few units and samples may be.

    Raises:
        TypeError, ValueError: an unknown initialiser, a size below 1, or a seed below 0.

    Source:
        He et al. (2015), section 2.2; derived.

    Example:
        >>> simulated = simulate_layer("he", width=500)
        >>> abs(simulated.forward - 1) < 0.1
        True
    """
    require_one_of("init", init, INITIALISERS)
    require_integer("width", width, low=1)
    require_integer("samples", samples, low=1)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(width, width, dtype=torch.float64)
    INITIALISERS[init](weight, generator)
    normal = torch.randn(2, samples, width, generator=generator, dtype=torch.float64)
    x, gradient = normal[0].relu(), normal[1]
    h = x @ weight.T
    squares = [_mean_square(tensor) for tensor in (x, h, h.relu())]
    arrived = (gradient * (h > 0)) @ weight
    return LayerSimulation(
        linear=_ratio(squares[1], squares[0]),
        rectified=_ratio(squares[2], squares[1]),
        forward=_ratio(squares[2], squares[0]),
        backward=_ratio(_mean_square(arrived), _mean_square(gradient)),
    )


def simulate_normalised_layers(
    init: str = "lecun", width: int = 1000, depth: int = 5, samples: int = 500, seed: int = 0
) -> list[float]:
    r"""Measure by what each wide layer with batch normalisation multiplies E[g²] on the way back.

    A stack of square layers h = W x, x' = ReLU(BN(h)), without γ and β and with ε = 0, in float64.
    Its inputs are the positive parts of Gaussian numbers, as inside a network; behind the stack
    arrives a Gaussian gradient, independent of the weights. For Gaussian h and z ~ N(0, 1)::

        E[g_k²] / E[g_(k+1)²] = E[ReLU'(z)²] / Var[ReLU(z)] = ½ / (½ - 1/2π) = π / (π - 1)

    Args:
        init: A name among `lca_widgets.models.INITIALISERS`; the theory does not depend on it.
        width: Units d of every layer.
        depth: Layers, at least 2.
        samples: Inputs of the batch, at least 8.
        seed: Draws the inputs, the weights and the gradient.

    Returns:
        ``depth - 1`` factors, from the input to the output.

    Raises:
        TypeError, ValueError: an unknown initialiser, a size below its least, or a seed below 0.

    Source:
        Yang et al. (2019); derived.

    Example:
        >>> factors = simulate_normalised_layers(width=400, depth=3, samples=200)
        >>> all(1.3 < factor < 1.6 for factor in factors)
        True
    """
    require_one_of("init", init, INITIALISERS)
    require_integer("width", width, low=1)
    require_integer("depth", depth, low=2)
    require_integer("samples", samples, low=8)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2, samples, width, generator=generator, dtype=torch.float64)
    x, arriving = normal[0].relu(), normal[1]
    outputs = []
    for _ in range(depth):
        weight = torch.empty(width, width, dtype=torch.float64)
        INITIALISERS[init](weight, generator)
        outputs.append((x @ weight.T).requires_grad_())
        x = functional.batch_norm(outputs[-1], None, None, training=True, eps=NO_EPS).relu()
    gradients = torch.autograd.grad((x * arriving).sum(), outputs)
    squares = [_mean_square(gradient) for gradient in gradients]
    return [_ratio(before, behind) for before, behind in itertools.pairwise(squares)]


def initial_spectra(settings: MagnitudeSettings, *, double: bool = False) -> list[LayerSpectra]:
    """Return every layer's whole spectra at initialisation, of Σ_x and of Σ_g.

    Args:
        settings: The network; nothing is trained.
        double: Draw the weights and run the network in float64, not float32. The weights are other
            ones then.

    Returns:
        One entry a layer, from the input to the output.

    Source:
        Saxe et al. (2014) for what orthogonal weights do to them.

    Example:
        >>> isometric = MagnitudeSettings(init="orthogonal", activation="linear", samples=64)
        >>> first, *_, last = initial_spectra(isometric, double=True)
        >>> abs(last.input.lambda_max / first.input.lambda_max - 1) < 1e-12
        True
    """
    model, batch = _at_start(settings, double)
    with FactorCapture(model) as capture:
        functional.cross_entropy(model(batch.x), batch.y).backward()
        return layer_spectra(capture.take())


def saturation(settings: MagnitudeSettings, threshold: float = 0.99) -> list[float]:
    """Return the share of each hidden layer's outputs beyond ±``threshold``, at initialisation.

    A tanh beyond ±0.99 has a slope below 0.02, through which little gradient passes.

    Args:
        settings: The network; nothing is trained.
        threshold: Where saturation begins, in the activation's units.

    Returns:
        One share for each of the K-1 hidden layers, over their units and all samples.

    Source:
        Glorot and Bengio (2010).

    Example:
        >>> small = MagnitudeSettings(depth=3, samples=64, activation="tanh", gain=0.1)
        >>> saturation(small)
        [0.0, 0.0]
    """
    require_in_range("threshold", threshold, low=0)
    model, batch = _at_start(settings, double=False)
    inputs: list[torch.Tensor] = []

    def keep(call: LayerCall) -> None:
        inputs.append(call.input)

    with Capture(model, keep), torch.no_grad():
        model(batch.x)
    return [(x.abs() > threshold).double().mean().item() for x in inputs[1:]]


def _network(settings: MagnitudeSettings, data: Dataset) -> nn.Sequential:
    return mlp(
        data.features,
        data.classes,
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        init=settings.init,
        gain=settings.gain,
        norm=settings.norm,
        seed=settings.seed,
    )


def _at_start(settings: MagnitudeSettings, double: bool) -> tuple[nn.Sequential, Split]:
    """The untrained network and its samples, in float32 or float64."""
    data = load(settings.data)
    model = _network(settings, data)
    batch = data.train.first(settings.samples)
    if double:
        model, batch = model.double(), Split(batch.x.double(), batch.y)
        generator = torch.Generator().manual_seed(settings.seed)
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.Linear):  # orthogonal to the last digit, too
                    INITIALISERS[settings.init](module.weight, generator).mul_(settings.gain)
    return model.to(settings.device), batch.to(settings.device)


def _mean_square(values: torch.Tensor) -> float:
    return values.square().mean().item()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
