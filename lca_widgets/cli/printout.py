"""An analysis as text for a terminal, and as JSON for other programs."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lca_widgets._format import number, percent

if TYPE_CHECKING:
    from lca_widgets.analysis import Analysis
    from lca_widgets.curvature import Spectrum

__all__ = ["COLUMNS", "as_json", "as_text", "exact_cells", "layer_cells", "reasons", "words"]

WIDTH = 100  # columns of a line of text
SHORTEST_NAME = 12

# Heading of each column of an analysis' table, and what it holds, where the heading does not say.
COLUMNS = {
    "layer": ("#", "position, 1 is nearest to the input"),
    "name": ("layer", ""),
    "kind": ("kind", ""),
    "lambda_max_x": ("λmax(Σx)", "largest eigenvalue of the second moment of the layer's inputs"),
    "lambda_max_g": ("λmax(Σg)", "the same of the per-sample gradients of its outputs"),
    "lambda_max": ("λmax", "their product: λmax of Σx ⊗ Σg, which bounds the step size"),
    "kappa50_x": ("κ50(Σx)", "λmax over the eigenvalue in the middle; ∞ past the rank"),
    "kappa50_g": ("κ50(Σg)", ""),
    "kappa50": ("κ50", "of Σx ⊗ Σg"),
    "rank_x": ("rank Σx", "of d in"),
    "rank_g": ("rank Σg", "of d out"),
    "d_in": ("d in", "size of Σx"),
    "d_out": ("d out", "size of Σg"),
    "n": ("n", "samples"),
    "groups": ("groups", "of a convolution: blocks on the diagonal of Σx and Σg"),
    "rows": ("rows Σx", "vectors behind Σx: samples times positions"),
    "grad_rows": (
        "rows Σg",
        "behind Σg: samples times output positions (times labels, of several)",
    ),
    "lambda_max_x_centred": ("λmax(Σx) centred", "without the part of the mean"),
    "kappa50_x_centred": ("κ50(Σx) centred", ""),
    "lambda_max_g_centred": ("λmax(Σg) centred", ""),
    "kappa50_g_centred": ("κ50(Σg) centred", ""),
    "weight_sigma": ("σmax(W)", "largest singular value of the weight"),
    "weight_norm": ("‖W‖", "its Frobenius norm"),
    "grad_sigma": ("σmax(∂L/∂W)", "of the weight's gradient"),
    "domination": ("domin.", "σmax(∂L/∂W) / σmax(W): the weight dominates where it is far below 1"),
    "sensitivity": (
        "sensit.",
        "σmax(W)·σmax(∂L/∂W): no rescaling of a normalised layer changes it",
    ),
    "dying": ("dying", "share of units that the rectifier behind the layer always sets to zero"),
    "full": ("full", "share of units that it always lets pass"),
    "zero_inputs": ("zero inputs", "inputs that are zero in every row"),
    "constant_inputs": ("nearly constant", "inputs that hardly vary about a value other than zero"),
    "diverged": ("diverged", "a moment was not finite"),
}
SHARES = ("dying", "full")
OUT_OF = {"rank_x": "d_in", "rank_g": "d_out"}
# What fits a line of text; the columns of shares stand only where a rectifier was found.
IN_TEXT = (
    "layer",
    "name",
    "lambda_max_x",
    "lambda_max_g",
    "kappa50_x",
    "kappa50_g",
    "rank_x",
    "domination",
    "sensitivity",
    "dying",
)


def as_text(analysis: Analysis, settings: Mapping[str, Any]) -> str:
    """Return the main columns, the findings and what was skipped, in lines of 100 columns.

    Args:
        analysis: What `lca_widgets.analyze` returned.
        settings: What it was made with, for the heading.
    """
    blocks = [
        _wrapped(", ".join(_facts({**settings, "loss": analysis.loss}))),
        _layer_table(analysis),
        *_exact_table(analysis),
        _headed("Findings", [_wrapped(str(found), "  ") for found in analysis.findings()]),
    ]
    skipped = [_wrapped(line, "  ") for line in reasons(analysis)]
    return "\n\n".join([*blocks, *([_headed("Not measured", skipped)] if skipped else [])])


def as_json(analysis: Analysis, settings: Mapping[str, Any]) -> str:
    """Return everything as JSON; ∞ is the text "Infinity" (as `float` reads it), NaN is null."""
    layers = [
        asdict(layer.report) | ({"block": _summary(layer.block)} if layer.block else {})
        for layer in analysis.layers
    ]
    content = {
        "settings": dict(settings),
        "loss": analysis.loss,
        "layers": layers,
        "network": _summary(analysis.network) if analysis.network else None,
        "findings": [asdict(finding) for finding in analysis.findings()],
        "skipped": dict(analysis.skipped),
    }
    return json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False)


def _shortened(name: str, width: int) -> str:
    """Cut the middle out of a name that is longer than ``width``."""
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def _facts(values: Mapping[str, Any]) -> Iterator[str]:
    """Say each that is known in words that a line's end does not divide."""
    for name, value in values.items():
        if value is not None:
            yield f"{name} {words(value)}".replace(" ", "\N{NO-BREAK SPACE}")


