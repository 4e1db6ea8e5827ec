"""The chart of a pruned student's candidates: calibration loss against size, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potstill.report._format import percent
from potstill.report._scales import Frame, fitted

__all__ = ["front", "frontier"]

SIZE = (640, 300)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none of smaller or equal size beats, from small to large.

    >>> frontier([(1.0, 5.0), (2.0, 6.0), (2.0, 3.0), (3.0, 4.0)])
    [(1.0, 5.0), (2.0, 3.0)]
    """
    best: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not best or loss < best[-1][1]:
            best.append((size, loss))
    return best


def front(found: Mapping[str, Any]) -> str:
    """All candidates of all rounds, the chosen ones filled with the student's colour.

    Args:
        found: ``prune`` of ``result.json``.
    """
    whole = found["target"]["whole"]
    rows = [(row, place, one) for row in found["rounds"] for place, one in enumerate(row["candidates"])]
    sizes = [one["cost"] / whole for _, _, one in rows]
    losses = [value for _, _, one in rows for value in (one["loss"], one["trial"]) if value is not None]
    frame = Frame.of(fitted(sizes, room=0.12), fitted(losses, room=0.1), size=SIZE)
    parts = [
        frame.axes(lambda value: percent(value, 0), lambda value: f"{value:.3g}", "size, of the original")
    ]
    best = frontier(
        [(one["cost"] / whole, one["loss"] if one["trial"] is None else one["trial"]) for _, _, one in rows]
    )
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in best)
    parts.append(f'<polyline class="line other" style="stroke-dasharray:6 4" points="{path}"/>')
    parts.extend(_candidate(frame, row, place, one, whole) for row, place, one in reversed(rows))
    return frame.drawing("Calibration loss of all candidates against their size", "".join(parts))


def _candidate(frame: Frame, row: Mapping[str, Any], place: int, one: Mapping[str, Any], whole: float) -> str:
    """A ring before training, a disc after the short one, joined."""
    size, kind = one["cost"] / whole, "other" if place else "student"
    x, before = frame.x(size), frame.y(one["loss"])
    units = sum(len(units) for units in one["units"].values())
    title = f"round {row['round']}: {len(one['blocks'])} blocks and {units} units go, loss {one['loss']:.3f}"
    ring = 'style="fill:none"'
    drawn = f'<circle class="mark {kind}" {ring} cx="{x:.1f}" cy="{before:.1f}" r="4.5"/>'
    if one["trial"] is not None:
        title += f", {one['trial']:.3f} after a short training"
        after = frame.y(one["trial"])
        drawn += frame.line(f"whisker {kind}", (size, one["loss"]), (size, one["trial"]))
        drawn += f'<circle class="mark {kind}" cx="{x:.1f}" cy="{after:.1f}" r="5"/>'
    return f"<g><title>{escape(title)}{', chosen' if not place else ''}</title>{drawn}</g>"
