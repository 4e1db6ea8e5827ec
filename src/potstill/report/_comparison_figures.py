"""The charts of a comparison: one small learning chart a method, and gain against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potstill.report._format import milliseconds, points
from potstill.report._scales import Frame, fitted
from potstill.report.charts import Band, curves

__all__ = ["cost_figure", "learning_figures"]

Histories = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
Row = Mapping[str, Any]

SIZE = (760, 380)
LABEL_HEIGHT = 16.0


def learning_figures(methods: Sequence[str], histories: Histories, metric: str) -> str:
    """One chart a method with the control beside it, all on the same scale.

    Args:
        methods: In the order of the page.
        histories: For each method and the control, one list of rows a seed.
        metric: What is drawn.
    """
    control = _band(histories.get("control", ()), "control", metric)
    known = {method: _band(histories.get(method, ()), "student", metric) for method in methods}
    bands = [band for band in (control, *known.values()) if band is not None]
    span = (min(min(band.low) for band in bands), max(max(band.high) for band in bands)) if bands else None
    figures = ""
    for method, band in known.items():
        if band is not None:
            both = [one for one in (control, band) if one is not None]
            label = f"Validation {metric} of {method} and the control over the epochs"
            chart = curves(both, label=label, x_title="epoch", fractions=True, size=(290, 220), y_span=span)
            figures += f"<figure><h3>{escape(method)}</h3>{chart}</figure>"
    return figures


def _band(seeds: Sequence[Sequence[Mapping[str, float]]], arm: str, metric: str) -> Band | None:
    by_epoch: dict[float, list[float]] = {}
    for rows in seeds:
        for row in rows:
            if math.isfinite(row.get(metric, math.nan)):
                by_epoch.setdefault(row["epoch"], []).append(row[metric])
    if not by_epoch:
        return None
    x = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in x]
    return Band(
        arm=arm,
        label="control" if arm == "control" else "method",
        x=x,
        low=[min(some) for some in values],
        mean=[sum(some) / len(some) for some in values],
        high=[max(some) for some in values],
    )


def cost_figure(rows: Sequence[Row], control: float) -> str:
    """Gain against the seconds of a training step.

    Args:
        rows: The finished methods, with ``gain``, ``interval`` and ``seconds_per_step``.
        control: Seconds of a step of the control; it stands at a gain of 0.
    """
    costs = [row["seconds_per_step"] * 1e3 for row in rows]
    ends = [end * 100 for row in rows for end in (*row["interval"], 0.0)]
    x = fitted([*costs, control * 1e3], room=0.12)
    frame = Frame.of((max(x[0], 0.0), x[1]), fitted(ends, room=0.1), size=SIZE, right=40)
    parts = [
        frame.axes(_plain, _plain, "milliseconds a training step"),
        frame.line("even", (frame.x.low, 0), (frame.x.high, 0)),
    ]
    for row in rows:
        parts.append(_point(frame, row))
    at = (control * 1e3, 0.0)
    parts.append(
        f"<g><title>control: {milliseconds(control * 1e3)}</title>"
        f'<circle class="mark control" cx="{frame.x(at[0]):.1f}" cy="{frame.y(at[1]):.1f}" r="5.5"/></g>'
    )
    parts.append(_names(frame, [("control", "control", *at), *_front(rows)]))
    return frame.drawing("Gain in points against the time of a training step", "".join(parts))


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _point(frame: Frame, row: Row) -> str:
    x, gain = row["seconds_per_step"] * 1e3, row["gain"] * 100
    low, high = (end * 100 for end in row["interval"])
    title = f"{row['method']}: {points(row['gain'])} points, {milliseconds(x)} a step"
    whisker = frame.line("whisker other", (x, low), (x, high))
    dot = f'<circle class="mark student" cx="{frame.x(x):.1f}" cy="{frame.y(gain):.1f}" r="5"/>'
    return f"<g><title>{escape(title)}</title>{whisker}{dot}</g>"


def _front(rows: Sequence[Row]) -> list[tuple[str, str, float, float]]:
    """Methods that no other beats both in gain and in time."""
    best, found = -math.inf, []
    for row in sorted(rows, key=lambda row: (row["seconds_per_step"], -row["gain"])):
        if row["gain"] > best:
            best = row["gain"]
            found.append(("student", row["method"], row["seconds_per_step"] * 1e3, row["gain"] * 100))
    return found


def _names(frame: Frame, labels: Sequence[tuple[str, str, float, float]]) -> str:
    """Names beside their marks, moved up where they would lie over one below."""
    text, free = "", math.inf
    for arm, name, x, y in sorted(labels, key=lambda label: label[3]):
        height = min(frame.y(y) + 4, free - LABEL_HEIGHT)
        free = height
        right = frame.x(x) > (frame.x.start + frame.x.end) / 2
        place = f'x="{frame.x(x) + (-10 if right else 10):.1f}" y="{height:.1f}"'
        anchor = "end" if right else "start"
        text += f'<text class="name {arm}" {place} text-anchor="{anchor}">{escape(name)}</text>'
    return text
