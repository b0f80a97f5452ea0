"""The lab of curvature matrices: H, GGN, F and M of one small network while it trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.curvature_matrices import (
    MATRICES,
    CurvatureMeasurement,
    CurvatureSettings,
    MatrixRecord,
    curvature_matrices,
)
from lca_widgets.labs.controls import ACTIVATION, NORMALISATION, changed_settings, norm_names
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CurvatureMatrices", "block_table", "describe_matrices"]

SMALLEST_SHOWN = 1e-3  # of a matrix's largest entry: smaller ones, and zeros, are drawn alike
_MATRIX_COLUMNS = tuple(MATRICES)
_AT_START = {"norm": "none", "activation": "tanh", "samples": 128, "labels": "model"}


def describe_matrices(measurement: CurvatureMeasurement) -> str:
    """Say in a few sentences how far the four matrices, and their approximations, agree."""
    m, step = measurement, measurement.training.step
    if m.training.diverged:
        return f"The run diverged: the loss is not finite at step {step}. Lower the learning rate."
    ratios = _kronecker_ratios(m)
    if not ratios:
        return (
            f"At step {step} every block is zero: no gradient reaches a weight. The network is "
            "dead or saturated, or fits every sample. Lower the learning rate, or change the seed."
        )
    kappas = [
        layer.kappa50 / layer.kappa50_kronecker
        for layer in m.layers
        if math.isfinite(layer.kappa50) and math.isfinite(layer.kappa50_kronecker)
    ]
    blocks = f"Kronecker factors give {_range(ratios)} of a block's λ_max"
    if kappas:
        blocks += f", and its κ_50 is {_range(kappas)} times theirs."
    else:
        blocks += "; the blocks' κ_50 is infinite: too few samples."
    return (
        f"At step {step}, H differs from the GGN by {number(m.distance('hessian', 'ggn'))} times "
        f"the GGN's norm and has {m.negative_eigenvalues} negative eigenvalues; M differs from F "
        f"by {number(m.distance('empirical', 'fisher'))} times F's. "
        f"λ_max of the whole network, {number(m.lambda_max)}, lies between its largest block's, "
        f"{number(m.largest_block)}, and the blocks' sum, {number(m.sum_of_blocks)}; "
        f"{percent(m.off_block)} of its squared norm is off the blocks. {blocks}"
    )


def block_table(measurements: Iterable[Any]) -> pd.DataFrame:
    """Return a tidy table of `BlockRecord`'s fields, one row a layer and step.

    Args:
        measurements: What `curvature_matrices` or `block_comparison` yields.

    Returns:
        Columns ``step``, ``loss`` and the record's; then, of the whole network, ``whole``
        (its λ_max), ``sum_of_blocks``, ``off_block``.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {"step": m.training.step, "loss": m.training.loss}
            | asdict(layer)
            | {"whole": m.lambda_max, "sum_of_blocks": m.sum_of_blocks, "off_block": m.off_block}
            for m in measurements
            for layer in m.layers
        ]
    )


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _kronecker_ratios(m: CurvatureMeasurement) -> list[float]:
    """λ_max of each layer's Kronecker block over its exact one, where that is not zero."""
    exact = [layer for layer in m.layers if layer.lambda_max > 0]
    return [layer.lambda_max_kronecker / layer.lambda_max for layer in exact]


def _results(measurement: CurvatureMeasurement) -> dict[str, str]:
    ratios = _kronecker_ratios(measurement)
    return {
        "λ_max, Kronecker : exact": _range(ratios) if ratios else "–",
        "H − GGN": number(measurement.distance("hessian", "ggn")),
        "M − F": number(measurement.distance("empirical", "fisher")),
        "off the blocks, of ‖·‖²": percent(measurement.off_block),
    }


def _name_run(settings: CurvatureSettings) -> str:
    parts = [f"{settings.activation} {settings.width}"]
    parts += norm_names(settings.norm)
    parts += [f"n {settings.samples}", f"η {settings.learning_rate:.3g}"]
    parts += changed_settings(settings, "components", "classes", "depth", "labels", "seed")
    return ", ".join(parts)


def _step_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    for record in m.passed:
        yield record.step, record.loss


def _entry_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    matrices = [_relative(getattr(m, name)) for name in _MATRIX_COLUMNS]
    size = len(matrices[0])
    for row in range(size):
        for column in range(size):
            entries = (matrix[row][column] for matrix in matrices)
            yield m.training.step, row + 1, column + 1, *entries


def _relative(record: MatrixRecord) -> list[list[float]]:
    """The entries' sizes relative to the largest, none below what is shown."""
    sizes = record.tensor.abs()
    relative: list[list[float]] = (sizes / sizes.max()).clamp(min=SMALLEST_SHOWN).tolist()
    return relative


def _eigenvalue_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    series = (m.hessian.eigenvalues, m.ggn.eigenvalues, m.fisher.eigenvalues)
    for number_of_series, values in enumerate((*series, m.empirical.eigenvalues)):
        for index, value in enumerate(values, start=1):
            if value > 0:
                yield m.training.step, index, number_of_series, value
    for index, value in enumerate(m.hessian.eigenvalues, start=1):
        if value < 0:
            yield m.training.step, index, 4, -value


