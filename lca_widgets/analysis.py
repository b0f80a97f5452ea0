"""What an analysis found, of one moment or of a training, and the file that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lca_widgets.curvature import KroneckerSpectrum, LayerSpectra, Spectrum
from lca_widgets.diagnosis import Finding, findings
from lca_widgets.records import LayerReport, Report, report_table

if TYPE_CHECKING:
    import pandas as pd

    from lca_widgets.charts import Figure

__all__ = ["Analysis", "History", "LayerAnalysis", "load", "replaced"]

FORMAT = "lca_widgets"
VERSION = 1  # of the files; the docstring of `load` describes it

# How a column is stored, by the type of its field.
COLUMN_TYPES: dict[str, type[np.generic]] = {
    "bool": np.bool_,
    "float": np.float64,
    "int": np.int64,
    "int | None": np.int64,
    "str": np.str_,
}


class _Results:
    """What every result offers besides its table."""

    def table(self) -> pd.DataFrame:
        raise NotImplementedError

    def to_csv(self, path: str | Path) -> None:
        """Write the table as comma-separated values, compressed for ``t.csv.gz`` and the like.

        `pandas.DataFrame.to_csv` does it.
        """
        with replaced(path) as draft:
            self.table().to_csv(draft, index=False)

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as Parquet (`pandas.DataFrame.to_parquet`).

        Raises:
            ImportError: neither pyarrow nor fastparquet is installed.
        """
        with replaced(path) as draft:
            self.table().to_parquet(draft, index=False)


@dataclass(frozen=True, eq=False)
class LayerAnalysis:
    """One layer of an `Analysis`.

    Attributes:
        report: All of its numbers.
        spectra: Spectra of its two factors.
        block: Spectrum of its exact block, where ``exact=True`` was asked for.
    """

    report: LayerReport
    spectra: LayerSpectra
    block: Spectrum | None = None

    @property
    def name(self) -> str:
        """The layer's qualified name in the model."""
        return self.report.name

    @property
    def kind(self) -> str:
        """The layer's class."""
        return self.report.kind

    @property
    def input(self) -> Spectrum:
        """Spectrum of Σ_x."""
        return self.spectra.input

    @property
    def grad(self) -> Spectrum:
        """Spectrum of Σ_g."""
        return self.spectra.grad

    @property
    def kronecker(self) -> KroneckerSpectrum:
        """Spectrum of Σ_x ⊗ Σ_g."""
        return self.spectra.kronecker

    @property
    def input_centred(self) -> Spectrum | None:
        """Spectrum of the centred Σ_x."""
        return self.spectra.input_centred

    @property
    def grad_centred(self) -> Spectrum | None:
        """Spectrum of the centred Σ_g; ``None`` for an expectation over all labels."""
        return self.spectra.grad_centred

    @property
    def weight_sigma(self) -> float:
        """σ_max(W)."""
        return self.report.weight_sigma

    @property
    def grad_sigma(self) -> float:
        """σ_max(∂L/∂W); NaN for a weight that gets no gradient."""
        return self.report.grad_sigma

    @property
    def domination(self) -> float:
        """σ_max(∂L/∂W) / σ_max(W)."""
        return self.report.domination

    @property
    def sensitivity(self) -> float:
        """σ_max(W)·σ_max(∂L/∂W)."""
        return self.report.sensitivity

    @property
    def dying(self) -> float:
        """Share of the units that the rectifier behind the layer never lets through."""
        return self.report.dying

    @property
    def full(self) -> float:
        """Share of the units that it always lets through."""
        return self.report.full


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(_Results):
    """What `lca_widgets.analyze` found.

    Attributes:
        layers: One entry a measured layer, in the order in which the model first called them.
        network: Spectrum of the exact second moment of all layers' weights together, where
            ``exact=True`` was asked for.
        skipped: Name and reason of every module with parameters that was not measured.
        loss: The loss, averaged over the samples.
    """

    layers: list[LayerAnalysis]
    network: Spectrum | None
    skipped: dict[str, str]
    loss: float

    @property
    def report(self) -> Report:
        """The numbers of all layers."""
        return Report(0, tuple(layer.report for layer in self.layers))

    def table(self) -> pd.DataFrame:
        """Return the fields of `LayerReport`, one row a layer."""
        return report_table([self.report]).drop(columns="step")

    def chart(self) -> Figure:
        """Draw the table."""
        from lca_widgets.charts import analysis_figure

        return analysis_figure(self.table())

    def findings(self) -> list[Finding]:
        """Return what is wrong, or worth knowing, and what to try."""
        return findings([self.report])

    def save(self, path: str | Path) -> None:
        """Write everything to a file that `load` reads; an existing one is replaced at the end."""
        spectra = dict(_spectra_of(self))
        arrays = _columns([self.report])
        arrays |= {f"spectrum/{name}": s.eigenvalues.numpy() for name, s in spectra.items()}
        for k, layer in enumerate(self.layers):
            for side, values in zip("xg", layer.spectra.groups or (), strict=False):
                arrays[f"groups/{side}/{k}"] = values.numpy()
        sizes = {name: [s.n, s.dimension] for name, s in spectra.items()}
        header = {"kind": "analysis", "loss": self.loss, "skipped": self.skipped, "sizes": sizes}
        _write(path, header, arrays)

    def __repr__(self) -> str:
        """Say how much there is."""
        return f"Analysis({len(self.layers)} layers, {len(self.skipped)} modules not measured)"


