"""How numbers are written in the report: short, with true minus signs and the unit they need."""

from __future__ import annotations

import math

__all__ = [
    "bytes_text",
    "compact",
    "interval_points",
    "milliseconds",
    "percent",
    "points",
    "ratio",
    "seconds_text",
    "share_text",
]

NO_VALUE = "–"
SPACE = "\u202f"


def percent(fraction: float | None, digits: int = 2) -> str:
    r"""``0.9339`` as ``93.39 %``; a dash where there is no value.

    >>> percent(0.5, 0).replace("\u202f", " ")
    '50 %'
    """
    if fraction is None or not math.isfinite(fraction):
        return NO_VALUE
    return f"{fraction * 100:.{digits}f}{SPACE}%".replace("-", "−")


def share_text(fraction: float) -> str:
    r"""A probability in whole per cent, as HTML, that never claims 0 or 1.

    >>> share_text(0.001).replace("\u202f", " ")
    '&lt;1 %'
    """
    if 0 < fraction < 0.005:
        return f"&lt;1{SPACE}%"
    return f"&gt;99{SPACE}%" if 0.995 <= fraction < 1 else percent(fraction, 0)


def points(fraction: float, digits: int = 2) -> str:
    """A difference of fractions in percentage points, always signed.

    >>> points(-0.0123)
    '−1.23'
    """
    text = f"{fraction * 100:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval_points(interval: tuple[float, float], digits: int = 2) -> str:
    """An interval of differences.

    >>> interval_points((0.001, 0.02))
    '+0.10 to +2.00'
    """
    return f"{points(interval[0], digits)} to {points(interval[1], digits)}"


def compact(value: float | None, digits: int = 3) -> str:
    r"""A count with three leading digits.

    >>> compact(853018).replace("\u202f", " "), compact(12).replace("\u202f", " "), compact(1e9)[:4]
    ('853 k', '12', '1.00')
    """
    if value is None or not math.isfinite(value):
        return NO_VALUE
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{_leading(value / factor, digits)}{SPACE}{unit}"
    return f"{value:.0f}" if float(value).is_integer() else _leading(value, digits)


def _leading(value: float, digits: int) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:.{max(digits - whole, 0)}f}"


def bytes_text(value: float | None) -> str:
    r"""A size in decimal bytes.

    >>> bytes_text(312_000).replace("\u202f", " ")
    '312 kB'
    """
    if value is None:
        return NO_VALUE
    text = compact(value)
    return text + "B" if text[-1].isalpha() else f"{text}{SPACE}B"


def milliseconds(value: float | None) -> str:
    r"""A duration in milliseconds with three leading digits.

    >>> milliseconds(1.2345).replace("\u202f", " ")
    '1.23 ms'
    """
    return NO_VALUE if value is None else f"{_leading(value, 3)}{SPACE}ms"


def seconds_text(value: float) -> str:
    r"""A duration in the unit that suits it.

    >>> seconds_text(4000).replace("\u202f", " "), seconds_text(61).replace("\u202f", " ")
    ('1.1 h', '61 s')
    """
    for limit, factor, unit, digits in ((100, 1, "s", 0), (3600, 60, "min", 0)):
        if value < limit:
            return f"{value / factor:.{digits}f}{SPACE}{unit}"
    return f"{value / 3600:.1f}{SPACE}h"


def ratio(value: float) -> str:
    """How many times: one digit after the point below 10, none above.

    >>> ratio(10.9), ratio(2.34)
    ('11×', '2.3×')
    """
    return f"{value:.0f}×" if value >= 9.95 else f"{value:.1f}×"
