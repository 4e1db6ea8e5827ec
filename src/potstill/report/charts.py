"""The report's charts as inline SVG: colours come from the page's style, so they follow its theme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from potstill.report._format import compact, milliseconds, percent
from potstill.report._scales import Frame, fitted
from potstill.report.content import Bin

__all__ = ["Band", "Point", "curves", "reliability", "trade_off"]

LABEL_GAP = 15.0

WriteMetric = Callable[[float, int], str]


@dataclass(frozen=True)
class Band:
    """One line of a curve chart.

    Attributes:
        arm: Decides its colour.
        label: Stands at its right end.
        x: Positions.
        low: Lowest seed at each position.
        mean: Mean over seeds.
        high: Highest seed.
    """

    arm: str
    label: str
    x: Sequence[float]
    low: Sequence[float]
    mean: Sequence[float]
    high: Sequence[float]


def curves(
    bands: Sequence[Band],
    *,
    label: str,
    x_title: str,
    fractions: bool = False,
    size: tuple[int, int] = (430, 255),
    y_span: tuple[float, float] | None = None,
) -> str:
    """Mean lines with a band from the lowest to the highest seed.

    Args:
        bands: The lines; later ones are drawn over earlier ones.
        label: What a screen reader says.
        x_title: Title of the horizontal axis.
        fractions: Write the vertical axis in per cent.
        size: Width and height of the drawing.
        y_span: Lowest and highest value of the vertical axis, where several charts share one.
    """
    all_x = [value for band in bands for value in band.x]
    all_y = y_span or [value for band in bands for value in (*band.low, *band.high)]
    span = (min(all_x), max(all_x)) if len(set(all_x)) > 1 else fitted(all_x)
    frame = Frame.of(span, fitted(all_y, room=0.06), size=size, right=70)
    parts = [
        frame.axes(
            lambda value: f"{value:,.0f}",
            _writer(frame, fractions),
            x_title,
            x_ticks=_whole(frame.x.ticks(5 if size[0] > 400 else 3)),
        )
    ]
    parts += [_area(frame, band) for band in bands]
    parts += [_line(frame, band) for band in bands]
    heights = _apart([frame.y(band.mean[-1]) for band in bands], frame.y.end, frame.y.start)
    for band, height in zip(bands, heights, strict=True):
        parts.append(_name(band.arm, band.label, frame.x(band.x[-1]) + 8, height))
    return frame.drawing(label, "".join(parts))


def _writer(frame: Frame, fractions: bool) -> Callable[[float], str]:
    """Writes the vertical axis with as many digits as its ticks need, the same for all."""
    ticks = [value * 100 if fractions else value for value in frame.y.ticks()]
    digits = next((n for n in range(6) if all(abs(round(v, n) - v) < 1e-9 for v in ticks)), 6)
    return (lambda value: percent(value, digits)) if fractions else (lambda value: f"{value:.{digits}f}")


def _whole(ticks: Sequence[float]) -> list[float]:
    return [value for value in ticks if float(value).is_integer()]


def _area(frame: Frame, band: Band) -> str:
    if tuple(band.low) == tuple(band.high):
        return ""
    there = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(band.x, band.high, strict=True)]
    back = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(band.x, band.low, strict=True)]
    return f'<polygon class="band {_class(band.arm)}" points="{" ".join(there + back[::-1])}"/>'


def _line(frame: Frame, band: Band) -> str:
    pairs = list(zip(band.x, band.mean, strict=True))
    path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in pairs)
    x, y = frame.x(pairs[-1][0]), frame.y(pairs[-1][1])
    return (
        f'<polyline class="line {_class(band.arm)}" points="{path}"/>'
        f'<circle class="dot {_class(band.arm)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    )


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Label heights moved so that none overlap, in the order given."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + LABEL_GAP)
    over = max((moved[place] - bottom for place in order[-1:]), default=0.0)
    return [max(height - max(over, 0.0), top) for height in moved]


@dataclass(frozen=True)
class Point:
    """One arm in a trade-off chart.

    Attributes:
        arm: Decides its colour and shape.
        x: Size or latency, positive.
        y: Metric.
        y_interval: Its 95 % interval.
        x_interval: Spread of ``x``, if it was measured more than once.
    """

    arm: str
    x: float
    y: float
    y_interval: tuple[float, float]
    x_interval: tuple[float, float] | None = None


def trade_off(
    points: Sequence[Point], *, label: str, x_title: str, unit: str, write_metric: WriteMetric = percent
) -> str:
    """The metric against what it costs, on a logarithmic scale of cost.

    Args:
        points: The arms.
        label: What a screen reader says.
        x_title: Title of the horizontal axis.
        unit: ``count`` or ``ms``: how the cost is written.
        write_metric: Writes a value of the metric with so many digits; in per cent by default.
    """
    costs = [value for point in points for value in (point.x, *(point.x_interval or ()))]
    metrics = [value for point in points for value in (point.y, *point.y_interval)]
    frame = Frame.of(fitted(costs, log=True, room=0.25), fitted(metrics, room=0.14), log=True)
    write = milliseconds if unit == "ms" else compact
    parts = [frame.axes(lambda value: _tick(value, unit), _writer(frame, write_metric is percent), x_title)]
    parts.append(_gain_arrow(frame, {point.arm: point for point in points}))
    for point in points:
        title = f"{point.arm}: {write_metric(point.y, 2)}, {write(point.x)}"
        parts.append(f"<g><title>{escape(title)}</title>{_whiskers(frame, point)}{_mark(frame, point)}</g>")
    middle = (frame.x.start + frame.x.end) / 2
    for left in (False, True):
        side = [point for point in points if (frame.x(point.x) > middle) == left]
        heights = _apart([frame.y(point.y) for point in side], frame.y.end, frame.y.start)
        for point, height in zip(side, heights, strict=True):
            text, x = f"{point.arm} {write_metric(point.y, 1)}", frame.x(point.x) + (-12 if left else 12)
            parts.append(_name(point.arm, text, x, height, anchor="end" if left else "start"))
    return frame.drawing(label, "".join(parts))


def _tick(value: float, unit: str) -> str:
    return f"{value:g}" if unit == "ms" else compact(value, 1)


def _gain_arrow(frame: Frame, arms: Mapping[str, Point]) -> str:
    """A thin line from the control to the student, which cost the same."""
    if "control" not in arms or "student" not in arms:
        return ""
    first, second = arms["control"], arms["student"]
    return frame.line("step", (first.x, first.y), (second.x, second.y))


def _whiskers(frame: Frame, point: Point) -> str:
    kind = f"whisker {_class(point.arm)}"
    text = frame.line(kind, (point.x, point.y_interval[0]), (point.x, point.y_interval[1]))
    if point.x_interval is not None:
        text += frame.line(kind, (point.x_interval[0], point.y), (point.x_interval[1], point.y))
    return text


def _mark(frame: Frame, point: Point) -> str:
    """A shape of its own for each arm, so that colour is not the only difference."""
    x, y, name = frame.x(point.x), frame.y(point.y), _class(point.arm)
    if point.arm == "teacher":
        return f'<rect class="mark {name}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" rx="1"/>'
    return f'<circle class="mark {name}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def reliability(arm: str, bins: Sequence[Bin], *, num_bins: int = 15) -> str:
    """Accuracy against confidence; bars that end below the line show overconfidence.

    Args:
        arm: Decides the colour.
        bins: The filled bins.
        num_bins: Bins over 0 to 1.
    """
    frame = Frame.of((0.0, 1.0), (0.0, 1.0), size=(280, 260), right=24)
    total = sum(one.count for one in bins) or 1
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]

    def write(value: float) -> str:
        return percent(value, 0)

    parts = [frame.axes(write, write, "confidence", x_ticks=ticks)]
    parts += [_bin(frame, arm, one, num_bins, one.count / total) for one in bins]
    parts.append(frame.line("even", (0, 0), (1, 1)))
    return frame.drawing(f"Reliability of the {arm}", "".join(parts))


def _bin(frame: Frame, arm: str, one: Bin, num_bins: int, share: float) -> str:
    """The bar of one bin, and its gap to the line; a bin with few answers says little and looks faint."""
    width = (frame.x.end - frame.x.start) / num_bins
    left = frame.x.start + min(max(math.ceil(one.confidence * num_bins) - 1, 0), num_bins - 1) * width + 1
    top, meant, base = frame.y(one.accuracy), frame.y(one.confidence), frame.y.start
    box = f'x="{left:.1f}" width="{width - 2:.1f}"'
    gap = f'<rect class="gap" {box} y="{meant:.1f}" height="{top - meant:.1f}"/>' if meant < top else ""
    confidence, right = percent(one.confidence, 1), percent(one.accuracy, 1)
    opacity = min(1.0, 0.3 + 0.7 * (share / 0.2) ** 0.5)
    return (
        f"<g><title>confidence {confidence}, right {right}, {one.count:,} answers</title>"
        f'{gap}<rect class="bar {_class(arm)}" {box} y="{top:.1f}" height="{base - top:.1f}" '
        f'style="fill-opacity:{opacity:.2f}"/></g>'
    )


def _name(arm: str, text: str, x: float, y: float, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}"'
    return f'<text class="name {_class(arm)}" {place}>{escape(text)}</text>'


def _class(arm: str) -> str:
    return arm if arm in ("teacher", "control", "student") else "other"
