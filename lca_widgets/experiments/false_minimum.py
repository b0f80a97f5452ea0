"""The false local minimum: a plateau from which rescaled weights train on, and its look-alikes."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import supported_layers
from lca_widgets.data import Split, digits
from lca_widgets.experiments.small_networks import digits_mlp, in_one_thread
from lca_widgets.experiments.weight_domination import LayerWeights, hidden_mean, layer_weights
from lca_widgets.models import NORMS
from lca_widgets.surgery import freeze, rescale_
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

__all__ = [
    "BRANCHES",
    "FalseMinimumMeasurement",
    "FalseMinimumSettings",
    "PlateauOutcome",
    "along_gradient",
    "false_minimum",
    "plateau_outcome",
    "rescale_to",
]

# What a reader can do about a plateau, in the order of the buttons.
BRANCHES = ("wait", "lower", "rescale", "rescale-all", "restart")
KEPT_RUNS = 32  # plateaus and branches: each holds its measurements and two copies of a network


@dataclass(frozen=True)
class FalseMinimumSettings:
    """Settings of a run onto a plateau, and of what is done about it. No momentum or weight decay.

    Attributes:
        norm: A name among `lca_widgets.models.NORMS`.
        learning_rate: Step size η on the way to the plateau, 1e-6 to 1e6.
        gain: Multiplies the hidden layers' initial weights, 0.001 to 1000.
        train_last: Whether the output layer, which nothing normalises, is trained too.
        plateau_steps: Updates until the run is forked, 0 to 10000.
        branches: What is done then, names among `BRANCHES` with commas between: ``"wait"`` goes on
            as before; ``"lower"`` goes on at ``new_rate``; ``"rescale"`` and ``"rescale-all"`` also
            give the weights of the hidden, or of all, layers the norm of their initial weights
            (without the gain); ``"restart"`` begins with these at ``new_rate``.
        new_rate: Step size of the branches, 1e-6 to 1e6.
        branch_steps: Updates of each branch, 0 to 10000.
        every: Updates from one measurement to the next, 1 to 10000; the first and the last step of
            the run and of each branch are measured too.
        depth: Linear layers, the output layer included, 2 to 50.
        width: Units of a hidden layer, 2 to 256.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    norm: str = "batch-fixed"
    learning_rate: float = 1e6
    gain: float = 1.0
    train_last: bool = False
    plateau_steps: int = 100
    branches: str = ""
    new_rate: float = 1.0
    branch_steps: int = 100
    every: int = 1
    depth: int = 10
    width: int = 64
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_one_of("norm", self.norm, NORMS)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_in_range("gain", self.gain, low=1e-3, high=1e3)
        require_one_of("train_last", self.train_last, [False, True])
        require_integer("plateau_steps", self.plateau_steps, low=0, high=10_000)
        if not isinstance(self.branches, str):
            raise TypeError(f"branches must be a text, got {self.branches!r}")
        for name in self.branch_names:
            require_one_of("branches", name, BRANCHES)
        if len(set(self.branch_names)) < len(self.branch_names):
            raise ValueError(f"branches must be different ones, got {self.branches!r}")
        require_in_range("new_rate", self.new_rate, low=1e-6, high=1e6)
        require_integer("branch_steps", self.branch_steps, low=0, high=10_000)
        require_integer("every", self.every, low=1, high=10_000)
        require_integer("depth", self.depth, low=2, high=50)
        require_integer("width", self.width, low=2, high=256)
        require_integer("samples", self.samples, low=8, high=len(digits().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The branches, in their order."""
        return tuple(name.strip() for name in self.branches.split(",")) if self.branches else ()

    @property
    def steps(self) -> int:
        """Updates of the run and of all its branches together."""
        return self.plateau_steps + len(self.branch_names) * self.branch_steps


@dataclass(frozen=True)
class FalseMinimumMeasurement:
    """One step of the run, or of one of its branches.

    Attributes:
        training: Loss and accuracy; its step counts the updates of the run and of all branches.
        branch: ``"plateau"``, or a name among `BRANCHES`.
        step: Updates from the start to here, those before the fork included.
        layers: One entry a layer, from the input to the output.
        dying: Share of each hidden layer's units that the ReLU sets to zero for every sample.
        silent: Share of the samples for which it sets all units of a hidden layer to zero: nothing
            passes there, forward or backward.
    """

    training: StepRecord
    branch: str
    step: int
    layers: tuple[LayerWeights, ...]
    dying: tuple[float, ...]
    silent: tuple[float, ...]

    def hidden(self, quantity: str) -> float:
        """Return the geometric mean over the hidden layers of one of `LayerWeights`' numbers."""
        return hidden_mean(self.layers, quantity)

    @property
    def most_dying(self) -> float:
        """The share of dying units in the layer that has the most."""
        return max(self.dying)

    @property
    def most_silent(self) -> float:
        """The share of silent samples in the layer that has the most."""
        return max(self.silent)


@in_one_thread
def false_minimum(settings: FalseMinimumSettings) -> Iterator[FalseMinimumMeasurement]:
    """Train onto a plateau, then fork the run into the branches, one after the other.

    What was computed is kept for a while: the same run with one branch more comes at once up to
    there.

    Args:
        settings: The network, its training, and the branches.

    Yields:
        Measurements of the run, then of each branch, from the fork on. A run or branch that
        diverges ends with a measurement that says so; from a plateau that diverged, only the
        restart goes on.

    Source:
        Huang et al. (2020), their experiments on weight domination and plateaus, on other data.

    Example:
        >>> settings = FalseMinimumSettings(
        ...     depth=4, samples=64, plateau_steps=10, branch_steps=20, branches="lower,rescale"
        ... )
        >>> ends = {m.branch: m.training.loss for m in false_minimum(settings)}
        >>> ends["rescale"] < 0.5 < ends["lower"]
        True
    """
    yield from _kept_plateau(_until_the_fork(settings)).measurements
    for number, name in enumerate(settings.branch_names):
        before = settings.plateau_steps + number * settings.branch_steps
        alone = replace(settings, branches=name)
        for measurement in _kept_branch(alone):
            done = before + measurement.step - settings.plateau_steps
            yield replace(measurement, training=replace(measurement.training, step=done))


class _Kept(Iterable[FalseMinimumMeasurement]):
    """Measurements that are made once, as far as they are asked for, and read as often.

    Args:
        make: Begins to make them; called again after an error or an interruption, which leave a
            generator that would only seem to have come to its end.
    """

    def __init__(self, make: Callable[[], Iterator[FalseMinimumMeasurement]]) -> None:
        self._make = make
        self._source: Iterator[FalseMinimumMeasurement] | None = None
        self._made: list[FalseMinimumMeasurement] = []
        self._lock = threading.RLock()  # two labs, two threads, one plateau

    def __iter__(self) -> Iterator[FalseMinimumMeasurement]:
        position = 0
        while (measurement := self._at(position)) is not None:
            yield measurement
            position += 1

    def _at(self, position: int) -> FalseMinimumMeasurement | None:
        with self._lock:
            try:
                self._source = self._source or self._make()
                while len(self._made) <= position:
                    self._made.append(next(self._source))
            except StopIteration:
                return None
            except BaseException:
                self._source, self._made = None, []
                raise
            return self._made[position]


class _Plateau:
    """A run onto a plateau, which stays there, and the network as it was initialised."""

    def __init__(self, settings: FalseMinimumSettings) -> None:
        self._settings = settings
        self.initial = digits_mlp(
            depth=settings.depth, width=settings.width, norm=settings.norm, seed=settings.seed
        )
        if not settings.train_last:
            freeze(self.initial, "1" * (settings.depth - 1) + "0")
        self.data = digits().train.first(settings.samples)
        self.run: TrainingRun | None = None  # while it is measured, and when it was
        self.measurements = _Kept(self._measure)

    def _measure(self) -> Iterator[FalseMinimumMeasurement]:
        model = copy.deepcopy(self.initial)
        for layer in list(supported_layers(model).values())[:-1]:
            rescale_(layer, self._settings.gain)
        training = TrainingSettings(self._settings.plateau_steps, self._settings.learning_rate)
        self.run = TrainingRun(model, self.data, training)
        return _measured(self.run, "plateau", self._settings.every)


@lru_cache(maxsize=KEPT_RUNS)
def _kept_plateau(settings: FalseMinimumSettings) -> _Plateau:
    return _Plateau(settings)


@lru_cache(maxsize=KEPT_RUNS)
def _kept_branch(settings: FalseMinimumSettings) -> _Kept:
    return _Kept(partial(_branch, settings))


def _branch(settings: FalseMinimumSettings) -> Iterator[FalseMinimumMeasurement]:
    """The one branch that the settings name, from the fork on."""
    plateau = _kept_plateau(_until_the_fork(settings))
    *_, end = plateau.measurements
    assert plateau.run is not None  # it has been measured
    name = settings.branches
    rate = settings.learning_rate if name == "wait" else settings.new_rate
    if name == "restart":
        training = TrainingSettings(settings.branch_steps, rate)
        start = TrainingRun(copy.deepcopy(plateau.initial), plateau.data, training)
        yield from _measured(start, name, settings.every, offset=settings.plateau_steps)
        return
    run = plateau.run.fork(steps=settings.plateau_steps + settings.branch_steps, learning_rate=rate)
    if name.startswith("rescale") and not end.training.diverged:
        rescale_to(run.model, plateau.initial, output=name == "rescale-all")
    yield from _measured(run, name, settings.every)


def _until_the_fork(settings: FalseMinimumSettings) -> FalseMinimumSettings:
    """The settings of the plateau alone: the same whatever becomes of it."""
    return replace(settings, branches="", branch_steps=0, new_rate=1.0)


def rescale_to(model: nn.Module, reference: nn.Module, *, output: bool = False) -> None:
    """Give every hidden layer's weight the Frobenius norm that it has in another network.

    Where a normalisation follows each hidden layer, the network goes on computing the same function
    (to rounding): its ε, mean and variance are multiplied along.

    Args:
        model: A network as `lca_widgets.models.mlp` makes it; changed in place.
        reference: One of the same layers.
        output: Whether to rescale the output layer too, which changes the function.

    Source:
        derived; see `lca_widgets.surgery.rescale_`.

    Example:
        >>> model, reference = (
        ...     digits_mlp(depth=3, width=16, norm="batch-fixed", gain=gain).double()
        ...     for gain in (1e3, 1.0)
        ... )
        >>> x = digits().train.x[:32].double()
        >>> before = model(x)
        >>> rescale_to(model, reference)
        >>> torch.allclose(model(x), before, rtol=1e-12)
        True
    """
    targets = [layer.weight.detach().norm() for layer in supported_layers(reference).values()]
    layers = list(supported_layers(model).values())
    modules = dict(model.named_children())
    for number, (layer, target) in enumerate(zip(layers, targets, strict=True), start=1):
        if number < len(layers) or output:
            ratio = (target / layer.weight.detach().norm()).item()
            rescale_(layer, ratio, modules.get(f"norm{number}"))


@dataclass(frozen=True)
class PlateauOutcome:
    """What became of a run and of each of its branches.

    Attributes:
        norm: As in the settings.
        seed: What drew the weights.
        start: Loss at initialisation.
        plateau: Loss when the run was forked; NaN or infinite if it diverged.
        wait: Loss at the end of this branch.
        lower: Likewise.
        rescaled: Loss right after rescaling the hidden layers.
        rescale: Loss at the end of this branch.
        restart: Likewise.
        start_sensitivity: σ_max(W)·σ_max(∂L/∂W), geometric mean over the hidden layers, at
            initialisation.
        plateau_sensitivity: The same on the plateau.
        rescale_sensitivity: The same at the end of this branch.
        restart_sensitivity: Likewise.
        start_domination: σ_max(∂L/∂W) / σ_max(W), geometric mean over the hidden layers, at
            initialisation.
        plateau_domination: The same on the plateau.
        restart_domination: The same at the end of this branch.
        plateau_dying: Share of dying units on the plateau, in the layer with the most.
        plateau_silent: Share of silent samples there, likewise.
    """

    norm: str
    seed: int
    start: float
    plateau: float
    wait: float
    lower: float
    rescaled: float
    rescale: float
    restart: float
    start_sensitivity: float
    plateau_sensitivity: float
    rescale_sensitivity: float
    restart_sensitivity: float
    start_domination: float
    plateau_domination: float
    restart_domination: float
    plateau_dying: float
    plateau_silent: float


def plateau_outcome(settings: FalseMinimumSettings) -> PlateauOutcome:
    """Do a run with its branches, and keep where each of them ended; NaN for those left out.

    Args:
        settings: As for `false_minimum`; with no ``branches``, all but ``"rescale-all"`` are done.

    Example:
        >>> settings = FalseMinimumSettings(
        ...     depth=4, samples=64, plateau_steps=10, branch_steps=20, every=10
        ... )
        >>> end = plateau_outcome(settings)
        >>> end.wait > 1 > end.rescale, end.plateau_sensitivity > 50 * end.restart_sensitivity
        (True, True)
    """
    branches = settings.branches or "wait,lower,rescale,restart"
    first: dict[str, FalseMinimumMeasurement] = {}
    last: dict[str, FalseMinimumMeasurement] = {}
    for measurement in false_minimum(replace(settings, branches=branches)):
        first.setdefault(measurement.branch, measurement)
        last[measurement.branch] = measurement

    def loss(ends: Mapping[str, FalseMinimumMeasurement], name: str) -> float:
        return ends[name].training.loss if name in ends else math.nan

    def hidden(ends: Mapping[str, FalseMinimumMeasurement], name: str, quantity: str) -> float:
        return ends[name].hidden(quantity) if name in ends else math.nan

    return PlateauOutcome(
        norm=settings.norm,
        seed=settings.seed,
        start=loss(first, "plateau"),
        plateau=loss(last, "plateau"),
        wait=loss(last, "wait"),
        lower=loss(last, "lower"),
        rescaled=loss(first, "rescale"),
        rescale=loss(last, "rescale"),
        restart=loss(last, "restart"),
        start_sensitivity=hidden(first, "plateau", "sensitivity"),
        plateau_sensitivity=hidden(last, "plateau", "sensitivity"),
        rescale_sensitivity=hidden(last, "rescale", "sensitivity"),
        restart_sensitivity=hidden(last, "restart", "sensitivity"),
        start_domination=hidden(first, "plateau", "domination"),
        plateau_domination=hidden(last, "plateau", "domination"),
        restart_domination=hidden(last, "restart", "domination"),
        plateau_dying=last["plateau"].most_dying,
        plateau_silent=last["plateau"].most_silent,
    )


def along_gradient(model: nn.Module, data: Split, parts: Sequence[float]) -> list[float]:
    """Return the loss down the gradient, each weight moving by a part of its own size.

    With ε for a part, every trained linear layer's weight becomes::

        W_k − ε · ‖W_k‖ · G_k / ‖G_k‖,    G_k = ∂L/∂W_k

    which depends on the direction of weight and gradient alone, not on their scale: what is seen is
    whether a way leads down, not how fast a step at some rate goes along it.

    Args:
        model: A network in train mode; it is left as it is.
        data: Inputs and labels, all in one batch.
        parts: The numbers ε.

    Returns:
        The cross-entropy at each ε.

    Source:
        derived.

    Example:
        >>> model = digits_mlp(depth=2, width=16)
        >>> at_start, further = along_gradient(model, digits().train, [0.0, 0.1])
        >>> further < at_start
        True
    """
    walker = copy.deepcopy(model)
    walker.zero_grad()
    functional.cross_entropy(walker(data.x), data.y).backward()
    ways = [
        (layer.weight, layer.weight.detach().clone(), _direction(layer.weight))
        for layer in supported_layers(walker).values()
        if layer.weight.grad is not None
    ]
    losses = []
    with torch.no_grad():
        for part in parts:
            for weight, start, direction in ways:
                weight.copy_(start - part * direction)
            losses.append(functional.cross_entropy(walker(data.x), data.y).item())
    return losses


def _direction(weight: Tensor) -> Tensor:
    """‖W‖·G/‖G‖ in float64's range; zero where there is no gradient."""
    assert weight.grad is not None
    grad = weight.grad.double()
    size = grad.norm()
    if not size:
        return torch.zeros_like(weight)
    return (weight.detach().double().norm() * (grad / size)).to(weight.dtype)


def _measured(
    run: TrainingRun, branch: str, every: int, offset: int = 0
) -> Iterator[FalseMinimumMeasurement]:
    """Go on with a run, and measure its first and last step and every so many between."""
    first = run.step
    with _Units(run.model) as units:
        for record in run:
            last = record.diverged or record.step == run.settings.steps
            if last or (record.step - first) % every == 0:
                yield FalseMinimumMeasurement(
                    record, branch, record.step + offset, layer_weights(run.model), *units.shares()
                )


class _Units:
    """Sees which units, and which samples, have nothing but zeros behind a ReLU."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._outputs: dict[str, Tensor] = {}  # [n, d] each, of the latest pass

    def __enter__(self) -> _Units:
        self._handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in self._model.named_children()
            if isinstance(module, nn.ReLU)
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def see(_module: nn.Module, _args: object, output: Tensor) -> None:
            self._outputs[name] = output.detach()

        return see

    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the shares of dying units and of silent samples, by layer."""
        shut = [output == 0 for output in self._outputs.values()]
        dying, silent = (
            tuple(layer.all(dim).double().mean().item() for layer in shut) for dim in (0, 1)
        )
        return dying, silent
