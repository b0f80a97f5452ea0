"""A lab: one experiment, its controls and its charts, live on one screen.

Data flows one way: controls → settings → runner (worker thread) → measurements → chart, status and
words. A lab starts by itself when it is first displayed. It does not wait for the browser to say
that it is ready: under "run all" that word would stand in the queue behind every other cell.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import ipywidgets as ipw

from lca_widgets._checks import require_one_of
from lca_widgets._format import percent
from lca_widgets.training import StepRecord
from lca_widgets.widgets import layout
from lca_widgets.widgets.control_panel import Choice, Control, ControlPanel, Entry, Option
from lca_widgets.widgets.finished import finished_figure
from lca_widgets.widgets.live_chart import LiveChart, Panel
from lca_widgets.widgets.runner import Runner, RunState
from lca_widgets.widgets.state import changes, decode_state, encode_state
from lca_widgets.widgets.toolbar import Toolbar

if TYPE_CHECKING:
    import pandas as pd

    from lca_widgets import charts

__all__ = ["PICTURES_VARIABLE", "Lab", "Measured", "Table"]

# Set by whoever stores notebooks: a lab then displays as a picture of its finished run, which shows
# wherever there is no kernel, instead of a widget whose model is gone.
PICTURES_VARIABLE = "LCA_LAB_PICTURES"
CUSTOM = "custom"
SENTENCE_INTERVAL = 0.5  # seconds; words that change faster cannot be read


class Measured(Protocol):
    """What an experiment yields: anything that says at which step of the run it was measured."""

    @property
    def training(self) -> StepRecord:
        """Step, loss and accuracy (NaN where there is none); whether the run diverged."""


@dataclass(frozen=True)
class Table:
    """One table of a lab's chart.

    Attributes:
        columns: Their names.
        rows: Maps one measurement to its rows of this table: numbers in the order of `columns`.
    """

    columns: tuple[str, ...]
    rows: Callable[[Any], Iterable[Sequence[float]]]


def _step_and_loss(settings: Any, measurement: Measured) -> str:
    record = measurement.training
    return f"step {record.step}/{settings.steps} · loss {record.loss:.4g}"


class _LabRun:
    """One run: its settings, what was measured so far, and how fast it goes."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.measurements: list[Measured] = []
        self._last_batch: float | None = None  # when it came; None after a pause
        self._seconds_per_step = math.nan

    @property
    def last(self) -> Measured:
        return self.measurements[-1]

    def add(self, fresh: Sequence[Measured], *, running: bool) -> None:
        """Take a batch in; batches of a paused run tell nothing about its pace."""
        now = time.monotonic()
        if running and self._last_batch is not None:
            pace = (now - self._last_batch) / len(fresh)
            known = not math.isnan(self._seconds_per_step)
            # A running mean over some ten batches follows a change of load and does not jump.
            self._seconds_per_step = 0.9 * self._seconds_per_step + 0.1 * pace if known else pace
        self._last_batch = now if running else None
        self.measurements.extend(fresh)

    def pause(self) -> None:
        """Do not count the time until the next batch."""
        self._last_batch = None

    def seconds_left(self) -> float:
        return self._seconds_per_step * (self.settings.steps - self.last.training.step)


