"""What passes between measuring and showing: frozen records of plain numbers, and tidy tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lca_widgets.curvature import LayerMeasurement, LayerSpectra
from lca_widgets.training import StepRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LayerRecord",
    "LayerReport",
    "Measurement",
    "Report",
    "layer_records",
    "layer_reports",
    "layer_table",
    "report_table",
    "step_table",
]


@dataclass(frozen=True)
class LayerRecord:
    """One layer's curvature at one step; a row of the table.

    Attributes:
        layer: Position among the measured layers, 1 is nearest to the input.
        name: Qualified name in the model.
        lambda_max_x: λ_max(Σ_x), squared input units.
        lambda_max_g: λ_max(Σ_g), squared output-gradient units.
        lambda_max: λ_max(Σ_x ⊗ Σ_g), their product.
        kappa50_x: κ_50 of Σ_x; infinite past the rank.
        kappa50_g: κ_50 of Σ_g; infinite past the rank.
        rank_x: Rank of Σ_x.
        rank_g: Rank of Σ_g.
        d_in: Size of Σ_x.
        d_out: Size of Σ_g.
        n: Samples behind the moments.
        diverged: Σ_x or Σ_g was not finite; the values of that one are NaN.
    """

    layer: int
    name: str
    lambda_max_x: float
    lambda_max_g: float
    lambda_max: float
    kappa50_x: float
    kappa50_g: float
    rank_x: int
    rank_g: int
    d_in: int
    d_out: int
    n: int | None
    diverged: bool


@dataclass(frozen=True)
class LayerReport(LayerRecord):
    """One layer at one step, with its weight, its units and the centred moments beside the rest.

    Attributes:
        kind: The layer's class, ``"Linear"`` or ``"Conv2d"``, say.
        groups: Blocks on the diagonal of Σ_x and Σ_g, those of a grouped convolution's patches;
            ``d_in`` and ``d_out`` count all of them together.
        rows: Vectors behind Σ_x: samples times positions.
        grad_rows: Vectors behind Σ_g: samples times output positions, and times the labels of an
            expectation over them.
        kappa50: κ_50 of Σ_x ⊗ Σ_g.
        lambda_max_x_centred: λ_max of Σ_x − E[x] E[x]ᵀ.
        kappa50_x_centred: Its κ_50.
        lambda_max_g_centred: λ_max of Σ_g less the part of the mean gradient; NaN where there is no
            mean (an expectation over all labels).
        kappa50_g_centred: Its κ_50.
        weight_sigma: σ_max(W), the largest singular value of the weight as a matrix.
        weight_norm: ‖W‖, its Frobenius norm.
        grad_sigma: σ_max(∂L/∂W), L the mean loss; NaN for a weight that gets no gradient.
        domination: σ_max(∂L/∂W) / σ_max(W); the weight dominates where it is far below one.
        sensitivity: σ_max(W)·σ_max(∂L/∂W), which no rescaling of a normalised layer changes, in the
            loss's unit: turning W by a small part ε of itself changes the loss by up to ε times it.
        dying: Share of the units that the rectifier behind the layer sets to zero for every sample
            and position; NaN where none follows.
        full: Share of the units that it lets pass for every sample and position; NaN likewise.
        zero_inputs: Inputs that are zero in every row.
        constant_inputs: Inputs that hardly vary about a value that is not zero: by less than a
            thousandth of it, as far as float32 moments tell.
    """

    kind: str
    groups: int
    rows: int
    grad_rows: int
    kappa50: float
    lambda_max_x_centred: float
    kappa50_x_centred: float
    lambda_max_g_centred: float
    kappa50_g_centred: float
    weight_sigma: float
    weight_norm: float
    grad_sigma: float
    domination: float
    sensitivity: float
    dying: float
    full: float
    zero_inputs: int
    constant_inputs: int


@dataclass(frozen=True)
class Report:
    """One analysis of a model: every measured layer at one step.

    Attributes:
        step: Updates made before it; 0 for a model that was analysed once.
        layers: One entry a layer, in the order in which the model first called them.
    """

    step: int
    layers: tuple[LayerReport, ...]


@dataclass(frozen=True)
class Measurement:
    """One step of a training run, with every layer's curvature at it.

    Attributes:
        training: Step, loss and accuracy.
        layers: One record a layer, from the input to the output.
    """

    training: StepRecord
    layers: tuple[LayerRecord, ...]


def layer_records(spectra: Sequence[LayerSpectra]) -> tuple[LayerRecord, ...]:
    """Reduce spectra, in the order of the layers, to records of plain numbers."""
    return tuple(_layer_record(k, layer) for k, layer in enumerate(spectra, start=1))


def layer_reports(measurements: Sequence[LayerMeasurement]) -> tuple[LayerReport, ...]:
    """Reduce measurements, in the order of the layers, to records of plain numbers."""
    return tuple(_layer_report(k, layer) for k, layer in enumerate(measurements, start=1))


def layer_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return a tidy table: ``step``, then the fields of `LayerRecord`; one row a layer and step."""
    return _layer_rows(((m.training.step, m.layers) for m in measurements), LayerRecord)


