"""How a lab's parts are put on the screen, and the small texts around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import ipywidgets as ipw

__all__ = ["button_row", "heading", "note", "runs_table", "screen"]

CONTROLS_WIDTH = "250px"


def screen(
    header: Sequence[ipw.Widget],
    toolbar: Sequence[ipw.Widget],
    controls: ipw.Widget,
    chart: ipw.Widget,
    footer: Sequence[ipw.Widget],
) -> tuple[ipw.Widget, ...]:
    """Arrange a lab: header, toolbar, controls beside the chart (above it where narrow), footer."""
    top = ipw.HBox(
        header,
        layout=ipw.Layout(justify_content="space-between", align_items="center", flex_flow="wrap"),
    )
    controls.layout = ipw.Layout(flex=f"0 0 {CONTROLS_WIDTH}")
    chart.layout = ipw.Layout(flex="1 1 480px", min_width="320px")
    body = ipw.HBox(
        [controls, chart], layout=ipw.Layout(flex_flow="row wrap", align_items="flex-start")
    )
    return (top, *toolbar, body, *footer)


def heading(text: str) -> ipw.HTML:
    """Return a lab's title."""
    return ipw.HTML(f"<h3 style='margin:0'>{escape(text)}</h3>")


def note(label: str, text: str) -> str:
    """Return the HTML of a short labelled text."""
    return f"<p style='margin:4px 0;line-height:1.4'><b>{escape(label)}</b> {escape(text)}</p>"


def button_row(label: str, actions: Mapping[str, Callable[[], None]]) -> ipw.HBox:
    """Return a labelled row of small buttons, each calling its action when pressed."""
    buttons = []
    for name, action in actions.items():
        button = ipw.Button(description=name, layout=ipw.Layout(width="auto"))
        button.on_click(lambda _button, action=action: action())
        buttons.append(button)
    return ipw.HBox([ipw.HTML(f"<b>{escape(label)}</b>"), *buttons])


def runs_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the HTML of the pinned runs, one row each; a line of advice where there is none."""
    if not rows:
        return note("Runs", "none kept yet: Pin keeps the run on screen for comparison.")
    cell = "style='padding:2px 14px 2px 0;text-align:left;line-height:1.4'"
    head = "".join(f"<th scope='col' {cell}>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>"
        + "".join(f"<td {cell}>{escape(str(value))}</td>" for value in row.values())
        + "</tr>"
        for row in rows
    )
    return (
        f"<details open><summary><b>Runs</b> {len(rows)} kept</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"
    )