def _layer_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    for layer in m.layers:
        yield m.training.step, layer.layer, 0, layer.lambda_max, layer.kappa50
        kronecker = (layer.lambda_max_kronecker, layer.kappa50_kronecker)
        yield m.training.step, layer.layer, 1, *kronecker


def _error_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    for layer, error in zip(m.layers, m.kronecker_errors, strict=True):
        yield m.training.step, layer.layer, error


def _bound_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    for series, value in enumerate((m.sum_of_blocks, m.lambda_max, m.largest_block)):
        yield m.training.step, series, value


def _distance_rows(m: CurvatureMeasurement) -> Iterator[Sequence[float]]:
    yield m.training.step, 0, m.distance("hessian", "ggn")
    yield m.training.step, 1, m.distance("empirical", "fisher")
    yield m.training.step, 2, m.off_block


def _limits(
    settings: CurvatureSettings, first: CurvatureMeasurement
) -> dict[str, tuple[float, float]]:
    size = len(first.fisher.eigenvalues)
    entries = dict.fromkeys(_MATRIX_COLUMNS, (SMALLEST_SHOWN, 1.0))
    return entries | {
        "step": (0, settings.steps),
        "layer": (1, len(first.layers)),
        "index": (1, size),
    }


def _matrix_panel(name: str, title: str) -> Panel:
    return Panel(
        "matrix", title, "entries", "column", "row", name, "weight", "weight", log=True, rows=2
    )


class CurvatureMatrices(Lab):
    """Watch the Hessian, the GGN, the Fisher matrix and M of a small network while it trains.

    The matrices are drawn entry by entry, with their spectra, their distances, and each layer's
    exact block beside its Kronecker approximation. Settings: `CurvatureSettings`.

    Example:
        >>> start, *_ = CurvatureMatrices.run(steps=1)
        >>> start.negative_eigenvalues
        18
    """

    title = "Curvature matrices"
    settings_type = CurvatureSettings
    experiment = staticmethod(curvature_matrices)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_matrices)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws the initial weights."),)
    controls = (
        Slider(
            "steps", "steps", 0, 500, step=5, help="Updates; the matrices are those after the last."
        ),
        Slider("learning_rate", "learning rate", 0.01, 10.0, log=True),
        NORMALISATION,
        ACTIVATION,
        Slider("samples", "samples", 4, 430, help="Training samples, all in every step."),
        Choice(
            "labels",
            "labels of blocks",
            (Option("model", "the model's (F)"), Option("data", "the data's (M)")),
            help="Whose labels' gradients the blocks and their Kronecker factors are made of.",
        ),
        Slider("width", "width", 2, 6, help="Units of a hidden layer."),
        Slider("depth", "depth", 1, 5, help="Linear layers, the output layer included."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "at the start": _AT_START | {"steps": 0},
        "half-way": _AT_START | {"steps": 20, "learning_rate": 0.5},
        "when fitted": _AT_START | {"steps": 500, "learning_rate": 1.0},
        "with BN": _AT_START | {"norm": "batch-fixed", "steps": 20, "learning_rate": 0.5},
        "few samples, memorised": _AT_START
        | {"samples": 16, "steps": 200, "learning_rate": 1.0, "labels": "data"},
    }
    chart_columns = 3
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(("step", "loss"), _step_rows),
        "entries": Table(("step", "row", "column", *_MATRIX_COLUMNS), _entry_rows),
        "spectra": Table(("step", "index", "series", "eigenvalue"), _eigenvalue_rows),
        "layers": Table(("step", "layer", "series", "lambda_max", "kappa50"), _layer_rows),
        "errors": Table(("step", "layer", "error"), _error_rows),
        "bounds": Table(("step", "series", "lambda_max"), _bound_rows),
        "distances": Table(("step", "series", "distance"), _distance_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(block_table)
    panels = (
        _matrix_panel("hessian", "H, |entry| / largest"),
        _matrix_panel("ggn", "GGN"),
        _matrix_panel("fisher", "F, labels of the model"),
        _matrix_panel("empirical", "M, labels of the data"),
        _matrix_panel("kronecker", "Kronecker blocks"),
        Panel(
            "profile",
            "Spectra, |λ|",
            "spectra",
            "index",
            "eigenvalue",
            log=True,
            by="series",
            names=("H", "GGN", "F", "M", "H, λ < 0"),
            rows=2,
        ),
        Panel(
            "profile",
            "λ_max of each layer's block",
            "layers",
            "layer",
            "lambda_max",
            log=True,
            by="series",
            names=("exact", "Kronecker"),
        ),
        Panel(
            "profile",
            "κ_50 of each layer's block",
            "layers",
            "layer",
            "kappa50",
            log=True,
            by="series",
            names=("exact", "Kronecker"),
        ),
        Panel("profile", "Error of each Kronecker block", "errors", "layer", "error", log=True),
        Panel(
            "line",
            "λ_max between the bounds",
            "bounds",
            "step",
            "lambda_max",
            log=True,
            by="series",
            names=("sum of blocks", "whole", "largest block"),
        ),
        Panel(
            "line",
            "Relative distances, and the share off the blocks",
            "distances",
            "step",
            "distance",
            log=True,
            by="series",
            names=("H to GGN", "M to F", "off blocks, of ‖·‖²"),
        ),
        Panel("line", "loss", "steps", "step", "loss", log=True),
    )
