"""Argument checks whose messages name the argument, the value given and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

__all__ = ["require_in_range", "require_integer", "require_one_of"]


def require_in_range(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a number outside ``[low, high]``; an end that is open, or infinite, is outside too.

    Raises:
        TypeError: ``value`` is not a Python number.
        ValueError: ``value`` is outside the range, infinite, or not a number (NaN).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name} must be a number (int or float), got {value!r} ({type(value).__name__})"
        )
    accepted = _interval(low, high, open_low, open_high)
    if low <= value == high == math.inf:
        raise ValueError(f"{name} must be finite and {accepted}, got {value!r}")
    inside = low <= value <= high
    if not inside or (open_low and value == low) or (open_high and value == high):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")


def require_integer(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Refuse anything but a whole number within ``[low, high]``.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be a whole number (int), got {value!r} ({type(value).__name__})"
        )
    require_in_range(name, value, low, high)


def require_one_of(name: str, value: Any, accepted: Collection[Any]) -> None:
    """Refuse a value that is not among the accepted ones.

    Raises:
        ValueError: ``value`` is not accepted.
    """
    if value not in list(accepted):  # a list compares, where a dict would hash the value
        choices = ", ".join(repr(choice) for choice in accepted)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    above = f"{'above' if open_low else 'at least'} {_exact(low)}"
    if high == math.inf:
        return above
    if open_low or open_high:
        return f"{above} and {'below' if open_high else 'at most'} {_exact(high)}"
    return f"between {_exact(low)} and {_exact(high)}"


def _exact(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
