"""The lab of a quadratic in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments.quadratic import (
    QuadraticMeasurement,
    QuadraticSettings,
    quadratic,
)
from lca_widgets.linear_models import (
    best_momentum,
    best_step,
    line_search_bound,
    long_run_factor,
    step_size_limit,
)
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel
from lca_widgets.widgets.state import changes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Quadratic", "describe_quadratic"]

HALF_WIDTH = 1.6  # of the picture of the plane; every start lies inside
CONTOURS = tuple(0.25 * k for k in range(1, 7))  # errors along the steep direction at each level
POINTS = 81  # of half a contour

MEASURED, THEORY = 0, 1
# Turning the point into the eigenbasis leaves rounding errors; smaller errors are not drawn.
LEAST_ERROR = 1e-17


def describe_quadratic(measurement: QuadraticMeasurement) -> str:
    """Say in one or two sentences how the error behaves in the two eigendirections."""
    settings, record = measurement.settings, measurement.training
    if settings.method == "line-search":
        return _describe_line_search(measurement)
    steep, flat = _factors(settings)
    if record.diverged:
        what = f"The run diverged: after {record.step} steps the loss is a million times its start."
    else:
        what = f"After {record.step} steps the loss is {number(record.loss)}."
    limit = step_size_limit(1.0, settings.beta)
    outside = max(map(abs, measurement.point)) > HALF_WIDTH
    leaving = f", and the path {'leaves' if outside else 'will leave'} the picture"
    return (
        f"{what} In the long run a step multiplies the error along the steep direction by "
        f"{steep:.3f} and along the flat one by {flat:.3f}: η·λ_max = {settings.rate:.3g} is "
        f"{side(settings.rate, limit)} the limit {limit:.3g}{leaving * (steep > 1)}."
    )


def side(value: float, limit: float) -> str:
    """Say on which side of a limit a value is.

    Example:
        >>> side(1.9, 2.0), side(2.0, 2.0), side(2.1, 2.0)
        ('below', 'at', 'above')
    """
    return "below" if value < limit else "at" if value == limit else "above"


def _describe_line_search(measurement: QuadraticMeasurement) -> str:
    settings, record = measurement.settings, measurement.training
    chosen = "" if math.isnan(measurement.rate) else f" with η·λ_max = {measurement.rate:.3g}"
    return (
        f"After {record.step} steps{chosen} the loss is {number(record.loss)}. The best step along "
        "the gradient ends where the next gradient is at a right angle to it; each multiplies the "
        f"loss by at most ((κ-1)/(κ+1))² = {line_search_bound(settings.kappa):.3f}."
    )


def _factors(settings: QuadraticSettings) -> tuple[float, float]:
    """The factor of a step in the long run along the steep and the flat direction."""
    steep, flat = (
        long_run_factor(eigenvalue, settings.rate, settings.beta)
        for eigenvalue in (1.0, 1 / settings.kappa)
    )
    return steep, flat


def _results(measurement: QuadraticMeasurement) -> dict[str, str]:
    steep, flat = (number(abs(error)) for error in measurement.errors)
    return {"error, steep": steep, "error, flat": flat}


def _name_run(settings: QuadraticSettings) -> str:
    methods = {
        "gradient": f"gradient, η·λ_max {settings.rate:.3g}",
        "momentum": f"momentum {settings.momentum:.3g}, η·λ_max {settings.rate:.3g}",
        "line-search": "line search",
    }
    parts = [methods[settings.method], f"κ {number(settings.kappa)}"]
    if settings.start != "equal":
        parts.append(f"{settings.start} start")
    parts += [f"{name} {value}" for name, value in changes(settings).items() if name == "seed"]
    return ", ".join(parts)


def _path_rows(measurement: QuadraticMeasurement) -> list[Sequence[float]]:
    return [measurement.point]


def _contour_rows(measurement: QuadraticMeasurement) -> Iterator[Sequence[float]]:
    """The level sets of the loss inside the picture, and the picture's two corners."""
    if measurement.training.step:
        return
    nothing = (math.nan, math.nan)
    # Single points are no line; these fix the ends of the axes.
    for corner in (-HALF_WIDTH, HALF_WIDTH):
        yield from ((corner, corner), nothing)
    settings = measurement.settings
    for level in CONTOURS:
        # Beyond the picture's diagonal there is nothing to see of a long ellipse.
        length = min(level * math.sqrt(settings.kappa), 2 * HALF_WIDTH)
        for side in (-1, 1):
            for k in range(POINTS):
                flat = length * math.sin(math.pi * (k / (POINTS - 1) - 0.5))
                steep = side * math.sqrt(max(level**2 - flat**2 / settings.kappa, 0.0))
                point = _turned(steep, flat, settings.rotation)
                yield point if max(map(abs, point)) <= HALF_WIDTH else nothing
            yield nothing


