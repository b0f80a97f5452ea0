"""What came out of CIFAR runs: a table of settings, each over its seeds, and curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lca_widgets._format import UNKNOWN, number
from lca_widgets.experiments.cifar.folder import ITERATIONS, MARK, TESTS
from lca_widgets.experiments.cifar.settings import CifarSettings

if TYPE_CHECKING:
    from lca_widgets.charts import Figure

__all__ = ["EARLY", "Run", "as_html", "as_markdown", "curves", "read_run", "read_runs", "summary"]

EARLY = 500  # iterations: where the last layer's input grows without a final normalisation
POINTS = 300  # of a curve

PANELS = {
    "loss": "Loss",
    "lambda_max_x": "λ_max(Σ_x) of the classifier's input",
    "lambda_max_weight_grad": "λ_max of its weight gradient's second moment",
    "weight_norm": "‖W‖ of the classifier",
}
NUMBERS = {
    "lambda_max_x_early": f"λ_max(Σ_x), largest of {EARLY}",
    "final_loss": "Final loss",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A run's logs.

    Attributes:
        path: Its folder.
        facts: What was run: the settings, the data and the number of processes.
        iterations: A row an iteration.
        tests: A row a test.
    """

    path: Path
    facts: dict[str, Any]
    iterations: pd.DataFrame
    tests: pd.DataFrame

    @property
    def label(self) -> str:
        """The settings but the seed, as in a folder's name, then what else is out of the usual."""
        names = [field.name for field in fields(CifarSettings) if field.name in self.facts]
        settings = CifarSettings(
            **{name: self.facts[name] for name in names}
            | {"milestones": tuple(self.facts["milestones"])}
        )
        words = [settings.name.replace(f"-seed{settings.seed}", "")]
        if self.facts["data"] != "CIFAR-10":
            words.append(self.facts["data"])
        if not self.published:
            words.append(f"{self.facts['images'][0]} own images")
        if self.facts["processes"] > 1:
            words.append(f"{self.facts['processes']} processes")
        return ", ".join(words)

    @property
    def published(self) -> bool:
        """Whether its images were the published ones."""
        return bool(self.facts["published"])

    @property
    def diverged(self) -> bool:
        """Whether it ended with a loss that is no number."""
        return not math.isfinite(self.iterations["loss"].iloc[-1])

    @property
    def test_error(self) -> float:
        """The last test error, in per cent; NaN without one, or if it diverged."""
        return math.nan if self.diverged or self.tests.empty else self.tests["test_error"].iloc[-1]

    @property
    def final_loss(self) -> float:
        """Mean of the losses of the last epoch; NaN if it diverged."""
        epoch = self.iterations["epoch"]
        return float(self.iterations["loss"][epoch == epoch.iloc[-1]].mean(skipna=False))

    @property
    def lambda_max_x_early(self) -> float:
        """The largest λ_max(Σ_x) of the classifier in the first `EARLY` iterations."""
        return float(self.iterations["lambda_max_x"][self.iterations["iteration"] < EARLY].max())


def read_run(path: Path) -> Run | None:
    """Read a run's logs; ``None`` if it has no iteration yet.

    Raises:
        ValueError: the logs are no such logs.
        OSError: they cannot be read.
    """
    log = path / ITERATIONS
    with log.open(encoding="utf-8") as file:
        first = file.readline()
    if not first.startswith(MARK):
        raise ValueError(f"{log} is no log of a CIFAR run")
    iterations, tests = (pd.read_csv(path / name, comment="#") for name in (ITERATIONS, TESTS))
    if iterations.empty:
        return None
    return Run(path, json.loads(first.removeprefix(MARK)), iterations, tests)


def read_runs(folder: Path) -> list[Run]:
    """Read the runs in a folder.

    Raises:
        ValueError: there are none, or the logs of one are no such logs.
        OSError: they cannot be read.
    """
    paths = sorted(log.parent for log in folder.glob(f"*/{ITERATIONS}"))
    runs = [run for run in map(read_run, paths) if run is not None]
    if not runs:
        raise ValueError(f"there is no run in {folder}")
    return runs


