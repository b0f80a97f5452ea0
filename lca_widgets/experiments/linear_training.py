"""Linear models on real tables: what preparing the inputs does to descent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.data import TABLES, Table, ill_conditioned, table
from lca_widgets.experiments.quadratic import DIVERGED
from lca_widgets.linear_models import (
    CUTOFF,
    PREPARATIONS,
    best_momentum,
    best_step,
    error_factors,
    excess_loss,
    input_basis,
    predicted_iterations,
    prepare,
    step_size_limit,
    with_constant,
)
from lca_widgets.linear_problem import LOSSES, LinearProblem, Minimum, minimum
from lca_widgets.training import StepRecord

__all__ = [
    "DATA",
    "METHODS",
    "InputRecord",
    "KappaRecord",
    "LinearMeasurement",
    "LinearSettings",
    "PreparationRecord",
    "iterations_to_reach",
    "kappa_sweep",
    "linear_problem",
    "linear_training",
    "log_log_slope",
    "preparation_sweep",
]

DATA = (*TABLES, "gaussian")
METHODS = ("gradient", "momentum", "preconditioned")

GAUSSIAN_SAMPLES, GAUSSIAN_FEATURES = 200, 20
SPECTRUM_SIZE = 200  # larger Hessians are not decomposed at every step
MEASURED_STEPS = 100  # of a run whose Hessian is large
SWEEP_STEPS = 100_000
JUST_BELOW, JUST_ABOVE = 1.98, 2.02  # in units of 1/λ_max
CHECK_STEPS = 1000


@dataclass(frozen=True)
class LinearSettings:
    """Settings of a linear model, its data and its training.

    Attributes:
        data: ``"diabetes"``, ``"wine"``, ``"breast-cancer"``, ``"digits"`` (see
            `lca_widgets.data.table`), or ``"gaussian"``: 200 samples of 20 features with the κ
            below (`lca_widgets.data.ill_conditioned`).
        preparation: ``"raw"``, ``"centred"``, ``"standardised"`` or ``"whitened"``.
        model: ``"least-squares"``, on the continuous target or on one-hot classes; ``"logistic"``:
            odd against even class labels; ``"softmax"``. The last two need classes.
        method: ``"gradient"``, ``"momentum"`` (heavy ball), or ``"preconditioned"``: the gradient
            times the inverse Hessian, Newton's step.
        rate: Step size η, 0.01 to 4, in units of 1/λ_max of the Hessian at the start; of the
            preconditioned step, whose Hessian is I, simply a factor.
        momentum: Heavy ball's β in [0, 1); other methods have none.
        steps: Updates, 0 to 100000.
        cutoff: Eigenvalues of Σ_x up to ``cutoff · λ_max`` count as zeros, 1e-16 to 0.1.
        kappa: κ of the gaussian data, 1 to 1e6.
        seed: Draws the gaussian data.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    data: str = "wine"
    preparation: str = "standardised"
    model: str = "least-squares"
    method: str = "gradient"
    rate: float = 1.9
    momentum: float = 0.8
    steps: int = 200
    cutoff: float = 1e-12
    kappa: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, and that the model fits the data."""
        require_one_of("data", self.data, DATA)
        require_one_of("preparation", self.preparation, PREPARATIONS)
        require_one_of("model", self.model, LOSSES)
        if self.model != "least-squares" and self.data in ("diabetes", "gaussian"):
            raise ValueError(
                f"model must be 'least-squares' for {self.data!r}, whose target is a number and "
                f"no class, got {self.model!r}"
            )
        require_one_of("method", self.method, METHODS)
        require_in_range("rate", self.rate, low=0.01, high=4)
        require_in_range("momentum", self.momentum, low=0, high=1, open_high=True)
        require_integer("steps", self.steps, low=0, high=100_000)
        require_in_range("cutoff", self.cutoff, low=1e-16, high=0.1)
        require_in_range("kappa", self.kappa, low=1, high=1e6)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)

    @property
    def beta(self) -> float:
        """β as used: 0 for methods without momentum."""
        return self.momentum if self.method == "momentum" else 0.0


@dataclass(frozen=True)
class InputRecord:
    """What is known before the first step.

    Attributes:
        samples: n.
        eigenvalues: Those of Σ_x of the prepared inputs and the constant, d of them, descending.
        rank: Number of them above the cut.
        kappa: κ on those.
        infimum: Infimum of the loss over all weights, those of directions below the cut included; 0
            for separable classes.
        separable: Whether some weights classify every sample correctly (logistic and softmax).
        start_errors: Error at the start along each eigendirection of Σ_x above the cut, in units of
            the whole of it; empty unless least squares.
    """

    samples: int
    eigenvalues: tuple[float, ...]
    rank: int
    kappa: float
    infimum: float
    separable: bool
    start_errors: tuple[float, ...]


@dataclass(frozen=True)
class LinearMeasurement:
    """A linear model at one step.

    Attributes:
        training: Step, loss, accuracy (NaN for a continuous target), and whether the run diverged:
            its loss is a million times the start's, or no number.
        settings: Those of the run.
        inputs: What was known before the first step.
        excess: Loss above its infimum.
        predicted_excess: The same from the closed form, without a run; NaN where there is none.
        lambda_max: λ_max of the Hessian at these weights; of more than 200 weights as it was when
            last measured, a hundred times in a run.
        limit: The λ_max that the step size allows, 2(1 + β)/η; NaN for preconditioned steps.
        hessian: Eigenvalues of the Hessian, descending; of least squares those of Σ_x, each of them
            once; zeros below the cut; empty for more than 200 weights.
        errors: Weights less the minimiser along each eigendirection of Σ_x above the cut, signed,
            in units of the whole error at the start; empty unless least squares.
        predicted: The same from the closed form.
    """

    training: StepRecord
    settings: LinearSettings
    inputs: InputRecord
    excess: float
    predicted_excess: float
    lambda_max: float
    limit: float
    hessian: tuple[float, ...]
    errors: tuple[float, ...]
    predicted: tuple[float, ...]


def linear_problem(settings: LinearSettings) -> LinearProblem:
    """Return the model's inputs, targets and loss: prepared features beside the constant input 1.

    With the constant, all four preparations leave the model the same functions, and so the loss the
    same infimum; a start at W = 0 is the same function, too.

    Example:
        >>> linear_problem(LinearSettings(data="digits", model="softmax")).start().shape
        torch.Size([10, 65])
    """
    data = _data(settings)
    prepared = prepare(data.x, settings.preparation, cutoff=settings.cutoff)
    targets = data.y[:, None]
    if data.classes is not None:
        labels = data.y % 2 if settings.model == "logistic" else data.y
        targets = labels.double()[:, None]
        if settings.model != "logistic":
            targets = torch.nn.functional.one_hot(data.y, data.classes).double()
    return LinearProblem(with_constant(prepared.x), targets, settings.model)


def linear_training(settings: LinearSettings) -> Iterator[LinearMeasurement]:
    """Train a linear model from W = 0 on all samples, and compare it with theory at every step.

    Args:
        settings: The data, the model and its training.

    Yields:
        ``settings.steps + 1`` measurements, the first at the start; fewer if the run diverges, the
        last one saying so.

    Source:
        LeCun, Kanter, Solla (1991); Huang et al. (2020) for linear models as the base case.

    Example:
        >>> *_, last = linear_training(LinearSettings(preparation="whitened", rate=1.0, steps=1))
        >>> last.excess < 1e-20, last.training.accuracy > 0.99
        (True, True)
    """
    setup = _Setup(settings)
    for step, weights in enumerate(setup.descent()):
        measurement = setup.measure(step, weights)
        yield measurement
        if measurement.training.diverged:
            return


def iterations_to_reach(settings: LinearSettings, target: float = 1e-3) -> float:
    """Count the steps until the loss above its infimum is at most ``target`` of the start's.

    The run itself is counted, whatever its method; for least squares by plain gradient descent
    `lca_widgets.linear_models.predicted_iterations` says the same without a run.

    Returns:
        A whole number, as a float; ``inf`` if ``settings.steps`` were not enough, or the run
        diverged.

    Example:
        >>> iterations_to_reach(LinearSettings(preparation="whitened", rate=1.0))
        1.0
    """
    require_in_range("target", target, low=0, high=1, open_low=True, open_high=True)
    setup = _Setup(settings)
    goal = target * setup.excess(setup.problem.start())
    for step, weights in enumerate(setup.descent()):
        if setup.excess(weights) <= goal:
            return float(step)
        if setup.diverged(setup.loss(weights)):
            break
    return math.inf


@dataclass(frozen=True)
class KappaRecord:
    """Steps to bring the loss above its minimum to a thousandth, at one κ.

    Attributes:
        kappa: κ(Σ_x).
        gradient: With gradient descent at its best fixed step size.
        momentum: With heavy ball at its best fixed settings.
    """

    kappa: float
    gradient: float
    momentum: float


def kappa_sweep(kappas: Sequence[float], *, seed: int = 0) -> Iterator[KappaRecord]:
    """Count the steps of the two methods, each at its best, on data of given κ.

    Args:
        kappas: Values of κ(Σ_x), 1 to 1e6. A count ends at 100000 steps and is ``inf`` then; for
            gradient descent that happens from a κ of some 80000 on.
        seed: Draws the data.

    Example:
        >>> [record] = kappa_sweep([100.0])
        >>> record.gradient > 3 * record.momentum
        True
    """
    for kappa in kappas:
        require_in_range("kappas", kappa, low=1, high=1e6)
        counts = {}
        for method, tuned in (("gradient", best_step), ("momentum", best_momentum)):
            tuning = tuned(1.0, 1 / kappa)
            settings = LinearSettings(
                "gaussian",
                "raw",
                method=method,
                rate=tuning.rate,
                momentum=tuning.momentum,
                steps=SWEEP_STEPS,
                kappa=kappa,
                seed=seed,
            )
            counts[method] = iterations_to_reach(settings)
        yield KappaRecord(kappa, **counts)


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of log y against log x: the exponent of a power law.

    Raises:
        ValueError: x and y are not equally many finite numbers above 0, or all of x are equal.

    Example:
        >>> round(log_log_slope([1, 10, 100], [3, 300, 30000]), 12)
        2.0
    """
    if len(x) != len(y):
        raise ValueError(f"y must have as many numbers as x, {len(x)}, got {len(y)}")
    for name, values in (("x", x), ("y", y)):
        for value in values:
            require_in_range(name, float(value), low=0, open_low=True)
    if len(set(x)) < 2:
        raise ValueError(f"x must hold at least two different numbers, got {list(x)}")
    u, v = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    u, v = u - u.mean(), v - v.mean()
    return ((u @ v) / (u @ u)).item()


