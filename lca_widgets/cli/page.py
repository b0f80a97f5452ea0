"""An analysis as one HTML page that needs nothing else: no network, no scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from lca_widgets.cli.printout import COLUMNS, exact_cells, layer_cells, reasons, words

if TYPE_CHECKING:
    from lca_widgets.analysis import Analysis

__all__ = ["as_page"]


def as_page(analysis: Analysis, settings: Mapping[str, Any], *, title: str) -> str:
    """Return the page: settings, findings, charts, and the table with all columns.

    Args:
        analysis: What `lca_widgets.analyze` returned.
        settings: What it was made with.
        title: Heading of the page.
    """
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(_sections(analysis, settings, title))
        + "\n</main>\n</body>\n</html>\n"
    )


def _sections(analysis: Analysis, settings: Mapping[str, Any], title: str) -> Iterator[str]:
    figure = analysis.chart()
    facts = {**settings, "loss": analysis.loss}
    yield f"<h1>{escape(title)}</h1>"
    yield _definitions({name: words(value) for name, value in facts.items() if value is not None})
    yield "<h2>Findings</h2>"
    findings = [
        f"<span class='{found.severity}'>{escape(str(found))}</span>"
        for found in analysis.findings()
    ]
    yield _items(findings) if findings else "<p>None.</p>"
    yield "<h2>Charts</h2>"
    yield f"<figure>{_with_titles(figure.svg())}</figure>"
    yield _details("The charts in words", f"<pre>{escape(repr(figure))}</pre>")
    yield "<h2>Layers</h2>"
    yield _html_table(layer_cells(analysis, list(COLUMNS)), "Layers", kind="layers")
    meanings = {heading: meaning for heading, meaning in COLUMNS.values() if meaning}
    yield _details("What the columns hold", _definitions(meanings))
    if exact := exact_cells(analysis):
        yield "<h2>Exact blocks</h2>"
        yield _html_table(exact, "Exact blocks", kind="exact")
    if analysis.skipped:
        yield "<h2>Not measured</h2>"
        yield _items(map(escape, reasons(analysis)))


def _definitions(terms: Mapping[str, str]) -> str:
    pairs = (
        f"<div><dt>{escape(term)}</dt><dd>{escape(meaning)}</dd></div>"
        for term, meaning in terms.items()
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def _items(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _html_table(rows: Sequence[Sequence[str]], name: str, kind: str) -> str:
    heading = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    lines = []
    for row in rows[1:]:
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        cells[1] = f"<th scope='row'>{escape(row[1])}</th>"
        lines.append(f"<tr>{''.join(cells)}</tr>")
    # A region that scrolls must be reachable by keyboard, and so have a name.
    return (
        f"<div class='scroll' role='region' aria-label='{escape(name)}' tabindex='0'>"
        f"<table class='{kind}'><thead><tr>{heading}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _with_titles(svg: str) -> str:
    """Let each mark say what it shows where the mouse rests, as Vega's tooltips would."""
    return re.sub(
        r'<path aria-label="([^"]*)"([^>]*)/>',
        r'<path aria-label="\1"\2><title>\1</title></path>',
        svg,
    )


# Vega draws black on white; a dark page turns text, axes and grid, and keeps the marks' colours.
STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --faint: #595959; --page: #fff; --line: #ccc;
  --grid: #ddd; --axis: #888; --critical: #a40000; --warning: #7a4b00; --info: #00558c;
  --stripe: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --faint: #a8a8a8; --page: #161616;
  --line: #444; --grid: #3a3a3a; --axis: #888; --critical: #ff8a80; --warning: #ffc166;
  --info: #8ac8ff; --stripe: #222; } }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 75rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0; }
details dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
dt { color: var(--faint); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
li { margin: .35rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
ul:has(> li > span) { list-style: none; padding: 0; }
li > span { border-left: .25rem solid; padding-left: .5rem; display: block; }
li > .critical { border-color: var(--critical); }
li > .warning { border-color: var(--warning); }
li > .info { border-color: var(--info); }
figure { margin: 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
svg > rect { fill: var(--page); }
svg text[fill="#000"] { fill: var(--text); }
svg [stroke="#ddd"] { stroke: var(--grid); }
svg [stroke="#888"] { stroke: var(--axis); }
@media (prefers-color-scheme: dark) {
  svg [fill="#0072B2"] { fill: #4aa8e0; } svg [stroke="#0072B2"] { stroke: #4aa8e0; }
  svg [fill="#D55E00"] { fill: #ff8a3d; } svg [stroke="#D55E00"] { stroke: #ff8a3d; }
}
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--page); box-shadow: 0 1px var(--line); }
th:nth-child(2), .layers th:nth-child(3), .layers td:nth-child(3) { text-align: left; }
tbody th { font-weight: normal; }
th:nth-child(2) { position: sticky; left: 0; background: inherit; }
thead th:nth-child(2) { z-index: 1; }
tr { background: var(--page); }
tbody tr:nth-child(even) { background: var(--stripe); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
"""
