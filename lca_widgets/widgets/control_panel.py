"""All controls of a lab in one widget: sliders, choices, switches, toggles and text fields.

Own controls rather than ipywidgets' because those sliders have no accessible name, and a
logarithmic one announces its exponent.

Messages, JavaScript to Python (`control_panel.js` has the other side):

``{type: "change", name, value, serial}``
    The user's change of one control; while a slider is dragged at most ten a second, the last
    value always. A number typed beyond a slider's range is sent as typed: Python refuses it, with
    words (`show_error`). What is no number is refused in place and not sent.

Python to JavaScript:

``{type: "ack", serial}``
    That change, and all before it, have been handled, callbacks included. Until then the control
    keeps what the user did, whatever `values` says: an answer that is late must not fight the drag.

Traits, Python to JavaScript: ``controls`` (list of specs), ``values`` ``{name: value}``,
``place`` ("column" or "row"), ``error`` ``{name, message}`` (name null: not one control's fault).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import anywidget
import traitlets

Value = Any  # int, float, str, bool or None: what JSON can carry and an Option can hold
Values = dict[str, Value]

# What both Python's str.format and the JavaScript side understand.
_FORMAT = re.compile(r"(?P<before>[^{}]*)\{:(?P<how>d|\.\d+[feg])\}(?P<after>[^{}]*)")


@dataclass(frozen=True)
class Slider:
    """A number: a slider with an editable box beside it.

    Attributes:
        name: Key in the panel's values.
        label: Visible and accessible name.
        minimum: The slider's lower end; what is typed may lie beyond.
        maximum: The slider's upper end.
        step: A notch; of a log slider in decades. By default 1 for whole numbers, a round
            hundredth of the range otherwise, and 0.05 decades on a log slider.
        log: Whether the slider moves in log10. It still shows and sends the value itself.
        format: How the value is spoken, with its unit: text around one of `{:d}`, `{:.3g}`,
            `{:.2f}` or `{:.1e}`.
        help: One sentence, shown as a tool tip and read as a description.
    """

    name: str
    label: str
    minimum: float
    maximum: float
    step: float | None = None
    log: bool = False
    format: str = ""
    help: str = ""

    def __post_init__(self) -> None:
        if not self.minimum < self.maximum:
            raise ValueError(
                f"slider {self.name!r}: minimum < maximum expected, not "
                f"{self.minimum}, {self.maximum}"
            )
        if self.log and self.minimum <= 0:
            raise ValueError(f"slider {self.name!r}: a log slider starts above 0")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"slider {self.name!r}: step {self.step}; a positive one expected")
        if not _FORMAT.fullmatch(self.format_used):
            raise ValueError(
                f"slider {self.name!r}: format {self.format!r}; text around one of "
                "'{:d}', '{:.3g}', '{:.2f}', '{:.1e}' expected"
            )

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers: both ends, and the step if given, are ints."""
        step = 1 if self.step is None or self.log else self.step
        return all(isinstance(number, int) for number in (self.minimum, self.maximum, step))

    @property
    def step_used(self) -> float:
        """The notch: `step`, or the default."""
        if self.step is not None:
            return self.step
        if self.log:
            return 0.05
        return 1 if self.whole else _round_down((self.maximum - self.minimum) / 100)

    @property
    def format_used(self) -> str:
        """How the value is spoken: `format`, or the default."""
        return self.format or ("{:d}" if self.whole else "{:.3g}")

    def default(self) -> Value:
        """The value before anyone chose one."""
        return self.minimum

    def checked(self, value: Value) -> Value:
        """The value as a finite number, an int where the slider is whole; else a ValueError."""
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.label}: a number expected, not {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{self.label}: a finite number expected, not {value}")
        if not self.whole:
            return float(value)
        # 2.5 layers stay 2.5: whoever knows what it means refuses it with words.
        return int(value) if float(value).is_integer() else value

    def spec(self) -> dict[str, Any]:
        """What the JavaScript side needs."""
        match = _FORMAT.fullmatch(self.format_used)
        assert match is not None  # checked at construction
        return {
            "kind": "slider",
            **asdict(self),
            "step": self.step_used,
            "whole": self.whole,
            "format": match.groupdict(),
        }


@dataclass(frozen=True)
class Option:
    """One entry of a `Choice`; with a `disabled_reason` it is shown but cannot be chosen."""

    value: Value
    label: str
    disabled_reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """One of a few options, in a drop-down list."""

    name: str
    label: str
    options: tuple[Option, ...]
    help: str = ""

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError(f"choice {self.name!r}: at least one option expected")

    def default(self) -> Value:
        """The first option that can be chosen."""
        possible = [option for option in self.options if option.disabled_reason is None]
        return (possible or list(self.options))[0].value

    def checked(self, value: Value) -> Value:
        """The value if it is an option's; else a ValueError that lists the options."""
        value = _plain(value)
        for option in self.options:
            # 1.0 comes back from JSON as 1, but True is no 1.
            same_sort = isinstance(option.value, bool) == isinstance(value, bool)
            if same_sort and option.value == value:
                return option.value
        known = ", ".join(repr(option.value) for option in self.options)
        raise ValueError(f"{self.label}: one of {known} expected, not {value!r}")

    def spec(self) -> dict[str, Any]:
        """What the JavaScript side needs."""
        return {"kind": "choice", **asdict(self), "options": [asdict(o) for o in self.options]}


@dataclass(frozen=True)
class Switch:
    """On or off."""

    name: str
    label: str
    help: str = ""

    def default(self) -> Value:
        """Off."""
        return False

    def checked(self, value: Value) -> Value:
        """The value if it is a bool; else a ValueError."""
        value = _plain(value)
        if not isinstance(value, bool):
            raise ValueError(f"{self.label}: True or False expected, not {value!r}")
        return value

    def spec(self) -> dict[str, Any]:
        """What the JavaScript side needs."""
        return {"kind": "switch", **asdict(self)}


@dataclass(frozen=True)
class Toggles:
    """A row of on/off buttons; the value has a digit for each, as "01111": all but the first on.

    Attributes:
        name: Key in the panel's values.
        label: Visible and accessible name of the row.
        buttons: What each button shows, from left to right.
        on: What a pressed button is called by its tool tip and by screen readers.
        off: What an unpressed one is called.
        help: One sentence, shown as a tool tip and read as a description.
    """

    name: str
    label: str
    buttons: tuple[str, ...]
    on: str = "on"
    off: str = "off"
    help: str = ""

    def __post_init__(self) -> None:
        if not self.buttons:
            raise ValueError(f"toggles {self.name!r}: at least one button expected")

    def default(self) -> Value:
        """All on."""
        return "1" * len(self.buttons)

    def checked(self, value: Value) -> Value:
        """The value if it is a text of one 0 or 1 for each button; else a ValueError."""
        value = _plain(value)
        size = len(self.buttons)
        if not isinstance(value, str) or not re.fullmatch(f"[01]{{{size}}}", value):
            raise ValueError(f"{self.label}: {size} digits 0 or 1 expected, not {value!r}")
        return value

    def spec(self) -> dict[str, Any]:
        """What the JavaScript side needs."""
        return {"kind": "toggles", **asdict(self)}


@dataclass(frozen=True)
class Entry:
    """A line of text."""

    name: str
    label: str
    help: str = ""

    def default(self) -> Value:
        """The empty text."""
        return ""

    def checked(self, value: Value) -> Value:
        """The value as text."""
        return str(value)

    def spec(self) -> dict[str, Any]:
        """What the JavaScript side needs."""
        return {"kind": "entry", **asdict(self)}


Control = Slider | Choice | Switch | Toggles | Entry


class ControlPanel(anywidget.AnyWidget):
    """A column, or a row, of controls with one dictionary of values.

    Example:
        panel = ControlPanel([Slider("depth", "depth", 1, 50)], values={"depth": 20})
        panel.on_change(lambda values, changed: restart(**{changed: values[changed]}))
    """

    _esm = Path(__file__).with_suffix(".js")
    controls: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    place = traitlets.Enum(("column", "row"), default_value="column").tag(sync=True)
    error = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        controls: Sequence[Control],
        values: Mapping[str, Value] | None = None,
        place: Literal["column", "row"] = "column",
    ) -> None:
        """Lay out controls.

        Args:
            controls: From top to bottom, or from left to right.
            values: Their values; a control that is not named has its default.
            place: `"column"` beside the charts or `"row"` above them.
        """
        self._controls: dict[str, Control] = {control.name: control for control in controls}
        if len(self._controls) != len(controls):
            raise ValueError(f"two controls of one name: {[c.name for c in controls]}")
        self._callbacks: list[Callable[[Values, str], object]] = []
        defaults = {name: control.default() for name, control in self._controls.items()}
        super().__init__(
            controls=[control.spec() for control in controls],
            values={**defaults, **self._checked(values or {})},
            place=place,
            error={"name": None, "message": ""},
        )
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        return f"ControlPanel({self.values})"

    def set_values(self, values: Mapping[str, Value]) -> None:
        """Set some or all values, as a preset does; `on_change` is for the user's changes only."""
        self.values = {**self.values, **self._checked(values)}

    def on_change(self, callback: Callable[[Values, str], object]) -> None:
        """Call `callback(values, name)` after each change by the user.

        `values` is a copy of all values, one that Python has refused among them; `name` is the
        control that was changed.
        """
        self._callbacks.append(callback)

    def show_error(self, name: str | None, message: str) -> None:
        """Mark a control as wrong and say why; `show_error(None, "")` takes it back.

        With a message but no name, the message stands below all controls.
        """
        if name is not None:
            self._known(name)
        self.error = {"name": name, "message": message}

    def _known(self, name: str) -> Control:
        try:
            return self._controls[name]
        except KeyError:
            known = ", ".join(self._controls)
            raise ValueError(f"no control {name!r} in this panel; known: {known}") from None

    def _checked(self, values: Mapping[str, Value]) -> Values:
        return {name: self._known(name).checked(value) for name, value in values.items()}

    def _receive(self, _widget: object, message: dict[str, Any], _buffers: object) -> None:
        if message.get("type") != "change":
            return
        try:
            name = message["name"]
            self.values = {**self.values, **self._checked({name: message["value"]})}
            for callback in tuple(self._callbacks):
                callback(dict(self.values), name)
        finally:
            # Also after a callback that failed: or the control would ignore Python for ever.
            self.send({"type": "ack", "serial": message.get("serial")})


def _plain(value: Value) -> Value:
    """A numpy or torch scalar as the Python number that JSON can carry."""
    return value.item() if hasattr(value, "item") else value


def _round_down(size: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most `size`."""
    decade = 10.0 ** math.floor(math.log10(size))
    digit = max(d for d in (1, 2, 5) if d * decade <= size * 1.001)
    return float(f"{digit * decade:.3g}")
