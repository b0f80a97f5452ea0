"""What passes between measuring and showing: frozen records of plain numbers, and tidy tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lca_widgets.curvature import LayerSpectra
from lca_widgets.training import StepRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LayerRecord", "Measurement", "layer_records", "layer_table", "step_table"]


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


def layer_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return a tidy table: ``step``, then the fields of `LayerRecord`; one row a layer and step."""
    import pandas as pd

    return pd.DataFrame(
        [{"step": m.training.step} | asdict(layer) for m in measurements for layer in m.layers],
        columns=["step", *(field.name for field in fields(LayerRecord))],
    )


def step_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return a tidy table of the fields of `StepRecord`, one row a step."""
    import pandas as pd

    return pd.DataFrame(
        [asdict(m.training) for m in measurements],
        columns=[field.name for field in fields(StepRecord)],
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