@dataclass(frozen=True)
class PreparationRecord:
    """What one preparation makes of least squares on one table.

    Attributes:
        data: The table.
        preparation: What was done to its inputs.
        samples: n.
        dimension: d, the constant input included.
        rank: Eigenvalues of Σ_x above the cut.
        lambda_max: λ_max(Σ_x).
        kappa: κ above the cut.
        iterations: Steps of size 1/λ_max to a thousandth of the excess loss, from the closed form.
        falls_below: At 1.98/λ_max the loss fell in each of 1000 steps, and the error along the top
            eigenvector to less than 1e-8 of its start (0.98^1000 = 2e-9).
        left_below: Share of the excess loss left after those 1000 steps.
        diverged_above: Step at which the loss at 2.02/λ_max had come to a million times its start;
            ``inf`` if 1000 steps did not bring it there.
    """

    data: str
    preparation: str
    samples: int
    dimension: int
    rank: int
    lambda_max: float
    kappa: float
    iterations: float
    falls_below: bool
    left_below: float
    diverged_above: float


def preparation_sweep(data: Sequence[str] = TABLES) -> Iterator[PreparationRecord]:
    """Prepare each table in each way; descend just below and just above the limit.

    Args:
        data: Names among `DATA`.

    Example:
        >>> [record.kappa > 1e6 for record in preparation_sweep(["wine"])]
        [True, True, False, False]
    """
    for name in data:
        for preparation in PREPARATIONS:
            yield _prepared_record(LinearSettings(name, preparation))


