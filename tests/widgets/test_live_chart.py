"""LiveChart without a browser: what is kept, what is sent, what is refused."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from lca_widgets.widgets.live_chart import LiveChart, Panel

TABLES = {"steps": ("step", "loss"), "layers": ("step", "layer", "lambda_max_x")}
PANELS = [
    Panel("line", "loss", "steps", x="step", y="loss"),
    Panel("profile", "λ_max by layer", "layers", x="layer", y="lambda_max_x", log=True),
]


class Recorder:
    """Stands where the comm is and keeps what would have been sent."""

    def __init__(self, chart: LiveChart) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.chart = chart
        chart.send = lambda content, buffers=None: self.sent.append((content, buffers or []))

    def types(self) -> list[str]:
        return [content["type"] for content, _ in self.sent]

    def last(self, kind: str) -> tuple[dict[str, Any], list[bytes]]:
        return [entry for entry in self.sent if entry[0]["type"] == kind][-1]

    def front_end_comes_up(self) -> None:
        self.chart._handle_custom_msg({"type": "ready"}, [])


@pytest.fixture
def chart() -> LiveChart:
    return LiveChart(PANELS, TABLES)


@pytest.fixture
def wire(chart: LiveChart) -> Recorder:
    return Recorder(chart)


def floats(buffer: bytes, columns: int) -> np.ndarray:
    return np.frombuffer(buffer, "<f4").reshape(-1, columns)


def test_both_tables_travel_in_one_message_as_float32(chart: LiveChart, wire: Recorder) -> None:
    chart.begin("a")
    chart.append(steps=[[0, 2.5], [1, 2.25]], layers=[0, 1, 100.0])
    content, buffers = wire.last("rows")
    assert wire.types() == ["begin", "rows"]
    assert content == {"type": "rows", "run": 1, "tables": [["steps", 2], ["layers", 1]]}
    assert floats(buffers[0], 2).tolist() == [[0, 2.5], [1, 2.25]]
    assert floats(buffers[1], 3).tolist() == [[0, 1, 2]]


def test_a_value_below_float32_survives_on_a_log_column(chart: LiveChart, wire: Recorder) -> None:
    chart.begin()
    chart.append(layers=[[0, 1, 1e-80], [0, 2, 0.0], [0, 3, np.inf], [0, 4, np.nan], [0, 5, -1.0]])
    sent = floats(wire.last("rows")[1][0], 3)[:, 2]
    assert sent[0] == np.float32(-80)
    assert sent[1] == -np.inf
    assert sent[2] == np.inf
    assert np.isnan(sent[3:]).all()
    assert chart.rows("layers")[0, 2] == 1e-80


def test_a_finite_value_too_large_for_float32_does_not_become_infinite(
    chart: LiveChart, wire: Recorder
) -> None:
    chart.begin()
    chart.append(steps=[[0, 1e200], [1, -1e200], [2, np.inf]])
    sent = floats(wire.last("rows")[1][0], 2)[:, 1]
    assert np.isfinite(sent[:2]).all()
    assert sent[2] == np.inf


def test_only_the_column_a_log_panel_draws_is_log(chart: LiveChart) -> None:
    assert chart.spec["tables"]["steps"]["log"] == []
    assert chart.spec["tables"]["layers"]["log"] == [2]


def test_every_column_on_a_logarithmic_scale_is_sent_as_its_logarithm() -> None:
    band = Panel("line", "t", "n", "n", "kappa", low="low", high="high", log=True)
    samples = Panel("line", "t", "m", "n", "kappa", low="low", high="high", x_log=True)
    columns = ("n", "kappa", "low", "high")
    chart = LiveChart([band, samples], {"n": columns, "m": columns})
    assert chart.spec["tables"]["n"]["log"] == [1, 2, 3]
    assert chart.spec["tables"]["m"]["log"] == [0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"steps": [[0, 1, 2]]}, ["'steps'", "step, loss", r"\(1, 3\)"]),
        ({"layers": [1, 2]}, ["'layers'", "step, layer, lambda_max_x", r"\(2,\)"]),
        ({"loss": [[0, 1]]}, ["'loss'", "steps, layers"]),
        ({"steps": [["a", "b"]]}, ["'steps'", "not given numbers"]),
        ({"steps": np.zeros((2, 2, 2))}, ["'steps'", r"\(2, 2, 2\)"]),
    ],
)
def test_wrong_rows_are_refused_by_table_with_both_shapes(
    chart: LiveChart, wire: Recorder, rows: dict[str, Any], words: list[str]
) -> None:
    chart.begin()
    for word in words:
        with pytest.raises(ValueError, match=word):
            chart.append(**rows)
    assert wire.types() == ["begin"]


def test_one_wrong_table_keeps_the_other_out_too(chart: LiveChart, wire: Recorder) -> None:
    chart.begin()
    with pytest.raises(ValueError, match="layers"):
        chart.append(steps=[0, 1], layers=[0, 1])
    assert len(chart.rows("steps")) == 0


def test_append_before_begin_is_refused(chart: LiveChart) -> None:
    with pytest.raises(RuntimeError, match="before begin"):
        chart.append(steps=[0, 1])


def test_rows_of_an_older_run_are_dropped(chart: LiveChart, wire: Recorder) -> None:
    old = chart.begin("old")
    new = chart.begin("new")
    chart.append(old, steps=[0, 1])
    chart.append(new, steps=[0, 2])
    assert chart.rows("steps").tolist() == [[0, 2]]
    assert wire.types().count("rows") == 1


def test_no_rows_send_nothing(chart: LiveChart, wire: Recorder) -> None:
    chart.begin()
    chart.append(steps=np.empty((0, 2)), layers=[])
    assert wire.types() == ["begin"]


def test_rows_kept_are_not_the_callers_array(chart: LiveChart) -> None:
    rows = np.array([[0.0, 1.0]])
    chart.begin()
    chart.append(steps=rows)
    rows[:] = 9
    chart.rows("steps")[:] = 8
    assert chart.rows("steps").tolist() == [[0, 1]]


def test_a_front_end_that_comes_up_is_sent_everything(chart: LiveChart, wire: Recorder) -> None:
    chart.begin("first", {"step": (0, 9)})
    chart.append(steps=[[0, 1.0]])
    chart.pin("pinned")
    chart.begin("second")
    chart.append(steps=[[0, 3.0]], layers=[[0, 1, 10.0]])
    chart.append(steps=[[1, 4.0]])
    wire.front_end_comes_up()
    content, buffers = wire.last("replay")
    assert [run["label"] for run in content["runs"]] == ["first", "second"]
    assert content["runs"][0]["limits"] == {"step": [0.0, 9.0]}
    assert content["pins"] == [{"run": 1, "label": "pinned"}]
    assert (content["shown"], content["current"]) == (2, 2)
    assert content["runs"][1]["tables"] == [["steps", 2], ["layers", 1]]
    assert [len(buffer) for buffer in buffers] == [8, 0, 16, 12]
    assert floats(buffers[2], 2).tolist() == [[0, 3], [1, 4]]


def test_until_a_new_run_has_rows_a_reload_shows_the_old_one(
    chart: LiveChart, wire: Recorder
) -> None:
    chart.begin("old")
    chart.append(steps=[0, 1.0])
    chart.begin("new")
    wire.front_end_comes_up()
    content, _ = wire.last("replay")
    assert (content["shown"], content["current"]) == (1, 2)
    assert [run["label"] for run in content["runs"]] == ["old", "new"]


def test_pin_keeps_the_run_on_screen_and_renames_it(chart: LiveChart, wire: Recorder) -> None:
    with pytest.raises(ValueError, match="nothing to pin"):
        chart.pin("x")
    chart.begin("old")
    chart.append(steps=[0, 1.0])
    chart.begin("new")  # no rows yet: "old" is what the user sees
    chart.pin("a")
    chart.pin("b")
    assert wire.last("pin")[0] == {"type": "pin", "run": 1, "label": "b"}
    assert list(chart.pins) == ["b"]
    chart.unpin()
    assert list(chart.pins) == []
    assert wire.types()[-1] == "unpin"


def test_on_ready_is_called_after_the_replay(chart: LiveChart, wire: Recorder) -> None:
    seen: list[list[str]] = []
    chart.on_ready(lambda: seen.append(wire.types()))
    wire.front_end_comes_up()
    assert seen == [["replay"]]


def test_a_replay_among_rows_from_a_thread_loses_and_doubles_nothing(
    chart: LiveChart, wire: Recorder
) -> None:
    chart.begin()

    enough = threading.Event()

    def work() -> None:
        for step in itertools.count():
            chart.append(steps=[step, 0.0])
            if enough.is_set():
                return

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(20):
        wire.front_end_comes_up()
    enough.set()
    thread.join()
    replay = max(i for i, kind in enumerate(wire.types()) if kind == "replay")
    buffers = [wire.sent[replay][1][0]] + [b[0] for _, b in wire.sent[replay + 1 :]]
    steps = np.concatenate([floats(buffer, 2)[:, 0] for buffer in buffers])
    assert steps.tolist() == list(range(len(chart.rows("steps"))))


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"steps": (0, 1)}, "no column 'steps'"), ({"step": (0, np.inf)}, "finite")],
)
def test_limits_are_checked(chart: LiveChart, limits: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        chart.begin(x_limits=limits)


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        (Panel("line", "t", "nothing", "step", "loss"), "no table 'nothing'"),
        (Panel("line", "t", "steps", "step", "los"), "no column 'los'"),
        (Panel("profile", "t", "steps", "step", "loss", step="time"), "no column 'time'"),
        (Panel("matrix", "t", "steps", "step", "loss", "loss", step="time"), "no column 'time'"),
        (Panel("line", "t", "steps", "step", "loss", low="a", high="loss"), "no column 'a'"),
        (Panel("line", "t", "steps", "step", "loss", low="loss", high="b"), "no column 'b'"),
        (Panel("line", "t", "steps", "step", "loss", by="run", names=("a",)), "no column 'run'"),
        (Panel("path", "t", "steps", "step", "loss", backdrop="lines"), "no table 'lines'"),
        (
            Panel("path", "t", "steps", "step", "loss", backdrop="layers"),
            "'loss' in table 'layers'",
        ),
    ],
)
def test_a_panel_of_unknown_columns_is_refused(panel: Panel, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LiveChart([panel], TABLES)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("bar", {}, "kind 'bar'; one of 'line', 'profile', 'heatmap', 'path', 'matrix'"),
        ("heatmap", {}, "has a colour; kind 'heatmap' was given colour ''"),
        ("matrix", {}, "has a colour; kind 'matrix'"),
        ("line", {"colour": "loss"}, "has a colour; kind 'line' was given colour 'loss'"),
        ("line", {"backdrop": "lines"}, "only a path has a backdrop, not kind 'line'"),
        ("path", {"log": True}, "a path has no logarithmic scale"),
        ("path", {"x_log": True}, "x_log=True is for 'line' and 'profile', not 'path'"),
        ("path", {"by": "run", "names": ("a",)}, "by='run' is for 'line' and 'profile'"),
        ("line", {"by": "run"}, r"by and names go together, got by='run', names=\(\)"),
        ("line", {"names": ("a",)}, "by and names go together, got by=''"),
        ("line", {"by": "run", "names": ("a", "a")}, "names must be different texts"),
        ("line", {"by": "run", "names": "ab"}, "names must be different texts, got 'ab'"),
        ("line", {"low": "a"}, "a band has low and high .* got low='a', high=''"),
        ("profile", {"low": "a", "high": "b"}, "belongs to a 'line', .* kind 'profile'"),
        ("line", {"rows": 3}, "rows must be 1 or 2, got 3"),
    ],
)
def test_options_that_do_not_fit_a_kind_are_refused(
    kind: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"panel 'loss': .*{words}"):
        Panel(kind, "loss", "steps", "step", "loss", **options)


def test_export_and_download_are_messages(chart: LiveChart, wire: Recorder) -> None:
    chart.export("png", "run.png")
    chart.download("run.csv", "step,loss\n", "text/csv")
    assert [content for content, _ in wire.sent] == [
        {"type": "export", "format": "png", "filename": "run.png"},
        {"type": "download", "filename": "run.csv", "text": "step,loss\n", "mime": "text/csv"},
    ]
    with pytest.raises(ValueError, match="'svg' or 'png'"):
        chart.export("pdf", "run.pdf")


def test_repr_is_short_and_says_what_is_there(chart: LiveChart) -> None:
    chart.begin()
    chart.append(steps=np.zeros((1000, 2)))
    assert repr(chart) == "LiveChart(2 panels, run 1, 1000 rows, 0 pinned)"