class Lab(ipw.VBox):
    """A live experiment: every change of a control restarts the run at once, the newest one wins.

    A subclass names the experiment and its screen; this class does the rest: run, pause, step,
    stop, reset, pins, status, words, state string, export.

    Args:
        **settings: Fields of ``settings_type`` that differ from its defaults.

    Raises:
        TypeError, ValueError: a setting is unknown or not accepted; the message names it.
    """

    title: ClassVar[str]
    # A frozen dataclass with `steps`, `seed` and `device` among its fields.
    settings_type: ClassVar[type[Any]]
    experiment: ClassVar[staticmethod[[Any], Iterator[Any]]]  # of `Measured`
    controls: ClassVar[Sequence[Control]]
    header: ClassVar[Sequence[Control]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    panels: ClassVar[Sequence[Panel]]
    chart_columns: ClassVar[int] = 2  # panels side by side where there is room
    tables: ClassVar[Mapping[str, Table]]  # what the panels draw
    # The fixed ends of axes, by column, from the settings and the first measurement.
    limits: ClassVar[staticmethod[[Any, Any], dict[str, tuple[float, float]]]]
    # All measurements of a run as the pandas table that is exported.
    tabulate: ClassVar[staticmethod[[Any], pd.DataFrame]]
    # A run's short name for the legend; one or two sentences on a measurement; and its columns in
    # the table of kept runs.
    name_run: ClassVar[staticmethod[[Any], str]]
    describe: ClassVar[staticmethod[[Any], str]]
    results: ClassVar[staticmethod[[Any], dict[str, str]]]
    # Buttons that go on from where the run is: what each says, and the settings that it changes,
    # from the present ones and the latest measurement.
    actions: ClassVar[Mapping[str, Callable[[Any, Any], Mapping[str, Any]]]] = {}
    actions_label: ClassVar[str] = ""
    # Where a run stands, in a few words, from the settings and the latest measurement.
    status: ClassVar[staticmethod[[Any, Any], str]] = staticmethod(_step_and_loss)

    def __init__(self, **settings: Any) -> None:
        self._settings = self.settings_type(**settings)
        self._start_settings = self._settings
        self._newest: _LabRun | None = None  # the run asked for last
        self._shown: _LabRun | None = None  # the run on screen: the last one with measurements
        self._pins: list[_LabRun] = []
        self._pins_to_restore: list[Any] = []
        self._sentence_time = 0.0
        self._runner: Runner[tuple[_LabRun, Measured]] = Runner(self._on_records, self._on_state)
        self._build()
        super().__init__(children=self._screen)
        self._show_texts()

    @classmethod
    def run(cls, **settings: Any) -> list[Measured]:
        """Do the lab's experiment without a screen and return its measurements."""
        return list(cls.experiment(cls.settings_type(**settings)))

    @classmethod
    def from_state(cls, state: str) -> Self:
        """Return the lab that ``state`` describes; pinned runs are computed again when it is shown.

        Raises:
            ValueError: the string does not describe a state of this lab.
        """
        settings, pins = decode_state(state, cls.settings_type)
        lab = cls(**changes(settings))
        lab._pins_to_restore = pins
        return lab

    @property
    def state(self) -> str:
        """Settings and pins as one short string, for `from_state`."""
        pins = [pin.settings for pin in self._pins] + self._pins_to_restore
        return encode_state(self._settings, pins)

    @property
    def measurements(self) -> list[Measured]:
        """What was measured so far in the run on screen."""
        return list(self._shown.measurements) if self._shown else []

    def table(self) -> pd.DataFrame:
        """Return the run on screen as a tidy pandas table, the one that CSV exports."""
        return self.tabulate(self.measurements)

    def start(self, *, paused: bool = False) -> None:
        """Start the run that the controls describe, in place of the one in progress."""
        self._show_error("")
        self._launch(paused=paused)

    def stop(self) -> None:
        """Stop the run and keep what it has."""
        self._runner.stop()

    def wait(self, timeout: float) -> bool:
        """Wait until no run is active; return whether that came true within ``timeout`` seconds."""
        return self._runner.wait(timeout)

    def set(self, **settings: Any) -> None:
        """Change settings, as the controls do: a refused value changes nothing but the status.

        Example: ``lab.set(depth=10, init="he")``.
        """
        try:
            unknown = settings.keys() - {f.name for f in dataclasses.fields(self.settings_type)}
            if unknown:
                raise ValueError(f"{sorted(unknown)[0]} is no setting of this lab")
            changed = dataclasses.replace(self._settings, **settings)
        except (TypeError, ValueError) as error:
            self._show_error(str(error))
            return
        self._adopt(changed)

    def act(self, action: str) -> None:
        """Do what one of the lab's buttons does, if the run on screen is the one asked for last.

        Raises:
            ValueError: the lab has no such button.
        """
        require_one_of("action", action, self.actions)
        with self._runner.lock:
            run = self._shown
            latest = None if run is None or run is not self._newest else run.last
        if latest is not None:
            self.set(**self.actions[action](self._settings, latest))

    def pin(self) -> None:
        """Keep the run on screen: a grey comparison in the chart and a row in the table."""
        with self._runner.lock:  # the run on screen must not change between chart and table
            if self._shown is None or self._shown in self._pins:
                return
            self._pins.append(self._shown)
            self.chart.pin(self.name_run(self._shown.settings))
        self._show_texts()

    def unpin(self) -> None:
        """Drop every kept run, and those of a restored state that are still to come."""
        with self._runner.lock:
            self._pins.clear()
            self.chart.unpin()
            if self._pins_to_restore:
                self._pins_to_restore.clear()
                if self._runner.state.active:  # with one of them: go on to the lab's own run
                    self._launch()
        self._show_texts()

    def reset(self) -> None:
        """Go back to the settings that the lab began with; kept runs stay."""
        self._adopt(self._start_settings)

    def figure(self) -> charts.Figure:
        """Return the run on screen as a finished Altair figure of the same panels.

        Raises:
            RuntimeError: nothing has been measured yet.
        """
        if not self.measurements:
            raise RuntimeError("the lab has not measured anything yet: call start() and wait()")
        return self._finished(self.measurements)

    def code(self) -> str:
        """Return the lines of Python that repeat the run on screen without the lab."""
        settings = changes(self._settings_on_screen)
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return (
            "import lca_widgets as lca\n\n"
            f"lab = lca.labs.{type(self).__name__}\n"
            f"measurements = lab.run({arguments})\n"
            "print(lab.tabulate(measurements))\n"
        )

    def export_csv(self) -> None:
        """Let the browser save the table of the run on screen."""
        self.chart.download(f"{self._file_name}.csv", self.table().to_csv(index=False), "text/csv")

    def export_code(self) -> None:
        """Let the browser save the Python that repeats the run on screen."""
        self.chart.download(f"{self._file_name}.py", self.code(), "text/x-python")

    def __repr__(self) -> str:
        """Return the expression that makes this lab again."""
        return f"{type(self).__name__}.from_state({self.state!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        if not os.environ.get(PICTURES_VARIABLE):
            self._start_once()
            bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
            return bundle
        picture = self._finished(self.run(**changes(self._settings))).png()
        return {"text/plain": repr(self), "image/png": base64.b64encode(picture).decode()}

    def close(self) -> None:
        """Stop the run and close the widget."""
        if hasattr(self, "_runner"):  # also called for a lab whose settings were refused
            self.stop()
        super().close()

    def _start_once(self) -> None:
        if self._runner.state is RunState.IDLE:
            self.start()

    # Building the screen

    def _build(self) -> None:
        values = dataclasses.asdict(self._settings)
        self.toolbar = Toolbar()
        self.toolbar.on_press(self._on_press)
        self.chart = LiveChart(
            self.panels,
            tables={name: table.columns for name, table in self.tables.items()},
            columns=self.chart_columns,
        )
        self.chart.on_ready(self._start_once)  # for a lab displayed inside another widget
        self.chart.on_closed(self.stop)  # a cell that is run again leaves no training behind
        preset = Choice(
            "preset", "preset", tuple(Option(name, name) for name in (CUSTOM, *self.presets))
        )
        self._header_panel = ControlPanel(
            (preset, *self.header), {"preset": CUSTOM} | _only(self.header, values), place="row"
        )
        self._control_panel = ControlPanel(self.controls, _only(self.controls, values))
        self._state_panel = ControlPanel(
            (Entry("state", "state", help="Copy it to keep this lab; paste one and press Enter."),),
            {"state": self.state},
            place="row",
        )
        self._header_panel.on_change(self._on_control)
        self._control_panel.on_change(self._on_control)
        self._state_panel.on_change(lambda values, _name: self._on_state_string(values["state"]))
        self._sentence = ipw.HTML()
        self._runs = ipw.HTML()
        export = layout.button_row(
            "Export",
            {
                "CSV": self.export_csv,
                "SVG": lambda: self.chart.export("svg", f"{self._file_name}.svg"),
                "PNG": lambda: self.chart.export("png", f"{self._file_name}.png"),
                "Python": self.export_code,
            },
        )
        actions = {name: partial(self.act, name) for name in self.actions}
        above = (layout.button_row(self.actions_label, actions),) if actions else ()
        self._screen = layout.screen(
            header=(layout.heading(self.title), self._header_panel),
            toolbar=(self.toolbar, *above),
            controls=self._control_panel,
            chart=self.chart,
            footer=(self._sentence, self._runs, export, self._state_panel),
        )

    @property
    def _settings_on_screen(self) -> Any:
        return self._shown.settings if self._shown else self._settings

    @property
    def _file_name(self) -> str:
        state = encode_state(self._settings_on_screen)
        return f"{type(self).__name__.lower()}-{state}".replace("&", "-")

    # From the controls to the runner (main thread)

    def _on_control(self, values: dict[str, Any], changed: str) -> None:
        # The changed one only: a value that was refused before must not be tried again.
        if changed != "preset":
            self.set(**{changed: values[changed]})
        elif values["preset"] != CUSTOM:
            self.set(**self.presets[values["preset"]])
            self._header_panel.set_values({"preset": values["preset"]})

    def _on_state_string(self, state: str) -> None:
        try:
            settings, pins = decode_state(state, self.settings_type)
        except (TypeError, ValueError) as error:
            self._show_error(str(error), control="state")
            return
        with self._runner.lock:  # the old run must not end in between, and be taken for a pin's
            self.unpin()
            self._pins_to_restore = pins
            self._adopt(settings)

    def _adopt(self, settings: Any) -> None:
        """Take new settings over, show them in the controls, and run."""
        values = dataclasses.asdict(settings)
        self._control_panel.set_values(_only(self.controls, values))
        self._header_panel.set_values({"preset": CUSTOM} | _only(self.header, values))
        self._settings = settings
        self._show_texts()
        self.start()

    def _launch(self, *, paused: bool = False) -> None:
        # Pins of a restored state come first: each is run like any other and then kept.
        settings = self._pins_to_restore[0] if self._pins_to_restore else self._settings
        run = _LabRun(settings)
        with self._runner.lock:
            self._newest = run
            self._runner.start(lambda: self._records(run), paused=paused)

    def _on_press(self, button: str) -> None:
        paused = self._runner.state is RunState.PAUSED
        actions: dict[str, Callable[[], None]] = {
            "run": self._runner.resume if paused else self.start,
            "pause": self._runner.pause,
            "resume": self._runner.resume,
            "step": self._step,
            "stop": self.stop,
            "reset": self.reset,
            "pin": self.pin,
            "unpin": self.unpin,
        }
        actions[button]()

    def _step(self) -> None:
        if self._runner.state is not RunState.PAUSED:
            self.start(paused=True)
        self._runner.step()

    # From the runner to the screen (worker thread, under the runner's lock)

    def _records(self, run: _LabRun) -> Iterator[tuple[_LabRun, Measured]]:
        for measurement in self.experiment(run.settings):
            yield run, measurement

    def _on_records(self, records: list[tuple[_LabRun, Measured]]) -> None:
        run, fresh = records[0][0], [measurement for _, measurement in records]
        if run is not self._shown:
            self._shown = run
            limits = self.limits(run.settings, fresh[0])
            self.chart.begin(self.name_run(run.settings), x_limits=limits)
        run.add(fresh, running=self._runner.state is RunState.RUNNING)
        self.chart.append(None, **self._rows(fresh))
        self._show_status(self._runner.state)
        if time.monotonic() - self._sentence_time > SENTENCE_INTERVAL:
            self._show_sentence()

    def _on_state(self, state: RunState, error: Exception | None) -> None:
        if state is RunState.PAUSED and self._newest is not None:
            self._newest.pause()
        if error is not None:
            self._show_error(str(error) or type(error).__name__)
        if self._pins_to_restore and state in (RunState.FINISHED, RunState.FAILED):
            self._pins_to_restore.pop(0)
            if state is RunState.FINISHED:
                self.pin()
            self._launch()
            return
        self._show_status(state)
        if not state.active:
            self._show_sentence()
            self._show_texts()

    def _rows(self, measurements: Sequence[Measured]) -> dict[str, list[Sequence[float]]]:
        """What the chart's tables get from some measurements."""
        return {
            name: [row for measurement in measurements for row in table.rows(measurement)]
            for name, table in self.tables.items()
        }

    def _finished(self, measurements: Sequence[Measured]) -> charts.Figure:
        import pandas as pd

        frames = {
            name: pd.DataFrame(rows, columns=list(self.tables[name].columns))
            for name, rows in self._rows(measurements).items()
        }
        return finished_figure(self.panels, frames, columns=self.chart_columns)

    # Words

    def _show_status(self, state: RunState) -> None:
        run = self._shown
        if run is None or (run is not self._newest and state is not RunState.STOPPED):
            # Nothing of the newest run is on screen: it is still to come, or it failed at once.
            text = "starting …" if state.active else ""
            self.toolbar.show(state=state.value, text=text, progress=0)
            return
        record, steps = run.last.training, run.settings.steps
        parts = [self.status(run.settings, run.last)]
        if state is RunState.RUNNING and run.seconds_left() >= 1:
            parts.append(f"{run.seconds_left():.0f} s left")
        diverged = record.diverged and state is RunState.FINISHED
        self.toolbar.show(
            state="diverged" if diverged else state.value,
            text=" · ".join(parts),
            progress=record.step / max(1, steps),
        )

    def _show_sentence(self) -> None:
        if self._shown is not None:
            self._sentence_time = time.monotonic()
            text = self.describe(self._shown.last)
            self._sentence.value = layout.note("What you see", text)

    def _show_error(self, message: str, control: str = "") -> None:
        """Show a refusal in the status line and at its control; an empty one takes both away.

        Args:
            message: What was refused; by convention it begins with the argument's name.
            control: The control at fault, where it is not the one so named.
        """
        self.toolbar.show(error=message)
        control = control or message.split(" ", 1)[0]
        for panel in (self._control_panel, self._header_panel, self._state_panel):
            mine = control in panel.values
            panel.show_error(control if mine else None, message if mine else "")

    def _show_texts(self) -> None:
        self.toolbar.show(pins=len(self._pins))
        self._runs.value = layout.runs_table([self._summary(pin) for pin in self._pins])
        self._state_panel.set_values({"state": self.state})

    def _summary(self, run: _LabRun) -> dict[str, str]:
        record = run.last.training
        return {
            "run": self.name_run(run.settings),
            "steps": f"{record.step}/{run.settings.steps}{' diverged' if record.diverged else ''}",
            "loss": f"{record.loss:.3g}",
            "accuracy": percent(record.accuracy),
            **self.results(run.last),
        }


def _only(controls: Sequence[Control], values: Mapping[str, Any]) -> dict[str, Any]:
    return {control.name: values[control.name] for control in controls}