def _prepared_record(settings: LinearSettings) -> PreparationRecord:
    below = _Setup(replace(settings, rate=JUST_BELOW, steps=CHECK_STEPS))
    above = _Setup(replace(settings, rate=JUST_ABOVE, steps=CHECK_STEPS))
    basis, (samples, dimension) = below.basis, below.problem.x.shape
    return PreparationRecord(
        settings.data,
        settings.preparation,
        samples,
        dimension,
        basis.rank,
        basis.lambda_max,
        basis.kappa,
        predicted_iterations(
            basis.eigenvalues, below.start_errors.norm(dim=0), 1 / basis.lambda_max
        ),
        *_fall(below),
        _divergence(above),
    )


def _fall(setup: _Setup) -> tuple[bool, float]:
    """Whether the loss falls at every step and the top error by 1e-8; the share of loss left."""
    run = list(setup.descent())
    excesses = [setup.excess(weights) for weights in run]
    first, last = (setup.errors(weights)[:, 0].norm().item() for weights in (run[0], run[-1]))
    falls = last < 1e-8 * first and all(b < a for a, b in pairwise(excesses))
    return falls, excesses[-1] / excesses[0]


def _divergence(setup: _Setup) -> float:
    """The first step at which the run counts as diverged; ∞ if there is none."""
    for step, weights in enumerate(setup.descent()):
        if setup.diverged(setup.loss(weights)):
            return float(step)
    return math.inf


