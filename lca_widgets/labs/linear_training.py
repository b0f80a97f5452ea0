"""The lab of linear models on real tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lca_widgets._format import number, percent
from lca_widgets.experiments.linear_training import (
    LinearMeasurement,
    LinearSettings,
    linear_training,
)
from lca_widgets.labs.quadratic import LEAST_ERROR, side
from lca_widgets.linear_models import kappa_above, step_size_limit
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel
from lca_widgets.widgets.state import changes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LinearTraining", "describe_linear_training"]

CUTOFFS = tuple(10 ** (k / 4) for k in range(-64, -7))  # 1e-16 to 1e-2
# A profile shows the latest step alone: of a long run not every one is sent.
PROFILED_STEPS = 100
# About the square of the least error. The closed form goes on to 1e-300, and would take the axis
# along.
LEAST_EXCESS = 1e-32


def describe_linear_training(measurement: LinearMeasurement) -> str:
    """Say in one to three sentences where the run stands, and what its curvature says."""
    record = measurement.training
    if record.diverged:
        return (
            f"The run diverged: after {record.step} steps the loss is more than a million times "
            f"its start. {_describe_step_size(measurement)}"
        )
    parts = [f"After {record.step} steps the loss is {number(measurement.excess)} above its"]
    parts.append("infimum 0, which no weights attain." if measurement.inputs.separable else
                 f"lowest value, {number(measurement.inputs.infimum)}.")  # fmt: skip
    if not math.isnan(record.accuracy):
        parts.append(f"{percent(record.accuracy)} are classified correctly.")
    parts.append(_describe_step_size(measurement))
    return " ".join(parts)


def _describe_step_size(measurement: LinearMeasurement) -> str:
    settings, inputs = measurement.settings, measurement.inputs
    if settings.method == "preconditioned":
        return "The preconditioned step sees λ = 1 in every direction: κ plays no part."
    now = measurement.lambda_max
    if settings.model == "least-squares":
        limit = step_size_limit(1.0, settings.beta)
        return (
            f"η = {settings.rate:.3g}/λ_max is {side(settings.rate, limit)} the limit "
            f"{limit:.3g}/λ_max; κ is "
            f"{number(inputs.kappa)} on {inputs.rank} of {len(inputs.eigenvalues)} directions."
        )
    start = 2 * (1 + settings.beta) / settings.rate  # the limit, in units of λ_max at the start
    share = now / measurement.limit * start
    return (
        f"λ_max of the Hessian is {share:.2g} times its start, {side(now, measurement.limit)} "
        "what this step size allows."
    )


def _results(measurement: LinearMeasurement) -> dict[str, str]:
    inputs = measurement.inputs
    return {
        "above the infimum": number(measurement.excess),
        "λ_max(H)": number(measurement.lambda_max),
        "κ(Σ_x)": number(inputs.kappa),
        "rank": f"{inputs.rank} of {len(inputs.eigenvalues)}",
    }


def _name_run(settings: LinearSettings) -> str:
    methods = {
        "gradient": f"η {settings.rate:.3g}/λ_max",
        "momentum": f"η {settings.rate:.3g}/λ_max, β {settings.momentum:.3g}",
        "preconditioned": f"preconditioned {settings.rate:.3g}",
    }
    parts = [f"{settings.data} {settings.preparation}", settings.model, methods[settings.method]]
    others = ("cutoff", "kappa", "seed") if settings.data == "gaussian" else ("cutoff",)
    parts += [
        f"{name} {number(value)}" for name, value in changes(settings).items() if name in others
    ]
    return ", ".join(parts)


def _step_rows(measurement: LinearMeasurement) -> Iterator[Sequence[float]]:
    step = measurement.training.step
    yield step, 0, measurement.excess
    if not math.isnan(measurement.predicted_excess):
        yield step, 1, max(measurement.predicted_excess, LEAST_EXCESS)


def _curvature_rows(measurement: LinearMeasurement) -> list[Sequence[float]]:
    step = measurement.training.step
    return [(step, 0, measurement.lambda_max), (step, 1, measurement.limit)]


def _spectrum_rows(measurement: LinearMeasurement) -> list[Sequence[float]]:
    # What is cut off counts as zero; as the rounding that it is it would stretch the axis to 1e-33.
    inputs = measurement.inputs
    cut = [value if k < inputs.rank else 0.0 for k, value in enumerate(inputs.eigenvalues)]
    hessian = cut if measurement.settings.model == "least-squares" else measurement.hessian
    return _profile_rows(measurement, (cut, hessian))


def _error_rows(measurement: LinearMeasurement) -> list[Sequence[float]]:
    lines = [
        [max(abs(error), LEAST_ERROR) for error in errors]
        for errors in (measurement.errors, measurement.predicted, measurement.inputs.start_errors)
    ]
    return _profile_rows(measurement, lines)


def _profile_rows(
    measurement: LinearMeasurement, lines: Sequence[Sequence[float]]
) -> list[Sequence[float]]:
    record, steps = measurement.training, measurement.settings.steps
    every = max(1, steps // PROFILED_STEPS)
    if record.step % every and record.step != steps and not record.diverged:
        return []
    return [
        (record.step, series, index, value)
        for series, values in enumerate(lines)
        for index, value in enumerate(values or [math.nan], start=1)
    ]


def _cutoff_rows(measurement: LinearMeasurement) -> list[Sequence[float]]:
    if measurement.training.step:
        return []
    return _cutoff_curve(measurement.inputs.eigenvalues)


@lru_cache(maxsize=4)
def _cutoff_curve(eigenvalues: tuple[float, ...]) -> list[Sequence[float]]:
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    return [(cutoff, *kappa_above(values, cutoff)) for cutoff in CUTOFFS]


def _limits(settings: LinearSettings, first: LinearMeasurement) -> dict[str, tuple[float, float]]:
    size = max(len(first.inputs.eigenvalues), len(first.hessian))
    return {"step": (0, settings.steps), "index": (1, size)}


def _tabulate(measurements: Sequence[LinearMeasurement]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "step": m.training.step,
            "loss": m.training.loss,
            "accuracy": m.training.accuracy,
            "excess": m.excess,
            "predicted_excess": m.predicted_excess,
            "lambda_max": m.lambda_max,
            "limit": m.limit,
            "kappa_x": m.inputs.kappa,
            "rank_x": m.inputs.rank,
            "n": m.inputs.samples,
        }
        for m in measurements
    )


_SQUARES = {
    "preparation": "standardised",
    "model": "least-squares",
    "method": "gradient",
    "rate": 1.9,
    "cutoff": 1e-12,
    "steps": 200,
}
_WINE, _DIGITS, _TUMOURS = (
    _SQUARES | {"data": name} for name in ("wine", "digits", "breast-cancer")
)


class LinearTraining(Lab):
    """Watch what preparing the inputs does to a linear model's training, on real tables.

    The loss above its infimum, the spectrum of Σ_x and of the Hessian, the error along every
    eigendirection beside what theory says, and κ against the rank cut-off. Settings:
    `LinearSettings`.

    Example:
        >>> start, after = LinearTraining.run(preparation="whitened", rate=1.0, steps=1)
        >>> start.inputs.rank, after.training.accuracy > 0.99
        (14, True)
    """

    title = "Linear models on real tables"
    settings_type = LinearSettings
    experiment = staticmethod(linear_training)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_linear_training)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the gaussian data."),)
    controls = (
        Choice(
            "data",
            "data",
            (
                Option("diabetes", "diabetes (a number)"),
                Option("wine", "wine (3 classes)"),
                Option("breast-cancer", "breast cancer (2)"),
                Option("digits", "digits (10 classes)"),
                Option("gaussian", "gaussian, κ as below"),
            ),
        ),
        Choice(
            "preparation",
            "preparation",
            (
                Option("raw", "raw"),
                Option("centred", "centred"),
                Option("standardised", "standardised"),
                Option("whitened", "whitened"),
            ),
            help="Of the features; a constant input 1 is added to them.",
        ),
        Choice(
            "model",
            "model",
            (
                Option("least-squares", "least squares"),
                Option("logistic", "logistic"),
                Option("softmax", "softmax"),
            ),
            help="Logistic is odd against even classes; it and softmax need classes.",
        ),
        Choice(
            "method",
            "method",
            (
                Option("gradient", "gradient descent"),
                Option("momentum", "heavy ball"),
                Option("preconditioned", "preconditioned"),
            ),
        ),
        Slider(
            "rate",
            "step size η·λ_max",
            0.1,
            4.0,
            step=0.01,
            help="λ_max of the Hessian at the start. The preconditioned step's best is 1.",
        ),
        Slider("momentum", "momentum β", 0.0, 0.99, step=0.01, help="Of the heavy ball only."),
        Slider("steps", "steps", 0, 1000, step=10),
        Slider(
            "cutoff",
            "rank cut-off",
            1e-16,
            1e-2,
            log=True,
            step=0.25,
            format="{:.1e}",
            help="Eigenvalues up to this share of λ_max count as zeros.",
        ),
        Slider("kappa", "κ", 1.0, 1e4, log=True, help="Of the gaussian data only."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wine, raw": _WINE | {"preparation": "raw"},
        "wine, standardised": _WINE,
        "wine, whitened": _WINE | {"preparation": "whitened", "rate": 1.0},
        "above the limit": _SQUARES | {"data": "diabetes", "rate": 2.02, "steps": 500},
        "momentum": _DIGITS | {"method": "momentum", "momentum": 0.9},
        "preconditioned": _DIGITS | {"method": "preconditioned", "rate": 1.0, "steps": 10},
        "κ by the cut-off": _TUMOURS | {"preparation": "raw"},
        "logistic": _TUMOURS | {"model": "logistic"},
        "softmax, unsafe rate": _WINE | {"preparation": "raw", "model": "softmax", "steps": 40},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "series", "excess"), _step_rows),
        "curvature": Table(("step", "series", "lambda_max"), _curvature_rows),
        "spectrum": Table(("step", "series", "index", "eigenvalue"), _spectrum_rows),
        "errors": Table(("step", "series", "index", "error"), _error_rows),
        "cutoffs": Table(("cutoff", "kappa", "rank"), _cutoff_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(_tabulate)
    panels = (
        Panel(
            "line", "loss above its infimum", "steps", "step", "excess",
            log=True, by="series", names=("measured", "predicted"),
        ),
        Panel(
            "line", "λ_max of the Hessian", "curvature", "step", "lambda_max",
            log=True, by="series", names=("now", "limit for this η"),
        ),
        Panel(
            "profile", "eigenvalues", "spectrum", "index", "eigenvalue",
            log=True, by="series", names=("Σ_x", "Hessian now"),
        ),
        Panel(
            "profile", "error along eigenvectors", "errors", "index", "error",
            y_label="error; 1e-17: rounding", log=True, by="series",
            names=("measured", "predicted", "start"),
        ),
        Panel(
            "line", "κ(Σ_x) against the rank cut-off", "cutoffs", "cutoff", "kappa",
            x_label="cut-off", log=True, x_log=True,
        ),
        Panel(
            "line", "rank of Σ_x against the cut-off", "cutoffs", "cutoff", "rank",
            x_label="cut-off", x_log=True,
        ),
    )  # fmt: skip