class History(_Results):
    """What `lca_widgets.watch` recorded of a training.

    Args:
        reports: One a measured step, in order.
        skipped: Name and reason of every module with parameters that was not measured.
    """

    def __init__(self, reports: Sequence[Report] = (), skipped: Mapping[str, str] | None = None):
        self._reports = list(reports)
        self.skipped = dict(skipped or {})

    @property
    def reports(self) -> list[Report]:
        """One report a measured step, in order."""
        return self._reports

    def table(self) -> pd.DataFrame:
        """Return ``step`` and the fields of `LayerReport`, one row a layer and measured step."""
        return report_table(self.reports)

    def chart(self) -> Figure:
        """Draw the table: layers by steps."""
        from lca_widgets.charts import history_figure

        return history_figure(self.table())

    def findings(self) -> list[Finding]:
        """Return what is wrong at the last step, or went wrong on the way, and what to try."""
        return findings(self.reports)

    def save(self, path: str | Path) -> None:
        """Write everything to a file that `load` reads; an existing one is replaced at the end."""
        _write(path, {"kind": "history", "skipped": self.skipped}, _columns(self.reports))

    def __repr__(self) -> str:
        """Say how much there is."""
        layers = max((len(report.layers) for report in self.reports), default=0)
        return f"{type(self).__name__}({len(self.reports)} measured steps, {layers} layers)"


def load(path: str | Path) -> Analysis | History:
    """Read back what `Analysis.save` or `History.save` wrote.

    The file is a zip archive of NumPy arrays (``numpy.load(path, allow_pickle=False)`` reads it
    too), and holds nothing that could run::

        header                text, JSON: "format" and "version"; "kind", "analysis" or "history";
                              "skipped"; of an analysis "loss", and "sizes": [n, d] of each spectrum
        table/<column>        one array a column of the table, one row a layer and step
        spectrum/<part>/<k>   eigenvalues of layer k (from 0): input, grad, input_centred,
                              grad_centred, block; and spectrum/network
        groups/x/<k>, …/g/<k> those of a grouped convolution, group by group

    Raises:
        OSError: there is no such file (FileNotFoundError), or it cannot be opened.
        ValueError: it is not such a file, is damaged, or was written by a newer version.
    """
    path = Path(path)
    with path.open("rb") as stream:
        try:
            header, arrays = _contents(stream)
            version = int(header["version"])
            if version <= VERSION:
                return _results(header, arrays)
        except Exception as error:  # zipfile, its decompressors, NumPy and json raise many kinds
            raise ValueError(f"{path} is no saved analysis, or is damaged: {error!r}") from error
    raise ValueError(
        f"{path} has format version {version}, this lca_widgets reads up to {VERSION}: update it "
        "to read the file"
    )