def report_table(reports: Iterable[Report]) -> pd.DataFrame:
    """Return a tidy table: ``step``, then the fields of `LayerReport`; one row a layer and step."""
    return _layer_rows(((report.step, report.layers) for report in reports), LayerReport)


def step_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return a tidy table of the fields of `StepRecord`, one row a step."""
    import pandas as pd

    return pd.DataFrame(
        [asdict(m.training) for m in measurements],
        columns=[field.name for field in fields(StepRecord)],
    )


def _layer_rows(
    steps: Iterable[tuple[int, Sequence[LayerRecord]]], kind: type[LayerRecord]
) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [{"step": step} | asdict(layer) for step, layers in steps for layer in layers],
        columns=["step", *(field.name for field in fields(kind))],
    )


def _layer_record(position: int, layer: LayerSpectra) -> LayerRecord:
    return LayerRecord(
        layer=position,
        name=layer.name,
        lambda_max_x=layer.input.lambda_max,
        lambda_max_g=layer.grad.lambda_max,
        lambda_max=layer.kronecker.lambda_max,
        kappa50_x=layer.input.kappa(0.5),
        kappa50_g=layer.grad.kappa(0.5),
        rank_x=layer.input.rank,
        rank_g=layer.grad.rank,
        d_in=layer.input.dimension,
        d_out=layer.grad.dimension,
        n=layer.input.n,
        diverged=layer.input.diverged or layer.grad.diverged,
    )


def _layer_report(position: int, layer: LayerMeasurement) -> LayerReport:
    spectra, weight = layer.spectra, layer.weight
    x, g = spectra.input_centred, spectra.grad_centred
    record = _layer_record(position, spectra)
    units = None if record.diverged else layer.units
    return LayerReport(
        **asdict(record),
        kind=layer.kind,
        groups=1 if spectra.groups is None else len(spectra.groups[0]),
        rows=layer.rows,
        grad_rows=layer.grad_rows,
        kappa50=spectra.kronecker.kappa(0.5),
        lambda_max_x_centred=x.lambda_max if x else math.nan,
        kappa50_x_centred=x.kappa(0.5) if x else math.nan,
        lambda_max_g_centred=g.lambda_max if g else math.nan,
        kappa50_g_centred=g.kappa(0.5) if g else math.nan,
        weight_sigma=weight.sigma,
        weight_norm=weight.norm,
        grad_sigma=weight.grad_sigma,
        domination=weight.grad_sigma / weight.sigma if weight.sigma else math.nan,
        sensitivity=weight.grad_sigma * weight.sigma,
        dying=units.dying if units else math.nan,
        full=units.full if units else math.nan,
        zero_inputs=layer.zero_inputs,
        constant_inputs=layer.constant_inputs,
    )