class _Setup:
    """A model and what theory knows of it before the first step."""

    def __init__(self, settings: LinearSettings) -> None:
        self.settings = settings
        self.problem = linear_problem(settings)
        self.basis = input_basis(self.problem.x, cutoff=settings.cutoff)
        self.least_squares = settings.model == "least-squares"
        if self.least_squares:
            self.minimum = minimum(self.problem)
            self.start_errors = self.errors(self.problem.start())
        else:
            cutoff = settings.cutoff if settings.preparation == "whitened" else CUTOFF
            self.minimum = _minimum(settings.data, settings.model, cutoff)
        start = self.problem.start()
        self.rate = settings.rate / self.problem.lambda_max(start)
        self.start_loss = self.problem.loss(start)
        self.lambda_max = math.nan
        self.inputs = InputRecord(
            len(self.problem.x),
            tuple(self.basis.eigenvalues.tolist()),
            self.basis.rank,
            self.basis.kappa,
            self.minimum.loss,
            self.minimum.separable,
            self._relative_errors(start) if self.least_squares else (),
        )

    def descent(self) -> Iterator[Tensor]:
        """Yield the weights before each update and after the last, to the end or to infinity."""
        settings, problem = self.settings, self.problem
        weights = problem.start()
        velocity = torch.zeros_like(weights)
        for _ in range(settings.steps):
            yield weights
            if settings.method == "preconditioned":
                step = problem.newton_step(weights, cutoff=settings.cutoff)
                weights = weights - settings.rate * step
            else:
                velocity = settings.beta * velocity + problem.gradient(weights)
                weights = weights - self.rate * velocity
        yield weights

    def errors(self, weights: Tensor) -> Tensor:
        """Distances from the minimiser of least squares along Σ_x's eigenvectors, ``[C, d]``."""
        return (weights - self.minimum.weights) @ self.basis.vectors

    def excess(self, weights: Tensor) -> float:
        """The loss above its infimum; of least squares not as a difference, which would cancel."""
        if self.least_squares:
            return excess_loss(self.basis.eigenvalues, self.errors(weights))
        return max(self.problem.loss(weights) - self.minimum.loss, 0.0)  # rounding goes below

    def loss(self, weights: Tensor) -> float:
        return self.minimum.loss + self.excess(weights)

    def diverged(self, loss: float) -> bool:
        return not loss <= DIVERGED * self.start_loss

    def measure(self, step: int, weights: Tensor) -> LinearMeasurement:
        loss = self.loss(weights)
        hessian = self._hessian(weights)
        diverged = self.diverged(loss)
        if hessian:
            self.lambda_max = hessian[0]
        elif diverged or step == self.settings.steps or not step % self._every:
            self.lambda_max = self.problem.lambda_max(weights)
        predicted, predicted_excess = self._predict(step)
        return LinearMeasurement(
            StepRecord(step, loss, self.problem.accuracy(weights), diverged),
            self.settings,
            self.inputs,
            self.excess(weights),
            predicted_excess,
            self.lambda_max,
            self._limit,
            hessian,
            self._relative_errors(weights) if self.least_squares else (),
            predicted,
        )

    @property
    def _every(self) -> int:
        """A large λ_max takes ten times as long as a step: not every one is measured."""
        return max(1, self.settings.steps // MEASURED_STEPS)

    @property
    def _limit(self) -> float:
        if self.settings.method == "preconditioned":
            return math.nan
        return step_size_limit(self.rate, self.settings.beta)  # η and λ_max changed places

    def _hessian(self, weights: Tensor) -> tuple[float, ...]:
        if self.least_squares:
            return self.inputs.eigenvalues
        if weights.numel() > SPECTRUM_SIZE:
            return ()
        values = torch.linalg.eigvalsh(self.problem.hessian(weights)).flip(0)
        # Softmax has a zero for every feature: all classes' weights may move together.
        return tuple(values.where(values > self.settings.cutoff * values[0], 0.0).tolist())

    def _relative_errors(self, weights: Tensor) -> tuple[float, ...]:
        """Each direction's error along its error at the start: signed, whatever the outputs."""
        start, rank = self.start_errors, self.basis.rank
        units = start / start.norm(dim=0).clamp(min=torch.finfo(start.dtype).tiny)
        along = (self.errors(weights) * units).sum(dim=0) / start.norm()
        return tuple(along[:rank].tolist())

    def _predict(self, step: int) -> tuple[tuple[float, ...], float]:
        if not self.least_squares:
            return (), math.nan
        eigenvalues, start = self.basis.eigenvalues, self.start_errors.norm(dim=0)
        if self.settings.method == "preconditioned":
            kept = torch.arange(len(eigenvalues)) < self.basis.rank
            factors = error_factors(kept.double(), self.settings.rate, step)
        else:
            factors = error_factors(eigenvalues, self.rate, step, self.settings.beta)
        relative = (start * factors / start.norm())[: self.basis.rank]
        return tuple(relative.tolist()), excess_loss(eigenvalues, start * factors)


@lru_cache(maxsize=len(DATA) * len(LOSSES))
def _minimum(data: str, model: str, cutoff: float) -> Minimum:
    """The infimum of a classifier's loss after whitening; at 1e-12, that of all preparations."""
    return minimum(linear_problem(LinearSettings(data, "whitened", model, cutoff=cutoff)))


def _data(settings: LinearSettings) -> Table:
    if settings.data != "gaussian":
        return table(settings.data)
    return ill_conditioned(GAUSSIAN_SAMPLES, GAUSSIAN_FEATURES, settings.kappa, settings.seed)