def reasons(analysis: Analysis) -> Iterator[str]:
    """Say why modules were not measured, once for all that share a reason."""
    names: dict[str, list[str]] = {}
    for name, reason in analysis.skipped.items():
        names.setdefault(reason, []).append(name)
    for reason, those in names.items():
        yield f"{', '.join(those)}: {reason}"


def _layer_table(analysis: Analysis) -> str:
    known = [
        column
        for column in IN_TEXT
        if column not in SHARES
        or any(not math.isnan(getattr(layer.report, column)) for layer in analysis.layers)
    ]
    return _aligned(layer_cells(analysis, known))


def layer_cells(analysis: Analysis, columns: Sequence[str]) -> list[list[str]]:
    """The table as text: a row of headings, then one row a layer."""
    rows = [asdict(layer.report) for layer in analysis.layers]
    heading = [COLUMNS[column][0] for column in columns]
    return [heading, *([_cell(row, column) for column in columns] for row in rows)]


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column in OUT_OF:
        return f"{row[column]}/{row[OUT_OF[column]]}"
    return percent(row[column]) if column in SHARES else words(row[column])


def exact_cells(analysis: Analysis) -> list[list[str]]:
    """Exact blocks beside their Kronecker approximations, as text; nothing where there are none."""
    rows = []
    for layer in analysis.layers:
        if layer.block is not None:
            exact, product = layer.block, layer.report
            rows.append(
                [
                    str(product.layer),
                    layer.name,
                    number(exact.lambda_max),
                    number(product.lambda_max),
                    number(exact.kappa(0.5)),
                    number(product.kappa50),
                    str(exact.rank),
                ]
            )
    if network := analysis.network:
        numbers = number(network.lambda_max), number(network.kappa(0.5)), str(network.rank)
        rows.append(["", "whole network", numbers[0], "", numbers[1], "", numbers[2]])
    heading = ["#", "layer", "λmax exact", "λmax Σx⊗Σg", "κ50 exact", "κ50 Σx⊗Σg", "rank exact"]
    return [heading, *rows] if rows else []


def _exact_table(analysis: Analysis) -> list[str]:
    cells = exact_cells(analysis)
    return [_aligned(cells)] if cells else []


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns; the names, which come second, give way to the width of a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    others = sum(widths) - widths[1] + 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(SHORTEST_NAME, WIDTH - others))
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = _shortened(row[1], widths[1]).ljust(widths[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _headed(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, *(lines or ["  none"])])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\N{NO-BREAK SPACE}", " ")


def words(value: Any) -> str:
    """Write a setting, or a number to three digits; ∞ for infinite, – for unknown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if value is None:
        return "–"
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _summary(spectrum: Spectrum) -> dict[str, float]:
    return {
        "lambda_max": spectrum.lambda_max,
        "kappa50": spectrum.kappa(0.5),
        "rank": spectrum.rank,
        "dimension": spectrum.dimension,
    }


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
