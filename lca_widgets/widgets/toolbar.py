"""Run, pause, step, stop, reset, pin: the buttons of a lab and its status line.

Trait, Python to JavaScript (`toolbar.js` has the other side): ``view``, one update a message::

    {state, text, progress: 0..1 or null, enabled: [button names], error: text}

JavaScript to Python: ``{type: "press", name}``. The second button is called "pause" and, while
paused, "resume". Which buttons can be pressed is decided here alone; a press of one that has just
been disabled, on its way while the run ended, is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anywidget
import traitlets

State = Literal["idle", "running", "paused", "stopped", "finished", "diverged", "error"]

_ENABLED: dict[str, frozenset[str]] = {
    "idle": frozenset({"run", "step", "reset"}),
    "running": frozenset({"pause", "stop", "reset"}),
    "paused": frozenset({"run", "resume", "step", "stop", "reset"}),
    "stopped": frozenset({"run", "step", "reset"}),
    "finished": frozenset({"run", "step", "reset"}),
    "diverged": frozenset({"run", "step", "reset"}),
    "error": frozenset({"run", "step", "reset"}),
}
_WITH_ROWS = frozenset({"running", "paused", "stopped", "finished", "diverged"})


class Toolbar(anywidget.AnyWidget):
    """Buttons and status of a run.

    Example:
        toolbar = Toolbar()
        toolbar.on_press(lambda name: ...)  # run pause resume step stop reset pin unpin
        toolbar.show(state="running", text="step 132/200 · loss 0.123", progress=0.66)
    """

    _esm = Path(__file__).with_suffix(".js")
    view = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        """An idle toolbar with nothing to pin."""
        self._callbacks: list[Callable[[str], object]] = []
        self._lock = threading.RLock()
        self._state: State = "idle"
        self._text = ""
        self._progress: float | None = None
        self._error = ""
        self._can_pin = False
        self._pins = 0
        super().__init__(view=self._view())
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        return f"Toolbar({self._state}, {self._text!r})"

    @property
    def enabled(self) -> frozenset[str]:
        """The buttons that can be pressed now."""
        names = set(_ENABLED[self._state])
        if self._can_pin:
            names.add("pin")
        if self._pins:
            names.add("unpin")
        return frozenset(names)

    def show(
        self,
        state: State | None = None,
        text: str | None = None,
        progress: float | None = None,
        *,
        error: str | None = None,
        pins: int | None = None,
        can_pin: bool | None = None,
    ) -> None:
        """Show where a run stands; what is not given stays as it was.

        Args:
            state: Decides which buttons can be pressed. A change of state is announced to screen
                readers, the text of each update is not.
            text: The status line.
            progress: Share of the run that is done, 0 to 1.
            error: A refusal, shown beside the state and announced; an empty one takes it back.
            pins: How many runs are pinned: Unpin needs one.
            can_pin: Whether there is a run to pin; by default once a run has started.
        """
        # From two threads at once, the older view could be the one that stays.
        with self._lock:
            if state is not None:
                if state not in _ENABLED:
                    raise ValueError(f"Toolbar.show: state {state!r}; one of {', '.join(_ENABLED)}")
                self._state = state
                self._can_pin = self._can_pin or state in _WITH_ROWS
            if text is not None:
                self._text = text
            if progress is not None:
                self._progress = min(1.0, max(0.0, float(progress)))
            if error is not None:
                self._error = error
            if pins is not None:
                self._pins = int(pins)
            if can_pin is not None:
                self._can_pin = can_pin
            self.view = self._view()

    def on_press(self, callback: Callable[[str], object]) -> None:
        """Call `callback(name)` when a button is pressed."""
        self._callbacks.append(callback)

    def _view(self) -> dict[str, Any]:
        return {
            "state": self._state,
            "text": self._text,
            "progress": self._progress,
            "enabled": sorted(self.enabled),
            "error": self._error,
        }

    def _receive(self, _widget: object, message: dict[str, Any], _buffers: object) -> None:
        name = message.get("name")
        if message.get("type") != "press" or name not in self.enabled:
            return
        for callback in tuple(self._callbacks):
            callback(name)
