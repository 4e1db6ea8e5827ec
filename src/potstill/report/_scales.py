"""Scales, ticks, and the frame that every chart of the report is drawn in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Frame", "Scale", "fitted"]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, along a line or a logarithm.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Pixel of ``low``.
        end: Pixel of ``high``.
        log: Whether equal ratios get equal lengths; values must then be positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of ``value``."""
        low, high = self._inner(self.low), self._inner(self.high)
        share = (self._inner(value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values within the scale."""
        if self.log:
            for digits in ((1, 2, 5), (1, 3), (1,)):
                exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [digit * 10.0**power for power in exponents for digit in digits]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= count + 1:
                    break
            if len(found) >= 2:
                return found
        return _round_values(self.low, self.high, count)


def _round_values(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.72)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def fitted(values: Iterable[float], *, log: bool = False, room: float = 0.1) -> tuple[float, float]:
    """The range of ``values`` with some room on both sides; never empty.

    >>> fitted([0.0, 1.0], room=0.5)
    (-0.5, 1.5)
    """
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not known:
        return (1.0, 10.0) if log else (0.0, 1.0)
    if log:
        low, high = math.log10(min(known)), math.log10(max(known))
        spare = max((high - low) * room, 0.1)
        return 10 ** (low - spare), 10 ** (high + spare)
    low, high = min(known), max(known)
    spare = (high - low) * room or max(abs(high) * room, 1e-3)
    return low - spare, high + spare


@dataclass(frozen=True)
class Frame:
    """The plot area of one chart, with its axes.

    Attributes:
        x: Horizontal scale.
        y: Vertical scale, ``start`` at the bottom.
        width: Width of the drawing; it is shown at most at this width, and shrinks with its column.
        height: Height of the drawing.
    """

    x: Scale
    y: Scale
    width: int
    height: int

    @classmethod
    def of(
        cls,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        log: bool = False,
        size: tuple[int, int] = (430, 255),
        right: int = 16,
    ) -> Frame:
        """A frame over the given ranges; ``right`` is the room for labels at the right edge."""
        width, height = size
        return cls(Scale(*x, 48, width - right, log=log), Scale(*y, height - 38, 14), width, height)

    def axes(
        self,
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
        x_title: str,
        *,
        x_ticks: Sequence[float] | None = None,
    ) -> str:
        """Grid lines, tick labels and the title of the horizontal axis."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        parts = []
        for value in self.y.ticks(5):
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{left - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">'
                f"{escape(y_format(value))}</text>"
            )
        parts.append(
            f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
        )
        for value in x_ticks if x_ticks is not None else self.x.ticks(5):
            parts.append(
                f'<text class="tick" x="{self.x(value):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">'
                f"{escape(x_format(value))}</text>"
            )
        parts.append(
            f'<text class="tick title" x="{right:.1f}" y="{bottom + 33:.1f}" text-anchor="end">'
            f"{escape(x_title)}</text>"
        )
        return "".join(parts)

    def line(self, kind: str, first: tuple[float, float], second: tuple[float, float]) -> str:
        """A straight line between two points given as values."""
        (x1, y1), (x2, y2) = ((self.x(x), self.y(y)) for x, y in (first, second))
        return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

    def drawing(self, label: str, body: str) -> str:
        """The whole SVG; ``label`` is what a screen reader says."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(label)}" '
            f'style="max-width:{self.width}px">{body}</svg>'
        )
