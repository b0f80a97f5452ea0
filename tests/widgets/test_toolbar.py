"""Toolbar without a browser: which buttons count, and how much is sent."""

from __future__ import annotations

from typing import Any

import pytest

from lca_widgets.widgets.toolbar import Toolbar


@pytest.fixture
def toolbar() -> Toolbar:
    return Toolbar()


def press(toolbar: Toolbar, name: str) -> None:
    toolbar._handle_custom_msg({"type": "press", "name": name}, [])


def test_one_show_is_one_update(toolbar: Toolbar) -> None:
    seen: list[Any] = []
    toolbar.observe(lambda change: seen.append(change.new), names="view")
    toolbar.show(state="running", text="step 1/2", progress=0.5, pins=1)
    assert [(v["state"], v["text"], v["progress"]) for v in seen] == [("running", "step 1/2", 0.5)]


@pytest.mark.parametrize(
    ("state", "yes", "no"),
    [
        ("idle", {"run", "step"}, {"pause", "stop", "pin", "unpin"}),
        ("running", {"pause", "stop", "pin"}, {"run", "resume", "step"}),
        ("paused", {"resume", "stop", "step", "pin"}, {"pause"}),
        ("finished", {"run", "pin"}, {"pause", "stop", "resume"}),
        ("diverged", {"run", "pin"}, {"pause", "stop"}),
        ("error", {"run"}, {"pause", "stop", "pin"}),
    ],
)
def test_buttons_follow_the_state(toolbar: Toolbar, state: Any, yes: set, no: set) -> None:
    toolbar.show(state=state)
    assert yes <= toolbar.enabled
    assert not no & toolbar.enabled
    assert set(toolbar.view["enabled"]) == toolbar.enabled


def test_pin_stays_possible_after_a_refused_setting(toolbar: Toolbar) -> None:
    toolbar.show(state="finished")
    toolbar.show(state="error", text="depth: at most 200")
    assert "pin" in toolbar.enabled
    toolbar.show(can_pin=False)
    assert "pin" not in toolbar.enabled


def test_unpin_needs_a_pin(toolbar: Toolbar) -> None:
    toolbar.show(state="finished", pins=2)
    assert "unpin" in toolbar.enabled
    toolbar.show(pins=0)
    assert "unpin" not in toolbar.enabled


def test_what_is_not_given_stays(toolbar: Toolbar) -> None:
    toolbar.show(state="running", text="step 1", progress=0.25)
    toolbar.show(text="step 2")
    assert toolbar.view["state"] == "running"
    assert toolbar.view["progress"] == 0.25


def test_a_press_is_heard_and_one_that_came_too_late_is_not(toolbar: Toolbar) -> None:
    heard: list[str] = []
    toolbar.on_press(heard.append)
    toolbar.show(state="running")
    press(toolbar, "stop")
    toolbar.show(state="finished")
    press(toolbar, "stop")
    press(toolbar, "format-disk")
    assert heard == ["stop"]


def test_an_unknown_state_is_refused(toolbar: Toolbar) -> None:
    with pytest.raises(ValueError, match="'asleep'"):
        toolbar.show(state="asleep")


def test_progress_stays_within_its_bar(toolbar: Toolbar) -> None:
    toolbar.show(progress=1.7)
    assert toolbar.view["progress"] == 1.0
