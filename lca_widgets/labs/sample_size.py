"""The lab of sample sizes: how many samples κ_p of a layer's Σ_x needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number
from lca_widgets.experiments.sample_size import (
    SMALLEST,
    SampleSizeMeasurement,
    SampleSizeSettings,
    sample_size,
)
from lca_widgets.labs.controls import ACTIVATION, NORMALISATION, changed_settings, norm_names
from lca_widgets.widgets.control_panel import Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SampleSize", "describe_sample_size", "sample_size_table"]

RULE = 8  # samples per dimension
FEWEST = 2  # samples per dimension below which κ_p has no interval worth drawing


def describe_sample_size(measurement: SampleSizeMeasurement) -> str:
    """Say in one or two sentences whether so many samples are enough."""
    m = measurement
    rule = RULE * m.dimension
    sentence = f"{m.n} samples for d = {m.dimension}: "
    if math.isinf(m.kappa_all):
        return sentence + f"κ_p is infinite even with all {m.n_all} samples: it is past the rank."
    if math.isinf(m.kappa.estimate):
        return (
            sentence + f"κ_p is infinite, because Σ_x has rank {m.rank} only. "
            f"All {m.n_all} samples give {number(m.kappa_all)}."
        )
    if m.n == m.n_all:
        against = "from all samples"
    else:
        against = f"{m.overstatement:.2f} times that of all {m.n_all}"
    if _has_interval(m):
        interval = f"its interval is {number(m.kappa.low)} to {number(m.kappa.high)}"
    else:
        interval = f"fewer than {FEWEST}·d samples give it no interval"
    enough = "at least" if m.n >= rule else "fewer than"
    return (
        sentence + f"κ_p is {number(m.kappa.estimate)}, {against}; {interval}. λ_max is "
        f"{m.lambda_max.estimate / m.lambda_max_all:.2f} times that of all. "
        f"{m.n} is {enough} 8·d = {rule}."
    )


def sample_size_table(measurements: Iterable[SampleSizeMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row a sample size."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "n": m.n,
                "d": m.dimension,
                "rank": m.rank,
                "kappa": m.kappa.estimate,
                "kappa_low": m.kappa.low,
                "kappa_high": m.kappa.high,
                "kappa_all": m.kappa_all,
                "lambda_max": m.lambda_max.estimate,
                "lambda_max_low": m.lambda_max.low,
                "lambda_max_high": m.lambda_max.high,
                "lambda_max_all": m.lambda_max_all,
            }
            for m in measurements
        ]
    )


def _has_interval(m: SampleSizeMeasurement) -> bool:
    """Whether resampling says anything of κ_p: a bias as large as the value cannot be taken off."""
    return math.isfinite(m.kappa.estimate) and m.n >= FEWEST * m.dimension


def _results(m: SampleSizeMeasurement) -> dict[str, str]:
    return {
        "n : d": number(m.n / m.dimension),
        "κ_p": number(m.kappa.estimate),
        "κ_p : all samples'": number(m.overstatement),
        "λ_max : all samples'": number(m.lambda_max.estimate / m.lambda_max_all),
    }


def _name_run(settings: SampleSizeSettings) -> str:
    parts = [f"layer {settings.layer}", f"p {settings.p:.3g}", f"n {settings.samples}"]
    parts += norm_names(settings.norm)
    parts += changed_settings(settings, "depth", "width", "activation", "seed")
    return ", ".join(parts)


def _status(settings: SampleSizeSettings, measurement: SampleSizeMeasurement) -> str:
    return f"{measurement.n} of {settings.samples} samples"


def _kappa_rows(m: SampleSizeMeasurement) -> Iterator[Sequence[float]]:
    band = (m.kappa.low, m.kappa.high) if _has_interval(m) else (math.nan, math.nan)
    yield m.n, 0, m.kappa.estimate, *band
    yield m.n, 1, m.kappa_all, math.nan, math.nan


def _largest_rows(m: SampleSizeMeasurement) -> Iterator[Sequence[float]]:
    yield m.n, 0, m.lambda_max.estimate, m.lambda_max.low, m.lambda_max.high
    yield m.n, 1, m.lambda_max_all, math.nan, math.nan


def _spectrum_rows(m: SampleSizeMeasurement) -> Iterator[Sequence[float]]:
    for series, values in enumerate((m.eigenvalues, m.eigenvalues_all)):
        for index, value in enumerate(values, start=1):
            yield m.training.step, index, series, value


def _error_rows(m: SampleSizeMeasurement) -> Iterator[Sequence[float]]:
    yield m.n / m.dimension, 0, m.overstatement
    yield m.n / m.dimension, 1, m.lambda_max.estimate / m.lambda_max_all


def _limits(
    settings: SampleSizeSettings, first: SampleSizeMeasurement
) -> dict[str, tuple[float, float]]:
    return {
        "n": (SMALLEST, settings.samples),
        "samples_per_dimension": (
            SMALLEST / first.dimension,
            settings.samples / first.dimension,
        ),
        "index": (1, first.dimension),
    }


def _with_interval(quantity: str, table: str, column: str) -> Panel:
    """An estimate against the number of samples, its interval, and the value of all samples."""
    return Panel(
        "line",
        f"{quantity} and its 90 % interval",
        table,
        "n",
        column,
        x_label="samples n",
        log=True,
        x_log=True,
        by="series",
        names=("n samples", "all samples"),
        low="low",
        high="high",
    )


class SampleSize(Lab):
    """Watch κ_p and λ_max of a layer's Σ_x settle as samples are added, with their intervals.

    Settings: `SampleSizeSettings`.

    Example:
        >>> few, *_ = SampleSize.run(layer=3, steps=2)
        >>> few.n, few.rank, few.kappa.estimate
        (16, 16, inf)
    """

    title = "How many samples?"
    settings_type = SampleSizeSettings
    experiment = staticmethod(sample_size)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_sample_size)
    results = staticmethod(_results)
    status = staticmethod(_status)
    header = (Slider("seed", "seed", 0, 20, help="Draws the weights and the samples."),)
    controls = (
        Slider("samples", "largest sample n", SMALLEST, 1437, help="The last point of the curves."),
        Slider("layer", "layer", 1, 4, help="Whose inputs: 1 are the images, d = 64."),
        Slider("p", "p of κ_p", 0.1, 1.0, help="The eigenvalue number ⌈p·d⌉ is the denominator."),
        Slider("width", "width d", 8, 128, step=8, help="Units of a hidden layer."),
        NORMALISATION,
        ACTIVATION,
        Slider("steps", "sample sizes", 0, 60, help="Points on the curves after the first."),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hidden layer, κ_80": {"layer": 3, "p": 0.8, "samples": 1437, "width": 64, "norm": "none"},
        "hidden layer, κ_50": {"layer": 3, "p": 0.5, "samples": 1437, "width": 64, "norm": "none"},
        "images, κ_80": {"layer": 1, "p": 0.8, "samples": 1437},
        "n = d": {"layer": 3, "p": 0.8, "samples": 64, "width": 64, "norm": "none"},
        "n = 8·d": {"layer": 3, "p": 0.8, "samples": 512, "width": 64, "norm": "none"},
        "narrow layer": {"layer": 3, "p": 0.8, "samples": 1437, "width": 16, "norm": "none"},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "kappa": Table(("n", "series", "kappa", "low", "high"), _kappa_rows),
        "largest": Table(("n", "series", "lambda_max", "low", "high"), _largest_rows),
        "spectra": Table(("step", "index", "series", "eigenvalue"), _spectrum_rows),
        "errors": Table(("samples_per_dimension", "series", "ratio"), _error_rows),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(sample_size_table)
    panels = (
        _with_interval("κ_p(Σ_x)", "kappa", "kappa"),
        _with_interval("λ_max(Σ_x)", "largest", "lambda_max"),
        Panel(
            "line",
            "Error: n samples' : all samples'",
            "errors",
            "samples_per_dimension",
            "ratio",
            x_label="samples per dimension, n : d",
            log=True,
            x_log=True,
            by="series",
            names=("κ_p", "λ_max"),
        ),
        Panel(
            "profile",
            "Spectrum of Σ_x",
            "spectra",
            "index",
            "eigenvalue",
            log=True,
            by="series",
            names=("n samples", "all samples"),
        ),
    )