def _turned(steep: float, flat: float, rotation: float) -> tuple[float, float]:
    angle = math.radians(rotation)
    cosine, sine = math.cos(angle), math.sin(angle)
    return flat * cosine - steep * sine, flat * sine + steep * cosine


def _step_rows(measurement: QuadraticMeasurement) -> list[Sequence[float]]:
    record = measurement.training
    return [
        (record.step, MEASURED, record.loss),
        (record.step, THEORY, measurement.predicted_loss),
    ]


def _error_rows(measurement: QuadraticMeasurement) -> list[Sequence[float]]:
    step = measurement.training.step
    values = (*measurement.errors, *measurement.predicted)
    return [(step, series, max(abs(value), LEAST_ERROR)) for series, value in enumerate(values)]


def _limits(
    settings: QuadraticSettings, first: QuadraticMeasurement
) -> dict[str, tuple[float, float]]:
    return {"step": (0, settings.steps)}


def _tabulate(measurements: Sequence[QuadraticMeasurement]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "step": m.training.step,
            "loss": m.training.loss,
            "predicted_loss": m.predicted_loss,
            "x": m.point[0],
            "y": m.point[1],
            "error_steep": m.errors[0],
            "error_flat": m.errors[1],
            "predicted_steep": m.predicted[0],
            "predicted_flat": m.predicted[1],
            "rate": m.rate,
        }
        for m in measurements
    )


_STEPS = {"method": "gradient", "kappa": 20.0, "start": "equal", "steps": 60}


def _best(method: str, kappa: float) -> dict[str, Any]:
    tuning = (best_momentum if method == "momentum" else best_step)(1.0, 1 / kappa)
    preset = _STEPS | {"method": method, "kappa": kappa, "rate": round(tuning.rate, 4)}
    return preset | ({"momentum": round(tuning.momentum, 4)} if method == "momentum" else {})


class Quadratic(Lab):
    """Watch a descent on a quadratic, and how step size, κ and method decide it.

    The path over the contours, the loss, and the error along both eigendirections beside what the
    closed form says. Settings: `QuadraticSettings`.

    Example:
        >>> measurements = Quadratic.run(kappa=10.0, rate=1.0, steps=3)
        >>> [f"{m.errors[1]:.3f}" for m in measurements]
        ['1.000', '0.900', '0.810', '0.729']
    """

    title = "A quadratic in two dimensions"
    settings_type = QuadraticSettings
    experiment = staticmethod(quadratic)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_quadratic)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the random start."),)
    controls = (
        Slider(
            "rate",
            "step size η·λ_max",
            0.1,
            4.0,
            step=0.01,
            help="Gradient descent converges below 2, momentum β below 2(1 + β).",
        ),
        Slider("kappa", "κ", 1.0, 1e4, log=True, help="λ_max over λ_min; λ_max is 1."),
        Choice(
            "method",
            "method",
            (
                Option("gradient", "gradient descent"),
                Option("momentum", "heavy ball"),
                Option("line-search", "exact line search"),
            ),
        ),
        Slider("momentum", "momentum β", 0.0, 0.99, step=0.01, help="Of the heavy ball only."),
        Choice(
            "start",
            "start",
            (
                Option("equal", "equal errors"),
                Option("zig-zag", "zig-zag"),
                Option("random", "random direction"),
            ),
            help="In the two eigendirections; zig-zag: with equal gradients in both.",
        ),
        Slider("rotation", "rotation", -90.0, 90.0, step=5.0, help="Of the flat direction."),
        Slider("steps", "steps", 0, 500, step=5),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "below the limit": _STEPS | {"rate": 1.98},
        "above the limit": _STEPS | {"rate": 2.02},
        "best fixed step": _best("gradient", 20.0),
        "heavy ball": _best("momentum", 100.0),
        "line search": _STEPS | {"method": "line-search", "kappa": 6.0, "start": "zig-zag"},
        "κ = 1000": _STEPS | {"kappa": 1000.0, "rate": 1.0},
        "κ = 1": _STEPS | {"kappa": 1.0, "rate": 1.0},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "path": Table(("x", "y"), _path_rows),
        "contours": Table(("x", "y"), _contour_rows),
        "steps": Table(("step", "series", "loss"), _step_rows),
        "errors": Table(("step", "series", "error"), _error_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(_tabulate)
    panels = (
        Panel(
            "path", "the plane, with contours of the loss", "path", "x", "y",
            backdrop="contours", rows=2,
        ),
        Panel(
            "line", "loss", "steps", "step", "loss",
            log=True, by="series", names=("measured", "theory"),
        ),
        Panel(
            "line", "error along each eigendirection", "errors", "step", "error",
            log=True, by="series", names=("steep", "flat", "steep, theory", "flat, theory"),
        ),
    )  # fmt: skip
