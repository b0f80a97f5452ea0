"""How numbers are written where people read them."""

from __future__ import annotations

import math

__all__ = ["number", "percent"]

UNKNOWN = "–"


def number(value: float) -> str:
    """Write two or three digits, without an exponent where a reader needs none.

    Example:
        >>> [number(x) for x in (0.12345, 1234567.0, 1e-10, math.inf, math.nan)]
        ['0.123', '1.2e6', '1.0e-10', '∞', '–']
    """
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{float(f'{value:.3g}'):g}"
    return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def percent(share: float) -> str:
    """Write a share with two digits, with three where two would be all of it.

    Example:
        >>> [percent(x) for x in (0.25, 0.004, 0.996, 1.0, math.nan)]
        ['25 %', '0.4 %', '99.6 %', '100 %', '–']
    """
    if math.isnan(share):
        return UNKNOWN
    # Two digits of what is nearly all would be written 1e+02.
    return f"{100 * share:.{2 if share < 0.995 else 3}g} %" if share < 0.9995 else "100 %"
