"""What an analysis found, of one moment or of a training, and the file that keeps it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from lca_widgets.curvature import KroneckerSpectrum, LayerSpectra, Spectrum
from lca_widgets.diagnosis import Finding, findings
from lca_widgets.records import LayerReport, Report, report_table

if TYPE_CHECKING:
    import pandas as pd

    from lca_widgets.charts import Figure

__all__ = ["Analysis", "History", "LayerAnalysis", "load"]

FORMAT = "lca_widgets"
VERSION = 1  # of the files; the docstring of `load` describes it


class _Results:
    """What every result offers besides its table."""

    def table(self) -> pd.DataFrame:
        raise NotImplementedError

    def to_csv(self, path: str | Path) -> None:
        """Write the table as comma-separated values (`pandas.DataFrame.to_csv`)."""
        with _replaced(path) as file:
            self.table().to_csv(file, index=False)

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as Parquet (`pandas.DataFrame.to_parquet`).

        Raises:
            ImportError: neither pyarrow nor fastparquet is installed.
        """
        with _replaced(path) as file:
            self.table().to_parquet(file, index=False)


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
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, is damaged, or was written by a newer version.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
            version = int(header["version"]) if header["format"] == FORMAT else 0
    except FileNotFoundError:
        raise
    except (
        KeyError, TypeError, ValueError, AttributeError, EOFError, OSError, zipfile.BadZipFile
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is no saved analysis, or is damaged: {error}") from error
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"{path} has format version {version}, this lca_widgets reads up to {VERSION}: "
            "update it to read the file"
        )
    try:
        reports = _reports(arrays)
        if header["kind"] == "history":
            return History(reports, header["skipped"])
        return _analysis(reports[0], header, arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _spectra_of(analysis: Analysis) -> Mapping[str, Spectrum]:
    found = {
        f"{part}/{k}": getattr(layer, part)
        for k, layer in enumerate(analysis.layers)
        for part in ("input", "grad", "input_centred", "grad_centred", "block")
    }
    found["network"] = analysis.network
    return {name: spectrum for name, spectrum in found.items() if spectrum is not None}


def _analysis(
    report: Report, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Analysis:
    spectra = {
        name: Spectrum(torch.from_numpy(arrays[f"spectrum/{name}"]), n, dimension)
        for name, (n, dimension) in header["sizes"].items()
    }
    layers = []
    for k, layer in enumerate(report.layers):
        groups = [arrays.get(f"groups/{side}/{k}") for side in "xg"]
        left, right = (None if g is None else torch.from_numpy(g) for g in groups)
        of_layer = LayerSpectra(
            layer.name,
            spectra[f"input/{k}"],
            spectra[f"grad/{k}"],
            None if left is None or right is None else (left, right),
            spectra.get(f"input_centred/{k}"),
            spectra.get(f"grad_centred/{k}"),
        )
        layers.append(LayerAnalysis(layer, of_layer, spectra.get(f"block/{k}")))
    return Analysis(layers, spectra.get("network"), header["skipped"], header["loss"])


def _columns(reports: Sequence[Report]) -> dict[str, np.ndarray]:
    """The table's columns; those of all reports that have a layer, and the steps of all."""
    rows = [(report.step, layer) for report in reports for layer in report.layers]
    columns = {
        f"table/{field.name}": np.array([getattr(layer, field.name) for _, layer in rows])
        for field in fields(LayerReport)
    }
    return columns | {"table/step": np.array([step for step, _ in rows], dtype=np.int64)}


def _reports(arrays: Mapping[str, np.ndarray]) -> list[Report]:
    names = [field.name for field in fields(LayerReport)]
    columns = [arrays[f"table/{name}"].tolist() for name in names]
    steps = arrays["table/step"].tolist()
    layers: dict[int, list[LayerReport]] = {step: [] for step in steps}
    for step, *values in zip(steps, *columns, strict=True):
        layers[step].append(LayerReport(**dict(zip(names, values, strict=True))))
    return [Report(step, tuple(of_step)) for step, of_step in layers.items()]


def _write(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **header})
    with _replaced(path) as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(text), **arrays)


@contextmanager
def _replaced(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the path's place once it is written in full."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder: there is no {path.parent}")
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
