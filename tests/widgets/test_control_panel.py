"""ControlPanel without a browser: values, the user's changes, refusals."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from lca_widgets.widgets.control_panel import (
    Choice,
    ControlPanel,
    Entry,
    Option,
    Slider,
    Switch,
    Toggles,
)

CONTROLS = [
    Slider("depth", "depth", 1, 50, format="{:d} layers"),
    Slider("rate", "step size", 1e-4, 10.0, log=True),
    Choice("device", "device", (Option("cuda", "GPU", "no GPU here"), Option("cpu", "CPU"))),
    Switch("norm", "BN"),
    Toggles("trained", "trained layers", ("1", "2", "3"), on="trained", off="frozen"),
    Entry("seed", "seed"),
]


@pytest.fixture
def panel() -> ControlPanel:
    panel = ControlPanel(CONTROLS, {"depth": 20})
    panel.sent = []
    panel.send = lambda content, buffers=None: panel.sent.append(content)
    return panel


def user_changes(panel: ControlPanel, name: str, value: Any, serial: int = 1) -> None:
    message = {"type": "change", "name": name, "value": value, "serial": serial}
    panel._handle_custom_msg(message, [])


def test_a_control_without_a_value_has_its_default(panel: ControlPanel) -> None:
    assert panel.values == {
        "depth": 20, "rate": 1e-4, "device": "cpu", "norm": False, "trained": "111", "seed": "",
    }  # fmt: skip


def test_the_users_change_is_heard_and_values_from_python_are_not(panel: ControlPanel) -> None:
    heard: list[dict[str, Any]] = []
    changed: list[str] = []
    panel.on_change(lambda values, name: heard.append(values))
    panel.on_change(lambda values, name: changed.append(name))
    panel.set_values({"depth": 3, "norm": True})
    assert heard == []
    user_changes(panel, "depth", 7)
    assert [values["depth"] for values in heard] == [7]
    assert changed == ["depth"]
    assert heard[0] == panel.values
    assert panel.values["norm"] is True


def test_what_a_callback_does_to_its_values_changes_nothing(panel: ControlPanel) -> None:
    panel.on_change(lambda values, name: values.clear())
    user_changes(panel, "depth", 7)
    assert panel.values["depth"] == 7


def test_a_number_beyond_the_range_arrives_as_typed(panel: ControlPanel) -> None:
    user_changes(panel, "depth", 1000)
    assert panel.values["depth"] == 1000


def test_numbers_are_int_or_float_as_the_slider_is(panel: ControlPanel) -> None:
    user_changes(panel, "rate", 1)
    user_changes(panel, "depth", 4.0)
    assert isinstance(panel.values["rate"], float)
    assert isinstance(panel.values["depth"], int)
    user_changes(panel, "depth", 2.5)  # for the lab to refuse with words, not for us to round
    assert panel.values["depth"] == 2.5


def test_toggles_are_a_digit_for_each_button(panel: ControlPanel) -> None:
    user_changes(panel, "trained", "011")
    assert panel.values["trained"] == "011"
    panel.set_values({"trained": np.str_("001")})
    assert type(panel.values["trained"]) is str


def test_an_answer_follows_the_callbacks_even_when_one_fails(panel: ControlPanel) -> None:
    order: list[Any] = []
    panel.on_change(lambda values, name: order.append("callback"))
    panel.send = lambda content, buffers=None: order.append(content)
    user_changes(panel, "depth", 7, serial=41)
    assert order == ["callback", {"type": "ack", "serial": 41}]

    def fail(values: dict[str, Any], name: str) -> None:
        raise RuntimeError("no such depth")

    panel.on_change(fail)
    with contextlib.suppress(RuntimeError):
        user_changes(panel, "depth", 8, serial=42)
    assert order[-1] == {"type": "ack", "serial": 42}


def test_numpy_values_become_plain_ones(panel: ControlPanel) -> None:
    panel.set_values({"depth": np.int64(9), "rate": np.float32(0.5), "norm": np.bool_(True)})
    assert {type(panel.values[name]) for name in ("depth", "rate", "norm")} == {int, float, bool}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depht": 3}, "no control 'depht'"),
        ({"device": "tpu"}, "'cuda', 'cpu' expected"),
        ({"depth": "many"}, "a number expected"),
        ({"rate": float("nan")}, "finite"),
        ({"norm": 1}, "True or False"),
        ({"trained": "01"}, "trained layers: 3 digits 0 or 1 expected, not '01'"),
        ({"trained": "0111"}, "not '0111'"),
        ({"trained": "012"}, "not '012'"),
        ({"trained": "011\n"}, "3 digits"),
        ({"trained": 111}, "not 111"),
    ],
)
def test_wrong_values_are_refused_and_none_is_set(
    panel: ControlPanel, values: dict[str, Any], words: str
) -> None:
    before = dict(panel.values)
    with pytest.raises(ValueError, match=words):
        panel.set_values({"seed": "1", **values})
    assert panel.values == before


def test_show_error_marks_a_control_until_taken_back(panel: ControlPanel) -> None:
    panel.show_error("depth", "at most 200 layers")
    assert panel.error == {"name": "depth", "message": "at most 200 layers"}
    panel.show_error(None, "")
    assert panel.error == {"name": None, "message": ""}
    with pytest.raises(ValueError, match="no control"):
        panel.show_error("width", "?")


@pytest.mark.parametrize(
    ("slider", "step", "whole"),
    [
        (Slider("a", "a", 1, 50), 1, True),
        (Slider("a", "a", 0.1, 4.0), 0.02, False),
        (Slider("a", "a", 0.0, 1.0), 0.01, False),
        (Slider("a", "a", 1e-4, 10.0, log=True), 0.05, False),
        (Slider("a", "a", 16, 4096, log=True), 0.05, True),
        (Slider("a", "a", 0, 1, step=0.25), 0.25, False),
    ],
)
def test_default_steps_are_round(slider: Slider, step: float, whole: bool) -> None:
    assert slider.spec()["step"] == step
    assert slider.spec()["whole"] is whole


def test_formats_are_split_for_the_browser() -> None:
    slider = Slider("rate", "rate", 0.0, 1.0, format="η = {:.2e} per step")
    assert slider.spec()["format"] == {"before": "η = ", "how": ".2e", "after": " per step"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Slider("a", "a", 5, 5), "minimum < maximum"),
        (lambda: Slider("a", "a", 0, 5, log=True), "above 0"),
        (lambda: Slider("a", "a", 0, 5, step=0), "positive"),
        (lambda: Slider("a", "a", 0, 5, format="{:,}"), "format"),
        (lambda: Choice("a", "a", ()), "at least one option"),
        (lambda: Toggles("a", "a", ()), "at least one button"),
        (lambda: ControlPanel([Entry("a", "a"), Switch("a", "b")]), "one name"),
    ],
)
def test_wrong_controls_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