def summary(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each settings, over its seeds.

    A run that diverged has no test error and no final loss, and is left out of their means; the
    largest λ_max(Σ_x) is that of all. The standard deviation is the sample's (n − 1), NaN for one.
    """
    rows = []
    for label, of_label in _by_label(runs).items():
        errors = pd.Series([run.test_error for run in of_label], dtype=float)
        made = [len(run.iterations) for run in of_label]
        rows.append(
            {
                "settings": label,
                "runs": len(of_label),
                "diverged": sum(run.diverged for run in of_label),
                "iterations_least": min(made),
                "iterations_most": max(made),
                "test_error": errors.mean(),
                "test_error_std": errors.std(ddof=1),
                "tested": int(errors.notna().sum()),
                "final_loss": pd.Series([run.final_loss for run in of_label]).mean(),
                "lambda_max_x_early": max(run.lambda_max_x_early for run in of_label),
                "published": of_label[0].published,
            }
        )
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """Write a `summary` as a table in Markdown, with what has to be known about it below."""
    cells = _cells(table)
    rule = ["---", *["---:"] * (len(cells.columns) - 1)]
    rows: list[list[str]] = [cells.columns.tolist(), rule, *cells.to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *_notes(table)])


def curves(runs: Sequence[Run]) -> Figure:
    """Draw loss, λ_max(Σ_x), λ_max of the weight gradient's second moment and ‖W‖ by iteration.

    A line is the median over the seeds, the band behind it reaches from the least to the largest.
    Both axes are logarithmic, and iterations count from 1: what happens in the first hundreds
    shows beside the tens of thousands.
    """
    from lca_widgets.charts import curve, figure  # Altair loads for seconds

    table = pd.concat(
        [_thinned(label, of_label) for label, of_label in _by_label(runs).items()],
        ignore_index=True,
    )
    return figure(
        *(
            curve(
                table,
                column,
                x="iteration",
                by="settings",
                low=f"{column}_low",
                high=f"{column}_high",
                title=title,
                log=True,
                x_log=True,
            )
            for column, title in PANELS.items()
        )
    )


def as_html(runs: Sequence[Run]) -> str:
    """Return a page with the table and the curves that needs nothing else."""
    from lca_widgets.cli.page import STYLE

    table = summary(runs)
    rows = _cells(table).to_html(index=False, border=0)
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(table))
    drawn = curves(runs)
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>CIFAR runs</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>CIFAR runs</h1>\n{rows}\n{notes}\n<figure>{drawn.svg()}</figure>\n"
        f"<details><summary>The curves in words</summary><pre>{escape(repr(drawn))}</pre></details>"
        "\n</main>\n</body>\n</html>\n"
    )


def _by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is read."""

    def span(row: Any) -> str:
        least, most = row.iterations_least, row.iterations_most
        return str(most) if least == most else f"{least}–{most}"

    def error(row: Any) -> str:
        if math.isnan(row.test_error):
            return UNKNOWN
        return f"{row.test_error:.2f} ± " + (
            f"{row.test_error_std:.2f}" if row.tested > 1 else UNKNOWN
        )

    rows = list(table.itertuples())
    return pd.DataFrame(
        {
            "Settings": table["settings"],
            "Runs": table["runs"].map(str),
            "Diverged": table["diverged"].map(str),
            "Iterations": [span(row) for row in rows],
            "Test error, %": [error(row) for row in rows],
            **{heading: table[column].map(number) for column, heading in NUMBERS.items()},
        }
    )


def _notes(table: pd.DataFrame) -> list[str]:
    """What the figures are, and whether they are of the published images."""
    meaning = (
        "Test error: of the last test, mean ± sample standard deviation over the runs that did not "
        "diverge. Final loss: mean over the last epoch. λ_max(Σ_x): of the classifier's input, the "
        f"largest in the first {EARLY} iterations of any run."
    )
    own = int((~table["published"]).sum())
    if not own:
        return [meaning, "The images were the published ones."]
    which = "any" if own == len(table) else "those marked as own"
    return [meaning, f"The images were not the published ones in {which} of these runs."]


def _thinned(label: str, runs: Sequence[Run]) -> pd.DataFrame:
    """Some of the measured iterations, evenly on a logarithmic axis: median, least and largest."""
    rows = pd.concat([run.iterations for run in runs])
    rows = rows[rows["lambda_max_x"].notna()]
    rows["iteration"] += 1
    places = np.unique(rows["iteration"])
    next_place = np.searchsorted(places, np.geomspace(1, max(places, default=1), POINTS))
    chosen = places[np.unique(next_place[next_place < len(places)])]
    groups = rows[rows["iteration"].isin(chosen)].groupby("iteration")[list(PANELS)]
    table = pd.concat(
        [groups.median(), groups.min().add_suffix("_low"), groups.max().add_suffix("_high")],
        axis=1,
    )
    return table.reset_index().assign(settings=label)