def _contents(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays.pop("header")))
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    return header, arrays


def _results(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Analysis | History:
    reports, skipped = _reports(arrays), dict(header["skipped"])
    if header["kind"] == "history":
        return History(reports, skipped)
    if header["kind"] != "analysis":
        raise ValueError(f"its kind is {header['kind']!r}")
    spectra = {
        name: Spectrum(torch.from_numpy(arrays[f"spectrum/{name}"]), n, dimension)
        for name, (n, dimension) in header["sizes"].items()
    }
    [report] = reports or [Report(0, ())]
    layers = [
        LayerAnalysis(layer, _layer_spectra(layer, k, spectra, arrays), spectra.get(f"block/{k}"))
        for k, layer in enumerate(report.layers)
    ]
    return Analysis(layers, spectra.get("network"), skipped, float(header["loss"]))


def _layer_spectra(
    layer: LayerReport, k: int, spectra: Mapping[str, Spectrum], arrays: Mapping[str, np.ndarray]
) -> LayerSpectra:
    groups = None
    if layer.groups > 1:
        left, right = (torch.from_numpy(arrays[f"groups/{side}/{k}"]) for side in "xg")
        groups = left, right
    return LayerSpectra(
        layer.name,
        spectra[f"input/{k}"],
        spectra[f"grad/{k}"],
        groups,
        spectra.get(f"input_centred/{k}"),
        spectra.get(f"grad_centred/{k}"),
    )


def _spectra_of(analysis: Analysis) -> Mapping[str, Spectrum]:
    found = {
        f"{part}/{k}": getattr(layer, part)
        for k, layer in enumerate(analysis.layers)
        for part in ("input", "grad", "input_centred", "grad_centred", "block")
    }
    found["network"] = analysis.network
    return {name: spectrum for name, spectrum in found.items() if spectrum is not None}


def _columns(reports: Sequence[Report]) -> dict[str, np.ndarray]:
    """The table's columns; those of all reports that have a layer, and the steps of all."""
    rows = [(report.step, layer) for report in reports for layer in report.layers]
    columns = {
        f"table/{name}": np.array([getattr(layer, name) for _, layer in rows], dtype)
        for name, dtype in _column_types().items()
    }
    return columns | {"table/step": np.array([step for step, _ in rows], np.int64)}


def _reports(arrays: Mapping[str, np.ndarray]) -> list[Report]:
    types: dict[str, type[np.generic]] = {"step": np.int64, **_column_types()}
    columns = [_column(name, dtype, arrays) for name, dtype in types.items()]
    layers: dict[int, list[LayerReport]] = {}
    for step, *values in zip(*columns, strict=True):
        report = LayerReport(**dict(zip(_column_types(), values, strict=True)))
        layers.setdefault(step, []).append(report)
    return [Report(step, tuple(of_step)) for step, of_step in layers.items()]


def _column(name: str, dtype: type[np.generic], arrays: Mapping[str, np.ndarray]) -> list[Any]:
    column = arrays[f"table/{name}"]
    if column.ndim != 1 or not np.issubdtype(column.dtype, dtype):
        raise ValueError(f"table/{name} is {column.dtype} of shape {column.shape}")
    return column.tolist()


def _column_types() -> dict[str, type[np.generic]]:
    # Annotations are not evaluated in the records' module: their types are text.
    return {field.name: COLUMN_TYPES[cast("str", field.type)] for field in fields(LayerReport)}


def _write(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **header})
    # Given a path, NumPy would add .npz to it.
    with replaced(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(text), **arrays)


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Hand out a path beside another, whose place the file takes once all is written.

    It ends as the other does, for what goes by a file's ending. On an error the other file stays.

    Raises:
        FileNotFoundError: the path's folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder: there is no {path.parent}")
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
