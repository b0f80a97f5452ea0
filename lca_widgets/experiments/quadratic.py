"""A quadratic in two dimensions: how step size, κ and method decide a descent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.linear_models import (
    error_factors,
    excess_loss,
    line_search_bound,
    line_search_step,
)
from lca_widgets.training import StepRecord

__all__ = ["METHODS", "STARTS", "QuadraticMeasurement", "QuadraticSettings", "quadratic"]

METHODS = ("gradient", "momentum", "line-search")
STARTS = ("equal", "zig-zag", "random")

START_LENGTH = math.sqrt(2)  # of the error at the start
DIVERGED = 1e6  # times the loss at the start


@dataclass(frozen=True)
class QuadraticSettings:
    """Settings of a descent on L(w) = ½ wᵀ H w with eigenvalues λ_max = 1 and λ_min = 1/κ.

    Attributes:
        kappa: κ, 1 to 1e4.
        rate: Step size η in units of 1/λ_max, 0.01 to 4; an exact line search chooses its own.
        method: ``"gradient"``, ``"momentum"`` (heavy ball) or ``"line-search"``.
        momentum: Heavy ball's β in [0, 1); other methods have none.
        start: ``"equal"``: equal errors in both eigendirections. ``"zig-zag"``: equal gradients in
            both, the worst start for line search. ``"random"``: any direction.
        rotation: Angle between the flat eigendirection and the horizontal axis, degrees, -90 to 90.
        steps: Updates, 0 to 10000.
        seed: Draws the random start.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    kappa: float = 100.0
    rate: float = 1.5
    method: str = "gradient"
    momentum: float = 0.8
    start: str = "equal"
    rotation: float = 30.0
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_in_range("kappa", self.kappa, low=1, high=1e4)
        require_in_range("rate", self.rate, low=0.01, high=4)
        require_one_of("method", self.method, METHODS)
        require_in_range("momentum", self.momentum, low=0, high=1, open_high=True)
        require_one_of("start", self.start, STARTS)
        require_in_range("rotation", self.rotation, low=-90, high=90)
        require_integer("steps", self.steps, low=0, high=10_000)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)

    @property
    def beta(self) -> float:
        """β as used: 0 for methods without momentum."""
        return self.momentum if self.method == "momentum" else 0.0


@dataclass(frozen=True)
class QuadraticMeasurement:
    """Where a descent is, and where theory says that it is.

    Attributes:
        training: Step, loss, and whether the run diverged: its loss is a million times the start's.
        settings: Those of the run.
        point: w, in the plane of the picture; the minimum is at (0, 0).
        errors: w along the steep eigendirection (λ = 1) and along the flat one (λ = 1/κ), signed.
        predicted: The same from the closed form, without a descent; NaN for line search, whose
            step sizes depend on the point.
        predicted_loss: From ``predicted``; for line search the most that it can be.
        rate: η of the step that led here, in units of 1/λ_max; NaN at the start.
    """

    training: StepRecord
    settings: QuadraticSettings
    point: tuple[float, float]
    errors: tuple[float, float]
    predicted: tuple[float, float]
    predicted_loss: float
    rate: float


def quadratic(settings: QuadraticSettings) -> Iterator[QuadraticMeasurement]:
    """Descend a two-dimensional quadratic, and compare every step with the closed form.

    The descent knows nothing of eigendirections: it multiplies the point w with H.

    Args:
        settings: The quadratic and the method.

    Yields:
        ``settings.steps + 1`` measurements, the first at the start; fewer if the run diverges, the
        last one saying so.

    Source:
        Polyak (1964, 1987); Goh (2017), "Why Momentum Really Works".

    Example:
        >>> start, after = quadratic(QuadraticSettings(kappa=4, rate=1.0, steps=1, rotation=0))
        >>> start.errors, after.errors
        ((1.0, 1.0), (0.0, 0.75))
    """
    directions = _eigendirections(settings.rotation)
    eigenvalues = torch.tensor([1.0, 1 / settings.kappa], dtype=torch.float64)
    hessian = (directions * eigenvalues) @ directions.T
    start = _start(settings)
    point, velocity = directions @ start, torch.zeros(2, dtype=torch.float64)
    start_loss, rate = excess_loss(eigenvalues, start), math.nan
    for step in range(settings.steps + 1):
        loss = 0.5 * (point @ hessian @ point).item()
        diverged = not loss <= DIVERGED * start_loss
        predicted, predicted_loss = _predicted(settings, eigenvalues, start, step)
        yield QuadraticMeasurement(
            StepRecord(step, loss, math.nan, diverged),
            settings,
            _pair(point),
            _pair(directions.T @ point),
            _pair(predicted),
            predicted_loss,
            rate,
        )
        if diverged:
            return
        gradient = hessian @ point
        rate = settings.rate
        if settings.method == "line-search":
            # At the minimum itself every step is as good as none.
            rate = line_search_step(gradient, hessian) if gradient.any() else 0.0
        velocity = settings.beta * velocity + gradient
        point = point - rate * velocity


def _eigendirections(rotation: float) -> Tensor:
    """The steep and the flat unit vector as columns."""
    angle = math.radians(rotation)
    flat = (math.cos(angle), math.sin(angle))
    return torch.tensor([[-flat[1], flat[0]], [flat[0], flat[1]]], dtype=torch.float64)


def _start(settings: QuadraticSettings) -> Tensor:
    """The errors at the start along the steep and the flat direction."""
    if settings.start == "equal":
        return torch.ones(2, dtype=torch.float64)
    if settings.start == "zig-zag":
        errors = torch.tensor([1.0, settings.kappa], dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(settings.seed)
        errors = torch.randn(2, generator=generator, dtype=torch.float64)
    return START_LENGTH * errors / errors.norm()


def _predicted(
    settings: QuadraticSettings, eigenvalues: Tensor, start: Tensor, step: int
) -> tuple[Tensor, float]:
    if settings.method == "line-search":
        worst = line_search_bound(settings.kappa) ** step * excess_loss(eigenvalues, start)
        return torch.full_like(start, math.nan), worst
    errors = start * error_factors(eigenvalues, settings.rate, step, settings.beta)
    return errors, excess_loss(eigenvalues, errors)


def _pair(vector: Tensor) -> tuple[float, float]:
    first, second = vector.tolist()
    return first, second
