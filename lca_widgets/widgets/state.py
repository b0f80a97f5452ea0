"""A lab's whole state as one short string: settings that differ from the defaults, then pins.

``depth=10&init=he|seed=1`` is a lab set to depth 10 and He, with one pinned run of seed 1. It reads
like the query of a web address, so any value can be written; ``|`` parts the pinned runs.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

__all__ = ["changes", "decode_state", "encode_state"]

Settings = TypeVar("Settings")

# bool("False") is True: only the two words that were written are read.
_READ: dict[type, Callable[[str], Any]] = {bool: {"True": True, "False": False}.__getitem__}
DEFAULTS = "default"  # stands for settings that differ in nothing, where "" would be overlooked


def changes(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, by name."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    }


def encode_state(settings: Any, pins: Sequence[Any] = ()) -> str:
    """Write settings and pinned settings, instances of one dataclass, as a string.

    Example:
        >>> from lca_widgets.experiments import MagnitudeSettings
        >>> encode_state(MagnitudeSettings(depth=10), pins=[MagnitudeSettings()])
        'depth=10|default'
    """
    return "|".join(_encode(run) for run in (settings, *pins))


def decode_state(text: str, settings_type: type[Settings]) -> tuple[Settings, list[Settings]]:
    """Read back what `encode_state` wrote.

    Args:
        text: The string.
        settings_type: The dataclass that it describes.

    Raises:
        ValueError: a part is not ``name=value``, a name is no setting, or a value is refused by the
            settings themselves.

    Example:
        >>> from lca_widgets.experiments import MagnitudeSettings
        >>> settings, pins = decode_state("depth=10|default", MagnitudeSettings)
        >>> settings.depth, [pin.depth for pin in pins]
        (10, [20])
    """
    settings, *pins = (_decode(part.strip(), settings_type) for part in text.split("|"))
    return settings, pins


def _encode(settings: Any) -> str:
    return urlencode(changes(settings), safe=",") or DEFAULTS


def _decode(text: str, settings_type: type[Settings]) -> Settings:
    if text == DEFAULTS:
        return settings_type()
    types = typing.get_type_hints(settings_type)
    try:
        pairs = parse_qsl(text, strict_parsing=True, keep_blank_values=True)
    except ValueError:
        pairs = []
    if not pairs:
        raise ValueError(f"state must be name=value&…, or {DEFAULTS!r}; got {text!r}")
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in types:
            raise ValueError(f"state has no setting {name!r}; there are {', '.join(types)}")
        try:
            values[name] = _READ.get(types[name], types[name])(value)
        except (KeyError, ValueError):
            raise ValueError(
                f"state: {name} must be of type {types[name].__name__}, got {value!r}"
            ) from None
    return settings_type(**values)
