"""Live charts: binary rows in, panels repainted in place.

A chart holds named tables of numbers and a few panels that draw them. A training loop appends
rows, from any thread; the browser appends them too and repaints at most once per animation frame.
Python keeps every row of the current and of the pinned runs, so that a reloaded page, or a second
window, is shown everything.

Messages, Python to JavaScript (`live_chart.js` has the other side):

====================  ==========================================================================
``spec`` (trait)      ``{panels: [...], tables: {name: {columns, log}}, columns}``; never changes
``{type: "begin"}``   ``run``, ``label``, ``limits {column: [low, high]}``. What is on screen stays
                      until the first rows of this run arrive
``{type: "rows"}``    ``run``, ``tables [[name, row count], ...]`` and one buffer for each table.
                      Rows of a run older than the newest one begun are ignored
``{type: "pin"}``     ``run``, ``label``: keep this run as a comparison (it keeps growing while it
                      is the current one); ``{type: "unpin"}`` drops all comparisons
``{type: "replay"}``  everything: ``runs [{run, label, limits, tables}]`` with one buffer for each
                      table of each run, ``pins [{run, label}]``, ``shown``, ``current`` (numbers)
``{type: "export"}``  ``format`` ("svg" or "png"), ``filename``: one picture of all panels
``{type: "download"}``  ``filename``, ``text``, ``mime``: save this text
====================  ==========================================================================

JavaScript to Python: ``{type: "ready"}``, once for each front end that has come up; the answer is a
replay. ``{type: "closed"}`` when a front end has no view of the chart any more.

A buffer is little-endian float32, row by row. float32 ends at 1e-38 and curvatures do not, so a
column that any logarithmic panel draws is sent as log10 of its float64 value: ``-inf`` is a zero,
``+inf`` an infinity, NaN a NaN (or a negative number, which has no place on such an axis). A finite
number too large for float32 is sent as the largest one: only infinities are drawn as infinite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import anywidget
import numpy as np
import numpy.typing as npt
import traitlets

Kind = Literal["line", "profile", "heatmap", "path", "matrix"]
Rows = npt.NDArray[np.float64]

KINDS = get_args(Kind)
COLOURED = ("heatmap", "matrix")  # kinds whose value is a colour
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Panel:
    """One picture of a chart: which columns of which table, and how.

    Attributes:
        kind: `"line"` draws `y` against `x` for all rows of the run; `"profile"` draws only the
            rows of the latest step, and those of the first step as a thin dotted line;
            `"heatmap"` has `x` and `y` as axes and `colour` as the value; `"path"` draws `y`
            against `x` in the order of the rows, a unit being equally long on both axes, with a
            ring at the first and a dot at the latest point; `"matrix"` draws the rows of the
            latest step as square cells, `x` to the right and `y` downwards.
        title: What is shown, in a few words; also the panel's accessible name.
        table: The table that is drawn.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        colour: Column of the colour (heat maps and matrices only). The colours of a matrix without
            a logarithmic scale are symmetrical about zero where it has negative values.
        x_label: Text at the horizontal axis; the column's name if empty.
        y_label: Text at the vertical axis.
        log: Whether the value (`y`, or `colour` of a heat map or matrix) has a logarithmic scale.
        step: Column whose last value says which rows are the latest (profiles and matrices).
        backdrop: A table with the same columns `x` and `y` that is drawn behind a path as thin
            lines, such as contours, broken at rows of NaN. It sets the ends of both axes; the path
            is cut off there.
        by: Column of whole numbers 0, 1, … (lines and profiles only): each is a line of its own,
            and a profile then draws the latest step alone.
        names: What the panel's legend calls those lines.
        low: Lower end of a band that is drawn behind a line.
        high: Upper end of that band.
        x_log: Whether the horizontal axis of a line or profile is logarithmic. Rows that have no
            place on it (zero or negative) are not drawn.
        rows: 2 for a panel as high as two.
    """

    kind: Kind
    title: str
    table: str
    x: str
    y: str
    colour: str = ""
    x_label: str = ""
    y_label: str = ""
    log: bool = False
    step: str = "step"
    backdrop: str = ""
    by: str = ""
    names: Sequence[str] = ()
    low: str = ""
    high: str = ""
    x_log: bool = False
    rows: int = 1

    def __post_init__(self) -> None:
        where = f"panel {self.title!r}"
        curve = self.kind in ("line", "profile")
        if self.kind not in KINDS:
            kinds = ", ".join(repr(kind) for kind in KINDS)
            raise ValueError(f"{where}: kind {self.kind!r}; one of {kinds} expected")
        if (self.kind in COLOURED) != bool(self.colour):
            raise ValueError(
                f"{where}: a heat map or a matrix, and nothing else, has a colour; "
                f"kind {self.kind!r} was given colour {self.colour!r}"
            )
        if self.backdrop and self.kind != "path":
            raise ValueError(f"{where}: only a path has a backdrop, not kind {self.kind!r}")
        if self.log and self.kind == "path":
            raise ValueError(f"{where}: a path has no logarithmic scale (log=True)")
        if not curve and (self.by or self.x_log):
            option = f"by={self.by!r}" if self.by else "x_log=True"
            raise ValueError(f"{where}: {option} is for 'line' and 'profile', not {self.kind!r}")
        if isinstance(self.names, str) or len(set(self.names)) < len(self.names):
            raise ValueError(f"{where}: names must be different texts, got {self.names!r}")
        if bool(self.by) != bool(self.names):
            raise ValueError(
                f"{where}: by and names go together, got by={self.by!r}, names={self.names!r}"
            )
        if bool(self.low) != bool(self.high) or (self.low and self.kind != "line"):
            raise ValueError(
                f"{where}: a band has low and high and belongs to a 'line', "
                f"got low={self.low!r}, high={self.high!r} and kind {self.kind!r}"
            )
        if self.rows not in (1, 2):
            raise ValueError(f"{where}: rows must be 1 or 2, got {self.rows!r}")

    @property
    def value(self) -> str:
        """The column that carries the measured value."""
        return self.colour or self.y

    @property
    def columns_used(self) -> tuple[str, ...]:
        """Every column that this panel reads from its table."""
        step = self.step if self.kind in ("profile", "matrix") else ""
        used = (self.x, self.y, self.colour, step, self.by, self.low, self.high)
        return tuple(column for column in used if column)

    @property
    def log_columns(self) -> tuple[str, ...]:
        """The columns that are drawn on a logarithmic scale."""
        values = (self.value, self.low, self.high) if self.log else ()
        return tuple(column for column in (*values, self.x if self.x_log else "") if column)


class _Run:
    """The rows of one run, in float64 as they were measured."""

    def __init__(
        self, number: int, label: str, limits: dict[str, list[float]], widths: Mapping[str, int]
    ) -> None:
        self.number = number
        self.label = label
        self.limits = limits
        self._blocks: dict[str, list[Rows]] = {
            name: [np.empty((0, width))] for name, width in widths.items()
        }

    def add(self, name: str, rows: Rows) -> None:
        self._blocks[name].append(rows)

    def table(self, name: str) -> Rows:
        # Joined once and kept joined: asking again costs nothing.
        self._blocks[name] = [np.concatenate(self._blocks[name])]
        return self._blocks[name][0]

    @property
    def count(self) -> int:
        return sum(len(block) for blocks in self._blocks.values() for block in blocks)


class LiveChart(anywidget.AnyWidget):
    """Panels that follow a running experiment.

    All methods may be called from any thread. Example:

        chart = LiveChart(
            [Panel("line", "loss", "steps", x="step", y="loss", log=True)],
            tables={"steps": ("step", "loss")},
        )
        chart.begin("depth 20", x_limits={"step": (0, 200)})
        chart.append(steps=[[0, 2.3], [1, 2.1]])
        chart.pin("depth 20")
    """

    _esm = Path(__file__).with_suffix(".js")
    spec = traitlets.Dict().tag(sync=True)

    def __init__(
        self, panels: Sequence[Panel], tables: Mapping[str, Sequence[str]], columns: int = 2
    ) -> None:
        """Lay out a chart.

        Args:
            panels: The pictures, in reading order.
            tables: The columns of each table, by the table's name.
            columns: Pictures side by side where there is room.
        """
        _check_spec(panels, tables, columns)
        self._columns = {name: tuple(names) for name, names in tables.items()}
        self._log = {
            name: [i for i, column in enumerate(names) if _is_log(panels, name, column)]
            for name, names in self._columns.items()
        }
        self._panel_count = len(panels)
        # Storing and sending are one step under this lock, so that a replay never overtakes rows.
        # Re-entrant because a front end's callback may append.
        self._lock = threading.RLock()
        self._number = 0
        self._current: _Run | None = None  # the run begun last
        self._shown: _Run | None = None  # the run on screen: the last one that has rows
        self._pins: dict[int, tuple[_Run, str]] = {}
        self._ready_callbacks: list[Callable[[], object]] = []
        self._closed_callbacks: list[Callable[[], object]] = []
        spec = {
            "panels": [asdict(panel) for panel in panels],
            "tables": {
                name: {"columns": list(names), "log": self._log[name]}
                for name, names in self._columns.items()
            },
            "columns": columns,
        }
        super().__init__(spec=spec)
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        with self._lock:
            rows = 0 if self._current is None else self._current.count
            return (
                f"LiveChart({self._panel_count} panels, run {self._number}, {rows} rows, "
                f"{len(self._pins)} pinned)"
            )

    @property
    def run(self) -> int:
        """The number of the current run; 0 before the first."""
        return self._number

    @property
    def pins(self) -> tuple[str, ...]:
        """The labels of the pinned runs."""
        with self._lock:
            return tuple(label for _, label in self._pins.values())

    def begin(
        self, label: str = "", x_limits: Mapping[str, tuple[float, float]] | None = None
    ) -> int:
        """Start a new run; the picture of the last one stays until this one's first rows.

        Args:
            label: What the legend calls this run.
            x_limits: Fixed ends of axes, by column, so that nothing moves while rows arrive: of
                a horizontal axis, or of a value's. Where values exceed theirs, the axis widens;
                the colours of a matrix do not.

        Returns:
            The run's number, to hand to `append` from a thread that may be out of date.
        """
        limits = self._checked_limits(x_limits or {})
        with self._lock:
            self._number += 1
            widths = {name: len(names) for name, names in self._columns.items()}
            self._current = _Run(self._number, label, limits, widths)
            self.send({"type": "begin", **_described(self._current)})
            return self._number

    def append(self, run: int | None = None, **tables: npt.ArrayLike) -> None:
        """Add rows to tables of the current run: one message for all of them.

        Args:
            run: The run they belong to; rows of a run that is no longer current are dropped.
            **tables: For each table an array `[rows, columns]`, or one row `[columns]`.

        Raises:
            ValueError: If a table or its number of columns is not the declared one.
            RuntimeError: If no run has begun.
        """
        given = {name: self._checked_rows(name, rows) for name, rows in tables.items()}
        with self._lock:
            if self._current is None:
                raise RuntimeError("LiveChart.append before begin: no run has begun")
            if run is not None and run != self._current.number:
                return
            given = {name: rows for name, rows in given.items() if len(rows)}
            if not given:
                return
            for name, rows in given.items():
                self._current.add(name, rows)
            self._shown = self._current
            self.send(
                {
                    "type": "rows",
                    "run": self._current.number,
                    "tables": [[name, len(rows)] for name, rows in given.items()],
                },
                buffers=[_wire(rows, self._log[name]) for name, rows in given.items()],
            )

    def rows(self, table: str) -> Rows:
        """Everything kept of one table of the current run, `[rows, columns]`, in float64."""
        columns = self._columns_of(table)
        with self._lock:
            if self._current is None:
                return np.empty((0, len(columns)))
            return self._current.table(table).copy()

    def pin(self, label: str) -> None:
        """Keep the run on screen as a grey dashed comparison; pinned again, it is renamed.

        Raises:
            ValueError: If there is no run with rows yet.
        """
        with self._lock:
            if self._shown is None:
                raise ValueError("LiveChart.pin: nothing to pin, no run has rows yet")
            self._pins[self._shown.number] = (self._shown, label)
            self.send({"type": "pin", "run": self._shown.number, "label": label})

    def unpin(self) -> None:
        """Drop all comparisons."""
        with self._lock:
            self._pins.clear()
            self.send({"type": "unpin"})

    def export(self, format: Literal["svg", "png"], filename: str) -> None:
        """Let the browser save one picture of all panels."""
        if format not in ("svg", "png"):
            raise ValueError(f"LiveChart.export: format {format!r}; 'svg' or 'png' expected")
        self.send({"type": "export", "format": format, "filename": filename})

    def download(self, filename: str, text: str, mime: str = "text/plain") -> None:
        """Let the browser save a text, such as a table or a few lines of Python."""
        self.send({"type": "download", "filename": filename, "text": text, "mime": mime})

    def on_ready(self, callback: Callable[[], object]) -> None:
        """Call `callback()` each time a front end has come up and has been sent everything."""
        self._ready_callbacks.append(callback)

    def on_closed(self, callback: Callable[[], object]) -> None:
        """Call `callback()` each time a front end has closed its last view of the chart."""
        self._closed_callbacks.append(callback)

    def _receive(self, _widget: object, message: dict[str, Any], _buffers: object) -> None:
        callbacks: list[Callable[[], object]] = []
        if message.get("type") == "ready":
            with self._lock:
                self._replay()
            callbacks = self._ready_callbacks
        elif message.get("type") == "closed":
            callbacks = self._closed_callbacks
        for callback in tuple(callbacks):
            callback()

    def _replay(self) -> None:
        runs = {run.number: run for run, _ in self._pins.values()}
        for run in (self._shown, self._current):
            if run is not None:
                runs[run.number] = run
        described, buffers = [], []
        for run in runs.values():
            tables = {name: run.table(name) for name in self._columns}
            counts = [[name, len(rows)] for name, rows in tables.items()]
            described.append({**_described(run), "tables": counts})
            buffers += [_wire(rows, self._log[name]) for name, rows in tables.items()]
        message = {
            "type": "replay",
            "runs": described,
            "pins": [{"run": run.number, "label": label} for run, label in self._pins.values()],
            "shown": 0 if self._shown is None else self._shown.number,
            "current": 0 if self._current is None else self._current.number,
        }
        self.send(message, buffers=buffers)

    def _columns_of(self, table: str) -> tuple[str, ...]:
        try:
            return self._columns[table]
        except KeyError:
            known = ", ".join(self._columns)
            raise ValueError(f"no table {table!r} in this chart; its tables: {known}") from None

    def _checked_rows(self, name: str, rows: npt.ArrayLike) -> Rows:
        columns = self._columns_of(name)
        expected = f"table {name!r}: rows of {len(columns)} numbers ({', '.join(columns)}) expected"
        try:
            array = np.array(rows, dtype=np.float64)  # a copy: the caller may go on to change it
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}; not given numbers: {error}") from error
        if array.ndim == 1 and array.size:
            array = array[None, :]
        if array.size == 0:
            return np.empty((0, len(columns)))
        if array.ndim != 2 or array.shape[1] != len(columns):
            raise ValueError(f"{expected}; given an array of shape {np.shape(rows)}")
        return array

    def _checked_limits(self, limits: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
        known = {column for names in self._columns.values() for column in names}
        checked = {}
        for column, (low, high) in limits.items():
            if column not in known:
                raise ValueError(f"x_limits: no column {column!r}; known: {sorted(known)}")
            if not (np.isfinite(low) and np.isfinite(high) and low <= high):
                raise ValueError(
                    f"x_limits[{column!r}]: finite low <= high expected, not ({low}, {high})"
                )
            checked[column] = [float(low), float(high)]
        return checked


def _is_log(panels: Sequence[Panel], table: str, column: str) -> bool:
    return any(p.table == table and column in p.log_columns for p in panels)


def _described(run: _Run) -> dict[str, Any]:
    return {"run": run.number, "label": run.label, "limits": run.limits}


def _wire(rows: Rows, log: Sequence[int]) -> bytes:
    """Little-endian float32 rows, the `log` columns as log10 of their float64 values."""
    wire = rows.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        wire[:, log] = np.log10(wire[:, log])
    finite = np.isfinite(wire)
    wire[finite] = np.clip(wire[finite], -_FLOAT32_MAX, _FLOAT32_MAX)
    return wire.astype("<f4").tobytes()


def _check_spec(panels: Sequence[Panel], tables: Mapping[str, Sequence[str]], columns: int) -> None:
    if not panels or columns < 1:
        raise ValueError("a chart has at least one panel and one column")
    if "run" in tables:
        raise ValueError("no table can be called 'run': append(run=...) names the run")
    for panel in panels:
        _check_columns(panel, tables, panel.table, panel.columns_used)
        if panel.backdrop:
            _check_columns(panel, tables, panel.backdrop, (panel.x, panel.y))


def _check_columns(
    panel: Panel, tables: Mapping[str, Sequence[str]], table: str, columns: Sequence[str]
) -> None:
    if table not in tables:
        known = ", ".join(tables)
        raise ValueError(f"panel {panel.title!r}: no table {table!r}; known: {known}")
    for column in columns:
        if column not in tables[table]:
            known = ", ".join(tables[table])
            raise ValueError(
                f"panel {panel.title!r}: no column {column!r} in table {table!r}; "
                f"its columns: {known}"
            )
